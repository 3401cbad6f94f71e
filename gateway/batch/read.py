"""What each line asks for: an OpenAI batch line, a chat body, or a plain prompt, judged before anything is spent.

A line is read by the same code as a live request, so what would be refused there is refused here, with its number.
Lines that name a model keep it; plain prompts go to the job's route.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from gateway.batch.types import Problem
from gateway.call import SURFACES, Arrival, Call, read_call
from gateway.errors import HeadgateError
from gateway.routes import Route, RouteBook
from gateway.wire.body import decode, is_set, refuse_twins
from gateway.wire.describe import fill, template_of
from gateway.wire.file_parts import find
from gateway.wire.request import Described

PROMPT_NAMES = ("prompt", "text", "question", "query", "input")
ID_NAMES = ("custom_id", "id", "query_id")
CHAT_URL = "/v1/chat/completions"
DEFAULT_ROUTE = "auto"
"""There need be none of that name where every line names its model."""
_OWN = frozenset({*ID_NAMES, "floor", "min_quality", "reference", "method", "url"})
"""Of a chat body written as a line: these are the job's, not the request's."""
_PASSED = ("max_tokens", "max_completion_tokens", "temperature", "model")
"""Columns of a plain prompt that go into its body."""
_ARRIVAL = Arrival({}, "", "", 0.0)
_MAX_ID = 512
_ELSEWHERE = ("previous_response_id", "conversation")

Fields = dict[str, msgspec.Raw]
_UNSAID = msgspec.Raw(b"")


class _Usual(msgspec.Struct):
    """A line as OpenAI's documentation has it."""

    custom_id: str
    body: msgspec.Raw
    url: str
    method: Literal["POST"] = "POST"
    floor: msgspec.Raw = _UNSAID
    min_quality: msgspec.Raw = _UNSAID
    reference: msgspec.Raw = _UNSAID


class _Chat(msgspec.Struct):
    """Of a chat's body, what differs from line to line."""

    messages: msgspec.Raw


