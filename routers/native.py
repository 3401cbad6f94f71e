"""Features of a text in C, compiled on first use: one call, in a quarter of the time that Python takes.

The compiler of the machine (`cc`) builds `native.c` once, into a folder of the user's own, or beside the source by
`python -m routers.native` for machines that will have no compiler. Where neither can be had, `opened` is None and
`routers.features` does the same in Python; the environment variable HEADGATE_NATIVE=0 asks for that. Nothing is
downloaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from routers.embedding import IDS, StaticEmbedding, Vector

log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ("-O3", "-shared", "-fPIC", "-w")
_COMPILE_S = 60
_P, _N = ctypes.c_void_p, ctypes.c_longlong
_FLOAT = np.dtype(np.float32)
Cut = tuple[bytes | None, int, int, int]
"""Word pieces of a text as packed `IDS`, their number, the number of them before the tail, and the number of stretches.
"""
HERE: Cut = (None, 0, 0, 0)
"""For a text of ASCII, which C cuts itself."""


class Table:
    """An embedding in the form that C reads. It is thread-safe."""

    def __init__(self, library: ctypes.PyDLL, embedding: StaticEmbedding, tail_words: int, dims: int) -> None:
        """`dims`: length of a whole feature vector. Raises MemoryError."""
        self._kept = vocabulary, rows, scales = embedding.arrays()
        self._table = library.opened(
            vocabulary, len(vocabulary), len(rows), rows.ctypes.data, scales.ctypes.data, rows.shape[1]
        )
        if not self._table:
            raise MemoryError("no room for a table of tokens")
        weakref.finalize(self, library.closed, self._table)
        self._describe, self._tail_words = library.describe, tail_words
        self._room = ctypes.c_char * (dims * _FLOAT.itemsize)

    def vector(self, text: str, cut: Cut, *sizes: int) -> Vector:
        """The feature vector. `sizes` are the request's characters, tokens, turns, tools, images, and whether JSON is
        wanted.
        """
        raw = text.encode("utf-8", "replace")
        room: Any = self._room()
        self._describe(self._table, raw, len(raw), self._tail_words, *cut, *sizes, room)
        return np.frombuffer(room, _FLOAT)


def opened(embedding: StaticEmbedding, tail_words: int, dims: int) -> Table | None:
    """The native table; None where it can't be built, and Python must be used."""
    library = _library()
    return None if library is None else Table(library, embedding, tail_words, dims)


@cache
def _library() -> ctypes.PyDLL | None:
    if os.environ.get("HEADGATE_NATIVE") == "0" or IDS is not np.int64:
        return None
    try:
        return _typed(ctypes.PyDLL(str(_built())))  # a call takes microseconds: to let others run costs as much
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        log.info("features are found by Python alone: %s", error)
        return None


def _typed(library: ctypes.PyDLL) -> ctypes.PyDLL:
    library.opened.argtypes, library.opened.restype = (ctypes.c_char_p, _N, _N, _P, _P, _N), _P
    library.describe.argtypes = (_P, ctypes.c_char_p, _N, _N, ctypes.c_char_p, *[_N] * 9, _P)
    library.describe.restype = library.closed.restype = None
    library.closed.argtypes = (_P,)
    return library


def _built() -> Path:
    """Path of the library for this source and kind of machine: beside the source, else in the user's folder, where it
    is compiled if missing.
    """
    beside = _SOURCE.with_name(_name())
    if beside.is_file():
        return beside
    library = _folder() / beside.name
    if not library.is_file():
        compiled(library)
    return library


def _name() -> str:
    about = _SOURCE.read_bytes() + " ".join((*_FLAGS, platform.machine(), *platform.libc_ver())).encode()
    return f"features-{hashlib.sha256(about).hexdigest()[:24]}.so"


def _folder() -> Path:
    """A folder that only this user can write, because the library in it is executed."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headgate" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except OSError:
        log.debug("%s can't be used", folder)
    return Path(tempfile.mkdtemp(prefix="headgate-native-"))


def compiled(library: Path) -> None:
    """Compile the source to `library`. Raises OSError or SubprocessError."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise OSError("no C compiler is installed")
    descriptor, draft = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(descriptor)
    try:
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", draft, "-lm"]
        subprocess.run(command, capture_output=True, timeout=_COMPILE_S, check=True)
        Path(draft).replace(library)  # at once, whoever else compiles the same
    finally:
        Path(draft).unlink(missing_ok=True)


if __name__ == "__main__":
    compiled(_SOURCE.with_name(_name()))
