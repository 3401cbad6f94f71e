"""A decision as people and scripts read it: dollars instead of nano-dollars, no raw vectors."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.journal.record import DecisionRecord


def decision_view(record: DecisionRecord) -> dict[str, Any]:
    """What `GET /v1/decisions/{id}` and `headgate explain` show."""
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
