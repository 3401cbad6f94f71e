"""A client's request as it arrived.

The body is decoded one level deep (`dict[str, Raw]`), so that every field that the gateway doesn't change goes
upstream byte for byte.
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
"""The surface (form of the body) of each path that takes requests to models."""
PATHS = SURFACES | PASSED_PATHS
"""The same, with the paths whose requests are passed through unread (gateway/wire/pass_through.py)."""
KNOB_FIELD = "headgate"

NO_KNOBS = Knobs()
_USUAL = BILLED | {"temperature", "top_p", "stop", "stream_options", "tool_choice", "user", "seed", KNOB_FIELD}
_decode_text = msgspec.json.Decoder(str).decode


class CallOptions(msgspec.Struct, frozen=True):
    """Options of one request for the gateway itself, from the body's `headgate` object or x-headgate-* headers."""

    knobs: Knobs = NO_KNOBS
    models: tuple[str, ...] = ()
    cache: str = ""
    route: str = ""
    stated: bool = False
    """True if the request states any option."""


NO_OPTIONS = CallOptions()


class Call(msgspec.Struct):
    """A request on one surface."""

    surface: str
    """A value of SURFACES, or one of gateway.wire.pass_through."""
    raw: Raw
    model: str
    """Name of the route or model that the request asks for."""
    body_model: str
    """The body's `model`, which the path may override; empty where it has none."""
    stream: bool
    described: Described
    options: CallOptions
    headers: Mapping[bytes, bytes]
    host: str
    request_id: str
    received_s: float
    """Monotonic time in seconds."""
    timeout_s: float
    """Deadline, in seconds after `received_s`: the client's own read timeout, at most the server's limit."""
    include_usage: bool = False
    body: bytes = b""
    """The body's bytes, to be sent as they are; empty where the gateway must write it anew, because it held knobs, the
    path named the model, or something was put into it.
    """
    background: str = ""
    """Id of the response if it is generated in the background; empty where the client waits for it."""
    turn: Turn | None = None
    """The request as a turn of its conversation (Responses API); None on other surfaces."""
    idempotency_key: str = ""
    """Prefix of the idempotency keys sent upstream, so that a repeated call is answered and billed once; empty: none
    are sent.
    """
    content_type: bytes = b""
    """Content type of a body that is passed through; empty for all other surfaces, which are JSON."""
    upload: Upload | None = None
    """The body if it is a multipart form."""


class Arrival(msgspec.Struct, frozen=True):
    """A request without its body."""

    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    host: str
    request_id: str
    received_s: float
    model: str = ""
    """Model named by the path (Azure style); empty where only the body names one."""


def read_call(
    surface: str, body: bytes, arrival: Arrival, *, max_messages: int, timeout_s: float, raw: Raw | None = None
) -> Call:
    """Read a request to a model. `timeout_s`: the server's limit. `raw`: the decoded body, where something was put into
    it. Raises CallerError, with the parameter's name, for what can't be served.
    """
    headers, model = arrival.headers, arrival.model
    is_changed = raw is not None or bool(model)
    if raw is None:
        raw = read_raw(body, headers)
    is_changed = is_changed or KNOB_FIELD in raw
    options = read_call_options(raw, headers)
    described = describe(raw, surface, max_messages=max_messages)
    named = read_model(raw)
    if not (model or named):
        raise CallerError("you must provide a model parameter", param="model", code="missing_required_parameter")
    return Call(
        surface=surface,
        raw=raw,
        model=model or named,
        body_model=named,
        stream=described.stream,
        described=described,
        options=options,
        headers=headers,
        host=arrival.host,
        request_id=arrival.request_id,
        received_s=arrival.received_s,
        timeout_s=client_timeout_s(headers, timeout_s),
        include_usage=described.include_usage,
        body=b"" if is_changed else body,
    )


def read_passed(surface: str, body: bytes, arrival: Arrival, *, timeout_s: float) -> Call:
    """Read a request that is passed through, in JSON or as a form. Raises CallerError as `read_call` does."""
    headers, raw, upload, is_changed = arrival.headers, Raw(), None, bool(arrival.model)
    content_type = headers.get(b"content-type", b"application/json")
    if content_type.lower().startswith(b"multipart/"):
        upload = read_upload(content_type, body)
        options, fields = read_call_options(raw, headers), upload.fields
        described = describe_passed(surface, fields, upload.text_bytes, upload.files)
        named = fields.get("model", "")
    else:
        content_type, raw = b"application/json", read_raw(body, headers)
        is_changed = is_changed or KNOB_FIELD in raw
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
        body_model=named,
        stream=described.stream,
        described=described,
        options=options,
        headers=headers,
        host=arrival.host,
        request_id=arrival.request_id,
        received_s=arrival.received_s,
        timeout_s=client_timeout_s(headers, timeout_s),
        body=b"" if is_changed else body,
        content_type=content_type,
        upload=upload,
    )


def read_raw(body: bytes, headers: Mapping[bytes, bytes]) -> Raw:
    """Decode a JSON object one level deep. Raises CallerError for a body that isn't one, or is compressed."""
    try:
        raw = decode(body)
    except CallerError:
        encoding = headers.get(b"content-encoding", b"").decode("latin-1")
        if encoding.lower() in ("", "identity"):
            raise
        raise CallerError(
            f"A body with the content encoding {encoding[:40]!r} isn't supported: send it uncompressed.", status=415
        ) from None
    if not _USUAL.issuperset(raw):
        _check_names(raw)
    return raw


def _check_names(raw: Raw) -> None:
    """Raises CallerError for a field that limits or raises the bill in another case, such as 'Max_Tokens': upstreams
    that ignore case, as Ollama does, would obey it.
    """
    for name in raw:
        folded = name.casefold()
        if folded in BILLED and name != folded:
            raise CallerError(f"Unknown parameter: '{name}'. Did you mean '{folded}'?", param=name,
                              code="unknown_parameter")  # fmt: skip


def chat_messages(call: Call) -> list[dict[str, Any]]:
    """The request's messages in the form of the chat API, translated if need be; empty where that is impossible."""
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
    """The body's `model`; empty where it has none. Raises CallerError for one that is no string."""
    value = raw.get("model")
    if value is None:
        return ""
    try:
        return _decode_text(value)
    except msgspec.ValidationError:
        raise CallerError("model must be a string", param="model", code="invalid_type") from None


def client_timeout_s(headers: Mapping[bytes, bytes], limit_s: float) -> float:
    """The read timeout that the official SDKs state in a header, or `limit_s` where it is shorter or none is stated."""
    stated = headers.get(b"x-stainless-read-timeout")
    if not stated:
        return limit_s
    try:
        seconds = float(stated)
    except ValueError:
        return limit_s
    return min(seconds, limit_s) if seconds > 0 and math.isfinite(seconds) else limit_s


_PREFIX = b"x-headgate-"
_RANGES = {  # lowest and highest value of each knob, in the order of Knobs' fields
    "cost_weight": (0.0, 1.0),
    "min_quality": (0.0, 1.0),
    "max_cost_usd": (0.0, math.inf),
    "max_latency_s": (0.0, math.inf),
}


def read_call_options(raw: Raw, headers: Mapping[bytes, bytes]) -> CallOptions:
    """The request's options. The body's `headgate` object, which is removed from `raw`, takes precedence over headers.
    Raises CallerError, also for an unknown option: a mistyped limit would limit nothing.
    """
    stated: dict[str, Any] = {}
    if _PREFIX in b"\n".join(headers):  # few requests have such a header
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
