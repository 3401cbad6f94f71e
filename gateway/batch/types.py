"""The nouns of batch jobs: what is asked, what each way of answering is expected to give, and who answers what.

Arrays, not objects, hold what there is one of per prompt, for a job may have a million. All of it is saved as JSON
and safetensors; nothing is pickled. Decisions over these nouns are in `assign`; nothing here reads a clock.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.batch.prompts import Prompt as Prompt
from gateway.batch.prompts import Prompts as Prompts
from gateway.batch.prompts import PromptWriter as PromptWriter
from gateway.batch.prompts import record_of as record_of
from gateway.errors import CallerError
from routers.intervals import Interval

Floats = NDArray[np.float32]
UNASSIGNED = -1
"""In `Assignment.arm`: nobody answers this prompt."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one line of the input, said before anything is spent."""

    line: int
    """Counted from 1; 0: the file or the job as a whole."""
    custom_id: str
    message: str
    code: str = "invalid_line"

    def __str__(self) -> str:
        name = f" ({self.custom_id})" if self.custom_id else ""
        return f"line {self.line}{name}: {self.message}" if self.line else self.message


def _first(problems: Sequence[Problem]) -> str:
    return str(problems[0]) if len(problems) == 1 else f"{len(problems)} problem(s); first: {problems[0]}"


class BadJob(CallerError):
    """The input can't be run as it stands; `problems` says line by line why."""

    def __init__(self, problems: Sequence[Problem], message: str = "") -> None:
        super().__init__(message or _first(problems), code="invalid_batch")
        self.problems = tuple(problems)


