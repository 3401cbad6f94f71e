"""Kernels as compiled for an H100 or H200 without having one: PTX, binary and resources."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from local_models import kernels, paged


def compiled_product(bits: int) -> Any:
    """A product of four groups of 128 weights."""
    pointers = {
        4: {"x": "*bf16", "packed": "*u8", "scales": "*bf16", "partial": "*fp32"},
        8: {"x": "*bf16", "values": "*i8", "scales": "*bf16", "partial": "*fp32"},
        16: {"x": "*bf16", "weight": "*bf16", "partial": "*fp32"},
    }[bits]
    aligned = {**pointers, **dict.fromkeys(("columns", "inner", "x_stride"), "i32")}
    constants = {"GROUP": 128, "ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS, "GROUPS": 4}
    function = {**kernels.KERNELS, 16: kernels._w16a16}[bits]
    return _compiled(function, aligned, {"rows": "i32"}, constants, stages=5)


def compiled_attention(window: int) -> Any:
    """Paged attention with heads of 128 and blocks of 64 tokens."""
    pointers = {
        "q": "*bf16", "keys": "*bf16", "values": "*bf16", "table": "*i32", "lengths": "*i32", "sums": "*fp32",
        "tops": "*fp32", "totals": "*fp32",
    }  # fmt: skip
    numbers = {"scale": "fp32", "slots": "i32", "table_width": "i32", "parts": "i32"}
    constants = {
        "GROUP": 4, "HEADS": paged._LEAST_HEADS, "D": 128, "WIDTH": 128, "SIZE": 64, "PART": paged.PART_BLOCKS,
        "WINDOW": window,
    }  # fmt: skip
    return _compiled(paged._paged, pointers, numbers, constants, stages=2)


def _compiled(function: Any, aligned: dict[str, str], others: dict[str, str], constants: dict[str, int],
              stages: int) -> Any:  # fmt: skip
    """`aligned`: the types of arguments that are divisible by 16."""
    types = {**aligned, **others, **dict.fromkeys(constants, "constexpr")}
    divisible = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=function, signature=types, constexprs=constants, attrs=divisible)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": stages})
