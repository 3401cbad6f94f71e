"""One request as it came in: read once, never changed.

The body is decoded one level deep (`dict[str, Raw]`), so every field that nobody touches goes upstream
byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from cache.rules import read_directive
from gateway.errors import CallerError
from gateway.wire.pass_through import (
    COMPACT,
    DEFAULT_MODELS,
    PASSED_PATHS,
    Upload,
    describe_passed,
    read_fields,
    read_upload,
)
from gateway.wire.request import BILLED, Described, Raw, decode, describe, translate_request
from gateway.wire.responses import Turn
from routers.types import Knobs

SURFACES = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
"""Paths of requests to models, and what their bodies are."""
PATHS = SURFACES | PASSED_PATHS
"""Those too whose requests pass as they are."""
KNOB_FIELD = "headgate"

NO_KNOBS = Knobs()
_USUAL = BILLED | {"temperature", "top_p", "stop", "stream_options", "tool_choice", "user", "seed", KNOB_FIELD}
_decode_text = msgspec.json.Decoder(str).decode


class CallOptions(msgspec.Struct, frozen=True):
    """What one request asks of the gateway itself: `headgate` in the body, or x-headgate-* headers."""

    knobs: Knobs = NO_KNOBS
    models: tuple[str, ...] = ()
    cache: str = ""
    route: str = ""
    stated: bool = False
    """True: the request asks for anything at all."""


NO_OPTIONS = CallOptions()


class Call(msgspec.Struct):
    """A request on one surface."""

    surface: str
    """chat | completions | embeddings | responses | messages, or one of gateway.wire.pass_through"""
    raw: Raw
    model: str
    """The route or model asked for."""
    named: str
    """What the body itself calls it; the path may have said otherwise."""
    stream: bool
    described: Described
    options: CallOptions
    headers: Mapping[bytes, bytes]
    host: str
    request_id: str
    received_s: float
    """Monotonic."""
    timeout_s: float
    """From `received_s`: the client's own read timeout, or the server's limit."""
    include_usage: bool = False
    body: bytes = b""
    """As it came; empty where something in it was ours (knobs, the model in the path)."""
    background: str = ""
    """Under which id it is made in the background; empty: its client waits."""
    turn: Turn | None = None
    """Of the Responses API, as a turn of its conversation; None: it has no other."""
    once: str = ""
    """Names this call to upstreams that answer, and bill, one name once; empty: a repeated call is a new one."""
    content_type: bytes = b""
    """Of a body that passes as it is; empty: of any other, which is JSON."""
    upload: Upload | None = None
    """The body, where it is a form."""


class Arrival(msgspec.Struct, frozen=True):
    """How a request came: everything of it but its body."""

    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    host: str
    request_id: str
    received_s: float
    model: str = ""
    """Named by the path (Azure style); empty: the body says."""


def read_call(
    surface: str, body: bytes, arrival: Arrival, *, max_messages: int, timeout_s: float, raw: Raw | None = None
) -> Call:
    """Raises CallerError, naming the parameter, for anything that can't be served as it stands.

    `raw`: the body already decoded, where something was put into it.
    """
    headers, model = arrival.headers, arrival.model
    ours = raw is not None or bool(model)
    if raw is None:
        raw = read_raw(body, headers)
    ours = ours or KNOB_FIELD in raw
    options = read_call_options(raw, headers)
    described = describe(raw, surface, max_messages=max_messages)
    named = read_model(raw)
    if not (model or named):
        raise CallerError("you must provide a model parameter", param="model", code="missing_required_parameter")
    return Call(
        surface=surface,
        raw=raw,
        model=model or named,
        named=named,
        stream=described.stream,
        described=described,
        options=options,
        headers=headers,
        host=arrival.host,
        request_id=arrival.request_id,
        received_s=arrival.received_s,
        timeout_s=client_timeout_s(headers, timeout_s),
        include_usage=described.include_usage,
        body=b"" if ours else body,
    )


def read_passed(surface: str, body: bytes, arrival: Arrival, *, timeout_s: float) -> Call:
    """A request that passes as it is, in JSON or as a form. Raises CallerError as `read_call` does."""
    headers, raw, upload, ours = arrival.headers, Raw(), None, bool(arrival.model)
    content_type = headers.get(b"content-type", b"application/json")
    if content_type.lower().startswith(b"multipart/"):
        upload = read_upload(content_type, body)
        options, fields = read_call_options(raw, headers), upload.fields
        described = describe_passed(surface, fields, upload.text_bytes, upload.files)
        named = fields.get("model", "")
    else:
        content_type, raw = b"application/json", read_raw(body, headers)
        ours = ours or KNOB_FIELD in raw
        options = read_call_options(raw, headers)
        is_compact = surface == COMPACT
        described = describe(raw, "responses") if is_compact else describe_passed(surface, *read_fields(raw))
        named = read_model(raw)
    model = arrival.model or named or DEFAULT_MODELS.get(surface, "")
    if not model:
        raise CallerError("you must provide a model parameter", param="model", code="missing_required_parameter")
    return Call(
        surface=surface,
        raw=raw,
        model=model,
        named=named,
        stream=described.stream,
        described=described,
        options=options,
        headers=headers,
        host=arrival.host,
        request_id=arrival.request_id,
        received_s=arrival.received_s,
        timeout_s=client_timeout_s(headers, timeout_s),
        body=b"" if ours else body,
        content_type=content_type,
        upload=upload,
    )


def read_raw(body: bytes, headers: Mapping[bytes, bytes]) -> Raw:
    """One JSON object, a level deep. Raises CallerError, also for one that came compressed."""
    try:
        raw = decode(body)
    except CallerError:
        encoding = headers.get(b"content-encoding", b"").decode("latin-1")
        if encoding.lower() in ("", "identity"):
            raise
        raise CallerError(
            f"A body with the content encoding {encoding[:40]!r} isn't read here: send it uncompressed.", status=415
        ) from None
    if not _USUAL.issuperset(raw):
        _check_names(raw)
    return raw


def _check_names(raw: Raw) -> None:
    """Raises CallerError for a field that upstreams which ignore case, as Ollama does, take for one of ours."""
    for name in raw:
        meant = name.casefold()
        if meant in BILLED and name != meant:
            raise CallerError(f"Unknown parameter: '{name}'. Did you mean '{meant}'?", param=name,
                              code="unknown_parameter")  # fmt: skip


def chat_messages(call: Call) -> list[dict[str, Any]]:
    """The chat, as it was sent or as a model that speaks chat would be told it; empty where it can't be told."""
    raw = call.raw
    if call.surface not in ("chat", "messages", "responses"):
        return []
    if call.surface != "chat":
        try:
            raw = translate_request(raw, call.surface, "chat", hosted_tools="leave_out")
        except CallerError:
            return []
    return msgspec.json.decode(raw["messages"], type=list[dict[str, Any]])


