"""Strategies as transcripts: which models each asks, when it stops, and which answer it keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy.stats import beta

from cascade.bestof import BestOf
from cascade.demonstrations import Case, Solved, demonstrations_for
from cascade.frugal import Scorer, chains, choose, own_chances, run
from cascade.posterior import Posterior
from cascade.prompts import demonstrated, point, refinement, skeleton, verification
from cascade.rewrite import Refine, Skeleton, points_of, suits_skeleton
from cascade.rows import EstimatedRows
from cascade.types import Evidence, Limits, Outcome, Plan, Rung, Step, Strategy
from cascade.verify import Pomdp, SelfVerification, Threshold, fit_pomdp, verdict_of
from cascade.voting import Vote, alike, samples, stays_ahead
from tests.cascade.playbook import driven, outcome_of

SMALL, LARGE = Step("small", worst_cost_usd=1.0), Step("large", worst_cost_usd=10.0)
ROOMY = Limits(max_attempts=50)
ASKED = [{"role": "user", "content": "How many?"}]


def plan(strategy: Strategy, limits: Limits = ROOMY, retries: int = 0) -> Plan:
    return Plan((SMALL, LARGE), limits=limits, retries=retries, strategy=strategy)


def scripted(*texts: str) -> Callable[[Rung], Outcome]:
    """Gives these answers in order, whichever model is asked."""
    left = list(texts)
    return lambda rung: outcome_of(rung, left.pop(0))


# -- voting


def test_a_vote_stops_when_the_leader_cannot_be_overtaken() -> None:
    """With five ballots and a required certainty of 1, three equal answers decide."""
    verdict, asked = driven(plan(Vote(samples(SMALL, 5, 0.7), certainty=1.0)), scripted("7", "7", "7"))
    assert len(asked) == 3 and verdict.kept is not None and verdict.reason == "accepted"


def test_a_vote_stops_when_the_leader_is_sure_enough() -> None:
    """Four equal answers out of many samples are 97 % sure."""
    verdict, asked = driven(plan(Vote(samples(SMALL, 20, 0.7), certainty=0.95)), scripted(*"77777"))
    assert len(asked) == 4 and stays_ahead(4, 0) == pytest.approx(0.96875) and verdict.model == "small"


def test_a_vote_ends_when_no_answer_can_win() -> None:
    """After three different answers out of six ballots none can reach five, so the large model is asked."""
    vote = Vote(samples(SMALL, 6, 0.7), LARGE, certainty=1.0, accept_share=5 / 6)
    verdict, asked = driven(plan(vote), scripted("1", "2", "3", "9"))
    assert len(asked) == 4 and verdict.model == "large"
    most = Vote(samples(SMALL, 5, 0.7), LARGE, certainty=1.0, accept_share=0.5)
    verdict, asked = driven(plan(most), scripted("1", "1", "2", "3", "4", "9"))
    assert len(asked) == 6 and verdict.model == "large"


@pytest.mark.parametrize(("first", "second"), [(1, 0), (3, 1), (5, 5), (2, 7)])
def test_the_leaders_chance_is_a_beta_probability(first: int, second: int) -> None:
    """It agrees with scipy."""
    assert stays_ahead(first, second) == pytest.approx(beta(first + 1, second + 1).sf(0.5))


def test_samples_differ_and_none_streams() -> None:
    """Each sample has its own seed, and none streams, because the vote may reject it."""
    _, asked = driven(plan(Vote(samples(SMALL, 3, 0.7), certainty=1.0)), scripted("1", "2", "1"))
    assert len({rung.overrides["seed"] for rung in asked}) == 3
    assert not any(rung.final for rung in asked)


def test_disagreement_is_escalated_and_the_escalation_streams() -> None:
    """Models that give different answers are followed by the large one."""
    vote = Vote((SMALL, Step("other")), LARGE, certainty=1.0, accept_share=1.0)
    verdict, asked = driven(plan(vote), scripted("1", "2", "3"))
    assert [r.model for r in asked] == ["small", "other", "large"] and asked[-1].final
    assert verdict.model == "large"


def test_a_tie_is_no_majority() -> None:
    """Half of the votes suffice only for an answer that leads."""
    verdict, _ = driven(plan(Vote((SMALL, Step("other")), LARGE, 1.0, accept_share=0.5)), scripted("1", "2", "3"))
    assert verdict.model == "large"


def test_agreement_saves_the_escalation() -> None:
    """The answer of two models that agree is kept."""
    verdict, asked = driven(plan(Vote((SMALL, Step("other")), LARGE, 1.0, 1.0)), scripted("42", "42."))
    assert len(asked) == 2 and verdict.kept in (0, 1)


def test_ballots_can_be_cast_in_parallel() -> None:
    """Where the driver can't run rungs in parallel they are cast one by one, with the same result."""
    vote = Vote(samples(SMALL, 3, 0.7), certainty=1.0, at_once=3)
    together, asked = driven(plan(vote), scripted("1", "1", "2"))
    alone, _ = driven(plan(vote), scripted("1", "1", "2"), together=False)
    assert len(asked[0].beside) == 2 and together.attempts == 3
    assert together.kept is not None and alone.kept is not None


