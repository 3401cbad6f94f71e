"""The nouns of batch jobs: prompts, the estimates of each way to answer them, and the assignment of one to the other.

Values that exist once per prompt are held in arrays, not in objects, because a job may have a million prompts.
Everything is saved as JSON and safetensors; nothing is pickled. Decisions are in `assign`; nothing here reads a clock.
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
"""In `Assignment.arm`: no arm answers this prompt."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault of one line of the input, reported before anything is spent."""

    line: int
    """Number of the line, from 1; 0 where the fault is of the file or of the whole job."""
    custom_id: str
    message: str
    code: str = "invalid_line"

    def __str__(self) -> str:
        name = f" ({self.custom_id})" if self.custom_id else ""
        return f"line {self.line}{name}: {self.message}" if self.line else self.message


def _first(problems: Sequence[Problem]) -> str:
    return str(problems[0]) if len(problems) == 1 else f"{len(problems)} problem(s); first: {problems[0]}"


class BadJob(CallerError):
    """The input can't be run as it is; `problems` lists its faults by line."""

    def __init__(self, problems: Sequence[Problem], message: str = "") -> None:
        super().__init__(message or _first(problems), code="invalid_batch")
        self.problems = tuple(problems)


class Impossible(CallerError):
    """No assignment answers every prompt within the budget and the deadline."""

    def __init__(self, message: str, least_budget_usd: float, least_deadline_s: float) -> None:
        super().__init__(message, code="impossible_batch")
        self.least_budget_usd = least_budget_usd
        """Least expected cost that keeps the deadline; infinite where no budget does."""
        self.least_deadline_s = least_deadline_s
        """Least time in seconds that keeps the budget; infinite where no deadline does."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A line that asks the same as an earlier line, and gets its answer at no cost."""

    line: int
    custom_id: str
    index: int
    """Index of the prompt whose answer is used."""
    kind: str = "exact"
    """exact | semantic"""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering a prompt: a column of the estimates."""

    model: str
    samples: int = 1
    """Answers that are sampled; the best of them is kept."""
    via: str = "live"
    """live | batch (the provider's own batch endpoint)"""
    window_s: float = 0.0
    """Seconds within which a provider's batch endpoint promises the answer; 0 for live calls."""
    rule: int = -1
    """Number of the rule of the route's trained cascade that decides whether a better model is asked next; -1 where the
    first answer is always kept.
    """

    @property
    def is_one_call(self) -> bool:
        """Whether the arm makes one live call and keeps its answer."""
        return self.via == "live" and self.samples == 1 and self.rule < 0

    @property
    def paid_as(self) -> str:
        """The name under which paid and predicted cost are compared: arms that share it share one correction."""
        return self.model if self.rule < 0 else self.label

    @property
    def label(self) -> str:
        times = f" x{self.samples}" if self.samples > 1 else ", then better" if self.rule >= 0 else ""
        return f"{self.model}{times}" + ("" if self.via == "live" else f" ({self.via})")


@dataclass(frozen=True)
class Estimates:
    """The expected quality, cost and latency of each arm on each prompt: matrices (n, arms), float32."""

    arms: tuple[Arm, ...]
    quality: Floats
    """Expected score in [0, 1]."""
    quality_sd: Floats
    """Standard error of the expected score."""
    cost_usd: Floats
    """Expected cost; infinite where the arm may not or can't answer the prompt."""
    output_tokens: Floats
    latency_s: Floats
    """Expected latency of one call; NaN where it is unknown."""
    input_tokens: Floats
    """Shape (n,)."""
    floor: Floats
    """Least quality that each prompt requires, shape (n,)."""
    quality_shift_sd: Floats
    """Standard error that all quality predictions of an arm share, shape (arms,)."""
    cost_shift_sd: Floats
    """Standard error that all cost predictions of an arm share, as a share of the cost, shape (arms,)."""

    def __len__(self) -> int:
        return len(self.quality)

    def rows(self, kept: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Estimates:
        """The estimates of these prompts only."""
        by_prompt = ("quality", "quality_sd", "cost_usd", "output_tokens", "latency_s", "input_tokens", "floor")
        return replace(self, **{name: getattr(self, name)[kept] for name in by_prompt})

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "arms"}


@dataclass(frozen=True, slots=True)
class Capacity:
    """A rate limit of a provider, a key or this machine, in units per second. An answer by arm `a` uses
    `requests[a] + input_tokens[a] * input + output_tokens[a] * output + seconds[a] * latency` units.
    """

    name: str
    per_s: float
    requests: tuple[float, ...] = ()
    input_tokens: tuple[float, ...] = ()
    output_tokens: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    """Like the three before it, one weight per arm; empty where all weights are 0."""


@dataclass(frozen=True)
class Assignment:
    """The arm that answers each prompt, and how far the assignment is from the best possible one."""

    arm: NDArray[np.int16]
    """Index into `Estimates.arms`, or UNASSIGNED, shape (n,)."""
    quality: float
    """Sum of predicted qualities over the assigned prompts."""
    cost_usd: float
    """Sum of predicted costs over the assigned prompts."""
    usd_price: float
    """Lagrange multiplier of the budget: quality points that one more dollar buys."""
    capacity_prices: dict[str, float]
    """Lagrange multiplier of each capacity, by its name."""
    bound: float
    """No assignment within the same limits has a larger sum of predicted qualities."""
    finish_s: float
    """Seconds that the busiest capacity needs."""
    shortfall: int = 0
    """Prompts that should have been assigned but are UNASSIGNED for want of money or time."""

    @property
    def gap(self) -> float:
        """The most by which the best assignment's sum of qualities can exceed this one's; 0 is optimal."""
        return max(self.bound - self.quality, 0.0)

    @property
    def gap_share(self) -> float:
        return self.gap / self.bound if self.bound > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the job's frontier: the cost and quality that a budget buys."""

    budget_usd: float
    cost_usd: Interval
    quality: Interval
    """Mean over prompts."""
    calls: dict[str, int]
    """Number of prompts by the label of their arm."""
    finish_s: float


@dataclass(frozen=True, slots=True)
class PilotReport:
    """The results and the cost of the pilot sample."""

    calls: int
    failures: int
    cost_usd: float
    scored: int
    """Answers whose quality could be measured."""
    cost_ratio: dict[str, float]
    """Paid over predicted cost, by model."""
    quality_shift: dict[str, float]
    """Correction of the predicted quality, by model: measured minus predicted, shrunk towards 0."""
    skipped: int = 0
    """Calls not made, because the money left might not have covered them or a file could not be read."""


@dataclass(frozen=True)
class Plan:
    """A job before it runs. Everything `run` needs is in the plan's folder."""

    source: str
    """The input's name."""
    route: str
    """The route that answers lines that name no model."""
    prompts: Prompts
    duplicates: tuple[Duplicate, ...]
    problems: tuple[Problem, ...]
    """Faults of the lines that were left out, where the job was planned with bad lines skipped."""
    estimates: Estimates
    assignment: Assignment
    frontier: tuple[Point, ...]
    chosen: Point
    budget_usd: float
    """Budget of the run, less what the pilot has spent; infinite where none was set."""
    deadline_s: float
    """Seconds from the start of the run; infinite where there is no deadline."""
    capacities: tuple[Capacity, ...] = ()
    usd_price: float = 0.0
    """Quality points that a dollar is worth where there is no budget; `replan` gets it as `Objective(usd_price=...)`.
    """
    pilot: PilotReport | None = None
    tenant: str = "default"
    metadata: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write plan.json, plan.safetensors and prompts.jsonl. plan.json is written last, so that a reader never sees
        half a plan.
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
        """The plan as JSON has it, without its arrays and prompts."""
        left_out = {"prompts", "estimates", "assignment"}
        card = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in left_out}
        own = {f.name: getattr(self.assignment, f.name) for f in fields(self.assignment) if f.name != "arm"}
        return {"schema": SCHEMA, **card, "arms": _plain(self.estimates.arms), "assignment": own}

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read the plan from its folder. Raises BadJob where there is none, or one of another schema."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            card = msgspec.json.decode((folder / PLAN_FILE).read_bytes(), type=_Card)
            arrays = load_file(folder / ARRAYS_FILE)
        except (OSError, msgspec.MsgspecError, SafetensorError) as error:
            raise BadJob([Problem(0, "", f"{folder}: there is no plan here ({error})", "no_plan")]) from error
        if card.schema != SCHEMA:
            message = f"{folder}: the plan has schema {card.schema}, not {SCHEMA}: plan the job again"
            raise BadJob([Problem(0, "", message, "no_plan")])
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
    """The contents of plan.json."""

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
    """The value with dataclasses turned into dicts and tuples into lists."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _finite(value: Any) -> Any:
    """The value with infinite numbers as None, since JSON has no infinity; None means that there is no limit."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
