"""Properties that every estimator and every router must have, including those of other packages.

Each `check_...` raises AssertionError with what was broken. Tests run all of them on everything that the registry
knows. An estimator of your own is a subclass of `routers.estimators.base.Estimator` in an installed package:

    [project.entry-points."headgate.estimators"]
    mine = "my_package.mine:Mine"       # Mine.kind == "mine"

Run the checks on it (`for check in ESTIMATOR_CHECKS: check(Mine)`); then `headgate train --router mine` and `headgate
evaluate --router mine` know it, and gateways where the package is installed serve what it has learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from routers.estimators.base import Estimator, Matrix, Training, observed_mean
from routers.types import Candidate, Knobs, Query, Router

Make = Callable[[], Estimator]


def training(n: int = 240, missing: float = 0.0, seed: int = 0) -> tuple[Training, Matrix]:
    """A small world with a known truth: the first feature decides which of three models is right."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    logits = np.stack([-0.5 + 2.0 * x[:, 0], 0.5 + 0.0 * x[:, 0], 1.0 - 1.5 * x[:, 0]], 1)
    truth = 1.0 / (1.0 + np.exp(-logits))
    scores = (rng.random(truth.shape) < truth).astype(float)
    scores[rng.random(truth.shape) < missing] = np.nan
    scores[0] = 1.0
    tasks = ["a" if value > 0 else "b" for value in x[:, 0]]
    return Training(x, scores, tasks, ("a", "b", "c"), seed), truth


def check_estimates_are_probabilities(make: Make) -> None:
    data, _ = training()
    mean, sd = make().fit(data).predict(data.x, data.tasks)
    assert mean.shape == sd.shape == data.scores.shape, "shape"
    assert np.isfinite(mean).all() and np.isfinite(sd).all(), "finite"
    assert (mean >= 0).all() and (mean <= 1).all() and (sd > 0).all(), "range"


def check_fit_returns_itself_and_leaves_its_input(make: Make) -> None:
    data, _ = training()
    x, scores = data.x.copy(), data.scores.copy()
    estimator = make()
    assert estimator.fit(data) is estimator, "fit returns self"
    estimator.predict(data.x, data.tasks)
    assert np.array_equal(x, data.x) and np.array_equal(scores, data.scores), "input was changed"


def check_seeded_fits_repeat(make: Make) -> None:
    data, _ = training()
    one, other = (make().fit(data).predict(data.x, data.tasks)[0] for _ in range(2))
    assert np.allclose(one, other), "two fits of one seed differ"


def check_state_holds_everything(make: Make) -> None:
    data, _ = training()
    old = make().fit(data)
    new = type(old)(**old.parameters()).restore(old.state())
    for one, other in zip(old.predict(data.x, data.tasks), new.predict(data.x, data.tasks), strict=True):
        assert np.allclose(one, other), "a restored estimator predicts otherwise"


def check_missing_scores_are_allowed(make: Make) -> None:
    data, _ = training(missing=0.5)
    mean, sd = make().fit(data).predict(data.x, data.tasks)
    assert np.isfinite(mean).all() and np.isfinite(sd).all(), "finite"


def check_logged_rows_are_enough(make: Make) -> None:
    """One observation a row, as bandit feedback gives."""
    data, _ = training()
    seen = np.random.default_rng(1).integers(0, 3, len(data.x))
    alone = np.where(np.arange(3) == seen[:, None], data.scores, np.nan)
    mean, _ = make().fit(replace(data, scores=alone)).predict(data.x, data.tasks)
    assert np.isfinite(mean).all(), "finite"


def check_a_row_alone_is_a_row_among_many(make: Make) -> None:
    data, _ = training()
    estimator = make().fit(data)
    many = estimator.predict(data.x[:5], data.tasks[:5])[0]
    alone = np.vstack([estimator.predict(data.x[i : i + 1], data.tasks[i : i + 1])[0] for i in range(5)])
    assert np.allclose(many, alone, atol=1e-5), "batch and single rows differ"


def check_it_learns(make: Make) -> None:
    """Nearer to the truth, on queries it never saw, than the models' plain means."""
    data, _ = training(n=1500)
    fresh, truth = training(n=600, seed=5)
    mean, _ = make().fit(data).predict(fresh.x, fresh.tasks)
    error = float(((mean - truth) ** 2).mean())
    plain = float(((observed_mean(data.scores) - truth) ** 2).mean())
    assert error < 0.8 * plain, f"squared error {error:.4f}, of plain means {plain:.4f}"


def check_probabilities_are_exact(router: Router, query: Query, pool: Sequence[Candidate]) -> None:
    counts = dict.fromkeys((c.model for c in pool), 0)
    draws = 200
    for i in range(draws):
        choice = router.choose(query, pool, Knobs(), (i + 0.5) / draws)
        assert abs(sum(choice.probabilities.values()) - 1.0) < 1e-9, "sum"
        assert choice.propensity == choice.probabilities[choice.model] > 0, "propensity of the drawn model"
        counts[choice.model] += 1
    for model, share in choice.probabilities.items():
        assert abs(counts[model] / draws - share) <= 1.5 / draws, f"{model}: {counts[model] / draws} of {share}"


def check_excluded_models_are_named_and_never_drawn(router: Router, query: Query, pool: Sequence[Candidate]) -> None:
    down = [replace(pool[0], healthy=False), *pool[1:]]
    for i in range(20):
        choice = router.choose(query, down, Knobs(), i / 20)
        assert choice.model != pool[0].model and pool[0].model not in choice.probabilities, "drawn"
        assert choice.excluded[pool[0].model] == "unhealthy", "reason"


def check_one_draw_repeats(router: Router, query: Query, pool: Sequence[Candidate]) -> None:
    one, other = (router.choose(query, pool, Knobs(), 0.37) for _ in range(2))
    assert repr(one) == repr(other), "two choices of one draw differ"


def check_ranking_holds_every_eligible_model(router: Router, query: Query, pool: Sequence[Candidate]) -> None:
    choice = router.choose(query, pool, Knobs(explore=False), 0.5)
    assert sorted(choice.ranked) == sorted(choice.probabilities), "ranked"


ESTIMATOR_CHECKS: tuple[Callable[[Make], None], ...] = (
    check_estimates_are_probabilities,
    check_fit_returns_itself_and_leaves_its_input,
    check_seeded_fits_repeat,
    check_state_holds_everything,
    check_missing_scores_are_allowed,
    check_logged_rows_are_enough,
    check_a_row_alone_is_a_row_among_many,
    check_it_learns,
)
ROUTER_CHECKS: tuple[Callable[[Router, Query, Sequence[Candidate]], None], ...] = (
    check_probabilities_are_exact,
    check_excluded_models_are_named_and_never_drawn,
    check_one_draw_repeats,
    check_ranking_holds_every_eligible_model,
)
