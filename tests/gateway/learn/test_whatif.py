"""The effect of another knob, against a known truth."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from gateway.learn.dataset import Log, NothingLogged, Scored, log_of, training_data
from gateway.learn.whatif import Policy, valued, what_if
from gateway.learn.whatif_check import checked, environment, journal
from routers.features import shipped_featurizer
from routers.fit import fit_learned
from routers.plugin import PluginRouter
from routers.registry import estimator_named
from routers.select import Exploration
from routers.simple import Weighted
from routers.types import Knobs
from tests.gateway.learn.world import TRUTH, Town, candidates

EVEN = Weighted({"small": 1.0, "middle": 1.0, "large": 1.0})


def trained(log: Log, explore: float = 0.0, version: str = "1") -> PluginRouter:
    data, x = training_data(log)
    learned = fit_learned(estimator_named("linear"), data, x, shipped_featurizer().layout)
    return PluginRouter("linear", version, shipped_featurizer().version, learned, Exploration(explore))


@pytest.fixture(scope="module")
def even_log() -> Log:
    return log_of(Town(1).decisions(EVEN, 1500))


def test_a_knobs_effect_has_the_truth_in_its_interval(even_log: Log) -> None:
    """Quality and cost of cost weights that never served are within the intervals estimated from the log."""
    router, town = trained(even_log), Town(5)
    told = []
    for weight in (0.0, 0.6, 0.95):
        policy = Policy(router, candidates(), Knobs(cost_weight=weight))
        answer = what_if(even_log, policy)
        quality, cost = town.worth(router, policy.knobs)
        assert not answer.refusals
        # the truth is measured on 400 questions, with an error of its own
        assert answer.figures["quality"].then.low - 0.03 <= quality <= answer.figures["quality"].then.high + 0.03
        assert answer.figures["cost_usd"].then.value == pytest.approx(cost, rel=0.1)
        told.append(answer.figures["cost_usd"].then.value)
    assert told[0] > told[1] > told[2]


def test_an_untried_policy_is_refused_with_its_price() -> None:
    """The log of a router that always chose one model can't value another policy."""
    log = log_of(Town(2).decisions(Weighted({"small": 1.0}), 200))
    answer = what_if(log, Policy(Weighted({"large": 1.0}), candidates(), Knobs()))
    assert set(answer.refusals) == {"quality", "cost_usd", "latency_s"} and not answer.figures
    told = answer.as_dict()
    assert told["quality"] is None
    assert "more explored calls needed" in told["refusals"]["quality"]["message"]
    assert answer.then_shares["large"] == 1.0


def test_enough_exploration_is_answered() -> None:
    """With the calls that the refusal asked for there is an answer, from those calls alone, and it says so."""
    town, policy = Town(12), Policy(Weighted({"large": 1.0}), candidates(), Knobs())
    before = town.decisions(Weighted({"small": 1.0}), 1000)
    told = what_if(log_of(before), policy).refusals["quality"]
    drawn = told.exploration / 2  # the log has two models
    trying = Weighted({"small": 1.0 - drawn, "large": drawn})
    calls = round(1.3 * told.calls)
    answer = what_if(log_of([*before, *town.decisions(trying, calls)]), policy)
    assert answer.passed_over >= 900 and answer.rounds == 1000 + calls - answer.passed_over
    figure = answer.figures["quality"].then
    assert figure.low <= 0.935 <= figure.high


def test_changes_within_the_log_are_reported() -> None:
    """If a model became worse, or prices have changed, the figures are those of the past."""
    worse = {kind: {**scores, "large": 0.2} for kind, scores in TRUTH.items()}
    log = log_of([*Town(13).decisions(EVEN, 500), *later(Town(14, worse).decisions(EVEN, 500))])
    dearer = [replace(one, output_usd_per_mtok=9.9) if one.model == "small" else one for one in candidates()]
    notes = what_if(log, Policy(EVEN, dearer, Knobs())).notes
    assert len(notes) == 2
    assert notes[0].startswith("answers of large went from 0.9") and " UTC" in notes[0]
    assert notes[1].startswith("100% of what small answered was paid at other prices")
    assert not what_if(log_of(Town(13).decisions(EVEN, 500)), Policy(EVEN, candidates(), Knobs())).notes


def later(decisions: list[Scored]) -> list[Scored]:
    return [(msgspec.structs.replace(record, time_s=record.time_s + 1e6), score) for record, score in decisions]


def test_a_new_model_is_refused(even_log: Log) -> None:
    """A model that isn't in the log can't be valued."""
    new = [*candidates(), candidates(["large"])[0].__class__("brand-new", 0.1, 0.1)]
    answer = what_if(even_log, Policy(Weighted({"brand-new": 1.0}), new, Knobs()))
    assert answer.refusals and answer.refusals["quality"].overlap.unsupported == 1.0


def test_the_logged_policy_differs_from_itself_by_nothing(even_log: Log) -> None:
    """The difference is zero, and every round counts."""
    answer = what_if(even_log, Policy(EVEN, candidates(), Knobs()))
    assert answer.effective == pytest.approx(len(even_log))
    for figure in answer.figures.values():
        assert abs(figure.difference.value) < 1e-9 and figure.difference.half_width < 1e-9


SPOKEN = {"small": 1.0, "middle": 0.5, "large": 0.15}


def partly_scored(seed: int, n: int, shares: dict[str, float] = SPOKEN) -> Log:
    """A log in which some models' answers are scored more often than others'."""
    rng = np.random.default_rng(seed)
    decisions = Town(seed).decisions(EVEN, n)
    return log_of([(record, score if rng.random() < shares[record.model] else None) for record, score in decisions])


