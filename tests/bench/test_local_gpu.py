"""The GPU bench where there is none, and its sums."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")

import torch

from local_models.shape import shape_of
from tests.bench.local_gpu import MODELS, WANTED, bytes_moved, ceiling_tokens_s, reached


def test_without_a_gpu_nothing_is_claimed() -> None:
    """Every row and every goal says that it was not measured."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "tests.bench.local_gpu"]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {said[name] for name in ("gpu", "kernels", "attention", "decode")} == {"not measured"}
    assert set(said["reached"].values()) == {"not measured"}


def test_bytes_are_those_of_the_weights_and_what_goes_in_and_out() -> None:
    """Four bits at 8192 x 8192: 32 MiB of weights, a scale for 128 of them, one row in and out."""
    assert bytes_moved(1, 8192, 8192, 4) == 2**25 + 2 * 2**26 // 128 + 4 * 8192
    assert bytes_moved(1, 8192, 8192, 16) == 2**27 + 4 * 8192


@pytest.mark.parametrize(("bits", "expected"), [(16, 303), (8, 603), (4, 1084)])
def test_a_ceiling_is_bandwidth_over_bytes(bits: int, expected: float) -> None:
    """Qwen2.5-7B at batch 1 and 1,024 tokens of context on 4.3 TB/s."""
    shape = shape_of(MODELS["qwen2.5-7b"], ())
    assert ceiling_tokens_s(shape, bits, 1, 1024, 4300) == pytest.approx(expected, rel=0.03)


def test_goals_are_told_beside_what_was_measured() -> None:
    """A speed-up found at one number of rows is told there and nowhere else."""
    row = {"matrix": "square 8192", "rows": 1, "kernel": "W4A16", "times_bf16": 2.4}
    told = list(reached([row], []).values())
    assert told == [2.4] + ["not measured"] * (len(WANTED) + 1)
