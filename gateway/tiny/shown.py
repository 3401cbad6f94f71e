"""Measures what solved cases shown to the small shipped model are worth, and what choosing their number per query
saves.

As a check, `answer_in_sight` shows each question's own right answer just before it, where a model that reads examples
can't be wrong. The shipped models were trained on single questions only, so that to them memory is worth only the
answers that it replays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.tiny.figures import difference, mean, ratio
from gateway.tiny.reply import Reply
from local_models.tasks import Question

MOST = 4
ROUTES = """
[[routes]]                    # without an opinion on quality every question gets all
name = "shown"
models = ["tiny-small"]
router = "cheapest"
solved = "{cases}"
solved_most = {most}
solved_withheld = 0.0
[[routes]]                    # as many as the estimated quality lacks
name = "shown-as-needed"
models = ["tiny-small"]
router = "{router}"
solved = "{cases}"
solved_most = {most}
solved_withheld = 0.0
[[routes]]
name = "climbed"
models = ["tiny-small", "tiny-large"]
router = "{router}"
cost_weight = 1.0
cascade = "confidence"
accept_at = {accept_at}
[[routes]]
name = "climbed-shown"
models = ["tiny-small", "tiny-large"]
router = "{router}"
cost_weight = 1.0
cascade = "confidence"
accept_at = {accept_at}
solved = "{cases}"
solved_most = {most}
solved_withheld = 0.0
[[routes]]                    # what was asked before is answered as before
name = "climbed-remembered"
models = ["tiny-small", "tiny-large"]
router = "{router}"
cost_weight = 1.0
cascade = "confidence"
accept_at = {accept_at}
cache = "exact"
"""
NAMES = ("shown", "shown-as-needed", "climbed", "climbed-shown")


def write_cases(file: Path, questions: Sequence[Question], replies: Sequence[Reply]) -> None:
    """Write the questions that were answered right, in the format of a route's `solved` file."""
    right = [(q.prompt, reply.text) for q, reply in zip(questions, replies, strict=True) if reply.right]
    file.write_text("".join(json.dumps({"question": question, "answer": text}) + "\n" for question, text in right))


def report(
    small: Sequence[Reply], large: Sequence[Reply], shown: Mapping[str, Sequence[Reply]], in_sight: Sequence[Reply]
) -> dict[str, Any]:
    """Accuracy and cost with and without cases (EcoAssistant), and the tokens that fewer cases save (DynaICL), all on
    the same questions. `shown` has the replies of each route.
    """
    every, needed = shown["shown"], shown["shown-as-needed"]
    remembered = shown["climbed-remembered"]
    replayed = mean([reply.cost_usd == 0.0 for reply in remembered])
    saved = [one - other for one, other in zip(_prompt_tokens(every), _prompt_tokens(needed), strict=True)]
    return {
        "without": _way(small, large),
        "always_shown": _way(every, large) | {"most": MOST},
        "shown_as_needed": _way(needed, large),
        "tokens_saved_as_needed": ratio(saved, _prompt_tokens(every)),
        "accuracy_as_needed_minus_always": difference(_right(needed), _right(every)),
        "accuracy_as_needed_minus_without": difference(_right(needed), _right(small)),
        "cascade_without": _way(shown["climbed"], large),
        "cascade_shown_as_needed": _way(shown["climbed-shown"], large),
        "cascade_accuracy_gain": difference(_right(shown["climbed-shown"]), _right(shown["climbed"])),
        "cascade_half_asked_before": _way(remembered, large) | {"replayed": replayed},
        "answer_in_sight": mean(_right(in_sight)),
    }


def _way(replies: Sequence[Reply], large: Sequence[Reply]) -> dict[str, Any]:
    return {
        "accuracy": mean(_right(replies)),
        "prompt_tokens": mean(_prompt_tokens(replies)),
        "cost_ratio": ratio([r.cost_usd for r in replies], [r.cost_usd for r in large]),
    }


def _right(replies: Sequence[Reply]) -> list[float]:
    return [float(reply.right) for reply in replies]


def _prompt_tokens(replies: Sequence[Reply]) -> list[float]:
    return [float(reply.tokens[0]) for reply in replies]
