"""Which replica of a model takes a request: by how long the answer will be and by what its company costs.

The two phases of an answer want different things: reading a prompt stops everybody who is being written to, and
everybody who is being written to slows each further token a little (Intelligent Router for LLM Workloads: predicted
response length, and the impact of mixing workloads). So a request goes where it adds the least delay to all: its own,
and what it does to the answers under way. What is left of those is their predicted length less what has been written.
Pure: time is an argument; a replica's pace is learnt from its own answers. Knows nothing of health and weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter

import numpy as np

TYPICAL_OUTPUT_TOKENS = 256.0
OVERDUE = 0.3
"""Of what an answer has written beyond its predicted length: what it is taken to write still."""
LEAST_LEFT = 4.0
MOST_COMPANY = 64
"""Answers under way that are looked at; a busier replica is judged by as many."""


@dataclass(slots=True)
class Job:
    """An answer under way."""

    input_tokens: float
    output_tokens: float
    """Predicted."""
    begun_s: float
    company: float = 0.0
    """How many others were under way when it began."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of one replica."""

    first_s: float = 0.0
    """Of every request, whatever it asks."""
    read_s: float = 0.0002
    """Per token of the prompt, and as long for everybody beside it."""
    write_s: float = 0.02
    """Per token of an answer written alone."""
    beside_s: float = 0.001
    """More per token for each answer written beside it."""

    def per_token_s(self, company: float) -> float:
        return self.write_s + self.beside_s * company


class Paces:
    """The pace of a model's replicas: least squares of latencies on what was asked, old answers fading, drawn to a
    stated pace while few are known, or where none is stated to the default one, as fast as answers have been. One for
    all of them, for differences that are noise would send all to one.
    """

    FADE = 0.995
    PRIOR, LAST = 3.0, 0.1
    """Answers that the stated pace counts as, at first and when many are known."""
    EVERY = 8
    """Answers between two solutions."""

    def __init__(self, stated: Pace | None = None) -> None:
        pace = self.pace = stated or Pace()
        self._prior = np.array([pace.first_s, pace.read_s, pace.write_s, pace.beside_s])
        typical = np.array([1.0, 500.0, TYPICAL_OUTPUT_TOKENS, 2.0 * TYPICAL_OUTPUT_TOKENS])
        self._ridge = np.diag(typical**2)
        self._stated = stated is not None
        self._gram, self._moment = np.zeros((4, 4)), np.zeros(4)
        self._taken_s = self._foretold_s = 0.0
        """By all answers, fading, and by the prior."""
        self._seen = 0
        self.typical_tokens = TYPICAL_OUTPUT_TOKENS
        """Of answers of late: the prediction where nobody has a better one."""

    def learn(self, job: Job, output_tokens: float, latency_s: float) -> None:
        """An answer came whole, with so many tokens, in so long."""
        row = np.array([1.0, job.input_tokens, output_tokens, output_tokens * job.company])
        self._gram = self.FADE * self._gram + np.outer(row, row)
        self._moment = self.FADE * self._moment + latency_s * row
        self._taken_s = self.FADE * self._taken_s + latency_s
        self._foretold_s = self.FADE * self._foretold_s + float(row @ self._prior)
        self._seen += 1
        self.typical_tokens += (output_tokens - self.typical_tokens) / min(self._seen, 200)
        if self._seen % self.EVERY == 0:
            self.pace = self._solved()

    def _solved(self) -> Pace:
        """Never negative: what would be is left out, and the rest solved again."""
        kept, values = np.arange(4), np.zeros(4)
        ridge = self._ridge * max(self.PRIOR * self.FADE**self._seen, self.LAST)
        prior = self._prior if self._stated else self._prior * (self._taken_s / self._foretold_s)
        while len(kept):
            grid = np.ix_(kept, kept)
            right = self._moment[kept] + ridge[grid] @ prior[kept]
            found = np.linalg.solve(self._gram[grid] + ridge[grid], right)
            if (found >= 0.0).all():
                values[kept] = found
                break
            kept = np.delete(kept, int(found.argmin()))
        return Pace(*values.tolist())


