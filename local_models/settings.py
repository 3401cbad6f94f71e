"""Chooses engine settings for a model, a machine and a workload, by what was learned from recorded runs of others.

MetaInf (meta-learning for the choice of inference acceleration) embeds descriptions of model, hardware and workload,
regresses measured times on them, and takes the best predicted setting. Here the description is a dozen numbers and the
regression starts from a roofline: predicted seconds are `roofline * exp(w . features)`, with `w` from ridge regression
on the logarithm of measured over roofline. With no runs recorded the roofline alone decides; the more runs, the less.

numpy only; times are arguments. Runs are kept as lines of JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings that are chosen; fields of `EngineOptions`."""

    int8: bool
    step_tokens: int
    draft_tokens: int
    share_prefixes: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A model, the machine it runs on, and what is asked of it."""

    parameters: int
    """Weights of the layers and the head."""
    layers: int
    hidden: int
    kv_values: int
    """Numbers kept of one token, all layers together."""
    weight_bytes: int
    """Bytes of one weight that is not quantized, 4 or 2."""
    read_gb_s: float
    gflop_s: float
    streams: int
    prompt_tokens: int
    output_tokens: int
    shared: float
    """Share of a prompt's tokens that another prompt began with."""
    repeated: float
    """Share of an answer's tokens that repeat earlier text."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One measured run: CPU-seconds for all of a case's answers."""

    case: Case
    setting: Setting
    seconds: float


def roofline_s(case: Case, setting: Setting) -> float:
    """Seconds for all answers if every step took the longer of reading what it must and computing what it must."""
    weights = case.parameters * (1 if setting.int8 else case.weight_bytes)
    prompts = case.streams * case.prompt_tokens * (1 - case.shared * setting.share_prefixes)
    per_step = max(1.0, min(float(setting.step_tokens), prompts))
    mean_context = case.prompt_tokens + case.output_tokens / 2
    # A guess is right about as often as the answer repeats what was said.
    rows = 1 + setting.draft_tokens
    kept = sum(case.repeated**at for at in range(rows))
    prefill_s = _step_s(case, weights, per_step, case.prompt_tokens / 2, case.streams) * prompts / per_step
    decode_s = _step_s(case, weights, case.streams * rows, mean_context, case.streams) * case.output_tokens / kept
    return prefill_s + decode_s


def _step_s(case: Case, weights: float, rows: float, context: float, sequences: int) -> float:
    attended = case.kv_values * context
    read = weights + min(rows, sequences) * attended * case.weight_bytes
    computed = 2 * rows * (case.parameters + attended)
    return max(read / case.read_gb_s, computed / case.gflop_s) / 1e9


def features(case: Case, setting: Setting) -> Vector:
    """Features of what the roofline leaves out: fixed costs of a step, and the effect of each setting by size and load.
    """
    size, load = math.log10(case.parameters / 1e7), math.log2(case.streams) / 4
    long, chunk = math.log2(case.prompt_tokens / 128), math.log2(setting.step_tokens / 256)
    int8, share, draft = float(setting.int8), float(setting.share_prefixes), setting.draft_tokens / 4
    return np.array([
        1.0, size, load, long, int8, int8 * size, int8 * load, int8 * long, chunk, chunk * load, chunk * long,
        draft, draft * size, draft * load, draft * case.repeated, share, share * case.shared, case.shared,
    ])  # fmt: skip


class SettingsChooser:
    """Predicts seconds of a setting for a case; `strength` is the ridge, in runs."""

    def __init__(self, runs: Iterable[Ran] = (), strength: float = 1.0) -> None:
        self._gram = np.eye(len(features(_SOME_CASE, _SOME_SETTING))) * strength
        self._moment = np.zeros(len(self._gram))
        self._weights: Vector = np.zeros(len(self._gram))
        self.runs = 0
        for ran in runs:
            self._add(ran)
        self._solve()

    def learn(self, ran: Ran) -> None:
        """Learn from one more run."""
        self._add(ran)
        self._solve()

    def seconds(self, case: Case, setting: Setting) -> float:
        """Predicted CPU-seconds for all answers of a case."""
        return roofline_s(case, setting) * math.exp(float(features(case, setting) @ self._weights))

    def choose(self, case: Case, settings: Sequence[Setting]) -> Setting:
        """The setting predicted to be fastest; the first of equals."""
        return min(settings, key=lambda setting: self.seconds(case, setting))

    def _add(self, ran: Ran) -> None:
        x = features(ran.case, ran.setting)
        self._gram += np.outer(x, x)
        self._moment += x * math.log(max(1e-9, ran.seconds) / roofline_s(ran.case, ran.setting))
        self.runs += 1

    def _solve(self) -> None:
        self._weights = np.asarray(np.linalg.solve(self._gram, self._moment), np.float64)


def next_setting(
    chooser: SettingsChooser, case: Case, settings: Sequence[Setting], tried: Mapping[Setting, float], most: int
) -> Setting:
    """What to run next: the setting predicted fastest while it is predicted to beat all that were tried, then the best
    of those; `tried` are seconds, `most` how many are tried at all."""
    left = [setting for setting in settings if setting not in tried] if len(tried) < most else []
    best = min(tried, key=lambda setting: tried[setting], default=None)
    hopeful = chooser.choose(case, left) if left else None
    if best is None:
        return hopeful or settings[0]
    return hopeful if hopeful and chooser.seconds(case, hopeful) < tried[best] else best


def write_runs(path: Path, runs: Iterable[Ran]) -> None:
    """One line of JSON a run."""
    path.write_text("".join(json.dumps(asdict(ran)) + "\n" for ran in runs))


def read_runs(path: Path) -> list[Ran]:
    """The runs a file holds; `ValueError` names the first line that is none."""
    runs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            held = json.loads(line)
            runs.append(Ran(Case(**held["case"]), Setting(**held["setting"]), float(held["seconds"])))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return runs


_SOME_CASE = Case(10**7, 1, 1, 1, 4, 10.0, 50.0, 1, 128, 32, 0.0, 0.0)
_SOME_SETTING = Setting(False, 256, 0, True)
