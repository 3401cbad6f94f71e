"""The climb: which model next, when to stop, and within what, as a generator that does no I/O.

The driver runs each rung that is yielded and sends back what came of it; live traffic, replay and batch jobs
drive the same generator. Retries, fallbacks and every limit live here, whichever strategy decides between
keeping an answer and asking on. An answer to a final rung is never sent back: it may have been streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from math import inf, isnan

import msgspec

from cascade.confidence import RAW
from cascade.types import Ask, Confidence, Fits, Keep, Outcome, Plan, Rung, Step, Strategy, Verdict

BACKOFF_BASE_S = 0.25
BACKOFF_CAP_S = 8.0
PATIENCE_S = 2.0
"""Longest wait on one model while another could answer."""
_BEFORE_ANY_BYTE = frozenset(
    {"connect", "loading", "out_of_files", "unavailable", "unauthorized", "not_found", "rejected", "context_length",
     "unsupported", "rate_limited", "overloaded", "server_error"}
)  # fmt: skip


def climb(plan: Plan, draws: Iterator[float]) -> Generator[Rung, Outcome, Verdict]:
    """Yield what to try next, receive what came of it, return how it ended.

    `draws` are floats in [0, 1): the jitter of the back-offs.
    """
    strategy = plan.strategy or Chain(plan.steps, plan.confidence or RAW, plan.speculates)
    meter = _Meter(plan)
    while True:
        move = strategy.next(meter.history, meter.fits)
        if isinstance(move, Keep):
            break
        if limit := meter.refuses(move.steps[0]):
            return meter.verdict(strategy.best(meter.history), limit)
        rung = yield from _attempt(move, meter, draws, others=bool(move.then or plan.fallbacks))
        last = meter.history[-1]
        if rung.final and not last.failure:
            return meter.verdict(len(meter.history) - 1, meter.why_kept(move))
        if not last.may_move and last.failure:
            return meter.verdict(_still_usable(strategy, rung, meter.history), "failed")
    if move.kept is None and move.reason == "failed":
        return (yield from _fall_back(meter, draws))
    return meter.verdict(move.kept, move.reason, move.text)


def _attempt(move: Ask, meter: _Meter, draws: Iterator[float], *, others: bool) -> Generator[Rung, Outcome, Rung]:
    """Take one move, retried on the same model while its failure is temporary; returns the last rung."""
    delay_s = 0.0
    for tries in range(1, meter.plan.retries + 2):
        rung = meter.rung(move, delay_s)
        outcome = yield rung
        meter.record(move, rung, outcome)
        if not (outcome.failure and outcome.may_pass and outcome.may_move) or rung.beside:
            break
        delay_s = max(_back_off_s(tries, draws), _waits_s(outcome.retry_after_s))
        if meter.refuses(move.steps[0], delay_s) or (others and delay_s > PATIENCE_S):
            break
    return rung


def _fall_back(meter: _Meter, draws: Iterator[float]) -> Generator[Rung, Outcome, Verdict]:
    """Try the fallbacks in order after every step has failed; the first answer is kept."""
    limit = ""
    for index, step in enumerate(meter.plan.fallbacks):
        if limit := meter.refuses(step):
            continue
        move = Ask((step,), why="fallback")
        yield from _attempt(move, meter, draws, others=index + 1 < len(meter.plan.fallbacks))
        last = meter.history[-1]
        if not last.failure:
            return meter.verdict(len(meter.history) - 1, "fallback")
        if not last.may_move:
            break
    return meter.verdict(None, limit or "failed")


def _still_usable(strategy: Strategy, rung: Rung, history: Sequence[Outcome]) -> int | None:
    """Index of an earlier answer to keep after a fatal failure; None where the client may already have received bytes.
    """
    unseen = not rung.final or history[-1].failure in _BEFORE_ANY_BYTE
    return strategy.best(history) if unseen else None


def _back_off_s(tries: int, draws: Iterator[float]) -> float:
    """Seconds of exponential back-off with full jitter: uniform between zero and a ceiling that doubles with each try.
    """
    return next(draws, 1.0) * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** (tries - 1))


def _waits_s(retry_after_s: float) -> float:
    return retry_after_s if retry_after_s > 0.0 else 0.0


class _Meter(msgspec.Struct):
    """What the climb has used of its limits, and the outcome of every attempt."""

    plan: Plan
    history: list[Outcome] = []
    made: int = 0
    spent_usd: float = 0.0
    elapsed_s: float = 0.0

    def refuses(self, step: Step, delay_s: float = 0.0, besides: int = 0, held_usd: float = 0.0) -> str:
        """The limit that one more attempt on this step would break; empty where it breaks none."""
        limits = self.plan.limits
        if self.made + besides >= limits.max_attempts:
            return "attempts"
        if self.spent_usd + held_usd + step.worst_cost_usd > limits.max_cost_usd:
            return "budget"
        if not self.elapsed_s + delay_s < limits.deadline_s:
            return "deadline"
        return ""

    def fits(self, step: Step) -> bool:
        return not self.refuses(step)

    def rung(self, move: Ask, delay_s: float) -> Rung:
        """The first step's rung, with as many of the others beside it as the limits allow."""
        first = move.steps[0]
        left_s = self.plan.limits.deadline_s - self.elapsed_s - delay_s
        if len(move.steps) == 1 and not move.then:
            return _rung(first, move.streams, left_s, delay_s)
        held_usd, beside = first.worst_cost_usd, list[Step]()
        for step in move.steps[1:]:
            if not self.refuses(step, delay_s, 1 + len(beside), held_usd):
                beside.append(step)
                held_usd += step.worst_cost_usd
        follows = any(not self.refuses(s, delay_s, 1 + len(beside), held_usd) for s in move.then)
        final = move.streams and not follows and len(move.steps) == 1
        # A rung that may be sent back gets half of what is left: one hung model can't eat the climb.
        timeout_s = left_s / 2 if follows else left_s
        others = tuple(_rung(step, False, timeout_s, delay_s) for step in beside)
        return _rung(first, final, timeout_s, delay_s, others, move.enough if others else None)

    def record(self, move: Ask, rung: Rung, outcome: Outcome) -> None:
        came_in = (outcome, *outcome.beside[: len(rung.beside)]) if outcome.beside else (outcome,)
        for came in came_in:
            known = 0.0 <= came.cost_usd < inf
            # An attempt whose cost isn't known is charged in full: the limit holds whatever the driver says.
            self.spent_usd += came.cost_usd if known else _worst_usd(move, came.model)
            if came.elapsed_s > self.elapsed_s:
                self.elapsed_s = came.elapsed_s
            self.history.append(came)
            self.made += came.attempts

    def why_kept(self, move: Ask) -> str:
        """Why a final rung's answer stands: it was good enough, nothing better existed, or nothing fitted."""
        step = move.steps[0]
        if not move.then:
            return move.why
        if self._confidence(self.history[-1]) >= step.accept_at:
            return "accepted"
        return self.refuses(min(move.then, key=lambda s: s.worst_cost_usd)) or "budget"

    def verdict(self, kept: int | None, reason: str, text: str = "") -> Verdict:
        model = self.history[kept].model if kept is not None else ""
        return Verdict(kept, model, reason, self.spent_usd, self.made, tuple(self.history), text)

    def _confidence(self, outcome: Outcome) -> float:
        return (self.plan.confidence or RAW)(outcome.model, outcome.evidence)


