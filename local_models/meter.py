"""What a local answer costs: its exact share of the machine's seconds, the cost of one more answer, and the time that a
step should take.

A step computes prompt tokens and decoded tokens together, so its time is modelled as `base + prefill * prompt tokens +
decode * decoded tokens + context * tokens attended to`, fitted by least squares as steps happen. Each step's seconds
(and joules, where the hardware tells) are divided among its requests by that model, and the shares add up to the step.
Prefill and decode are so priced apart, and the cost of one more answer follows from the load. numpy only; time and
energy are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

_PRIOR = np.array([1e-3, 1e-5, 1e-4, 1e-8])
_FORGET = 0.999
_WEIGHT = 1e-4
"""Weight of the prior, in steps."""
_RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Piece:
    """One request's part of a step."""

    prompt_tokens: int
    decoded_tokens: int
    attended_tokens: int

    @property
    def features(self) -> tuple[int, int, int, int]:
        return 0, self.prompt_tokens, self.decoded_tokens, self.attended_tokens


@dataclass(slots=True)
class StepMeter:
    """Learns what steps take, and splits them. `coefficients` are seconds: a step, a prompt token, a decoded
    token, an attended token."""

    coefficients: Vector = field(default_factory=lambda: _PRIOR.copy())
    steps: int = 0
    _gram: Vector = field(default_factory=lambda: np.diag(_WEIGHT / _PRIOR**2))
    _moment: Vector = field(default_factory=lambda: _WEIGHT / _PRIOR)

    def learn(self, pieces: Sequence[Piece], seconds: float, steps: int = 1) -> None:
        """Learn from `steps` steps that took `seconds` together and computed all of the pieces."""
        x, seconds = _total(pieces), seconds / steps
        x[1:] /= steps
        # Relative errors count, so that a long step is not worth a thousand short ones.
        expected_s = max(1e-6, float(x @ self.coefficients))
        self._gram = _FORGET * self._gram + np.outer(x, x) / expected_s**2
        self._moment = _FORGET * self._moment + seconds * x / expected_s**2
        self.steps += 1
        if self.steps % 16 == 0:
            self.coefficients = _nonnegative(self._gram, self._moment)

    def split(self, pieces: Sequence[Piece], amount: float) -> list[float]:
        """Divide a step's seconds or joules among its requests; the shares add up to `amount`."""
        base = self.coefficients[0] / max(1, len(pieces))
        weights = base + _features(pieces) @ self.coefficients
        if weights.sum() <= 0:
            weights = np.ones(len(pieces))
        shares: list[float] = (amount * weights / weights.sum()).tolist()
        return shares

    def step_s(self, decoding: int, context_tokens: float, prompt_tokens: int = 0) -> float:
        """Predicted seconds of a step with `decoding` sequences of that mean context."""
        x = np.array([1.0, prompt_tokens, decoding, prompt_tokens + decoding * context_tokens])
        return float(x @ self.coefficients)

    def answer_s(self, prompt_tokens: int, cached_tokens: int, output_tokens: float, decoding: int) -> float:
        """Seconds of machine time that one more answer adds beside `decoding` sequences that run anyway. An answer
        alone also pays for the base of every step.
        """
        base, prefill, decode, attend = self.coefficients
        computed = prompt_tokens - cached_tokens
        attended = computed * (cached_tokens + prompt_tokens) / 2 + output_tokens * (prompt_tokens + output_tokens / 2)
        own = prefill * computed + decode * output_tokens + attend * attended
        return float(own + base * (1 + output_tokens) * (decoding == 0))


def read_joules(root: Path = _RAPL) -> float | None:
    """Joules counted by the processor's packages since some past moment; None where nothing counts them."""
    counters = sorted(root.glob("intel-rapl:[0-9]/energy_uj")) if root.is_dir() else []
    try:
        values = [int(counter.read_text()) for counter in counters]
    except (OSError, ValueError):
        return None
    return sum(values) / 1e6 if values else None


def _total(pieces: Sequence[Piece]) -> Vector:
    x = _features(pieces).sum(0)
    x[0] = 1.0
    return np.asarray(x, np.float64)


def _features(pieces: Sequence[Piece]) -> Vector:
    return np.array([piece.features for piece in pieces], np.float64)


def _nonnegative(gram: Vector, moment: Vector) -> Vector:
    """Non-negative least squares: where the unconstrained solution has a negative coefficient, by coordinate descent.
    """
    # In units of the prior, because a base and an attended token differ by five orders of magnitude.
    gram, moment = gram * np.outer(_PRIOR, _PRIOR), moment * _PRIOR
    x = np.linalg.lstsq(gram, moment, rcond=None)[0]
    if (x < 0).any():
        x = np.maximum(0.0, x)
        for _ in range(200):
            for at in range(len(x)):
                rest = moment[at] - gram[at] @ x + gram[at, at] * x[at]
                x[at] = max(0.0, rest / gram[at, at])
    return np.asarray(x * _PRIOR, np.float64)
