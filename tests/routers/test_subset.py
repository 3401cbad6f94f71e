"""Which models to keep loaded: the choice is near the optimum, and always within its limits."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from routers import subset_fit
from routers.bench import subset as subset_bench
from routers.estimators.base import Matrix
from routers.outcomes import DataError, Outcomes, fully_priced
from routers.subset import Fleet, Limits, NoSubset, SubsetChoice, exact, gated, greedy, judged, kept

GREEDY = 1.0 - 1.0 / math.e
SEEDS = st.integers(0, 2**32 - 1)


def fleet(seed: int, spends: tuple[str, ...] = (), memory: bool = False, most: int = 7) -> Fleet:
    """Models of various quality, price and size."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 30)), int(rng.integers(1, most))
    quality = rng.random((n, m)) * rng.random(m)
    costs = {name: rng.random((n, m)) * rng.random(m) * 2.0 for name in spends}
    return Fleet(quality, costs, rng.random(m) if memory else None)


def every(found: Fleet, limits: Limits) -> list[SubsetChoice]:
    """Every subset within the limits, by plain enumeration."""
    m = found.quality.shape[1]
    subsets = [s for k in range(1, limits.models + 1) for s in itertools.combinations(range(m), k)]
    return [choice for s in subsets if (choice := judged(found, limits, s)) is not None]


def keeps(found: Fleet, limits: Limits, choice: SubsetChoice) -> None:
    """Applied to the same rows, the gate spends what the choice states and no more than allowed."""
    picks = gated(choice, found.quality, found.spends)
    rows = np.arange(len(picks))
    assert set(picks.tolist()) <= set(choice.models) and 0 < len(choice.models) <= limits.models
    assert choice.worth == pytest.approx(found.quality[rows, picks].mean())
    for name, most in limits.means.items():
        assert found.spends[name][rows, picks].mean() == pytest.approx(choice.spent[name], rel=1e-6, abs=1e-9)
        assert choice.spent[name] <= most * (1.0 + 1e-5)
    if found.memory is not None:
        assert found.memory[list(choice.models)].sum() <= limits.memory


@given(SEEDS, st.integers(1, 5))
def test_greedy_reaches_its_share_of_the_best_subset(seed: int, models: int) -> None:
    """It reaches at least 1 - 1/e of the optimum if only the number of models is limited; the search finds the optimum.
    """
    found, limits = fleet(seed), Limits(models)
    best = max(np.max(found.quality[:, c.models], 1).mean() for c in every(found, limits))
    assert exact(found, limits).worth == pytest.approx(best)
    assert best + 1e-12 >= greedy(found, limits).worth >= GREEDY * best


@given(SEEDS, st.floats(0.05, 3.0))
def test_greedy_reaches_half_of_that_under_memory(seed: int, memory: float) -> None:
    """The better one of gain and gain per byte does."""
    found = fleet(seed, memory=True)
    limits = Limits(found.quality.shape[1], memory=memory)
    choices = every(found, limits)
    assume(choices)
    best = max(choice.worth for choice in choices)
    assert exact(found, limits).worth == pytest.approx(best)
    assert greedy(found, limits).worth >= GREEDY / 2.0 * best


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 3), st.floats(0.05, 1.5), st.floats(0.05, 1.5), st.floats(0.2, 2.0))
def test_all_limits_are_kept_at_once(seed: int, models: int, usd: float, joules: float, memory: float) -> None:
    """Every choice is within them, the search finds the optimum, and if no subset is possible NoSubset is raised."""
    found = fleet(seed, ("usd", "joules"), memory=True, most=6)
    limits = Limits(models, {"usd": usd, "joules": joules}, memory)
    choices = every(found, limits)
    if not choices:
        for way in (greedy, exact, kept):
            with pytest.raises(NoSubset, match="keeps within usd"):
                way(found, limits)
        return
    best, quick = exact(found, limits), greedy(found, limits)
    keeps(found, limits, best)
    keeps(found, limits, quick)
    assert best.worth == pytest.approx(max(choice.worth for choice in choices))
    assert quick.worth <= best.worth + 1e-12


