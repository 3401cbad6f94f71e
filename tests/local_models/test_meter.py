"""The cost of a local answer."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_models.meter import Piece, StepMeter, read_joules
from tests.local_models.checkpoints import engine, greedy, prompts, run

TRUE = np.array([2e-3, 5e-5, 3e-4, 1e-7])
pieces = st.lists(
    st.builds(Piece, st.integers(0, 500), st.integers(0, 5), st.integers(0, 100_000)), min_size=1, max_size=8
)


def trained_meter(steps: int = 600, noise: float = 0.0) -> StepMeter:
    """A meter that has observed steps of known true cost."""
    rng = np.random.default_rng(0)
    meter = StepMeter()
    for _ in range(steps):
        batch = [
            Piece(int(rng.integers(0, 300)) * int(rng.random() < 0.3), 1, int(rng.integers(1, 20_000)))
            for _ in range(rng.integers(1, 12))
        ]
        x = np.sum([piece.features for piece in batch], axis=0).astype(float)
        x[0] = 1.0
        meter.learn(batch, float(x @ TRUE) * (1 + noise * rng.standard_normal()))
    return meter


@given(pieces, st.floats(0, 100))
def test_shares_add_up_to_the_step(batch: list[Piece], amount: float) -> None:
    """Nothing is lost or added, and no share is negative."""
    shares = StepMeter().split(batch, amount)
    assert sum(shares) == pytest.approx(amount)
    assert all(share >= 0 for share in shares)


@pytest.mark.parametrize(("noise", "within"), [(0.0, 0.02), (0.2, 0.2)])
def test_the_time_of_a_step_is_learned(noise: float, within: float) -> None:
    """Steps with any batch and prompt are predicted, from noisy timings too."""
    meter = trained_meter(noise=noise)
    for decoding, context, prompt in ((1, 100, 0), (8, 3000, 0), (4, 1000, 256), (12, 200, 64)):
        x = np.array([1.0, prompt, decoding, prompt + decoding * context])
        assert meter.step_s(decoding, context, prompt) == pytest.approx(float(x @ TRUE), rel=within)


@given(st.integers(0, 2**32))
def test_no_price_is_negative(seed: int) -> None:
    """That holds for any timings."""
    rng = np.random.default_rng(seed)
    meter = StepMeter()
    for _ in range(32):
        meter.learn([Piece(int(rng.integers(0, 9)), 1, int(rng.integers(0, 99)))], float(rng.random()))
    assert (meter.coefficients >= 0).all()


def test_a_batch_and_a_cached_prefix_make_an_answer_cheaper() -> None:
    """Alone an answer pays the base cost of each step; cached tokens aren't computed."""
    meter = trained_meter()
    alone = meter.answer_s(200, 0, 50, decoding=0)
    assert alone > meter.answer_s(200, 0, 50, decoding=4) > meter.answer_s(200, 192, 50, decoding=4)


def test_energy_is_none_without_a_counter(tmp_path: Path) -> None:
    """With counters it is their sum."""
    assert read_joules(tmp_path / "absent") is None
    for package in (0, 1):
        (tmp_path / f"intel-rapl:{package}").mkdir()
        (tmp_path / f"intel-rapl:{package}" / "energy_uj").write_text("1500000\n")
    assert read_joules(tmp_path) == 3.0


def test_an_engine_charges_its_requests_for_all_its_time() -> None:
    """The compute seconds of all requests add up to those of all steps."""
    some = engine()
    answers = run(some, [greedy(str(at), prompt, 8) for at, prompt in enumerate(prompts(6, seed=2))])
    charged = sum(answer.last.usage.compute_s for answer in answers.values())
    assert charged == pytest.approx(some.busy_s) and charged > 0
