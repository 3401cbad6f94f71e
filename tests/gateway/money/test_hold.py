"""What a request takes before it is answered, and what it gives back if it isn't."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.answer import cost_bound
from gateway.audit import repeated
from gateway.call import Arrival, read_call
from gateway.config.types import Config, ModelConfig, RouteConfig
from gateway.keys import ANYONE
from gateway.money.ledger import Account
from gateway.money.limits import Limit
from gateway.routes import RouteBook, worst_cases
from gateway.wire.describe import Described
from routers.registry import open_router
from tests.faults.talk import ask, question
from tests.gateway.exchanges import BOOK
from tests.live import live

BODY = b'{"model":"auto","messages":[{"role":"user","content":"%s"}]}' % (b"word " * 200)
LIMIT = Limit("route:auto", None, 1000)
CHEAPEST = open_router("cheapest")


def call(**headers: str) -> Any:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return read_call("chat", BODY, Arrival(named, "127.0.0.1", "req_1", 0.0), max_messages=9, timeout_s=60.0)


ASKED = Described(input_tokens_bound=10, max_output_tokens=5)
UNBOUNDED = msgspec.structs.replace(ASKED, unbounded=True)


@pytest.mark.parametrize(
    ("asked", "contexts", "tokens"),
    [
        pytest.param(ASKED, (0, 0), (10, 5), id="as it says"),
        pytest.param(Described(input_tokens_bound=10), (0, 0), (10, 300), id="no limit but the model's"),
        pytest.param(msgspec.structs.replace(ASKED, n=3), (0, 0), (10, 15), id="three answers"),
        pytest.param(msgspec.structs.replace(ASKED, predicted=40), (0, 0), (10, 45), id="a prediction that fails"),
        pytest.param(msgspec.structs.replace(ASKED, web_searches=2), (0, 0), (1410, 5), id="what searches find"),
        pytest.param(UNBOUNDED, (50_000, 80_000), (80_000, 5), id="a document, at the longest context"),
        pytest.param(UNBOUNDED, (50_000, 0), (200_000, 5), id="a document, where a context is unknown"),
    ],
)
def test_the_worst_case_of_an_attempt(asked: Described, contexts: tuple[int, int], tokens: tuple[int, int]) -> None:
    """It is that of the most expensive deployment."""
    models = [
        ModelConfig(name="m", provider="p", input_usd_per_mtok=1, output_usd_per_mtok=1000, max_output_tokens=300,
                    context_tokens=contexts[0]),
        ModelConfig(name="m", provider="q", input_usd_per_mtok=0.5, output_usd_per_mtok=500, max_output_tokens=300,
                    context_tokens=contexts[1], web_search_tokens=700),
    ]  # fmt: skip
    model = RouteBook(Config(models=models), {}).models["m"]
    assert model.worst(asked) == tokens[0] * 1_000 + tokens[1] * 1_000_000
    if asked is ASKED:
        assert model.worst(asked, 7, 3) == 17 * 1_000 + 8 * 1_000_000


POOL = RouteBook(
    Config(
        models=[
            ModelConfig(name="plain", provider="p", input_usd_per_mtok=0.07, output_usd_per_mtok=0.3),
            ModelConfig(name="cheap by tier", provider="p", input_usd_per_mtok=3, tier_prices={"auto": 0.5}),
            ModelConfig(name="dear by tier", provider="p", output_usd_per_mtok=3, tier_prices={"auto": 1.5}),
            ModelConfig(name="searching", provider="p", input_usd_per_mtok=3, web_searches=1, web_search_usd=0.01),
            ModelConfig(name="absurd", provider="p", output_usd_per_mtok=1e9, cache_write_usd_per_mtok=5),
        ]
    ),
    {},
).models
COUNTS = st.integers(0, 2**31)


@given(
    st.builds(
        Described,
        input_tokens_bound=COUNTS,
        max_output_tokens=st.none() | COUNTS,
        n=st.integers(1, 128),
        web_searches=st.sampled_from([0, 0, 3]),
        tool_runs=st.sampled_from([{}, {}, {"mcp": 2}]),
        units=st.sampled_from([0, 0, 7]),
        unbounded=st.booleans(),
        predicted=st.sampled_from([0, 0, 50]),
        tier=st.sampled_from(["", "", "priority"]),
    ),
    st.integers(0, 99),
    st.integers(0, 99),
)
def test_the_worst_cases_of_a_pool_are_those_of_its_models(asked: Described, into: int, out: int) -> None:
    """The short way for a request that costs only tokens gives what the general rule gives."""
    each = {name: model.worst(asked, into, out) for name, model in POOL.items()}
    assert worst_cases(POOL, POOL, asked, into, out) == each


@pytest.mark.parametrize(
    ("config", "repeats", "held"),
    [
        ({"max_attempts": 9}, False, 22),
        ({"max_attempts": 3}, False, 21),
        ({"max_attempts": 3, "hedge_after_s": 1.0}, False, 31),
        ({"max_attempts": 9}, True, 90),
    ],
)
def test_a_hold_covers_the_dearest_attempts_that_may_be_made(config: dict[str, Any], repeats: bool, held: int) -> None:
    """Each model may be tried twice, or with repeats any of them several times; a hedge is added."""
    route = BOOK.find("auto")
    route = replace(route, config=msgspec.structs.replace(route.config, retries=1, **config), repeats=repeats)
    assert cost_bound(route, {"small": 1, "large": 10}, route.attempted) == held


@pytest.mark.parametrize(
    ("cascade", "strategies", "repeats"),
    [
        ("best-of", [], True),
        ("confidence", ["best-of"], False),
        ("learned", ["none", "verify"], True),
        ("learned", ["none", "agreement"], False),
    ],
)
def test_a_strategy_that_asks_one_model_again_is_held_for(cascade: str, strategies: list[str], repeats: bool) -> None:
    """So is a learned cascade that may choose such a strategy."""
    config = RouteConfig(name="auto", models=["m"], cascade=cascade, strategies=strategies)
    book = RouteBook(Config(models=[ModelConfig(name="m", provider="p")], routes=[config]), {"auto": CHEAPEST})
    assert book.find("auto").repeats is repeats


@pytest.mark.parametrize(("rpm", "tpm"), [(5, None), (None, 7), (5, 7), (None, None)])
def test_a_route_brings_its_own_budget_and_limits(rpm: int | None, tpm: int | None) -> None:
    """They apply in addition to those of the key and its tenant."""
    config = RouteConfig(name="auto", models=["m"], rpm=rpm, tpm=tpm, budget_usd_per_day=2.5)
    models = [ModelConfig(name="m", provider="p")]
    route = RouteBook(Config(models=models, routes=[config]), {"auto": CHEAPEST}).find("auto")
    assert route.accounts == (Account("route:auto", 2_500_000_000, "day"),)
    assert route.limits == ((Limit("route:auto", rpm, tpm),) if rpm or tpm else ())


class Gone:
    """A ledger whose client leaves while it is asked."""

    async def hold(self, *_: object) -> None:
        raise asyncio.CancelledError


async def test_a_client_that_leaves_during_the_hold_gives_its_tokens_back(tmp_path: Path) -> None:
    """Whatever ends the hold, the rate limits get back what the request took, because it was never sent."""
    routes = [{"name": "auto", "models": ["echo"], "router": "cheapest", "tpm": 1000}]
    async with live(tmp_path, routes=routes) as gateway:
        services = gateway.services
        ledger, services.ledger = services.ledger, Gone()  # type: ignore[assignment]
        with pytest.raises(asyncio.CancelledError):
            await gateway.app.answering.hold(call(), ANYONE)
        services.ledger = ledger
        left = dict(services.limits.take((LIMIT,), 0, services.now()).headers(services.now()))
    assert int(left[b"x-ratelimit-remaining-tokens"]) >= 999


def test_a_question_asked_anew_keeps_its_route_and_models() -> None:
    """An audit compares with the answer of the same route and knobs, without the cache."""
    asked = call(x_headgate_route="other", x_headgate_models="small,large", x_headgate_cost_weight="0.9")
    again = repeated(asked).options
    assert (again.route, again.models, again.stated, again.cache) == ("other", ("small", "large"), True, "none")
    assert again.knobs.cost_weight == 0.9


async def test_a_request_holds_no_more_than_its_plan_can_cost(tmp_path: Path) -> None:
    """What was held for a model that the router then leaves out is given back before the upstream is asked."""
    models = [{"name": name, "input_usd_per_mtok": usd, "output_usd_per_mtok": 0.0} for name, usd in PRICES.items()]
    routes = [{"name": "auto", "models": [*PRICES], "router": "cheapest", "retries": 1}]
    async with live(tmp_path, models=models, routes=routes) as gateway:
        held = []
        for knobs in ({}, {"headgate": {"max_cost_usd": 0.001}}):
            heard = await ask(gateway.url, "chat", {**question("chat", "auto"), **knobs})
            record = await gateway.decision(heard.headers["x-headgate-decision-id"])
            held.append(record.held_nanousd)
    assert held[1] * (PRICES["cheap"] + PRICES["dear"]) == held[0] * PRICES["cheap"]


PRICES = {"cheap": 1.0, "dear": 1000.0}
