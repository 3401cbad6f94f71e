"""A trained cascade as a file: heads, rules and what each rule achieved, and from it a plan for any request.

The file is the routers' kind of artefact (safetensors, a JSON card, a checksum, no pickle). Heads and rules lie in
flat arrays in the order that the space enumerates its states, so that the space alone says what is what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.posterior import Matrix, Posterior, Rule, Space, State
from cascade.posterior_fit import cheapest_matching
from cascade.routing import routed_plan
from cascade.types import Limits, Plan, Step
from routers.artifact import ArtifactError, Card, load_artifact, save_artifact
from routers.types import Choice, Estimate

KIND = "cascade-routing"


@dataclass(frozen=True, slots=True)
class FittedCascade:
    """Everything a gateway needs to plan climbs by cascade routing."""

    posterior: Posterior
    rules: Sequence[Rule] = field(repr=False)
    held_out: Matrix
    """(rules, 2): mean cost and quality on held-out training rows."""
    best_single: float
    """Quality of the best single model on the training rows."""
    typical: Mapping[str, tuple[float, float]]
    """Mean quality and cost of each model, for one that a router says nothing of."""

    def rule_for(self, share: float = 1.0) -> Rule:
        """The cheapest rule that held that share of the best single model's quality on held-out training rows."""
        return self.rules[cheapest_matching(self.held_out, share * self.best_single)]

    def plan(
        self,
        choice: Choice,
        worst_cost_usd: Mapping[str, float],
        *,
        share: float = 1.0,
        limits: Limits | None = None,
        retries: int = 1,
        fallbacks: Sequence[str] = (),
        abstain_below: float = 0.0,
    ) -> Plan:
        """A plan for one request. A model that isn't eligible or has no price now is never asked."""
        told = {e.model: e for e in choice.estimates if np.isfinite(e.quality + e.cost_usd)}
        estimates = [told.get(m) or Estimate(m, q, 1.0, usd) for m, (q, usd) in self.typical.items()]
        eligible = set(choice.probabilities) - set(choice.excluded)
        absent = frozenset(m for m in self.typical if m not in eligible or m not in worst_cost_usd)
        spare = [m for m in (*choice.ranked, *fallbacks) if m in worst_cost_usd and m not in self.typical]
        return routed_plan(
            self.posterior,
            self.rule_for(share),
            estimates,
            worst_cost_usd,
            absent=absent,
            limits=limits,
            retries=retries,
            abstain_below=abstain_below,
            fallbacks=tuple(Step(m, worst_cost_usd=worst_cost_usd[m]) for m in dict.fromkeys(spare)),
        )


def save_cascade(path: Path, cascade: FittedCascade, *, version: str, data_checksum: str = "") -> None:
    space = cascade.posterior.space
    card = Card(
        KIND, version, "", space.models,
        parameters={"pool": list(space.pool), "depth": space.depth, "readings": list(space.readings),
                    "best_single": cascade.best_single},
        data_checksum=data_checksum,
    )  # fmt: skip
    rules = [
        np.concatenate([rule.ahead[s].ravel() for s in space.states() if s in rule.ahead]) for rule in cascade.rules
    ]
    arrays: dict[str, NDArray[Any]] = {
        "heads": np.concatenate([w for state in space.states() for w in cascade.posterior.weights[state]]),
        "head_sizes": np.array([len(w) for state in space.states() for w in cascade.posterior.weights[state]]),
        "kinds": cascade.posterior.kinds,
        "rules": np.stack(rules),
        "rates": np.array([rule.rate for rule in cascade.rules]),
        "held_out": cascade.held_out,
        "typical": np.array([cascade.typical[m] for m in space.models]),
    }
    save_artifact(path, card, arrays)


def load_cascade(path: Path) -> FittedCascade:
    """ArtifactError where the file is not a cascade, or its arrays don't fill its space."""
    card, arrays = load_artifact(path)
    if card.kind != KIND:
        raise ArtifactError(f"{path}: kind {card.kind!r} is not {KIND!r}")
    try:
        p = card.parameters
        space = Space(card.models, tuple(p["pool"]), int(p["depth"]), tuple(bool(r) for r in p["readings"]))
        m = len(space.models)
        cuts = np.split(arrays["heads"], np.cumsum(arrays["head_sizes"])[:-1])
        states = space.states()
        weights = {state: cuts[i * m : (i + 1) * m] for i, state in enumerate(states)}
        rules = [
            Rule(float(rate), dict(_ahead(space, flat)))
            for rate, flat in zip(arrays["rates"], arrays["rules"], strict=True)
        ]
        typical = {name: (float(q), float(usd)) for name, (q, usd) in zip(space.models, arrays["typical"], strict=True)}
        posterior = Posterior(space, weights, arrays.get("kinds", np.zeros((1 + m, 0))))
        return FittedCascade(posterior, rules, arrays["held_out"], float(p["best_single"]), typical)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ArtifactError(f"{path}: not a whole cascade ({error})") from error


def _ahead(space: Space, flat: Matrix) -> Iterator[tuple[State, Matrix]]:
    """Cuts a rule's flat array into one (d, actions) matrix per state that goes on."""
    at, m = 0, len(space.models)
    for state in space.states():
        actions = len(space.actions(state))
        if actions:
            d = value_columns(state, m)
            yield state, flat[at : at + d * actions].reshape(d, actions)
            at += d * actions
    if at != len(flat):
        raise ValueError(f"{len(flat)} numbers in a rule that needs {at}")


def value_columns(state: State, models: int) -> int:
    """Columns of `value_design` in that state."""
    answered = len(state)
    return 3 + (4 if answered else 0) + (answered if answered > 1 else 0) + (models - answered)
