"""Rate limits of requests and tokens per minute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RateLimited
from gateway.money.limits import NOTHING_TAKEN, Limit, Limits, duration

KEY = Limit("key:a", rpm=6, tpm=600)
ROUTE = Limit("route:r", rpm=60)


def test_the_limit_passes_and_one_more_waits() -> None:
    """Of six a minute six pass at once; the seventh gets a retry-after, and passes then."""
    limits = Limits()
    for _ in range(6):
        limits.take((KEY,), 10, 100.0)
    with pytest.raises(RateLimited, match="key 'a' reached: 6 requests per minute") as refused:
        limits.take((KEY,), 10, 100.0)
    wait_s = refused.value.retry_after_s
    assert wait_s is not None and wait_s == pytest.approx(10.0)
    with pytest.raises(RateLimited):
        limits.take((KEY,), 10, 100.0 + wait_s - 0.01)
    limits.take((KEY,), 10, 100.0 + wait_s + 1e-6)


def test_tokens_are_corrected_by_what_was_used() -> None:
    """Tokens that were estimated too high are given back, too low ones are taken; a second correction changes nothing.
    """
    limits = Limits()
    taken = limits.take((KEY,), 500, 0.0)
    assert dict(taken.headers(0.0))[b"x-ratelimit-remaining-tokens"] == b"100"
    taken.correct(100, 0.0)
    taken.correct(0, 0.0)
    assert dict(taken.headers(0.0))[b"x-ratelimit-remaining-tokens"] == b"500"
    limits.take((KEY,), 10, 0.0).correct(900, 0.0)
    with pytest.raises(RateLimited, match="600 tokens per minute") as refused:
        limits.take((KEY,), 1, 0.0)
    assert refused.value.retry_after_s == pytest.approx(40.1)


def test_a_request_larger_than_a_minute_passes_a_full_bucket_and_leaves_a_debt() -> None:
    """A request larger than a minute's tokens would otherwise never pass."""
    limits = Limits()
    limits.take((KEY,), 3000, 0.0)
    with pytest.raises(RateLimited) as refused:
        limits.take((KEY,), 3000, 0.0)
    assert refused.value.retry_after_s == pytest.approx(300.0)


def test_the_headers_of_a_full_bucket_and_of_a_debt() -> None:
    """A full bucket needs no time to be full; in a debt nothing remains."""
    limits = Limits()
    taken = limits.take((KEY,), 3000, 0.0)
    in_debt, later = dict(taken.headers(0.0)), dict(taken.headers(1e6))
    assert (in_debt[b"x-ratelimit-remaining-tokens"], in_debt[b"x-ratelimit-reset-tokens"]) == (b"0", b"5m0s")
    assert (later[b"x-ratelimit-remaining-tokens"], later[b"x-ratelimit-reset-tokens"]) == (b"600", b"0ms")
    assert in_debt[b"x-ratelimit-limit-tokens"] == b"600"


def test_one_limit_that_refuses_leaves_the_others_untouched() -> None:
    """Either all limits of a request are taken, or none is, in requests and in tokens."""
    limits = Limits()
    for _ in range(6):
        limits.take((KEY,), 0, 0.0)
    for _ in range(100):
        with pytest.raises(RateLimited):
            limits.take((ROUTE, KEY), 0, 0.0)
    for _ in range(60):
        limits.take((ROUTE,), 0, 0.0)
    small = Limit("key:b", rpm=5, tpm=10)
    limits.take((small,), 10, 0.0)
    for _ in range(20):
        with pytest.raises(RateLimited, match="tokens"):
            limits.take((small,), 10, 0.0)
    assert dict(limits.take((small,), 0, 60.0).headers(60.0))[b"x-ratelimit-remaining-requests"] == b"4"


