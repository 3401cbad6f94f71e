"""GPU kernels without a GPU: run by Triton's interpreter, and compiled for sm_90."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# in a process of its own, because whether kernels are interpreted is decided when they are defined
_INTERPRETED = """
import torch
from local_models.grouped import joined
from local_models.kernels import MOST_ROWS, GroupLinear, RowsLinear
from local_models.quant import quantize

torch.manual_seed(0)
for bits in (4, 8):
    for count, rows, inner, group in ((1, 64, 128, 64), (5, 100, 256, 128), (19, 64, 128, 32)):
        packed = quantize(torch.randn(rows, inner) * 0.02, bits, group)
        x, bias = torch.randn(count, inner), torch.randn(rows)
        exact = x.double() @ packed.expand().double().T + bias
        off = (GroupLinear(packed, bias)(x) - exact).norm() / exact.norm()
        assert off < 1e-5, (bits, count, float(off))
        again = GroupLinear(packed, bias)(x)
        assert torch.equal(again, GroupLinear(packed, bias)(x))
    many = torch.randn(MOST_ROWS + 1, inner)
    far = GroupLinear(packed, bias, invariant=False)(many) - (many @ packed.expand().T + bias)
    assert far.norm() < 1e-4 * many.norm()
    # A row of 192 in one group, and one of 96 in another: cut to what both can be cut to, no number changed.
    parts = [quantize(torch.randn(32, 192), bits, 192), quantize(torch.randn(32, 192), 8, 96)]
    together = joined(parts)
    assert (together.bits, together.group) == (8, 32)
    assert torch.equal(together.expand(), torch.cat([part.expand() for part in parts]))
for count, rows, inner in ((1, 64, 128), (19, 100, 96)):
    weight, x, bias = torch.randn(rows, inner), torch.randn(count, inner), torch.randn(rows)
    exact = x.double() @ weight.double().T + bias
    assert (RowsLinear(weight, bias)(x) - exact).norm() < 1e-5 * exact.norm()
print("exact")
"""

_COMPILED = """
import sys
from tests.local_models.sm90 import compiled_product

kernel = compiled_product(int(sys.argv[1]))
sys.stdout.write(kernel.asm["ptx"])
open(sys.argv[2], "wb").write(kernel.asm["cubin"])
"""


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """The standard output of a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_products_equal_those_of_the_dequantized_weights() -> None:
    """With four and eight bits, one row and many, and more than a program holds, they equal the dense product in
    float64.
    """
    assert run_python(_INTERPRETED, TRITON_INTERPRET="1").strip() == "exact"


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_kernel_compiles_for_sm90(bits: int, tmp_path: Path) -> None:
    """It uses tensor cores and asynchronous copies, and no register is spilled."""
    binary = tmp_path / "kernel.cubin"
    ptx = run_python(_COMPILED, str(bits), str(binary), TRITON_CACHE_DIR=str(tmp_path))
    assert "sm_90" in ptx and "mma.sync" in ptx and "cp.async" in ptx
    assert not re.search(r"\b(ld|st)\.local", ptx)
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (
        int(found[1]) for name in ("REG", "STACK", "LOCAL") if (found := re.search(rf"{name}:(\d+)", usage))
    )
    assert registers <= 168 and stack == 0 and local == 0
