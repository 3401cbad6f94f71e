"""The climb as a transcript: which models are asked, what they answer, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, repeat
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cascade.climb import PATIENCE_S, Chain, climb
from cascade.types import Ask, Evidence, Fits, Keep, Limits, Outcome, Plan, PlanError, Rung, Step, Verdict

NOTHING = Evidence()
SURE = Evidence(mean_logprob=-0.01, min_logprob=-0.02)
UNSURE = Evidence(mean_logprob=-2.0, min_logprob=-3.0)
SMALL, MIDDLE, LARGE = Step("small", 0.7, 1.0), Step("middle", 0.7, 3.0), Step("large", -inf, 10.0)


class Playbook:
    """Drives a climb step by step and keeps the transcript."""

    def __init__(self, plan: Plan, draw: float = 0.5) -> None:
        self.climbing, self.rungs = climb(plan, repeat(draw)), list[Rung]()
        self.verdict: Verdict | None = None
        self._advance(None)

    def _advance(self, outcome: Outcome | None) -> None:
        try:
            rung = self.climbing.send(outcome) if outcome else next(self.climbing)
            self.rungs.append(rung)
        except StopIteration as stop:
            self.verdict = stop.value

    @property
    def rung(self) -> Rung:
        assert self.verdict is None, f"the climb has ended: {self.verdict}"
        return self.rungs[-1]

    def answers(self, evidence: Evidence = NOTHING, cost_usd: float = 1.0, **rest: Any) -> Playbook:
        self._advance(Outcome(self.rung.model, evidence=evidence, cost_usd=cost_usd, **rest))
        return self

    def fails(self, failure: str = "server_error", *, may_pass: bool = False, may_move: bool = True,
              **rest: Any) -> Playbook:  # fmt: skip
        self._advance(Outcome(self.rung.model, failure, may_pass, may_move, **rest))
        return self

    def ended(self) -> tuple[str, str]:
        assert self.verdict is not None, f"still asks {self.rungs[-1]}"
        return self.verdict.model, self.verdict.reason


def test_a_sure_answer_is_kept() -> None:
    """An answer with enough evidence ends the climb. Its rung was not final, and its confidence was read."""
    play = Playbook(Plan((SMALL, LARGE)))
    assert (play.rung.model, play.rung.final, play.rung.reads_confidence) == ("small", False, True)
    play.answers(SURE)
    assert play.ended() == ("small", "accepted")


def test_an_unsure_answer_is_escalated_to_a_rung_that_streams() -> None:
    """An answer with too little evidence is escalated. The last rung is final, and its evidence isn't read."""
    play = Playbook(Plan((SMALL, LARGE))).answers(UNSURE)
    assert (play.rung.model, play.rung.final, play.rung.reads_confidence) == ("large", True, False)
    assert play.answers().ended() == ("large", "last")
    assert play.verdict and play.verdict.kept == 1 and play.verdict.spent_usd == 2.0


@pytest.mark.parametrize("evidence", [Evidence(), Evidence(mean_logprob=nan), Evidence(judged=inf)])
def test_missing_evidence_is_not_accepted(evidence: Evidence) -> None:
    """NaN means missing evidence: the answer isn't kept while another step is possible."""
    assert Playbook(Plan((SMALL, LARGE))).answers(evidence).rung.model == "large"


def test_a_refusal_is_escalated_however_sure_it_is() -> None:
    """A failed check outweighs any log-probability."""
    assert Playbook(Plan((SMALL, LARGE))).answers(replace(SURE, refused=True)).rung.model == "large"


def test_a_single_step_streams_at_once() -> None:
    """Without a second step nothing can reject the answer, whatever its accept_at is."""
    play = Playbook(Plan((SMALL,)))
    assert play.rung.final
    assert play.answers(UNSURE).ended() == ("small", "only")


def test_a_transient_failure_is_retried_with_jitter() -> None:
    """The same model is asked again after a back-off with full jitter, until its retries are used up."""
    play = Playbook(Plan((LARGE,), retries=2), draw=0.5).fails(may_pass=True)
    assert (play.rung.model, play.rung.delay_s) == ("large", 0.125)
    assert play.fails(may_pass=True).rung.delay_s == 0.25
    assert play.fails(may_pass=True).ended() == ("", "failed")


def test_retry_after_is_honoured_on_the_only_model() -> None:
    """The only model is waited for as long as its retry-after says, within the deadline."""
    play = Playbook(Plan((LARGE,))).fails("rate_limited", may_pass=True, retry_after_s=20.0)
    assert play.rung.delay_s == 20.0