def test_refusals_have_no_vote() -> None:
    """Refusals are not counted: one answer wins against two of them."""
    texts = iter(["no", "no", "5"])

    def answer(rung: Rung) -> Outcome:
        text = next(texts)
        return Outcome(rung.model, evidence=Evidence(text=text, refused=text == "no"))

    verdict, _ = driven(plan(Vote(samples(SMALL, 3, 0.7))), answer)
    assert verdict.outcomes[verdict.kept or 0].evidence.text == "5"


def test_equal_tool_calls_agree() -> None:
    """Calls with different arguments don't agree, however similar; a call doesn't agree with a text."""
    paris, rome = (Evidence(calls=f'weather({{"city":"{city}","days":3}})') for city in ("Paris", "Rome"))
    assert alike(paris, Evidence(text="One moment", calls=paris.calls)) and not alike(paris, rome)
    assert not alike(paris, Evidence()) and alike(Evidence(), Evidence())
    assert paris.said == paris.calls and Evidence(text="Here", calls="f({})").said == "Here\nf({})"


def test_early_stopping_saves_two_fifths_of_the_samples_at_equal_accuracy() -> None:
    """Simulated questions of any difficulty: adaptive sampling against twelve samples for each."""
    rng, used, adaptive, fixed = np.random.default_rng(0), 0, 0, 0
    for _ in range(300):
        p = rng.beta(2, 1)
        texts = ["right" if rng.random() < p else f"wrong{rng.integers(6)}" for _ in range(12)]
        verdict, asked = driven(plan(Vote(samples(SMALL, 12, 0.7), accept_share=0.0)), scripted(*texts))
        used += len(asked)
        adaptive += verdict.outcomes[verdict.kept or 0].evidence.text == "right"
        counts = Counter(texts)
        fixed += max(counts, key=lambda text: (counts[text], -texts.index(text))) == "right"
    assert used <= 0.6 * 12 * 300
    assert adaptive >= fixed - 0.01 * 300


# -- best of k


def judged(*scores: float) -> Callable[[Rung], Outcome]:
    left = list(scores)
    return lambda rung: Outcome(rung.model, evidence=Evidence(judged=left.pop(0)), cost_usd=1.0)


def test_best_of_stops_at_a_good_answer() -> None:
    """A confirmed answer ends the search, and the best one is kept."""
    search = BestOf(samples(SMALL, 8, 0.7), chance=0.5, price_usd=1.0, worth_usd=100.0)
    verdict, asked = driven(plan(search), judged(0.1, 0.95))
    assert len(asked) == 2 and verdict.kept == 1


def test_best_of_gives_up_on_hopeless_questions() -> None:
    """Every rejected sample lowers the value of the next one, until it is below its price."""
    search = BestOf(samples(SMALL, 30, 0.7), chance=0.5, price_usd=1.0, worth_usd=8.0)
    _, asked = driven(plan(search), judged(*[0.0] * 30))
    assert 5 < len(asked) < 20


