"""`headgate evaluate --cascade`: cascade routing on a folder with confidences, in the same report as a router.

The cascade is trained on the training rows, its operating point is the cheapest rule that matched the best single
model there, and the frontier is that of its rules on the test rows. Answers whose confidence is read are charged with
their self-check, as the data says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cascade.logs import read_logged
from cascade.posterior_fit import cheapest_matching
from cascade.rows import EstimatedRows, TrainingSettings, estimated_parts
from cascade.train import train, walked
from gateway.learn.evaluation import LeftOut, fresh
from routers import evaluate
from routers.evaluate import Bench, PolicyFamily
from routers.features import shipped_featurizer
from routers.fit import described
from routers.outcomes import DataError
from routers.parallel import ParallelMap, serial_map

NAMES = ("routing",)
"""Cascades that can be evaluated on logged confidences; `confidence` is the fixed chain of a route."""


def evaluated(
    name: str, data: Path, *, tasks: Sequence[str] = (), router: str = "ensemble", seed: int = 0,
    resamples: int = evaluate.RESAMPLES, parallel_map: ParallelMap = serial_map,
) -> tuple[dict[str, Any], dict[str, PolicyFamily], Bench]:  # fmt: skip
    """The report of one split by the data's own `split`; `parallel_map` runs resamples. DataError where the data can't
    support it.
    """
    if name not in NAMES:
        raise DataError(f"no cascade is called {name!r}; known: {', '.join(NAMES)}")
    logged = read_logged(data, tasks)
    splits = logged.data.splits
    if not (splits == "train").any() or not (splits == "test").any():
        raise DataError("queries.parquet: field split: needs rows of train and of test")
    held = splits == "test"
    kept = held.copy()
    kept[~held] = fresh(logged.data.rows(~held), logged.data.rows(held))
    logged, splits = logged.rows(kept), splits[kept]
    setting = TrainingSettings(router="ensemble" if router == "default" else router, seed=seed)
    taught, tested = estimated_parts(logged, described(logged.data, shipped_featurizer()), splits != "test", setting)
    trained = train(taught, setting)
    bench = Bench(tested.scores, tested.paid.answer, int(taught.scores.mean(0).argmax()))
    walks = walked(trained.posterior, trained.rules, tested)
    policies = {
        "cascade": PolicyFamily(np.stack([w.cost_usd for w in walks]), np.stack([w.score for w in walks])),
        "router": _router(tested, bench),
        "zero_router": evaluate.singles(bench),
        "best_single": evaluate.best_single(bench),
        "oracle": evaluate.oracle(bench),
    }
    point, drawn = evaluate.compared(bench, policies, seed, resamples, parallel_map)
    chosen = cheapest_matching(trained.held_out, trained.best_single, setting.tolerance)
    report = {
        "n_queries": len(bench.scores),
        "n_train": len(taught.scores),
        "left_out": asdict(LeftOut((), logged.dropped, int((~kept).sum()))),
        "models": list(logged.data.models),
        "best_single_model": logged.data.models[bench.best],
        "cascade_name": name,
        "cost": "cost_usd where a confidence is read, answer_cost_usd elsewhere",
        **evaluate.tabled(point, drawn),
        "cascade_minus_router": evaluate.paired(point, drawn, "cascade", "router"),
        "operating_point": evaluate.operating_point(policies["cascade"], chosen, bench, seed, resamples)
        | {"latency_s": float(walks[chosen].latency_s.mean()), "calls": float(walks[chosen].calls.mean())},
    }
    return report, policies, bench


def _router(tested: EstimatedRows, bench: Bench) -> PolicyFamily:
    """The estimates before generation alone, as a router would use them."""
    quality = 1.0 / (1.0 + np.exp(-tested.scene.prior))
    return evaluate.swept(quality, tested.prices.answer, bench)
