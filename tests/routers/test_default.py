from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from routers import checks
from routers.artifact import load_artifact
from routers.estimators.general import General
from routers.features import shipped_featurizer
from routers.registry import DEFAULT_ARTIFACT, open_router
from routers.types import Candidate, Knobs
from tests.routers.worlds import POOL

DESCRIBE = shipped_featurizer().describe
ALLOWED = {"routellm_evals", "mmlupro_open29", "llmrouter9", "routerarena_sub"}


def test_the_shipped_default_reads_these_features() -> None:
    """Its checksum is right, it reads this build's features, and it was trained on data sets that may be distributed.
    """
    card, _ = load_artifact(DEFAULT_ARTIFACT, shipped_featurizer().version)
    assert set(card.trained_on) == ALLOWED
    assert card.metrics["rows"] > 10_000


def test_unknown_models_are_ranked_by_price() -> None:
    """Any pool can be routed from the first request on. With quality alone the most expensive model is chosen, with
    cost alone the cheapest.
    """
    router = open_router("default")
    asked = DESCRIBE("Explain photosynthesis.")
    assert router.choose(asked, POOL, Knobs(cost_weight=0.0), 0.5).model == "large"
    assert router.choose(asked, POOL, Knobs(cost_weight=1.0), 0.5).model == "small"


def test_known_models_are_estimated_from_training() -> None:
    """A pool of models that were in training has small deviations; with one unknown model all get the prior."""
    router = open_router("default")
    known = [Candidate("gemini-1.5-pro-002", 1.25, 5.0), Candidate("Mistral-7B-Instruct-v0.1", 0.2, 0.2)]
    asked = DESCRIBE("Which of these is a prime number?\nA. 9\nB. 15\nC. 21\nD. 29")
    strong, weak = router.choose(asked, known, Knobs(), 0.5).estimates
    assert strong.quality > weak.quality + 0.2
    mixed = router.choose(asked, [*known, POOL[0]], Knobs(), 0.5).estimates
    assert [e.quality_sd for e in mixed] == pytest.approx([0.2] * 3)


def test_an_easier_query_raises_every_prior() -> None:
    """The query's estimated ease changes the estimates of all unknown models together."""
    router = open_router("default")
    texts = [
        "What colour is the sky?",
        "Prove that every compact Hausdorff space is normal, then compute its homology.",
    ]
    found = [[e.quality for e in router.choose(DESCRIBE(t), POOL, Knobs(), 0.5).estimates] for t in texts]
    signs = {np.sign(a - b) for a, b in zip(*found, strict=True)}
    assert len(signs) == 1 and signs != {0.0}


def test_ease_is_learnt_from_many_models() -> None:
    """Where one feature makes every query easier, the ease follows it, on the scale of logits."""
    data, _ = checks.training(n=2_000)
    rng = np.random.default_rng(0)
    chance = 1 / (1 + np.exp(-1.5 * data.x[:, :1] + np.array([0.5, 0.0, -0.5])))
    data = replace(data, scores=(rng.random(chance.shape) < chance).astype(float))
    ease = General(easy_ridge=1.0).fit(data).easiness(data.x)
    assert np.corrcoef(ease, data.x[:, 0])[0, 1] > 0.95
    assert 0.6 < ease.std() < 1.6
