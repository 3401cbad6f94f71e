"""The training of the shipped models, for a few steps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.progress import Progress

from local_models import shipped_models
from local_models.engine import Engine, EngineOptions
from local_models.manifest import verify_manifest
from local_models.train_tiny import RECIPES, TinyLlama, held_out_score, hugging_face_tensors, save, train
from tests.local_models.checkpoints import greedy, prompts, run

SHORT = replace(RECIPES["tiny-small"], steps=12, batch=16)


@pytest.fixture(scope="module")
def model() -> TinyLlama:
    return train(SHORT, Progress(disable=True), "short")


def test_the_same_recipe_gives_the_same_weights(model: TinyLlama) -> None:
    """The same recipe gives equal weights."""
    again = train(SHORT, Progress(disable=True), "again")
    for name, tensor in hugging_face_tensors(model).items():
        assert torch.equal(tensor, hugging_face_tensors(again)[name])
    other = train(replace(SHORT, seed=1), Progress(disable=True), "other")
    assert not torch.equal(other.embedding, model.embedding)


def test_the_saved_folder_equals_the_trained_model(model: TinyLlama, tmp_path: Path) -> None:
    """The engine chooses from the folder the token that the trainer's own forward pass finds most likely."""
    save(model, tmp_path, {"booking": held_out_score(model, "booking", 10)})
    assert verify_manifest(tmp_path)
    prompt = prompts(1, seed=1)[0]
    answer = run(Engine.load(tmp_path, EngineOptions(kv_tokens=256)), [greedy("a", prompt, 1)])["a"]
    with torch.inference_mode():
        assert answer.ids[0] == int(model(torch.tensor([prompt]))[0, -1].argmax())


@pytest.mark.parametrize("name", RECIPES)
def test_the_shipped_models_state_their_recipe(name: str) -> None:
    """The recipe in a shipped manifest is the one in the code."""
    manifest = json.loads((shipped_models()[name] / "manifest.json").read_text())
    recipe = {**manifest["recipe"], "mix": tuple(tuple(pair) for pair in manifest["recipe"]["mix"])}
    assert RECIPES[name] == type(RECIPES[name])(**recipe)
