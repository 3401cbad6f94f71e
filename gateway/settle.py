"""The end of a request, once each: the hold is settled, rate limits are corrected, the decision is recorded and metrics
are counted.

Nothing here waits, so it runs to its end even where the client has disconnected. A decision is in the spool before its
client sees the last byte of the answer.
"""

from __future__ import annotations

from math import isfinite
from operator import itemgetter

from msgspec.structs import astuple

from cache.entry import Entry
from cache.rules import Rules, may_store
from gateway.errors import HeadgateError, UpstreamError
from gateway.exchange import Attempt, Exchange
from gateway.journal.record import AttemptRecord, CandidateRecord, DecisionRecord, EvidenceRecord
from gateway.journal.vectors import packed
from gateway.services import Services
from gateway.wire.chunk import Peek
from gateway.wire.errors import status_of
from gateway.wire.peek import peek
from gateway.wire.usage import Usage
from routers.types import Choice, Knobs

BUCKETS = ("input", "cache_read", "cache_write", "output", "reasoning", "audio_input", "audio_output")
"""Names of the first fields of `Usage`, in its order; the fields after them are rarely set."""

NO_CHOICE = Choice("", 0.0, {}, (), {}, "", "")
UNKNOWN = (None,) * 6
_count_of = itemgetter(1)


def settle(services: Services, exchange: Exchange, ending: HeadgateError | None) -> None:
    """End the request. `ending` is the error that the client gets, None where it gets an answer."""
    exchange.status = status_of(ending, exchange.call.surface) if ending else 200
    exchange.error = (ending.code or ending.kind) if ending else ""
    held, cost = exchange.hold.nanousd, exchange.cost_nanousd
    exchange.hold.settle(cost)
    now = services.now()
    exchange.taken.correct(exchange.tokens, now)
    record = record_of(services, exchange, held, cost, now)
    services.spool.append(record)
    services.purses.spend(exchange.route.name, cost)
    services.prefixes.settled(exchange, now)
    services.online.outcome(record)
    services.metrics.settled(exchange, now - exchange.call.received_s)
    if services.tracing is not None:
        services.tracing.finish(exchange)


def record_of(services: Services, exchange: Exchange, held: int, cost: int, now: float) -> DecisionRecord:
    call, choice, query = exchange.call, exchange.choice or NO_CHOICE, exchange.query
    steps = exchange.plan.steps if exchange.plan else ()
    elapsed_s = now - call.received_s
    described = call.described
    first_bytes_s = [a.started_s + a.first_byte_s for a in exchange.attempts if a.first_byte_s is not None]
    keeps_text = exchange.route.config.store_text
    vector, doubled = packed(query.vector) if query is not None else (b"", 0)
    return DecisionRecord(
        id=exchange.decision_id,
        time_s=services.clock() - elapsed_s,
        request_id=call.request_id,
        response_id=exchange.response_id,
        tenant=exchange.caller.tenant,
        key_id=exchange.caller.key_id,
        surface=call.surface,
        route=exchange.route.name,
        requested_model=call.model,
        features_version=query.features_version if query else "",
        input_tokens=described.input_tokens,
        turns=described.turns,
        tools=described.tools,
        images=described.images,
        wants_json=described.wants_json,
        vector=vector,
        doubled=doubled,
        max_output_tokens=described.max_output_tokens,
        knobs=stated_knobs(exchange.paced or call.options.knobs) if exchange.paced or call.options.stated else {},
        explore=exchange.caller.explore,
        draw=exchange.draw,
        candidates=candidates_of(choice),
        excluded=dict(choice.excluded),
        model=choice.model,
        propensity=choice.propensity if exchange.choice else None,
        router=choice.router,
        reason=choice.reason,
        plan=tuple([step.model for step in steps]),
        thresholds=tuple([_finite(step.accept_at) for step in steps]),
        strategy=exchange.strategy_pick.arm if exchange.strategy_pick else "",
        strategies=exchange.strategy_pick.probabilities if exchange.strategy_pick else {},
        cases_shown=exchange.cases_shown,
        cases_withheld=exchange.cases_withheld,
        attempts=tuple([attempt_record(attempt) for attempt in exchange.attempts]),
        verdict=exchange.verdict.reason if exchange.verdict else "",
        answered_model=exchange.answered_by,
        status=exchange.status,
        error=exchange.error,
        stream=call.stream,
        cache=exchange.cache_state,
        cache_why=exchange.hit.why if exchange.hit else {} if exchange.missed is None else why_missed(exchange),
        saved_nanousd=round(exchange.hit.entry.cost_usd * 1e9) if exchange.hit else 0,
        held_nanousd=held,
        cost_nanousd=cost,
        latency_s=elapsed_s,
        ttft_s=first_bytes_s[-1] if first_bytes_s else None,
        overhead_ms=(elapsed_s - exchange.upstream_s) * 1e3,
        prompt_text=described.text if keeps_text else "",
        answer_text=seen_in(exchange.answer_body, call.surface).text if keeps_text and exchange.answer_body else "",
    )


def why_missed(exchange: Exchange) -> dict[str, object]:
    """Why the semantic cache served nothing, and how similar the nearest entry was; without any request's text."""
    missed = exchange.missed
    assert missed is not None
    why: dict[str, object] = {"why": missed.why}
    if missed.similarity:
        why["similarity"] = missed.similarity
    if missed.least is not None:
        why |= {"score": missed.score, "threshold": missed.least}
    return why