class Impossible(CallerError):
    """No assignment answers every prompt within the budget and the deadline."""

    def __init__(self, message: str, least_budget_usd: float, least_deadline_s: float) -> None:
        super().__init__(message, code="impossible_batch")
        self.least_budget_usd = least_budget_usd
        """Least expected cost within the deadline; infinite where no money helps."""
        self.least_deadline_s = least_deadline_s
        """Least time within the budget; infinite where no time helps."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A line that asks what an earlier one asks: it is answered with the same answer, for nothing."""

    line: int
    custom_id: str
    index: int
    """Of the prompt whose answer it takes."""
    kind: str = "exact"
    """exact | semantic"""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering a prompt: a column of the estimates."""

    model: str
    samples: int = 1
    """Best of that many."""
    via: str = "live"
    """live | batch (the provider's own batch endpoint)"""
    window_s: float = 0.0
    """Time within which a provider's batch endpoint promises the answer."""
    rule: int = -1
    """Of the route's trained cascade: by which a better model is asked where this one's answer doesn't convince; -1:
    the answer is kept.
    """

    @property
    def is_one_call(self) -> bool:
        """One live call, whose answer is kept."""
        return self.via == "live" and self.samples == 1 and self.rule < 0

    @property
    def paid_as(self) -> str:
        """Arms of one such name cost what was predicted of them, or miss it, alike."""
        return self.model if self.rule < 0 else self.label

    @property
    def label(self) -> str:
        times = f" x{self.samples}" if self.samples > 1 else ", then better" if self.rule >= 0 else ""
        return f"{self.model}{times}" + ("" if self.via == "live" else f" ({self.via})")


@dataclass(frozen=True)
class Estimates:
    """What each arm is expected to give on each prompt: matrices (n, arms), float32."""

    arms: tuple[Arm, ...]
    quality: Floats
    """Expected score in [0, 1]."""
    quality_sd: Floats
    """Standard error of that expectation."""
    cost_usd: Floats
    """Expected; infinite where the arm may not or can't answer the prompt."""
    output_tokens: Floats
    latency_s: Floats
    """Of one call; NaN where nothing is known."""
    input_tokens: Floats
    """Shape (n,)."""
    floor: Floats
    """Least quality asked of each prompt, shape (n,)."""
    quality_shift_sd: Floats
    """Standard error common to all predictions of an arm, shape (arms,)."""
    cost_shift_sd: Floats
    """The same for costs, as a share of the cost."""

    def __len__(self) -> int:
        return len(self.quality)

    def rows(self, kept: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Estimates:
        """Those prompts alone."""
        by_prompt = ("quality", "quality_sd", "cost_usd", "output_tokens", "latency_s", "input_tokens", "floor")
        return replace(self, **{name: getattr(self, name)[kept] for name in by_prompt})

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "arms"}


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a provider, a key or this machine can do per second. An answer by arm `a` uses
    `requests[a] + input_tokens[a] * input + output_tokens[a] * output + seconds[a] * latency` of it.
    """

    name: str
    per_s: float
    requests: tuple[float, ...] = ()
    input_tokens: tuple[float, ...] = ()
    output_tokens: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    """Each of one weight per arm; empty: none."""


@dataclass(frozen=True)
class Assignment:
    """Who answers what, and how far from the best possible that is."""

    arm: NDArray[np.int16]
    """Shape (n,): a place in `Estimates.arms`, or UNASSIGNED."""
    quality: float
    """Sum of predicted qualities over the assigned prompts."""
    cost_usd: float
    """Predicted sum."""
    usd_price: float
    """Lagrange multiplier of the budget: quality points that one more dollar buys."""
    capacity_prices: dict[str, float]
    """The same for each capacity, per unit of its use."""
    bound: float
    """No assignment within the same limits has a larger sum of predicted qualities."""
    finish_s: float
    """Time that the busiest capacity needs."""
    shortfall: int = 0
    """Prompts left UNASSIGNED though they were to be assigned."""

    @property
    def gap(self) -> float:
        """Quality points, summed over prompts, that the best assignment could have more: 0 is optimal."""
        return max(self.bound - self.quality, 0.0)

    @property
    def gap_share(self) -> float:
        return self.gap / self.bound if self.bound > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the job's frontier: what a budget buys."""

    budget_usd: float
    cost_usd: Interval
    quality: Interval
    """Mean over prompts."""
    calls: dict[str, int]
    """Prompts per arm's label."""
    finish_s: float


@dataclass(frozen=True, slots=True)
class PilotReport:
    """What the pilot sample showed and cost."""

    calls: int
    failures: int
    cost_usd: float
    scored: int
    """Answers whose quality could be told."""
    cost_ratio: dict[str, float]
    """Paid over predicted, by model."""
    quality_shift: dict[str, float]
    """Found minus predicted, by model."""
    skipped: int = 0
    """Calls not made, for they might have cost more than what was left."""


@dataclass(frozen=True)
class Plan:
    """A job before it runs. Everything `run` needs is in the plan's folder."""

    source: str
    """The input's name."""
    route: str
    """What answers lines that name no model."""
    prompts: Prompts
    duplicates: tuple[Duplicate, ...]
    problems: tuple[Problem, ...]
    """Lines left out because the job was planned with them skipped."""
    estimates: Estimates
    assignment: Assignment
    frontier: tuple[Point, ...]
    chosen: Point
    budget_usd: float
    """For the run, what the pilot has spent taken off; infinite: none was set."""
    deadline_s: float
    """From the start of the run; infinite: none."""
    capacities: tuple[Capacity, ...] = ()
    usd_price: float = 0.0
    """Quality points that a dollar is worth where no budget sets its price: `replan` by `Objective(usd_price=...)`."""
    pilot: PilotReport | None = None
    tenant: str = "default"
    metadata: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes plan.json, plan.safetensors and prompts.jsonl; a reader never sees half a plan, for plan.json comes
        last.
        """
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        if self.prompts.path.resolve() != (folder / PROMPTS_FILE).resolve():
            (folder / PROMPTS_FILE).write_bytes(self.prompts.path.read_bytes())
        arrays = self.estimates.arrays() | {
            "arm": self.assignment.arm, "ends": self.prompts.ends, "lines": self.prompts.lines,
        }  # fmt: skip
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, folder / ARRAYS_FILE)
        draft = folder / f"{PLAN_FILE}.new"
        draft.write_text(json.dumps(_finite(self.card()), indent=1))
        draft.replace(folder / PLAN_FILE)

    def card(self) -> dict[str, Any]:
        """All of the plan but its arrays and prompts."""
        left_out = {"prompts", "estimates", "assignment"}
        card = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in left_out}
        own = {f.name: getattr(self.assignment, f.name) for f in fields(self.assignment) if f.name != "arm"}
        return {"schema": SCHEMA, **card, "arms": _plain(self.estimates.arms), "assignment": own}

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan saved there. BadJob where there is none, or one of another schema."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            card = msgspec.json.decode((folder / PLAN_FILE).read_bytes(), type=_Card)
            arrays = load_file(folder / ARRAYS_FILE)
        except (OSError, msgspec.MsgspecError, SafetensorError) as error:
            raise BadJob([Problem(0, "", f"{folder}: no plan here ({error})", "no_plan")]) from error
        if card.schema != SCHEMA:
            raise BadJob([Problem(0, "", f"{folder}: a plan of schema {card.schema}, not {SCHEMA}", "no_plan")])
        whole = {f.name: getattr(card, f.name) for f in fields(cls) if hasattr(card, f.name)}
        for name in ("budget_usd", "deadline_s"):
            whole[name] = math.inf if whole[name] is None else whole[name]
        own: dict[str, Any] = {
            name: math.inf if value is None else value for name, value in card.assignment.items()
        }
        whole["assignment"] = Assignment(arm=arrays.pop("arm"), **own)
        prompts = Prompts(folder / PROMPTS_FILE, arrays.pop("ends"), arrays.pop("lines"))
        return cls(prompts=prompts, estimates=Estimates(arms=card.arms, **arrays), **whole)


SCHEMA = 2
PLAN_FILE, ARRAYS_FILE, PROMPTS_FILE = "plan.json", "plan.safetensors", "prompts.jsonl"


class _Card(msgspec.Struct):
    """plan.json, as it must be."""

    schema: int
    source: str
    route: str
    duplicates: tuple[Duplicate, ...]
    problems: tuple[Problem, ...]
    frontier: tuple[Point, ...]
    chosen: Point
    budget_usd: float | None
    deadline_s: float | None
    capacities: tuple[Capacity, ...]
    usd_price: float
    pilot: PilotReport | None
    tenant: str
    metadata: dict[str, str]
    arms: tuple[Arm, ...]
    assignment: dict[str, Any]


def _plain(value: Any) -> Any:
    """Dataclasses as JSON has them."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _finite(value: Any) -> Any:
    """JSON has no infinity: null says there is no such limit."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
