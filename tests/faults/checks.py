"""What must hold for a case once it has ended."""

from __future__ import annotations

from tests.faults.stage import Result

TRIED_AGAIN = {"timeout": 1, "unauthorized": 1, "not_found": 1}
"""Attempts on the only model where the failure can't be retried; after any other failure there are two."""


def check(result: Result) -> None:
    """Checks everything that must hold for a case."""
    case, record, heard = result.case, result.record, result.heard
    assert result.ending == case.ending, (case, heard, record.attempts)
    assert [attempt.failure for attempt in record.attempts] == expected_failures(result), (case, record.attempts)
    assert result.counted == sum(bool(attempt.failure) for attempt in record.attempts)
    check_status(result)
    check_money(result)


def expected_failures(result: Result) -> list[str]:
    case = result.case
    where, failure = case.fault.where_at(case.provider), case.fault.failure
    if where == "none":
        return [""]
    if where in ("inside", "late"):
        return [failure]
    return [failure, ""] if case.fallback else [failure] * TRIED_AGAIN.get(failure, 2)


def check_status(result: Result) -> None:
    case, record, heard = result.case, result.record, result.heard
    spoilt = result.ending in ("error", "in-band error")
    assert bool(record.error) == spoilt
    if result.ending == "error":
        overload = "529" in case.fault.name and case.surface == "messages"
        assert heard.status == record.status == (529 if overload else case.fault.status), (case, heard)
        assert heard.headers["x-should-retry"] == "false"
    else:
        assert heard.status == 200
    if result.ending == "in-band error":
        assert record.error == case.fault.failure


def check_money(result: Result) -> None:
    """Holds are released, the spend is the sum of the attempts, and work that an upstream began is billed."""
    case, record = result.case, result.record
    costs = [attempt.cost_nanousd for attempt in record.attempts]
    assert result.held == 0
    assert result.spent == record.cost_nanousd == sum(costs)
    assert record.held_nanousd >= record.cost_nanousd
    for attempt in record.attempts:
        assert (attempt.cost_nanousd > 0) == (not attempt.failure or case.fault.billed), (case, attempt)
