"""Which device an engine computes on: what the operator asked for, or a reason why it can't be had."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch

from local_models.errors import LocalModelError
from local_models.gpu_energy import read_gpu_joules
from local_models.meter import read_joules


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


def joules_counter(device: torch.device) -> Callable[[], float | None]:
    """Reads the energy that a device has used since some past moment: a GPU's own, else the processor's packages';
    None each time where nothing counts it."""
    if device.type == "cuda":
        return partial(read_gpu_joules, device.index or 0)
    return read_joules if read_joules() is not None else lambda: None


def _missing(number: int = 0) -> str:
    """What a GPU lacks; empty: nothing."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device here"
    if number >= torch.cuda.device_count():
        return f"torch finds {torch.cuda.device_count()} CUDA devices here"
    return "" if find_spec("triton") else "its kernels need the package triton"
