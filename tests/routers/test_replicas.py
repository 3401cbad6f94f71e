"""The choice of a replica: a request goes where it delays all answers least."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.bench.replica import FLEETS, compared, summary
from routers.replicas import Job, Load, Pace, Paces, least_delay

PACE = Pace(first_s=0.1, read_s=0.001, write_s=0.02, beside_s=0.002)


def busy(jobs: list[Job], places: int = 0, memory_tokens: int = 0) -> Load:
    load = Load(Paces(PACE), places, memory_tokens)
    for job in jobs:
        load.begin(job)
    return load


def test_an_idle_replica_adds_the_requests_own_time() -> None:
    """It is the time to read the prompt and to write the answer, and nothing else."""
    assert busy([]).added_s(100, 50, 0.0) == pytest.approx(0.1 + 0.1 + 1.0)


def test_two_answers_slow_each_other() -> None:
    """Reading the new prompt also interrupts the answer in progress."""
    one = busy([Job(0, 30, 0.0)])
    assert one.added_s(100, 50, 0.1) == pytest.approx(0.1 + 0.1 + 1.0 + 2 * 0.002 * 30 + 0.1)


def test_a_long_answer_goes_beside_a_short_rest() -> None:
    """Of two replicas with one answer each, the request goes to the one whose answer is nearly finished."""
    long, short = busy([Job(10, 900, 0.0)]), busy([Job(10, 30, 0.0)])
    delays = least_delay([long, short], [10, 10], 800, 0.2)
    assert delays[1] < delays[0]


def test_an_answer_nearly_written_counts_less_than_a_new_one() -> None:
    """Progress is estimated by the clock and the replica's speed. An answer beyond its predicted length still counts.
    """
    load, fresh = busy([Job(10, 200, 0.0)]), busy([Job(10, 200, 4.0)])
    assert load.added_s(10, 100, 4.0) < fresh.added_s(10, 100, 4.0)
    assert load.added_s(10, 100, 60.0) > busy([]).added_s(10, 100, 60.0)


def test_full_slots_and_full_memory_cause_waiting() -> None:
    """The wait lasts until the shortest answer ends, or until enough memory is free for the prompt."""
    jobs = [Job(1000, 100, 0.0), Job(1000, 300, 0.0)]
    free = busy(jobs).added_s(1000, 10, 0.0)
    crowded = busy([Job(1000, 100, 0.0), Job(1000, 300, 0.0)], places=2).added_s(1000, 10, 0.0)
    narrow = busy([Job(1000, 100, 0.0), Job(1000, 300, 0.0)], memory_tokens=1100).added_s(1000, 10, 0.0)
    each_s = PACE.per_token_s(2)
    assert crowded - free == pytest.approx(100 * each_s)
    assert narrow - free == pytest.approx(300 * each_s)


def test_a_replicas_speed_is_learned_from_answers() -> None:
    """After some hundred answers each part of it is near the truth, from a stated speed that is five times too slow."""
    rng, paces = np.random.default_rng(0), Paces(Pace(0.5, 0.005, 0.1, 0.01))
    for _ in range(600):
        job = Job(float(rng.integers(10, 3000)), 100, 0.0, float(rng.integers(0, 20)))
        tokens = float(rng.integers(5, 800))
        seconds = PACE.first_s + PACE.read_s * job.input_tokens + PACE.per_token_s(job.company) * tokens
        paces.learn(job, tokens, seconds * float(rng.lognormal(0, 0.003)))
    found = paces.pace
    assert found.read_s == pytest.approx(PACE.read_s, rel=0.2)
    assert found.write_s == pytest.approx(PACE.write_s, rel=0.2)
    assert found.beside_s == pytest.approx(PACE.beside_s, rel=0.2)


def test_a_slow_replica_gets_less() -> None:
    """A replica that takes twice as long has twice the delay; equal ones stay equal up to noise."""
    paces = Paces(PACE)
    fast, slow = Load(paces), Load(paces)
    for _ in range(300):
        for load, factor in ((fast, 1.0), (slow, 2.0)):
            job = load.begin(Job(100, 50, 0.0))
            load.end(job)
            load.learn(job, 50, factor * 1.2)
    ratio = slow.added_s(100, 50, 0.0) / fast.added_s(100, 50, 0.0)
    assert 1.5 < ratio < 2.5


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e4), st.floats(0, 100)), max_size=80),
    st.floats(0, 1e5), st.floats(0, 1e4), st.integers(0, 8), st.integers(0, 20_000),
)  # fmt: skip
def test_a_delay_is_always_a_finite_number(
    jobs: list[tuple[float, float, float]], into: float, out: float, places: int, memory: int
) -> None:
    """That holds whatever is in progress, and one more answer never lowers it."""
    load = busy([Job(*job) for job in jobs], places, memory)
    before = load.added_s(into, out, 100.0)
    load.begin(Job(10.0, 10.0, 100.0))
    assert math.isfinite(before)
    assert before >= 0.0


def test_an_answer_ends_once() -> None:
    """Ending an answer twice, or one that never began, changes nothing."""
    load = busy([])
    first, second = load.begin(Job(1, 1, 0.0)), load.begin(Job(1, 1, 0.0))
    load.end(first)
    load.end(first)
    assert list(load.jobs.values()) == [second]


def test_it_beats_round_robin_and_least_busy() -> None:
    """In seeded simulations with equal and unequal replicas the mean latency is at least 5 % below both (`python -m
    routers.bench.replica` reports by how much, with intervals).
    """
    for slowness in FLEETS.values():
        found = summary(compared(range(3), 400, 6.0, slowness, 0.5))
        assert found["round_robin"]["lower_by"] > 0.05
        assert found["least_busy"]["lower_by"] > 0.05
