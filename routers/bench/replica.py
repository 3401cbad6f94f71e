"""Shows the choice of a replica against round robin and least busy: `python -m routers.bench.replica`.

Replicas write in continuous batches: in one step every answer under way gets a token, a step takes the longer the more
there are, and reading a prompt stops them all. Prompts and answers share a memory; when it is full the youngest answer
is sent back and read again later. Chats, summaries and essays arrive at random; all that a policy knows of
an answer's length is a prediction that errs by a factor of about exp(noise). The same arrivals serve every policy.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from routers.intervals import half_width
from routers.replicas import Job, Load, Paces, least_delay

STEP_S, BESIDE_S, READ_S = 0.02, 0.0004, 0.00015
PLACES = 48
MEMORY_TOKENS = 12_000
KINDS = ((0.6, 120, 60), (0.25, 3000, 120), (0.15, 200, 900))
"""Share, tokens of the prompt, tokens of the answer: chats, summaries, essays."""
FLEETS = {"four equal replicas": (1.0, 1.0, 1.0, 1.0), "two fast, two half as fast": (1.0, 1.0, 2.0, 2.0)}
"""By how much slower each replica is."""
POLICIES = ("round_robin", "least_busy", "least_tokens", "least_delay")


@dataclass(slots=True)
class Request:
    arrived_s: float
    input_tokens: int
    output_tokens: int
    predicted: float
    job: Job = field(init=False)
    replica: int = 0
    written: int = 0


@dataclass(slots=True)
class Engine:
    """One replica: a queue, and what is written now."""

    slowness: float = 1.0
    waiting: deque[Request] = field(default_factory=deque)
    writing: list[Request] = field(default_factory=list)
    free_s: float = 0.0
    """When its step under way ends."""

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.writing)

    def step(self, now: float) -> list[Request]:
        """Begins a step at `now`; returns what it ends."""
        read, held = 0, sum(one.input_tokens + one.written for one in self.writing)
        while self.waiting and len(self.writing) < PLACES:
            size = self.waiting[0].input_tokens + self.waiting[0].written
            if self.writing and held + size > MEMORY_TOKENS:
                break
            read, held = read + size, held + size
            self.writing.append(self.waiting.popleft())
        while len(self.writing) > 1 and held + len(self.writing) > MEMORY_TOKENS:
            self.waiting.appendleft(self.writing.pop())
            held -= self.waiting[0].input_tokens + self.waiting[0].written
        self.free_s = now + self.slowness * (READ_S * read + STEP_S + BESIDE_S * (len(self.writing) - 1))
        for request in self.writing:
            request.written += 1
        done = [request for request in self.writing if request.written >= request.output_tokens]
        self.writing = [request for request in self.writing if request.written < request.output_tokens]
        return done


def arrivals(seed: int, count: int, per_s: float, noise: float) -> list[Request]:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1.0 / per_s, count))
    kinds = rng.choice(len(KINDS), count, p=[share for share, _, _ in KINDS])
    found = []
    for time_s, kind in zip(times.tolist(), kinds.tolist(), strict=True):
        _, into, out = KINDS[kind]
        tokens = max(1, round(out * float(rng.lognormal(0.0, 0.5))))
        prompt = max(1, round(into * float(rng.lognormal(0.0, 0.3))))
        found.append(Request(time_s, prompt, tokens, tokens * float(rng.lognormal(0.0, noise))))
    return found


class Fleet:
    """Replicas, and what a balancer in front of them knows."""

    def __init__(self, slowness: Sequence[float], policy: str) -> None:
        paces = Paces()
        self.engines = [Engine(slow) for slow in slowness]
        self.loads = [Load(paces, PLACES, MEMORY_TOKENS) for _ in slowness]
        self.policy = policy
        self.turn = 0

    def place(self, request: Request) -> int:
        scores: Sequence[float]
        if self.policy == "round_robin":
            self.turn = (self.turn + 1) % len(self.engines)
            return self.turn
        if self.policy == "least_busy":
            scores = [len(load.jobs) for load in self.loads]
        elif self.policy == "least_tokens":
            scores = [sum(job.input_tokens + job.output_tokens for job in load.jobs.values()) for load in self.loads]
        else:
            scores = least_delay(
                self.loads, [request.input_tokens] * len(self.loads), request.predicted, request.arrived_s
            )
        return int(np.argmin(scores))

    def take(self, request: Request) -> None:
        request.replica = self.place(request)
        request.job = Job(request.input_tokens, request.predicted, request.arrived_s)
        self.loads[request.replica].begin(request.job)
        self.engines[request.replica].waiting.append(request)

    def ended(self, request: Request, now: float) -> float:
        load, latency_s = self.loads[request.replica], now - request.arrived_s
        load.end(request.job)
        load.learn(request.job, request.output_tokens, latency_s)
        return latency_s


def latencies(policy: str, requests: Sequence[Request], slowness: Sequence[float]) -> list[float]:
    """The time of every answer from its arrival to its last token, in the order of their ends."""
    fleet, found = Fleet(slowness, policy), []
    ends: list[tuple[float, int, Request]] = []
    due = deque(requests)
    while due or ends or any(one.busy for one in fleet.engines):
        steps = [one.free_s for one in fleet.engines if one.busy]
        now = min([*steps, *([due[0].arrived_s] if due else []), *([ends[0][0]] if ends else [])])
        while ends and ends[0][0] <= now:
            end_s, _, request = heappop(ends)
            found.append(fleet.ended(request, end_s))
        while due and due[0].arrived_s <= now:
            fleet.take(due.popleft())
        for engine in fleet.engines:
            if not engine.busy:
                engine.free_s = max(engine.free_s, now)
            elif engine.free_s <= now:
                for request in engine.step(now):
                    heappush(ends, (engine.free_s, id(request), request))
    return found


def compared(
    seeds: Sequence[int], count: int, per_s: float, slowness: Sequence[float], noise: float
) -> dict[str, list[float]]:
    """Mean latency of each policy, a figure for each seed."""
    return {
        policy: [float(np.mean(latencies(policy, arrivals(s, count, per_s, noise), slowness))) for s in seeds]
        for policy in POLICIES
    }


def summary(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Means over seeds, and by how much `least_delay` is lower, with its 95 % half width (paired)."""
    own = np.array(found["least_delay"])
    report = {}
    for policy, values in found.items():
        gain = 1.0 - own / np.array(values)
        report[policy] = {
            "latency_s": float(np.mean(values)), "lower_by": float(gain.mean()), "half_width": half_width(gain),
        }  # fmt: skip
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.replica", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--rates", nargs="+", type=float, default=[4.0, 6.0, 8.0])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name, slowness in FLEETS.items():
        for per_s in args.rates:
            found = summary(compared(range(args.seeds), args.requests, per_s, slowness, args.noise))
            report.setdefault(name, {})[f"{per_s:g}"] = found
            if not args.json:
                print(f"{name}, {per_s:g} requests a second, {args.seeds} runs of {args.requests}")
                print("\n".join(_lines(found)), flush=True)
    if args.json:
        print(json.dumps(report))


def _lines(found: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"  {policy:12s} mean latency {row['latency_s']:7.2f} s;"
        f" least_delay is {row['lower_by']:6.1%} +- {row['half_width']:.1%} lower"
        for policy, row in found.items()
    ]


if __name__ == "__main__":
    main()
