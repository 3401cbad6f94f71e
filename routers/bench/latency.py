"""Shows how well latencies are predicted: `python -m routers.bench.latency --data DIR [--resamples N] [--json]`.

An answer's latency is fitted per model on training rows, as the idealised runtime of Narayanan et al. 2023: a part for
the prompt, and so much per token of the answer. On held-out rows (those of split test, else three in ten at random)
each fit is judged by the median of |fitted - measured| / measured and by R2:

- mean latency: the model's, whatever is asked; the baseline;
- output: a constant and so much per output token (`routers.cost.Latency`: what a trained router holds);
- prompt and output: so much per prompt token too;
- replicas' pace: the same from late answers and a stated pace (`routers.replicas.Load`: what chooses replicas);
- predicted: as `output`, with lengths predicted from the text, as a router must before there is an answer.

`p95` is the 95th percentile of measured / fitted by `output`: what comes on top of an idealised runtime is waiting, at
the model or on the way. 95 % intervals are percentile bootstraps over held-out rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from routers.cores import one_core
from routers.cost import Latency, LogLinear
from routers.estimators.base import Matrix, firsts
from routers.evaluate import RESAMPLES, with_interval
from routers.features import shipped_featurizer
from routers.fit import described
from routers.outcomes import DataError, Outcomes, read_outcomes
from routers.projection import Projection
from routers.replicas import Job, Load

MEAN, OUTPUT, PROMPT = "mean latency", "output", "prompt and output"
PACE, PREDICTED = "replicas' pace", "predicted"
FEWEST = 20
"""Training rows, and held-out rows, of a model that is judged."""
HELD = 0.3
Figures = dict[str, Matrix]


def halves(data: Outcomes, seed: int = 0) -> tuple[Outcomes, Outcomes]:
    """Training and held-out rows, of the models with enough of both, NaN where latency or length is unknown. DataError
    where there is none such.
    """
    known = np.isfinite(data.latency_s) & (data.latency_s > 0) & np.isfinite(data.output_tokens)
    held = np.asarray(data.splits == "test")
    if not held.any() or held.all():
        held = (np.random.default_rng(seed).random(len(held)) < HELD)[firsts(data.texts)]
    enough = (known[held].sum(0) >= FEWEST) & (known[~held].sum(0) >= FEWEST)
    if not enough.any():
        raise DataError(
            f"outcomes.parquet: fields latency_s, output_tokens: no model has both on {FEWEST} rows to train on and "
            f"{FEWEST} to test on"
        )
    data = data.columns([model for model, kept in zip(data.models, enough, strict=True) if kept])
    data.latency_s[~known[:, enough]] = np.nan
    data.output_tokens[~known[:, enough]] = np.nan
    return data.rows(~held), data.rows(held)


def fits(train: Outcomes, test: Outcomes) -> dict[str, Matrix]:
    """Seconds of every held-out row by each fit, (n, m); without the prompt's where its tokens are not known."""
    latency = Latency().fit(train.latency_s, train.output_tokens)
    found = {
        MEAN: np.broadcast_to(np.nanmean(train.latency_s, 0), test.latency_s.shape),
        OUTPUT: latency.predict(test.output_tokens),
    }
    if np.isfinite(train.input_tokens[np.isfinite(train.latency_s)]).all():
        for name, fit in ((PROMPT, _read_and_written), (PACE, _paced)):
            found[name] = np.column_stack([fit(train, test, j) for j in range(len(train.models))])
    return {**found, PREDICTED: latency.predict(_lengths(train, test))}


def _read_and_written(train: Outcomes, test: Outcomes, j: int) -> Matrix:
    rows = np.isfinite(train.latency_s[:, j])
    x, test_x = (
        np.column_stack([np.ones(len(part.texts)), part.input_tokens[:, j], part.output_tokens[:, j]])
        for part in (train, test)
    )
    return np.asarray(test_x @ non_negative(x[rows], train.latency_s[rows, j]))


def non_negative(x: Matrix, y: Matrix) -> Matrix:
    """Least squares, none below 0: what would be is left out, and the rest fitted again."""
    kept, found, scale = np.arange(x.shape[1]), np.zeros(x.shape[1]), x.mean(0)
    while len(kept):
        weights = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
        if (weights >= 0.0).all():
            found[kept] = weights
            break
        kept = np.delete(kept, int((weights * scale[kept]).argmin()))
    return found


