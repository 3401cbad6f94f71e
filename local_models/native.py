"""The engine's arithmetic in C, compiled on the machine where it runs: products, attention and the steps between them.

torch's libraries serve large batches well and small ones badly: a lone row costs as much as four, bfloat16 without
hardware for it is slower than float32, and attention is one call a sequence and layer. `native.c` computes the same for
processors with AVX2, its sums in an order that depends on nothing but the row, so that an answer's bits never depend on
its batch and nothing is padded.

The compiler of the machine (`cc`) builds it once, into a folder of the user's own. Where there is no compiler, no AVX2,
or the result fails its test, `kernels()` is None and torch computes everything as before; the environment variable
HEADGATE_NATIVE=0 asks for that. Nothing is downloaded.
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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-w")
SLOTS, STEP_BYTES = 8, 4
"""Number of slots of eight-bit keys or values that are interleaved, and bytes of the scale of each."""
_PANEL, _GROUP = 16, 128
_COMPILE_S = 120
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_MOST_BLOCK, _MOST_HEAD = 256, 256
_P, _L, _I, _F = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "product": (_P, _P, _P, _P, _L, _L, _L, _I, _P, _I),
    "product8": (_P, _P, _P, _P, _P, _L, _L, _L, _I, _P, _I),
    "attend": (_P, _L, _P, _P, _P, _I, _P, _P, _P, _P, _P, _L, _L, _L, _L, _L, _L, _F, _I, _I, _I),
    "norm": (_P, _P, _P, _L, _L, _F, _I),
    "place": (_P, _P, _P, _F, _P, _P, _P, _P, _P, _P, _L, _L, _L, _L, _L, _I, _I),
    "gate": (_P, _P, _L, _L, _I),
    "decode": (_P, _P, _P, _L, _P, _L, _P, _P, _P, _P, _P, _P, _P, _L, _P, _P, _P, _I),
    "forward": (_P, _P, _L, _P, _P, _P, _L, _I, _P, _P, _P, _P, _P, _P, _L, _P, _P, _I),
}


@cache
def kernels() -> Kernels | None:
    """The compiled functions, built on first use; None where they can't be used and torch computes."""
    if os.environ.get("HEADGATE_NATIVE") == "0" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    try:
        found = Kernels(ctypes.CDLL(str(_built(_folder()))))
        found.check()
    except (OSError, subprocess.SubprocessError, KernelMismatch) as error:
        _log.info("the engine computes with torch alone: %s", error)
        return None
    return found


class KernelMismatch(RuntimeError):
    """The compiled code does not compute what it should."""


def _folder() -> Path:
    """A folder only this user can write: what lies there is run."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "headgate" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="headgate-native-"))
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or not os.access(folder, os.W_OK):
        return Path(tempfile.mkdtemp(prefix="headgate-native-"))
    return folder


def _built(folder: Path) -> Path:
    """The library for this source, compiler and processor, compiled unless it is there."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise OSError("no C compiler is installed")
    about = [_SOURCE.read_bytes(), " ".join(_FLAGS).encode(), compiler.encode(), _processor().encode()]
    library = folder / f"native-{hashlib.sha256(b'|'.join(about)).hexdigest()[:24]}.so"
    if not library.is_file():
        _compile(compiler, library)
    return library


def _processor() -> str:
    """What `-march=native` depends on; a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def _compile(compiler: str, library: Path) -> None:
    descriptor, name = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(descriptor)
    command = [compiler, *_FLAGS, str(_SOURCE), "-o", name, "-lm"]
    try:
        threaded = subprocess.run([*command, "-fopenmp"], capture_output=True, timeout=_COMPILE_S, check=False)
        if threaded.returncode:
            subprocess.run(command, capture_output=True, timeout=_COMPILE_S, check=True)
        Path(name).replace(library)  # at once, whoever else compiles the same
    finally:
        Path(name).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Rows:
    """What attention needs to know of a step's segments, as C reads it."""

    first: Tensor
    count: Tensor
    start: Tensor
    table: Tensor
    blocks: Tensor


