"""A router with other knobs than its route's: what a canary of a knob decides with.

What a request asked for itself stays in force; only where a knob is as the route has it is it turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from hashlib import sha256

from routers.types import Candidate, Choice, Knobs, Query, Router


class KnobOverride:
    """`base`: the route's knobs; `knobs`: those to decide with in their place."""

    def __init__(self, router: Router, base: Knobs, knobs: Knobs) -> None:
        self.name, self.version, self.features_version = router.name, router.version, router.features_version
        self._router = router
        self._changes = {
            field.name: (getattr(base, field.name), getattr(knobs, field.name))
            for field in fields(Knobs)
            if field.name != "explore" and getattr(base, field.name) != getattr(knobs, field.name)
        }
        self.suffix = "+" + sha256(repr(sorted(self._changes.items())).encode()).hexdigest()[:8]
        """Of the label: tells decisions made with these knobs from the others."""

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        """Decide with the knobs overridden. Undecided where the router is."""
        mine = {name: after for name, (before, after) in self._changes.items() if getattr(knobs, name) == before}
        choice = self._router.choose(query, candidates, replace(knobs, **mine), draw)
        return replace(choice, router=choice.router + self.suffix)
