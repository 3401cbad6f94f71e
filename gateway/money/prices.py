"""The cost of an answer in integer nano-USD, which is rounded only once.

Prices of tokens are kept in nano-USD per million tokens, so that $0.0375 per million is exact; prices of a web search
or of a run of another provider-run tool in nano-USD. Each disjoint bucket of `Usage` has its own price; where the
configuration states none, it costs as much as the bucket that it is part of (cached input as input).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from operator import mul
from types import MappingProxyType

from msgspec.structs import astuple

from gateway.config.types import ModelConfig
from gateway.wire.usage import Usage

NANOUSD = 1_000_000_000
"""Nano-dollars in one dollar."""
MTOK = 1_000_000
MOST = 10**17
"""Most nano-dollars of one attempt, so that the sum of several fits the 64 bits of the journal and of Redis."""
ONCE = 1000
"""The factor of the ordinary price; factors are in thousandths."""
AUTO = "auto"
"""The service tier of a request that names none, and of an answer that doesn't name the one that served it."""
COUNTS = Usage.__struct_fields__[:-1]
"""Names of all numbers of a `Usage`."""
NO_RUNS: Mapping[str, int] = MappingProxyType({})
TIER_PRICES = {"priority": 2.0, "fast": 6.0}
"""Default factors on the prices of tokens for OpenAI's priority processing and the fast mode of Anthropic's Opus. They
differ by model and may change, so the operator checks them against the provider's price list (`tier_prices`). Tiers
that are often cheaper (flex, batch) have no default: an unknown discount is not assumed.
"""


def nanousd(usd: float) -> int:
    """Dollars as nano-USD, rounded to the nearest."""
    return round(usd * NANOUSD)


def usd(amount: int) -> float:
    """Nano-USD as dollars, for people and headers."""
    return amount / NANOUSD


def dollars(usd: float) -> str:
    """The amount as text, to the nano-dollar and without an exponent."""
    return f"${usd:,.9f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Price:
    """The prices of one deployment, in nano-USD per million tokens unless a field says otherwise."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    audio_input: int = 0
    audio_output: int = 0
    cache_write_1h: int = 0
    web_search: int = 0
    """Price of one web search, in nano-USD."""
    unit: int = 0
    """Price of one billed unit, in nano-USD."""
    tools: Mapping[str, int] = field(default_factory=dict)
    """Price of one run of each kind of provider-run tool, in nano-USD; kinds that are not listed cost nothing."""
    tiers: Mapping[str, int] = field(default_factory=dict)
    """Factor of each service tier on the prices of tokens, in thousandths; tiers that are not listed cost `ONCE`."""
    highest_input: int = field(init=False)
    highest_output: int = field(init=False)
    by_count: tuple[int, ...] = field(init=False)
    """The price of a token of each of `Usage`'s counts, in its order; 0 for those that aren't tokens."""

    def __post_init__(self) -> None:
        tokens = {f"{one.name}_tokens": getattr(self, one.name) for one in fields(self) if one.init}
        object.__setattr__(self, "by_count", tuple(tokens.get(name, 0) for name in COUNTS))
        highest_input = max(self.input, self.cache_read, self.cache_write, self.cache_write_1h, self.audio_input)
        object.__setattr__(self, "highest_input", highest_input)
        object.__setattr__(self, "highest_output", max(self.output, self.reasoning, self.audio_output))

    @classmethod
    def of(cls, model: ModelConfig) -> Price:
        into, out = model.input_usd_per_mtok, model.output_usd_per_mtok
        write = into if model.cache_write_usd_per_mtok is None else model.cache_write_usd_per_mtok
        return cls(
            input=nanousd(into),
            cache_read=_or(model.cache_read_usd_per_mtok, into),
            cache_write=nanousd(write),
            output=nanousd(out),
            reasoning=_or(model.reasoning_usd_per_mtok, out),
            audio_input=_or(model.audio_input_usd_per_mtok, into),
            audio_output=_or(model.audio_output_usd_per_mtok, out),
            cache_write_1h=_or(model.cache_write_1h_usd_per_mtok, write),
            web_search=nanousd(model.web_search_usd),
            unit=nanousd(model.unit_usd),
            tools={kind: nanousd(cost_usd) for kind, cost_usd in model.tool_usd.items()},
            tiers={tier: round(factor * ONCE) for tier, factor in (TIER_PRICES | model.tier_prices).items()},
        )

    def factor(self, tier: str) -> int:
        """Factor of this service tier on the prices of tokens, in thousandths."""
        return self.tiers.get(tier or AUTO, ONCE)

    def cost(self, usage: Usage, tier: str = "") -> int:
        """Cost in nano-USD of one answer by this service tier, rounded to the nearest."""
        total: int = sum(map(mul, astuple(usage), self.by_count))
        if (factor := self.factor(tier)) != ONCE:
            total = total * factor // ONCE
        if usage.web_searches or usage.units or usage.tool_runs:
            fees = usage.web_searches * self.web_search + usage.units * self.unit + self.tool_cost(usage.tool_runs)
            total += fees * MTOK
        return (total + MTOK // 2) // MTOK

    def tool_cost(self, runs: Mapping[str, int]) -> int:
        """Cost in nano-USD of the runs of provider-run tools, by kind."""
        return sum(count * self.tools.get(kind, 0) for kind, count in runs.items())

    def worst(
        self,
        input_tokens_bound: int,
        max_output_tokens: int,
        n: int = 1,
        web_searches: int = 0,
        units: int = 0,
        tier: str = "",
        tool_runs: Mapping[str, int] = NO_RUNS,
    ) -> int:
        """The most nano-USD that `n` answers to one prompt can cost, rounded up: every token at the price of its most
        expensive bucket, and this number of searches, units and runs of tools. A tier that is cheaper than the ordinary
        price counts as the ordinary one, because providers may serve its requests at that.
        """
        cost = input_tokens_bound * self.highest_input + max_output_tokens * n * self.highest_output
        if (factor := self.factor(tier)) > ONCE:
            cost = -(-cost * factor // ONCE)
        cost = -(-cost // MTOK)
        if web_searches or units or tool_runs:
            cost += web_searches * self.web_search + units * self.unit + self.tool_cost(tool_runs)
        return cost if cost < MOST else MOST


def highest(prices: Iterable[Price]) -> Price:
    """The highest price of each bucket: no answer costs more at any of these prices."""
    every = list(prices)
    names = [one.name for one in fields(Price) if one.init and one.name not in ("tiers", "tools")]
    tools = {kind: max(price.tools.get(kind, 0) for price in every) for price in every for kind in price.tools}
    tiers = {tier: max(price.factor(tier) for price in every) for price in every for tier in price.tiers}
    return Price(**{name: max(getattr(price, name) for price in every) for name in names}, tools=tools, tiers=tiers)


def _or(price_usd: float | None, otherwise_usd: float) -> int:
    return nanousd(otherwise_usd if price_usd is None else price_usd)
