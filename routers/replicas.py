"""Which replica of a model gets a request: the one where it adds the least delay to all answers.

Reading a prompt stops all answers that the replica is writing, and every answer being written slows the others a little
(Intelligent Router for LLM Workloads: predicted response length, and the impact of mixing workloads). The delay of a
request is therefore its own time plus what it adds to the answers under way, whose remaining length is predicted. Time
is an argument, and a replica's pace is learned from its own answers. Health and weights are not considered here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter

import numpy as np

from routers.eligible import TYPICAL_OUTPUT_TOKENS

OVERDUE = 0.3
"""Share of the tokens written beyond the predicted length that are expected to follow still."""
LEAST_LEFT = 4.0
MOST_COMPANY = 64
"""The most answers under way that are considered, of a busier replica too."""


@dataclass(slots=True)
class Job:
    """An answer under way."""

    input_tokens: float
    output_tokens: float
    """Predicted tokens of the answer."""
    begun_s: float
    company: float = 0.0
    """How many others were under way when it began."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of one replica."""

    first_s: float = 0.0
    """Seconds of every request, whatever its length."""
    read_s: float = 0.0002
    """Seconds per token of the prompt; every answer under way waits as long."""
    write_s: float = 0.02
    """Seconds per token of an answer that is written alone."""
    beside_s: float = 0.001
    """Additional seconds per token for each other answer under way."""

    def per_token_s(self, company: float) -> float:
        return self.write_s + self.beside_s * company


class Paces:
    """The pace of a model's replicas, by least squares on their latencies, in which old answers fade.

    While few answers are known it stays near the stated pace; where none is stated, near the default pace scaled to the
    answers' speed. All replicas share one pace, because noise in separate ones would send all requests to one replica.
    """

    FADE = 0.995
    PRIOR, LAST = 3.0, 0.1
    """Number of answers that the prior pace counts as: at first, and at least."""
    EVERY = 8
    """Answers between two fits."""

    def __init__(self, stated: Pace | None = None) -> None:
        pace = self.pace = stated or Pace()
        self._prior = np.array([pace.first_s, pace.read_s, pace.write_s, pace.beside_s])
        typical = np.array([1.0, 500.0, TYPICAL_OUTPUT_TOKENS, 2.0 * TYPICAL_OUTPUT_TOKENS])
        self._ridge = np.diag(typical**2)
        self._stated = stated is not None
        self._gram, self._moment = np.zeros((4, 4)), np.zeros(4)
        self._taken_s = self._predicted_s = 0.0
        """Faded sums of the seconds that answers took and that the prior predicted."""
        self._seen = 0
        self.typical_tokens = TYPICAL_OUTPUT_TOKENS
        """Output tokens of recent answers, on average: the prediction where there is no better one."""

    def learn(self, job: Job, output_tokens: float, latency_s: float) -> None:
        """Learn from an answer that arrived whole."""
        row = np.array([1.0, job.input_tokens, output_tokens, output_tokens * job.company])
        self._gram = self.FADE * self._gram + np.outer(row, row)
        self._moment = self.FADE * self._moment + latency_s * row
        self._taken_s = self.FADE * self._taken_s + latency_s
        self._predicted_s = self.FADE * self._predicted_s + float(row @ self._prior)
        self._seen += 1
        self.typical_tokens += (output_tokens - self.typical_tokens) / min(self._seen, 200)
        if self._seen % self.EVERY == 0:
            self.pace = self._solved()

    def _solved(self) -> Pace:
        """The fitted pace, without negative parts: a part that would be negative is left out and the rest is fitted
        again.
        """
        kept, values = np.arange(4), np.zeros(4)
        ridge = self._ridge * max(self.PRIOR * self.FADE**self._seen, self.LAST)
        prior = self._prior if self._stated else self._prior * (self._taken_s / self._predicted_s)
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
    """The answers that one replica has under way, and how much slower than its model's pace it is."""

    PRIOR = 20.0
    """Number of answers that the prior slowness of 1 counts as."""
    FADE = 0.98

    __slots__ = ("_expected_s", "_taken_s", "jobs", "memory_tokens", "paces", "places", "slowness")

    def __init__(self, paces: Paces | None = None, places: int = 0, memory_tokens: int = 0) -> None:
        """`places`: the most answers written at once. `memory_tokens`: the most tokens of prompts and answers held at
        once. 0 means unknown, and that no request waits for it.
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
        """Remove a job that has ended, with or without an answer."""
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
        """Seconds that taking this request would add to all answers together: its own time and the delay of the others.
        """
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
        """Tokens that are still expected of an answer under way."""
        pace = self.paces.pace
        writing_s = now - job.begun_s - pace.first_s - pace.read_s * job.input_tokens
        left = job.output_tokens - max(writing_s, 0.0) / max(each_s, 1e-9)
        return max(left if left > 0 else -OVERDUE * left, LEAST_LEFT)

    def _waiting(self, left: Sequence[float], input_tokens: float) -> float:
        """Tokens that the others write until there are a place and memory for the prompt; the shortest answers end
        first.
        """
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
    """Seconds of delay that the request would add at each replica; `input_tokens`: the tokens that each would have to
    read.
    """
    return [load.added_s(read, output_tokens, now) for load, read in zip(loads, input_tokens, strict=True)]
