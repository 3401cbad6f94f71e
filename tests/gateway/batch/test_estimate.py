"""Bulk estimates equal those of the live router, prompt by prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.batch.estimate import Forecasts, forecasts
from gateway.batch.plan import PlanContext
from gateway.batch.read import LineReader, ReadOptions, Request
from routers.bandit import Bandit
from routers.estimators.ensemble import Ensemble
from routers.features import shipped_featurizer
from routers.fit import fit_router
from routers.plugin import PluginRouter
from routers.types import Knobs
from tests.gateway.batch.planned import LARGE, MODELS, SMALL, plan_context

TEXTS = ("What is 2 + 2?", "Prove that there are infinitely many primes.", "def f(x):\n    return x", "hi " * 40)


def requests(context: PlanContext, *bodies: dict[str, Any]) -> list[Request]:
    found = []
    for row, body in enumerate(bodies):
        record = json.dumps({"custom_id": f"r{row}", "body": {"model": "auto", **body}}).encode()
        request = LineReader(context.book, ReadOptions()).judge(row + 1, record)
        assert isinstance(request, Request), request
        found.append(request)
    return found


def chats(context: PlanContext, *texts: str, **fields: Any) -> list[Request]:
    return requests(context, *({"messages": [{"role": "user", "content": text}], **fields} for text in texts))


def estimated(context: PlanContext, asked: list[Request]) -> Forecasts:
    return forecasts(asked, tuple(context.book.models), shipped_featurizer())


def assert_as_live(context: PlanContext, asked: list[Request], found: Forecasts, *, sd: bool = True) -> None:
    """Asserts that every finite cell is what the route's router forecasts for that request."""
    route = context.book.routes["auto"]
    router = route.router
    assert isinstance(router, PluginRouter | Bandit)
    names = list(context.book.models)
    for row, request in enumerate(asked):
        told = request.call.described
        query = shipped_featurizer().describe(
            told.text, input_tokens=told.input_tokens, max_output_tokens=told.max_output_tokens, turns=told.turns
        )
        live = router.forecast(query, [model.candidate for model in route.models])
        columns = [names.index(model) for model in live.models]
        np.testing.assert_allclose(found.quality[row, columns], live.quality, atol=2e-4)
        np.testing.assert_allclose(found.cost_usd[row, columns], live.cost_usd, rtol=2e-3)
        np.testing.assert_allclose(found.output_tokens[row, columns], live.output_tokens, rtol=2e-3)
        np.testing.assert_allclose(found.latency_s[row, columns], live.latency_s, rtol=2e-3)
        if sd:
            np.testing.assert_allclose(found.quality_sd[row, columns], live.quality_sd, rtol=0.3, atol=0.02)


@pytest.mark.parametrize("names", [[SMALL, LARGE], [SMALL, LARGE, "never-heard-of"]])
def test_the_shipped_router_estimates_in_bulk(tmp_path: Path, names: list[str]) -> None:
    """Known models are estimated by their ridge regression, a pool with an unknown one by ease and price, as in live
    traffic.
    """
    models = [{"provider": "up", **model} for model in MODELS]
    models.append({"provider": "up", "name": "never-heard-of", "output_usd_per_mtok": 1.0})
    context = plan_context(tmp_path, models=models, routes=[{"name": "auto", "models": names}])
    asked = chats(context, *TEXTS) + chats(context, *TEXTS, max_tokens=20)
    found = estimated(context, asked)
    assert_as_live(context, asked, found, sd=False)
    known = [name in (SMALL, LARGE) and len(names) == 2 for name in context.book.models]
    assert found.learned.tolist() == known


def trained(folder: Path) -> Path:
    """An artefact that has learned quality, costs, lengths and latencies of the two models."""
    from routers.artifact import Card
    from routers.outcomes import laid_out
    from routers.registry import save_router

    rng = np.random.default_rng(0)
    texts = [f"{word} number {number}" for number in range(30) for word in ("prove", "what is", "list", "why")]
    ids = [str(place) for place in range(len(texts))]
    cells = [(place, model) for place in ids for model in (SMALL, LARGE)]
    outcomes = laid_out(
        {"query_id": ids, "text": texts},
        {
            "query_id": [place for place, _ in cells], "model": [model for _, model in cells],
            "score": rng.integers(0, 2, len(cells)).tolist(), "cost_usd": rng.uniform(1e-4, 2e-4, len(cells)).tolist(),
            "output_tokens": rng.integers(10, 200, len(cells)).tolist(),
            "latency_s": rng.uniform(0.5, 2.0, len(cells)).tolist(),
        },
    )  # fmt: skip
    featurizer = shipped_featurizer()
    x = np.stack([featurizer.describe(text).vector for text in texts]).astype(float)
    router = fit_router("ensemble", outcomes, x, featurizer)
    path = folder / "router.safetensors"
    save_router(path, router, Card("ensemble", "1", featurizer.version, outcomes.models))
    return path


def test_an_artefacts_lengths_costs_and_latencies_are_used(tmp_path: Path) -> None:
    """They are used for trained models and not for others."""
    artefact = trained(tmp_path)
    models = [{"provider": "up", **model} for model in MODELS]
    models.append({"provider": "up", "name": "new", "output_usd_per_mtok": 1.0})
    route = {"name": "auto", "models": [SMALL, LARGE, "new"], "router": str(artefact)}
    context = plan_context(tmp_path, models=models, routes=[route])
    asked = chats(context, *TEXTS)
    found = estimated(context, asked)
    assert_as_live(context, asked, found)
    assert found.learned.tolist() == found.measured.tolist() == [True, True, False]
    assert np.isfinite(found.latency_s[:, :2]).all() and np.isnan(found.latency_s[:, 2]).all()


