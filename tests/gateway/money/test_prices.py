"""Prices: golden bills, and bounds that hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.types import ModelConfig
from gateway.money.prices import Price, dollars, highest, nanousd, usd
from gateway.wire.usage import Usage

MINI = Price.of(
    ModelConfig(
        name="mini",
        provider="p",
        input_usd_per_mtok=0.15,
        output_usd_per_mtok=0.60,
        cache_read_usd_per_mtok=0.075,
    )
)
THINKER = Price.of(
    ModelConfig(
        name="t", provider="p", input_usd_per_mtok=3.0, output_usd_per_mtok=15.0,
        cache_read_usd_per_mtok=0.30, cache_write_usd_per_mtok=3.75,
    )
)  # fmt: skip
VOICE = Price.of(
    ModelConfig(
        name="v", provider="p", input_usd_per_mtok=2.5, output_usd_per_mtok=10.0, reasoning_usd_per_mtok=12.0,
        audio_input_usd_per_mtok=40.0, audio_output_usd_per_mtok=80.0,
    )
)  # fmt: skip
SEARCHER = Price.of(
    ModelConfig(
        name="s", provider="p", input_usd_per_mtok=3.0, output_usd_per_mtok=15.0, cache_write_usd_per_mtok=3.75,
        cache_write_1h_usd_per_mtok=6.0, web_search_usd=0.01, tool_usd={"file_search": 0.0025, "container": 0.03},
    )
)  # fmt: skip
TIERED = Price.of(
    ModelConfig(
        name="o", provider="p", input_usd_per_mtok=3.0, output_usd_per_mtok=15.0,
        tier_prices={"flex": 0.5, "priority": 1.75, "auto": 1.5},
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("price", "usage", "nano"),
    [
        (MINI, Usage(input_tokens=1000, output_tokens=500), 150_000 + 300_000),
        (MINI, Usage(input_tokens=200, cache_read_tokens=800, output_tokens=500), 30_000 + 60_000 + 300_000),
        (MINI, Usage(input_tokens=1000, reasoning_tokens=400, output_tokens=100), 150_000 + 300_000),
        (THINKER, Usage(21, 188_086, 0, 393), 63_000 + 56_425_800 + 5_895_000),
        (THINKER, Usage(21, 0, 188_086, 393), 63_000 + 705_322_500 + 5_895_000),
        (VOICE, Usage(10, 0, 0, 20, 30, 40, 50), 25_000 + 200_000 + 360_000 + 1_600_000 + 4_000_000),
        (THINKER, Usage(cache_write_tokens=4, cache_write_1h_tokens=100), 15_000 + 375_000),
        (MINI, Usage(cache_write_1h_tokens=100), 15_000),
        (SEARCHER, Usage(cache_write_tokens=4, cache_write_1h_tokens=100), 15_000 + 600_000),
        (SEARCHER, Usage(input_tokens=100, output_tokens=10, web_searches=3), 300_000 + 150_000 + 30_000_000),
        (SEARCHER, Usage(web_searches=2), 20_000_000),
        (MINI, Usage(web_searches=2), 0),
        (SEARCHER, Usage(tool_runs={"file_search": 3, "container": 1, "mcp": 9}), 7_500_000 + 30_000_000),
        (MINI, Usage(tool_runs={"file_search": 3}), 0),
        (Price(), Usage(input_tokens=10**9), 0),
    ],
)
def test_a_bill_adds_up_disjoint_buckets(price: Price, usage: Usage, nano: int) -> None:
    """Each bucket has its own price; one without a price costs as much as the bucket that it is part of."""
    assert price.cost(usage) == nano


def test_a_price_below_a_nano_dollar_a_token_is_exact() -> None:
    """$0.0375 per million is 37.5 nano-USD a token: two tokens cost 75, not 74 or 76."""
    price = Price.of(ModelConfig(name="m", provider="p", input_usd_per_mtok=0.0375))
    assert price.cost(Usage(input_tokens=2)) == 75
    assert price.cost(Usage(input_tokens=1)) == 38


def test_reading_from_openai_and_from_anthropic_bills_the_same() -> None:
    """1000 prompt tokens of which 900 were cached cost the same in both ways of reporting them."""
    openai = Usage.from_openai(
        {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 900}}
    )
    anthropic = Usage.from_anthropic(
        {"input_tokens": 100, "cache_read_input_tokens": 900, "output_tokens": 10}
    )
    assert THINKER.cost(openai) == THINKER.cost(anthropic) == 300_000 + 270_000 + 150_000


counts = st.integers(0, 10**6)
RUNS = st.dictionaries(st.sampled_from(["file_search", "container", "mcp"]), st.integers(0, 99))


@given(
    usage=st.builds(Usage, *[counts] * 7, st.just(True), counts, st.integers(0, 99), tool_runs=RUNS),
    extra=counts,
    tier=st.sampled_from(["", "priority", "fast", "flex", "odd"]),
)
def test_no_answer_within_the_bounds_costs_more_than_the_worst_case(usage: Usage, extra: int, tier: str) -> None:
    """Whatever buckets the tokens fall into, and however many searches are made; at whichever deployment and tier, or
    at the plain price where the tier asked for has no room.
    """
    prices = (MINI, THINKER, VOICE, SEARCHER, TIERED)
    for price in prices:
        bounds = (usage.prompt_tokens + extra, usage.completion_tokens, 1, usage.web_searches, 0, tier, usage.tool_runs)
        assert price.cost(usage, tier) <= price.worst(*bounds) <= highest(prices).worst(*bounds)
        assert price.cost(usage, "default") <= price.worst(*bounds)


def test_a_tier_multiplies_the_prices_of_tokens_alone() -> None:
    """Prices of searches and units don't change with the tier; a request without a tier has the automatic one."""
    usage = Usage(input_tokens=1000, output_tokens=10, web_searches=1)
    tokens, search = 3_000_000 + 150_000, 10_000_000
    assert SEARCHER.cost(usage, "priority") == 2 * tokens + search
    assert SEARCHER.cost(usage, "flex") == SEARCHER.cost(usage) == tokens + search
    assert TIERED.cost(usage, "flex") == tokens // 2
    assert TIERED.cost(usage, "priority") == tokens * 7 // 4
    assert TIERED.cost(usage, "") == TIERED.cost(usage, "auto") == tokens * 3 // 2
    assert TIERED.cost(usage, "default") == tokens


@given(counts, counts, st.integers(1, 8))
def test_n_answers_pay_the_prompt_once(prompt: int, answer: int, n: int) -> None:
    """`n` multiplies only the output."""
    assert MINI.worst(prompt, answer, n) == MINI.worst(prompt, answer * n)


@given(st.integers(0, 10**15))
def test_dollars_and_back(amount: int) -> None:
    """Converting nano-USD to dollars and back is exact up to a million dollars."""
    assert nanousd(usd(amount)) == amount


@pytest.mark.parametrize(
    ("usd", "told"),
    [(0.0, "$0"), (20.0, "$20"), (0.05, "$0.05"), (1e-9, "$0.000000001"), (1e7, "$10,000,000"), (100.0, "$100")],
)
def test_money_is_told_without_an_exponent(usd: float, told: str) -> None:
    """Amounts are written without an exponent, and whole numbers keep their zeros."""
    assert dollars(usd) == told