def test_best_of_respects_the_budget() -> None:
    """The budget ends the search, and the best sample is kept."""
    search = BestOf(samples(SMALL, 30, 0.7), chance=0.9, price_usd=0.0, worth_usd=1.0)
    verdict, asked = driven(plan(search, Limits(50, max_cost_usd=3.0)), judged(*[0.2, 0.4, 0.3, 0.1]))
    assert len(asked) == 3 and verdict.kept == 1


# -- self-verification


def automix(decides: Threshold | Pomdp) -> SelfVerification:
    prompt = lambda answer: verification(ASKED, answer)  # noqa: E731
    return SelfVerification(SMALL, SMALL, prompt, LARGE, decides, votes=3)


def test_a_verified_draft_is_kept() -> None:
    """Three favourable verdicts, requested in parallel, keep the draft. No verdict is returned as the answer."""
    verdict, asked = driven(plan(automix(Threshold(0.6))), scripted("12", "Correct", "correct.", "Incorrect"))
    assert verdict.kept == 0 and len(asked) == 4 and len(asked[1].beside) == 2
    assert asked[1].overrides["messages"][-2]["content"] == "12"


@pytest.mark.parametrize("verdicts", [("no", "no", "Correct"), ("hm", "well", "...")])
def test_a_doubted_draft_is_escalated(verdicts: tuple[str, ...]) -> None:
    """Unfavourable or unreadable verdicts are followed by the large model, which streams."""
    verdict, asked = driven(plan(automix(Threshold(0.6))), scripted("12", *verdicts, "13"))
    assert verdict.model == "large" and asked[-1].final


def test_a_failed_escalation_keeps_the_draft() -> None:
    """The draft is returned, never a verdict."""
    texts = iter(["12", "no", "no", "no"])

    def answer(rung: Rung) -> Outcome:
        return Outcome("large", "reset") if rung.model == "large" else outcome_of(rung, next(texts))

    verdict, _ = driven(plan(automix(Threshold(0.6))), answer)
    assert (verdict.kept, verdict.reason) == (0, "exhausted")


def test_a_failed_draft_is_escalated() -> None:
    """Without a draft there is nothing to verify."""
    failing = lambda rung: Outcome("small", "reset") if rung.model == "small" else outcome_of(rung, "13")  # noqa: E731
    verdict, asked = driven(plan(automix(Threshold(0.6)), retries=1), failing)
    assert verdict.model == "large" and len(asked) == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("Correct", 1.0), ("That is incorrect.", 0.0), ("Yes", 1.0), ("This is not correct", 0.0)],
)
def test_verdicts_are_read(text: str, value: float) -> None:
    """A single word decides, wherever it is in the verdict."""
    assert verdict_of(text) == value


def test_an_unreadable_verdict_is_unknown() -> None:
    """A verdict with neither word is NaN."""
    assert isnan(verdict_of("perhaps"))


def test_the_pomdp_escalates_only_where_the_large_model_is_better() -> None:
    """If the large model is no better, doubt alone doesn't justify its price."""
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=600)  # 0: the small model is right; 1: only the large one; 2: neither
    shares = np.choose(kind, [0.9, 0.5, 0.1]).astype(float)
    small, large = (kind == 0).astype(float), (kind <= 1).astype(float)
    rule = fit_pomdp(shares, small, large, rate=100.0, extra_usd=np.full(600, 1e-3))
    assert rule.keeps(0.9) and not rule.keeps(0.5) and rule.keeps(0.1)
    assert isinstance(rule, Pomdp) and isinstance(rule.keeps(float("nan")), bool)


# -- rewriting


def test_a_good_draft_is_not_refined() -> None:
    """A draft with enough evidence takes one call."""
    refine = Refine(SMALL, lambda text: refinement(ASKED, text), rounds=2)
    verdict, asked = driven(plan(refine), lambda rung: outcome_of(rung, "x", -0.01))
    assert len(asked) == 1 and verdict.kept == 0


