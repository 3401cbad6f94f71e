"""Every router by the name that a route's configuration may give, or by an artefact's path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.artifact import ArtifactError, Card, load_artifact, save_artifact
from routers.bandit import THOMPSON, Bandit, learnt_axes
from routers.cost import Latency, LogLinear
from routers.estimators.base import Estimator
from routers.estimators.clusters import Clusters
from routers.estimators.contrastive import Contrastive
from routers.estimators.decided import Decided
from routers.estimators.domain import Domain
from routers.estimators.ensemble import Ensemble
from routers.estimators.factor import Factor
from routers.estimators.general import General
from routers.estimators.knn import NearestNeighbours
from routers.estimators.linear import Linear
from routers.estimators.mlp import Perceptron
from routers.estimators.preference import Preference, SimilarWins
from routers.estimators.stacked import Stacked
from routers.estimators.task_mean import TaskMean
from routers.features import shipped_version
from routers.plugin import Learned, PluginRouter
from routers.projection import Projection
from routers.select import Exploration
from routers.simple import Cheapest, Rules, Weighted
from routers.types import Router

ESTIMATORS: Mapping[str, type[Estimator]] = {
    kind.kind: kind
    for kind in (
        TaskMean, NearestNeighbours, Linear, Factor, Preference, SimilarWins,
        Clusters, Domain, Contrastive, Perceptron, General, Ensemble, Stacked, Decided,
    )
}  # fmt: skip
PLUGINS = "headgate.estimators"
"""Group of the entry points by which an installed package adds estimators; the name is the class's `kind`."""
LEARNED_NAMES = ("default", *ESTIMATORS, "bandit")
NAMES = ("rules", "weighted", "cheapest", *LEARNED_NAMES)
DEFAULT_ARTIFACT = Path(__file__).parent / "weights" / "default.safetensors"

LEAST_EXPLORATION = 0.02
"""Exploration floor of a bandit whose route states none."""

Arrays = Mapping[str, NDArray[Any]]


def open_router(
    name: str,
    *,
    rules: Sequence[Mapping[str, object]] = (),
    weights: Mapping[str, float] | None = None,
    explore: float = 0.0,
    online: bool = False,
) -> Router:
    """The router of that name, or of the artefact at that path. A learned router without an artefact
    knows only prices until it is trained. `online`: a bandit goes on learning upon it, as upon the default under the
    name "bandit". ValueError names what is wrong.
    """
    if online or name == "bandit":
        base = open_router("default" if name == "bandit" else name, rules=rules, weights=weights, explore=explore)
        return bandit_upon(base, explore)
    if not 0.0 <= explore <= 1.0:
        raise ValueError(f"explore: {explore} is not between 0 and 1")
    if name == "rules":
        return Rules(rules)
    if name == "weighted":
        return Weighted(weights)
    if name == "cheapest":
        return Cheapest()
    exploration = Exploration(floor=explore)
    if name == "default" and DEFAULT_ARTIFACT.exists():
        return load_router(DEFAULT_ARTIFACT, exploration)
    if name in LEARNED_NAMES:
        return PluginRouter(name, "0", shipped_version(), exploration=exploration)
    if "/" in name or name.endswith(".safetensors"):
        return load_router(Path(name), exploration)
    raise ValueError(f"router {name!r} is unknown: name a file, or one of {', '.join(NAMES)}")


def bandit_upon(base: Router, explore: float = 0.0) -> Router:
    """A bandit on top of `base`, which learns what the base does not predict; `base` itself where it can't be learned
    upon. A bandit must explore: without a stated floor it does a little.
    """
    if not isinstance(base, PluginRouter):
        return base
    return Bandit(base, bandit_axes(), rule=THOMPSON, exploration=Exploration(floor=explore or LEAST_EXPLORATION))


