"""The request that a deployment gets: the client's own bytes where nothing has to change, otherwise with as few changes
as possible.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cascade.types import Rung
from gateway.call import Call
from gateway.config.types import ModelConfig
from gateway.errors import UpstreamError
from gateway.fleet import Deployment
from gateway.providers import Provider
from gateway.wire.call_ids import suited
from gateway.wire.request import Raw, ask_usage, encode, signed, translate_request
from local_models.backends import Profile
from local_models.errors import RequestRefused

TRUE, FALSE = msgspec.Raw(b"true"), msgspec.Raw(b"false")
INCLUDE_USAGE = msgspec.Raw(b'{"include_usage":true}')
STREAMED_USAGE = frozenset({"chat", "completions"})
"""Dialects whose streams report usage only where the request asks for it."""


def dialect_of(provider: Provider, surface: str, rung: Rung, deployment: Deployment) -> str:
    """The API by which to call the upstream. Chat rather than responses where a cascade overrides fields or needs
    log-probabilities, which the responses API doesn't offer.
    """
    dialect = provider.dialect_for(surface)
    if dialect == "responses" and (rung.overrides or adds_logprobs(rung, deployment, "chat")):
        return provider.main_dialect
    return dialect


def request_body(call: Call, deployment: Deployment, dialect: str, rung: Rung, *, live: bool) -> bytes:
    """The client's own bytes where nothing changes; otherwise its fields, with some of them replaced."""
    if call.upload is not None:
        return call.upload.named(deployment.upstream_name)
    same = dialect == call.surface
    changes: Raw = {}
    if not same or deployment.upstream_name != call.body_model:
        changes["model"] = deployment.upstream_raw
    if live and dialect in STREAMED_USAGE and not (same and call.include_usage):
        has_options = same and "stream_options" in call.raw
        changes["stream_options"] = ask_usage(call.raw)["stream_options"] if has_options else INCLUDE_USAGE
    if call.stream and not live:
        changes["stream"] = FALSE
    if adds_logprobs(rung, deployment, dialect):
        changes["logprobs"] = TRUE
    keeps_messages = same and "messages" in call.raw and "messages" not in rung.overrides
    if keeps_messages:
        messages = fitted_messages(call.raw["messages"], dialect, deployment)
        if messages is not call.raw["messages"]:
            changes["messages"] = messages
    unchanged = same and not changes and not rung.overrides and dialect != "responses"
    if unchanged and call.body and deployment.foreign.isdisjoint(call.raw):
        return call.body
    if rung.overrides:
        raw = overridden(call, deployment, dialect, rung.overrides)
    else:
        raw = translated(call.raw, call.surface, deployment, dialect)
    if not keeps_messages and dialect == "chat":
        raw["messages"] = suited(raw["messages"], deployment.call_ids)
    raw.update(changes)
    if call.stream and not live:
        raw.pop("stream_options", None)
    elif live and not same:
        raw["stream"] = TRUE
    return encode(adapted(raw, deployment.config) if deployment.foreign else raw)


def tier_asked(call: Call, deployment: Deployment, dialect: str) -> str:
    """The service tier that the upstream receives. It is sent only by the API that the client used, and by chat for a
    client of responses.
    """
    field = "speed" if call.surface == "messages" else "service_tier"
    reaches = dialect == call.surface or (call.surface, dialect) == ("responses", "chat")
    return call.described.tier if reaches and field not in deployment.config.leave_out else ""


def translated(raw: Raw, surface: str, deployment: Deployment, dialect: str) -> Raw:
    """The request's fields as the upstream's API names them, in a new dictionary."""
    limit, hosted = deployment.config.max_output_tokens, deployment.config.hosted_tools
    return dict(translate_request(raw, surface, dialect, max_tokens=limit, hosted_tools=hosted))


def overridden(call: Call, deployment: Deployment, dialect: str, overrides: Mapping[str, object]) -> Raw:
    """The translated request with the fields that a cascade overrides. These are named as in chat, and null removes a
    field. Anthropic's API lacks most of them, so there they apply only where the messages themselves are replaced.
    """
    by_chat = dialect == "messages"
    if by_chat and "messages" not in overrides:
        return translated(call.raw, call.surface, deployment, dialect)
    raw = translated(call.raw, call.surface, deployment, "chat" if by_chat else dialect)
    for name, value in overrides.items():
        if name == "max_tokens" and "max_completion_tokens" in raw:
            name = "max_completion_tokens"
        raw[name] = msgspec.Raw(msgspec.json.encode(value))
        if value is None or (name == "tool_choice" and "tools" not in raw):
            del raw[name]
    return translated(raw, "chat", deployment, dialect) if by_chat else raw


def fitted_messages(messages: msgspec.Raw, dialect: str, deployment: Deployment) -> msgspec.Raw:
    """The messages as this upstream accepts them, with tool call ids and signatures of other upstreams replaced."""
    if dialect == "messages":
        return signed(messages)
    return messages if deployment.call_ids == "any" else suited(messages, deployment.call_ids)


def adapted(raw: Raw, config: ModelConfig) -> Raw:
    """Remove the fields that the model's API lacks and rename others to its names, in place."""
    for name in config.leave_out:
        raw.pop(name, None)
    for ours, theirs in config.rename.items():
        if ours in raw:
            raw[theirs] = raw.pop(ours)
    return raw


def fitted_to_engine(engine: Profile, body: bytes) -> bytes:
    """The body as this engine accepts it. Raises UpstreamError for a field that it would ignore, since another
    deployment may honour it.
    """
    if not (engine.renamed or engine.ignored):
        return body
    fields = msgspec.json.decode(body)
    try:
        adapted_fields = engine.adapt(fields)
    except RequestRefused as refused:
        raise UpstreamError("unsupported", str(refused), status=400) from None
    return body if adapted_fields == fields else msgspec.json.encode(adapted_fields)


def adds_logprobs(rung: Rung, deployment: Deployment, dialect: str) -> bool:
    return rung.reads_confidence and deployment.config.logprobs and dialect == "chat"
