"""Phrases that several pages share."""

from __future__ import annotations

import pytest

from gateway.dashboard.words import usage_words


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        ({"input": 1200, "cache_write_1h": 2, "output": 5}, "1,200 input, 2 cache write 1h, 5 output tokens"),
        ({"input": 10, "web_search": 3, "file_search": 4, "container": 1},
         "10 input tokens; web searches: 3; file search: 4; container: 1"),
        ({"units": 7}, "units: 7"),
        ({}, ""),
    ],
)  # fmt: skip
def test_usage_is_described_in_words(usage: dict[str, int], words: str) -> None:
    """It has all tokens together, and each kind of what is billed by the piece."""
    assert usage_words(usage) == words
