"""Cascades with learned thresholds and verified drafts: learned from logged answers, stored in a file, and run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from cascade.artifact import TrainedCascade, load_cascade, save_cascade
from cascade.evaluate import evaluate_split
from cascade.frugal import FrugalCascade
from cascade.planner import PlanRequest
from cascade.rows import TrainingSettings
from cascade.train import train_cascade
from cascade.types import Evidence, Outcome, Rung, Verdict
from cascade.verified import VerifiedCascade
from cascade.verify import verdicts_within
from routers.artifact import ArtifactError, load_artifact, save_artifact
from routers.features import shipped_featurizer
from routers.fit import described
from routers.outcomes import DataError
from tests.cascade.playbook import driven
from tests.cascade.worlds import COSTS_USD, MODELS, WORST, choice, logged

SETTING = TrainingSettings(router="linear", estimate_folds=2, folds=2)
ASKED = [{"role": "user", "content": "what is the answer?"}]


@pytest.fixture(scope="module")
def frugal() -> TrainedCascade:
    return train_cascade(logged(300), SETTING, "frugal")


@pytest.fixture(scope="module")
def verified() -> TrainedCascade:
    return train_cascade(logged(300), SETTING, "verify")


def climbed(cascade: TrainedCascade, answers: dict[str, Outcome], *models: str) -> tuple[Verdict, list[Rung]]:
    """A climb in which each model gives its one answer, and every verdict is the one in `answers`."""
    plan = cascade.plan(PlanRequest(choice(*models), {m: WORST[m] for m in models}, retries=0, messages=ASKED))

    def answer(rung: Rung) -> Outcome:
        verifying = "seed" in rung.overrides
        return structs.replace(answers["verdict"], model=rung.model) if verifying else answers[rung.model]

    return driven(plan, answer)


def outcome_of(model: str, text: str, logprob: float) -> Outcome:
    return Outcome(model, evidence=Evidence(logprob, logprob, text=text), cost_usd=1e-5)


ANSWERS = {m: outcome_of(m, "A", -0.01) for m in MODELS} | {"verdict": outcome_of("", "Correct", -0.1)}


def test_a_chain_is_read_back_and_its_thresholds_decide(frugal: TrainedCascade, tmp_path: Path) -> None:
    """A sure answer of the chain's first model is kept, an unsure one escalated. The chain read from its file does the
    same.
    """
    save_cascade(tmp_path / "c.safetensors", frugal, version="1")
    read = load_cascade(tmp_path / "c.safetensors")
    assert isinstance(frugal, FrugalCascade) and isinstance(read, FrugalCascade)
    assert read.chains == frugal.chains and read.best_single == frugal.best_single
    first = read.plan(PlanRequest(choice(*MODELS), WORST)).steps[0].model
    kept, asked = climbed(read, ANSWERS, *MODELS)
    assert kept.model == first and len(asked) == 1
    unsure = ANSWERS | {first: outcome_of(first, "B", -6.0)}
    assert climbed(read, unsure, *MODELS)[0].model != first


def test_a_lower_share_takes_a_cheaper_chain(frugal: TrainedCascade) -> None:
    """The route's share of quality selects the chain."""
    assert isinstance(frugal, FrugalCascade)
    costs = [c.cost_usd for c in frugal.chains]
    assert len(costs) > 1 and min(costs) < max(costs)
    whole, less = (frugal.plan(PlanRequest(choice(*MODELS), WORST), share).steps for share in (1.0, 0.9))
    assert [(s.model, s.accept_at) for s in whole] != [(s.model, s.accept_at) for s in less]


@pytest.mark.parametrize("plan", ["frugal", "verify"])
def test_ineligible_models_take_no_part(plan: str, request: pytest.FixtureRequest) -> None:
    """With one model left it answers alone."""
    cascade = request.getfixturevalue({"frugal": "frugal", "verify": "verified"}[plan])
    verdict, asked = climbed(cascade, ANSWERS, "middle")
    assert verdict.model == "middle" and len(asked) == 1


def test_a_draft_with_good_verdicts_is_kept(verified: TrainedCascade, tmp_path: Path) -> None:
    """Read back from its file, a strategy keeps a draft with good verdicts and asks the other model after bad ones,
    within four attempts.
    """
    save_cascade(tmp_path / "v.safetensors", verified, version="1")
    read = load_cascade(tmp_path / "v.safetensors")
    assert isinstance(read, VerifiedCascade) and read == verified and read.writes
    pair = read.pair_for(1.0)
    kept, asked = climbed(read, ANSWERS, *MODELS)
    assert kept.model == pair.draft and len(asked) == 1 + verdicts_within(4) == 3
    doubted, _ = climbed(read, ANSWERS | {"verdict": outcome_of("", "Incorrect", -0.1)}, *MODELS)
    assert doubted.model == pair.escalate


def test_verified_drafts_save_money_at_equal_quality(verified: TrainedCascade) -> None:
    """On the training rows they reach the best single model's quality at a lower price."""
    assert isinstance(verified, VerifiedCascade)
    pair = verified.pair_for(1.0)
    assert pair.quality >= verified.best_single and pair.cost_usd < COSTS_USD[2]


def test_incomplete_files_are_refused(frugal: TrainedCascade, verified: TrainedCascade, tmp_path: Path) -> None:
    """A missing chain or pair of models is an error when the file is loaded."""
    for made, broken in (
        (frugal, {"chains": [[[0, 9], [0.5], 0.5, 1.0]]}),
        (frugal, {"chains": [[[0, 1], [], 0.5, 1.0]]}),
        (verified, {"pairs": [["small", "other", 0.5, 1.0]]}),
    ):
        save_cascade(tmp_path / "a.safetensors", made, version="1")
        card, arrays = load_artifact(tmp_path / "a.safetensors")
        parameters = {**card.parameters, **broken}
        kept = {**arrays, "rules": arrays["rules"][:1]} if "rules" in arrays else arrays
        save_artifact(tmp_path / "b.safetensors", replace(card, parameters=parameters), kept)
        with pytest.raises(ArtifactError, match="whole"):
            load_cascade(tmp_path / "b.safetensors")


def test_answers_without_confidence_cannot_be_verified() -> None:
    """Without confidences a log can't train the strategy; an unknown plan is refused too."""
    log = logged(100)
    blind = replace(log, data=replace(log.data, confidence=np.full(log.data.scores.shape, np.nan)))
    with pytest.raises(DataError, match="nothing to verify"):
        train_cascade(blind, SETTING, "verify")
    with pytest.raises(DataError, match="known"):
        train_cascade(log, SETTING, "ladder")


def test_the_report_compares_them_with_cascade_routing() -> None:
    """A split's figures have every cascade that can be trained, at operating points chosen on training rows."""
    log = logged(240)
    x = described(log.data, shipped_featurizer())
    found, _ = evaluate_split(log, x, np.arange(240) % 3 > 0, SETTING)
    for name in ("matching", "frugal_chain", "verified_drafts", "router_alone"):
        assert 0.0 < found[name]["cost_ratio"] < 2.0 and abs(found[name]["quality_difference"]) < 0.3
