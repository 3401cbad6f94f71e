"""Does the certificate keep its word? Many random calibration/test splits, counted.

Rules are trained on half of the rows. The other half is split again and again: the certificate picks a rule from the
calibration part and, judged by cross-fitting, the rows that the rules were trained on; the test part says whether the
floor held there and what hindsight would have paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
CALIBRATED = 0.7
"""Of the rows kept from training; the rest is the test."""


@dataclass(frozen=True, slots=True)
class Rules:
    """One training's rules, safest first, on rows kept from it and, by cross-fitting, on its own.

    A rule learnt from nine tenths of the training rows is a little worse than the one that will serve, so that rows
    judged by cross-fitting count against it if anything.
    """

    held: Family
    own: Family


def rules_of(trained: Trained, taught: Part, held: Part) -> Rules:
    """From the best held-out quality on, by falling cost there: an order that calibration rows can't sway.

    The reference is the single model that was best on the training rows.
    """
    first = best_quality(trained.crossed)
    order = [first, *(k for k in np.argsort(-trained.held_out[:, 0]).tolist() if k > first)]
    found = walked(trained.posterior, [trained.rules[k] for k in order], held)
    j = int(taught.scores.mean(0).argmax())
    reference = taught.logged.data.models[j]

    def family(scores: Matrix, costs_usd: Matrix, part: Part) -> Family:
        return Family(scores, costs_usd, part.scores[:, j], part.paid.answer[:, j], reference)

    return Rules(
        family(np.array([w.score for w in found]), np.array([w.cost_usd for w in found]), held),
        family(trained.scores[order], trained.costs[order], taught),
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
    """Rules trained on the rows whose split is train, certified on all. DataError without such a split."""
    train_rows = logged.data.splits == "train"
    if train_rows.sum() < LEAST_ROWS or train_rows.all():
        raise DataError(f"queries.parquet: field split: {train_rows.sum()} train rows; rules and certificate need both")
    setting = replace(setting or Setting(), rates=RULES)
    x = described(logged.data, shipped_featurizer())
    taught, held = parts(logged, x, train_rows, setting)
    rules = rules_of(train(taught, setting), taught, held)
    checksum = logged.data.checksum()
    family = rules.held.joined(rules.own)
    return certify(family, floor, confidence, horizon=horizon, issued=issued, data_checksum=checksum)


def guarantee(
    logged: Logged,
    *,
    floors: Sequence[float] = FLOORS,
    confidence: float = 0.95,
    splits: int = 200,
    trainings: int = 5,
    setting: Setting | None = None,
    realised: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Share of splits whose floor broke, and cost beside hindsight's, per floor: means over `trainings`, each on
    another half of the rows, the splits shared out among them.

    `realised`: certify the test rows' realised mean; otherwise the long-run mean, by the bound that holds at any
    sample size.
    """
    rng = np.random.default_rng(seed)
    setting = replace(setting or Setting(), rates=RULES)
    x = described(logged.data, shipped_featurizer())
    found: dict[float, list[dict[str, float]]] = {floor: [] for floor in floors}
    rules = None
    for count in range(trainings):
        taught, held = parts(logged, x, rng.random(len(x)) < 0.5, replace(setting, seed=setting.seed + count))
        rules = rules_of(train(taught, setting), taught, held)
        n = len(rules.held.reference)
        orders = [rng.permutation(n) for _ in range(max(1, splits // trainings))]
        for floor in floors:
            found[floor].append(_counted(rules, floor, confidence, orders, realised))
    assert rules is not None
    broken = 2.0 * float(np.sqrt(confidence * (1.0 - confidence) / splits))
    report = {f"{floor:.2f}": _mean(rows) | {"two_standard_errors": broken} for floor, rows in found.items()}
    size = {"rules": len(rules.held.scores), "rows": len(x), "splits": splits, "trainings": trainings}
    return {**size, "calibration_share_of_kept_rows": CALIBRATED, **report}


def _counted(
    rules: Rules, floor: float, confidence: float, orders: Sequence[np.ndarray[Any, Any]], realised: bool
) -> dict[str, float]:
    """Over all splits: refusals, breaches, and what was paid against two kinds of hindsight: the cheapest rule that
    kept the floor on that very test part, and the cheapest one rule that kept it on as many parts as promised.
    """
    broken, refused, paid = 0, 0, list[float]()
    kept, costs, prices = list[Matrix](), list[Matrix](), list[float]()
    for order in orders:
        cut = int(CALIBRATED * len(order))
        calibration, test = rules.held.rows(order[:cut]).joined(rules.own), rules.held.rows(order[cut:])
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
        "broken": broken / len(orders),
        "refused": refused / len(orders),
        "cost_ratio": float(np.mean(paid)) / price,
        "hindsight_cost_ratio_of_each_split": float(cheapest.mean()) / price,
        "hindsight_cost_ratio_of_one_rule": one_rule / price,
    }


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of every figure over trainings, and the cost beside both hindsights'."""
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    cost = mean["cost_ratio"]
    mean["cost_against_hindsight_of_each_split"] = cost / mean["hindsight_cost_ratio_of_each_split"]
    mean["cost_against_best_steady_rule"] = cost / mean["hindsight_cost_ratio_of_one_rule"]
    return mean
