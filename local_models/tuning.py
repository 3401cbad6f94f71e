"""An engine that tunes its own settings: it records what it runs with, and between answers it tries settings that are
predicted to be faster.

Enabled by `settings = "auto"`. Every so many answers make a window: how many ran at once, how long prompts and answers
were, what was shared and repeated, and the seconds it all took. A window is one run of `local_models.settings`; the
setting tried next is the one predicted fastest, as long as that is faster than all that was tried, and never more than
`MOST_TRIED` of them. Then the best of those tried stays. Predictions start from the runs that come with the package and
learn from this machine's own, which are kept in a file and known at the next start.

Chunk, guesses ahead and sharing of prefixes change while the engine runs, and no answer by it. Eight bits can change
answers and need a load: they are taken at a start only, and only where `settings_int8` allows it. Threads and the
number of sequences at once are left as they are. No text is kept, only counts.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from local_models import WEIGHTS
from local_models.request import Usage
from local_models.settings import Case, Ran, Setting, SettingsChooser, next_setting, read_runs, roofline_s, write_runs
from local_models.shape import Shape

PRIOR = WEIGHTS / "settings.jsonl"
WINDOW_ANSWERS = 32
MOST_TRIED = 4
MOST_KEPT = 256
_FIRST_GUESS = (4, 256, 64)
"""Streams, prompt and answer tokens before anything was seen."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Window:
    """Counts since the last change of settings."""

    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    repeated: int = 0
    steps: int = 0
    running: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Tuner:
    """The settings of one engine over time; `case` is what was last seen of the model's work."""

    case: Case
    settings: list[Setting]
    setting: Setting
    file: Path
    chooser: SettingsChooser
    tried: dict[Setting, list[float]] = field(default_factory=dict)
    """By setting, the logarithms of measured seconds over the roofline's, one for each window."""
    runs: list[Ran] = field(default_factory=list)
    _window: _Window = field(default_factory=_Window)

    @classmethod
    def start(cls, shape: Shape, given: Setting, file: Path, *, int8_too: bool) -> Tuner:
        """Reads what was recorded and chooses; `given` is what runs otherwise."""
        machine = measured_machine()
        runs = [ran for ran in _recorded(file) if _is_of(ran.case, shape)]
        settings = candidates(given, int8_too=int8_too)
        case = replace(runs[-1].case, read_gb_s=machine[0], gflop_s=machine[1]) if runs else case_of(shape, machine)
        tuner = cls(case, settings, given, file, SettingsChooser([*_recorded(PRIOR), *runs]), runs=runs)
        for ran in runs:
            tuner._tried(ran)
        tuner._choose(settings)
        return tuner

    def step(self, running: int, seconds: float, steps: int = 1) -> None:
        """Take in a step in which `running` sequences took part; for several steps, the sums of both numbers."""
        self._window.steps += steps
        self._window.running += running
        self._window.seconds += seconds

    def answer(self, usage: Usage, output: Sequence[int]) -> Setting | None:
        """An answer ended; another setting where one is to be used from now on."""
        window = self._window
        window.answers += 1
        window.prompt_tokens += usage.prompt_tokens
        window.cached_tokens += usage.cached_tokens
        window.output_tokens += usage.output_tokens
        window.repeated += repeated_tokens(output)
        if window.answers < WINDOW_ANSWERS:
            return None
        self._window = _Window()
        self._learn(window)
        before = self.setting
        self._choose([one for one in self.settings if one.int8 == before.int8])
        return None if self.setting == before else self.setting

    def _learn(self, window: _Window) -> None:
        count = window.answers
        self.case = replace(
            self.case,
            streams=max(1, round(window.running / max(1, window.steps))),
            prompt_tokens=max(1, round(window.prompt_tokens / count)),
            output_tokens=max(1, round(window.output_tokens / count)),
            # What is not looked for is not found: then what was seen before counts.
            shared=(
                window.cached_tokens / max(1, window.prompt_tokens) if self.setting.share_prefixes else self.case.shared
            ),
            repeated=window.repeated / max(1, window.output_tokens - 2 * count),
        )
        ran = Ran(self.case, self.setting, max(1e-6, window.seconds * self.case.streams / count))
        self.chooser.learn(ran)
        self._tried(ran)
        self.runs = [*self.runs, ran][-MOST_KEPT:]
        _record(self.file, self.runs)

    def _tried(self, ran: Ran) -> None:
        self.tried.setdefault(ran.setting, []).append(math.log(ran.seconds / roofline_s(ran.case, ran.setting)))

    def _choose(self, settings: list[Setting]) -> None:
        took = {
            one: roofline_s(self.case, one) * math.exp(sum(logs) / len(logs))
            for one, logs in self.tried.items()
            if one in settings
        }
        self.setting = next_setting(self.chooser, self.case, settings, took, MOST_TRIED)


def candidates(given: Setting, *, int8_too: bool) -> list[Setting]:
    """What may be chosen, the given one among it; one that was given eight bits keeps them."""
    int8 = [True] if given.int8 else [False, True] if int8_too else [False]
    steps, drafts = sorted({64, 512, given.step_tokens}), sorted({0, 4, given.draft_tokens})
    return [Setting(*parts) for parts in itertools.product(int8, steps, drafts, (True, False))]


def case_of(shape: Shape, machine: tuple[float, float]) -> Case:
    """A model on this machine before anything was seen of its work."""
    streams, prompt_tokens, output_tokens = _FIRST_GUESS
    return Case(
        shape.parameters, shape.layers, shape.hidden, 2 * shape.layers * shape.kv_heads * shape.head_dim,
        4 if shape.dtype == "float32" else 2, *machine, streams, prompt_tokens, output_tokens, 0.0, 0.0,
    )  # fmt: skip


def repeated_tokens(ids: Sequence[int]) -> int:
    """Number of tokens that followed the same two tokens earlier in the text."""
    hits, met = 0, dict[tuple[int, int], int]()
    for at in range(2, len(ids)):
        pair = ids[at - 2], ids[at - 1]
        hits += met.get(pair) == ids[at]
        met[pair] = ids[at]
    return hits


def measured_machine() -> tuple[float, float]:
    """Gigabytes read and billions of operations computed in a CPU-second of this thread."""
    long, x, w = torch.randn(2**24), torch.randn(256, 512), torch.randn(2048, 512)
    read_s = min(_cpu_s(long.sum) for _ in range(5))
    computed_s = min(_cpu_s(lambda: x @ w.T) for _ in range(20))
    return 4 * len(long) / read_s / 1e9, 2 * x.numel() * len(w) / computed_s / 1e9


def _cpu_s(work: Callable[[], object]) -> float:
    began_s = time.process_time()
    work()
    return max(1e-9, time.process_time() - began_s)


def _is_of(case: Case, shape: Shape) -> bool:
    return (case.parameters, case.layers, case.hidden) == (shape.parameters, shape.layers, shape.hidden)


def _recorded(file: Path) -> list[Ran]:
    """What the file holds; nothing, and a line in the log, where it is damaged."""
    try:
        return read_runs(file) if file.is_file() else []
    except (OSError, ValueError) as error:
        _log.warning("recorded runs are left aside: %s", error)
        return []


def _record(file: Path, runs: list[Ran]) -> None:
    """Replaced in one go; an engine goes on where that fails."""
    partial = file.with_suffix(".partial")
    try:
        write_runs(partial, runs)
        partial.replace(file)
    except OSError as error:
        _log.warning("a run could not be recorded: %s", error)
