"""Surfaces whose requests and answers pass as they are: pictures, sound, moderation, reranking, compaction.

No query in them tells one model from another and no other API has words for them, so the model that is named gets the
client's own bytes, but for its name. Only what limits and money need is read: tokens, and units where something is
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
"""Each surface's path behind the API's version."""
PASSED_PATHS = {"/v1" + path: surface for surface, path in PASSED.items()} | {"/v2/rerank": "rerank"}
"""As clients ask for them; Cohere's have another version."""
DEFAULT_MODELS = {"moderations": "omni-moderation-latest"}
"""What a request without `model` means: the official client sends none."""

TOKENS_PER_DETAILED_IMAGE = 6500
"""Of a picture to edit with `input_fidelity` high."""
TOKENS_PER_SECOND = 10
"""Of sound heard, as OpenAI counts."""
SPOKEN_TOKENS_PER_CHAR = 1.4
"""20 tokens for each of the second's 15 characters."""
LEAST_BYTES_PER_SECOND = 750
"""Of speech in the leanest codecs: no upload of so many bytes lasts longer."""
USUAL_BYTES_PER_SECOND = 16_000
"""MP3 at 128 kbit/s."""
DOCUMENTS_PER_SEARCH = 100
_MOST_N = 128
_PIECE_BYTES = 64 * 1024
_PICTURES = ("image", "images", "mask")
"""Fields that are counted by the picture and not by their length."""
COUNTED = ("images", "image_edits", "image_variations")
"""Surfaces billed by how many pictures come."""
_HEARD = ("transcriptions", "translations")
_ONCE = frozenset({"model", "n", "prompt", "stream", "input_fidelity"})
"""Fields of a form that are read here: of two, an upstream may go by the other one."""


class _Nowhere(BytesIO):
    """The file of a part that stays where it is, in the form."""

    def write(self, data: Any) -> int:
        return len(data)


class Upload(msgspec.Struct, frozen=True):
    """A form that is here whole."""

    body: bytes
    fence: bytes
    fields: Mapping[str, str]
    text_bytes: int
    """Of all fields."""
    files: Sequence[memoryview]
    model_at: tuple[int, int] | None
    """Where the model's name stands; None: nowhere."""

    def named(self, model: str) -> bytes:
        """The same form with that model's name."""
        if self.model_at is None:
            head = b'%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (self.fence, model.encode())
            return head + self.body
        begins, ends = self.model_at
        return b"".join((self.body[:begins], model.encode(), self.body[ends:]))


def read_upload(content_type: bytes, body: bytes) -> Upload:
    """Raises CallerError for what is no whole form."""
    form = Form(content_type, _Nowhere)
    for at in range(0, len(body), _PIECE_BYTES):
        form.feed(body[at : at + _PIECE_BYTES])
    fields, text_bytes, files, model_at, view = {}, 0, [], None, memoryview(body)
    form.end()
    for part in form.parts:
        data = view[part.begins : part.begins + part.bytes]
        if part.filename:
            files.append(data)
            continue
        if part.name in fields and part.name in _ONCE:
            raise CallerError(f"'{part.name}' is given more than once.", param=part.name, code="invalid_upload")
        fields[part.name] = bytes(data).decode("utf-8", "replace")
        text_bytes += part.bytes
        if part.name == "model":
            model_at = part.begins, part.begins + part.bytes
    return Upload(body, form.fence, fields, text_bytes, files, model_at)