def test_the_figures_of_a_quantity_add_up() -> None:
    """Even with few scores, the new value is the present one plus the difference."""
    for policy in (EVEN, Weighted({"small": 1.0, "large": 1.0})):
        figure = what_if(partly_scored(0, 1200), Policy(policy, candidates(), Knobs())).figures["quality"]
        assert figure.then.value == pytest.approx(figure.now.value + figure.difference.value)


def test_rarely_scored_models_count_fully() -> None:
    """The value of the log and of a mixture is that of all requests, and not of the scored ones."""
    truth = {model: sum(kind[model] for kind in TRUTH.values()) / 2 for model in SPOKEN}
    half = Weighted({"small": 1.0, "large": 1.0})
    held = {"now": 0, "then": 0, "difference": 0}
    for seed in range(12):
        figure = what_if(partly_scored(seed, 1200), Policy(half, candidates(), Knobs())).figures["quality"]
        now, then = sum(truth.values()) / 3, (truth["small"] + truth["large"]) / 2
        for name, true in (("now", now), ("then", then), ("difference", then - now)):
            told = getattr(figure, name)
            held[name] += bool(told.low <= true <= told.high)
    assert min(held.values()) >= 10


def test_a_model_without_scores_is_refused() -> None:
    """Its answers were logged, but their quality is unknown."""
    log = partly_scored(3, 600, {"small": 1.0, "middle": 1.0, "large": 0.0})
    answer = what_if(log, Policy(Weighted({"small": 1.0, "large": 1.0}), candidates(), Knobs()))
    assert "nothing is known" in answer.refusals["quality"].reason and "cost_usd" in answer.figures


def test_the_calls_that_a_refusal_asks_for_suffice_where_few_are_scored() -> None:
    """One answer in ten is scored, so it asks for ten times the calls."""
    policy = Policy(Weighted({"large": 1.0}), candidates(), Knobs())
    told = what_if(partly_scored(4, 300, dict.fromkeys(SPOKEN, 0.1)), policy).refusals["quality"]
    more = what_if(partly_scored(4, 300 + round(1.3 * told.calls), dict.fromkeys(SPOKEN, 0.1)), policy)
    assert "quality" in more.figures


def test_few_scores_refuse_quality_but_not_cost() -> None:
    """Costs are known for every round."""
    log = log_of(Town(3).decisions(EVEN, 600, labelled=0.05))
    answer = what_if(log, Policy(trained(log), candidates(), Knobs(cost_weight=0.5)))
    assert "quality" in answer.refusals and "cost_usd" in answer.figures


def test_a_log_without_vectors_is_refused() -> None:
    """A router that reads features can't decide again without them."""
    made = Town(4).decisions(EVEN, 50)
    decisions = [(msgspec.structs.replace(record, vector=b"", prompt_text=""), score) for record, score in made]
    router = PluginRouter("linear", "1", shipped_featurizer().version)
    with pytest.raises(NothingLogged, match="features"):
        what_if(log_of(decisions), Policy(router, candidates(), Knobs()))


def test_intervals_hold_over_many_journals(even_log: Log) -> None:
    """In at least 34 of 40 journals of 300 decisions the interval contains the policy's true quality."""
    router = trained(even_log)
    policy = Policy(router, candidates(), Knobs(cost_weight=0.5))
    truth, _ = Town(77).worth(router, policy.knobs, 2000)
    held = 0
    for seed in range(40):
        figure = what_if(log_of(Town(100 + seed).decisions(EVEN, 300)), policy).figures["quality"].then
        held += bool(figure.low <= truth <= figure.high)
    assert held >= 34
    assert np.isfinite(truth)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_intervals_hold_where_rare_choices_matter(share: float) -> None:
    """There are 40 logs each of three policies, valued for near and far policies. Every figure that is reported holds
    at least 37 times in 40; intervals from the observed choices alone hold 33 times.
    """
    found = list(checked(environment(0), 40, 1000, share, seed=3))
    assert sum(len(one.held) for one in found) >= 40
    for figure in sorted({figure for one in found for figure in one.held}):
        held = [hit for one in found for hit in one.held.get(figure, ())]
        assert np.mean(held) >= 37 / 40, figure


def test_intervals_are_narrow_with_much_data() -> None:
    """With 5,000 scored rounds of a policy that often tries all models, the difference to a similar policy is known to
    a hundredth.
    """
    found = [one for one in checked(environment(0), 2, 5000, 1.0) if one.logging == "soft"]
    widths = {one.asked: float(np.mean(one.half_widths["quality difference"])) for one in found}
    assert widths["near"] < 0.011 and widths["further"] < 0.017


def test_a_refusal_does_not_depend_on_luck() -> None:
    """Logs of one policy are refused for another one alike, whether or not its rare choices were drawn."""
    rng, refused = np.random.default_rng(5), set[bool]()
    made = environment(0)
    for _ in range(20):
        log, rows = journal(made, "explore .03", 300, 1.0, rng)
        refused.add("quality" in valued(log, made.asked["dearest"][rows]).refusals)
    assert refused == {True}


def test_the_scored_share_is_reported(even_log: Log) -> None:
    """A log doesn't show whether the scored answers differ from the others."""
    policy = Policy(EVEN, candidates(), Knobs())
    notes = what_if(partly_scored(6, 600, dict.fromkeys(SPOKEN, 0.3)), policy).notes
    assert len(notes) == 1 and notes[0].endswith("typical of all its answers")
    assert not what_if(even_log, policy).notes
