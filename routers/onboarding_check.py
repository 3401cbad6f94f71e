"""How much of a model's worth 50 probes recover: every model left out in turn, on a folder of outcomes.

    python -m routers.onboarding_check FOLDER [PROBES]

Gain is AIQ above the zero router on the test rows. For each model a router is trained on all outcomes of
the others and on a few of its own, and its gain is compared with that of a router trained on everything.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from routers import evaluate
from routers.cores import one_core
from routers.estimators.base import Matrix
from routers.estimators.ensemble import Ensemble
from routers.evaluate import Bench
from routers.features import Featurizer, shipped_featurizer
from routers.fit import described, fit_learned, predicted
from routers.outcomes import DataError, Outcomes, read_outcomes


def priced(data: Outcomes, share: float = 0.95) -> Outcomes:
    """Models with a cost on nearly all queries, and the queries on which all of them were scored. Raises DataError
    where fewer than two models are left.
    """
    seen = np.asarray(np.isfinite(data.scores) & np.isfinite(data.cost_usd))
    kept = [m for m, s in zip(data.models, seen.mean(0).tolist(), strict=True) if s >= share]
    if len(kept) < 2:
        raise DataError(f"outcomes.parquet: field cost_usd: not two models have one on {share:.0%} of the queries")
    data = data.columns(kept)
    return data.rows(np.asarray((np.isfinite(data.scores) & np.isfinite(data.cost_usd)).all(1)))


def aiq(train: Outcomes, x: Matrix, test_x: Matrix, bench: Bench, featurizer: Featurizer) -> float:
    quality, cost = predicted(fit_learned(Ensemble(), train, x, featurizer.layout), test_x)
    policy = evaluate.swept(quality, cost, bench)
    return evaluate.figures(policy.points(), bench.singles(), bench.best, 1.0)["aiq"]


def probed(train: Outcomes, model: int, probes: int, seed: int) -> Outcomes:
    """All outcomes but those of one model, of which `probes` at random stay."""
    asked = np.random.default_rng(seed).permutation(len(train.texts))[:probes]
    scores = train.scores.copy()
    scores[:, model] = np.nan
    scores[asked, model] = train.scores[asked, model]
    return replace(train, scores=scores)


def main(folder: Path, probes: int) -> None:
    data, featurizer = priced(read_outcomes(folder)), shipped_featurizer()
    held = data.splits == "test"
    train, test = data.rows(~held), data.rows(held)
    x, test_x = described(train, featurizer), described(test, featurizer)
    bench = Bench(test.scores, test.cost_usd, int(train.scores.mean(0).argmax()))
    alone = bench.singles()
    zero = evaluate.figures(alone, alone, bench.best, 1.0)["aiq"]
    whole = aiq(train, x, test_x, bench, featurizer)
    print(f"zero router {zero:.4f}, all outcomes {whole:.4f}")
    shares = []
    for model, name in enumerate(train.models):
        found = aiq(probed(train, model, probes, model), x, test_x, bench, featurizer)
        shares.append((found - zero) / (whole - zero))
        print(f"{name:40s} {found:.4f}  {shares[-1]:7.1%} of the gain", flush=True)
    draws = np.random.default_rng(0).choice(shares, (2000, len(shares))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    print(f"mean share of the gain with {probes} probes: {np.mean(shares):.1%} [{low:.1%}, {high:.1%}]")


if __name__ == "__main__":
    try:
        with one_core():
            main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 50)
    except DataError as fault:
        raise SystemExit(str(fault)) from None
