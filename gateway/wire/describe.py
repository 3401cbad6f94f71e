"""Describes a request in numbers that routing and budgets need. Every request pays for this.

The messages are decoded once, into typed structs without the fields that aren't needed. Only fields that the gateway
relies on are validated; the rest is left to the upstream.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import CallerError
from gateway.wire.body import Raw, is_set, read
from gateway.wire.chunk import BAD_JSON
from gateway.wire.documents import DOCUMENT_TYPES, FILE_TYPES, UNKNOWN_CONTEXT, holds_unbounded
from gateway.wire.hosted_tools import allowed, allowed_to_template, bounded
from gateway.wire.tools import offered
from gateway.wire.usage import Usage

CHARS_PER_TOKEN = 3.6
"""English prose has about 4; code and other languages have fewer."""
TOKENS_PER_IMAGE = 1600
"""Anthropic's maximum for one image; OpenAI's high detail stays below it for common sizes."""
TOKENS_PER_MESSAGE = 4
_PROMPT_FIELD = {"chat": "messages", "messages": "messages", "completions": "prompt", "responses": "input",
                 "embeddings": "input"}  # fmt: skip
_MAX_TOKENS_FIELDS = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
    "embeddings": (),
}
_PROMPT_TOO = frozenset(
    {"tools", "system", "instructions", "functions", "response_format", "text", "output_config"}
)
"""Fields besides the prompt that models read."""
BILLED = _PROMPT_TOO | {
    "model", "n", "best_of", "stream", "web_search_options", "search_parameters", "max_tool_calls", "mcp_servers",
    "prompt", "service_tier", "speed",
    *_PROMPT_FIELD.values(),
    *(name for names in _MAX_TOKENS_FIELDS.values() for name in names),
}  # fmt: skip
"""Fields that decide which model is asked and what the answer may cost."""
_SEARCHES = {"messages": "web_search_", "responses": "web_search"}
"""How the types of a provider's own web search tools begin."""
_IMAGES = frozenset({"image_url", "image", "input_image", "computer_screenshot"})
_SPECIAL = _PROMPT_TOO | {
    "speed", "service_tier", "prediction", "n", "best_of", "mcp_servers", "web_search_options", "search_parameters",
    "logprobs",
}  # fmt: skip
"""The fields that `_describe_special` reads; few requests have any."""
_SYSTEM = frozenset({"system", "developer"})
_MAX_N = 128
MOST_OUTPUT_TOKENS = 2**31
"""Highest limit of an answer's tokens that a request may state."""
WEB_SEARCHES = 10
"""Web searches held for a request that offers the tool without a bound. If more are run, the answer is charged for all
of them, and budgets are exceeded by the difference (`Hold.settle`). They are also exceeded by what the results add to
the prompt beyond the model's `web_search_tokens`, as no provider bounds that.
"""
CHAT_SEARCHES = 1
"""Web searches of a chat that requests one: OpenAI's models run exactly one."""
LIVE_SOURCES = 20
"""Most sources that xAI's Live Search reads where the request sets no bound; each is billed."""


class Described(msgspec.Struct):
    """A request in numbers. Token counts include the whole prompt and its tools."""

    text: str = ""
    """Text of the last user turn."""
    system_chars: int = 0
    turns: int = 0
    tools: int = 0
    images: int = 0
    attached: int = 0
    """Number of parts that may name a file by its id."""
    wants_json: bool = False
    schema: object = None
    """The JSON schema of the answer; None: it may be any JSON."""
    input_tokens: int = 0
    """Estimated tokens of the prompt."""
    input_tokens_bound: int = 0
    """Most tokens of the prompt with any tokenizer, since a token is at least one byte."""
    max_output_tokens: int | None = None
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    """Number of answers that the upstream makes, to all prompts together."""
    temperature: float | None = None
    has_user_content: bool = False
    logprobs: bool = False
    web_searches: int = 0
    """Most web searches that the provider runs, as far as the request bounds them."""
    surely_searches: bool = False
    """True: the upstream always runs a search, and doesn't report it in its usage (OpenAI's search models)."""
    tool_runs: dict[str, int] = {}
    """Most runs of the provider's other hosted tools, by kind."""
    unbounded: bool = False
    """True: a part of the prompt, such as a PDF, may have any number of tokens, so only the context bounds them."""
    predicted: int = 0
    """Most tokens of a `prediction`, which are billed as output where the answer differs from it."""
    units: int = 0
    """Most units that a surface which passes through may be billed for (`Usage.units`)."""
    tier: str = ""
    """The requested service tier, as `tier_prices` names it; empty: none."""
    expected: Usage | None = None
    """Usage to assume for an answer of a surface that passes through, where it reports none."""

    @property
    def costs_only_tokens(self) -> bool:
        """True if the request can cost no more than a known number of tokens at their ordinary prices."""
        return not (
            self.web_searches or self.tool_runs or self.units or self.unbounded or self.predicted or self.tier
        )

    def prompt_bound(self, context_tokens: int, more: int = 0) -> int:
        """Most tokens of the prompt at a model whose context has `context_tokens` (0: unknown). `more`: tokens that are
        put before the prompt.
        """
        known = self.input_tokens_bound + more
        return (context_tokens or max(known, UNKNOWN_CONTEXT)) if self.unbounded else known


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None
    content: Any = None
    """Content of a tool result."""
    output: Any = None
    source: Any = None
    """Source of an image or document in Anthropic's API."""
    file: Any = None
    """File of a part in chat."""
    file_data: Any = None
    """File content in the Responses API."""


