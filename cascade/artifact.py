"""A trained cascade as a file, and from it a plan for any request: cascade routing, a chain, or verified drafts.

The file is the routers' kind of artefact (safetensors, a JSON card, a checksum, no pickle). Heads and rules lie in
flat arrays in the order that the space enumerates its states, so that the space alone says what is what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.calibrate import RISKS
from cascade.frugal import Chosen, FrugalCascade
from cascade.planner import Typical
from cascade.posterior import Matrix, Posterior, Rule, Space, State, value_columns
from cascade.routing import RoutedCascade
from cascade.verified import Pair, VerifiedCascade
from cascade.verify import Pomdp
from routers.artifact import Arrays, ArtifactError, Card, load_artifact, save_artifact

KIND, FRUGAL, VERIFIED = "cascade-routing", "cascade-frugal", "cascade-verified"


TrainedCascade = RoutedCascade | FrugalCascade | VerifiedCascade
"""What a route's `cascade` may name by its file: each plans climbs by `plan`; one that `writes` needs the chat."""


def save_cascade(path: Path, cascade: TrainedCascade, *, version: str, data_checksum: str = "") -> None:
    kind, models, parameters, arrays = _parts(cascade)
    parameters["best_single"] = cascade.best_single
    save_artifact(path, Card(kind, version, "", models, parameters, data_checksum=data_checksum), arrays)


def load_cascade(path: Path) -> TrainedCascade:
    """ArtifactError where the file is not a cascade, or its arrays don't fill its space."""
    card, arrays = load_artifact(path)
    if card.kind not in _READERS:
        raise ArtifactError(f"{path}: kind {card.kind!r} is none of {', '.join(_READERS)}")
    try:
        return _READERS[card.kind](card, arrays)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ArtifactError(f"{path}: not a whole cascade ({error})") from error


def _parts(cascade: TrainedCascade) -> tuple[str, tuple[str, ...], dict[str, Any], dict[str, NDArray[Any]]]:
    """Kind, models, parameters and arrays of its file."""
    if isinstance(cascade, VerifiedCascade):
        pairs = [(p.draft, p.escalate, p.quality, p.cost_usd) for p in cascade.pairs]
        rules = [(p.rule.keep, p.rule.escalate) for p in cascade.pairs]
        names = tuple(sorted({name for p in cascade.pairs for name in (p.draft, p.escalate)}))
        return VERIFIED, names, {"pairs": pairs}, {"rules": np.array(rules)}
    posterior = cascade.posterior
    space, heads = posterior.space, [w for state in posterior.space.states() for w in posterior.weights[state]]
    parameters = {"pool": list(space.pool), "depth": space.depth, "readings": list(space.readings)}
    arrays: dict[str, NDArray[Any]] = {
        "heads": np.concatenate(heads),
        "head_sizes": np.array([len(w) for w in heads]),
        "kinds": posterior.kinds,
        "typical": np.array([cascade.typical[m] for m in space.models]),
    }
    if isinstance(cascade, FrugalCascade):
        chains = [(c.models, c.accept_at, c.quality, c.cost_usd) for c in cascade.chains]
        return FRUGAL, space.models, parameters | {"chains": chains}, arrays
    flat = [
        np.concatenate([rule.ahead[s].ravel() for s in space.states() if s in rule.ahead]) for rule in cascade.rules
    ]
    for name in ("gains", "spends"):
        weights = [getattr(rule, name) for rule in cascade.rules]
        if all(one is not None for one in weights):
            arrays[name] = np.stack(weights)
    arrays |= {
        "rules": np.stack(flat), "rates": np.array([r.rate for r in cascade.rules]), "held_out": cascade.held_out,
        "sure": cascade.sure,
    }  # fmt: skip
    return KIND, space.models, parameters, arrays


def _posterior(card: Card, arrays: Arrays) -> tuple[Posterior, Typical]:
    p, m = card.parameters, len(card.models)
    space = Space(card.models, tuple(p["pool"]), int(p["depth"]), tuple(bool(r) for r in p["readings"]))
    cuts = np.split(arrays["heads"], np.cumsum(arrays["head_sizes"])[:-1])
    weights = {state: cuts[i * m : (i + 1) * m] for i, state in enumerate(space.states())}
    typical = {name: (float(q), float(usd)) for name, (q, usd) in zip(card.models, arrays["typical"], strict=True)}
    return Posterior(space, weights, arrays.get("kinds", np.zeros((1 + m, 0)))), typical


def _routed(card: Card, arrays: Arrays) -> RoutedCascade:
    posterior, typical = _posterior(card, arrays)
    count = len(arrays["rates"])
    rules = [
        Rule(float(rate), dict(_ahead(posterior.space, flat)), gains, spends)
        for rate, flat, gains, spends in zip(
            arrays["rates"], arrays["rules"], *(arrays.get(name, [None] * count) for name in ("gains", "spends")),
            strict=True,
        )
    ]  # fmt: skip
    best, sure = float(card.parameters["best_single"]), arrays.get("sure", np.full((0, len(RISKS)), inf))
    if sure.shape not in ((len(rules), len(RISKS)), (0, len(RISKS))):
        raise ValueError("thresholds for other rules or risks than it has")
    return RoutedCascade(posterior, rules, arrays["held_out"], best, typical, sure)


def _frugal(card: Card, arrays: Arrays) -> FrugalCascade:
    posterior, typical = _posterior(card, arrays)
    chains = [
        Chosen(tuple(int(j) for j in models), tuple(map(float, accept_at)), float(quality), float(cost_usd))
        for models, accept_at, quality, cost_usd in card.parameters["chains"]
    ]
    if not chains or any(len(c.models) != len(c.accept_at) + 1 or max(c.models) >= len(card.models) for c in chains):
        raise ValueError("a chain names a model that is not there, or no threshold for it")
    return FrugalCascade(posterior, tuple(chains), float(card.parameters["best_single"]), typical)


def _verified(card: Card, arrays: Arrays) -> VerifiedCascade:
    pairs = [
        Pair(draft, escalate, Pomdp(tuple(rule[0].tolist()), tuple(rule[1].tolist())), float(quality), float(cost_usd))
        for (draft, escalate, quality, cost_usd), rule in zip(card.parameters["pairs"], arrays["rules"], strict=True)
    ]
    if not pairs or any({pair.draft, pair.escalate} - set(card.models) for pair in pairs):
        raise ValueError("no pair, or one of models that are not there")
    return VerifiedCascade(tuple(pairs), float(card.parameters["best_single"]))


_READERS: Mapping[str, Callable[[Card, Arrays], TrainedCascade]] = {
    KIND: _routed, FRUGAL: _frugal, VERIFIED: _verified
}  # fmt: skip


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
