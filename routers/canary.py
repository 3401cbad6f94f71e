"""A new router for a share of the traffic: two routers as one, with exact probabilities.

One draw decides both who decides and what is chosen, so a choice repeats. The propensity of a model is that of the
mixture, whichever of the two decided: what is logged stays valid for off-policy evaluation. Who decided is in the
choice's router label, so the two halves are also a randomised comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from routers.types import Candidate, Choice, Knobs, Query, Router, Undecided


class Canary:
    """`share` of the requests are decided by the candidate, the rest by the incumbent."""

    def __init__(self, incumbent: Router, candidate: Router, share: float) -> None:
        if not 0.0 < share < 1.0:
            raise ValueError(f"share: {share} is not between 0 and 1")
        self.incumbent, self.candidate, self.share = incumbent, candidate, share
        self.name, self.version = incumbent.name, incumbent.version
        self.features_version = incumbent.features_version or candidate.features_version

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        """Raises Undecided where the incumbent does. Where only the candidate can't decide, the incumbent decides
        alone.
        """
        share = self.share
        tried = draw < share
        try:
            theirs = self.candidate.choose(query, candidates, knobs, draw / share if tried else draw)
        except Undecided:
            return self.incumbent.choose(query, candidates, knobs, draw)
        ours = self.incumbent.choose(query, candidates, knobs, draw if tried else (draw - share) / (1.0 - share))
        mixed = {
            model: share * theirs.probabilities.get(model, 0.0) + (1.0 - share) * ours.probabilities.get(model, 0.0)
            for model in {**ours.probabilities, **theirs.probabilities}
        }
        choice = theirs if tried else ours
        return replace(choice, probabilities=mixed, propensity=mixed[choice.model])