def stated_knobs(knobs: Knobs) -> dict[str, float]:
    """The knobs that have a finite value, by name."""
    stated = {name: getattr(knobs, name) for name in ("cost_weight", "min_quality", "max_cost_usd", "max_latency_s")}
    return {name: value for name, value in stated.items() if value is not None and isfinite(value)}


def candidates_of(choice: Choice) -> tuple[CandidateRecord, ...]:
    """Each eligible model with its estimate and the probability that it was chosen with."""
    chances = choice.probabilities
    if not choice.estimates:
        return tuple([CandidateRecord(model=model, probability=p) for model, p in chances.items()])
    records = []
    quality: float | None
    sd: float | None
    usd: float | None
    wait_s: float | None
    for model, quality, sd, usd, wait_s, _ in choice.estimates:
        if not isfinite(quality + sd + usd):
            quality, sd, usd = _finite(quality), _finite(sd), _finite(usd)
        if not isfinite(wait_s):
            wait_s = None
        p = chances.get(model, 0.0)
        records.append(
            CandidateRecord(model=model, quality=quality, quality_sd=sd, cost_usd=usd, latency_s=wait_s, probability=p)
        )
    return tuple(records)


def attempt_record(attempt: Attempt) -> AttemptRecord:
    return AttemptRecord(
        model=attempt.model,
        deployment=attempt.deployment,
        started_s=attempt.started_s,
        latency_s=attempt.latency_s,
        ttft_s=attempt.first_byte_s,
        status=attempt.status,
        failure=attempt.failure,
        usage=buckets(attempt.usage),
        cost_nanousd=attempt.cost_nanousd,
        estimated=attempt.estimated,
        gathered=attempt.gathered,
        evidence=evidence_record(attempt),
    )


def evidence_record(attempt: Attempt) -> EvidenceRecord | None:
    """The attempt's evidence without any text of the answer; None where there is none."""
    evidence = attempt.evidence
    if evidence.output_tokens == 0 and not isfinite(evidence.mean_logprob):
        return None
    numbers = (
        evidence.mean_logprob, evidence.min_logprob, evidence.sum_logprob,
        evidence.agreement, evidence.judged, attempt.confidence,
    )  # fmt: skip
    mean, least, total, agreement, judged, confidence = (
        map(_finite, numbers) if any(map(isfinite, numbers)) else UNKNOWN
    )
    return EvidenceRecord(
        mean_logprob=mean,
        min_logprob=least,
        sum_logprob=total,
        output_tokens=evidence.output_tokens,
        refused=evidence.refused,
        schema_valid=evidence.schema_valid,
        tools_parse=evidence.tools_parse,
        checks_passed=evidence.checks_passed,
        agreement=agreement,
        judged=judged,
        confidence=confidence,
    )


def buckets(usage: Usage) -> dict[str, int]:
    """Usage by bucket without empty buckets. Counts are tokens, except `web_search`, `units` and the runs of each tool.
    """
    counts = dict(filter(_count_of, zip(BUCKETS, astuple(usage), strict=False)))
    if usage.cache_write_1h_tokens:
        counts["cache_write_1h"] = usage.cache_write_1h_tokens
    if usage.web_searches:
        counts["web_search"] = usage.web_searches
    if usage.units:
        counts["units"] = usage.units
    return counts | usage.tool_runs if usage.tool_runs else counts


def entry_of(services: Services, exchange: Exchange) -> Entry | None:
    """A cache entry of the answer; None where the answer is incomplete or may not be cached."""
    body, call = exchange.answer_body, exchange.call
    if not body:
        return None
    seen = exchange.kept.seen if exchange.kept is not None else seen_in(body, call.surface)
    rules = services.cache.rules_of(exchange.route.config)
    refusal = refusal_to_keep(rules, seen, call.surface, len(body))
    if refusal:
        exchange.cache_state = f"refused:{refusal}"
        return None
    return Entry(
        id=services.ids.new("ent"),
        surface=call.surface,
        body=body,
        model=exchange.answered_by,
        decision_id=exchange.decision_id,
        created_s=services.clock(),
        ttl_s=exchange.route.config.cache_ttl_s,
        cost_usd=exchange.cost_nanousd / 1e9,
        tenant=exchange.caller.tenant,
        input_tokens=seen.usage.prompt_tokens,
        output_tokens=seen.usage.completion_tokens,
    )


def refusal_to_keep(rules: Rules, seen: Peek, surface: str, answer_bytes: int) -> str | None:
    """Why an answer may not be cached: it refuses, is empty, or one of its choices was cut off. None where it may."""
    has_ends = surface != "embeddings"
    for ending in (seen.finish_reason or "unknown", *seen.other_endings) if has_ends else (None,):
        refusal = may_store(rules, status=200, complete=True, finish_reason=ending, answer_bytes=answer_bytes)
        if refusal:
            return refusal
    if not has_ends:
        return None
    return "refusal" if seen.refusal else "empty" if not seen.text else None


def seen_in(body: bytes, surface: str) -> Peek:
    """The answer's text and usage; empty where it can't be read, because the request is settled all the same."""
    try:
        return peek(body, surface)
    except UpstreamError:
        return Peek()


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None
