"""Batch prompting: several small questions in one prompt, whose answers are separated again.

Each question has a mark that its answer must repeat (Cheng et al. 2023; FrugalGPT's query concatenation). A reply in
which a mark is missing, repeated or out of order, or an answer is empty, is rejected as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARK = re.compile(r"^\[\[(\d{1,4})\]\][ \t]*\n?", re.MULTILINE)
EXTRA_INPUT_TOKENS = 256
"""Upper bound on a question's mark and its part of the instruction: a token is at least one byte."""
EXTRA_OUTPUT_TOKENS = 12
"""Upper bound on an answer's mark."""


def may_stand(question: str) -> bool:
    """Whether a question may be part of a batch: not where it is empty or contains a mark itself."""
    return bool(question.strip()) and not _MARK.search(question)


def instruction(count: int) -> str:
    """The text that precedes the questions."""
    return (
        f"Below are {count} independent questions, each under a mark of its own such as [[1]]. Answer every one as if "
        "it had been asked alone. Write each mark on a line of its own, in the same order, and under it only the "
        "answer to that question."
    )


def together(questions: Sequence[str]) -> str:
    return "\n\n".join(f"[[{number}]]\n{question.strip()}" for number, question in enumerate(questions, 1))


def apart(text: str, count: int) -> list[str] | None:
    """The answers, in the order of their questions. None: the text does not say which is which."""
    before, *rest = _MARK.split(text)
    numbers, answers = rest[::2], [answer.strip() for answer in rest[1::2]]
    whole = not before.strip() and numbers == [str(number) for number in range(1, count + 1)]
    return answers if whole and all(answers) else None


def shares(total: int, weights: Sequence[int], most: Sequence[int]) -> list[int]:
    """Split `total` into whole parts by weight, exactly. What exceeds a part's `most` goes to those with room; if none
    has room, to the first.
    """
    parts = _by_weight(total, weights if any(weights) else [1] * len(weights))
    parts = [min(part, top) for part, top in zip(parts, most, strict=True)]
    room = [max(0, top - part) for part, top in zip(parts, most, strict=True)]
    moved = min(total - sum(parts), sum(room))
    if moved:
        parts = [part + more for part, more in zip(parts, _by_weight(moved, room), strict=True)]
    parts[0] += total - sum(parts)
    return parts


def _by_weight(total: int, weights: Sequence[int]) -> list[int]:
    """Each part is the growth of a running sum, so that nothing is lost to rounding."""
    whole, before, run, parts = sum(weights), 0, 0, list[int]()
    for weight in weights:
        run += weight
        reached = total * run // whole
        parts.append(reached - before)
        before = reached
    return parts
