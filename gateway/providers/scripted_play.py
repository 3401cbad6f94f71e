"""A scripted upstream's answer, faults included, as the sequence of frames that the server plays.

Pure. A frame is bytes to write, seconds to wait, or an act on the connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from http import HTTPStatus
from typing import Any

import msgspec

from gateway.providers import scripted_openai as openai
from gateway.providers.scripted_answer import compose, count_input
from gateway.providers.scripted_messages import message_events, messages
from gateway.providers.scripted_responses import as_chat, response, response_events
from gateway.providers.scripted_script import Fault, Step

Json = dict[str, Any]
encode = msgspec.json.encode


class Act(Enum):
    CLOSE = "close"
    RESET = "reset"
    STALL = "stall"


Frame = bytes | float | Act

NOT_JSON_EVENT = b'data: {"id": "broken", "choi\n\n'
HTML = b"<html><body>502 Bad Gateway</body></html>"
_ERROR_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
                404: "not_found_error", 429: "rate_limit_error", 529: "overloaded_error"}  # fmt: skip
_BEFORE_ANY_BYTE: dict[Fault, Act] = {"close": Act.CLOSE, "rst": Act.RESET, "silent": Act.STALL}
_OF_TRANSPORT = ("cut", "cut_rst", "stall", "bad_chunk")
"""Faults that end the stream at their place; all others have already changed its events."""
_PATHS = (("/chat/completions", "chat"), ("/completions", "completions"), ("/embeddings", "embeddings"),
          ("/responses", "responses"), ("/messages/count_tokens", "count_tokens"),
          ("/messages", "messages"))  # fmt: skip


def dialect_of(path: str) -> str | None:
    """The dialect of the API at `path`; None where there is none."""
    bare = path.partition("?")[0]
    return next((dialect for end, dialect in _PATHS if bare.endswith(end)), None)


def play(request: Json, dialect: str, step: Step, answer_id: str) -> Iterator[Frame]:
    """The frames of one answer."""
    if step.delay_s:
        yield step.delay_s
    if step.fault in _BEFORE_ANY_BYTE:
        yield _BEFORE_ANY_BYTE[step.fault]
    elif step.fault == "garbage":
        yield b"\x16\x03\x01 SSH-2.0 this is not HTTP\r\n\r\n"
        yield Act.STALL
    elif step.fault == "big_head":
        yield b"HTTP/1.1 200 OK\r\n"
        for number in range(4096):
            yield b"x-filler-%d: %b\r\n" % (number, b"f" * 100)
        yield Act.STALL
    elif step.fault == "loris":
        quick = msgspec.structs.replace(step, fault="", delay_s=0.0, gap_s=0.0)
        whole = b"".join(f for f in _answer(request, dialect, quick, answer_id) if isinstance(f, bytes))
        for at in range(len(whole)):
            yield whole[at : at + 1]
            yield step.gap_s
    else:
        try:
            yield from _answer(request, dialect, step, answer_id)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as fault:
            yield json_answer(400, error_body(dialect, 400, Step(error=f"the request can't be read: {fault!r}")))
    if step.fault == "close_after":
        yield Act.CLOSE


def json_answer(status: int, body: Json) -> bytes:
    raw = encode(body)
    return head(status, "application/json", Step()) + b"content-length: %d\r\n\r\n%b" % (len(raw), raw)


def file_answer(content: bytes) -> bytes:
    return head(200, "application/octet-stream", Step()) + b"content-length: %d\r\n\r\n%b" % (len(content), content)


def whole_answer(request: Json, dialect: str, step: Step, answer_id: str) -> tuple[int, Json]:
    """Status and body of an answer to a line of a batch, for which faults of transport have no meaning."""
    if step.status != 200:
        return step.status, error_body(dialect, step.status, step)
    if dialect == "embeddings":
        return 200, openai.embeddings(request)
    return 200, msgspec.json.decode(_body(request, dialect, step, answer_id))


def head(status: int, content_type: str, step: Step) -> bytes:
    """Status line and headers, without the framing header and the empty line."""
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Overloaded"
    lines = [f"HTTP/1.1 {status} {phrase}", f"content-type: {content_type}"]
    if step.retry_after_s is not None:
        lines.append(f"retry-after: {step.retry_after_s:g}")
    lines += [f"{name}: {value}" for name, value in step.headers.items()]
    return "".join(line + "\r\n" for line in lines).encode("latin-1")


def error_body(dialect: str, status: int, step: Step) -> Json:
    kind = step.error_type or _ERROR_TYPES.get(
        status, "server_error" if dialect != "messages" else "api_error"
    )
    message = step.error or f"scripted error {status}"
    if dialect in ("messages", "count_tokens"):
        return {"type": "error", "error": {"type": kind, "message": message}}
    return {"error": {"message": message, "type": kind, "param": None, "code": step.error_code or None}}


# ---- answers


def _answer(request: Json, dialect: str, step: Step, answer_id: str) -> Iterator[Frame]:
    if step.status != 200:
        yield from _whole(step, step.status, encode(error_body(dialect, step.status, step)))
    elif step.fault == "empty":
        yield from _whole(step, 200, b"")
    elif step.fault == "not_json":
        yield head(200, "text/html", step) + b"content-length: %d\r\n\r\n%b" % (len(HTML), HTML)
    elif dialect == "embeddings":
        yield from _whole(step, 200, encode(openai.embeddings(request)))
    elif dialect == "count_tokens":
        yield from _whole(step, 200, encode({"input_tokens": count_input(request)}))
    elif request.get("stream"):
        yield from _stream(step, _events(request, dialect, step, answer_id))
    else:
        yield from _whole(step, 200, _body(request, dialect, step, answer_id))


def _body(request: Json, dialect: str, step: Step, answer_id: str) -> bytes:
    if step.fault == "late_error":
        return encode(error_body(dialect, step.late_status, step))
    if dialect == "responses":
        answer = compose(as_chat(request), step, answer_id)
        body = encode(response(request, answer))
        return body[: len(body) // 2] if step.fault == "malformed" else body
    answer = compose(request, step, answer_id)
    render = {"chat": openai.chat, "completions": openai.completions, "messages": messages}[dialect]
    body = encode(render(answer))
    return body[: len(body) // 2] if step.fault == "malformed" else body


def _whole(step: Step, status: int, body: bytes) -> Iterator[Frame]:
    start = head(status, "application/json", step)
    half = len(body) // 2
    if step.framing == "chunked" or step.fault == "bad_chunk":
        start += b"transfer-encoding: chunked\r\n\r\n"
        end = b"zz\r\nno size\r\n" if step.fault == "bad_chunk" else _chunk(body[half:]) + b"0\r\n\r\n"
        yield start + _chunk(body[:half])
        yield end
        return
    promised = len(body) + (100 if step.fault == "wrong_length" else 0)
    start += b"\r\n" if step.framing == "eof" else b"content-length: %d\r\n\r\n" % promised
    if step.fault in ("cut", "cut_rst", "stall"):
        yield start + body[:half]
        yield _ending(step.fault)
    elif step.fault == "extra_bytes":
        yield start + body + b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong"
    else:
        yield start + body
        if step.framing == "eof" or step.fault == "wrong_length":
            yield Act.CLOSE


def _ending(fault: Fault) -> Act:
    return {"cut": Act.CLOSE, "cut_end": Act.CLOSE, "cut_rst": Act.RESET, "stall": Act.STALL}[fault]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


# ---- streams


class _Event(msgspec.Struct):
    wire: bytes
    is_content: bool = False
    is_finish: bool = False


def _events(request: Json, dialect: str, step: Step, answer_id: str) -> list[_Event]:
    """The events of a stream, with the faults that change its content already applied."""
    as_chat_request = as_chat(request) if dialect == "responses" else request
    answer = compose(as_chat_request, step, answer_id)
    include_usage = bool((request.get("stream_options") or {}).get("include_usage"))
    if dialect == "responses":
        events = [_typed_event(event) for event in response_events(request, answer)]
    elif dialect == "messages":
        events = [_typed_event(event) for event in message_events(answer)]
    else:
        make = openai.chat_events if dialect == "chat" else openai.completion_events
        events = [_openai_event(event) for event in make(answer, include_usage)]
        events.append(_Event(b"data: [DONE]\n\n"))
    if step.fault == "no_done":
        return events[:-1]
    if step.fault == "no_finish":
        return events[: _place_of_finish(events)]
    place = _place_of_fault(events, step.after)
    if step.fault == "malformed":
        events.insert(place, _Event(NOT_JSON_EVENT))
    if step.fault == "late_error":
        error = error_body(dialect, step.late_status, step)
        if dialect == "responses":
            inner = error["error"]
            error = {**inner, "type": "error", "code": inner["code"] or inner["type"], "sequence_number": place}
        named = b"event: error\n" if dialect in ("messages", "responses") else b""
        return [*events[:place], _Event(named + b"data: %b\n\n" % encode(error))]
    return events


def _openai_event(event: Json) -> _Event:
    choice = (event["choices"] or [{}])[0]
    content = (
        choice.get("text")
        or (choice.get("delta") or {}).get("content")
        or (choice.get("delta") or {}).get("tool_calls")
    )
    return _Event(b"data: %b\n\n" % encode(event), bool(content), choice.get("finish_reason") is not None)


def _typed_event(event: Json) -> _Event:
    kind = event["type"]
    wire = b"event: %b\ndata: %b\n\n" % (kind.encode(), encode(event))
    is_finish = kind in ("message_delta", "response.completed", "response.incomplete")
    return _Event(wire, kind == "content_block_delta" or kind.endswith(".delta"), is_finish)


def _place_of_fault(events: list[_Event], after: int) -> int:
    """Index of the event before which a fault goes: behind `after` content events; a negative `after` is the start."""
    if after < 0:
        return 0
    seen = 0
    for at, event in enumerate(events):
        if event.is_content:
            if seen == after:
                return at
            seen += 1
    return len(events)


def _place_of_finish(events: list[_Event]) -> int:
    return next(i for i, event in enumerate(events) if event.is_finish)


def _stream(step: Step, events: list[_Event]) -> Iterator[Frame]:
    place = _place_of_fault(events, step.after)
    if step.fault == "cut_end":
        place = min(_place_of_finish(events) + 1, len(events) - 1)
    framing = step.framing or ("length" if step.fault == "wrong_length" else "chunked")
    start = head(200, "text/event-stream; charset=utf-8", step)
    pieces = [event.wire for event in events]
    if framing == "length":
        promised = sum(map(len, pieces)) + (100 if step.fault == "wrong_length" else 0)
        start += b"content-length: %d\r\n\r\n" % promised
    else:
        start += b"\r\n" if framing == "eof" else b"transfer-encoding: chunked\r\n\r\n"
    pieces = [_chunk(piece) for piece in pieces] if framing == "chunked" else pieces
    frames = [*_with_gaps(step, pieces[:place]), *_fault(step.fault)]
    if place < len(pieces) and step.fault not in _OF_TRANSPORT:
        frames += [step.gap_s, *_with_gaps(step, pieces[place:])]
    frames += _closing(step.fault, framing)
    yield from _joined([start, *frames]) if step.coalesce else [start, *frames]


def _with_gaps(step: Step, pieces: list[bytes]) -> list[Frame]:
    if not step.gap_s:
        return list(pieces)
    frames: list[Frame] = []
    for piece in pieces:
        frames += [step.gap_s, piece]
    return frames[1:]


def _fault(fault: Fault) -> list[Frame]:
    if fault in ("cut", "cut_end", "cut_rst", "stall"):
        return [_ending(fault)]
    return [b"zz\r\nno size\r\n"] if fault == "bad_chunk" else []


def _closing(fault: Fault, framing: str) -> list[Frame]:
    frames: list[Frame] = []
    if framing == "chunked":
        frames.append(b"0\r\n\r\n")
    if fault == "extra_bytes":
        frames.append(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong")
    if framing == "eof" or fault == "wrong_length":
        frames.append(Act.CLOSE)
    return frames


def _joined(frames: list[Frame]) -> Iterator[Frame]:
    """The same frames with all bytes up to the next act joined into one write."""
    joined: list[bytes] = []
    for frame in frames:
        if isinstance(frame, bytes):
            joined.append(frame)
        elif isinstance(frame, Act):
            yield b"".join(joined)
            joined = []
            yield frame
    yield b"".join(joined)
