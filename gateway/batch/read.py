"""Reads and checks each line of a job's input: an OpenAI batch line, a chat body, or a plain prompt.

A line is read by the same code as a live request, so that whatever would be refused there is refused here, with its
line number, before anything is spent. Lines that name a model keep it; others go to the job's route.
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
"""A route of this name need not exist where every line names its model."""
_OWN = frozenset({*ID_NAMES, "floor", "min_quality", "reference", "method", "url"})
"""Fields of a line with `messages` that are for the job, and no part of the request."""
_PASSED = ("max_tokens", "max_completion_tokens", "temperature", "model")
"""Columns of a plain prompt that go into its body."""
_ARRIVAL = Arrival({}, "", "", 0.0)
_MAX_ID = 512
_STATEFUL = ("previous_response_id", "conversation")
"""Fields of a Responses request that refer to earlier requests, which a job's line can't do."""

Fields = dict[str, msgspec.Raw]
_ABSENT = msgspec.Raw(b"")


class _Usual(msgspec.Struct):
    """A line in the form of OpenAI's documentation."""

    custom_id: str
    body: msgspec.Raw
    url: str
    method: Literal["POST"] = "POST"
    floor: msgspec.Raw = _ABSENT
    min_quality: msgspec.Raw = _ABSENT
    reference: msgspec.Raw = _ABSENT


class _Chat(msgspec.Struct):
    """The field of a chat body that differs from line to line."""

    messages: msgspec.Raw


