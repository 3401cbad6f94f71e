"""What a request asks for, peeked from its body: the part of reading a request that every one of them pays.

The messages are decoded once, into typed structs that skip what we don't need. Validation goes as far as we
rely on the fields; the rest is the upstream's to judge.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import CallerError
from gateway.wire.body import Raw, is_set, read
from gateway.wire.chunk import BAD_JSON
from gateway.wire.documents import DOCUMENTS, FILES, UNKNOWN_CONTEXT, holds_unbounded
from gateway.wire.hosted_tools import allowed, allowed_to_template, bounded
from gateway.wire.tools import offered
from gateway.wire.usage import Usage

CHARS_PER_TOKEN = 3.6
"""English prose has about 4, code and other languages fewer."""
TOKENS_PER_IMAGE = 1600
"""Anthropic's cap for one image; OpenAI's high detail stays below it for common sizes."""
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
"""Fields that models read as well."""
BILLED = _PROMPT_TOO | {
    "model", "n", "best_of", "stream", "web_search_options", "search_parameters", "max_tool_calls", "mcp_servers",
    "prompt", "service_tier", "speed",
    *_PROMPT_FIELD.values(),
    *(name for names in _MAX_TOKENS_FIELDS.values() for name in names),
}  # fmt: skip
"""Fields that say who may ask and what it may cost."""
_SEARCHES = {"messages": "web_search_", "responses": "web_search"}
"""How the types of tools begin with which a provider searches the web."""
_IMAGES = frozenset({"image_url", "image", "input_image", "computer_screenshot"})
_SYSTEM = frozenset({"system", "developer"})
_MAX_N = 128
WEB_SEARCHES = 10
"""Held for a request that offers a web search and bounds it nowhere. Where more are run than were held, the answer is
charged with all of them and budgets are overrun by the rest (`Hold.settle`); so they are by what the results add to
the prompt beyond the model's `web_search_tokens`, as no provider bounds that.
"""
CHAT_SEARCHES = 1
"""Of a chat that asks for a search; OpenAI's models run one."""
LIVE_SOURCES = 20
"""That xAI's Live Search reads at most where the request names no bound; each is billed."""


class Described(msgspec.Struct):
    """A request in numbers. Token counts are of the whole prompt, tools included."""

    text: str = ""
    """Of the last user turn."""
    system_chars: int = 0
    turns: int = 0
    tools: int = 0
    images: int = 0
    attached: int = 0
    """Parts that may name a file by its id."""
    wants_json: bool = False
    schema: object = None
    """What its JSON must look like; None: any JSON will do."""
    input_tokens: int = 0
    """Estimate."""
    input_tokens_bound: int = 0
    """No tokenizer gives more: a token is at least one byte."""
    max_output_tokens: int | None = None
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    """Answers that the upstream makes, of several prompts to all of them."""
    temperature: float | None = None
    has_user_content: bool = False
    logprobs: bool = False
    web_searches: int = 0
    """Most that the provider runs for it, as far as the request says."""
    surely_searches: bool = False
    """It runs one, and its usage, in OpenAI's words, doesn't tell."""
    tool_runs: dict[str, int] = {}
    """Most that the provider runs of its other tools for it, by their kinds."""
    unbounded: bool = False
    """It names or holds what may have any number of tokens, as a PDF does: only the model's context bounds it."""
    predicted: int = 0
    """Most tokens of a `prediction`, which are billed as output where the answer is another."""
    units: int = 0
    """Of a surface that passes through: most that may be billed by the piece."""
    tier: str = ""
    """The service tier asked for, as `tier_prices` names it; empty: none."""
    expected: Usage | None = None
    """The same: what its answer has used where it doesn't say."""

    def prompt_bound(self, context_tokens: int, more: int = 0) -> int:
        """Most tokens of the prompt at a model of that context (0: unknown). `more`: what is put before it."""
        known = self.input_tokens_bound + more
        return (context_tokens or max(known, UNKNOWN_CONTEXT)) if self.unbounded else known


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None
    content: Any = None
    """Of a tool result."""
    output: Any = None
    source: Any = None
    """Of Anthropic's documents."""
    file: Any = None
    """Of chat's files."""
    file_data: Any = None
    """Of the Responses API's."""


class _Turn(msgspec.Struct):
    role: str = ""
    content: str | list[_Part | str] | None = None
    type: str = ""
    output: Any = None
    audio: Any = None
    """Of an assistant's turn: what it said aloud, by its id."""


_decode_turns = msgspec.json.Decoder(list[_Turn]).decode
_decode_items = msgspec.json.Decoder(str | list[_Turn]).decode
_decode_prompt = msgspec.json.Decoder(str | list[Any]).decode


