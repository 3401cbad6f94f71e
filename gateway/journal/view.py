"""Decisions for people and scripts: in dollars instead of nano-dollars, and without vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.journal.record import DecisionRecord

MISSES = {
    "empty": "nothing like it had been asked before",
    "far": "no question before was near enough",
    "unlearnt": "what may be served has not been learnt yet",
    "bound": "no score keeps the bound on wrong answers (cache_eps)",
    "unproven": "the nearest answer was never judged right for other words",
    "score": "the nearest answer was not sure enough",
    "gone": "the nearest answer was deleted, or the store is away",
    "old": "the nearest answer was older than the request allows",
    "text": "the question is too long, or has no words to go by",
    "form": "the request does not end in one plain text of its user",
    "vector": "its vector can't be compared",
    "embedder_late": "the embedder took too long",
    "embedder_busy": "the embedder was still at questions before",
    "embedder_failed": "the embedder failed",
}
"""Reasons for which the semantic cache served nothing; any other reason is the name of the guard that objected."""


def miss_told(why: Mapping[str, Any]) -> str:
    """The reason for a miss in `cache_why`, in words; empty where the semantic cache was not asked."""
    name = str(why.get("why", ""))
    if not name:
        return ""
    if name.startswith("refused:"):
        text = f"answers to other words are not given where {name.removeprefix('refused:')} is stated"
    else:
        text = MISSES.get(name, f"the nearest question differs in {name}")
    if "threshold" in why:
        text += f" (score {why['score']:.3f}, needed {why['threshold']:.3f})"
    return f"{text} (similarity {why['similarity']:.3f})" if "similarity" in why else text


def cases_told(shown: int | None) -> str:
    """The meaning of `cases_shown`, in words; empty where no solved cases were found or searched for."""
    if shown is None:
        return ""
    if not shown:
        return "solved cases were found but withheld, to measure their worth"
    return "1 solved case was shown" if shown == 1 else f"{shown} solved cases were shown"


def decision_view(record: DecisionRecord) -> dict[str, Any]:
    """The decision as `GET /v1/decisions/{id}` and `headgate explain` show it."""
    fields = {
        field.name: getattr(record, field.name)
        for field in msgspec.structs.fields(record)
        if field.name not in ("vector", "prompt_text", "answer_text")
    }
    view: dict[str, Any] = {"object": "decision", **msgspec.to_builtins(fields)}
    for name in [name for name in view if name.endswith("_nanousd")]:
        view[name.removesuffix("_nanousd") + "_usd"] = view.pop(name) / 1e9
    for attempt in view["attempts"]:
        attempt["cost_usd"] = attempt.pop("cost_nanousd", 0) / 1e9
    if record.prompt_text:
        view["prompt_text"], view["answer_text"] = record.prompt_text, record.answer_text
    return view