def _paced(train: Outcomes, test: Outcomes, j: int) -> Matrix:
    """Latencies as predicted by one replica that has learnt from all training answers, in a random order, for later
    answers count more.
    """
    load = Load()
    for i in np.random.default_rng(0).permutation(np.flatnonzero(np.isfinite(train.latency_s[:, j]))):
        written = float(train.output_tokens[i, j])
        load.learn(Job(float(train.input_tokens[i, j]), written, 0.0), written, float(train.latency_s[i, j]))
    pace, read, wrote = load.paces.pace, test.input_tokens[:, j], test.output_tokens[:, j]
    return np.asarray(load.slowness * (pace.first_s + pace.read_s * read + pace.write_s * wrote))


def _lengths(train: Outcomes, test: Outcomes) -> Matrix:
    featurizer = shipped_featurizer()
    x, test_x = described(train, featurizer), described(test, featurizer)
    projection = Projection().fit(x, featurizer.layout.blocks())
    z, test_z = (projection.coordinates(rows) for rows in (x, test_x))
    return LogLinear().fit(z, train.output_tokens).predict(test_z)


def figures(fitted: Matrix, measured: Matrix) -> Figures:
    """Median relative error and R2 of each model, (m,)."""
    squares = np.nansum((fitted - measured) ** 2, 0)
    spread = np.nansum((measured - np.nanmean(measured, 0)) ** 2, 0)
    r2 = 1.0 - np.divide(squares, spread, out=np.full_like(squares, np.nan), where=spread > 0)
    return {"error": np.nanmedian(np.abs(fitted - measured) / measured, 0), "r2": r2}


def compared(data: Outcomes, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Every fit's figures per model and as means over models, each beside the mean latency's."""
    train, test = halves(data)
    found, rng, n = fits(train, test), np.random.default_rng(0), len(test.texts)
    rows = [np.arange(n), *rng.integers(n, size=(resamples, n))]
    drawn = {name: [_with_mean(figures(fitted[at], test.latency_s[at])) for at in rows]
             for name, fitted in found.items()}  # fmt: skip
    ratio = test.latency_s / np.maximum(found[OUTPUT], 1e-9)
    tails = np.nanpercentile(ratio, 95, axis=0).tolist()
    return {
        "trained on": len(train.texts),
        "held out": n,
        "all models": _cells(drawn, -1),
        "models": {model: {**_cells(drawn, j), "p95": tails[j]} for j, model in enumerate(test.models)},
    }


def _with_mean(found: Figures) -> Figures:
    """A last column: the mean over models."""
    return {key: np.append(values, values.mean()) for key, values in found.items()}


def _cells(drawn: dict[str, list[Figures]], j: int) -> dict[str, Any]:
    """The first of `drawn` is the rows themselves."""
    base = [one["error"][j] for one in drawn[MEAN]]
    table: dict[str, Any] = {}
    for name, found in drawn.items():
        columns = {key: [float(one[key][j]) for one in found] for key in ("error", "r2")}
        if name != MEAN:
            columns["error_minus_mean"] = [a - float(b) for a, b in zip(columns["error"], base, strict=True)]
        table[name] = {key: with_interval(value, others) for key, (value, *others) in columns.items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.latency", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        report = compared(read_outcomes(args.data), max(args.resamples, 0))
    except DataError as error:
        parser.error(str(error))
    print(json.dumps(report) if args.json else as_text(report))


def as_text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['held out']} held-out queries, fitted on {report['trained on']}; median relative error, R2, and the "
        "error less that of the mean latency"
    ]
    parts = {"all models": report["all models"], **report["models"]}
    for name, part in parts.items():
        lines.append(f"{name}" + (f"   p95 of measured / fitted {part['p95']:.2f}" if "p95" in part else ""))
        lines += [f"  {fit:18s} " + "  ".join(f"{_cell(cell):>26s}" for cell in cells.values())
                  for fit, cells in part.items() if fit != "p95"]  # fmt: skip
    return "\n".join(lines)


def _cell(cell: dict[str, float | None]) -> str:
    if cell["value"] is None:
        return "-"
    ends = "" if cell["low"] is None else f" [{cell['low']:.3f}, {cell['high']:.3f}]"
    return f"{cell['value']:.3f}{ends}"


if __name__ == "__main__":
    with one_core():
        main()
