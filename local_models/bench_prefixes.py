"""Benchmark of the prefix cache: hit rates with little memory on synthetic traces, and upper bounds of them.

Each eviction rule is compared with two bounds: the hit rate of a cache that knows all future prompts, and the mean hit
rate of one that knows the probability of each prompt but not the draws. It counts blocks and computes no model; scipy
solves the first bound.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from local_models.blocks import EVEN_DEPTH, BlockPool, common_length
from local_models.intervals import mean_and_half_width
from local_models.tiers import Tiers, name_of

SIZE = 64
"""Tokens of a block."""
_LEAST_PART = 4
"""Tokens in common for which a part of a block is copied (`local_models.blocks`)."""
_EIGHT_BITS = 2 * 64 / (64 + 4)
"""Blocks of eight bits in the memory of one of sixteen, at heads of 64 (`local_models.attention.KVCache`)."""
_AGAIN = 0.4
"""How many prompts begin like an earlier one may."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and its answer's length; and, for each block that may be asked for next time, most likely first, how
    likely that is: `(chance, blocks alike)`. One-off prompts leave nothing that may."""

    prompt: list[int]
    answer: int
    again: bool
    odds: tuple[tuple[float, int], ...]

    @property
    def blocks(self) -> int:
        """Blocks taken while it is answered."""
        return -(-(len(self.prompt) + self.answer) // SIZE)


def prefix_trace(kind: str, seed: int, requests: int) -> list[Asked]:
    """6 of 10 prompts are asked once and never again. The others are `shared`, one of 64 long beginnings (Zipf), or
    `turns` of conversations that end after ten turns on average."""
    rng = random.Random(seed)

    def words(count: int) -> list[int]:
        return [rng.randrange(1000) for _ in range(count)]

    beginnings = [words(512) for _ in range(64)]
    weights = [1 / (rank + 1) for rank in range(64)]
    zipf = tuple((_AGAIN * weight / sum(weights), 512 // SIZE) for weight in weights)
    talks: list[list[int]] = []
    trace = []
    for _ in range(requests):
        odds = zipf if kind == "shared" else ((_AGAIN / max(1, len(talks)), 10**9),)
        if rng.random() < 1 - _AGAIN:
            trace.append(Asked(words(rng.randint(256, 1024)), 32, False, odds))
        elif kind == "shared":
            trace.append(Asked(rng.choices(beginnings, weights)[0] + words(32), 32, True, odds))
        else:
            if len(talks) < 24:
                talks.append(words(128))
            talk = rng.choice(talks)
            talk += words(64)
            trace.append(Asked(list(talk), 32, True, odds))
            talk += words(32)
            if rng.random() < 0.1:
                talks.remove(talk)
    return trace


def blocks_met(trace: Sequence[Asked]) -> Counter[tuple[int, ...]]:
    """How often each block of a prompt occurs in a trace."""
    prompts = [asked.prompt for asked in trace]
    return Counter(tuple(prompt[at : at + SIZE]) for prompt in prompts for at in range(0, len(prompt), SIZE))


class NamesOnly:
    """An offload store that keeps names and no contents: for counting hits."""

    def __init__(self, blocks: int) -> None:
        self._tiers = Tiers(blocks)
        self._nothing = torch.empty(0)

    def name(self, before: bytes, tokens: Sequence[int]) -> bytes:
        return name_of(before, tokens)

    def put(self, name: bytes, block: int) -> None:
        self._tiers.keep(name, self._nothing)

    def get(self, names: Sequence[bytes]) -> list[Any]:
        return list(self._tiers.fetch(names))


class LeadingFirst(NamesOnly):
    """Pensieve's rule, counted: of the blocks kept those go first that cost least to compute again for each request
    since their conversation's last, which of one conversation are the leading ones; a prompt computes a gap again and
    uses what is kept behind it.
    """

    def __init__(self, blocks: int) -> None:
        self._most = blocks
        self._kept: set[bytes] = set()
        self._asked: dict[bytes, tuple[int, int]] = {}
        """When a block's tokens were last part of a prompt or answer, and how many there are up to its end."""
        self._now = 0
        self.beyond = 0
        """Blocks that the last prompt found behind a gap."""

    def ask(self, ids: Sequence[int]) -> None:
        """A request with its answer."""
        self._now += 1
        name = b""
        for end in range(SIZE, len(ids) + 1, SIZE):
            name = name_of(name, ids[end - SIZE : end])
            self._asked[name] = (self._now, end)

    def put(self, name: bytes, block: int) -> None:
        self._kept.add(name)
        if len(self._kept) > self._most:
            self._kept.remove(min(self._kept, key=self._retention))

    def get(self, names: Sequence[bytes]) -> list[Any]:
        gap = next((at for at, name in enumerate(names) if name not in self._kept), len(names))
        self.beyond = sum(name in self._kept for name in names[gap:])
        return [None] * gap

    def _retention(self, name: bytes) -> tuple[float, bytes]:
        asked, depth = self._asked[name]
        return (EVEN_DEPTH + depth) / (self._now + 1 - asked), name


