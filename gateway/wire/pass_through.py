"""Surfaces whose requests and answers are passed through: pictures, sound, moderation, reranking, compaction.

They have no query to choose a model by, and no counterpart in another API, so the named model gets the client's own
bytes, except for the model's name. Only what limits and budgets need is read: tokens, and units where answers are
billed by the piece.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from struct import unpack
from typing import Any

import msgspec

from gateway.errors import CallerError
from gateway.wire.body import Raw
from gateway.wire.chunk import BAD_JSON, Peek
from gateway.wire.describe import CHARS_PER_TOKEN, TOKENS_PER_IMAGE, Described
from gateway.wire.errors import classify_in_stream
from gateway.wire.multipart import Form
from gateway.wire.usage import Usage

COMPACT = "compact"
PASSED = {
    COMPACT: "/responses/compact",
    "moderations": "/moderations",
    "images": "/images/generations",
    "image_edits": "/images/edits",
    "image_variations": "/images/variations",
    "speech": "/audio/speech",
    "transcriptions": "/audio/transcriptions",
    "translations": "/audio/translations",
    "rerank": "/rerank",
}
"""Each surface's path after the API's version."""
PASSED_PATHS = {"/v1" + path: surface for surface, path in PASSED.items()} | {"/v2/rerank": "rerank"}
"""Surfaces by the paths that clients request; Cohere's API has another version."""
DEFAULT_MODELS = {"moderations": "omni-moderation-latest"}
"""The model of a request without `model`, which OpenAI's client may omit."""

TOKENS_PER_DETAILED_IMAGE = 6500
"""Tokens of a picture to edit with high `input_fidelity`."""
TOKENS_PER_SECOND = 10
"""Tokens of a second of audio input, as OpenAI counts them."""
SPOKEN_TOKENS_PER_CHAR = 1.4
"""A second of speech has about 20 tokens and 15 characters."""
LEAST_BYTES_PER_SECOND = 750
"""Bytes of a second of speech in the most efficient codecs, which bounds the duration of an upload."""
USUAL_BYTES_PER_SECOND = 16_000
"""Bytes of a second of MP3 at 128 kbit/s, for estimates."""
DOCUMENTS_PER_SEARCH = 100
_MAX_N = 128
_PIECE_BYTES = 64 * 1024
_PICTURES = ("image", "images", "mask")
"""Fields that hold pictures, whose length doesn't count as text."""
COUNTED = ("images", "image_edits", "image_variations")
"""Surfaces billed by the number of pictures in the answer."""
_AUDIO_INPUT = ("transcriptions", "translations")
_UNIQUE = frozenset({"model", "n", "prompt", "stream", "input_fidelity"})
"""Form fields that are read here. They may occur only once, as an upstream might use the other of two."""


class _Discard(BytesIO):
    """A part's file that discards its data, since it stays available in the form's body."""

    def write(self, data: Any) -> int:
        return len(data)


class Upload(msgspec.Struct, frozen=True):
    """A complete form."""

    body: bytes
    fence: bytes
    fields: Mapping[str, str]
    text_bytes: int
    """Bytes of all fields together, without files."""
    files: Sequence[memoryview]
    model_at: tuple[int, int] | None
    """Start and end of the model's name in `body`; None where it has none."""

    def named(self, model: str) -> bytes:
        """The body with the name of this model."""
        if self.model_at is None:
            head = b'%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (self.fence, model.encode())
            return head + self.body
        begins, ends = self.model_at
        return b"".join((self.body[:begins], model.encode(), self.body[ends:]))


def read_upload(content_type: bytes, body: bytes) -> Upload:
    """Parse a form. Raises CallerError where it is malformed or incomplete."""
    form = Form(content_type, _Discard)
    for at in range(0, len(body), _PIECE_BYTES):
        form.feed(body[at : at + _PIECE_BYTES])
    fields, text_bytes, files, model_at, view = {}, 0, [], None, memoryview(body)
    form.end()
    for part in form.parts:
        data = view[part.begins : part.begins + part.bytes]
        if part.filename:
            files.append(data)
            continue
        if part.name in fields and part.name in _UNIQUE:
            raise CallerError(f"'{part.name}' occurs more than once.", param=part.name, code="invalid_upload")
        fields[part.name] = bytes(data).decode("utf-8", "replace")
        text_bytes += part.bytes
        if part.name == "model":
            model_at = part.begins, part.begins + part.bytes
    return Upload(body, form.fence, fields, text_bytes, files, model_at)