class _Turn(msgspec.Struct):
    role: str = ""
    content: str | list[_Part | str] | None = None
    type: str = ""
    output: Any = None
    audio: Any = None
    """Spoken answer of an assistant's turn, named by its id."""


_decode_turns = msgspec.json.Decoder(list[_Turn]).decode
_decode_items = msgspec.json.Decoder(str | list[_Turn]).decode
_decode_prompt = msgspec.json.Decoder(str | list[Any]).decode


def describe(raw: Raw, surface: str, *, max_messages: int = 4096) -> Described:
    """Describe a request. Raises CallerError, with its param, for a missing prompt, a wrong type or too many turns."""
    field = _PROMPT_FIELD[surface]
    value = raw.get(field)
    if value is None:
        raise CallerError(
            f"Missing required parameter: '{field}'.", param=field, code="missing_required_parameter"
        )
    described = Described()
    _describe_prompt(described, value, field, surface, max_messages)
    _describe_options(described, raw, surface)
    if surface == "responses" and "prompt" in raw and is_set(raw, "prompt"):  # a template at its provider
        described.unbounded, described.web_searches = True, response_searches(raw)
        described.tool_runs = allowed_to_template(_max_runs(raw, surface))
    size = len(memoryview(value))
    if not _PROMPT_TOO.isdisjoint(raw):
        size += sum(len(memoryview(raw[name])) for name in _PROMPT_TOO & raw.keys())
        described.input_tokens += int(_extra_chars(raw) / CHARS_PER_TOKEN)
    images = described.images * TOKENS_PER_IMAGE
    described.input_tokens_bound = size + images
    described.input_tokens += images
    return described


def template_of(raw: Raw, surface: str) -> Described | None:
    """The description of a chat without its messages, to be completed by `fill`; None where models read fields besides
    the messages.
    """
    if surface != "chat" or not _PROMPT_TOO.isdisjoint(raw):
        return None
    options = Described()
    _describe_options(options, raw, surface)
    return options


def fill(options: Described, messages: msgspec.Raw, *, max_messages: int = 4096) -> Described:
    """The description of a chat with these messages and the options from `template_of`. It equals `describe`'s, takes
    half its time and raises the same errors.
    """
    described = msgspec.structs.replace(options)
    _describe_prompt(described, messages, "messages", "chat", max_messages)
    images = described.images * TOKENS_PER_IMAGE
    described.input_tokens_bound = len(memoryview(messages)) + images
    described.input_tokens += images
    return described


def estimate_tokens(raw: Raw, surface: str, *, max_messages: int = 4096) -> int:
    """Estimated tokens of the prompt, at least 1; for providers that can't count them. Raises CallerError."""
    return max(1, describe(raw, surface, max_messages=max_messages).input_tokens)


def _extra_chars(raw: Raw) -> int:
    return sum(len(bytes(raw[name])) for name in ("tools", "functions") if name in raw)


def _describe_prompt(described: Described, value: msgspec.Raw, field: str, surface: str, max_messages: int) -> None:
    try:
        if field == "messages":
            _describe_turns(described, _decode_turns(value), field, max_messages)
        elif surface == "responses":
            items = _decode_items(value)
            _describe_turns(
                described, [_Turn("user", items)] if isinstance(items, str) else items, field, max_messages
            )
        else:
            _describe_plain(described, _decode_prompt(value), field, max_messages)
    except msgspec.ValidationError as error:
        raise CallerError(f"Invalid type for '{field}': {error}", param=field, code="invalid_type") from None
    except BAD_JSON as error:
        raise CallerError(
            f"Invalid value for '{field}': {error}", param=field, code="invalid_value"
        ) from None
    if described.unbounded:  # a part may be unbounded by its type; few requests have one
        described.unbounded = holds_unbounded(msgspec.json.decode(value))


