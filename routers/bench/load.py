"""Shows best-effort serving under load: `python -m routers.bench.load`.

A local model serves requests one after the other for nothing; a remote one is better or worse by the query, costs
money and never queues. Arrivals rise to several times what the local model can serve and fall again. Compared: a
router that sees the queue and prices a second of waiting, with the same router blind to it (static serving). Reported:
availability (share answered within the bound), quality as a share of the peak (each query by its better model, at no
wait), dollars; each with its 95 % interval over ramps.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import numpy as np

from routers.intervals import mean_and_half_width
from routers.select import Forecast, utilities
from routers.types import Knobs

LOCAL_S, REMOTE_S, REMOTE_USD = 0.5, 1.0, 2e-3
BOUND_S = 3.0
WAIT_USD_PER_S = 1e-3
PEAK_LOAD = 4.0
"""Arrivals per second at the peak, as a multiple of what the local model can serve."""


@dataclass(frozen=True, slots=True)
class Served:
    availability: float
    quality_of_peak: float
    usd_per_1000: float
    local_share: float


def ramp(requests: int, rng: np.random.Generator) -> np.ndarray:
    """Arrival times: the rate rises from a tenth of the peak to the peak and falls again."""
    load = PEAK_LOAD * (0.1 + 0.9 * np.sin(np.linspace(0.0, np.pi, requests)) ** 2)
    return np.asarray(np.cumsum(rng.exponential(LOCAL_S / load)))


def served(knobs: Knobs, *, sees_queue: bool, requests: int = 4000, seed: int = 0) -> Served:
    """One ramp under those knobs."""
    rng = np.random.default_rng(seed)
    times, free_s = ramp(requests, rng), 0.0
    quality = np.column_stack([rng.uniform(0.55, 0.85, requests), rng.uniform(0.6, 0.9, requests)])
    timely, worth, local = np.zeros(requests, bool), np.zeros(requests), np.zeros(requests, bool)
    for i, now in enumerate(times.tolist()):
        queue_s = max(free_s - now, 0.0)
        seen = queue_s if sees_queue else 0.0
        latency = [LOCAL_S + seen, REMOTE_S]
        forecast = Forecast(("local", "remote"), quality[i].tolist(), [0.1] * 2, [0.0, REMOTE_USD], latency, [0.0] * 2)
        pick = int(np.argmax(utilities(forecast, knobs, REMOTE_USD)))
        took = LOCAL_S + queue_s if pick == 0 else REMOTE_S
        if pick == 0:
            free_s = max(free_s, now) + LOCAL_S
        local[i], timely[i] = pick == 0, took <= BOUND_S
        worth[i] = quality[i, pick] if timely[i] else 0.0
    return Served(
        float(timely.mean()), float(worth.mean() / quality.max(1).mean()),
        float((~local).mean() * REMOTE_USD * 1000), float(local.mean()),
    )  # fmt: skip


def compared(seeds: int = 10) -> dict[str, dict[str, dict[str, float]]]:
    """Means over seeds with their 95 % half widths; every policy sees the same ramps."""
    policies = {
        "static": (Knobs(cost_weight=0.5), False),
        "priced waiting": (Knobs(cost_weight=0.5, wait_usd_per_s=WAIT_USD_PER_S), True),
        "priced waiting and bound": (
            Knobs(cost_weight=0.5, wait_usd_per_s=WAIT_USD_PER_S, max_latency_s=BOUND_S), True,
        ),
    }  # fmt: skip
    report = {}
    for name, (knobs, sees) in policies.items():
        runs = [served(knobs, sees_queue=sees, seed=seed) for seed in range(seeds)]
        report[name] = {
            field: mean_and_half_width([getattr(run, field) for run in runs]) for field in Served.__dataclass_fields__
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.load", description=__doc__)
    parser.add_argument("--seeds", type=int, choices=range(2, 101), metavar="2..100", default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = compared(args.seeds)
    if args.json:
        print(json.dumps(report))
        return
    for name, row in report.items():
        cells = (f"{field} {one['value']:.3f} (+-{one['half_width']:.3f})" for field, one in row.items())
        print(f"{name:25s} " + "  ".join(cells))


if __name__ == "__main__":
    main()