_NO_FIELDS: Fields = {}
MOST_MOULDS = 256
"""Kinds of lines that are remembered: of a job whose every line has options of its own, no more."""
_decode_usual = msgspec.json.Decoder(_Usual).decode
_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_fields = msgspec.json.Decoder(Fields).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the job says of all its lines."""

    route: str = DEFAULT_ROUTE
    """Answers lines that name no model."""
    floor: float = 0.0
    """Least predicted quality where neither line nor route has its own."""
    ignore_models: bool = False
    """Send every line to `route`, whatever model it names."""
    url: str = ""
    """Every line must be for this endpoint (OpenAI's batches); empty: any."""
    max_messages: int = 4096
    max_body_bytes: int = 32 * 1024 * 1024
    file_tokens: Mapping[str, int] = field(default_factory=dict)
    """Of uploaded texts that lines name, by their ids. Files are read when a line is asked; what any other kind than
    text comes to, its provider knows.
    """


@dataclass(frozen=True, slots=True)
class Request:
    """A good line."""

    line: int
    custom_id: str
    url: str
    body: bytes
    call: Call
    route: Route
    floor: float
    reference: str = ""
    """The right answer, where the input knows it: what a pilot is scored by."""
    mould: Mould | None = None
    """All of the line but its messages, where other lines are likely to have the same."""


@dataclass(slots=True)
class Mould:
    """What chats of one job have in common that differ in their messages alone, judged once for all of them."""

    call: Call
    """Of the first of them."""
    options: Described
    route: Route
    floor: float
    url: str
    shared: Any = None
    """What its lines' keys have in common, kept here by who makes them (gateway/batch/dedupe.py)."""

    def request(self, number: int, custom_id: str, body: bytes, messages: msgspec.Raw, most: int) -> Request:
        """The line with these messages. CallerError where they can't be asked."""
        raw = {**self.call.raw, "messages": messages}
        described = fill(self.options, messages, max_messages=most)
        call = msgspec.structs.replace(self.call, described=described, raw=raw, body=body)
        return Request(number, custom_id, self.url, body, call, self.route, self.floor, "", self)


class _Refused(Exception):
    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class LineReader:
    """Judges the lines of one job, each by itself."""

    def __init__(self, book: RouteBook, options: ReadOptions) -> None:
        self.book = book
        self.options = options
        self._moulds: dict[tuple[str, bytes, bytes], Mould] = {}

    def judge(self, number: int, record: bytes) -> Request | Problem:
        """One line by itself."""
        custom_id = ""
        try:
            usual = self._usual(record)
            if usual is not None:
                custom_id = usual.custom_id
                return self._moulded(number, usual)
            fields = self._fields(record)
            custom_id = _id(fields, required="body" in fields) or f"line-{number}"
            return self._request(number, custom_id, fields)
        except _Refused as refused:
            return Problem(number, custom_id, str(refused), refused.code)
        except HeadgateError as error:
            return Problem(number, custom_id, error.message, error.code or "invalid_request")

    def _usual(self, record: bytes) -> _Usual | None:
        """A line as nearly all are, in half the time; None: it is to be looked at bit by bit."""
        if len(record) > self.options.max_body_bytes:
            return None
        try:
            line = _decode_usual(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        plain = line.floor is line.min_quality is line.reference is _UNSAID
        return line if plain and line.url in SURFACES and 0 < len(line.custom_id) <= _MAX_ID else None

    def _moulded(self, number: int, line: _Usual) -> Request:
        """A usual line. All of its body but the messages is judged once for all lines that have the same."""
        body = bytes(line.body)
        try:
            messages = _decode_chat(body).messages
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._asked(number, line.custom_id, line.url, body, self._body(body), _NO_FIELDS)
        head, _, tail = body.partition(messages)
        mould = self._moulds.get((line.url, head, tail))
        if mould is not None:
            refuse_twins(messages)
            request = mould.request(number, line.custom_id, body, messages, self.options.max_messages)
            self._count_files(request.call)
            return request
        raw = self._body(body)
        named = "model" in raw and not self.options.ignore_models
        request = self._asked(number, line.custom_id, line.url, body, raw, _NO_FIELDS)
        options = template_of(request.call.raw, request.call.surface) if named else None
        if options is None or len(self._moulds) >= MOST_MOULDS or not head.rstrip().endswith(b'"messages":'):
            return request
        mould = Mould(request.call, options, request.route, request.floor, line.url)
        self._moulds[line.url, head, tail] = mould
        return replace(request, mould=mould)

    def _body(self, body: bytes) -> Fields:
        try:
            return _decode_fields(body)
        except msgspec.ValidationError:
            raise _Refused("body is not a JSON object", "invalid_body") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _Refused(f"not JSON: {error}", "invalid_json") from None

    def _fields(self, record: bytes) -> Fields:
        """The line's fields; a bare string is a prompt."""
        if len(record) > self.options.max_body_bytes:
            raise _Refused(f"longer than {self.options.max_body_bytes:,} bytes", "request_too_large")
        try:
            if record[:1] == b'"':
                msgspec.json.decode(record, type=str)
                return {"prompt": msgspec.Raw(record)}
            return _decode_fields(record)
        except msgspec.ValidationError:
            raise _Refused("not a JSON object or string, of which each line is one", "invalid_line") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _Refused(f"not JSON: {error}", "invalid_json") from None

    def _request(self, number: int, custom_id: str, fields: Fields) -> Request:
        if "body" in fields:
            url, body, raw = self._batch_line(fields)
        else:
            url, body, raw = CHAT_URL, b"", self._chat_body(fields)
        return self._asked(number, custom_id, url, body, raw, fields)

    def _asked(self, number: int, custom_id: str, url: str, body: bytes, raw: Fields, fields: Fields) -> Request:
        """`fields`: of the line, beside its body; `body` empty: to be made of `raw`."""
        if self.options.url and url != self.options.url:
            raise _Refused(f"url is {url!r}, the job's endpoint is {self.options.url!r}", "mismatched_url")
        if self.options.ignore_models or "model" not in raw:
            raw["model"] = msgspec.Raw(_encode(self.options.route))
            body = b""
        body = body or _encode(raw)
        surface = SURFACES[url]
        call = read_call(
            surface, body, _ARRIVAL, max_messages=self.options.max_messages, timeout_s=1.0, raw=raw
        )
        decode(body)  # as it will be when it is asked
        self._count_files(call)
        if surface == "responses" and (told := [name for name in _ELSEWHERE if is_set(raw, name)]):
            raise _Refused(f"a job's prompt stands alone: leave `{told[0]}` out, send what it needs as `input`",
                           "unsupported_parameter")  # fmt: skip
        if call.stream:
            raise _Refused("a job's answers can't be streamed: leave `stream` out", "invalid_stream")
        route = self.book.find(call.options.route or call.model)
        if call.options.models:
            route = self.book.narrow(route, call.options.models)
        floor = self._floor(fields, call, route)
        return Request(number, custom_id, url, body, call, route, floor, _text(fields, "reference"))

    def _count_files(self, call: Call) -> None:
        """Raises CallerError for a part that can name no file."""
        if call.described.attached and (prompt := find(call.raw, call.surface)) is not None:
            call.described.input_tokens += sum(self.options.file_tokens.get(place.id, 0) for place in prompt.places)

    def _batch_line(self, fields: Fields) -> tuple[str, bytes, Fields]:
        method = _text(fields, "method") or "POST"
        if method.upper() != "POST":
            raise _Refused(f"method is {method!r}; only POST is possible", "invalid_method")
        url = _text(fields, "url") or CHAT_URL
        if url not in SURFACES:
            raise _Refused(f"url is {url!r}; possible are {', '.join(SURFACES)}", "invalid_url")
        body = bytes(fields["body"])
        return url, body, self._body(body)

    def _chat_body(self, fields: Fields) -> Fields:
        """Of a chat body written as a line, or of a plain prompt."""
        if "messages" in fields:
            return {name: value for name, value in fields.items() if name not in _OWN}
        name = next((name for name in PROMPT_NAMES if name in fields), "")
        if not name:
            wanted = ", ".join((*PROMPT_NAMES, "messages", "body"))
            raise _Refused(f"asks nothing: none of the fields {wanted}", "missing_prompt")
        text = _text(fields, name)
        if not text.strip():
            raise _Refused(f"{name} is empty", "empty_prompt")
        system = _text(fields, "system")
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": text})
        passed = {key: _number(fields, key) for key in _PASSED if key in fields and key != "model"}
        if "model" in fields:
            passed["model"] = fields["model"]
        return {"messages": msgspec.Raw(_encode(turns)), **passed}

    def _floor(self, fields: Fields, call: Call, route: Route) -> float:
        for name in ("floor", "min_quality"):
            if name in fields:
                try:
                    floor = float(msgspec.json.decode(_number(fields, name)))
                except (TypeError, ValueError, msgspec.DecodeError):
                    floor = -1.0
                if not 0.0 <= floor <= 1.0:
                    raise _Refused(f"{name} must be a number between 0 and 1", "invalid_floor")
                return floor
        for stated in (call.options.knobs.min_quality, route.knobs.min_quality):
            if stated is not None:
                return stated
        return self.options.floor


def _id(fields: Fields, *, required: bool) -> str:
    for name in ID_NAMES[:1] if required else ID_NAMES:
        if name not in fields:
            continue
        value: Any = msgspec.json.decode(fields[name])
        if isinstance(value, (str, int)) and not isinstance(value, bool) and 0 < len(str(value)) <= _MAX_ID:
            return str(value)
        raise _Refused(f"{name} must be a text of 1 to {_MAX_ID} characters", "invalid_custom_id")
    if required:
        raise _Refused("no custom_id", "missing_custom_id")
    return ""


def _text(fields: Fields, name: str) -> str:
    """A field that is a text; empty where it isn't there or null."""
    value: Any = msgspec.json.decode(fields[name]) if name in fields else None
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name == "reference":
        return str(value)
    if not isinstance(value, str):
        raise _Refused(f"{name} must be a text", f"invalid_{name}")
    return value


def _number(fields: Fields, name: str) -> msgspec.Raw:
    """A number, which a table may hold as text."""
    value = bytes(fields[name]).strip()
    return msgspec.Raw(value[1:-1] if value[:1] == b'"' else value)
