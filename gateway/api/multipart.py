"""multipart/form-data (RFC 7578), as far as an upload needs it: fields and one file, held in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.errors import CallerError

_BOUNDARY = re.compile(rb"""multipart/form-data\s*;.*?boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))""", re.I | re.S)
_NAME = re.compile(rb'(?:^|[;\s])name="((?:[^"\\]|\\.)*)"', re.I)
_FILENAME = re.compile(rb'filename="((?:[^"\\]|\\.)*)"', re.I)
MOST_PARTS = 32


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    filename: str
    """Empty: a plain field."""
    data: bytes


def read_multipart(content_type: bytes, body: bytes) -> dict[str, Part]:
    """The parts by name, the last of a name. Raises CallerError for anything that isn't a whole form."""
    match = _BOUNDARY.match(content_type.strip())
    if match is None:
        raise CallerError("the content type must be multipart/form-data with a boundary", code="invalid_upload")
    fence = b"--" + (match[1] or match[2])
    pieces = body.split(b"\r\n" + fence) if body.startswith(fence) else (b"\r\n" + body).split(b"\r\n" + fence)
    pieces[0] = pieces[0].removeprefix(fence) if body.startswith(fence) else b""
    if not pieces[-1].startswith(b"--") or len(pieces) > MOST_PARTS:
        raise CallerError("the upload broke off, or has too many parts", code="invalid_upload")
    found = [_part(piece) for piece in pieces[:-1] if piece]
    return {part.name: part for part in found}


def _part(piece: bytes) -> Part:
    head, split, data = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    line = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"content-disposition:")), b"")
    name, filename = _NAME.search(line), _FILENAME.search(line)
    if not split or name is None:
        raise CallerError("a part of the upload has no name", code="invalid_upload")
    return Part(_text(name[1]), _text(filename[1]) if filename else "", data)


def _text(quoted: bytes) -> str:
    return re.sub(rb"\\(.)", rb"\1", quoted).decode("utf-8", "replace")