@cache
def bandit_axes() -> Projection:
    """The axes of all bandits, whatever their base: those of the shipped artefact, so that the sums of any two bandits
    are comparable.
    """
    card, arrays = load_artifact(DEFAULT_ARTIFACT, shipped_version())
    learned = _restore(card, arrays)
    assert isinstance(learned.quality, Linear)
    return learnt_axes(learned.projection, learned.quality)


def estimator_named(name: str) -> Estimator:
    """A new estimator of that kind; "default" gives a `Decided`, and "bandit" a `Linear`. Raises ValueError for a name
    that does not learn.
    """
    return _kind({"default": "decided", "bandit": "linear"}.get(name, name))()


def _kind(name: str) -> type[Estimator]:
    """The estimator class of that name, ours or an installed package's; an artefact holds only the name."""
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    added = entry_points(group=PLUGINS)
    if name not in added.names:
        raise ValueError(f"router {name!r} does not learn; those that do: {', '.join((*LEARNED_NAMES, *added.names))}")
    kind: type[Estimator] = added[name].load()
    if getattr(kind, "kind", None) != name:
        raise ValueError(f"{added[name].value}: its `kind` is not {name!r}, as its entry point of {PLUGINS} says")
    return kind


def load_router(path: Path, exploration: Exploration | None = None) -> PluginRouter:
    """The router of an artefact. Raises ArtifactError where this build can't serve it."""
    card, arrays = load_artifact(path, shipped_version())
    try:
        learned = _restore(card, arrays)
    except KeyError as error:
        raise ArtifactError(f"{path}: no {error}") from error
    except (TypeError, ValueError, IndexError) as error:
        raise ArtifactError(f"{path}: not a router that this build can serve ({error})") from error
    taught_by = "" if path == DEFAULT_ARTIFACT else card.data_checksum
    return PluginRouter(card.kind, card.version, card.features_version, learned, exploration, taught_by)


def save_router(path: Path, router: PluginRouter, card: Card) -> None:
    """Write a trained router with its card; the router's own fields override the card's."""
    learned = router.learned
    if learned is None:
        raise ValueError(f"router {router.name!r} has learnt nothing to save")
    arrays: dict[str, NDArray[Any]] = {}
    parts: dict[str, Any] = {
        "projection": learned.projection,
        "quality": learned.quality,
        "cost": learned.cost,
        "output_tokens": learned.output_tokens,
        "latency": learned.latency,
    }
    for part, estimator in parts.items():
        if estimator is not None:
            arrays |= {f"{part}.{name}": array for name, array in estimator.state().items()}
    parameters = {
        "quality": {"kind": learned.quality.kind, **learned.quality.parameters()},
        "reference_usd": learned.reference_usd,
    }
    save_artifact(
        path,
        Card(
            router.name, router.version, router.features_version, learned.models, parameters,
            card.parent, card.data_checksum, card.trained_on, card.metrics,
        ),
        arrays,
    )  # fmt: skip


def _restore(card: Card, arrays: Arrays) -> Learned:
    stated = dict(card.parameters["quality"])
    kind = _kind(stated.pop("kind"))
    return Learned(
        models=card.models,
        projection=Projection().restore(_part(arrays, "projection")),
        quality=kind(**stated).restore(_part(arrays, "quality")),
        cost=LogLinear().restore(_part(arrays, "cost")) if "cost.weights_" in arrays else None,
        output_tokens=(
            LogLinear().restore(_part(arrays, "output_tokens")) if "output_tokens.weights_" in arrays else None
        ),
        latency=Latency().restore(_part(arrays, "latency")) if "latency.first_s_" in arrays else None,
        reference_usd=float(card.parameters["reference_usd"]),
    )


def _part(arrays: Arrays, part: str) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(f"{part}."): np.asarray(array, _dtype(array))
        for name, array in arrays.items()
        if name.startswith(f"{part}.")
    }


def _dtype(array: NDArray[Any]) -> type[Any]:
    """The type to compute with: half precision is for the file only."""
    return np.float32 if array.dtype == np.float16 else array.dtype.type
