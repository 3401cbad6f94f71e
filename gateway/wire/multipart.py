"""multipart/form-data (RFC 7578), as far as uploads need it: fields and files, parsed as their bytes come."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO
from typing import IO

from gateway.errors import CallerError

_BOUNDARY = re.compile(rb"""multipart/form-data\s*;.*?boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))""", re.I | re.S)
_NAME = re.compile(rb'(?:^|[;\s])name="((?:[^"\\]|\\.)*)"', re.I)
_FILENAME = re.compile(rb'filename="((?:[^"\\]|\\.)*)"', re.I)
MAX_PARTS = 64
MAX_HEAD_BYTES = 16 * 1024
"""Most bytes of one part's headers."""


class Part:
    """One field or file."""

    def __init__(self, name: str, filename: str, file: IO[bytes]) -> None:
        self.name = name
        self.filename = filename
        """Empty for a plain field."""
        self.file = file
        self.begins = 0
        """Offset of its data in the form, in bytes."""
        self.bytes = 0

    @property
    def data(self) -> bytes:
        self.file.seek(0)
        return self.file.read()


class Form:
    """Parses a form incrementally. Raises CallerError for anything that isn't a form."""

    def __init__(self, content_type: bytes, open_part: Callable[[], IO[bytes]]) -> None:
        match = _BOUNDARY.match(content_type.strip())
        if match is None:
            raise CallerError("the content type must be multipart/form-data with a boundary", code="invalid_upload")
        self.parts: list[Part] = []
        self.fence = b"--" + (match[1] or match[2])
        """The delimiter before each part: `--` and the boundary."""
        self._fence = b"\r\n" + self.fence
        self._open_part = open_part
        self._held = bytearray(b"\r\n")  # the first fence need not begin a line
        self._passed = -2
        """Bytes of the form before those in `_held`."""
        self._step: Callable[[], bool] = self._pass
        self._part: Part | None = None

    def feed(self, data: bytes) -> None:
        self._held += data
        while self._step():
            pass

    def end(self) -> dict[str, Part]:
        """Parts by name, the last one of each name. Raises CallerError where the form is incomplete."""
        if self._step != self._ignore:
            raise CallerError("the upload is incomplete", code="invalid_upload")
        return {part.name: part for part in self.parts}

    def _drop(self, size: int) -> None:
        del self._held[:size]
        self._passed += size

    def _pass(self) -> bool:
        """Take a part's data up to the next fence; data before the first fence is ignored."""
        at = self._held.find(self._fence)
        size = max(0, len(self._held) - len(self._fence)) if at < 0 else at
        if self._part is not None:
            self._part.file.write(self._held[:size])
            self._part.bytes += size
        self._drop(size if at < 0 else size + len(self._fence))
        if at >= 0:
            self._step = self._begin
        return at >= 0

    def _begin(self) -> bool:
        """Take a part's headers, or the end of the form."""
        if self._held.startswith(b"--"):
            self._step = self._ignore
            return True
        head, split, _ = self._held.partition(b"\r\n\r\n")
        if not split and len(head) <= MAX_HEAD_BYTES:
            return False
        name, filename = _named(bytes(head))
        if not split or name is None or len(self.parts) >= MAX_PARTS:
            why = f"a part of the upload has not exactly one name or a head too long, or there are over {MAX_PARTS}"
            raise CallerError(why, code="invalid_upload")
        self._part = Part(name, filename, self._open_part())
        self.parts.append(self._part)
        self._drop(len(head) + 4)
        self._part.begins = self._passed
        self._step = self._pass
        return True

    def _ignore(self) -> bool:
        self._held.clear()
        return False


def read_multipart(content_type: bytes, body: bytes) -> dict[str, Part]:
    """The parts of a complete form. Raises CallerError."""
    form = Form(content_type, BytesIO)
    form.feed(body)
    return form.end()


def _named(head: bytes) -> tuple[str | None, str]:
    """The part's name and file name. The name is None where there is none or more than one, since parsers differ in
    which one they use.
    """
    lines = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-disposition:")]
    line = lines[0] if len(lines) == 1 else b""
    names, filename = _NAME.findall(line), _FILENAME.search(line)
    return _text(names[0]) if len(names) == 1 else None, _text(filename[1]) if filename else ""


def _text(quoted: bytes) -> str:
    return re.sub(rb"\\(.)", rb"\1", quoted).decode("utf-8", "replace")