@given(SEEDS, st.floats(0.05, 1.5))
def test_one_price_is_optimal_up_to_one_query(seed: int, usd: float) -> None:
    """Under a single mean limit the gate is worth as much as the best mixed assignment, up to one query's value."""
    found = fleet(seed, ("usd",))
    whole = judged(found, Limits(found.quality.shape[1], {"usd": usd}), range(found.quality.shape[1]))
    assume(whole is not None)
    assert whole is not None
    price = whole.prices["usd"]
    dual = (found.quality - price * found.spends["usd"]).max(1).mean() + price * usd
    assert dual - whole.worth <= 1.0 / len(found.quality) + 1e-2


def test_a_tight_limit_selects_cheap_models_and_a_loose_one_good_models() -> None:
    """In between both are loaded, each for the queries on which it is worth its cost."""
    gain = np.linspace(0.0, 0.8, 100)
    quality = np.column_stack([np.full(100, 0.2), 0.2 + gain, np.zeros(100)])
    found = Fleet(quality, {"s": np.tile([1.0, 3.0, 0.5], (100, 1))})
    assert kept(found, Limits(2, {"s": 1.0})).spent["s"] <= 1.0 + 1e-5
    assert kept(found, Limits(2, {"s": 4.0})).models == (1,)
    half = kept(found, Limits(2, {"s": 2.0}))
    assert half.models == (0, 1)
    assert half.spent["s"] == pytest.approx(2.0, abs=0.03)
    assert (np.diff(gated(half, found.quality, found.spends)) >= 0).all()


def test_a_limit_may_be_met_exactly() -> None:
    """The least that can be spent is a valid limit."""
    found = Fleet(np.array([[0.1, 0.9], [0.1, 0.9]]), {"usd": np.array([[1.0, 2.0], [1.0, 2.0]])})
    assert kept(found, Limits(2, {"usd": 1.0})).worth == pytest.approx(0.1)
    with pytest.raises(NoSubset, match=r"no subset of 2 or fewer of 2 models keeps within usd 0\.999"):
        kept(found, Limits(2, {"usd": 0.999}))


def test_gain_per_byte_finds_two_small_models() -> None:
    """By gain alone one large model would be chosen instead."""
    quality = np.array([[0.6, 0.9, 0.0], [0.6, 0.0, 0.9]])
    found = Fleet(quality, memory=np.array([2.0, 1.0, 1.0]))
    assert greedy(found, Limits(3, memory=2.0)).models == (1, 2)


def test_swaps_replace_a_greedy_choice() -> None:
    """The model that is best alone is worth nothing beside two that complement each other."""
    found = Fleet(np.array([[0.6, 1.0, 0.0]] * 2 + [[0.6, 0.0, 1.0]] * 2))
    assert greedy(found, Limits(1)).models == (0,)
    assert greedy(found, Limits(2)).models == (1, 2)


def test_the_search_finds_what_greed_and_swaps_miss() -> None:
    """The upper bound must include what the limit's price gives back."""
    rng = np.random.default_rng(8)
    quality = (rng.random((6, 8)) < 0.4) * rng.integers(1, 4, (6, 8)) / 3
    found, limits = Fleet(quality, {"usd": rng.integers(1, 9, (6, 8)).astype(float)}), Limits(3, {"usd": 2.5})
    best = max(choice.worth for choice in every(found, limits))
    assert greedy(found, limits).worth < best - 0.1
    assert exact(found, limits).worth == pytest.approx(best)


def test_a_model_without_gain_is_not_loaded() -> None:
    """Free memory alone is no reason."""
    found = Fleet(np.array([[0.9, 0.5, 0.9], [0.8, 0.1, 0.8]]))
    assert greedy(found, Limits(3)).models == exact(found, Limits(3)).models == (0,)


def test_a_single_model_is_chosen() -> None:
    """It is chosen if it is within the limits."""
    found = Fleet(np.full((3, 1), 0.4), {"usd": np.ones((3, 1))}, np.array([8.0]))
    alone = SubsetChoice((0,), pytest.approx(0.4), {"usd": 1.0}, {"usd": 0.0})  # type: ignore[arg-type]
    assert kept(found, Limits(1, {"usd": 1.5}, 8.0)) == alone
    with pytest.raises(NoSubset, match="memory 7"):
        kept(found, Limits(1, memory=7.0))


def test_a_large_fleet_is_chosen_greedily() -> None:
    """The exhaustive search is refused for it."""
    quality = np.random.default_rng(0).random((50, 40))
    limits = Limits(5)
    assert kept(Fleet(quality), limits) == greedy(Fleet(quality), limits)
    with pytest.raises(ValueError, match="40 models: at most 16"):
        exact(Fleet(quality), limits)


