"""Folders that are not valid models, and the error for each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from local_models import shipped_models
from local_models.decoder import Decoder
from local_models.engine import Engine
from local_models.errors import CheckpointError
from local_models.shape import read_shape
from local_models.text import TextCodec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a shipped model, without its manifest."""
    target = tmp_path / "model"
    shutil.copytree(shipped_models()["tiny-small"], target)
    (target / "manifest.json").unlink()
    return target


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def write_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)


def edit_tokenizer(folder: Path, more: dict[str, int], fewer: tuple[str, ...] = ()) -> None:
    path = folder / "tokenizer.json"
    held = json.loads(path.read_text())
    vocabulary = held["model"]["vocab"] | more
    held["model"]["vocab"] = {token: at for token, at in vocabulary.items() if token not in fewer}
    held["added_tokens"] = [token for token in held["added_tokens"] if token["content"] not in fewer]
    path.write_text(json.dumps(held))


def test_an_untouched_folder_loads(folder: Path) -> None:
    """The copy of a shipped model loads."""
    assert Decoder.load(folder).shape.parameters > 50_000


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "config.json").unlink(), r"no config\.json"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "unknown"),
        (lambda f: edit_config(f, architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel.*vLLM"),
        (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
        (lambda f: edit_config(f, num_attention_heads="many"), "num_attention_heads of the config is 'many'"),
        (lambda f: (f / "generation_config.json").write_text("{"), r"generation_config\.json is not JSON"),
        (lambda f: write_index(f, "{"), "is not JSON"),
        (lambda f: write_index(f, "{}"), "names no files"),
        (lambda f: write_index(f, '{"weight_map": {"a": "../other.safetensors"}}'), "outside the folder"),
        (lambda f: edit_config(f, hidden_act="gelu"), "gelu"),
        (lambda f: edit_config(f, rope_parameters={"rope_type": "yarn"}), "yarn"),
        (lambda f: edit_config(f, hidden_size=None), "config"),
        (lambda f: edit_config(f, vocab_size=97), r"embed_tokens.* \(97, 48\)"),
        (lambda f: edit_config(f, num_hidden_layers=3), r"lacks 9 tensors.*layers\.2"),
        (lambda f: (f / "model.safetensors").unlink(), r"no model\.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"not tensors at all"), "cannot be read"),
        (lambda f: edit_weights(f, lambda w: w.pop("model.norm.weight")), r"model\.norm\.weight"),
    ],
)
def test_an_invalid_folder_is_refused_by_file(folder: Path, damage: Callable[[Path], Any], says: str) -> None:
    """Its files are missing, broken, of another kind, or contradict each other."""
    damage(folder)
    with pytest.raises(CheckpointError, match=says):
        Decoder.load(folder)


def test_a_truncated_file_is_an_error(folder: Path) -> None:
    """A file with half of the weights is refused."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Decoder.load(folder)


def test_a_changed_byte_is_found_by_the_manifest(folder: Path) -> None:
    """A shipped model with changed weights is not served."""
    shutil.copy(shipped_models()["tiny-small"] / "manifest.json", folder / "manifest.json")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="differs from its manifest"):
        Decoder.load(folder)


def test_weights_in_several_files_are_one_model(folder: Path) -> None:
    """A sharded checkpoint is loaded by its index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert Decoder.load(folder).shape == read_shape(shipped_models()["tiny-small"])


def end_token(folder: Path) -> str:
    (end,) = read_shape(folder).end_ids
    vocabulary = TextCodec(folder).tokenizer.get_vocab(with_added_tokens=True)
    return next(token for token, token_id in vocabulary.items() if token_id == end)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: edit_tokenizer(f, {"zz": 4000}), "ids up to 4000, the model has 96: it is another's"),
        (lambda f: edit_tokenizer(f, {}, (end_token(f),)), "lacks the tokens .* that end this model's answers"),
        (lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer\.json"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "tokenizer_config.json").write_text("[]"), "no JSON object"),
        (lambda f: (f / "chat_template.jinja").write_text("{% for"), "chat template .* cannot be read"),
    ],
)
def test_an_invalid_tokenizer_is_an_error(folder: Path, damage: Callable[[Path], Any], says: str) -> None:
    """One of another model, a broken one and an invalid chat template are reported when the model is loaded."""
    damage(folder)
    with pytest.raises(CheckpointError, match=says):
        Engine.load(folder)
