"""What was saved, and how sure that is: against one declared model, and against choosing blindly.

Against a model: what the answers that clients got would have cost at its prices, minus all that was spent, judging,
exploration and rejected drafts included. Requests are taken as a sample of the traffic, so the interval is that of a
sum of differences. Its assumption, that the model's answers would have been as long, is said beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from gateway.admin.shapes.common import Interval
from gateway.admin.shapes.overview import BaselineSaving
from gateway.config import Config, ModelConfig
from gateway.journal.sums import Sums
from gateway.prices import Price
from routers.intervals import Z95

BASIS = (
    "Every answer's own tokens at {model}'s list prices, as if its answers were as long; cached answers at what they "
    "had cost, in proportion; failed requests count as nothing saved. Judging, exploration and answers that were not "
    "kept are taken off. The interval is for traffic like this."
)


@dataclass(frozen=True, slots=True)
class Rate:
    """Nano-dollars per token."""

    into: float
    out: float


def rate_of(model: ModelConfig) -> Rate:
    price = Price.of(model)
    return Rate(price.input / 1e6, price.output / 1e6)


def baseline_of(config: Config, declared: str) -> ModelConfig | None:
    """The declared model, else the dearest; None: there is no model."""
    named = next((model for model in config.models if model.name == declared), None)
    return named or max(config.models, key=lambda one: one.input_usd_per_mtok + one.output_usd_per_mtok, default=None)


def against(config: Config, declared: str, by_model: Sequence[Sums]) -> BaselineSaving:
    """`by_model`: the window's sums per answering model."""
    model = baseline_of(config, declared)
    if model is None:
        return BaselineSaving(
            model="", declared=False, baseline_usd=None, saved_usd=None, saved_share=None, basis="",
            refusal="no model is configured",
        )  # fmt: skip
    rate, named = rate_of(model), declared == model.name
    basis = BASIS.format(model=model.name)
    if rate.into + rate.out <= 0.0:
        return BaselineSaving(
            model=model.name, declared=named, baseline_usd=None, saved_usd=None, saved_share=None, basis=basis,
            refusal=f"{model.name} costs nothing: declare a model with a price",
        )  # fmt: skip
    total, spent, spread, priced_spread, cross, n = 0.0, 0.0, 0.0, 0.0, 0.0, 0
    rates = {one.name: rate_of(one) for one in reversed(config.models)}
    for row in by_model:
        if _is_unlike(row):
            continue
        dearer = _hit_ratio(rate, rates, row)
        priced = rate.into * row["answer_input_tokens"] + rate.out * row["answer_output_tokens"]
        squares = (
            rate.into**2 * row["input_input"] + 2 * rate.into * rate.out * row["input_output"]
            + rate.out**2 * row["output_output"] + dearer**2 * row["saved_saved"]
        )  # fmt: skip
        total += priced + dearer * row["saved_nanousd"]
        spent += row["cost_nanousd"]
        priced_spread += squares
        cross += rate.into * row["input_cost"] + rate.out * row["output_cost"]
        spread += row["cost_cost"]
        n += row["requests"] + row["audits"]
    saved = total - spent
    error = _sd(n, saved, priced_spread - 2 * cross + spread)
    own_error = _sd(n, total, priced_spread)
    return BaselineSaving(
        model=model.name, declared=named, baseline_usd=_interval(total, own_error), saved_usd=_interval(saved, error),
        saved_share=_share(total, spent, n, priced_spread, cross, spread), basis=basis,
        refusal="" if n else "nothing was asked in this time",
    )  # fmt: skip


def _is_unlike(row: Sums) -> bool:
    """Answers that no chat model could have given, as embeddings and pictures are: they cost what they cost."""
    answered = row["requests"] - row["errors"]
    hits = row["exact_hits"] + row["shared_hits"] + row["semantic_hits"]
    return answered > 0 and not row["answers"] + hits + row["audits"]


def _hit_ratio(rate: Rate, rates: Mapping[str, Rate], row: Sums) -> float:
    """How much dearer than the model that wrote a cached answer the baseline is, by the tokens that it writes."""
    own = rates.get(row.get("model", ""))
    if own is None:
        return 1.0
    into, out = row["answer_input_tokens"] or 1, row["answer_output_tokens"] or 1
    paid = own.into * into + own.out * out
    return (rate.into * into + rate.out * out) / paid if paid > 0 else 1.0


def _sd(n: int, total: float, squares: float) -> float:
    """Standard error of a sum of n independent terms."""
    return sqrt(max(0.0, squares - total**2 / n)) * sqrt(n / max(n - 1, 1)) if n else 0.0


def _interval(nanousd: float, error: float) -> Interval:
    return Interval(value=nanousd / 1e9, low=(nanousd - Z95 * error) / 1e9, high=(nanousd + Z95 * error) / 1e9)


def _share(total: float, spent: float, n: int, bb: float, bc: float, cc: float) -> Interval | None:
    """1 - spent / baseline, by the delta method."""
    if total <= 0.0 or not n:
        return None
    ratio = spent / total
    residuals = cc - 2 * ratio * bc + ratio**2 * bb  # their sum is zero
    error = sqrt(max(0.0, residuals) * n / max(n - 1, 1)) / total
    return Interval(value=1 - ratio, low=1 - ratio - Z95 * error, high=1 - ratio + Z95 * error)
