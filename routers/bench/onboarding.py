"""Shows what a few probes recover of a new model's worth: `python -m routers.bench.onboarding --data DIR`.

Every model is left out in turn, and a router trained on all outcomes of the others and a few of its own. Told first is
what share of the gain over the zero router (AIQ on the test rows) is kept, over all models. A model without which that
AIQ hardly falls proves little by it. Of the others it is told, for several draws of the probes, what share of that loss
comes back with the probes alone: predicted from the known models (`routers.onboarding`, what training does), and beside
it by an identity vector (LLM Bandit's, `estimators.factor`), and by their plain mean. 100 % is a router trained on
everything, 0 % one that does without the model. The mean is weighted by what each model is worth; 95 % intervals are
bootstraps over models, and over the draws of each.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from routers import evaluate
from routers.cores import one_core
from routers.estimators.base import Matrix, Rows, Training
from routers.estimators.ensemble import Ensemble
from routers.estimators.factor import Factor
from routers.evaluate import Bench
from routers.features import Featurizer, shipped_featurizer
from routers.fit import described, fit_learned, predicted
from routers.intervals import percentile_interval, resampled_weights
from routers.outcomes import DataError, Outcomes, fully_priced, read_outcomes
from routers.projection import Projection


def aiq(train: Outcomes, x: Rows, test_x: Rows, bench: Bench, featurizer: Featurizer) -> float:
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


def without(train: Outcomes, x: Rows, test_x: Rows, bench: Bench, featurizer: Featurizer, model: int) -> float:
    """AIQ of a router that knows the others only, over the same range of costs."""
    others = np.delete(np.arange(len(train.models)), model)
    known = train.columns([train.models[j] for j in others])
    quality, cost = predicted(fit_learned(Ensemble(), known, x, featurizer.layout), test_x)
    policy = evaluate.swept(quality, cost, Bench(bench.scores[:, others], bench.costs[:, others], 0))
    return evaluate.figures(policy.points(), bench.singles(), bench.best, 1.0)["aiq"]


def averaged(few: Outcomes, model: int, z: Matrix) -> Outcomes:
    """The gaps filled with the mean of the probes."""
    return _filled(few, model, np.full(len(z), np.nanmean(few.scores[:, model])))


def identified(few: Outcomes, model: int, z: Matrix) -> Outcomes:
    """The gaps filled by item response: the known models teach queries' traits, the new one joins by a vector."""
    known = np.delete(few.scores, model, 1)
    asked = np.isfinite(few.scores[:, model])
    names = tuple(name for j, name in enumerate(few.models) if j != model)
    factor = Factor().fit(Training(z, known, few.tasks, names, 0)).join(z[asked], few.scores[asked, model])
    return _filled(few, model, factor.predict(z)[0][:, -1])


def left_to_training(few: Outcomes, model: int, z: Matrix) -> Outcomes:
    """The gaps left, for training fills them itself."""
    return few


def _filled(few: Outcomes, model: int, guess: Matrix) -> Outcomes:
    scores = few.scores.copy()
    gaps = ~np.isfinite(scores[:, model])
    scores[gaps, model] = guess[gaps]
    return replace(few, scores=scores)


WAYS = {"predicted": left_to_training, "identity vector": identified, "mean of probes": averaged}


def compared(data: Outcomes, probes: int, draws: int, least: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """The report on every model that is worth `least` AIQ or more. DataError where none is."""
    featurizer = shipped_featurizer()
    held = data.splits == "test"
    train, test = data.rows(~held), data.rows(held)
    x, test_x = described(train, featurizer), described(test, featurizer)
    z = Projection().fit(x, featurizer.layout.blocks()).coordinates(x)
    bench = Bench(test.scores, test.cost_usd, int(train.scores.mean(0).argmax()))
    whole = aiq(train, x, test_x, bench, featurizer)
    alone = bench.singles()
    zero = evaluate.figures(alone, alone, bench.best, 1.0)["aiq"]
    few = [aiq(probed(train, j, probes, j), x, test_x, bench, featurizer) for j in range(len(train.models))]
    kept = _mean((np.array(few) - zero) / (whole - zero))
    tell(f"zero router {zero:.4f}, all outcomes {whole:.4f}; {probes} probes keep {_at(kept)} of that gain")
    missed = [without(train, x, test_x, bench, featurizer, j) for j in range(len(train.models))]
    counted = [j for j, one in enumerate(missed) if whole - one >= least]
    tell(f"{len(counted)} of {len(missed)} models are worth {least:g} or more")
    if not counted:
        raise DataError(f"outcomes.parquet: without any one model AIQ falls by less than {least:g}")
    models, gained = {}, []
    for j in counted:
        some = [probed(train, j, probes, seed) for seed in range(draws)]
        found = np.array([[aiq(way(few, j, z), x, test_x, bench, featurizer) for few in some] for way in WAYS.values()])
        gained.append(found - missed[j])
        share = _shares((found - missed[j])[None], whole - missed[j])
        models[train.models[j]] = {"without": missed[j], "share": share}
        shares = ", ".join(f"{name} {_at(one)}" for name, one in share.items())
        tell(f"{train.models[j]:36s} without it {missed[j]:.4f}; of the loss comes back: {shares}")
    worth = sum(whole - missed[j] for j in counted)
    share = _shares(np.array(gained), worth)
    return {"aiq": whole, "probes": probes, "draws": draws, "gain kept": kept, "models": models, "share": share}


def _mean(values: Matrix) -> dict[str, float]:
    draws = resampled_weights(len(values), 2000) @ values
    return percentile_interval(values.mean(), draws).as_dict()


def _shares(gained: Matrix, worth: float) -> dict[str, dict[str, float]]:
    """`gained` (models, ways, draws) of what all of them are `worth`; draws resampled within each model."""
    rng, (many, _, draws) = np.random.default_rng(0), gained.shape
    picks = rng.integers(draws, size=(2000, many, draws))
    found = {}
    for place, name in enumerate(WAYS):
        own = gained[:, place]
        again = np.take_along_axis(own[None], picks, 2).mean(2).sum(1) / worth
        found[name] = percentile_interval(own.mean(1).sum() / worth, again).as_dict()
    return found


def _at(figure: dict[str, float]) -> str:
    return f"{figure['value']:.0%} [{figure['low']:.0%}, {figure['high']:.0%}]"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.onboarding", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--probes", type=int, default=50)
    parser.add_argument("--draws", type=int, default=5, help="of the probes, for each model")
    parser.add_argument("--least", type=float, default=0.002, help="AIQ that a model must be worth to be counted")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    tell = functools.partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    report = compared(fully_priced(read_outcomes(args.data)), args.probes, args.draws, args.least, tell)
    if args.json:
        print(json.dumps(report))
        return
    print(f"of all that these models are worth, with {args.probes} probes of each:")
    for name, share in report["share"].items():
        print(f"  {name:18s} {_at(share)}")


if __name__ == "__main__":
    try:
        with one_core():
            main()
    except DataError as fault:
        raise SystemExit(str(fault)) from None
