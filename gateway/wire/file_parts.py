"""Replaces parts of a prompt that name an uploaded file by its id with parts that hold the file itself.

    prompt = find(raw, "chat")               # which files are named, and where
    put(raw, "chat", prompt, contents)       # the request with their contents

Only ids of this gateway's own files are replaced; any other id is its upstream's, and stays. A part that can't name a
file at all is refused for every surface, before any file is read.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mimetypes import guess_type
from typing import Any

import msgspec

from gateway.errors import CallerError, TooLarge
from gateway.wire.body import Raw, encode_json
from gateway.wire.chunk import BAD_JSON

Json = dict[str, Any]
FIELDS = {"chat": "messages", "messages": "messages", "responses": "input"}
"""The field that holds each surface's prompt."""
PDF = "application/pdf"
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
"""Image types that Anthropic's API accepts."""
BINARY = "application/octet-stream"
LONGEST_ID = 64
"""Length in characters of the longest file id of this gateway."""
MAX_TITLE_CHARS = 500
"""Most characters of a document's title in Anthropic's API."""
_OURS = re.compile(r"file_[0-9a-f]{28}|file-batch_[0-9a-f]{28}-(?:output|errors)")
_OURS_ANYWHERE = re.compile(_OURS.pattern.encode())
_MARKS = {"chat": (b'"file_id"', b'"file"'), "responses": (b'"file_id"', b'"input_file"'), "messages": (b'"file_id"',
          b'"file"', b'"container_upload"')}  # fmt: skip