def test_no_wait_exceeds_the_deadline() -> None:
    """A wait that would end after the deadline is not begun."""
    play = Playbook(Plan((LARGE,), limits=Limits(deadline_s=10.0)))
    assert play.fails("rate_limited", may_pass=True, retry_after_s=20.0).ended() == ("", "failed")


def test_a_long_retry_after_moves_on_to_the_fallback() -> None:
    """With a fallback left, a retry-after beyond the patience is not waited for."""
    play = Playbook(Plan((LARGE,), fallbacks=(MIDDLE,)))
    play.fails("rate_limited", may_pass=True, retry_after_s=PATIENCE_S + 1)
    assert play.rung.model == "middle"


def test_fallbacks_are_tried_in_order() -> None:
    """After a step has failed for good, each fallback is tried until one answers."""
    play = Playbook(Plan((LARGE,), fallbacks=(MIDDLE, SMALL))).fails().fails()
    assert play.rung.model == "small" and play.rung.final
    assert play.answers().ended() == ("small", "fallback")


def test_a_failed_escalation_keeps_the_earlier_answer() -> None:
    """The best answer so far is returned instead of an error, and nothing is escalated to a fallback."""
    play = Playbook(Plan((SMALL, LARGE), fallbacks=(MIDDLE,))).answers(UNSURE).fails()
    assert play.ended() == ("small", "exhausted")
    assert play.verdict and play.verdict.kept == 0


def test_the_best_of_several_unsure_answers_is_kept() -> None:
    """Of two answers below their thresholds, the one with more evidence is returned after a failed escalation."""
    less = replace(UNSURE, mean_logprob=-4.0)
    play = Playbook(Plan((SMALL, MIDDLE, LARGE))).answers(UNSURE).answers(less).fails()
    assert play.ended() == ("small", "exhausted")


def test_a_cut_stream_ends_the_climb() -> None:
    """After bytes were sent to the client no other model may answer, and no earlier answer is returned."""
    play = Playbook(Plan((SMALL, LARGE), fallbacks=(MIDDLE,))).answers(UNSURE)
    assert play.fails("stream_cut", may_move=False).ended() == ("", "failed")


def test_a_refused_request_leaves_the_earlier_answer() -> None:
    """A 4xx from the last model before any byte doesn't discard the earlier answer."""
    play = Playbook(Plan((SMALL, LARGE))).answers(UNSURE)
    assert play.fails("rejected", may_move=False).ended() == ("small", "failed")


def test_a_budget_for_one_rung_makes_it_final() -> None:
    """If no escalation can be paid for, the cheap answer streams, and the reason says what was short."""
    play = Playbook(Plan((SMALL, LARGE), limits=Limits(max_cost_usd=5.0)))
    assert play.rung.final
    assert play.answers(UNSURE).ended() == ("small", "budget")


def test_attempts_for_one_rung_make_it_final() -> None:
    """The limit of attempts makes a rung final as the budget does."""
    play = Playbook(Plan((SMALL, LARGE), limits=Limits(max_attempts=1)))
    assert play.rung.final and play.answers(UNSURE).ended() == ("small", "attempts")


def test_a_step_over_budget_is_skipped() -> None:
    """The chain goes on with the next step that the budget allows."""
    dear = Step("dear", 0.7, 100.0)
    play = Playbook(Plan((SMALL, dear, LARGE), limits=Limits(max_cost_usd=20.0))).answers(UNSURE)
    assert play.rung.model == "large" and play.rung.final


def test_no_request_is_sent_that_the_budget_cannot_hold() -> None:
    """A first step beyond the limit ends the climb before any attempt."""
    play = Playbook(Plan((LARGE,), limits=Limits(max_cost_usd=5.0)))
    assert play.ended() == ("", "budget") and play.verdict and play.verdict.attempts == 0


def test_a_hung_rung_leaves_time_for_the_next() -> None:
    """A rung that may be rejected gets half of the remaining time; the final one gets all of it."""
    play = Playbook(Plan((SMALL, LARGE), limits=Limits(deadline_s=60.0)))
    assert play.rung.timeout_s == 30.0
    assert play.fails("timeout", elapsed_s=30.0).rung.timeout_s == 30.0


