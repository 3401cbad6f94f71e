from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from routers.compiled import Compiled
from routers.cost import LogLinear
from routers.estimators.ensemble import Ensemble
from routers.projection import Projection
from tests.routers.worlds import world


@pytest.mark.parametrize("one_task", [False, True])
def test_it_predicts_what_the_ensemble_predicts(one_task: bool) -> None:
    """One product gives the same quality and cost as four estimators in turn."""
    data, _ = world(600)
    projection = Projection(8).fit(data.x)
    data = replace(data, x=projection.apply(data.x).astype(float))
    if one_task:
        data = replace(data, tasks=[""] * len(data.tasks))
    ensemble = Ensemble().fit(data)
    cost = LogLinear().fit(data.x, np.outer(np.exp(0.2 * data.x[:, 2]), [1e-5, 1e-4, 1e-3]))
    compiled = Compiled(projection, ensemble, cost)
    raw, _ = world(50, seed=3)
    z = projection.apply(raw.x).astype(float)
    quality, _ = ensemble.predict(z)
    for i in range(50):
        found, sd, spent = compiled.estimate(raw.x[i].astype(np.float32))
        assert found == pytest.approx(quality[i], abs=2e-3)
        assert spent == pytest.approx(cost.predict(z[i : i + 1])[0], rel=1e-3)
        assert ((sd > 0) & (sd < 0.5)).all()


def test_without_costs_it_gives_none() -> None:
    """Where nothing was learnt of costs, none is made up."""
    data, _ = world(200)
    projection = Projection(8).fit(data.x)
    ensemble = Ensemble().fit(replace(data, x=projection.apply(data.x).astype(float)))
    assert len(Compiled(projection, ensemble, None).estimate(data.x[0].astype(np.float32))[2]) == 0