def read_fields(raw: Raw) -> tuple[dict[str, Any], int]:
    """The decoded fields of a JSON body, and the bytes of it that a model may read as text. Raises CallerError for
    invalid JSON.
    """
    fields, text_bytes = {}, 0
    for name, value in raw.items():
        try:
            fields[name] = msgspec.json.decode(value)
        except BAD_JSON as error:
            raise CallerError(f"Invalid value for '{name}': {error}", param=name, code="invalid_value") from None
        text_bytes += 0 if name in _PICTURES else len(memoryview(value))
    return fields, text_bytes


def describe_passed(
    surface: str, fields: Mapping[str, Any], text_bytes: int, files: Sequence[memoryview] = ()
) -> Described:
    """Describe a request. Raises CallerError, with its param, where its input is missing or has a wrong type."""
    described = Described(stream=surface == "speech" or str(fields.get("stream", "")).lower() in ("true", "1"))
    described.input_tokens_bound = text_bytes
    if surface in COUNTED:
        _describe_pictures(described, surface, fields, files)
    elif surface in _AUDIO_INPUT:
        _describe_sound(described, fields, files)
    elif surface == "speech":
        _describe_speech(described, _text(fields, "input"))
    elif surface == "rerank":
        _describe_documents(described, _text(fields, "query"), _texts(fields, "documents"))
    else:
        texts = _texts(fields, "input")
        _expect(described, sum(map(len, texts)), units=len(texts))
    return described


def _describe_pictures(
    described: Described, surface: str, fields: Mapping[str, Any], files: Sequence[memoryview]
) -> None:
    """Pictures are billed by the piece or by tokens; those of the answer are bounded only by the model's own limit."""
    prompt = "" if surface == "image_variations" else _text(fields, "prompt")
    described.n = _count(fields, "n", 1)
    images = fields.get("images")
    described.images = len(files) + (len(images) if isinstance(images, list) else 0)
    each = TOKENS_PER_DETAILED_IMAGE if fields.get("input_fidelity") == "high" else TOKENS_PER_IMAGE
    _expect(described, len(prompt), units=described.n, more=described.images * each)
    described.input_tokens += described.images * each