@pytest.mark.parametrize("small", [Limit("route:b", rpm=5, tpm=10), Limit("route:b", tpm=10)])
@pytest.mark.parametrize("first", [Limit("key:b", rpm=5), Limit("key:b", tpm=1000), Limit("key:b", rpm=5, tpm=1000)])
def test_what_is_refused_is_given_back(first: Limit, small: Limit) -> None:
    """A refused request takes nothing from the refusing limit or those before it, at any time."""
    limits, now = Limits(), 1e6
    limits.take((small,), 10, now)
    limits.take((first,), 400, now)
    for _ in range(20):
        with pytest.raises(RateLimited, match="10 tokens"):
            limits.take((first, small), 7, now)
    taken = limits.take((first,), 100, now)
    taken.correct(50, now)
    left = dict(taken.headers(now))
    assert left.get(b"x-ratelimit-remaining-requests") == (b"3" if first.rpm else None)
    assert left.get(b"x-ratelimit-remaining-tokens") == (b"550" if first.tpm else None)
    left = dict(limits.take((small,), 1, now + 6.1).headers(now + 6.1))
    assert left.get(b"x-ratelimit-remaining-requests") == (b"3" if small.rpm else None)


@pytest.mark.parametrize("order", [(ROUTE, KEY), (KEY, ROUTE)])
def test_headers_tell_the_tightest_limit(order: tuple[Limit, ...]) -> None:
    """The headers are those of the limit with the smallest share left; reset is a duration as OpenAI writes it."""
    limits = Limits()
    assert limits.take(order, 150, 1000.0).headers(1000.0) == [
        (b"x-ratelimit-limit-requests", b"6"),
        (b"x-ratelimit-remaining-requests", b"5"),
        (b"x-ratelimit-reset-requests", b"10s"),
        (b"x-ratelimit-limit-tokens", b"600"),
        (b"x-ratelimit-remaining-tokens", b"450"),
        (b"x-ratelimit-reset-tokens", b"15s"),
    ]
    assert limits.take((), 5, 0.0) is NOTHING_TAKEN
    NOTHING_TAKEN.correct(5, 0.0)
    assert NOTHING_TAKEN.headers(0.0) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (-1, "0ms"),
        (0.012, "12ms"),
        (0.0001, "1ms"),
        (1.5, "1.5s"),
        (360, "6m0s"),
        (3725, "1h2m5s"),
    ],
)
def test_durations_read_as_openai_writes_them(seconds: float, text: str) -> None:
    """Durations are written as `12ms`, `1.5s` and `6m0s`."""
    assert duration(seconds) == text


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 400)), max_size=60))
def test_no_hour_lets_more_pass_than_its_minutes_allow(requests: list[tuple[float, int]]) -> None:
    """At any times and sizes, at most a full bucket, what was refilled since and one debt pass."""
    limits, now, passed, tokens = Limits(), 0.0, 0, 0
    for wait_s, size in requests:
        now += wait_s
        try:
            limits.take((KEY,), size, now)
        except RateLimited as refused:
            assert refused.retry_after_s is not None and refused.retry_after_s > 0
            continue
        passed, tokens = passed + 1, tokens + size
    assert passed <= 6 + now / 10 + 1e-6
    assert tokens <= 600 + now * 10 + 1e-6


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """A clock that is set back refills nothing."""
    limits = Limits()
    for _ in range(6):
        limits.take((KEY,), 0, 100.0)
    with pytest.raises(RateLimited):
        limits.take((KEY,), 0, 50.0)


def test_memory_is_bounded() -> None:
    """Full buckets are dropped first, so a busy one survives a flood of idle ones."""
    limits = Limits(max_limits=100)
    for _ in range(6):
        limits.take((KEY,), 0, 0.0)
    for i in range(1000):
        limits.take((Limit(f"key:{i}", rpm=600),), 0, i * 0.005)
        assert len(limits) <= 100
    with pytest.raises(RateLimited):
        limits.take((KEY,), 0, 5.0)
    for i in range(1000):
        limits.take((Limit(f"key:x{i}", rpm=1),), 0, 5.0)
        assert len(limits) <= 101


def test_a_changed_limit_begins_anew() -> None:
    """After a reload the new numbers apply."""
    limits = Limits()
    limits.take((KEY,), 0, 0.0)
    assert limits.take((Limit("key:a", rpm=3),), 0, 0.0).headers(0.0)[0][1] == b"3"