def _describe_turns(described: Described, turns: list[_Turn], field: str, max_messages: int) -> None:
    if not turns:
        raise CallerError(f"'{field}' must not be empty.", param=field, code="empty_array")
    if len(turns) > max_messages:
        raise CallerError(
            f"'{field}' has {len(turns)} entries; at most {max_messages} are allowed.",
            param=field,
            code="array_above_max_length",
        )
    chars = 0
    for turn in turns:
        content = turn.content
        text = content if isinstance(content, str) else _text_of(described, content) if content else ""
        if turn.audio is not None or turn.type in DOCUMENT_TYPES:
            described.unbounded = True
        chars += len(text) if turn.output is None else len(text) + _chars_in(described, turn.output)
        if turn.role == "user":
            described.turns += 1
            if content:
                described.has_user_content = True
            if text:
                described.text = text
        elif turn.role in _SYSTEM:
            described.system_chars += len(text)
    described.input_tokens += int(chars / CHARS_PER_TOKEN) + len(turns) * TOKENS_PER_MESSAGE


def _text_of(described: Described, parts: list[_Part | str]) -> str:
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif part.type in _IMAGES:
            described.images += 1
            described.attached += part.type != "image_url"
        else:
            if part.type in DOCUMENT_TYPES:
                described.unbounded = True
            if part.text is not None:
                texts.append(part.text)
            if part.content is not None:
                described.input_tokens += int(_chars_in(described, part.content) / CHARS_PER_TOKEN)
            if part.type in FILE_TYPES:
                described.attached += 1
                described.input_tokens += int(
                    _chars_of_file(described, part.source, part.file_data or _data_of(part.file)) / CHARS_PER_TOKEN
                )
    return texts[0] if len(texts) == 1 else "\n".join(texts)


def _chars_of_file(described: Described, source: object, data: object) -> int:
    """Characters of a text file; 0 for any other, whose number of tokens only the provider knows."""
    if isinstance(source, dict):
        return _chars_in(described, source.get("data" if source.get("type") == "text" else "content"))
    return len(data) * 3 // 4 if isinstance(data, str) and data.startswith("data:text/") else 0


def _data_of(file: object) -> object:
    return file.get("file_data") if isinstance(file, dict) else None


def _chars_in(described: Described, value: object) -> int:
    """Characters of all strings in a tool's result, at any depth; its images are counted in `described`."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(_chars_in(described, item) for item in value)
    if isinstance(value, dict):
        if isinstance(kind := value.get("type"), str) and kind in _IMAGES:
            described.images += 1
            described.attached += kind != "image_url"
            return 0
        if isinstance(kind, str) and kind in DOCUMENT_TYPES:
            described.unbounded = True
        if isinstance(kind, str) and kind in FILE_TYPES:
            described.attached += 1
            return _chars_of_file(described, value.get("source"), value.get("file_data") or _data_of(value.get("file")))
        return sum(_chars_in(described, item) for key, item in value.items() if key != "data")
    return 0


def _describe_plain(described: Described, prompt: str | list[Any], field: str, max_messages: int) -> None:
    """Describe a prompt that is a string, strings, token numbers, or lists of token numbers."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    texts = [text for text in prompts if isinstance(text, str)]
    tokens = sum(len(item) if isinstance(item, list) else isinstance(item, int) for item in prompts)
    if len(prompts) > max_messages and not isinstance(prompts[0], int):
        raise CallerError(
            f"'{field}' has more than {max_messages} entries.", param=field, code="array_above_max_length"
        )
    described.turns = 1
    if field == "prompt":
        described.n = max(1, sum(isinstance(item, str | list) for item in prompts))
    described.text = "\n".join(texts)
    described.input_tokens = int(len(described.text) / CHARS_PER_TOKEN) + len(texts) + tokens
    described.has_user_content = bool(described.text or tokens)


class _Format(msgspec.Struct):
    type: str = ""
    schema: Any = None
    json_schema: Any = None
    """In chat it holds the schema and a name."""


class _Tool(msgspec.Struct):
    type: Any = None
    max_uses: Any = None
    """Bound of a tool in Anthropic's API."""
    environment: Any = None
    """Where a shell of the Responses API runs."""


class _Live(msgspec.Struct):
    """xAI's `search_parameters`."""

    mode: Any = "auto"
    max_search_results: Any = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Text(msgspec.Struct):
    format: _Format | None = None