def describe(raw: Raw, surface: str, *, max_messages: int = 4096) -> Described:
    """CallerError, with its param, for a missing prompt, a wrong type or more messages than allowed."""
    field = _PROMPT_FIELD[surface]
    value = raw.get(field)
    if value is None:
        raise CallerError(
            f"Missing required parameter: '{field}'.", param=field, code="missing_required_parameter"
        )
    described = Described()
    _describe_prompt(described, value, field, surface, max_messages)
    _describe_options(described, raw, surface)
    if surface == "responses" and "prompt" in raw and is_set(raw, "prompt"):  # a template, which lies at its provider
        described.unbounded, described.web_searches = True, response_searches(raw)
        described.tool_runs = allowed_to_template(_most_runs(raw, surface))
    size = len(memoryview(value))
    if not _PROMPT_TOO.isdisjoint(raw):
        size += sum(len(memoryview(raw[name])) for name in _PROMPT_TOO & raw.keys())
        described.input_tokens += int(_extra_chars(raw) / CHARS_PER_TOKEN)
    images = described.images * TOKENS_PER_IMAGE
    described.input_tokens_bound = size + images
    described.input_tokens += images
    return described


def moulded(raw: Raw, surface: str) -> Described | None:
    """All that a chat asks for beside its messages, to be filled by `fill`; None where models read more than those."""
    if surface != "chat" or not _PROMPT_TOO.isdisjoint(raw):
        return None
    options = Described()
    _describe_options(options, raw, surface)
    return options


def fill(options: Described, messages: msgspec.Raw, *, max_messages: int = 4096) -> Described:
    """What `describe` finds of a chat with these messages and those options, in half its time; the same errors."""
    described = msgspec.structs.replace(options)
    _describe_prompt(described, messages, "messages", "chat", max_messages)
    images = described.images * TOKENS_PER_IMAGE
    described.input_tokens_bound = len(memoryview(messages)) + images
    described.input_tokens += images
    return described


def estimate_tokens(raw: Raw, surface: str, *, max_messages: int = 4096) -> int:
    """Of the prompt; for providers without an endpoint that counts."""
    return max(1, describe(raw, surface, max_messages=max_messages).input_tokens)


def _extra_chars(raw: Raw) -> int:
    return sum(len(bytes(raw[name])) for name in ("tools", "functions") if name in raw)


def _describe_prompt(described: Described, value: msgspec.Raw, field: str, surface: str, most: int) -> None:
    try:
        if field == "messages":
            _describe_turns(described, _decode_turns(value), field, most)
        elif surface == "responses":
            items = _decode_items(value)
            _describe_turns(
                described, [_Turn("user", items)] if isinstance(items, str) else items, field, most
            )
        else:
            _describe_plain(described, _decode_prompt(value), field, most)
    except msgspec.ValidationError as error:
        raise CallerError(f"Invalid type for '{field}': {error}", param=field, code="invalid_type") from None
    except BAD_JSON as error:
        raise CallerError(
            f"Invalid value for '{field}': {error}", param=field, code="invalid_value"
        ) from None
    if described.unbounded:  # a part of a kind that may be; few requests have one
        described.unbounded = holds_unbounded(msgspec.json.decode(value))


def _describe_turns(described: Described, turns: list[_Turn], field: str, most: int) -> None:
    if not turns:
        raise CallerError(f"'{field}' must not be empty.", param=field, code="empty_array")
    if len(turns) > most:
        raise CallerError(
            f"'{field}' has {len(turns)} entries; at most {most} are allowed.",
            param=field,
            code="array_above_max_length",
        )
    chars = 0
    for turn in turns:
        content = turn.content
        text = content if isinstance(content, str) else _text_of(described, content) if content else ""
        if turn.audio is not None or turn.type in DOCUMENTS:
            described.unbounded = True
        chars += len(text) if turn.output is None else len(text) + _chars_in(described, turn.output)
        if turn.role == "user":
            described.turns += 1
            described.has_user_content = described.has_user_content or bool(content)
            described.text = text or described.text
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
            if part.type in DOCUMENTS:
                described.unbounded = True
            if part.text is not None:
                texts.append(part.text)
            if part.content is not None:
                described.input_tokens += int(_chars_in(described, part.content) / CHARS_PER_TOKEN)
            if part.type in FILES:
                described.attached += 1
                described.input_tokens += int(
                    _chars_of_file(described, part.source, part.file_data or _data_of(part.file)) / CHARS_PER_TOKEN
                )
    return texts[0] if len(texts) == 1 else "\n".join(texts)


def _chars_of_file(described: Described, source: object, data: object) -> int:
    """Characters of a file that is text. How many tokens a page of another kind has, only its provider knows."""
    if isinstance(source, dict):
        return _chars_in(described, source.get("data" if source.get("type") == "text" else "content"))
    return len(data) * 3 // 4 if isinstance(data, str) and data.startswith("data:text/") else 0


def _data_of(file: object) -> object:
    return file.get("file_data") if isinstance(file, dict) else None


