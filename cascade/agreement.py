"""Whether two answers say the same, decided from their texts alone, in microseconds and without a model.

A stated final answer (`#### 12`, `\\boxed{12}`, a lone choice letter) and JSON are compared exactly; short answers by
the words of the shorter one; longer texts by word overlap. It never reads a gold answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SHORT_WORDS = 4
READ_CHARS = 4000
"""Only the last characters of a longer answer are read, where its conclusion is."""

_STATED = re.compile(r"####\s*\$?(-?[\d,.]+)|\\boxed\{([^{}]+)\}")
_WORDS = re.compile(r"\w+")
_ARTICLES = frozenset({"the", "a", "an"})


@lru_cache(maxsize=16_384)
def answer_key(text: str) -> frozenset[str] | str:
    """The comparable content of an answer: a string where a final answer is stated, else the set of its words."""
    if text[:1] in ("{", "[") and (value := _canonical(text)):
        return value
    end = text[-READ_CHARS:]
    stated = _STATED.findall(end)
    if stated:
        number, boxed = stated[-1]
        return str(number or boxed).replace(",", "").rstrip(".").strip().lower()
    words = _WORDS.findall(end.lower())
    if len(words) <= 1:
        return words[0] if words else end.strip()
    words = [word for word in words if word not in _ARTICLES]
    if len(words) <= 1:
        return words[0] if words else end.strip().lower()
    return frozenset(words)


def _canonical(text: str) -> str:
    """Canonical JSON of a text; empty where it is not JSON."""
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except (ValueError, RecursionError):
        return ""


def agreement(one: str, other: str) -> float:
    """Agreement of two answers, 0 to 1; symmetric, and 1 for equal answers."""
    a, b = answer_key(one), answer_key(other)
    if a == b:
        return 1.0
    if isinstance(a, str) and isinstance(b, str):
        return 0.0
    a, b = (frozenset({x}) if isinstance(x, str) else x for x in (a, b))
    shared, fewer = len(a & b), min(len(a), len(b))
    if fewer <= SHORT_WORDS and shared == fewer:
        return 1.0
    return 2.0 * shared / (len(a) + len(b))


def agreements(answers: Sequence[str]) -> NDArray[np.float64]:
    """Agreement of every pair of answers, (m, m), with ones on the diagonal."""
    m = len(answers)
    table = np.ones((m, m))
    for i in range(m):
        for j in range(i):
            table[i, j] = table[j, i] = agreement(answers[i], answers[j])
    return table
