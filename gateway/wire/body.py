"""The body of a request, decoded once and only one level deep.

Values stay in the bytes they came in, so what isn't changed reaches the upstream byte for byte. A key that occurs twice
in one object is refused at any depth: parsers differ in which of the two they use, so an upstream might answer another
request than the one that was read, priced and looked up here.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeVar

import msgspec

from gateway.errors import CallerError
from gateway.wire.chunk import BAD_JSON

Raw = dict[str, msgspec.Raw]
T = TypeVar("T")
D = TypeVar("D")

_decode = msgspec.json.Decoder(Raw).decode
encode_json = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode


def decode(body: bytes) -> Raw:
    """Decode a body. Raises CallerError unless it is one JSON object in UTF-8 without duplicate keys."""
    try:
        if not body.isascii():
            body.decode()
        raw = _decode(body)
        refuse_twins(body)
        return raw
    except UnicodeDecodeError:
        raise CallerError("The request body isn't valid UTF-8.") from None
    except RecursionError:
        raise CallerError("The request body is nested too deeply.") from None
    except msgspec.ValidationError:
        raise CallerError("The request body must be a JSON object.") from None
    except BAD_JSON as error:
        raise CallerError(f"We could not parse the JSON body of your request: {error}") from None


def refuse_twins(body: bytes | msgspec.Raw) -> None:
    """Raises CallerError for a key that occurs twice in one object of this JSON.

    Most bodies are the same after decoding and encoding, apart from white space, which is impossible with a duplicate
    key. Only the others are read by a parser that sees every pair, at twice the cost.
    """
    body = bytes(body)
    if b"\\u" not in body:  # encoding would not restore such an escape
        try:
            encoded = encode_json(_decode_any(body))
        except msgspec.ValidationError:
            pass  # a number is too large for a float
        else:
            if encoded == body or encoded == msgspec.json.format(body, indent=-1):
                return
    _decode_pairs(body.decode())


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)[:80]
        message = f"'{duplicate}' occurs more than once in one object."
        raise CallerError(message, param=duplicate, code="duplicate_parameter")


_decode_pairs = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_float=str, parse_int=str).decode


def encode(raw: Raw) -> bytes:
    return encode_json(raw)


@cache
def _decoder_of(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind | None)


def read(raw: Raw, name: str, kind: type[T], default: D) -> T | D:
    """The field `name` as a `kind`; the default where it is absent or null. Raises CallerError for another type."""
    value = raw.get(name)
    if value is None:
        return default
    try:
        decoded: T | None = _decoder_of(kind).decode(value)  # type: ignore[arg-type]
    except msgspec.ValidationError as error:
        raise CallerError(f"Invalid type for '{name}': {error}", param=name, code="invalid_type") from None
    except BAD_JSON as error:
        raise CallerError(f"Invalid value for '{name}': {error}", param=name, code="invalid_value") from None
    return default if decoded is None else decoded


def is_set(raw: Raw, name: str) -> bool:
    """Whether the field is present and not null."""
    value = raw.get(name)
    return value is not None and bytes(value).strip() != b"null"


def to_raw(fields: dict[str, object]) -> Raw:
    """The fields with each value encoded as JSON, except those that are `msgspec.Raw`."""
    return {
        name: value if isinstance(value, msgspec.Raw) else msgspec.Raw(encode_json(value))
        for name, value in fields.items()
    }
