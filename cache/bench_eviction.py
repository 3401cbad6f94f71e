"""What eviction saves on traces of known popularity, beside published figures. Part of `python -m cache.bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cache.bench_policies import LFU, LRU, GreedyDual
from cache.evaluate import half_width
from cache.eviction import LeastExpectedCost

_KEYS = 20_000


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests by key, and what each key's answer costs and weighs."""

    name: str
    keys: list[int]
    cost: NDArray[np.float64]
    size: NDArray[np.float64]


def eviction_traces(requests: int) -> list[Trace]:
    """Zipf .6 and .9 at price ratios of 10 and 100, and Zipf .9 reshuffled six times; prices are drawn in turn,
    those of traces that nobody asks for too."""
    rng = np.random.default_rng(0)
    size = np.maximum(1, rng.lognormal(0, 1, _KEYS))
    rng.lognormal(0, 1, _KEYS)  # answers' lengths, which no price hangs on
    traces = []
    for power in (0.6, 0.9, 1.2):
        popular = _zipf(power)
        keys = rng.choice(_KEYS, requests, p=popular[rng.permutation(_KEYS)]).tolist()
        for ratio in (1.0, 10.0, 100.0):
            cost = np.where(rng.random(_KEYS) < 0.5, 1.0, ratio) * size
            if power < 1 and ratio > 1:
                traces.append(Trace(f"zipf {power}, {ratio:.0f}:1", keys, cost, size))
    shuffles = [np.random.default_rng(number).permutation(_KEYS) for number in range(6)]
    parts = [rng.choice(_KEYS, requests // 6, p=_zipf(0.9)[shuffle]) for shuffle in shuffles]
    cost = np.where(rng.random(_KEYS) < 0.5, 1.0, 10.0) * size
    return [*traces, Trace("drift x6, 10:1", np.concatenate(parts).tolist(), cost, size)]


def _zipf(power: float) -> NDArray[np.float64]:
    popular: NDArray[np.float64] = 1 / np.arange(1, _KEYS + 1) ** power
    popular /= popular.sum()
    return popular


def saved_by_part(trace: Trace, policy: Any, parts: int = 20) -> NDArray[np.float64]:
    """The cost that hits save and the whole cost, (parts, 2), in each of `parts` consecutive parts of a trace. The cost
    of an answer varies from one request to the next.
    """
    noise = np.random.default_rng(1).lognormal(-0.125, 0.5, len(trace.keys))
    found = np.zeros((parts, 2))
    for at, (key, cost) in enumerate(zip(trace.keys, (trace.cost[trace.keys] * noise).tolist(), strict=True)):
        part = found[at * parts // len(trace.keys)]
        part[1] += cost
        if key in policy:
            part[0] += cost
            policy.touch(key)
        else:
            policy.admit(key, cost, int(1000 * trace.size[key]))
    return found


def lead_half_width(found: NDArray[np.float64], beside: NDArray[np.float64]) -> float:
    """Half width of the 95 % interval of the difference between two shares saved, the parts paired."""
    return half_width(found[:, 0] / found[:, 1] - beside[:, 0] / beside[:, 1])


Saved = dict[str, float]
"""Share of cost saved, by policy."""

_POLICIES: dict[str, Callable[[int], Any]] = {
    "LRU": LRU,
    "LFU": LFU,
    "GDSF": partial(GreedyDual, remembered=1000),  # as published: no frequency is forgotten
    "GDSF, ageing": GreedyDual,
    "least expected cost": LeastExpectedCost,
}
_PARTS = (0.02, 0.1)
"""Room, as a share of all answers' bytes."""
_KNOWN_RULES = ("LRU", "LFU", "LEC", "LEC/size with admission", "GDSF")
_KNOWN = {
    "zipf 0.9, 10:1": ((0.337, 0.471, 0.456, 0.507, 0.471), (0.553, 0.643, 0.646, 0.680, 0.655)),
    "zipf 0.9, 100:1": ((0.337, 0.470, 0.464, 0.530, 0.493), (0.553, 0.641, 0.675, 0.703, 0.684)),
    "zipf 0.6, 100:1": ((0.081, 0.189, 0.174, 0.239, 0.199), (0.244, 0.347, 0.390, 0.444, 0.417)),
    "drift x6, 10:1": ((0.352, 0.342, 0.322, 0.367, 0.437), (0.563, 0.505, 0.514, 0.552, 0.608)),
}
"""What a plain simulation of each rule saved on such traces (no figures for Zipf .6 at 10:1), by part and rule."""


def bench_eviction(requests: int = 150_000) -> dict[str, dict[str, Saved]]:
    """Share of cost saved by policy, at 2 % and 10 % of all bytes, and what other implementations were seen to save."""
    cases = [(trace, at) for trace in eviction_traces(requests) for at in range(len(_PARTS))]
    screen, rows = Console(stderr=True, width=160), {}
    for trace, at in track(cases, "eviction", console=screen):
        room = int(1000 * trace.size.sum() * _PARTS[at])
        found = {name: saved_by_part(trace, make(room)) for name, make in _POLICIES.items()}
        ours = {name: round(float(np.divide(*parts.sum(0))), 4) for name, parts in found.items()}
        *others, own = ours
        best = max(others, key=lambda name: ours[name])
        reach = lead_half_width(found[own], found[best])
        lead = {"by": round(ours[own] - ours[best], 4), "half_width": round(reach, 4)}
        known = _KNOWN[trace.name][at] if trace.name in _KNOWN else ()
        rows[f"{trace.name}, {_PARTS[at]:.0%}"] = {
            "here": ours, "lead": lead, "known": dict(zip(_KNOWN_RULES, known, strict=False))
        }  # fmt: skip
    screen.print(_table(rows))
    return rows


def _table(rows: dict[str, dict[str, Saved]]) -> Table:
    table = Table(title="share of cost saved: here, and what plain simulations of the rules were seen to save")
    table.add_column("trace, room")
    ahead = ("ahead of the best here by (95 %, over parts of the trace)", "ahead of the best known by")
    for name in (*_POLICIES, *(f"{rule}, known" for rule in _KNOWN_RULES), *ahead):
        table.add_column(name, justify="right")
    for case, row in rows.items():
        here, known, lead = row["here"], row["known"], row["lead"]
        best = f"{here['least expected cost'] - max(known.values()):+.3f}" if known else ""
        found = [*(here[name] for name in _POLICIES), *(known.get(rule) for rule in _KNOWN_RULES)]
        shares = ("" if share is None else f"{share:.3f}" for share in found)
        table.add_row(case, *shares, f"{lead['by']:+.3f} (+-{lead['half_width']:.3f})", best)
    return table
