from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batch.concurrency import LEAST, ConcurrencyLimiter


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), max_size=60))
def test_a_limit_stays_between_one_call_and_its_maximum(history: list[tuple[bool, int]]) -> None:
    """For any answers and refusals, a refusal's retry-after is always kept."""
    limiter, now = ConcurrencyLimiter(20), 0.0
    for good, value in history:
        now += 1.0
        if good:
            limiter.answered(value)
        else:
            limiter.pushed_back(now, now - 0.5, value)
            assert not value or not limiter.lets_pass(now + value / 2)
        assert LEAST <= limiter.limit <= 20


def test_a_burst_of_refusals_halves_a_limit_once() -> None:
    """Refusals of calls that began before the cut are ignored; one of a call that began after it counts."""
    limiter = ConcurrencyLimiter(16)
    for _ in range(5):
        limiter.pushed_back(10.0, 9.0, 0.0)
    assert limiter.limit == 4.0
    limiter.pushed_back(12.0, 11.0, 0.0)
    assert limiter.limit == 2.0