_NO_FIELDS: Fields = {}
MOST_MOULDS = 256
"""Most moulds that are kept, for jobs in which every line has options of its own."""
_decode_usual = msgspec.json.Decoder(_Usual).decode
_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_fields = msgspec.json.Decoder(Fields).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for all lines of a job."""

    route: str = DEFAULT_ROUTE
    """The route that answers lines which name no model."""
    floor: float = 0.0
    """Least predicted quality where neither the line nor its route has one."""
    ignore_models: bool = False
    """Send every line to `route`, whatever model it names."""
    url: str = ""
    """The endpoint that every line must name (OpenAI's batches); empty: any."""
    max_messages: int = 4096
    max_body_bytes: int = 32 * 1024 * 1024
    file_tokens: Mapping[str, int] = field(default_factory=dict)
    """Estimated tokens of the uploaded text files that lines name, by id. The tokens of other kinds of files are not
    known before the call.
    """


@dataclass(frozen=True, slots=True)
class Request:
    """A line that can be answered."""

    line: int
    custom_id: str
    url: str
    body: bytes
    call: Call
    route: Route
    floor: float
    reference: str = ""
    """The right answer, where the input has it; a pilot is scored by it."""
    mould: Mould | None = None
    """The line without its messages, where other lines may be equal but for their messages."""


@dataclass(slots=True)
class Mould:
    """The common part of a job's chat lines that differ only in their messages; it is checked once for all of them."""

    call: Call
    """The call of the first such line."""
    options: Described
    route: Route
    floor: float
    url: str
    shared: Any = None
    """The common part of its lines' cache keys, set by gateway/batch/dedupe.py."""

    def request(self, number: int, custom_id: str, body: bytes, messages: msgspec.Raw, most: int) -> Request:
        """The request of a line with these messages. Raises CallerError where the messages are not valid."""
        raw = {**self.call.raw, "messages": messages}
        described = fill(self.options, messages, max_messages=most)
        call = msgspec.structs.replace(self.call, described=described, raw=raw, body=body)
        return Request(number, custom_id, self.url, body, call, self.route, self.floor, "", self)


class _Refused(Exception):
    """The line can't be answered: a message and a code for its Problem."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class LineReader:
    """Reads the lines of one job, each by itself."""

    def __init__(self, book: RouteBook, options: ReadOptions) -> None:
        self.book = book
        self.options = options
        self._moulds: dict[tuple[str, bytes, bytes], Mould] = {}

    def judge(self, number: int, record: bytes) -> Request | Problem:
        """The request of one line, or its fault."""
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
        """A line in the usual form, decoded in half the time; None where the line has another form or a fault."""
        if len(record) > self.options.max_body_bytes:
            return None
        try:
            line = _decode_usual(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        plain = line.floor is line.min_quality is line.reference is _ABSENT
        return line if plain and line.url in SURFACES and 0 < len(line.custom_id) <= _MAX_ID else None

    def _moulded(self, number: int, line: _Usual) -> Request:
        """The request of a usual line. Its body without the messages is checked once for all lines with the same."""
        body = bytes(line.body)
        try:
            messages = _decode_chat(body).messages
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._checked(number, line.custom_id, line.url, body, self._body(body), _NO_FIELDS)
        head, _, tail = body.partition(messages)
        mould = self._moulds.get((line.url, head, tail))
        if mould is not None:
            refuse_twins(messages)
            request = mould.request(number, line.custom_id, body, messages, self.options.max_messages)
            self._count_files(request.call)
            return request
        raw = self._body(body)
        named = "model" in raw and not self.options.ignore_models
        request = self._checked(number, line.custom_id, line.url, body, raw, _NO_FIELDS)
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
            raise _Refused("each line must be a JSON object or string", "invalid_line") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _Refused(f"not JSON: {error}", "invalid_json") from None

    def _request(self, number: int, custom_id: str, fields: Fields) -> Request:
        if "body" in fields:
            url, body, raw = self._batch_line(fields)
        else:
            url, body, raw = CHAT_URL, b"", self._chat_body(fields)
        return self._checked(number, custom_id, url, body, raw, fields)

    def _checked(self, number: int, custom_id: str, url: str, body: bytes, raw: Fields, fields: Fields) -> Request:
        """The request of a body. `fields`: the line's other fields; an empty `body` is made from `raw`."""
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
        decode(body)  # the check that a live request's body gets
        self._count_files(call)
        if surface == "responses" and (stateful := [name for name in _STATEFUL if is_set(raw, name)]):
            raise _Refused(f"a batch request can't use `{stateful[0]}`: send the whole conversation as `input`",
                           "unsupported_parameter")  # fmt: skip
        if call.stream:
            raise _Refused("a job's answers can't be streamed: leave `stream` out", "invalid_stream")
        route = self.book.find(call.options.route or call.model)
        if call.options.models:
            route = self.book.narrow(route, call.options.models)
        floor = self._floor(fields, call, route)
        return Request(number, custom_id, url, body, call, route, floor, _text(fields, "reference"))

    def _count_files(self, call: Call) -> None:
        """Add the tokens of the files that the call names. Raises CallerError for an invalid reference to a file."""
        if call.described.attached and (prompt := find(call.raw, call.surface)) is not None:
            call.described.input_tokens += sum(self.options.file_tokens.get(place.id, 0) for place in prompt.places)

    def _batch_line(self, fields: Fields) -> tuple[str, bytes, Fields]:
        method = _text(fields, "method") or "POST"
        if method.upper() != "POST":
            raise _Refused(f"method is {method!r}; it must be POST", "invalid_method")
        url = _text(fields, "url") or CHAT_URL
        if url not in SURFACES:
            raise _Refused(f"url is {url!r}; it must be one of {', '.join(SURFACES)}", "invalid_url")
        body = bytes(fields["body"])
        return url, body, self._body(body)

    def _chat_body(self, fields: Fields) -> Fields:
        """The chat body of a line with `messages`, or of a plain prompt."""
        if "messages" in fields:
            return {name: value for name, value in fields.items() if name not in _OWN}
        name = next((name for name in PROMPT_NAMES if name in fields), "")
        if not name:
            names = ", ".join((*PROMPT_NAMES, "messages", "body"))
            raise _Refused(f"asks nothing: it has none of the fields {names}", "missing_prompt")
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
    """The text of a field; empty where the field is absent or null."""
    value: Any = msgspec.json.decode(fields[name]) if name in fields else None
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name == "reference":
        return str(value)
    if not isinstance(value, str):
        raise _Refused(f"{name} must be a text", f"invalid_{name}")
    return value


def _number(fields: Fields, name: str) -> msgspec.Raw:
    """The JSON number of a field, which a table may hold as text."""
    value = bytes(fields[name]).strip()
    return msgspec.Raw(value[1:-1] if value[:1] == b'"' else value)
