"""Wire codecs under bad input: they return a result or raise one of the defined errors, and nothing else."""

from __future__ import annotations

import random

from gateway.errors import HeadgateError
from gateway.wire.answer import translate_answer
from gateway.wire.errors import classify, render_error
from gateway.wire.peek import peek
from gateway.wire.relay import Relay
from gateway.wire.replay import replay
from gateway.wire.request import decode, describe, encode, translate_request
from gateway.wire.responses import input_items
from tests.fuzz.junk import ANSWERS, EVENTS, GOOD, bad_json, bad_stream

SURFACES = tuple(GOOD)
CLIENTS = ("chat", "completions", "responses", "messages")


def request(draw: random.Random) -> None:
    """A client's body is read, described, and translated for each upstream API."""
    surface = draw.choice(SURFACES)
    body = bad_json(GOOD[surface], draw)
    try:
        raw = decode(body)
        describe(raw, surface)
    except HeadgateError as error:
        _is_callers(error)
        return
    for dst in ("chat", "messages"):
        try:
            encode(translate_request(dict(raw), surface, dst))
        except HeadgateError as error:
            _is_callers(error)
    if surface == "responses":
        try:
            input_items(raw)
        except HeadgateError as error:
            _is_callers(error)


def answer(draw: random.Random) -> None:
    """An upstream's body is translated for each client API, inspected, and replayed as a stream."""
    src = draw.choice(tuple(ANSWERS))
    dst = draw.choice(CLIENTS)
    body = bad_json(ANSWERS[src], draw)
    try:
        peek(body, src)
        out = translate_answer(body, src, dst, model="m", request=decode(b'{"model":"m"}'), strip=draw.random() < 0.5)
        peek(out, dst)
        replay(out, dst, include_usage=True)
    except HeadgateError as error:
        _is_upstreams(error)


def stream(draw: random.Random) -> None:
    """An upstream's events, in pieces, have exactly one ending."""
    src, dst = draw.choice(tuple(EVENTS)), draw.choice(CLIENTS)
    usage = draw.random() < 0.5
    flow = Relay(src, dst, model="m", request=decode(b'{"model":"m"}'), include_usage=usage, collect=True)
    for piece in bad_stream(src, draw):
        flow.feed(piece)
    fault = None if flow.finished else flow.end()
    flow.peek()
    if flow.fault or fault:
        flow.error(HeadgateError("it broke", code="stream_cut", status=502))
        return
    flow.tail()
    try:
        flow.answer()
    except HeadgateError as error:
        _is_upstreams(error)


def error(draw: random.Random) -> None:
    """An upstream's error, however worded, is classified and rendered for every surface."""
    said = {"error": {"message": "no", "type": "x", "code": "rate_limit_exceeded", "param": None}}
    status = draw.choice((400, 401, 404, 408, 413, 429, 500, 502, 503, 529))
    found = classify(status, bad_json(said, draw), {"retry-after": draw.choice(("1", "", "x", "-1", "1e400"))})
    for surface in SURFACES:
        render_error(found, surface)


def _is_callers(error: HeadgateError) -> None:
    assert 400 <= error.status < 500, (error, error.status)


def _is_upstreams(error: HeadgateError) -> None:
    assert error.status in (502, 503), (error, error.status)


CODECS = {"requests": request, "answers": answer, "streams": stream, "errors": error}
