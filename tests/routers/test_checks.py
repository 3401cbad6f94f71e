from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from routers import checks
from routers.estimators.base import Estimator, Matrix
from routers.estimators.linear import Linear
from routers.features import shipped_featurizer
from routers.registry import ESTIMATORS, NAMES, open_router
from tests.routers.worlds import POOL


@pytest.mark.parametrize("check", checks.ESTIMATOR_CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", ESTIMATORS.values(), ids=ESTIMATORS)
def test_every_estimator_passes_every_check(kind: type[Estimator], check: Callable[..., None]) -> None:
    """All checks hold for all estimators in the registry."""
    check(kind)


@pytest.mark.parametrize("check", checks.ROUTER_CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_every_router_passes_every_check(name: str, check: Callable[..., None]) -> None:
    """All checks hold for all routers, with and without exploration."""
    router = open_router(name, rules=[{"weights": {m.model: 1.0 for m in POOL}}], explore=0.2)
    check(router, shipped_featurizer().describe("Is water wet?"), POOL)


def test_a_broken_estimator_is_caught() -> None:
    """A check fails for an estimator that violates it."""

    class Deaf(Linear):
        def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
            mean, sd = super().predict(x * 0)
            return mean, sd

    with pytest.raises(AssertionError, match="squared error"):
        checks.check_it_learns(Deaf)
