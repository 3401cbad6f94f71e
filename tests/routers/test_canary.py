"""A canary: a candidate router decides a share of the requests."""

from __future__ import annotations

from collections import Counter

import pytest

from routers.canary import Canary
from routers.simple import Rules, Weighted
from routers.types import Knobs
from tests.routers.worlds import POOL, query


def test_the_mixture_is_exact() -> None:
    """The frequencies of models and of deciding routers are the stated probabilities."""
    old = Weighted({"small": 3.0, "large": 1.0}, version="old")
    router = Canary(old, Weighted({"small": 1.0, "large": 3.0}, version="new"), 0.2)
    picks = [router.choose(query(), POOL, Knobs(), (i + 0.5) / 1000) for i in range(1000)]
    models, labels = Counter(p.model for p in picks), Counter(p.router for p in picks)
    assert labels == {"weighted@new": 200, "weighted@old": 800}
    for pick in picks:
        assert pick.propensity == pytest.approx(models[pick.model] / 1000)
        assert sum(pick.probabilities.values()) == pytest.approx(1.0)
    assert models == {"small": 650, "large": 350}
    assert Counter(p.model for p in picks if p.router == "weighted@old") == {"small": 600, "large": 200}


def test_an_undecided_candidate_leaves_the_request_to_the_incumbent() -> None:
    """The stated probabilities of models stay exact."""
    router = Canary(Weighted({"small": 1.0, "large": 1.0}), Rules([]), 0.2)
    picks = [router.choose(query(), POOL, Knobs(), (i + 0.5) / 1000) for i in range(1000)]
    assert {p.propensity for p in picks} == {0.5}
    assert Counter(p.model for p in picks) == {"small": 500, "large": 500}


@pytest.mark.parametrize(("one", "other", "read"), [("", "b", "b"), ("a", "", "a"), ("a", "b", "a"), ("", "", "")])
def test_a_query_has_features_if_either_router_reads_them(one: str, other: str, read: str) -> None:
    """They are those of the incumbent if it reads any, and else of the candidate."""
    incumbent, candidate = Weighted({"small": 1.0}), Weighted({"small": 1.0})
    incumbent.features_version, candidate.features_version = one, other
    assert Canary(incumbent, candidate, 0.5).features_version == read


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 2.0])
def test_a_share_of_none_or_all_is_refused(share: float) -> None:
    """A canary's share lies between 0 and 1, both excluded."""
    with pytest.raises(ValueError, match="share"):
        Canary(Weighted(), Weighted(), share)