"""Every prompt that names a file contains one of these."""
_SIGNS = ((b"%PDF-", PDF), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"),
          (b"GIF8", "image/gif"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Content:
    """A file in the form in which it is put into a prompt."""

    name: str
    media_type: str
    data: str
    """The text of a text file, if the surface accepts text; else the file in base64."""
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a prompt that names a file."""

    id: str
    param: str
    part: Json
    """The part itself, inside the prompt's tree."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A decoded prompt that names files of this gateway."""

    tree: list[Any]
    places: list[Place]


def media_type(name: str, data: bytes) -> str:
    """The media type by the first bytes where they are known, else by the name. A file that is text has a text type,
    whatever its name.
    """
    for sign, kind in _SIGNS:
        if data.startswith(sign):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    named = named_type(name)
    if not _is_text(data):
        return named
    return named if named.startswith("text/") else "text/plain"


def named_type(name: str) -> str:
    """The media type by the file's name alone."""
    return guess_type(f"./{name}")[0] or BINARY  # with a path, so that a name is never read as a data URL


def content_of(name: str, data: bytes, surface: str) -> Content:
    """The file in the form that the surface accepts."""
    kind = media_type(name, data)
    if surface == "messages" and kind.startswith("text/"):
        if _is_text(data):
            return Content(name, kind, data.decode("utf-8-sig"), is_text=True)
        kind = BINARY
    return Content(name, kind, b64encode(data).decode())


def find(raw: Raw, surface: str) -> Prompt | None:
    """The prompt's parts that name files; None where there are none. Raises CallerError, with its param, for a part
    that can't name a file.
    """
    field = FIELDS.get(surface, "")
    value = raw.get(field)
    text = b"" if value is None else memoryview(value).tobytes()
    if not any(mark in text for mark in _MARKS.get(surface, ())):
        return None
    try:
        tree = msgspec.json.decode(text)
    except (*BAD_JSON, msgspec.ValidationError):
        return None  # `describe` refuses it
    if not isinstance(tree, list):
        return None
    places = list(_PLACES[surface](tree, field))
    return Prompt(tree, places) if places else None


def put(raw: Raw, surface: str, prompt: Prompt, contents: Mapping[str, Content], max_bytes: int) -> Raw:
    """The request with the content of each named file in its place. Raises CallerError for a file that its part can't
    hold, and TooLarge for more than `max_bytes`. The prompt is changed in place, and can't be used again.
    """
    for place in prompt.places:
        _PUT[surface](place, contents[place.id])
    field = FIELDS[surface]
    encoded = encode_json(prompt.tree)
    if len(encoded) + sum(len(memoryview(value)) for name, value in raw.items() if name != field) > max_bytes:
        raise too_large(max_bytes)
    return {**raw, field: msgspec.Raw(encoded)}


def too_large(max_bytes: int) -> TooLarge:
    message = f"with the files that it names the request is over {max_bytes} bytes: name fewer or smaller files"
    return TooLarge(message, param="file_id")


def is_ours(id: str) -> bool:
    """Whether a file's id has the form of this gateway's ids; upstreams' ids don't."""
    return _OURS.fullmatch(id) is not None


def ids_in(text: bytes) -> set[str]:
    """Everything in a text that has the form of this gateway's file ids."""
    return {id.decode() for id in _OURS_ANYWHERE.findall(text)}


def _is_text(data: bytes) -> bool:
    """Whether it is UTF-8 without NUL."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def _bad(param: str, why: str) -> CallerError:
    return CallerError(f"'{param}' {why}", param=param, code="invalid_value")


def _named(part: Json, param: str, holder: Json, *others: str) -> Iterator[Place]:
    """The file that a part names, if it is one of this gateway. `holder`: the object in the part that must have either
    `file_id` or one of the fields `others`; else CallerError is raised.
    """
    id, id_param = holder.get("file_id"), f"{param}.file_id"
    present = [name for name in others if holder.get(name) not in (None, "")]
    if present:
        if isinstance(id, str) and is_ours(id):
            raise CallerError(f"'{param}' has 'file_id' and '{present[0]}': give one of them.", param=param,
                              code="mutually_exclusive_parameters")  # fmt: skip
        return
    if not id and (id is None or isinstance(id, str)):
        fields = " or ".join(f"'{name}'" for name in ("file_id", *others))
        raise CallerError(f"'{param}' must name a file: give it {fields}.", param=id_param,
                          code="missing_required_parameter")  # fmt: skip
    if not isinstance(id, str):
        why = f"'{id_param}' must be a string: the id of an uploaded file."
        raise CallerError(why, param=id_param, code="invalid_type")
    if is_ours(id):
        yield Place(id, id_param, part)


def _parts(content: Any, param: str) -> Iterator[tuple[Json, str]]:
    """The parts of a turn or of a tool's result, each with its param."""
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict):
            yield part, f"{param}[{index}]"


# chat


def _of_chat(turns: list[Any], field: str) -> Iterator[Place]:
    for turn, where in _parts(turns, field):
        for part, param in _parts(turn.get("content"), f"{where}.content"):
            if part.get("type") != "file":
                continue
            file, inside = part.get("file"), f"{param}.file"
            if isinstance(file, dict):
                yield from _named(part, inside, file, "file_data", "file_url")
            elif file is not None or not isinstance(part.get("file_id"), str) or is_ours(part["file_id"]):
                raise _bad(inside, "must be an object with 'file_id', or with 'filename' and 'file_data'.")


def _put_in_chat(place: Place, content: Content) -> None:
    file = {name: value for name, value in place.part["file"].items() if name not in ("file_id", "file_data")}
    place.part["file"] = {**file, "filename": file.get("filename") or content.name, "file_data": _data_url(content)}


# responses


def _of_responses(items: list[Any], field: str) -> Iterator[Place]:
    for item, where in _parts(items, field):
        shot = item.get("output")
        if isinstance(shot, dict) and shot.get("type") == "computer_screenshot":
            yield from _named(shot, f"{where}.output", shot, "image_url")
        for name in ("content", "output"):
            for part, param in _parts(item.get(name), f"{where}.{name}"):
                yield from _of_responses_part(part, param)


def _of_responses_part(part: Json, param: str) -> Iterator[Place]:
    if part.get("type") == "input_file":
        yield from _named(part, param, part, "file_data", "file_url")
    elif part.get("type") == "input_image":
        yield from _named(part, param, part, "image_url")


def _put_in_responses(place: Place, content: Content) -> None:
    part = place.part
    del part["file_id"]
    if part["type"] == "input_file":
        part["filename"], part["file_data"] = part.get("filename") or content.name, _data_url(content)
    else:
        part["image_url"] = _data_url(_as_image(place, content))


# messages


def _of_messages(turns: list[Any], field: str) -> Iterator[Place]:
    for turn, where in _parts(turns, field):
        for block, param in _parts(turn.get("content"), f"{where}.content"):
            yield from _of_block(block, param)
            if block.get("type") == "tool_result":
                for inner, inside in _parts(block.get("content"), f"{param}.content"):
                    yield from _of_block(inner, inside)


def _of_block(block: Json, param: str) -> Iterator[Place]:
    kind, source = block.get("type"), block.get("source")
    if kind == "container_upload":
        for place in _named(block, param, block):
            raise CallerError(
                f"'{place.param}' names a file that is stored here, where no provider's container can read it: send "
                "it as a document or an image block.", param=place.param, code="unsupported_parameter",
            )  # fmt: skip
    elif kind in ("document", "image") and isinstance(source, dict) and source.get("type") == "file":
        yield from _named(block, f"{param}.source", source)


def _put_in_messages(place: Place, content: Content) -> None:
    block = place.part
    if block["type"] == "image":
        content = _as_image(place, content)
        block["source"] = {"type": "base64", "media_type": content.media_type, "data": content.data}
        return
    if content.is_text:
        block["source"] = {"type": "text", "media_type": "text/plain", "data": content.data}
    elif content.media_type == PDF:
        block["source"] = {"type": "base64", "media_type": PDF, "data": content.data}
    else:
        why = "an image: name it in a block of type 'image'" if content.media_type in IMAGES else (
            f"neither PDF nor text in UTF-8, but {content.media_type}: convert it, and upload it again")  # fmt: skip
        raise _bad(place.param, f"names a file that is {why}.")
    if not block.get("title"):
        block["title"] = content.name[:MAX_TITLE_CHARS]


def _as_image(place: Place, content: Content) -> Content:
    """The content itself. Raises CallerError where it isn't an image."""
    if content.media_type not in IMAGES:
        raise _bad(place.param, f"names a file that is no PNG, JPEG, GIF or WebP image, but {content.media_type}.")
    return content


def _data_url(content: Content) -> str:
    return f"data:{content.media_type};base64,{content.data}"


_PLACES = {"chat": _of_chat, "responses": _of_responses, "messages": _of_messages}
_PUT = {"chat": _put_in_chat, "responses": _put_in_responses, "messages": _put_in_messages}