def _chars_in(described: Described, value: object) -> int:
    """Characters of all strings in a tool's result, however it nests; its images are counted."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(_chars_in(described, item) for item in value)
    if isinstance(value, dict):
        if isinstance(kind := value.get("type"), str) and kind in _IMAGES:
            described.images += 1
            described.attached += kind != "image_url"
            return 0
        if isinstance(kind, str) and kind in DOCUMENTS:
            described.unbounded = True
        if isinstance(kind, str) and kind in FILES:
            described.attached += 1
            return _chars_of_file(described, value.get("source"), value.get("file_data") or _data_of(value.get("file")))
        return sum(_chars_in(described, item) for key, item in value.items() if key != "data")
    return 0


def _describe_plain(described: Described, prompt: str | list[Any], field: str, most: int) -> None:
    """A string, strings, token numbers, or lists of them."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    texts = [text for text in prompts if isinstance(text, str)]
    tokens = sum(len(item) if isinstance(item, list) else isinstance(item, int) for item in prompts)
    if len(prompts) > most and not isinstance(prompts[0], int):
        raise CallerError(
            f"'{field}' has more than {most} entries.", param=field, code="array_above_max_length"
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
    """Of chat completions: holds the schema beside a name."""


class _Tool(msgspec.Struct):
    type: Any = None
    max_uses: Any = None
    """Of Anthropic's own tools."""
    environment: Any = None
    """Of the Responses API's shells."""


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
    if (name := "speed" if surface == "messages" else "service_tier") in raw:
        described.tier = read(raw, name, str, "")
    if "prediction" in raw and surface == "chat":
        described.predicted = len(memoryview(raw["prediction"]))
    if "temperature" in raw:
        described.temperature = _within("temperature", read(raw, "temperature", float, 1.0), 0.0, 2.0)
    if ("n" in raw or "best_of" in raw) and surface in ("chat", "completions"):
        names = ("n", "best_of") if surface == "completions" else ("n",)
        described.n *= max(int(_within(name, read(raw, name, int, 1), 1, _MAX_N)) for name in names)
    if surface == "responses" or "tools" in raw:
        own = surface != "responses"
        tools = read(raw, "tools", list[_Tool], []) if own else msgspec.convert(offered(raw), list[_Tool])
        described.tools = len(tools)
        if surface in _SEARCHES and (found := [tool for tool in tools if _searches(tool, surface)]):
            described.web_searches = _web_searches(raw, surface, found)
        described.tool_runs = allowed(surface, tools, _most_runs(raw, surface))
    if surface == "messages" and "mcp_servers" in raw and is_set(raw, "mcp_servers"):
        described.tool_runs.setdefault("mcp", _most_runs(raw, surface))
    if surface == "chat":
        if "functions" in raw:
            described.tools += len(read(raw, "functions", list[dict[str, msgspec.Raw]], []))
        if "web_search_options" in raw and is_set(raw, "web_search_options"):
            described.web_searches, described.surely_searches = CHAT_SEARCHES, True
        elif "search_parameters" in raw:
            described.web_searches = _live_sources(read(raw, "search_parameters", _Live, _Live("off")))
    for name in _MAX_TOKENS_FIELDS[surface]:
        if name in raw and (limit := read(raw, name, int, None)) is not None:
            least = 0 if surface == "messages" else 1  # Anthropic reads the prompt into its cache for none
            known = described.max_output_tokens  # servers differ in which of two limits they go by
            described.max_output_tokens = max(known or 0, int(_within(name, limit, least, 2**31)))
    wanted = _format(raw, surface)
    if wanted is not None and wanted.type in ("json_object", "json_schema"):
        described.wants_json, described.schema = True, _schema(wanted)
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
    """Held for a Responses request that offers a web search."""
    return bounded(read(raw, "max_tool_calls", int, None), WEB_SEARCHES)


def _most_runs(raw: Raw, surface: str) -> int:
    return bounded(read(raw, "max_tool_calls", int, None) if surface == "responses" else None)


def _live_sources(live: _Live) -> int:
    return 0 if live.mode == "off" else bounded(live.max_search_results, LIVE_SOURCES)


def _format(raw: Raw, surface: str) -> _Format | None:
    if surface == "chat" and "response_format" in raw:
        return read(raw, "response_format", _Format, _Format())
    name = {"responses": "text", "messages": "output_config"}.get(surface, "")
    return read(raw, name, _Text, _Text()).format if name in raw else None


def _schema(wanted: _Format) -> object:
    if wanted.type != "json_schema":
        return None
    return wanted.json_schema.get("schema") if isinstance(wanted.json_schema, dict) else wanted.schema


def _within(name: str, value: float, low: float, high: float) -> float:
    if low <= value <= high:
        return value
    raise CallerError(
        f"Invalid '{name}': {str(value)[:40]} is not between {low:g} and {high:g}.",
        param=name,
        code="value_out_of_range",
    )
