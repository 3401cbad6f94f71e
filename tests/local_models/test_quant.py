"""Weights in 8 and 4 bits: rounding, packing, saving, and their effect on answers."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from local_models import quantized_models, shipped_models
from local_models.decoder import Decoder
from local_models.engine import Engine, EngineOptions
from local_models.errors import CheckpointError
from local_models.manifest import verify_manifest
from local_models.products import Int8Rows, int8_levels
from local_models.quant import fine_quantize, pack4, quantize, quantize_folder, relative_error, unpack4
from local_models.request import Request
from local_models.tasks import KINDS, held_out_questions, is_right
from tests.local_models.checkpoints import codec, greedy, prompts, run


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def exact_match(folder: Path, **options: object) -> dict[str, float]:
    """Share of right answers to held-out questions, by kind."""
    questions = [q for kind in KINDS for q in held_out_questions(100, seed=8, shares={kind: 1.0})]
    engine = Engine.load(folder, EngineOptions(kv_tokens=8192, **options))  # type: ignore[arg-type]
    requests = [
        Request(str(at), tuple(codec().encode_chat([{"role": "user", "content": question.prompt}])), 40)
        for at, question in enumerate(questions)
    ]
    answers = run(engine, requests, audit=False)
    right = [is_right(question, answers[str(at)].text) for at, question in enumerate(questions)]
    return {kind: sum(right[at * 100 : at * 100 + 100]) / 100 for at, kind in enumerate(KINDS)}


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([2, 8, 32]), st.integers(0, 2**31))
def test_four_bit_packing_is_lossless(rows: int, groups: int, group: int, seed: int) -> None:
    """Unpacking returns every value from -8 to 7, from half the bytes."""
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-8, 8, (rows, groups * group), generator=generator, dtype=torch.int8)
    packed = pack4(integers, group)
    assert packed.numel() * 2 == integers.numel()
    assert torch.equal(unpack4(packed, group), integers)


@settings(deadline=None)
@given(st.sampled_from([4, 8]), st.sampled_from([8, 16, 64]), st.integers(0, 2**31))
def test_rounding_errs_by_at_most_half_a_step(bits: int, group: int, seed: int) -> None:
    """No value differs from its weight by more than half its group's scale."""
    weight = matrix(6, 64, seed)
    packed = quantize(weight, bits, group)
    off = (packed.expand() - weight).abs().view(6, -1, group)
    assert bool((off <= packed.scales.unsqueeze(-1) * 0.5001).all())


def test_finer_groups_are_used_only_where_they_help() -> None:
    """A matrix with an outlier gets finer groups than a smooth one; one that four bits can't represent is kept in
    eight.
    """
    smooth = torch.sign(matrix(32, 256)) * 0.1
    assert fine_quantize(smooth, 4).group == 256
    spiky = smooth.clone()
    spiky[:, ::64] *= 12
    fine = fine_quantize(spiky, 4)
    assert fine.bits == 8 or fine.group < 256
    assert relative_error(spiky, fine) < relative_error(spiky, quantize(spiky, 4, 256))


@pytest.mark.skipif(int8_levels() is None, reason="no integer product on this processor")
def test_integer_products_are_exact_for_each_row() -> None:
    """They are near the dense product, and have the same bits in any batch."""
    weight = quantize(matrix(96, 128), 8, 128)
    product = Int8Rows(weight, torch.ones(96), most=int8_levels() or 0)
    x = matrix(40, 128, seed=2)
    y = product(x)
    expected = F.linear(x, weight.expand(), torch.ones(96))
    assert float((y - expected).norm() / expected.norm()) < 0.02
    for rows in (1, 2, 3, 7, 16):
        assert torch.equal(product(x[:rows]), y[:rows])
    scaled = x.clone()
    scaled[1:] *= 1000
    assert torch.equal(product(scaled)[0], y[0])


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_folder_answers_as_well(bits: int, tmp_path: Path) -> None:
    """Saved, loaded and served, its exact match is within a few percent for each kind."""
    source = shipped_models()["tiny-large"]
    errors = quantize_folder(source, tmp_path, bits)
    assert 0 < max(errors.values()) < {8: 0.02, 4: 0.15}[bits]
    full, less = exact_match(source), exact_match(tmp_path)
    assert all(less[kind] >= full[kind] - 0.03 for kind in full)


@pytest.mark.parametrize("name", sorted(quantized_models()))
def test_the_shipped_quantized_models_answer_as_well(name: str) -> None:
    """Each matches its manifest, is smaller than its source, and right nearly as often."""
    source, bits = name.rsplit("-int", 1)
    full, folder = shipped_models()[source], quantized_models()[name]
    assert verify_manifest(folder)
    sizes = [(one / "model.safetensors").stat().st_size for one in (folder, full)]
    assert sizes[0] < 0.4 * sizes[1]
    before, after = exact_match(full), exact_match(folder)
    assert all(after[kind] >= before[kind] - 0.03 for kind in before)
    assert bits in ("4", "8")


def test_quantizing_while_loading_equals_quantizing_the_folder(tmp_path: Path) -> None:
    """The answers are equal bit for bit, except for a tied output head."""
    source = shipped_models()["tiny-large"]
    quantize_folder(source, tmp_path, 8)
    loaded = Decoder.load(source, int8=True)
    saved = Decoder.load(tmp_path)
    x = matrix(5, 64)
    for one, other in zip(loaded.layers, saved.layers, strict=True):
        for name in ("qkv", "out", "gate_up"):
            assert torch.equal(getattr(one, name)(x), getattr(other, name)(x))


def test_without_the_integer_product_weights_are_dequantized(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU or torch version without it serves the same model more slowly."""
    monkeypatch.setattr("local_models.products.int8_levels", lambda: None)
    engine = Engine.load(shipped_models()["tiny-large"], EngineOptions(kv_tokens=1024, int8=True))
    ids = codec().encode_chat([{"role": "user", "content": "table friday 7pm for two"}])
    assert run(engine, [Request("a", tuple(ids), 40)])["a"].text == '{"n":2,"day":"fri","h":19}'


def test_int8_answers_do_not_depend_on_their_batch() -> None:
    """Sixteen concurrent requests get the same bits as each alone."""
    requests = [greedy(str(at), prompt, 12) for at, prompt in enumerate(prompts(16, seed=1))]

    def fresh() -> Engine:
        return Engine.load(shipped_models()["tiny-small"], EngineOptions(kv_tokens=4096, int8=True))

    together = run(fresh(), requests)
    for request in requests:
        single = run(fresh(), [request])[request.id]
        assert (single.ids, single.logprobs) == (together[request.id].ids, together[request.id].logprobs)


@pytest.mark.parametrize("damage", ["layout", "scales", "values", "manifest"])
def test_a_damaged_quantized_folder_is_an_error_at_load(damage: str, tmp_path: Path) -> None:
    """An invalid layout, wrong sizes and a changed byte are named."""
    quantize_folder(shipped_models()["tiny-small"], tmp_path, 8)
    layout = json.loads((tmp_path / "quantization.json").read_text())
    name = "model.layers.0.mlp.down_proj.weight"
    if damage == "layout":
        (tmp_path / "quantization.json").write_text("{")
    elif damage == "manifest":
        with (tmp_path / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x55")
    else:
        layout["matrices"][name]["group" if damage == "scales" else "bits"] = 4
        (tmp_path / "quantization.json").write_text(json.dumps(layout))
        (tmp_path / "manifest.json").unlink()
    with pytest.raises(CheckpointError):
        Decoder.load(tmp_path)