class Load:
    """What one replica has under way, and how much slower than its model's pace it is."""

    PRIOR = 20.0
    """Answers that being as fast as the others counts as."""
    FADE = 0.98

    __slots__ = ("_expected_s", "_taken_s", "jobs", "memory_tokens", "paces", "places", "slowness")

    def __init__(self, paces: Paces | None = None, places: int = 0, memory_tokens: int = 0) -> None:
        """`places`: answers that are written at once. `memory_tokens`: of prompts and answers together that fit. 0:
        unknown, and nobody is taken to wait for it.
        """
        self.jobs: dict[int, Job] = {}
        self.paces = paces or Paces()
        self.places, self.memory_tokens = places, memory_tokens
        self._expected_s = self._taken_s = 0.0
        self.slowness = 1.0

    def begin(self, job: Job) -> Job:
        job.company = len(self.jobs)
        self.jobs[id(job)] = job
        return job

    def end(self, job: Job) -> None:
        """It is over, whatever came of it."""
        self.jobs.pop(id(job), None)

    def learn(self, job: Job, output_tokens: float, latency_s: float) -> None:
        """Learn from an answer that arrived whole."""
        pace = self.paces.pace
        expected_s = pace.first_s + pace.read_s * job.input_tokens + pace.per_token_s(job.company) * output_tokens
        self._expected_s = self.FADE * self._expected_s + expected_s
        self._taken_s = self.FADE * self._taken_s + latency_s
        prior_s = self.PRIOR * expected_s
        self.slowness = (self._taken_s + prior_s) / max(self._expected_s + prior_s, 1e-9)
        self.paces.learn(job, output_tokens, latency_s)

    def added_s(self, input_tokens: float, output_tokens: float, now: float) -> float:
        """Seconds by which all answers together come later if this request is taken: its own, and others' delay."""
        pace, jobs = self.paces.pace, self.jobs
        read_s = pace.read_s * input_tokens
        total_s = pace.first_s + read_s + pace.write_s * output_tokens
        if not jobs:
            return self.slowness * total_s
        company = len(jobs) if not self.places else min(len(jobs), self.places)
        each_s = pace.per_token_s(company) * self.slowness
        left = [self._left(job, each_s, now) for job in islice(jobs.values(), MOST_COMPANY)]
        for tokens in left:  # while both are written each slows the other; the reading stops whoever is written to
            total_s += 2.0 * pace.beside_s * min(tokens, output_tokens) + read_s
        return self.slowness * total_s + each_s * self._waiting(left, input_tokens)

    def _left(self, job: Job, each_s: float, now: float) -> float:
        """Tokens that an answer under way is expected to write still."""
        pace = self.paces.pace
        writing_s = now - job.begun_s - pace.first_s - pace.read_s * job.input_tokens
        left = job.output_tokens - max(writing_s, 0.0) / max(each_s, 1e-9)
        return max(left if left > 0 else -OVERDUE * left, LEAST_LEFT)

    def _waiting(self, left: Sequence[float], input_tokens: float) -> float:
        """Tokens to be written by others until there is a place, and room for the prompt; the shortest end first."""
        short = len(left) - self.places + 1 if self.places else 0
        over = 0.0
        if self.memory_tokens:
            held = sum([job.input_tokens + job.output_tokens for job in self.jobs.values()]) - sum(left)
            over = held + input_tokens - self.memory_tokens
        if short <= 0 and over <= 0.0:
            return 0.0
        waited = 0.0
        for rest, job in sorted(zip(left, self.jobs.values(), strict=False), key=itemgetter(0)):
            waited, short, over = rest, short - 1, over - job.input_tokens - job.output_tokens
            if short <= 0 and over <= 0.0:
                break
        return waited


def least_delay(
    loads: Iterable[Load], input_tokens: Iterable[float], output_tokens: float, now: float
) -> list[float]:
    """Of each replica, the delay that taking the request there would add; `input_tokens`: what each has to read."""
    return [load.added_s(read, output_tokens, now) for load, read in zip(loads, input_tokens, strict=True)]