def _describe_options(described: Described, raw: Raw, surface: str) -> None:
    if "stream" in raw:
        described.stream = read(raw, "stream", bool, False)
    if "stream_options" in raw and surface in ("chat", "completions"):
        described.include_usage = bool(
            read(raw, "stream_options", _StreamOptions, _StreamOptions()).include_usage
        )
    if "temperature" in raw:
        described.temperature = _within("temperature", read(raw, "temperature", float, 1.0), 0.0, 2.0)
    for name in _MAX_TOKENS_FIELDS[surface]:
        if name in raw and (limit := read(raw, name, int, None)) is not None:
            least = 0 if surface == "messages" else 1  # with 0 Anthropic only caches the prompt
            known = described.max_output_tokens  # where both limits are set, servers differ in which one they use
            described.max_output_tokens = max(known or 0, int(_within(name, limit, least, MOST_OUTPUT_TOKENS)))
    if surface == "responses" or not _SPECIAL.isdisjoint(raw):
        _describe_special(described, raw, surface)


def _describe_special(described: Described, raw: Raw, surface: str) -> None:
    if (name := "speed" if surface == "messages" else "service_tier") in raw:
        described.tier = read(raw, name, str, "")
    if "prediction" in raw and surface == "chat":
        described.predicted = len(memoryview(raw["prediction"]))
    if ("n" in raw or "best_of" in raw) and surface in ("chat", "completions"):
        names = ("n", "best_of") if surface == "completions" else ("n",)
        described.n *= max(int(_within(name, read(raw, name, int, 1), 1, _MAX_N)) for name in names)
    if surface == "responses" or "tools" in raw:
        is_response = surface == "responses"
        tools = msgspec.convert(offered(raw), list[_Tool]) if is_response else read(raw, "tools", list[_Tool], [])
        described.tools = len(tools)
        if surface in _SEARCHES and (search_tools := [tool for tool in tools if _searches(tool, surface)]):
            described.web_searches = _web_searches(raw, surface, search_tools)
        described.tool_runs = allowed(surface, tools, _max_runs(raw, surface))
    if surface == "messages" and "mcp_servers" in raw and is_set(raw, "mcp_servers"):
        described.tool_runs.setdefault("mcp", _max_runs(raw, surface))
    if surface == "chat":
        if "functions" in raw:
            described.tools += len(read(raw, "functions", list[dict[str, msgspec.Raw]], []))
        if "web_search_options" in raw and is_set(raw, "web_search_options"):
            described.web_searches, described.surely_searches = CHAT_SEARCHES, True
        elif "search_parameters" in raw:
            described.web_searches = _live_sources(read(raw, "search_parameters", _Live, _Live("off")))
    answer_format = _format(raw, surface)
    if answer_format is not None and answer_format.type in ("json_object", "json_schema"):
        described.wants_json, described.schema = True, _schema(answer_format)
    described.logprobs = "logprobs" in raw and surface == "chat" and read(raw, "logprobs", bool, False)
    if surface == "messages" and "system" in raw:
        system = read(raw, "system", str | list[_Part], "")  # type: ignore[arg-type]
        described.system_chars += len(system if isinstance(system, str) else _text_of(described, system))
    elif surface == "responses" and "instructions" in raw:
        described.system_chars += len(read(raw, "instructions", str, ""))
    else:
        return
    described.input_tokens += int(described.system_chars / CHARS_PER_TOKEN)


def _searches(tool: _Tool, surface: str) -> bool:
    return isinstance(tool.type, str) and tool.type.startswith(_SEARCHES[surface])


def _web_searches(raw: Raw, surface: str, tools: list[_Tool]) -> int:
    if surface == "messages":
        return sum(bounded(tool.max_uses, WEB_SEARCHES) for tool in tools)
    return response_searches(raw)


def response_searches(raw: Raw) -> int:
    """Most web searches to hold for a Responses request that offers them. Raises CallerError."""
    return bounded(read(raw, "max_tool_calls", int, None), WEB_SEARCHES)


def _max_runs(raw: Raw, surface: str) -> int:
    return bounded(read(raw, "max_tool_calls", int, None) if surface == "responses" else None)


def _live_sources(live: _Live) -> int:
    return 0 if live.mode == "off" else bounded(live.max_search_results, LIVE_SOURCES)


def _format(raw: Raw, surface: str) -> _Format | None:
    if surface == "chat" and "response_format" in raw:
        return read(raw, "response_format", _Format, _Format())
    name = {"responses": "text", "messages": "output_config"}.get(surface, "")
    return read(raw, name, _Text, _Text()).format if name in raw else None


def _schema(answer_format: _Format) -> object:
    if answer_format.type != "json_schema":
        return None
    named = answer_format.json_schema
    return named.get("schema") if isinstance(named, dict) else answer_format.schema


def _within(name: str, value: float, low: float, high: float) -> float:
    if low <= value <= high:
        return value
    raise CallerError(
        f"Invalid '{name}': {str(value)[:40]} is not between {low:g} and {high:g}.",
        param=name,
        code="value_out_of_range",
    )
