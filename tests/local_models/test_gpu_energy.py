"""A GPU's energy, as reported by its driver's library."""

import subprocess
from pathlib import Path
from shutil import which

import pytest

from local_models.gpu_energy import read_gpu_joules

_DRIVER = """
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned at, void **device) { *device = (void *) 7; return at > 1; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    *mj = 12345678901234;
    return device != (void *) 7;
}
"""


def test_without_a_driver_there_is_no_figure() -> None:
    """Without the library there are no joules."""
    assert read_gpu_joules(library="libno-such-driver.so.1") is None


@pytest.mark.skipif(which("cc") is None, reason="no C compiler")
def test_the_drivers_counter_is_converted_to_joules(tmp_path: Path) -> None:
    """A library with NVML's three functions counts millijoules in 64 bits; an unknown GPU has no figure."""
    source, library = tmp_path / "nvml.c", tmp_path / "libnvml.so"
    source.write_text(_DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    assert read_gpu_joules(0, str(library)) == pytest.approx(12345678901.234)
    assert read_gpu_joules(2, str(library)) is None
