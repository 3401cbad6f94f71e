"""Reads a JSON text value by value as its bytes come, so that only one value of a large body is in memory.

The contents of a value are not checked here, but by whoever decodes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import count

import msgspec

from gateway.errors import CallerError, TooLarge
from gateway.wire.chunk import BAD_JSON

MAX_NAME_BYTES = 256
_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[^ \t\r\n,:\"{}\[\]]*+")
_TO_BRACKET = re.compile(rb'[^"{}\[\]]*+(?:"(?:[^"\\]++|\\.)*+"[^"{}\[\]]*+)*+', re.DOTALL)
"""Matches everything up to the next bracket, or up to a string that continues in the next piece."""
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


class JsonPieces:
    """One JSON text. `names` and `items` stop before each value, which must be read with `value` before they go on."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece = b""
        self._at = 0

    def names(self) -> Iterator[str]:
        """The names of an object's fields. Raises CallerError where there is no object."""
        self._take("{")
        if self.peek() == "}":
            self._take("}")
            return
        while True:
            name = self._name()
            self._take(":")
            yield name
            if self._take(",", "}") == "}":
                return

    def items(self) -> Iterator[int]:
        """The indices of an array's items. Raises CallerError where there is no array."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        for place in count():
            yield place
            if self._take(",", "]") == "]":
                return

    def peek(self) -> str:
        """The next character that isn't white space; empty at the end."""
        while True:
            space = _SPACE.match(self._piece, self._at)
            assert space is not None, "it matches nothing too"
            self._at = space.end()
            if self._at < len(self._piece):
                return chr(self._piece[self._at])
            if not self._next():
                return ""

    def value(self, max_bytes: int) -> bytes:
        """The bytes of the next value. Raises TooLarge above `max_bytes`, and CallerError for an incomplete value."""
        begins, start = self.peek(), self._at
        parts: list[bytes] = []
        size = depth = 0
        in_string = begins == '"'
        self._at += in_string
        while True:
            if begins and begins in '"{[':
                depth, in_string, ended = self._walk(depth, in_string)
            else:
                scalar = _SCALAR.match(self._piece, self._at)
                assert scalar is not None, "it matches nothing too"
                self._at = scalar.end()
                ended = self._at < len(self._piece)
            parts.append(self._piece[start : self._at])
            size += len(parts[-1])
            if size > max_bytes:
                raise TooLarge(f"longer than {max_bytes:,} bytes")
            if ended:
                return b"".join(parts)
            if not self._next():
                raise CallerError("not JSON: it ends too early")
            start = self._at

    def end(self) -> None:
        """Raises CallerError where the text continues."""
        if more := self.peek():
            raise CallerError(f"not JSON: {more!r} behind its end")

    def _walk(self, depth: int, in_string: bool) -> tuple[int, bool, bool]:
        """Advance to the end of a string, object or array, or of the piece. Returns the depth, whether that is inside a
        string, and whether the value has ended.
        """
        piece, at = self._piece, self._at
        while at < len(piece):
            match = (_IN_STRING if in_string else _TO_BRACKET).match(piece, at)
            assert match is not None, "it matches nothing too"
            at = match.end()
            if at == len(piece) or (in_string and piece[at] == 92):  # a backslash whose other half is in the next piece
                break
            mark, at = piece[at], at + 1
            if mark == 34:  # a quotation mark
                in_string = not in_string
            else:
                depth += 1 if mark in b"{[" else -1
            if depth <= 0 and not in_string:
                self._at = at
                return depth, in_string, True
        self._at = at
        return depth, in_string, False

    def _name(self) -> str:
        name = self.value(MAX_NAME_BYTES)
        try:
            return msgspec.json.decode(name, type=str)
        except BAD_JSON:
            raise CallerError(f"not JSON: {name[:40]!r} is not a field's name") from None

    def _take(self, *marks: str) -> str:
        mark = self.peek()
        if mark not in marks or not mark:
            raise CallerError(f"not JSON: {' or '.join(map(repr, marks))} expected, not {mark!r}")
        self._at += 1
        return mark

    def _next(self) -> bool:
        """Append the next piece to the rest of this one; False where there is none."""
        for piece in self._pieces:
            if piece:
                self._piece, self._at = self._piece[self._at :] + piece, 0
                return True
        return False
