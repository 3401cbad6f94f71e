"""The format of a segment file: a sequence of frames of marker, length, CRC-32 and payload.

A reader needs nothing but the bytes: it distinguishes an incomplete tail from damage, and after damage finds the next
whole frame by its marker. It never returns a payload with a wrong checksum as a record.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

MARKER = b"\xa7HG\x01"
HEADER = Struct("<4sII")
HEADER_BYTES = HEADER.size
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
SUFFIX = ".seg"


@dataclass(frozen=True, slots=True)
class Frame:
    """One record's bytes and their offsets in the file. `damaged`: bytes between valid frames, without a checksum."""

    start: int
    end: int
    payload: bytes
    damaged: bool = False


def seal(buffer: bytearray) -> None:
    """Write the header into the first HEADER_BYTES of a buffer whose rest is the payload."""
    crc = zlib.crc32(memoryview(buffer)[HEADER_BYTES:])
    HEADER.pack_into(buffer, 0, MARKER, len(buffer) - HEADER_BYTES, crc)


def framed(payload: bytes) -> bytes:
    """A payload with its header."""
    buffer = bytearray(HEADER_BYTES) + payload
    seal(buffer)
    return bytes(buffer)


def read_frames(data: bytes, *, final: bool, base: int = 0) -> Iterator[Frame]:
    """Frames of `data`, whose first byte has the offset `base` in the file.

    With `final`, no more bytes will be written, so an incomplete tail is damage; otherwise it is a frame that is still
    being written, and reading stops before it.
    """
    at = 0
    while at < len(data):
        end = _whole_frame(data, at)
        if end:
            yield Frame(base + at, base + end, data[at + HEADER_BYTES : end])
            at = end
            continue
        end = _next_frame(data, at + 1)
        if end == len(data) and not final:
            return
        yield Frame(base + at, base + end, data[at:end], damaged=True)
        at = end


def _whole_frame(data: bytes, at: int) -> int:
    """End of the valid frame that starts at `at`; 0 where there is none."""
    if len(data) - at < HEADER_BYTES:
        return 0
    marker, length, crc = HEADER.unpack_from(data, at)
    end: int = at + HEADER_BYTES + length
    if marker != MARKER or length > MAX_PAYLOAD_BYTES or end > len(data):
        return 0
    return end if zlib.crc32(memoryview(data)[at + HEADER_BYTES : end]) == crc else 0


def _next_frame(data: bytes, at: int) -> int:
    """Start of the next valid frame at or after `at`; the end of the data where there is none."""
    while (at := data.find(MARKER, at)) >= 0:
        if _whole_frame(data, at):
            return at
        at += 1
    return len(data)