def read_fields(raw: Raw) -> tuple[dict[str, Any], int]:
    """What a JSON body says, and the bytes of it that a model may read as text. Raises CallerError for what can't be
    read.
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
    """CallerError, with its param, where what is to be worked on is missing or of a wrong type."""
    described = Described(stream=surface == "speech" or str(fields.get("stream", "")).lower() in ("true", "1"))
    described.input_tokens_bound = text_bytes
    if surface in COUNTED:
        _describe_pictures(described, surface, fields, files)
    elif surface in _HEARD:
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
    """Pictures are billed by the piece, or by tokens of which only the model's own limit bounds the answer's."""
    prompt = "" if surface == "image_variations" else _text(fields, "prompt")
    described.n = _count(fields, "n", 1)
    named = fields.get("images")
    described.images = len(files) + (len(named) if isinstance(named, list) else 0)
    each = TOKENS_PER_DETAILED_IMAGE if fields.get("input_fidelity") == "high" else TOKENS_PER_IMAGE
    _expect(described, len(prompt), units=described.n, more=described.images * each)
    described.input_tokens += described.images * each


def _describe_sound(described: Described, fields: Mapping[str, Any], files: Sequence[memoryview]) -> None:
    if not files:
        raise CallerError("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
    prompt = fields.get("prompt", "")
    told = sum(map(wav_seconds, files))
    usual, longest = (told or sum(map(len, files)) / rate for rate in (USUAL_BYTES_PER_SECOND, LEAST_BYTES_PER_SECOND))
    _expect(described, len(prompt), units=math.ceil(longest), more=math.ceil(longest * TOKENS_PER_SECOND))
    heard = math.ceil(usual * TOKENS_PER_SECOND)
    described.input_tokens += heard
    described.expected = Usage(audio_input_tokens=heard, output_tokens=heard // 3, units=math.ceil(usual))


def _describe_speech(described: Described, text: str) -> None:
    described.max_output_tokens = 4 * len(text) + 64
    _expect(described, len(text), units=len(text))
    spoken = math.ceil(len(text) * SPOKEN_TOKENS_PER_CHAR)
    described.expected = Usage(
        input_tokens=described.input_tokens, audio_output_tokens=spoken, units=described.units
    )


def _describe_documents(described: Described, query: str, documents: Sequence[str]) -> None:
    """Some count the query once for every document."""
    chars = sum(map(len, documents)) + len(query) * len(documents)
    searches = -(-len(documents) // DOCUMENTS_PER_SEARCH)
    _expect(described, chars, units=searches, more=len(query.encode()) * len(documents))


def _expect(described: Described, chars: int, *, units: int, more: int = 0) -> None:
    """`more`: tokens at most, beside those of the text."""
    described.input_tokens = math.ceil(chars / CHARS_PER_TOKEN)
    described.input_tokens_bound += more
    described.units = units
    described.expected = Usage(input_tokens=described.input_tokens, units=units)


def wav_seconds(data: memoryview) -> float:
    """How long an uncompressed recording lasts; 0 for any other."""
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
    """A text or a list; of parts and documents that are objects, the texts in them."""
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
    if isinstance(value, bool) or not 1 <= count <= _MOST_N:
        raise CallerError(
            f"Invalid '{name}': {count} is not between 1 and {_MOST_N}.", param=name, code="value_out_of_range"
        )
    return count


class Answer(msgspec.Struct):
    """What an answer, or an event of one, tells of itself."""

    error: Any = None
    usage: Any = None
    data: Any = None
    results: Any = None
    meta: Any = None
    duration: Any = None
    type: Any = ""
    """Of an event."""


_decode = msgspec.json.Decoder(Answer).decode


def peek_passed(body: bytes, surface: str) -> Peek:
    """What a whole answer says that it used. UpstreamError where it is an error after all; text and sound say nothing,
    and neither does what can't be read: it is the client's to make sense of.
    """
    answer = read_passing(body)
    return Peek(usage=usage_of(answer, surface)) if answer is not None else Peek()


def read_passing(body: bytes) -> Answer | None:
    """None: it is no JSON object. UpstreamError where it is an error."""
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
    known = Usage.from_openai(_spelled(usage, surface) if "input_tokens" in usage else usage)
    if not known.known and not units:
        return Usage()
    return msgspec.structs.replace(known, units=units, known=True)


def _spelled(usage: Mapping[str, Any], surface: str) -> dict[str, Any]:
    """As chat's answers tell it. What is spoken is sound."""
    spoken = {"audio_tokens": usage.get("output_tokens")} if surface == "speech" else None
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage.get("output_tokens"),
        "prompt_tokens_details": usage.get("input_token_details", usage.get("input_tokens_details")),
        "completion_tokens_details": spoken,
    }


def _units(surface: str, answer: Answer, usage: Mapping[str, Any]) -> int:
    """Pieces that the answer tells of."""
    if surface in COUNTED:
        return len(answer.data) if isinstance(answer.data, list) else int(str(answer.type).endswith(".completed"))
    if surface == "moderations":
        return len(answer.results) if isinstance(answer.results, list) else 0
    if surface == "rerank":
        billed = answer.meta.get("billed_units") if isinstance(answer.meta, dict) else None
        return _whole(billed.get("search_units")) if isinstance(billed, dict) else 0
    return _whole(usage.get("seconds", answer.duration))


def _whole(number: object) -> int:
    """Rounded up; what is no number, or none that can be meant, is 0."""
    try:
        found = math.ceil(float(number))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0
    return found if 0 < found < 2**31 else 0
