"""Translates requests from the client's dialect into the upstream's, by way of chat's.

What the target can't do is refused with the parameter's name. Only parameters that change how an answer is made, and
not what was requested, are dropped silently: `seed`, `logprobs`, `store`, `metadata`, `service_tier`, `speed`, `top_k`,
`prediction`, `truncation` and cache hints that the target doesn't know; and towards Anthropic also `temperature`,
`top_p` and `verbosity`, which its API no longer has or never had.
"""

from __future__ import annotations

from gateway.errors import CallerError
from gateway.wire.body import Raw, is_set, read, to_raw
from gateway.wire.responses_to_chat import responses_to_chat, search_of
from gateway.wire.to_chat import completions_to_chat, messages_to_chat
from gateway.wire.to_messages import DEFAULT_MAX_TOKENS, chat_to_messages
from gateway.wire.to_responses import to_responses
from gateway.wire.tools import without_hosted

_PROMPT = {"chat": "messages", "completions": "prompt", "responses": "input", "messages": "messages"}
_TO_CHAT = {"completions": completions_to_chat, "messages": messages_to_chat}


def translate_request(
    raw: Raw, src: str, dst: str, *, max_tokens: int = DEFAULT_MAX_TOKENS, hosted_tools: str = "refuse"
) -> Raw:
    """The request in the dialect `dst`; the same object where nothing changes. An upstream is never asked to store a
    response. Raises CallerError for what can't be translated.

    `max_tokens` is the limit for Anthropic's API, which requires one, where the client set none. `hosted_tools` is
    `refuse` or `leave_out`, for tools that the source's own provider would run.
    """
    if src == dst:
        return to_responses(raw) if dst == "responses" else raw
    if src not in _PROMPT or dst not in ("chat", "messages"):
        raise CallerError(f"A model whose API is {dst} can't answer requests of {src}.", param="model")
    try:
        if hosted_tools == "leave_out":
            raw = without_hosted(raw, src)
        if src == "responses":
            chat = responses_to_chat(raw, to_messages=dst == "messages")
        else:
            chat = raw if src == "chat" else _TO_CHAT[src](raw)
        if dst == "chat":
            return chat
        return chat_to_messages(chat, max_tokens, search_of(raw) if src == "responses" else None)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        param = _PROMPT[src]
        raise CallerError(f"'{param}' doesn't have the form that the API requires: {error!r}", param=param) from None


def ask_usage(raw: Raw) -> Raw:
    """A streamed chat or completions request with the usage chunk requested, whatever the client requested."""
    options = (
        dict(read(raw, "stream_options", dict[str, object], {})) if is_set(raw, "stream_options") else {}
    )
    if options.get("include_usage") is True:
        return raw
    return {**raw, **to_raw({"stream_options": {**options, "include_usage": True}})}


__all__ = ["ask_usage", "translate_request"]
