"""Latencies of the shipped models, in short form."""

from __future__ import annotations

from tests.bench.local_latency import LONGEST_ANSWER, LONGEST_PROMPT, measured


def test_every_answer_is_timed() -> None:
    """As many tokens as were asked for, and the seconds that they took."""
    rows = measured("tiny-small", 3)
    assert [row["query_id"] for row in rows] == ["0", "1", "2"]
    for row in rows:
        assert 0 < row["input_tokens"] < LONGEST_PROMPT and 0 < row["output_tokens"] < LONGEST_ANSWER
        assert 0.0 < row["latency_s"] < 30.0