def test_jobs_are_estimated_by_the_weights_for_jobs(tmp_path: Path) -> None:
    """If a router learned separate weights for jobs, a live request has another estimate."""
    path = str(trained(tmp_path))
    context = plan_context(tmp_path, routes=[{"name": "auto", "models": [SMALL, LARGE], "router": path}])
    router = context.book.routes["auto"].router
    assert isinstance(router, PluginRouter) and router.learned is not None
    asked = chats(context, *TEXTS)
    before, quality = estimated(context, asked), router.learned.quality
    assert isinstance(quality, Ensemble)
    quality.job_weights, quality.job_stretch = (0.0, 1.0, 0.0, 0.0), 1.0
    after = estimated(context, asked)
    vectors = shipped_featurizer().vectors([request.call.described for request in asked])
    alone, _ = quality.members["linear"].predict(router.learned.projection.apply(vectors).astype(float))
    places = [router.learned.place[model] for model in context.book.models]
    np.testing.assert_allclose(after.quality, alone[:, places], atol=1e-5)
    assert not np.allclose(before.quality, after.quality, atol=1e-3)


def test_a_bandits_corrections_are_in_the_estimates(tmp_path: Path) -> None:
    """What it has learned since its base was trained counts for a job, too."""
    router = str(trained(tmp_path))
    context = plan_context(tmp_path, routes=[{"name": "auto", "models": [SMALL, LARGE], "router": router}])
    base = context.book.routes["auto"].router
    assert isinstance(base, PluginRouter) and base.learned is not None
    bandit = Bandit(base, base.learned.projection)
    query = shipped_featurizer().describe("why number 3")
    for _ in range(50):
        bandit.learn(query.vector, SMALL, 0.4, 1e-5)
    from dataclasses import replace

    context.book.routes["auto"] = replace(context.book.routes["auto"], router=bandit)
    asked = chats(context, *TEXTS)
    assert_as_live(context, asked, estimated(context, asked))


def test_several_choices_multiply_the_output_only(tmp_path: Path) -> None:
    context = plan_context(tmp_path)
    one, three = (estimated(context, chats(context, "hello", n=n)) for n in (1, 3))
    np.testing.assert_allclose(three.output_tokens, 3 * one.output_tokens)
    assert (three.cost_usd > 2.5 * one.cost_usd).all() and (three.cost_usd <= 3 * one.cost_usd).all()


def test_ineligible_models_are_barred_as_in_live_traffic(tmp_path: Path) -> None:
    """These are bars by context, tools and cost cap; where no model is left the reasons are reported."""
    models = [{"provider": "up", **MODELS[0], "tools": False}, {"provider": "up", **MODELS[1]}]
    context = plan_context(tmp_path, models=models)
    tool = {"type": "function", "function": {"name": "f"}}
    asked = [
        *chats(context, "hi"), *chats(context, "hi " * 2_000), *chats(context, "hi " * 9_000),
        *chats(context, "hi", tools=[tool]),
        *chats(context, "hi", headgate={"max_cost_usd": 1e-4}), *chats(context, "hi", headgate={"max_cost_usd": 1e-9}),
    ]  # fmt: skip
    found = estimated(context, asked)
    assert np.isfinite(found.cost_usd).tolist() == [
        [True, True], [False, True], [False, False], [False, True], [True, False], [False, False],
    ]  # fmt: skip
    assert [bool(reason) for reason in found.refused] == [False, False, True, False, False, True]
    assert "context too short" in found.refused[2] and LARGE in found.refused[2]


def test_rules_bar_models(tmp_path: Path) -> None:
    """Rules decide which models may answer; among those the quality is the prior by price."""
    rules = [{"keywords": ["urgent"], "model": LARGE}, {"weights": {SMALL: 1.0, LARGE: 1.0}}]
    route = {"name": "auto", "models": [SMALL, LARGE], "router": "rules", "rules": rules}
    context = plan_context(tmp_path, routes=[route])
    found = estimated(context, chats(context, "an urgent matter", "no hurry"))
    assert np.isfinite(found.cost_usd).tolist() == [[False, True], [True, True]]
    assert not found.learned.any()
    assert (found.quality[:, 1] > found.quality[:, 0]).all()


def test_lines_of_several_routes_and_pinned_models_are_estimated_together(tmp_path: Path) -> None:
    """Each line's own models have estimates, and the others are barred."""
    context = plan_context(tmp_path)
    asked = [*chats(context, "hi"), *chats(context, "hi", headgate={"models": [LARGE]})]
    record = json.dumps({"custom_id": "p", "body": {"model": SMALL, "messages": [{"role": "user", "content": "hi"}]}})
    pinned = LineReader(context.book, ReadOptions()).judge(3, record.encode())
    assert isinstance(pinned, Request)
    found = estimated(context, [*asked, pinned])
    assert np.isfinite(found.cost_usd).tolist() == [[True, True], [False, True], [True, False]]
    assert np.isfinite(found.quality[np.isfinite(found.cost_usd)]).all()


def test_a_block_without_good_lines_has_no_estimates(tmp_path: Path) -> None:
    assert estimated(plan_context(tmp_path), []).quality.shape == (0, 2)


def test_the_routes_knobs_apply_to_its_lines(tmp_path: Path) -> None:
    """A route's cost cap bars models as in live traffic."""
    context = plan_context(tmp_path, routes=[{"name": "auto", "models": [SMALL, LARGE], "max_cost_usd": 1e-4}])
    assert context.book.routes["auto"].knobs == Knobs(max_cost_usd=1e-4)
    assert np.isfinite(estimated(context, chats(context, "hi")).cost_usd).tolist() == [[True, False]]
