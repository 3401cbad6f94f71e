from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from routers.artifact import ArtifactError, Card
from routers.features import shipped_featurizer
from routers.plugin import Learned, PluginRouter
from routers.projection import Projection
from routers.registry import ESTIMATORS, NAMES, estimator_named, load_router, open_router, save_router
from routers.types import Knobs
from tests.routers.test_plugin import LEARNED
from tests.routers.worlds import MODELS, POOL, world


@pytest.mark.parametrize("name", NAMES)
def test_every_name_opens_and_chooses(name: str) -> None:
    """Each name in the configuration gives a router that decides before it has learned anything."""
    router = open_router(name, rules=[{"model": "small"}], explore=0.1)
    query = shipped_featurizer().describe("Why is the sky blue?")
    choice = router.choose(query, POOL, Knobs(), 0.5)
    assert choice.model in choice.probabilities
    assert choice.router == f"{router.name}@{router.version}"


@pytest.mark.parametrize(("name", "message"), [("nonesuch", "unknown"), ("./no.safetensors", "no such file")])
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    """A misspelt router or a missing artefact raises an error at the start."""
    with pytest.raises(ValueError, match=message):
        open_router(name)


def test_explore_outside_its_range_is_refused() -> None:
    """An exploration floor is a probability."""
    with pytest.raises(ValueError, match="explore"):
        open_router("default", explore=1.5)


def test_a_saved_router_chooses_the_same(tmp_path: Path) -> None:
    """The artefact has everything that a choice depends on."""
    version = shipped_featurizer().version
    path = tmp_path / "r.safetensors"
    before = PluginRouter("linear", "7", version, LEARNED)
    save_router(path, before, Card("linear", "7", version, LEARNED.models, metrics={"aiq": 0.8}))
    after = load_router(path)
    x = np.random.default_rng(0).normal(size=8).astype(np.float32)
    query = shipped_featurizer().describe("x")
    object.__setattr__(query, "vector", x)
    old, new = (r.choose(query, POOL, Knobs(), 0.5) for r in (before, after))
    assert (old.model, old.ranked, old.probabilities) == (new.model, new.ranked, new.probabilities)
    assert [e.quality for e in old.estimates] == pytest.approx([e.quality for e in new.estimates])
    assert [e.cost_usd for e in old.estimates] == pytest.approx([e.cost_usd for e in new.estimates])
    assert (after.name, after.version) == ("linear", "7")


def test_an_artefact_without_an_array_is_refused(tmp_path: Path) -> None:
    """The error names the missing array."""
    from routers.artifact import save_artifact

    path = tmp_path / "r.safetensors"
    parameters = {"quality": {"kind": "linear"}, "reference_usd": 0.0}
    save_artifact(path, Card("linear", "1", shipped_featurizer().version, ("a",), parameters), {"z": np.zeros(1)})
    with pytest.raises(ArtifactError, match="mean_"):
        load_router(path)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_every_kind_survives_its_artefact(tmp_path: Path, kind: str) -> None:
    """Whichever estimator was trained, the loaded router gives the same estimates."""
    data, _ = world(200)
    projection = Projection(8).fit(data.x)
    quality = ESTIMATORS[kind]().fit(replace(data, x=projection.apply(data.x).astype(float)))
    version, path = shipped_featurizer().version, tmp_path / "r.safetensors"
    before = PluginRouter(kind, "1", version, Learned(MODELS, projection, quality))
    save_router(path, before, Card(kind, "1", version, MODELS))
    query = replace(shipped_featurizer().describe("x"), vector=data.x[3].astype(np.float32))
    old, new = (r.choose(query, POOL, Knobs(), 0.5).estimates for r in (before, load_router(path)))
    assert [e.quality for e in old] == pytest.approx([e.quality for e in new], abs=1e-4)


MINE = """
import numpy as np
from routers.estimators.base import Estimator, observed_mean

class Mine(Estimator):
    kind = "mine"
    PARAMETERS = ("count",)
    LEARNED = ("mean_",)

    def __init__(self, count=4.0):
        self.count = count

    def fit(self, data):
        self.mean_ = observed_mean(data.scores, self.count)
        return self

    def predict(self, x, tasks=None):
        return np.tile(self.mean_, (len(x), 1)), np.full((len(x), len(self.mean_)), 0.1)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with an estimator of its own."""
    told = tmp_path / "mine-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = "[headgate.estimators]\nmine = mine_of_test:Mine\nours = mine_of_test:Mine\n"
    (told / "entry_points.txt").write_text(points)
    (tmp_path / "mine_of_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_installed_packages_estimator_is_trained_and_served(package: Path) -> None:
    """It is used by the name of its entry point; the artefact holds that name and no code."""
    data, _ = world(200)
    projection = Projection(8).fit(data.x)
    quality = estimator_named("mine").fit(replace(data, x=projection.apply(data.x).astype(float)))
    version, path = shipped_featurizer().version, package / "r.safetensors"
    before = PluginRouter("mine", "1", version, Learned(MODELS, projection, quality))
    save_router(path, before, Card("mine", "1", version, MODELS))
    query = replace(shipped_featurizer().describe("x"), vector=data.x[3].astype(np.float32))
    old, new = (r.choose(query, POOL, Knobs(), 0.5).estimates for r in (before, load_router(path)))
    assert [e.quality for e in old] == pytest.approx([e.quality for e in new], abs=1e-4)


def test_an_artefact_of_a_package_that_is_not_installed_is_refused(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what is missing."""
    version, path = shipped_featurizer().version, package / "r.safetensors"
    data, _ = world(40)
    projection = Projection(8).fit(data.x)
    quality = estimator_named("mine").fit(replace(data, x=projection.apply(data.x).astype(float)))
    made = PluginRouter("mine", "1", version, Learned(MODELS, projection, quality))
    save_router(path, made, Card("mine", "1", version, MODELS))
    monkeypatch.setattr("sys.path", [one for one in sys.path if one != str(package)])
    with pytest.raises(ArtifactError, match="'mine' does not learn"):
        load_router(path)


def test_an_entry_point_of_another_name_is_refused(package: Path) -> None:
    """The artefact names the class by its kind, so it couldn't be read again."""
    with pytest.raises(ValueError, match="mine_of_test:Mine: its `kind` is not 'ours'"):
        estimator_named("ours")
    with pytest.raises(ValueError, match=r"bandit, (mine, ours|ours, mine)"):
        estimator_named("nonesuch")