def read_model(raw: Raw) -> str:
    """The body's `model`; empty where it has none."""
    value = raw.get("model")
    if value is None:
        return ""
    try:
        return _decode_text(value)
    except msgspec.ValidationError:
        raise CallerError("model must be a string", param="model", code="invalid_type") from None


def client_timeout_s(headers: Mapping[bytes, bytes], limit_s: float) -> float:
    """The official SDKs say how long they will wait; answering later is work for nobody."""
    stated = headers.get(b"x-stainless-read-timeout")
    if not stated:
        return limit_s
    try:
        seconds = float(stated)
    except ValueError:
        return limit_s
    return min(seconds, limit_s) if seconds > 0 and math.isfinite(seconds) else limit_s


_PREFIX = b"x-headgate-"
_RANGES = {  # in the order of Knobs' fields
    "cost_weight": (0.0, 1.0),
    "min_quality": (0.0, 1.0),
    "max_cost_usd": (0.0, math.inf),
    "max_latency_s": (0.0, math.inf),
}


def read_call_options(raw: Raw, headers: Mapping[bytes, bytes]) -> CallOptions:
    """The body's `headgate` object wins over headers; it is taken out of the body here. A knob that nobody knows is
    refused, wherever it is stated: a bound that was mistyped would bound nothing.
    """
    stated: dict[str, Any] = {}
    for header, value in headers.items():
        if header.startswith(_PREFIX):
            name = header[len(_PREFIX) :].decode("latin-1").replace("-", "_")
            stated[name] = value.decode("latin-1").strip()
    field = raw.pop(KNOB_FIELD, None)
    if field is not None and bytes(field) != b"null":
        try:
            stated.update(msgspec.json.decode(field, type=dict[str, Any]))
        except msgspec.MsgspecError as error:
            raise CallerError(f"headgate: {error}", param=KNOB_FIELD) from None
    return _options_of(stated) if stated else NO_OPTIONS


def _options_of(stated: dict[str, Any]) -> CallOptions:
    weight, quality, cost, latency = (_number(name, stated.pop(name, None)) for name in _RANGES)
    knobs = Knobs(weight, quality, cost, latency)
    models, cache, route = (stated.pop(name, None) for name in ("models", "cache", "route"))
    cache, route = "" if cache is None else cache, "" if route is None else route
    if isinstance(models, str):
        models = [name.strip() for name in models.split(",") if name.strip()]
    if stated:
        unknown = ", ".join(sorted(stated))
        known = ", ".join((*_RANGES, "models", "cache", "route"))
        raise CallerError(f"unknown headgate knob: {unknown}; known: {known}", param=f"{KNOB_FIELD}.{min(stated)}")
    if not isinstance(cache, str) or read_directive(cache, "none") is None:
        known = "none, exact, semantic, no-store, no-cache, only-if-cached, max-age=SECONDS"
        raise CallerError(f"headgate.cache must be one of: {known}", param="headgate.cache")
    if not isinstance(route, str):
        raise CallerError("headgate.route must be the name of a route", param="headgate.route")
    if models is not None and not (models and isinstance(models, list) and all(isinstance(n, str) for n in models)):
        raise CallerError("headgate.models must be a list of names of models", param="headgate.models")
    return CallOptions(knobs, tuple(models or ()), cache, route, stated=True)


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    low, high = _RANGES[name]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not low <= number <= high:
        limit = f"between {low:g} and {high:g}" if high < math.inf else "zero or more"
        raise CallerError(f"headgate.{name} must be a number {limit}", param=f"{KNOB_FIELD}.{name}")
    return number
