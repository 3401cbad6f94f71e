"""Explains a decision in sentences, for a reader who doesn't know how the router works."""

from __future__ import annotations

from math import floor, inf, log10

from gateway.config.types import Config
from gateway.journal.outcome import explored_nanousd, kept_attempt
from gateway.journal.record import AttemptRecord, CandidateRecord, DecisionRecord
from gateway.journal.view import cases_told, miss_told

MEANINGS = {
    "unhealthy": "all of its deployments had failed recently, so their circuit breakers were open",
    "context too short": "prompt and answer would not fit into its context",
    "no tools": "the request uses tools, which it does not support",
    "no images": "the request contains images, which it does not support",
    "no JSON mode": "the request asks for a JSON schema, which it does not support",
    "may cost more than max_cost_usd": "it could have cost more than the request or route allows",
    "queue longer than max_latency_s": "the wait in its queue alone was longer than the latency bound",
}
"""By the reason for which a candidate was excluded."""
_ENDINGS = {
    "deadline": "The request's deadline left no time for another attempt.",
    "budget": "The budget left no money for another attempt.",
    "attempts": "The request's limit of attempts was reached.",
    "exhausted": "Every model that could be tried had failed.",
    "abstained": "No answer was good enough to be returned.",
}
"""By the verdict with which a request ended."""


def summary_of(record: DecisionRecord, config: Config) -> list[str]:
    """Sentences from the request to its outcome; each can be read by itself."""
    sentences = [_requested(record)]
    if missed := miss_told(record.cache_why):
        sentences.append(f"The semantic cache had no answer: {missed}.")
    if record.from_cache:
        sentences.append(_from_cache(record))
    elif not record.model:
        sentences.append(f"No model was called: the request was refused ({record.error or record.status}).")
    elif record.reason == "pinned":
        sentences.append(f"The client named {record.model} itself, so there was nothing to decide.")
    else:
        sentences += [_choice(record, config), *_unseen(record, config), *_excluded(record)]
    if cases := cases_told(record.cases_shown):
        sentences.append(f"{cases[0].upper()}{cases[1:]}.")
    sentences += _attempts(record)
    if record.status >= 400 and record.model:
        sentences.append(f"The client got an error: {record.error} ({record.status}).")
    if record.verdict in _ENDINGS:
        sentences.append(_ENDINGS[record.verdict])
    return sentences


def _requested(record: DecisionRecord) -> str:
    knobs = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in record.knobs.items())
    own = f", with its own {knobs}" if knobs else ""
    return f"{record.tenant or 'A caller'} asked {record.route or record.requested_model}{own}."


def _from_cache(record: DecisionRecord) -> str:
    saved = f", which saved {usd(record.saved_nanousd / 1e9)}" if record.saved_nanousd else ""
    how = {
        "hit": "the cache held the answer to this exact request",
        "shared": "an identical request was already under way, and its answer was shared",
        "semantic": "the cache held the answer to the same question in other words",
    }[record.cache]
    return f"No model was called: {how}{saved}."


def _choice(record: DecisionRecord, config: Config) -> str:
    chosen = _candidate(record, record.model)
    if chosen is None or chosen.quality is None:
        chance = f" with probability {record.propensity:.0%}" if record.propensity is not None else ""
        return f"The router {record.router} chose {record.model}{chance} ({record.reason})."
    if record.job:
        return f"The plan of a batch job assigned it to {record.model}, expected to score {_expected(chosen)}."
    if explored_nanousd(record) is not None:
        return (
            f"{record.model} was chosen to explore: the router {record.router} does so with probability "
            f"{chosen.probability:.1%}; its first choice was {_likeliest(record).model}."
        )
    best = max(record.candidates, key=lambda one: one.quality if one.quality is not None else -1.0)
    mine = f"{record.model} was expected to score {_expected(chosen)}"
    if best.model == record.model:
        count, comparison = len(record.candidates), _best_cheaper(record, config)
        return f"{mine}, the best of {count} candidates (router {record.router}).{comparison}"
    knob = _knob(record, config)
    return f"{mine}; {best.model} {_expected(best)}, which was not worth its price at the route's {knob}."


