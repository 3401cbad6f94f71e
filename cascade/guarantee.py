"""Does the certificate keep its word? Many random calibration/test splits, counted.

Rules are trained once, on rows that take part in no split. On each split the certificate picks a rule from the
calibration half, and the test half says whether the floor held there and what hindsight would have paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cascade.calibrate import Certificate, Family, Refusal, certify
from cascade.evaluate import LEAST_ROWS, Part, Setting, Trained, parts, train, walked
from cascade.logs import Logged
from cascade.posterior import Matrix
from cascade.posterior_fit import best_quality
from routers.features import shipped_featurizer
from routers.fit import described
from routers.outcomes import DataError

FLOORS = (0.90, 0.95, 0.97)
RULES = 96


def family_of(trained: Trained, part: Part) -> Family:
    """The rules from the best held-out quality on, by falling cost there: an order that calibration rows can't sway."""
    first = best_quality(trained.crossed)
    order = [first, *(k for k in np.argsort(-trained.held_out[:, 0]).tolist() if k > first)]
    found = walked(trained.posterior, [trained.rules[k] for k in order], part)
    reference = int(part.scores.mean(0).argmax())
    return Family(
        np.array([w.score for w in found]),
        np.array([w.cost_usd for w in found]),
        part.scores[:, reference],
        part.paid.answer[:, reference],
        part.logged.data.models[reference],
    )


def certified(
    logged: Logged,
    floor: float,
    confidence: float,
    *,
    horizon: int | None = None,
    setting: Setting | None = None,
    issued: str = "",
) -> Certificate | Refusal:
    """Rules trained on the rows whose split is train, certified on the others. DataError without such a split."""
    train_rows = logged.data.splits == "train"
    if train_rows.sum() < LEAST_ROWS or train_rows.all():
        raise DataError(f"queries.parquet: field split: {train_rows.sum()} train rows; rules and certificate need both")
    setting = replace(setting or Setting(), rates=RULES)
    x = described(logged.data, shipped_featurizer())
    taught, held = parts(logged, x, train_rows, setting)
    family = family_of(train(taught, setting), held)
    checksum = held.logged.data.checksum()
    return certify(family, floor, confidence, horizon=horizon, issued=issued, data_checksum=checksum)


def guarantee(
    logged: Logged,
    *,
    floors: Sequence[float] = FLOORS,
    confidence: float = 0.95,
    splits: int = 200,
    setting: Setting | None = None,
    realised: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Share of splits whose floor broke, and cost beside hindsight's, per floor.

    `realised`: certify the test half's realised mean; otherwise the long-run mean, by the bound that holds at any
    sample size.
    """
    rng = np.random.default_rng(seed)
    setting = replace(setting or Setting(), rates=RULES)
    x = described(logged.data, shipped_featurizer())
    taught, held = parts(logged, x, rng.random(len(x)) < 0.5, setting)
    family = family_of(train(taught, setting), held)
    n = len(family.reference)
    halves = [rng.permutation(n) for _ in range(splits)]
    report = {f"{floor:.2f}": _counted(family, floor, confidence, halves, realised) for floor in floors}
    return {"rules": len(family.scores), "rows": n, "reference": family.reference_model, "splits": splits, **report}


def _counted(
    family: Family, floor: float, confidence: float, halves: Sequence[np.ndarray[Any, Any]], realised: bool
) -> dict[str, float]:
    """Over all splits: refusals, breaches, and what was paid against two kinds of hindsight: the cheapest rule that
    kept the floor on that very test half, and the cheapest one rule that kept it on as many halves as promised.
    """
    broken, refused, paid = 0, 0, list[float]()
    kept, costs, prices = list[Matrix](), list[Matrix](), list[float]()
    for half in halves:
        calibration, test = family.rows(half[: len(half) // 2]), family.rows(half[len(half) // 2 :])
        found = certify(calibration, floor, confidence, horizon=len(test.reference) if realised else None)
        prices.append(float(test.reference_costs_usd.mean()))
        kept.append(test.scores.mean(1) >= floor * test.reference.mean())
        costs.append(test.costs_usd.mean(1))
        if isinstance(found, Certificate):
            broken += not kept[-1][found.rule]
            paid.append(float(costs[-1][found.rule]))
        else:
            refused += 1
            paid.append(prices[-1])
    held, cost, price = np.array(kept), np.array(costs), float(np.mean(prices))
    cheapest = np.minimum(np.where(held, cost, np.inf).min(1), price)
    steady = held.mean(0) >= confidence
    one_rule = min(price, float(cost.mean(0)[steady].min())) if steady.any() else price
    return {
        "broken": broken / len(halves),
        "two_standard_errors": 2.0 * float(np.sqrt(confidence * (1.0 - confidence) / len(halves))),
        "refused": refused / len(halves),
        "cost_ratio": float(np.mean(paid)) / price,
        "cost_against_hindsight_of_each_half": float(np.mean(paid) / cheapest.mean()),
        "cost_against_best_steady_rule": float(np.mean(paid)) / one_rule,
    }