class Matrix(ctypes.Structure):
    """`matrix` of native.c."""

    _fields_ = (("w", _P), ("scales", _P), ("bias", _P), ("columns", _L), ("k", _L))


class Kernels:
    """The functions of `native.c` on torch's tensors, which must be contiguous and on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, _L if name == "decode" else None

    def takes(self, dtype: torch.dtype, head_dim: int, block_tokens: int) -> bool:
        """Whether attention over such heads and blocks is computed here."""
        return dtype in _TYPES and head_dim % 8 == 0 and head_dim <= _MOST_HEAD and block_tokens <= _MOST_BLOCK

    def takes_bytes(self, head_dim: int, block_tokens: int) -> bool:
        """Whether keys and values of such heads and blocks may be kept in eight bits."""
        return head_dim % 16 == 0 and block_tokens % SLOTS == 0

    def product(self, x: Tensor, panels: Tensor, bias: Tensor | None, columns: int) -> Tensor:
        """`[rows, k] -> [rows, columns]`."""
        rows, k = x.shape
        y = torch.empty(rows, columns, dtype=x.dtype)
        kind = _TYPES[x.dtype]
        room = torch.empty(rows * k) if kind else x
        self.library.product(
            x.data_ptr(), panels.data_ptr(), _at(bias), y.data_ptr(), rows, columns, k, kind, room.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return y

    def product8(self, x: Tensor, panels: Tensor, scales: Tensor, bias: Tensor | None, columns: int) -> Tensor:
        """`product` with weights of eight bits, activations rounded to whole numbers of at most 64, group by group."""
        rows, k = x.shape
        y = torch.empty(rows, columns, dtype=x.dtype)
        room = torch.empty(rows * (k + 3 + 8 * -(-k // _GROUP)), dtype=torch.uint8)
        self.library.product8(
            x.data_ptr(), panels.data_ptr(), scales.data_ptr(), _at(bias), y.data_ptr(), rows, columns, k,
            _TYPES[x.dtype], room.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return y

    def attend(
        self, qkv: Tensor, keys: Tensor, values: Tensor, rows: Rows, heads: int, window: int, block_tokens: int
    ) -> Tensor:
        """Attended values `[rows, heads * d]` of the queries that begin each row of `qkv`; keys and values are one
        layer's, `[kv head, slot, d]`, or of eight bits as `local_models.attention.KVCache` keeps them."""
        kv_heads, slots, _ = keys.shape
        d = _head_dim(keys)
        out = torch.empty(qkv.shape[0], heads * d, dtype=qkv.dtype)
        self.library.attend(
            qkv.data_ptr(), qkv.shape[1], keys.data_ptr(), values.data_ptr(), out.data_ptr(), len(rows.first),
            rows.first.data_ptr(), rows.count.data_ptr(), rows.start.data_ptr(), rows.table.data_ptr(),
            rows.blocks.data_ptr(), block_tokens, window, heads, kv_heads, slots, d, d**-0.5, _TYPES[qkv.dtype],
            int(keys.dtype == torch.int8), torch.get_num_threads(),
        )  # fmt: skip
        return out

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root mean square norm of each row."""
        y = torch.empty_like(x)
        self.library.norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.shape[0], x.shape[1], eps, _TYPES[x.dtype])
        return y

    def place(
        self, qkv: Tensor, norms: tuple[Tensor, Tensor] | None, eps: float, turns: tuple[Tensor, Tensor],
        positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor,
    ) -> None:  # fmt: skip
        """Norm (Qwen3) and rotate queries and keys in place, and put keys and values into their slots."""
        kv_heads, room, _ = keys.shape
        d = _head_dim(keys)
        heads = qkv.shape[1] // d - 2 * kv_heads
        q_norm, k_norm = norms if norms is not None else (None, None)
        self.library.place(
            qkv.data_ptr(), _at(q_norm), _at(k_norm), eps, turns[0].data_ptr(), turns[1].data_ptr(),
            positions.data_ptr(), slots.data_ptr(), keys.data_ptr(), values.data_ptr(), len(slots), heads, kv_heads,
            room, d, _TYPES[qkv.dtype], int(keys.dtype == torch.int8),
        )  # fmt: skip

    def gate(self, both: Tensor) -> Tensor:
        """`silu(gate) * up` of rows `[gate | up]`."""
        rows, width = both.shape
        y = torch.empty(rows, width // 2, dtype=both.dtype)
        self.library.gate(both.data_ptr(), y.data_ptr(), rows, width // 2, _TYPES[both.dtype])
        return y

    def check(self) -> None:
        """Raise `KernelMismatch` unless known products come out right, alone and in company."""
        generator = torch.Generator().manual_seed(2)
        weight = torch.randn(53, 75, generator=generator)
        integers = torch.randint(-127, 128, (53, 75), generator=generator, dtype=torch.int8)
        for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
            x = torch.randn(13, 75, generator=generator).to(dtype)
            dense = Panels(self, weight.to(dtype))
            _require_close(dense(x), x.double() @ weight.to(dtype).double().T, near)
            _require_same(dense, x)
            whole = Int8Panels(self, integers, torch.ones(53))
            _require_close(whole(x), x.double() @ integers.double().T, 2e-2)
            _require_same(whole, x)


class Panels:
    """A dense matrix laid out for `product`; bits of a row depend on the row alone."""

    __slots__ = ("_bias", "_columns", "_kernels", "_panels")

    def __init__(self, kernels: Kernels, weight: Tensor, bias: Tensor | None = None) -> None:
        self._kernels = kernels
        self._columns, k = weight.shape
        self._panels = _padded(weight).view(-1, _PANEL, k).transpose(1, 2).contiguous()
        self._bias = None if bias is None else _padded(bias.float())

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.product(x, self._panels, self._bias, self._columns)

    def matrix(self) -> Matrix:
        """What a whole pass in C needs to know; valid while this object lives."""
        return Matrix(self._panels.data_ptr(), None, _at(self._bias), self._columns, self._panels.shape[1])


class Int8Panels:
    """A matrix of signed bytes with one scale a row of it, laid out for `product8`."""

    __slots__ = ("_bias", "_columns", "_k", "_kernels", "_panels", "_scales")

    def __init__(self, kernels: Kernels, values: Tensor, scales: Tensor, bias: Tensor | None = None) -> None:
        self._kernels = kernels
        self._columns, self._k = values.shape
        signed = torch.nn.functional.pad(_padded(values), (0, -self._k % 4))
        fours = (signed.to(torch.int16) + 128).to(torch.uint8).view(-1, _PANEL, signed.shape[1] // 4, 4)
        self._panels = fours.transpose(1, 2).contiguous()
        self._scales = _padded(scales.float().flatten())
        self._bias = None if bias is None else _padded(bias.float())

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.product8(x, self._panels, self._scales, self._bias, self._columns)

    def matrix(self) -> Matrix:
        """What a whole pass in C needs to know; valid while this object lives."""
        return Matrix(self._panels.data_ptr(), self._scales.data_ptr(), _at(self._bias), self._columns, self._k)


def _head_dim(slots: Tensor) -> int:
    """Dimensions of a head, of its keys `[kv head, slot, d]`; eight bits carry a step of four bytes beside them."""
    return int(slots.shape[2]) - (STEP_BYTES if slots.dtype == torch.int8 else 0)


def _padded(rows: Tensor) -> Tensor:
    """The rows padded with zeros to whole panels."""
    more = -rows.shape[0] % _PANEL
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _require_close(found: Tensor, exact: Tensor, near: float) -> None:
    off = float((found.double() - exact).norm() / exact.norm())
    if not off < near:
        raise KernelMismatch(f"a product is off by {off:.1e}")


def _require_same(linear: Panels | Int8Panels, x: Tensor) -> None:
    whole = linear(x)
    if not all(torch.equal(linear(x[:rows].contiguous()), whole[:rows]) for rows in range(1, len(x))):
        raise KernelMismatch("a row's product depends on its company")
