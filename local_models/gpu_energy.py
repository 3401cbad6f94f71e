"""How much energy a GPU has used, by its driver's own counter (NVML), which is read and never set."""

from __future__ import annotations

import ctypes
from functools import cache

_LIBRARY = "libnvidia-ml.so.1"


def read_gpu_joules(number: int = 0, library: str = _LIBRARY) -> float | None:
    """Joules since the driver was loaded; None where there is no driver, no such GPU or no counter (before Volta).

    `number` is NVML's own, which is CUDA's where `CUDA_VISIBLE_DEVICES` hides none.
    """
    nvml = _nvml(library)
    if nvml is None:
        return None
    device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device)):
        return None
    if nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
        return None
    return millijoules.value / 1000


@cache
def _nvml(library: str) -> ctypes.CDLL | None:
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    return None if nvml.nvmlInit_v2() else nvml