def test_a_refined_answer_is_kept_only_if_better() -> None:
    """The draft or revision with the most evidence is kept."""
    shows = iter([-0.7, -0.4, -0.9])
    refine = Refine(SMALL, lambda text: refinement(ASKED, text), rounds=2)
    verdict, asked = driven(plan(refine), lambda rung: outcome_of(rung, "x", next(shows)))
    assert len(asked) == 3 and verdict.kept == 1
    assert asked[1].overrides["messages"][1]["content"] == "x"


OUTLINE = "1. First thing\n2. Second thing\n3. Third thing"


def sketching() -> Skeleton:
    return Skeleton(SMALL, skeleton(ASKED), lambda outline, n, title: point(ASKED, outline, n, title))


def test_points_are_written_in_parallel() -> None:
    """After the outline all points are requested at once; the answer is composed in their order."""
    verdict, asked = driven(plan(sketching()), scripted(OUTLINE, "a", "b", "c"))
    assert len(asked) == 4 and len(asked[1].beside) == 2
    assert verdict.text == "1. First thing: a\n2. Second thing: b\n3. Third thing: c"


def test_points_are_written_one_by_one_where_necessary() -> None:
    """A driver that runs one rung at a time gets the same answer."""
    verdict, _ = driven(plan(sketching()), scripted(OUTLINE, "a", "b", "c"), together=False)
    assert verdict.text.endswith("Third thing: c")


@pytest.mark.parametrize("outline", ["The answer is 4.", "1. only", "2. second\n1. first"])
def test_an_unusable_outline_falls_back_to_a_plain_answer(outline: str) -> None:
    """Without a list of points the question is answered directly, streaming."""
    verdict, asked = driven(plan(sketching()), scripted(outline, "plain"))
    assert asked[-1].final and "messages" not in asked[-1].overrides
    assert verdict.kept == 1 and not verdict.text


def test_a_failed_point_falls_back_to_a_plain_answer() -> None:
    """An answer with a missing point is never returned."""
    texts = iter([OUTLINE, "a", None, "c", "plain"])

    def answer(rung: Rung) -> Outcome:
        text = next(texts)
        return Outcome(rung.model, "reset") if text is None else outcome_of(rung, text)

    verdict, asked = driven(plan(sketching()), answer)
    assert verdict.outcomes[verdict.kept or 0].evidence.text == "plain" and asked[-1].final


def test_only_lists_of_points_get_a_skeleton() -> None:
    """Maths, code and multiple-choice questions are answered directly."""
    assert suits_skeleton("What are the advantages of trains?")
    assert not suits_skeleton("Explain and solve: 3x = 9")
    assert not suits_skeleton("Describe this function:\n```def f(): ...```")
    assert points_of(OUTLINE) == ["First thing", "Second thing", "Third thing"]


# -- demonstrations


def case(text: str, *vector: float) -> Case:
    return Case(text, f"answer to {text}", np.array(vector, np.float32))


def test_the_nearest_solved_cases_are_shown_the_nearest_last() -> None:
    """Only similar cases are shown, and never the question itself."""
    store = Solved(least_similarity=0.5)
    for one in (case("near", 1, 0.1), case("nearer", 1, 0.01), case("far", -1, 0), case("self", 1, 0)):
        store.remember(one)
    found = store.nearest(np.array([1, 0], np.float32), 3, exclude="self")
    assert [one.question for one in found] == ["near", "nearer"]


def test_a_store_is_bounded_and_ignores_zero_vectors() -> None:
    """A new case replaces the oldest; a zero vector has no neighbours."""
    store = Solved(most=2)
    for i in range(3):
        store.remember(case(str(i), 1, i))
    assert len(store) == 2
    with pytest.raises(ValueError, match="length"):
        store.remember(case("zero", 0, 0))


def test_harder_questions_get_more_demonstrations() -> None:
    """None are shown where the model is good enough, all where it is hopeless or its quality unknown."""
    assert [demonstrations_for(q) for q in (0.95, 0.5, 0.0, float("nan"))] == [0, 3, 5, 5]


