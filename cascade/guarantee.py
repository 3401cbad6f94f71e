"""Measures how often certificates hold, over many random calibration/test splits.

Rules are trained on all rows, and every row is judged by rules that never saw it (cross-fitting: a rule learnt from
nine tenths of the rows is a little worse than the one that will serve, so this counts against it if anything). Those
rows are split again and again: the certificate picks a rule from the calibration part; the test part says whether the
floor held there and what hindsight would have paid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cascade.calibrate import Certificate, Family, Refusal, certify
from cascade.logs import Logged
from cascade.rows import EstimatedRows, TrainingSettings, estimated_parts
from cascade.train import LEAST_ROWS, train
from routers.features import shipped_featurizer
from routers.fit import described
from routers.outcomes import DataError

FLOORS = (0.90, 0.95, 0.97)
RULES = 200
HIGHEST_RATE = 5.6
"""Quality points per reference cost at which every question goes to the cheapest model."""
CALIBRATED = 0.9
"""Share of the rows that calibrate; the rest tests."""
HINDSIGHT_SPLITS = 2000
"""Number of random test parts by which the best rule in hindsight is found; with few of them it would be found by luck.
"""


def family_of(part: EstimatedRows, setting: TrainingSettings, reference: int) -> Family:
    """What every rule scored and cost on rows that it never saw, from quality alone on by rising rate: an order that
    was fixed before any row was seen.
    """
    trained = train(part, setting)
    model = part.logged.data.models[reference]
    return Family(trained.scores, trained.costs, part.scores[:, reference], part.paid.answer[:, reference], model)


def families(logged: Logged, setting: TrainingSettings, reference: str, count: int) -> Iterator[Family]:
    """A family of rules for each of `count` divisions of the rows into folds. Raises DataError where there are too few
    rows or no such reference.
    """
    if len(logged.answers) < LEAST_ROWS:
        raise DataError(f"{len(logged.answers)} complete rows; rules and certificate need {LEAST_ROWS} or more")
    place = reference_of(logged, reference)
    x = described(logged.data, shipped_featurizer())
    for seed in range(setting.seed, setting.seed + count):
        one = replace(setting, rates=RULES, highest_rate=HIGHEST_RATE, seed=seed)
        yield family_of(estimated_parts(logged, x, np.ones(len(x), bool), one)[0], one, place)


def reference_of(logged: Logged, name: str) -> int:
    """The model named, else the most expensive: what an operator may name before anything was measured."""
    models = logged.data.models
    if name and name not in models:
        raise DataError(f"no model is called {name!r}; known: {', '.join(models)}")
    return models.index(name) if name else int(logged.data.cost_usd.mean(0).argmax())


def certified(
    logged: Logged,
    floor: float,
    confidence: float,
    *,
    horizon: int | None = None,
    setting: TrainingSettings | None = None,
    reference: str = "",
    issued: str = "",
) -> Certificate | Refusal:
    """Certify one of the rules that these rows teach. DataError where there are too few."""
    (family,) = families(logged, setting or TrainingSettings(), reference, 1)
    checksum = logged.data.checksum()
    return certify(family, floor, confidence, horizon=horizon, issued=issued, data_checksum=checksum)


def guarantee(
    logged: Logged,
    *,
    floors: Sequence[float] = FLOORS,
    confidence: float = 0.95,
    splits: int = 200,
    trainings: int = 2,
    setting: TrainingSettings | None = None,
    reference: str = "",
    realised: bool = True,
    calibrated: float = CALIBRATED,
    seed: int = 0,
) -> dict[str, Any]:
    """Share of splits whose floor broke, and cost beside hindsight's, per floor: means over `trainings`, each with
    other folds, the splits shared out among them.

    `realised`: certify the test rows' realised mean; otherwise the long-run mean, by the bound that holds at any
    sample size.
    """
    rng = np.random.default_rng(seed)
    each = max(1, splits // trainings)
    found: dict[float, list[dict[str, float]]] = {floor: [] for floor in floors}
    for family in families(logged, setting or TrainingSettings(), reference, trainings):
        n = len(family.reference)
        orders = [rng.permutation(n) for _ in range(each)]
        for floor in floors:
            found[floor].append(_counted(family, floor, confidence, orders, int(calibrated * n), realised))
    broken = 2.0 * float(np.sqrt(confidence * (1.0 - confidence) / (each * trainings)))
    report = {f"{floor:.2f}": _mean(rows) | {"two_standard_errors": broken} for floor, rows in found.items()}
    size = {"rules": len(family.scores), "rows": n, "splits": each * trainings, "trainings": trainings}
    return {**size, "reference": family.reference_model, "calibration_share": calibrated, **report}


def _counted(
    family: Family, floor: float, confidence: float, orders: Sequence[np.ndarray[Any, Any]], cut: int, realised: bool
) -> dict[str, float]:
    """Over all splits: refusals, breaches, and what was paid against two kinds of hindsight: the cheapest rule that
    kept the floor on that very test part, and the cheapest one rule that keeps it on as many parts as promised.
    """
    broken, refused, paid, cheapest, prices = 0, 0, list[float](), list[float](), list[float]()
    for order in orders:
        test = family.rows(order[cut:])
        found = certify(family.rows(order[:cut]), floor, confidence, horizon=len(order) - cut if realised else None)
        kept, costs = test.scores.mean(1) >= floor * test.reference.mean(), test.costs_usd.mean(1)
        prices.append(float(test.reference_costs_usd.mean()))
        cheapest.append(min(prices[-1], float(np.where(kept, costs, np.inf).min())))
        if isinstance(found, Certificate):
            broken += not kept[found.rule]
            paid.append(float(costs[found.rule]))
        else:
            refused += 1
            paid.append(prices[-1])
    price = float(np.mean(prices)) or float("nan")
    return {
        "broken": broken / len(orders),
        "refused": refused / len(orders),
        "cost_ratio": float(np.mean(paid)) / price,
        "hindsight_cost_ratio_of_each_split": float(np.mean(cheapest)) / price,
        "hindsight_cost_ratio_of_one_rule": _steady(family, floor, confidence, len(family.reference) - cut),
    }


def _steady(family: Family, floor: float, confidence: float, rows: int) -> float:
    """Cost, as a share of the reference's, of the cheapest rule that keeps the floor on as many random test parts of so
    many rows as promised.
    """
    rng, n = np.random.default_rng(0), len(family.reference)
    slack = family.scores - floor * family.reference
    drawn = (rng.choice(n, rows, replace=False) for _ in range(HINDSIGHT_SPLITS))
    kept = np.mean([slack[:, part].mean(1) >= 0.0 for part in drawn], axis=0)
    costs, price = family.costs_usd.mean(1), float(family.reference_costs_usd.mean())
    return min(price, float(np.where(kept >= confidence, costs, np.inf).min())) / (price or float("nan"))


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of every figure over trainings, and the cost beside that of both hindsights."""
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    cost = mean["cost_ratio"]
    mean["cost_against_hindsight_of_each_split"] = cost / mean["hindsight_cost_ratio_of_each_split"]
    mean["cost_against_best_steady_rule"] = cost / mean["hindsight_cost_ratio_of_one_rule"]
    return mean
