from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.eligible import eligible, exclusion, expected_usd, worst_usd
from routers.types import Candidate, Knobs, Undecided
from tests.routers.worlds import LARGE, POOL, SMALL, query

NONE = frozenset[str]()
SPARE = Candidate("spare")
"""A free model that every query and every knob admits."""


@pytest.mark.parametrize(
    ("candidate", "known", "knobs", "reason"),
    [
        (replace(SMALL, healthy=False), {}, Knobs(), "unhealthy"),
        (SMALL, {"input_tokens": 9_000}, Knobs(), "context too short"),
        (SMALL, {"input_tokens": 5_000, "max_output_tokens": 4_000}, Knobs(), "context too short"),
        (replace(SMALL, supports=NONE), {"tools": 1}, Knobs(), "no tools"),
        (replace(SMALL, supports=NONE), {"images": 1}, Knobs(), "no images"),
        (replace(SMALL, supports=NONE), {"wants_json": True}, Knobs(), "no JSON mode"),
        (
            LARGE,
            {"max_output_tokens": 10_000},
            Knobs(max_cost_usd=0.01),
            "may cost more than max_cost_usd",
        ),
        (replace(SMALL, queue_s=3.0), {}, Knobs(max_latency_s=1.0), "queue longer than max_latency_s"),
        (replace(SMALL, context_tokens=0), {"input_tokens": 10**6}, Knobs(), ""),
        (replace(SMALL, supports=NONE), {}, Knobs(), ""),
        (SMALL, {"input_tokens": 5_000, "max_output_tokens": 3_000}, Knobs(), ""),
        (SMALL, {"tools": 1, "images": 1, "wants_json": True}, Knobs(max_cost_usd=1.0), ""),
        (replace(SMALL, queue_s=1.0), {}, Knobs(max_latency_s=1.0), ""),
    ],
)
def test_an_excluded_candidate_has_a_reason(
    candidate: Candidate, known: dict[str, Any], knobs: Knobs, reason: str
) -> None:
    """Each cause of exclusion has its own words; a candidate without any is eligible."""
    asked = query(**known)
    assert exclusion(asked, candidate, knobs) == reason
    assert eligible(asked, [candidate, SPARE], knobs)[1] == ({candidate.model: reason} if reason else {})


@given(
    st.lists(
        st.builds(
            Candidate,
            st.sampled_from(["a", "b", "c"]),
            context_tokens=st.sampled_from([0, 20, 4000]),
            supports=st.sampled_from([NONE, frozenset({"tools", "json"}), SPARE.supports]),
            healthy=st.sampled_from([True, True, False]),
            web_searches=st.sampled_from([0, 1]),
            web_search_usd=st.just(0.01),
        ),
        min_size=1,
        unique_by=lambda one: one.model,
    ),
    st.sampled_from([10, 3000]),
    st.sampled_from([0, 1]),
    st.sampled_from([Knobs(), Knobs(max_cost_usd=0.001)]),
)
def test_the_eligible_are_those_without_a_reason(
    pool: list[Candidate], tokens: int, tools: int, knobs: Knobs
) -> None:
    """The short way for a pool in which all may answer agrees with asking for each one's reason."""
    asked = query(input_tokens=tokens, tools=tools, max_output_tokens=5)
    reasons = {one.model: exclusion(asked, one, knobs) for one in pool}
    if all(reasons.values()):
        pool = [*pool, SPARE]
    kept, excluded = eligible(asked, pool, knobs)
    assert excluded == {model: reason for model, reason in reasons.items() if reason}
    assert kept == [one for one in pool if not reasons.get(one.model)]


def test_eligible_candidates_keep_their_order() -> None:
    """Excluding one model doesn't change the order of the others."""
    kept, excluded = eligible(query(input_tokens=9_000), POOL, Knobs())
    assert [c.model for c in kept] == ["middle", "large"]
    assert excluded == {"small": "context too short"}


def test_no_eligible_candidate_is_undecided_with_all_reasons() -> None:
    """The error has the reason for each candidate."""
    with pytest.raises(Undecided) as caught:
        eligible(query(), [replace(c, healthy=False) for c in POOL], Knobs())
    assert set(caught.value.excluded) == {"small", "middle", "large"}


def test_expected_price_counts_prompt_and_limited_output() -> None:
    """The request's output limit bounds the expected output."""
    asked = query(input_tokens=1_000, max_output_tokens=100)
    assert expected_usd(asked, LARGE, 5_000.0) == pytest.approx((1_000 * 3.0 + 100 * 15.0) / 1e6)


def test_the_worst_price_counts_all_that_the_request_allows() -> None:
    """It counts all output, all web searches (those made for every answer only once) and all runs of tools."""
    asked = query(input_tokens=1_000, max_output_tokens=500, web_searches=3, tool_runs=(("code", 2), ("other", 9)))
    plain = (1_000 * 3.0 + 500 * 15.0) / 1e6
    seeker = replace(LARGE, web_search_usd=0.01, web_searches=1)
    assert worst_usd(asked, LARGE) == pytest.approx(plain)
    assert worst_usd(asked, seeker) == pytest.approx(plain + 3 * 0.01)
    assert worst_usd(replace(asked, web_searches=0), seeker) == pytest.approx(plain + 0.01)
    assert worst_usd(asked, replace(seeker, tool_usd=(("code", 0.2),))) == pytest.approx(plain + 3 * 0.01 + 2 * 0.2)
    assert worst_usd(replace(asked, max_output_tokens=None), LARGE) == pytest.approx(1_000 * 3.0 / 1e6)
    assert expected_usd(asked, seeker, 200.0) == pytest.approx((1_000 * 3.0 + 200 * 15.0) / 1e6 + 0.01)
