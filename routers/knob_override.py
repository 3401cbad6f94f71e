"""A router that replaces some of its route's knobs: what a canary of changed knobs decides with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from hashlib import sha256

from routers.types import Candidate, Choice, Knobs, Query, Router


class KnobOverride:
    """Decides with `knobs` in place of the route's own, `base`. A knob that the request itself set to another value
    stays as the request has it.
    """

    def __init__(self, router: Router, base: Knobs, knobs: Knobs) -> None:
        self.name, self.version, self.features_version = router.name, router.version, router.features_version
        self._router = router
        self._changes = {
            field.name: (getattr(base, field.name), getattr(knobs, field.name))
            for field in fields(Knobs)
            if field.name != "explore" and getattr(base, field.name) != getattr(knobs, field.name)
        }
        self.suffix = "+" + sha256(repr(sorted(self._changes.items())).encode()).hexdigest()[:8]
        """Added to the router's label, so that decisions with these knobs can be told from the others."""

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        """Choose with the knobs replaced. Raises Undecided where the router does."""
        mine = {name: after for name, (before, after) in self._changes.items() if getattr(knobs, name) == before}
        choice = self._router.choose(query, candidates, replace(knobs, **mine), draw)
        return replace(choice, router=choice.router + self.suffix)