def test_a_late_answer_is_kept_at_the_deadline() -> None:
    """No escalation starts at or after the deadline; the best answer so far is returned."""
    play = Playbook(Plan((SMALL, LARGE), limits=Limits(deadline_s=5.0))).answers(UNSURE, elapsed_s=5.0)
    assert play.ended() == ("small", "deadline")


def test_an_unknown_cost_is_charged_in_full() -> None:
    """A NaN or negative cost counts as the worst case, so that the limit still holds."""
    play = Playbook(Plan((SMALL, LARGE))).answers(UNSURE, cost_usd=nan).answers(cost_usd=-1.0)
    assert play.verdict and play.verdict.spent_usd == 11.0


class Pair:
    """A strategy that asks for two samples in parallel and keeps the second."""

    def next(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        return Keep(len(history) - 1) if len(history) > 1 else Ask((SMALL, SMALL), streams=False)

    def best(self, history: Sequence[Outcome]) -> None:
        return None


def test_parallel_rungs_are_all_recorded() -> None:
    """Outcomes of parallel rungs join the history in order and are paid for."""
    play = Playbook(Plan((SMALL,), strategy=Pair()))
    assert len(play.rung.beside) == 1 and not play.rung.final
    play._advance(Outcome("small", cost_usd=1.0, beside=(Outcome("small", cost_usd=2.0),)))
    assert play.verdict and (play.verdict.kept, play.verdict.spent_usd, play.verdict.attempts) == (1, 3.0, 2)


def test_a_driver_without_parallel_rungs_is_asked_again() -> None:
    """A strategy gets its samples one by one where the driver runs one rung at a time."""
    play = Playbook(Plan((SMALL,), strategy=Pair())).answers().answers()
    assert play.verdict and play.verdict.attempts == 2


@pytest.mark.parametrize(
    "plan",
    [
        lambda: Plan(()),
        lambda: Plan((SMALL, SMALL)),
        lambda: Plan((SMALL,), (SMALL,)),
        lambda: Plan((SMALL,), retries=-1),
    ],
)
def test_a_plan_that_cannot_end_well_is_refused(plan: Callable[[], Plan]) -> None:
    """A plan without a step, with a model twice or with a negative number of retries raises ValueError."""
    with pytest.raises(PlanError):
        plan()


MODELS = [f"m{i}" for i in range(6)]
STEPS = st.lists(st.tuples(st.sampled_from([0.3, 0.7, 1.0, -inf]), st.floats(0, 5)), min_size=1, max_size=4)
LOGPROB = st.floats(-6, 0) | st.just(nan)
ANSWER = st.builds(lambda lp: Outcome("", evidence=Evidence(mean_logprob=lp)), LOGPROB)
FAILURE = st.builds(
    Outcome, st.just(""), st.sampled_from(["timeout", "reset", "stream_cut", "rate_limited", "rejected"]),
    st.booleans(), st.booleans(), st.floats(0, 30) | st.just(nan),
)  # fmt: skip
LIMITS = st.builds(Limits, st.integers(1, 6), st.floats(0, 20) | st.just(inf), st.floats(0.1, 60))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    kinds = draw(STEPS)
    steps = tuple(Step(m, *kind) for m, kind in zip(MODELS, kinds, strict=False))
    spare = tuple(Step(m, -inf, 1.0) for m in MODELS[4 : 4 + draw(st.integers(0, 2))])
    return Plan(steps, spare, draw(LIMITS), draw(st.integers(0, 3)))


@given(plans(), st.lists(ANSWER | FAILURE, max_size=12), st.data())
@settings(max_examples=300, deadline=None)
def test_any_sequence_of_outcomes_ends_within_every_limit(
    plan: Plan, script: list[Outcome], data: st.DataObject
) -> None:
    """Whatever fails, the climb ends once, no limit is exceeded, every attempt is recorded, and nothing follows a final
    answer.
    """
    worst = {s.model: s.worst_cost_usd for s in (*plan.steps, *plan.fallbacks)}
    climbing, record, elapsed_s, committed = climb(plan, repeat(0.9)), list[Outcome](), 0.0, False
    outcome = None
    for turn in count():
        try:
            rung = climbing.send(outcome) if outcome else next(climbing)
        except StopIteration as stop:
            verdict: Verdict = stop.value
            break
        assert not committed, "asked on after an answer that may have been streamed"
        assert len(record) < plan.limits.max_attempts
        assert rung.timeout_s > 0 and rung.delay_s >= 0
        assert elapsed_s + rung.delay_s + rung.timeout_s <= plan.limits.deadline_s * (1 + 1e-9)
        assert sum(o.cost_usd for o in record) + worst[rung.model] <= plan.limits.max_cost_usd
        scripted = script[turn] if turn < len(script) else Outcome("")
        share = data.draw(st.floats(0, 1))
        elapsed_s += rung.delay_s + rung.timeout_s * share
        outcome = replace(scripted, model=rung.model, cost_usd=worst[rung.model] * share, elapsed_s=elapsed_s)
        record.append(outcome)
        committed = (rung.final and not outcome.failure) or (bool(outcome.failure) and not outcome.may_move)
    assert verdict.outcomes == tuple(record) and verdict.attempts == len(record)
    assert verdict.spent_usd == pytest.approx(sum(o.cost_usd for o in record))
    with pytest.raises(StopIteration):
        climbing.send(Outcome("late"))
    if verdict.kept is None:
        assert verdict.model == "" and verdict.reason in {"failed", "deadline", "budget", "attempts"}
    else:
        assert not record[verdict.kept].failure and record[verdict.kept].model == verdict.model
    if record and not record[-1].failure and committed:
        assert verdict.kept == len(record) - 1


@given(plans(), st.lists(ANSWER | FAILURE, max_size=8))
@settings(max_examples=100, deadline=None)
def test_an_earlier_answer_is_never_lost(plan: Plan, script: list[Outcome]) -> None:
    """Once a model has answered, only a stream that broke after its first byte ends without an answer."""
    climbing, outcome, rungs, record = climb(plan, repeat(0.1)), None, list[Rung](), list[Outcome]()
    while True:
        try:
            rungs.append(climbing.send(outcome) if outcome else next(climbing))
        except StopIteration as stop:
            verdict = stop.value
            break
        scripted = script[len(record)] if len(record) < len(script) else Outcome("")
        outcome = replace(scripted, model=rungs[-1].model)
        record.append(outcome)
    broke = bool(record) and rungs[-1].final and bool(record[-1].failure) and not record[-1].may_move
    assert verdict.kept is not None or broke or all(o.failure for o in record)


def test_a_chain_decides_by_its_history_alone() -> None:
    """The strategy keeps no state of its own, so a climb can be replayed from its record."""
    chain, history = Chain((SMALL, LARGE)), [Outcome("small", evidence=UNSURE)]
    assert chain.next(history, lambda _: True) == chain.next(list(history), lambda _: True)


def test_a_speculating_chain_asks_two_models_in_parallel() -> None:
    """Neither rung may stream, and the driver is told which answers end the waiting."""
    play = Playbook(Plan((SMALL, LARGE), speculates=True))
    assert (play.rung.model, [rung.model for rung in play.rung.beside]) == ("small", ["large"])
    assert not play.rung.final and not play.rung.beside[0].final and play.rung.enough is not None
    sure, unsure = Outcome("small", evidence=SURE), Outcome("small", evidence=UNSURE)
    assert play.rung.enough(sure) and not play.rung.enough(unsure) and play.rung.enough(Outcome("large"))


@pytest.mark.parametrize(
    ("evidence", "other", "kept", "reason"),
    [
        (SURE, Outcome("large", "cancelled", cost_usd=2.0), "small", "accepted"),
        (UNSURE, Outcome("large", evidence=NOTHING, cost_usd=10.0), "large", "last"),
        (UNSURE, Outcome("large", "server_error"), "small", "exhausted"),
    ],
)
def test_speculative_attempts_are_paid_for(evidence: Evidence, other: Outcome, kept: str, reason: str) -> None:
    """The cost of speculation counts, and the first answer is returned if the second model fails."""
    play = Playbook(Plan((SMALL, LARGE), speculates=True))
    play._advance(Outcome("small", evidence=evidence, cost_usd=1.0, beside=(other,)))
    assert play.ended() == (kept, reason)
    assert play.verdict is not None
    assert play.verdict.spent_usd == 1.0 + other.cost_usd and play.verdict.attempts == 2


def test_speculation_keeps_within_the_budget() -> None:
    """If both models at once would exceed the budget, they are asked in order; so they are if the driver can't run
    rungs in parallel.
    """
    tight = Plan((SMALL, LARGE), limits=Limits(max_cost_usd=10.5), speculates=True)
    assert Playbook(tight).rung.beside == ()
    play = Playbook(Plan((SMALL, LARGE), speculates=True)).answers(UNSURE)
    assert play.rung.model == "large" and play.rung.beside == ()
    play.answers()
    assert play.ended() == ("large", "last")
