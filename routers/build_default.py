"""Trains the artefact that ships as `default`. Run once, by hand; never while serving.

It reads only sets whose licence allows shipping weights made from them (Apache-2.0 or MIT): routellm_evals,
mmlupro_open29, llmrouter9 and routerarena_sub, each a folder of outcome data, training rows alone.

    python -m routers.build_default DIR_OF_FOLDERS routers/weights/default.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from routers.artifact import Card
from routers.cores import one_core
from routers.estimators.base import Training
from routers.estimators.general import General
from routers.evaluate import auroc
from routers.features import shipped_featurizer
from routers.fit import described
from routers.outcomes import Outcomes, read_outcomes
from routers.plugin import Learned, PluginRouter
from routers.projection import Projection
from routers.registry import save_router

SETS = ("routellm_evals", "mmlupro_open29", "llmrouter9", "routerarena_sub")


def pooled(parts: Sequence[Outcomes]) -> tuple[np.ndarray, list[str], list[str]]:
    """Scores of all sets as one matrix with gaps, the tasks of its rows and the models of its columns."""
    models = sorted({model for part in parts for model in part.models})
    scores = np.full((sum(len(part.query_ids) for part in parts), len(models)), np.nan)
    start = 0
    for part in parts:
        rows = slice(start, start + len(part.query_ids))
        scores[rows, [models.index(model) for model in part.models]] = part.scores
        start += len(part.query_ids)
    return scores, [task for part in parts for task in part.tasks], models


def build(folder: Path, target: Path) -> None:
    featurizer = shipped_featurizer()
    whole = [read_outcomes(folder / name) for name in SETS]
    trained = [part.rows(part.splits == "train") for part in whole]
    x = np.concatenate([described(part, featurizer) for part in trained])
    scores, tasks, models = pooled(trained)
    with one_core():
        projection = Projection().fit(x, featurizer.layout.blocks())
        z = projection.coordinates(x)
        quality = General().fit(Training(z, scores, tasks, models))
        held = {
            name: _auroc(part.rows(part.splits == "test"), quality, projection, models)
            for name, part in zip(SETS, whole, strict=True)
        }
    router = PluginRouter("default", "1", featurizer.version, Learned(tuple(models), projection, quality))
    checksum = ",".join(part.checksum()[:12] for part in trained)
    card = Card(
        "default", "1", featurizer.version, tuple(models), data_checksum=checksum, trained_on=SETS,
        metrics={"rows": len(x), "auroc_on_test_rows": held},
    )  # fmt: skip
    save_router(target, router, card)


def _auroc(test: Outcomes, quality: General, projection: Projection, models: Sequence[str]) -> float:
    """Mean over models of the AUROC on rows that were not trained on."""
    guess, _ = quality.predict(projection.coordinates(described(test, shipped_featurizer())))
    places = [models.index(model) for model in test.models]
    found = []
    for j, place in enumerate(places):
        seen = np.isfinite(test.scores[:, j])
        found.append(auroc(guess[seen, place], test.scores[seen, j] >= 0.5))
    return round(float(np.nanmean(found)), 4)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