def hit_rate(
    trace: Sequence[Asked], blocks: int, alpha: float | None, tier: int = 0, leading: LeadingFirst | None = None
) -> float:
    """Share of prompt tokens found cached when the trace is served one request at a time; `tier` more blocks lie
    beside the pool, or what `leading` keeps of them."""
    rng, beyond = random.Random(0), 0
    tree = BlockPool(blocks, SIZE, alpha=alpha, offload=leading or (NamesOnly(tier) if tier else None))
    for asked in trace:
        ids = asked.prompt + [rng.randrange(1000) for _ in range(asked.answer)]
        taken = tree.take(asked.prompt, len(ids))
        if taken is None:
            continue
        if leading is not None:
            beyond += leading.beyond * SIZE
            leading.ask(ids)
        tree.commit(taken[0], ids, len(ids) - 1, ends_turn=True)
        tree.release(taken[0])
    return (tree.hit_tokens + beyond) / tree.asked_tokens


def best_by_future(trace: Sequence[Asked], blocks: int) -> float:
    """The hit rate of the best cache that knows all that will be asked.

    A block found again was kept since its last use and took a slot in every request between; what a request is
    answered in takes slots too. The most tokens found within those slots are a linear programme whose matrix of
    intervals is totally unimodular, so its value is a schedule's, Belady's where all weigh alike. That a block needs
    those before it is left out, as is that a cache must hold what it has just computed: both only lower the figure.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    kept = _found_again(trace)
    weights = [-float(tokens) for _, _, tokens in kept]
    pairs = [(at, number) for number, (since, until, _) in enumerate(kept) for at in range(since + 1, until)]
    left = np.array([max(0, blocks - asked.blocks) for asked in trace], np.float64)
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    spans = coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(len(trace), len(kept)))
    best = linprog(weights, A_ub=spans, b_ub=left, bounds=(0, 1), method="highs") if kept else None
    return -float(best.fun) / sum(len(asked.prompt) for asked in trace) if best else 0.0


def best_by_odds(trace: Sequence[Asked], blocks: int) -> float:
    """A bound on the hit rate, on average over the draws, of every cache that can't foresee them, though it knew all
    odds and which blocks may ever be asked for again.

    Of the blocks it holds no more may be of use than fit beside the last prompt: a one-off leaves only the rest, and
    what it took comes back no faster than useful blocks are asked for. Those held are at best the likeliest.
    """
    useful, expected = 0, 0.0
    for asked in trace:
        left = useful
        for chance, alike in asked.odds:
            expected += SIZE * chance * min(left, alike)
            left -= min(left, alike)
        useful = min(blocks, useful + asked.blocks) if asked.again else min(useful, max(0, blocks - asked.blocks))
    return expected / sum(len(asked.prompt) for asked in trace)


def _found_again(trace: Sequence[Asked]) -> list[tuple[int, int, int]]:
    """What an unbounded cache finds, a block at a time: when it was used last, when it is found, tokens it spares."""
    last: dict[bytes, int] = {}
    ends: dict[bytes, list[tuple[int, list[int]]]] = {}
    found = []
    for at, asked in enumerate(trace):
        prompt, name, matched = asked.prompt, b"", 0
        pieces = [prompt[begin : begin + SIZE] for begin in range(0, len(prompt), SIZE)]
        names = [name]
        for piece in pieces:
            names.append(name_of(names[-1], piece))
        while (matched + 1) * SIZE < len(prompt) and names[matched + 1] in last:
            found.append((last[names[matched + 1]], at, SIZE))
            matched += 1
        rest = prompt[matched * SIZE : min((matched + 1) * SIZE, len(prompt) - 1)]
        parts = [(common_length(tokens, rest), used) for used, tokens in ends.get(names[matched], [])]
        parts = [part for part in parts if part[0] >= _LEAST_PART]
        if parts:
            found.append((max(used for _, used in parts), at, max(tokens for tokens, _ in parts)))
        for number, piece in enumerate(pieces):
            if len(piece) == SIZE:
                last[names[number + 1]] = at
            if len(piece) + asked.answer > SIZE:  # else no whole block, and none is kept
                ends.setdefault(names[number], []).append((at, piece))
    return found


def prefix_cases(requests: int, rounds: int, seed: int = 1) -> list[dict[str, Any]]:
    """Token hit rates by eviction rule, with memory for a share of the trace's distinct blocks; another trace in each
    round."""
    rows = []
    for kind in ("shared", "turns"):
        traces = [prefix_trace(kind, seed + at, requests) for at in range(rounds)]
        for of in ("all blocks", "blocks asked for again"):
            rates = [_hit_rates(trace, of) for trace in traces]
            beside = {
                f"{rule} less {other}": mean_and_half_width([rate[rule] - rate[other] for rate in rates])
                for rule, other in (("marconi", "lru"), (_LEADING, _TRAILING), (_LEADING_FOUR, _TRAILING_FOUR))
            }
            found = {name: mean_and_half_width([rate[name] for rate in rates]) for name in rates[0]}
            rows.append({"trace": kind, "tenth_of": of, "hit_rate": found, "beside": beside})
    return rows


_TRAILING, _TRAILING_FOUR = "marconi, as much again offloaded", "marconi, four times as much there"
_LEADING, _LEADING_FOUR = f"{_TRAILING}, leading dropped first", f"{_TRAILING_FOUR}, leading dropped first"


def _hit_rates(trace: Sequence[Asked], of: str) -> dict[str, float]:
    met = blocks_met(trace)
    distinct = len(met)
    blocks = distinct // 10 if of == "all blocks" else max(20, sum(count > 1 for count in met.values()) // 10)
    best = best_by_future(trace, blocks)
    return {
        "marconi": hit_rate(trace, blocks, 1.0),
        "lru": hit_rate(trace, blocks, None),
        "marconi, keys of eight bits": hit_rate(trace, int(blocks * _EIGHT_BITS), 1.0),
        _TRAILING: hit_rate(trace, blocks, 1.0, blocks),
        _LEADING: hit_rate(trace, blocks, 1.0, leading=LeadingFirst(blocks)),
        _TRAILING_FOUR: hit_rate(trace, blocks, 1.0, 4 * blocks),
        _LEADING_FOUR: hit_rate(trace, blocks, 1.0, leading=LeadingFirst(4 * blocks)),
        "marconi, all of it offloaded": hit_rate(trace, blocks, 1.0, distinct),
        "unbounded": hit_rate(trace, 2 * distinct, None),
        "at best knowing the future": best,
        "at best knowing the odds": min(best, best_by_odds(trace, blocks)),
    }
