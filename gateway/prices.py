"""What an answer costs, in integer nano-USD: money is counted, never rounded twice.

A price is kept in nano-USD per million tokens, so that $0.0375 per million is exact too; that of a search, or of a
run of another tool of the provider's, in nano-USD. Every disjoint bucket of `Usage` has its own price; one left out of
the configuration costs as the bucket it is part of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from msgspec.structs import astuple

from gateway.config import ModelConfig
from gateway.wire.usage import Usage

NANOUSD = 1_000_000_000
"""In one dollar."""
MTOK = 1_000_000
MOST = 10**17
"""Of one attempt: several still fit the 64 bits of the journal and of Redis."""
ONCE = 1000
"""The plain price, in thousandths of itself."""
AUTO = "auto"
"""The service tier of a request that names none, and an answer's that doesn't say which one served it."""
NO_RUNS: Mapping[str, int] = MappingProxyType({})
TIER_PRICES = {"priority": 2.0, "fast": 6.0}
"""Times the price: OpenAI's priority processing, and the fast mode of Anthropic's Opus."""


def nanousd(usd: float) -> int:
    """Dollars as nano-USD, to the nearest."""
    return round(usd * NANOUSD)


def usd(amount: int) -> float:
    """Nano-USD as dollars, for people and headers."""
    return amount / NANOUSD


def dollars(usd: float) -> str:
    """To the nano-dollar, without an exponent, however small or large."""
    return f"${usd:,.9f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Price:
    """Of one deployment; every field but `web_search`, `unit` and `tools` in nano-USD per million tokens."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    audio_input: int = 0
    audio_output: int = 0
    cache_write_1h: int = 0
    web_search: int = 0
    """One, in nano-USD."""
    unit: int = 0
    """The same."""
    tools: Mapping[str, int] = field(default_factory=dict)
    """A run of each kind of the provider's own tools, in nano-USD; others cost nothing."""
    tiers: Mapping[str, int] = field(default_factory=dict)
    """What service tiers cost, in thousandths of the price of tokens; others cost it once."""
    dearest_input: int = field(init=False)
    dearest_output: int = field(init=False)

    def __post_init__(self) -> None:
        dearest = max(self.input, self.cache_read, self.cache_write, self.cache_write_1h, self.audio_input)
        object.__setattr__(self, "dearest_input", dearest)
        object.__setattr__(self, "dearest_output", max(self.output, self.reasoning, self.audio_output))

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
            tiers={tier: round(times * ONCE) for tier, times in (TIER_PRICES | model.tier_prices).items()},
        )

    def times(self, tier: str) -> int:
        """Thousandths of the price of tokens that this service tier costs."""
        return self.tiers.get(tier or AUTO, ONCE)

    def cost(self, usage: Usage, tier: str = "") -> int:
        """Nano-USD of one answer that this service tier gave, to the nearest."""
        into, read, wrote, out, reasoned, heard, spoken, _, wrote_1h, searched, _, units, ran = astuple(usage)
        total: int = into * self.input + out * self.output
        if read or wrote or reasoned or heard or spoken or wrote_1h:
            total += (
                read * self.cache_read
                + wrote * self.cache_write
                + reasoned * self.reasoning
                + heard * self.audio_input
                + spoken * self.audio_output
                + wrote_1h * self.cache_write_1h
            )
        if (times := self.times(tier)) != ONCE:
            total = total * times // ONCE
        if searched or units or ran:
            total += (searched * self.web_search + units * self.unit + self.tool_cost(ran)) * MTOK
        return (total + MTOK // 2) // MTOK

    def tool_cost(self, runs: Mapping[str, int]) -> int:
        """Nano-USD of so many runs of the provider's own tools, by their kinds."""
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
        """Most that `n` answers to one prompt can cost: every token in its dearest bucket, rounded up, and as many
        searches, units and runs of tools. Who asks for a tier that is cheaper than the price may be served at it.
        """
        cost = input_tokens_bound * self.dearest_input + max_output_tokens * n * self.dearest_output
        if (times := self.tiers.get(tier or AUTO, ONCE)) > ONCE:
            cost = -(-cost * times // ONCE)
        cost = -(-cost // MTOK)
        if web_searches or units or tool_runs:
            cost += web_searches * self.web_search + units * self.unit + self.tool_cost(tool_runs)
        return cost if cost < MOST else MOST


def highest(prices: Iterable[Price]) -> Price:
    """Bucket by bucket: no answer costs more at any of them."""
    every = list(prices)
    names = [one.name for one in fields(Price) if one.init and one.name not in ("tiers", "tools")]
    tools = {kind: max(price.tools.get(kind, 0) for price in every) for price in every for kind in price.tools}
    tiers = {tier: max(price.times(tier) for price in every) for price in every for tier in price.tiers}
    return Price(**{name: max(getattr(price, name) for price in every) for name in names}, tools=tools, tiers=tiers)


def _or(price_usd: float | None, otherwise_usd: float) -> int:
    return nanousd(otherwise_usd if price_usd is None else price_usd)