def _worst_usd(move: Ask, model: str) -> float:
    return next((step.worst_cost_usd for step in move.steps if step.model == model), 0.0)


def _rung(
    step: Step,
    final: bool,
    timeout_s: float,
    delay_s: float,
    beside: tuple[Rung, ...] = (),
    enough: Callable[[Outcome], bool] | None = None,
) -> Rung:
    reads = step.reads and not final
    return Rung(step.model, final, timeout_s, delay_s, reads, step.overrides, beside, enough)


class Chain(msgspec.Struct, frozen=True):
    """Climbs the steps in order: keeps the first answer of sufficient confidence, else the best one."""

    steps: tuple[Step, ...]
    confidence: Confidence = RAW
    speculates: bool = False

    def next(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        open_steps: Sequence[Step] = self.steps
        if history:
            for index, outcome in enumerate(history):
                if self._accepts(outcome):
                    return Keep(index, "last" if outcome.model == self.steps[-1].model else "accepted")
            tried = {outcome.model for outcome in history}
            open_steps = [step for step in self.steps if step.model not in tried]
        for index, step in enumerate(open_steps):
            if index == len(open_steps) - 1 or fits(step):
                then = tuple(open_steps[index + 1 :]) if step.accept_at > -inf else ()
                if self.speculates and then:
                    return Ask((step, then[0]), then[1:], self._accepts, streams=False)
                return Ask((step,), then, why="only" if len(self.steps) == 1 else "last")
        kept = self.best(history)
        return Keep(kept, "failed" if kept is None else "exhausted")

    def best(self, history: Sequence[Outcome]) -> int | None:
        return best_answer(history, self.confidence)

    def _accepts(self, outcome: Outcome) -> bool:
        step = next((s for s in self.steps if s.model == outcome.model), None)
        if step is None or outcome.failure:
            return False
        return step.accept_at == -inf or self.confidence(step.model, outcome.evidence) >= step.accept_at


def best_answer(history: Sequence[Outcome], confidence: Confidence) -> int | None:
    """Index of the answer of the highest confidence; unknown ranks below known, and later above earlier. None without
    any answer.
    """
    scored = [
        (-1.0 if isnan(p := confidence(outcome.model, outcome.evidence)) else p, index)
        for index, outcome in enumerate(history)
        if not outcome.failure
    ]
    return max(scored)[1] if scored else None


def confidence_in(outcome: Outcome, confidence: Confidence) -> float:
    """Confidence in an outcome's answer; 0 where it is unknown."""
    p = confidence(outcome.model, outcome.evidence)
    return 0.0 if isnan(p) else p
