"""Shows which models of a folder of outcomes to keep loaded: `python -m routers.bench.subset DIR [--json]`.

A gate is fitted once on the training rows. Subsets of one, two, ... models are chosen on those rows by its out-of-fold
estimates, by greedy and by exhaustive search, under limits of mean cost (and of mean latency where the data knows it),
each a share of what the best single model spends. What is reported was realised on the test rows.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.cores import one_core
from routers.intervals import half_width
from routers.outcomes import fully_priced, read_outcomes
from routers.subset import EXACT_MOST, Limits, NoSubset, SubsetChoice, exact, gated, greedy, judged
from routers.subset_fit import SubsetRows, expected

SHARES: tuple[float | None, ...] = (None, 0.5, 0.2)
"""Limits as shares of the best single model's mean spend; None for no limit."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.subset", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--estimator", default="linear")
    parser.add_argument("--most", type=int, default=4, help="largest subset")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.most < 1:
        parser.error(f"--most {args.most}: at least one model must be loaded")
    try:
        train, test, models = expected(fully_priced(read_outcomes(args.data)), args.estimator, EXACT_MOST)
    except ValueError as error:  # the data, or the estimator's name
        parser.error(str(error))
    report = compared(train, test, models, args.most)
    print(json.dumps(report) if args.json else _told(report))


def compared(train: SubsetRows, test: SubsetRows, models: tuple[str, ...], most: int) -> dict[str, Any]:
    """Under every combination of limits, subsets of every size beside all models and beside the best single one."""
    best = int(train.scores.mean(0).argmax())
    spends = tuple(train.spends)
    return {
        "queries": len(test.scores),
        "latency known": "latency_s" in spends,
        "best single": {"model": models[best], **_realised(np.full(len(test.scores), best, np.intp), test)},
        "limits": [
            _under(train, test, models, most, _means(train, best, dict(zip(spends, shares, strict=True))))
            for shares in product(SHARES, repeat=len(spends))
        ],
    }


def _means(train: SubsetRows, best: int, shares: dict[str, float | None]) -> dict[str, float]:
    spent = {name: float(train.spends[name][:, best].mean()) for name in shares}
    return {name: share * spent[name] for name, share in shares.items() if share is not None}


def _under(
    train: SubsetRows, test: SubsetRows, models: tuple[str, ...], most: int, means: dict[str, float]
) -> dict[str, Any]:
    every = judged(train.expected, Limits(len(models), means), range(len(models)))
    if every is None:
        return {"means": means, "all models": None, "sizes": []}
    picks = _gate(every, test)
    sizes = [_sized(train, test, models, Limits(size, means), picks) for size in range(1, min(most, len(models)) + 1)]
    return {"means": means, "all models": _realised(picks, test), "sizes": sizes}


def _sized(
    train: SubsetRows, test: SubsetRows, models: tuple[str, ...], limits: Limits, every: NDArray[np.intp]
) -> dict[str, Any]:
    """One size: the exhaustive choice, the greedy one's share of its worth, and the models best on their own. `every`:
    where the test rows go when all models are loaded.
    """
    try:
        best, quick = exact(train.expected, limits), greedy(train.expected, limits)
    except NoSubset:
        return {"models": limits.models, "chosen": None}
    alone = np.argsort(-train.scores.mean(0))[: limits.models].tolist()
    top, picks, rows = judged(train.expected, limits, alone), _gate(quick, test), np.arange(len(test.scores))
    lost = test.scores[rows, picks] - test.scores[rows, every]
    return {
        "models": limits.models,
        "chosen": [models[j] for j in quick.models],
        "share of the exhaustive worth": quick.worth / best.worth,
        "greedy": _realised(picks, test),
        "against all models": float(lost.mean()),
        "half width": half_width(lost),
        "exhaustive": _realised(_gate(best, test), test),
        "best on their own": top and _realised(_gate(top, test), test),
    }


def _gate(choice: SubsetChoice, test: SubsetRows) -> NDArray[np.intp]:
    return gated(choice, test.expected.quality, test.expected.spends)


def _realised(picks: NDArray[np.intp], test: SubsetRows) -> dict[str, float]:
    """Mean score and spends when each query goes to its column."""
    at = np.arange(len(test.scores)), picks
    spent = {name: float(spend[at].mean()) for name, spend in test.spends.items()}
    return {"quality": float(test.scores[at].mean()), **spent}


def _told(report: dict[str, Any]) -> str:
    lines = [f"{report['queries']} test queries; quality and mean spends realised on them"]
    if not report["latency known"]:
        lines.append("latency is not known here: limits are of cost alone")
    lines.append(f"best single: {_line(report['best single'])}  {report['best single']['model']}")
    for part in report["limits"]:
        means = ", ".join(f"{name} {most:.3g}" for name, most in part["means"].items())
        lines += [f"limits: {means or 'none'}", f"  all models:    {_line(part['all models'])}"]
        for row in part["sizes"]:
            lines += _row(row)
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> list[str]:
    if row["chosen"] is None:
        return [f"  {row['models']} at most: no subset keeps the limits"]
    gap = f"{row['against all models']:+.4f} ± {row['half width']:.4f} against all models"
    share = f"{row['share of the exhaustive worth']:.2%}"
    return [
        f"  {row['models']} at most: {', '.join(row['chosen'])}",
        f"    greedy:        {_line(row['greedy'])}  {gap}",
        f"    exhaustive:    {_line(row['exhaustive'])}  greedy expects {share} of it",
        f"    best alone:    {_line(row['best on their own'])}",
    ]


def _line(found: dict[str, float] | None) -> str:
    if found is None:
        return "breaks the limits"
    spent = [f"{name} {value:.3g}" for name, value in found.items() if name not in ("quality", "model")]
    return f"{found['quality']:.4f}  {'  '.join(spent)}"


if __name__ == "__main__":
    with one_core():
        main()
