"""Savings against sending every request to one baseline model, with a 95 % interval.

The saving is what the answers that clients got would have cost at the baseline's prices, minus all that was spent,
judging, exploration and rejected drafts included. Requests are regarded as a sample of the traffic, so the interval is
that of a sum of differences. The assumption that the baseline's answers would have been as long is stated in `basis`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from gateway.admin.shapes.common import Interval
from gateway.admin.shapes.overview import BaselineSaving
from gateway.config.types import Config, ModelConfig
from gateway.journal.sums import Sums
from gateway.money.prices import Price
from routers.intervals import Z95

BASIS = (
    "The baseline is the cost of every answer's tokens at {model}'s list prices, assuming that its answers would have "
    "been as long. Cached answers count at their original cost, in proportion to the prices; failed requests count as "
    "nothing saved. The cost of judging, exploration and answers that were not kept is subtracted. The interval holds "
    "for traffic like this."
)


@dataclass(frozen=True, slots=True)
class Rate:
    """List prices in nano-dollars per token."""

    input: float
    output: float


def rate_of(model: ModelConfig) -> Rate:
    price = Price.of(model)
    return Rate(price.input / 1e6, price.output / 1e6)


def baseline_of(config: Config, declared: str) -> ModelConfig | None:
    """The declared model, else the most expensive one; None where no model is configured."""
    named = next((model for model in config.models if model.name == declared), None)
    return named or max(config.models, key=lambda one: one.input_usd_per_mtok + one.output_usd_per_mtok, default=None)


def against(config: Config, declared: str, by_model: Sequence[Sums]) -> BaselineSaving:
    """Savings against the declared model. `by_model`: the window's sums per answering model."""
    model = baseline_of(config, declared)
    if model is None:
        return BaselineSaving(
            model="", declared=False, baseline_usd=None, saved_usd=None, saved_share=None, basis="",
            refusal="no model is configured",
        )  # fmt: skip
    rate, named = rate_of(model), declared == model.name
    basis = BASIS.format(model=model.name)
    if rate.input + rate.output <= 0.0:
        return BaselineSaving(
            model=model.name, declared=named, baseline_usd=None, saved_usd=None, saved_share=None, basis=basis,
            refusal=f"{model.name} costs nothing: declare a model with a price as the baseline",
        )  # fmt: skip
    total, spent, spread, priced_spread, cross, n = 0.0, 0.0, 0.0, 0.0, 0.0, 0
    rates = {one.name: rate_of(one) for one in reversed(config.models)}
    for row in by_model:
        if _is_not_chat(row):
            continue
        ratio = _price_ratio(rate, rates, row)
        priced = rate.input * row["answer_input_tokens"] + rate.output * row["answer_output_tokens"]
        squares = (
            rate.input**2 * row["input_input"] + 2 * rate.input * rate.output * row["input_output"]
            + rate.output**2 * row["output_output"] + ratio**2 * row["saved_saved"]
        )  # fmt: skip
        total += priced + ratio * row["saved_nanousd"]
        spent += row["cost_nanousd"]
        priced_spread += squares
        cross += rate.input * row["input_cost"] + rate.output * row["output_cost"]
        spread += row["cost_cost"]
        n += row["requests"] + row["audits"]
    saved = total - spent
    error = _sd(n, saved, priced_spread - 2 * cross + spread)
    own_error = _sd(n, total, priced_spread)
    return BaselineSaving(
        model=model.name, declared=named, baseline_usd=_interval(total, own_error), saved_usd=_interval(saved, error),
        saved_share=_share(total, spent, n, priced_spread, cross, spread), basis=basis,
        refusal="" if n else "there was no request in this time",
    )  # fmt: skip


def _is_not_chat(row: Sums) -> bool:
    """Whether the answers, such as embeddings and images, can't have come from a chat model, and so are left out."""
    answered = row["requests"] - row["errors"]
    hits = row["exact_hits"] + row["shared_hits"] + row["semantic_hits"]
    return answered > 0 and not row["answers"] + hits + row["audits"]


def _price_ratio(rate: Rate, rates: Mapping[str, Rate], row: Sums) -> float:
    """The baseline's price over that of the model that wrote the cached answers, at that model's mix of tokens.

    1 where that model isn't configured any more or costs nothing.
    """
    own = rates.get(row.get("model", ""))
    if own is None:
        return 1.0
    inputs, outputs = row["answer_input_tokens"] or 1, row["answer_output_tokens"] or 1
    paid = own.input * inputs + own.output * outputs
    return (rate.input * inputs + rate.output * outputs) / paid if paid > 0 else 1.0


def _sd(n: int, total: float, squares: float) -> float:
    """Standard error of a sum of n independent terms."""
    return sqrt(max(0.0, squares - total**2 / n)) * sqrt(n / max(n - 1, 1)) if n else 0.0


def _interval(nanousd: float, error: float) -> Interval:
    return Interval(value=nanousd / 1e9, low=(nanousd - Z95 * error) / 1e9, high=(nanousd + Z95 * error) / 1e9)


def _share(total: float, spent: float, n: int, bb: float, bc: float, cc: float) -> Interval | None:
    """The saved share 1 - spent / total, with its interval by the delta method; None without a baseline cost.

    `bb`, `bc` and `cc`: sums of the squares and products of the baseline and actual costs of single requests.
    """
    if total <= 0.0 or not n:
        return None
    ratio = spent / total
    residuals = cc - 2 * ratio * bc + ratio**2 * bb  # their sum is zero
    error = sqrt(max(0.0, residuals) * n / max(n - 1, 1)) / total
    return Interval(value=1 - ratio, low=1 - ratio - Z95 * error, high=1 - ratio + Z95 * error)
