"""Jobs with random estimates, and the parts of the gateway that planning needs, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gateway.app import open_cascades, open_routers
from gateway.batch.plan import PlanContext
from gateway.batch.types import Arm, Capacity, Estimates
from gateway.config.load import parse
from gateway.config.settings import Settings
from gateway.config.types import Config
from gateway.routes import RouteBook

SMALL, LARGE = "Phi-3-mini-4k-instruct", "gemini-1.5-pro-002"
"""Two models that the shipped router was trained on."""
MODELS: tuple[Mapping[str, Any], ...] = (
    {"name": SMALL, "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.2, "context_tokens": 1000},
    {"name": LARGE, "input_usd_per_mtok": 2.5, "output_usd_per_mtok": 10.0, "context_tokens": 4000},
)


def estimates(n: int, arms: int, seed: int = 0, *, barred: float = 0.1) -> Estimates:
    """More expensive arms tend to be better; a share of the cells is barred, but every prompt has at least one arm."""
    rng = np.random.default_rng(seed)
    price = np.sort(np.exp(rng.normal(0, 1.5, arms)) * 1e-4)
    skill = np.linspace(-0.5, 1.5, arms) + rng.normal(0, 0.3, arms)
    hard = rng.normal(0, 1.2, n)
    quality = 1.0 / (1.0 + np.exp(hard[:, None] - skill + rng.normal(0, 0.5, (n, arms))))
    inputs = rng.integers(20, 800, n).astype(float)
    output = np.exp(rng.normal(5, 0.6, (n, arms)))
    cost = (inputs[:, None] * 0.25 + output) * price / 200
    cost[rng.random((n, arms)) < barred] = np.inf
    cost[~np.isfinite(cost).any(1), 0] = 1e-4
    single = np.float32
    return Estimates(
        arms=tuple(Arm(f"m{place}") for place in range(arms)),
        quality=quality.astype(np.float32),
        quality_sd=rng.uniform(0.01, 0.1, (n, arms)).astype(np.float32),
        cost_usd=cost.astype(np.float32),
        output_tokens=output.astype(np.float32),
        latency_s=(0.3 + output * 0.01).astype(np.float32),
        input_tokens=inputs.astype(np.float32),
        floor=np.zeros(n, single),
        quality_shift_sd=np.full(arms, 0.02, single),
        cost_shift_sd=np.full(arms, 0.1, single),
    )


def range_usd(given: Estimates) -> tuple[float, float]:
    """The job's cost if every prompt goes to its cheapest arm, and to its best."""
    able = np.isfinite(given.cost_usd)
    best = np.where(able, given.quality, -1.0).argmax(1)
    cheapest = np.where(able, given.cost_usd, np.inf).min(1)
    return float(cheapest.sum(dtype=float)), float(given.cost_usd[np.arange(len(given)), best].sum(dtype=float))


def capacities(given: Estimates, deadline_s: float, room: float = 1.0) -> tuple[Capacity, ...]:
    """Rates of two providers with every other arm each, and concurrent calls; a `room` of 1 leaves little spare
    capacity.
    """
    n, arms = len(given), len(given.arms)
    even = tuple(float(place % 2 == 0) for place in range(arms))
    odd = tuple(1.0 - part for part in even)
    return (
        Capacity("even: requests", n * 0.6 * room / deadline_s, requests=even),
        Capacity("odd: requests", n * 0.6 * room / deadline_s, requests=odd),
        Capacity("odd: tokens", n * 300 * room / deadline_s, input_tokens=odd, output_tokens=odd),
        Capacity("calls at once", n * 1.8 * room / deadline_s, seconds=(1.0,) * arms),
    )


def config(folder: Path, **sections: Any) -> Config:
    """Two models of one provider behind the route `auto`; `sections` replace those of the file."""
    table = {
        "server": {"run_dir": str(folder / "run")},
        "storage": {"url": f"sqlite:///{folder}/journal.db"},
        "providers": [{"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"}],
        "models": [{"provider": "up", **model} for model in MODELS],
        "routes": [{"name": "auto", "models": [SMALL, LARGE], "cache": "exact"}],
        **sections,
    }
    found, problems = parse(table, {})
    assert found is not None, problems
    return found


def plan_context(folder: Path, **sections: Any) -> PlanContext:
    chosen = config(folder, **sections)
    return PlanContext(chosen, RouteBook(chosen, open_routers(chosen, Settings()), open_cascades(chosen)))
