"""Which device an engine computes on: what the operator asked for, or a reason why it can't be had."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from local_models.errors import LocalModelError


def device_for(wanted: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1` and so on; `auto` is CUDA where torch and Triton are ready for it.

    Raises LocalModelError where what was asked for is not there.
    """
    if wanted == "auto":
        return torch.device("cuda" if not _missing() else "cpu")
    kind, colon, number = wanted.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdigit())):
        raise LocalModelError(f"device {wanted!r} is none of cpu, cuda, cuda:N and auto")
    if kind == "cuda" and (reason := _missing(int(number or 0))):
        raise LocalModelError(f"device {wanted}: {reason}")
    return torch.device(wanted)


def _missing(number: int = 0) -> str:
    """What a GPU lacks; empty: nothing."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device here"
    if number >= torch.cuda.device_count():
        return f"torch finds {torch.cuda.device_count()} CUDA devices here"
    return "" if find_spec("triton") else "its kernels need the package triton"