def _describe_sound(described: Described, fields: Mapping[str, Any], files: Sequence[memoryview]) -> None:
    if not files:
        raise CallerError("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
    prompt = fields.get("prompt", "")
    stated_s = sum(map(wav_seconds, files))
    size = sum(map(len, files))
    usual_s, longest_s = stated_s or size / USUAL_BYTES_PER_SECOND, stated_s or size / LEAST_BYTES_PER_SECOND
    _expect(described, len(prompt), units=math.ceil(longest_s), more=math.ceil(longest_s * TOKENS_PER_SECOND))
    tokens = math.ceil(usual_s * TOKENS_PER_SECOND)
    described.input_tokens += tokens
    described.expected = Usage(audio_input_tokens=tokens, output_tokens=tokens // 3, units=math.ceil(usual_s))


def _describe_speech(described: Described, text: str) -> None:
    described.max_output_tokens = 4 * len(text) + 64
    _expect(described, len(text), units=len(text))
    audio_tokens = math.ceil(len(text) * SPOKEN_TOKENS_PER_CHAR)
    described.expected = Usage(
        input_tokens=described.input_tokens, audio_output_tokens=audio_tokens, units=described.units
    )


def _describe_documents(described: Described, query: str, documents: Sequence[str]) -> None:
    """The query is counted once per document, as some providers do."""
    chars = sum(map(len, documents)) + len(query) * len(documents)
    searches = -(-len(documents) // DOCUMENTS_PER_SEARCH)
    _expect(described, chars, units=searches, more=len(query.encode()) * len(documents))


def _expect(described: Described, chars: int, *, units: int, more: int = 0) -> None:
    """Set the estimates of a text of `chars` characters. `more`: most tokens in addition to those of the text."""
    described.input_tokens = math.ceil(chars / CHARS_PER_TOKEN)
    described.input_tokens_bound += more
    described.units = units
    described.expected = Usage(input_tokens=described.input_tokens, units=units)


def wav_seconds(data: memoryview) -> float:
    """Duration in seconds of an uncompressed WAV recording; 0 for any other file."""
    head = bytes(data[:36])
    if len(head) < 36 or head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt ":
        return 0.0
    kind, channels, rate, per_second, _, bits = unpack("<HHIIHH", head[20:])
    is_plain = kind in (1, 3) and per_second == rate * channels * bits // 8 > 0
    return len(data) / per_second if is_plain else 0.0


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise CallerError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if not isinstance(value, str):
        raise CallerError(f"Invalid type for '{name}': expected a string.", param=name, code="invalid_type")
    return value


def _texts(fields: Mapping[str, Any], name: str) -> list[str]:
    """A field that is a text or a list; items of the list that aren't texts are taken as their JSON."""
    value = fields.get(name)
    if not isinstance(value, list):
        return [_text(fields, name)]
    if not value:
        raise CallerError(f"'{name}' must not be empty.", param=name, code="empty_array")
    return [one if isinstance(one, str) else msgspec.json.encode(one).decode() for one in value]


def _count(fields: Mapping[str, Any], name: str, default: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    try:
        count = int(value)
    except (TypeError, ValueError):
        raise CallerError(f"Invalid type for '{name}': expected an integer.", param=name, code="invalid_type") from None
    if isinstance(value, bool) or not 1 <= count <= _MAX_N:
        raise CallerError(
            f"Invalid '{name}': {count} is not between 1 and {_MAX_N}.", param=name, code="value_out_of_range"
        )
    return count


class Answer(msgspec.Struct):
    """The fields of an answer, or of one of its events, that usage and errors are read from."""

    error: Any = None
    usage: Any = None
    data: Any = None
    results: Any = None
    meta: Any = None
    duration: Any = None
    type: Any = ""
    """Type of an event."""


_decode = msgspec.json.Decoder(Answer).decode


def peek_passed(body: bytes, surface: str) -> Peek:
    """The usage that a whole answer reports. Raises UpstreamError where it is an error. Text, sound and unreadable
    answers report none, and are passed on to the client.
    """
    answer = read_passing(body)
    return Peek(usage=usage_of(answer, surface)) if answer is not None else Peek()


def read_passing(body: bytes) -> Answer | None:
    """The answer; None where it isn't a JSON object. Raises UpstreamError where it is an error."""
    try:
        answer = _decode(body)
    except BAD_JSON:
        return None
    if answer.error is not None or answer.type == "error":
        raise classify_in_stream(answer.error if answer.error is not None else msgspec.json.decode(body))
    return answer


def usage_of(answer: Answer, surface: str) -> Usage:
    usage = answer.usage if isinstance(answer.usage, dict) else {}
    if surface == COMPACT:
        return Usage.from_responses(usage)
    units = _units(surface, answer, usage)
    reported = Usage.from_openai(_as_chat_usage(usage, surface) if "input_tokens" in usage else usage)
    if not reported.known and not units:
        return Usage()
    return msgspec.structs.replace(reported, units=units, known=True)


def _as_chat_usage(usage: Mapping[str, Any], surface: str) -> dict[str, Any]:
    """The usage with chat's field names; output of the surface `speech` is audio."""
    details = {"audio_tokens": usage.get("output_tokens")} if surface == "speech" else None
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage.get("output_tokens"),
        "prompt_tokens_details": usage.get("input_token_details", usage.get("input_tokens_details")),
        "completion_tokens_details": details,
    }


def _units(surface: str, answer: Answer, usage: Mapping[str, Any]) -> int:
    """The units that the answer reports (`Usage.units`)."""
    if surface in COUNTED:
        return len(answer.data) if isinstance(answer.data, list) else int(str(answer.type).endswith(".completed"))
    if surface == "moderations":
        return len(answer.results) if isinstance(answer.results, list) else 0
    if surface == "rerank":
        billed = answer.meta.get("billed_units") if isinstance(answer.meta, dict) else None
        return _rounded_up(billed.get("search_units")) if isinstance(billed, dict) else 0
    return _rounded_up(usage.get("seconds", answer.duration))


def _rounded_up(number: object) -> int:
    """The number rounded up; 0 for what isn't a number, or is out of range."""
    try:
        rounded = math.ceil(float(number))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0
    return rounded if 0 < rounded < 2**31 else 0