def _best_cheaper(record: DecisionRecord, config: Config) -> str:
    """A sentence that compares the choice with the best cheaper model; empty where no cheaper model was known."""
    price = next((one.cost_usd or 0.0 for one in record.candidates if one.model == record.model), 0.0)
    cheaper = [one for one in record.candidates if one.quality is not None and (one.cost_usd or inf) < price]
    if not cheaper:
        return ""
    one = max(cheaper, key=lambda other: other.quality or 0.0)
    knob = _knob(record, config)
    return f" {one.model}, cheaper, {_expected(one)}: at the route's {knob} the difference was worth its price."


def _unseen(record: DecisionRecord, config: Config) -> list[str]:
    route = next((one for one in config.routes if one.name == record.route), None)
    bound_s = record.knobs.get("max_latency_s", route.max_latency_s if route else None)
    chosen = _candidate(record, record.model)
    if bound_s is None or chosen is None or chosen.latency_s is not None:
        return []
    return [f"The latency of {record.model} was not known yet, so the bound of {bound_s:g} s was not applied to it."]


def _knob(record: DecisionRecord, config: Config) -> str:
    route = next((one for one in config.routes if one.name == record.route), None)
    weight = record.knobs.get("cost_weight", route.cost_weight if route else None)
    floor = record.knobs.get("min_quality", route.min_quality if route else None)
    if weight is None and floor is not None:
        return f"quality floor of {floor:g}"
    return f"cost weight of {weight if weight is not None else 0.5:g}"


def _expected(one: CandidateRecord) -> str:
    quality = "an unknown score" if one.quality is None else f"{one.quality:.2f}"
    return quality if one.cost_usd is None else f"{quality} for {usd(one.cost_usd)}"


def _excluded(record: DecisionRecord) -> list[str]:
    return [f"{model} could not answer: {MEANINGS.get(why, why)}." for model, why in record.excluded.items()]


def _attempts(record: DecisionRecord) -> list[str]:
    kept = kept_attempt(record)
    sentences = [_attempt(record, one, one is kept) for one in record.attempts]
    if kept is not None and len(record.attempts) > 1:
        wasted, total = sum(one.cost_nanousd for one in record.attempts if one is not kept), record.cost_nanousd
        sentences.append(f"Of {usd(total / 1e9)} in all, {usd(wasted / 1e9)} went to answers that were not kept.")
    return sentences


def _attempt(record: DecisionRecord, one: AttemptRecord, kept: bool) -> str:
    took = f" after {_span(one.latency_s)}" if one.latency_s is not None else ""
    if one.failure:
        return f"{one.model} failed{took}: {one.failure.replace('_', ' ')}."
    confidence = one.evidence.confidence if one.evidence else None
    least = dict(zip(record.plan, record.thresholds, strict=False)).get(one.model)
    if not kept:
        known = confidence is not None and least is not None
        why = f" (confidence {confidence:.2f}, needed {least:.2f})" if known else ""
        return f"{one.model} answered{took}, and its answer was not kept{why}."
    sure = f" with confidence {confidence:.2f}" if confidence is not None and least is not None else ""
    return f"{one.model} gave the answer{took}{sure}, for {usd(one.cost_nanousd / 1e9)}."


def _candidate(record: DecisionRecord, model: str) -> CandidateRecord | None:
    return next((one for one in record.candidates if one.model == model), None)


def _likeliest(record: DecisionRecord) -> CandidateRecord:
    return max(record.candidates, key=lambda one: one.probability)


def _span(length_s: float) -> str:
    return f"{length_s:.2f} s" if length_s >= 1 else f"{1000 * length_s:.3g} ms"


def usd(amount: float) -> str:
    """US dollars: two decimals from ten cents up, three significant digits below."""
    if not 0 < amount < 0.0995:
        return f"${amount:.2f}"
    return f"${amount:.{2 - floor(log10(amount))}f}".rstrip("0")
