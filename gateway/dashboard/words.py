"""Phrases that several templates and pages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10

from markupsafe import Markup

from gateway.admin.shapes.common import Applied
from gateway.admin.shapes.knobs import Knobs
from gateway.admin.shapes.learning import VersionDone
from gateway.dashboard import charts, units
from gateway.journal.record import INPUT_BUCKETS, OUTPUT_BUCKETS

TOKENS = frozenset({*INPUT_BUCKETS, *OUTPUT_BUCKETS})
PIECES = {"web_search": "web searches"}
"""Names of what is billed per unit, where they differ from the journal's."""


def knob_words(knobs: Knobs) -> str:
    """The knobs that are set, in one line."""
    knob_values = {
        "cost weight": units.plain(knobs.cost_weight), "quality floor": units.plain(knobs.min_quality),
        "budget": f"{units.usd(knobs.budget_usd_per_day)} a day", "latency within": units.seconds(knobs.max_latency_s),
        "at most": f"{units.usd(knobs.max_cost_usd)} a request", "cascade keeps from": units.plain(knobs.accept_at),
        "exploring": units.trimmed(units.percent(knobs.explore)),
    }  # fmt: skip
    return ", ".join(f"{name} {value}" for name, value in knob_values.items() if not value.startswith(units.DASH))


def usage_words(usage: Mapping[str, int]) -> str:
    """Tokens by bucket, and what is billed per unit."""
    tokens = [f"{units.count(usage[name])} {name.replace('_', ' ')}" for name in usage if name in TOKENS]
    pieces = [f"{PIECES.get(name, name.replace('_', ' '))}: {units.count(usage[name])}"
              for name in usage if name not in TOKENS]  # fmt: skip
    return "; ".join([f"{', '.join(tokens)} tokens", *pieces] if tokens else pieces)


def slider(dial: object, value: float | None) -> float:
    """Position of a dial's slider: on a log10 scale where `dial.log`; in the middle for a knob that is not set."""
    low, high, log = (float(getattr(dial, name)) for name in ("low", "high", "log"))
    if value is None:
        return round((low + high) / 2, 3)
    at = log10(max(value, 1e-9)) if log else value
    return round(min(max(at, low), high), 3)


def share_bar(title: str, shares: Mapping[str, float]) -> Markup:
    """A bar of models' shares, in the order of their names, so that two bars can be compared."""
    return charts.share_bar(title, [charts.Part(name, shares[name]) for name in sorted(shares)])


def outcome_words(outcomes: Sequence[str]) -> list[tuple[str, str]]:
    """The words for a decision's outcomes, each with the kind of its badge."""
    kinds = {"error": "bad", "cached": "accent", "escalated": "warn"}
    words = {"cached": "from cache", "audit": "cache audit"}
    return [(words.get(one, one), kinds.get(one, "plain")) for one in outcomes]


def confirmed(done: Applied | VersionDone) -> str:
    """How many workers have confirmed a change, as the end of a sentence; empty where no worker runs."""
    if not done.workers:
        return ""
    if done.confirmed < done.workers:
        return f"; {done.confirmed} of {done.workers} workers have confirmed it so far"
    return f" in {done.workers} of {done.workers} workers"
