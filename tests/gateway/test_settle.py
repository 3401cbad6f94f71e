"""What a request's end leaves in its decision's record."""

from __future__ import annotations

from math import inf, isfinite, nan

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from cascade.types import Evidence
from gateway.exchange import Attempt
from gateway.settle import buckets, candidates_of, evidence_record
from gateway.wire.usage import Usage
from routers.types import Choice, Estimate

NUMBERS = st.sampled_from([0.25, -1.5, nan, inf, -inf])
COUNTS = st.integers(0, 2)


def known(number: float) -> float | None:
    return number if isfinite(number) else None


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=3))
def test_an_estimate_that_is_not_finite_is_recorded_as_unknown(rows: list[tuple[float, ...]]) -> None:
    """Whatever else of the model is known is recorded as it is."""
    estimates = [Estimate(f"m{place}", *row) for place, row in enumerate(rows)]
    choice = Choice("m0", 1.0, {"m0": 1.0}, estimates, {}, "best estimate", "linear@1")
    for record, one in zip(candidates_of(choice), estimates, strict=True):
        found = (record.quality, record.quality_sd, record.cost_usd, record.latency_s)
        assert found == tuple(map(known, one[1:5]))
        assert (record.model, record.probability) == (one.model, 1.0 if one.model == "m0" else 0.0)


@given(st.tuples(*[NUMBERS] * 5), NUMBERS, st.integers(0, 3))
def test_evidence_that_is_not_finite_is_recorded_as_unknown(
    numbers: tuple[float, ...], confidence: float, tokens: int
) -> None:
    """An answer without tokens and log-probabilities has no evidence."""
    names = ("mean_logprob", "min_logprob", "sum_logprob", "agreement", "judged")
    evidence = Evidence(**dict(zip(names, numbers, strict=True)), output_tokens=tokens, schema_valid=True)  # type: ignore[arg-type]
    record = evidence_record(Attempt("m", "p/m", 0.0, evidence=evidence, confidence=confidence))
    if record is None:
        assert not tokens and not isfinite(evidence.mean_logprob)
        return
    assert [getattr(record, name) for name in names] == list(map(known, numbers))
    assert (record.confidence, record.output_tokens, record.schema_valid) == (known(confidence), tokens, True)


@given(st.builds(Usage, *[COUNTS] * 7, st.just(True), COUNTS, COUNTS, st.just(0), COUNTS))
def test_empty_buckets_are_not_recorded(usage: Usage) -> None:
    """Every other count is recorded under the name of its bucket."""
    counts = asdict(usage)
    names = {bucket: bucket.removesuffix("_tokens") for bucket in counts if bucket.endswith("_tokens")}
    names |= {"web_searches": "web_search", "units": "units"}
    assert buckets(usage) == {name: counts[field] for field, name in names.items() if counts[field]}