@pytest.mark.parametrize(
    ("quality", "spends", "memory", "said"),
    [
        (np.array([[0.1, np.nan]]), {}, None, "quality: every number must be known"),
        (np.ones((1, 2)), {"usd": np.array([[np.nan, 1.0]])}, None, "usd: every number must be known"),
        (np.ones((1, 2)), {"usd": -np.ones((1, 2))}, None, "usd: .* not negative"),
        (np.ones((1, 2)), {"usd": np.ones((2, 2))}, None, "usd of shape"),
        (np.ones((1, 2)), {}, np.array([1.0, np.inf]), "memory: every number"),
        (np.ones((0, 2)), {}, None, "at least one query"),
        (np.ones((2, 0)), {}, None, "at least one query"),
    ],
)
def test_gaps_are_refused(quality: Matrix, spends: dict[str, Matrix], memory: Matrix | None, said: str) -> None:
    """Missing outcomes aren't filled."""
    with pytest.raises(ValueError, match=said):
        Fleet(quality, spends, memory)


def test_invalid_limits_are_refused() -> None:
    """These are no model, nothing to spend, NaN, and a spend or memory without data."""
    for limits, said in (
        ({"models": 0}, "at least one"),
        ({"models": 1, "means": {"usd": 0.0}}, "usd: 0.0 is not positive"),
        ({"models": 1, "means": {"usd": math.nan}}, "usd: nan"),
        ({"models": 1, "memory": -1.0}, "memory: -1.0"),
    ):
        with pytest.raises(ValueError, match=said):
            Limits(**limits)
    found = Fleet(np.ones((2, 2)))
    with pytest.raises(ValueError, match="limit of joules: the fleet's spends are none"):
        kept(found, Limits(1, {"joules": 1.0}))
    with pytest.raises(ValueError, match="does not say what its models need"):
        kept(found, Limits(1, memory=1.0))


def outcomes(latency: bool, models: int = 3, n: int = 80) -> Outcomes:
    """Every model answers one kind of question; later models cost more."""
    rng = np.random.default_rng(1)
    kinds = rng.integers(0, models, n)
    scores = (rng.random((n, models)) < np.where(kinds[:, None] == np.arange(models), 0.9, 0.3)).astype(float)
    blank, cost = np.full((n, models), np.nan), np.tile(np.arange(1.0, models + 1.0), (n, 1))
    words = ("Solve this equation for x", "Who was the king of France", "Write a loop in Python", "Rhyme with moon")
    return Outcomes(
        tuple(map(str, range(n))), tuple(f"{words[k % 4]} {i}" for i, k in enumerate(kinds.tolist())), ("",) * n,
        np.array(["train", "test"] * (n // 2)), tuple(f"m{j}" for j in range(models)), scores,
        cost, cost, blank, blank, cost / 2.0 if latency else blank, blank, blank,
    )  # fmt: skip


@pytest.mark.parametrize("latency", [False, True])
def test_the_check_reports_every_size_under_every_limit(latency: bool) -> None:
    """Latency is limited where it is known, and reported as unknown otherwise."""
    train, test, models = subset_fit.expected(outcomes(latency), "linear", 16)
    report = subset_bench.compared(train, test, models, 2)
    assert len(report["limits"]) == (9 if latency else 3)
    assert report["latency known"] is latency
    for row in report["limits"][0]["sizes"]:
        assert GREEDY <= row["share of the exhaustive worth"] <= 1.0 + 1e-12
        assert 1 <= len(row["chosen"]) <= row["models"]
    said = subset_bench._told(report)
    assert ("latency is not known" in said) is not latency


def test_a_wrong_command_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The line says what is wrong."""
    for words, said in (([], "queries.parquet: no such file"), (["--most", "0"], "--most 0: at least one")):
        monkeypatch.setattr("sys.argv", ["subset", str(tmp_path), *words])
        with pytest.raises(SystemExit):
            subset_bench.main()
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_check_refuses_more_models_than_it_can_search() -> None:
    """The error says how many models there are."""
    with pytest.raises(DataError, match="20 models"):
        subset_fit.expected(outcomes(False, 20), "linear", 16)


def test_outcomes_without_costs_are_refused() -> None:
    """The error names the missing field."""
    free = outcomes(latency=False)
    with pytest.raises(DataError, match="field cost_usd"):
        fully_priced(replace(free, cost_usd=np.full_like(free.cost_usd, np.nan)))
