"""A job's prompts in one file: written one by one, read by number, so that no more than one body is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.call import SURFACES


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request of the job, ready for the request path."""

    index: int
    """Its row in every array of the plan."""
    line: int
    """Number of its line in the input, or of its row in a table, from 1. The journal and providers identify it by this
    number, because another plan of the same input may give it another index.
    """
    custom_id: str
    surface: str
    """chat | completions | embeddings | responses | messages"""
    url: str
    body: bytes
    """A JSON object; its `model` is a route or a model that this gateway knows."""
    text: str
    """Text of the last user turn."""
    floor: float = 0.0
    """Least predicted quality, in [0, 1]; 0: any."""
    reference: str = ""
    """The right answer, where the input has it; never sent to a provider."""


class _Line(msgspec.Struct, omit_defaults=True):
    line: int
    custom_id: str
    url: str
    body: msgspec.Raw
    text: str = ""
    floor: float = 0.0
    reference: str = ""


_encode_line = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(_Line).decode


def record_of(
    line: int, custom_id: str, url: str, body: bytes, text: str, floor: float = 0.0, reference: str = ""
) -> bytes:
    """A prompt as one line of the plan's file."""
    return _encode_line(_Line(line, custom_id, url, msgspec.Raw(body), text, floor, reference)) + b"\n"


class PromptWriter:
    """Writes prompts one after the other, so that no more than one body is in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("wb")
        self._ends = [0]
        self._lines: list[int] = []

    def add(
        self, line: int, custom_id: str, url: str, body: bytes, text: str, floor: float = 0.0, reference: str = ""
    ) -> None:
        self.put_all([record_of(line, custom_id, url, body, text, floor, reference)], [line])

    def put_all(self, records: Sequence[bytes], lines: Sequence[int]) -> None:
        """Append prompts as `record_of` makes them, with their line numbers, in the order of the input."""
        self._file.write(b"".join(records))
        self._ends += accumulate(map(len, records), initial=self._ends.pop())
        self._lines += lines

    def close(self) -> Prompts:
        self._file.close()
        return Prompts(self._path, np.array(self._ends, np.int64), np.array(self._lines, np.int64))


class Prompts(Sequence[Prompt]):
    """The job's prompts, read from their file when asked for."""

    def __init__(self, path: Path, ends: NDArray[np.int64], lines: NDArray[np.int64]) -> None:
        """`ends`: byte offsets, shape (n + 1,), the first zero. `lines`: shape (n,), ascending."""
        self.path = path
        self.ends = ends
        self.lines = lines

    @cached_property
    def _file(self) -> BinaryIO:
        return self.path.open("rb")

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start, end = self.ends[place : place + 2].tolist()
        self._file.seek(start)
        return _prompt(place, self._file.read(end - start))

    def place_of(self, line: int) -> int | None:
        """Index of the prompt on this line of the input; None where that line is no prompt of its own."""
        place = int(np.searchsorted(self.lines, line))
        return place if place < len(self) and self.lines[place] == line else None

    def __iter__(self) -> Iterator[Prompt]:
        with self.path.open("rb") as file:
            for place, record in enumerate(file):
                yield _prompt(place, record)


def _prompt(index: int, record: bytes) -> Prompt:
    line = _decode_line(record)
    return Prompt(
        index, line.line, line.custom_id, SURFACES[line.url], line.url, bytes(line.body), line.text, line.floor,
        line.reference,
    )  # fmt: skip