def test_demonstrations_stand_before_the_last_turn() -> None:
    """The client's own messages stay complete and in order."""
    messages = [{"role": "system", "content": "s"}, *ASKED]
    shown = demonstrated(messages, [("q", "a")])["messages"]
    assert [m["content"] for m in shown] == ["s", "q", "a", "How many?"]


# -- FrugalGPT


def world(n: int = 300) -> tuple[Posterior, EstimatedRows]:
    from cascade.rows import TrainingSettings
    from cascade.train import train
    from tests.cascade.worlds import part

    rows = part(n, seed=11)
    return train(rows, TrainingSettings(estimate_folds=2, folds=2, depth=1, pool=3, rates=4)).posterior, rows


def test_a_chain_under_a_budget_beats_its_first_model() -> None:
    """The best chain within the budget is better than the cheap model, and its cost is within the budget."""
    posterior, rows = world()
    chances = own_chances(posterior, rows.scene)
    found = list(chains(chances, rows.scores, rows.paid.answer, rows.paid.read))
    budget = 0.5 * float(rows.paid.answer[:, 2].mean())
    best = choose(found, budget_usd=budget)
    assert best.cost_usd <= budget and best.quality > rows.scores[:, 0].mean() and len(best.models) > 1
    quality, cost = run(best.models, best.accept_at, chances, rows.scores, rows.paid.answer, rows.paid.read)
    assert (quality.mean(), cost.mean()) == pytest.approx((best.quality, best.cost_usd))
    with pytest.raises(ValueError, match="no chain"):
        choose(found, budget_usd=0.0)


def test_the_plan_scores_an_answer_as_the_search_did() -> None:
    """The confidence of a row in the plan equals the chance that it was selected by."""
    posterior, rows = world(120)
    chances = own_chances(posterior, rows.scene)
    scorer = Scorer(posterior, rows.scene.prior[:1])
    logprob = float(rows.logged.data.confidence[0, 1])
    assert scorer("middle", Evidence(logprob, logprob)) == pytest.approx(chances[0, 1])
    assert isnan(scorer("middle", Evidence())) and scorer("middle", Evidence(refused=True)) == 0.0


# -- all of them


STRATEGIES = st.sampled_from(
    [
        Vote(samples(SMALL, 5, 0.7), LARGE),
        Vote(samples(SMALL, 4, 0.7), at_once=4),
        BestOf(samples(SMALL, 5, 0.7), 0.5, 0.1, 1.0),
        automix(Threshold(0.5)),
        Refine(SMALL, lambda text: refinement(ASKED, text), rounds=2),
        sketching(),
    ]
)
ANSWERS = st.sampled_from(["1", "2", "Correct", "no", OUTLINE, ""])
OUTCOMES = st.builds(
    lambda text, p, fails, passes, moves: Outcome(
        "", "reset" if fails else "", passes, moves, evidence=Evidence(judged=p, text=text)
    ),
    ANSWERS,
    st.floats(0, 1) | st.just(float("nan")),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@given(STRATEGIES, st.lists(OUTCOMES, max_size=20), st.integers(1, 8), st.floats(0, 15), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_strategy_ends_within_its_limits(
    strategy: Strategy, script: list[Outcome], most: int, money: float, together: bool
) -> None:
    """Whatever fails, it ends, no limit is exceeded, only a received answer is kept, and nothing follows a final
    answer.
    """
    left = iter(script)

    def answer(rung: Rung) -> Outcome:
        came = next(left, Outcome("", evidence=Evidence(text="1")))
        return replace(came, model=rung.model, cost_usd={"small": 1.0, "large": 10.0}[rung.model])

    verdict, asked = driven(plan(strategy, Limits(most, money), retries=1), answer, together=together)
    assert verdict.attempts == len(verdict.outcomes) <= most
    assert verdict.spent_usd <= money
    if verdict.kept is not None:
        assert not verdict.outcomes[verdict.kept].failure
    finals = [i for i, rung in enumerate(asked) if rung.final]
    assert all(verdict.outcomes[i].failure for i in finals[:-1])
