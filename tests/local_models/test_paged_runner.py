"""The GPU's runner without a GPU: its kernels run in Triton's interpreter, and its answers are compared with
transformers'.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from local_models.quant import Packed, load_weights, quantize_folder
from local_models.shape import read_shape
from tests.local_models.checkpoints import generated, prompts, write_folder
from tests.local_models.test_kernels import run_python

_SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
# in a process of its own without transformers: the expected answers are passed to it
_ENGINE = """
import json, sys
from pathlib import Path
import torch
from local_models.decoder import Decoder
from local_models.engine import Engine, EngineOptions
from local_models.kernels import GroupLinear, RowsLinear
from local_models.paged_runner import PagedRunner
from local_models.request import Delta, Finished, Request
from local_models.speculate import Draft
from local_models.text import TextCodec

torch.set_num_threads(1)

def paged(folder, drafter=None, **options):
    decoder = Decoder.load(Path(folder), "float32", 16, paged=True)
    given = EngineOptions(**{"kv_tokens": 512, "step_tokens": 24, **options})
    engine = Engine(decoder, TextCodec(Path(folder)), given, drafter=drafter)
    assert isinstance(engine.runner, PagedRunner)
    return engine

def said_by(engine, asked, tokens):
    answers = {}
    for at, prompt in enumerate(asked):
        engine.add(Request(str(at), tuple(prompt), tokens, ignore_end=True, top_logprobs=0))
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Delta):
                ids, logprobs = answers.setdefault(event.request_id, ([], []))
                ids += event.token_ids
                logprobs += [one.logprob for one in event.logprobs]
            else:
                assert event.reason == "length", event
        engine.audit()
    return [answers[str(at)] for at in range(len(asked))]
"""
_SAME = (
    _ENGINE
    + """
for case in json.loads(sys.argv[1]):
    engine = paged(case["folder"])
    kinds = {type(linear) for layer in engine.runner.decoder.layers for linear in layer.linears}
    assert kinds == {RowsLinear if case["bits"] == 16 else GroupLinear}, kinds
    found = [ids for ids, _ in said_by(engine, case["asked"], len(case["said"][0]))]
    assert found == case["said"], (case["folder"], found, case["said"])
    assert engine.runner.steps.shapes
folder, asked = case["folder"], case["asked"]
together = said_by(engine, asked, 4)

class HalfRight:
    "Guesses the next token, and nonsense after it."
    def propose(self, contexts, most):
        return {name: Draft((*together[0][0][len(ids) - len(asked[0]):][:1], 3), (0.9, 0.5))
                for name, ids in contexts.items()}

    learn = forget = lambda *_: None

guessing = paged(folder, HalfRight(), step_tokens=13, draft_tokens=2)
(ids, logprobs), = said_by(guessing, asked[:1], 4)
assert ids == together[0][0]
assert torch.allclose(torch.tensor(logprobs), torch.tensor(together[0][1]), atol=1e-5)
assert 0 < guessing.accepted_tokens < guessing.drafted_tokens
print("same tokens")
"""
)
_FALLEN = """
import logging, sys
from pathlib import Path
import torch
from local_models import grouped
from local_models.decoder import Decoder
from local_models.linear import Dense

class Wrong(grouped.Dense):
    def __init__(self, packed, bias=None, *, invariant=True):
        super().__init__(packed.expand() + 1.0, bias)

import local_models.kernels as kernels
kernels.GroupLinear = Wrong
logging.basicConfig(stream=sys.stdout, format="%(message)s")
decoder = Decoder.load(Path(sys.argv[1]), "float32", 16, paged=True)
assert all(type(linear) is Dense for layer in decoder.layers for linear in layer.linears)
"""


def case(variant: str, bits: int, folder: Path) -> dict[str, Any]:
    """Prompts, and the output of `generate` with the weights that the quantized ones represent."""
    source, quantized = folder / "source", folder / "quantized"
    # interpreting takes longer with every layer, so only one family has two
    model = write_folder(variant, source, **_SIZES, num_hidden_layers=2 if variant == "qwen3" else 1)
    if bits != 16:
        quantize_folder(source, quantized, bits)
        weights = load_weights(quantized, read_shape(quantized), torch.float32)
        expanded = {name: w.expand() if isinstance(w, Packed) else w for name, w in weights.items()}
        model.load_state_dict(expanded)
    asked = [[5, 6, 7, 8] * 5, *prompts(1, seed=5, longest=30)]
    return {
        "folder": str(source if bits == 16 else quantized), "bits": bits, "asked": asked,
        "said": [generated(model, prompt, 4) for prompt in asked],
    }  # fmt: skip


def test_answers_equal_transformers_with_the_same_weights(tmp_path: Path) -> None:
    """For four families, with prompts in chunks and then paged steps, all products by the kernels: the tokens are those
    of `generate` with four-, eight- and sixteen-bit weights. Alone, in other chunks and with speculative tokens the
    last one gives the same answers.
    """
    kinds = [("llama", 16), ("qwen2", 8), ("mistral-window", 4), ("qwen3", 4)]
    cases = [case(variant, bits, tmp_path / variant) for variant, bits in kinds]
    assert run_python(_SAME, json.dumps(cases), TRITON_INTERPRET="1").strip() == "same tokens"


def test_a_faulty_kernel_is_not_used(tmp_path: Path) -> None:
    """Its products are compared with the dense ones while loading; torch computes instead, and the log says why."""
    case("llama", 8, tmp_path)
    told = run_python(_FALLEN, str(tmp_path / "quantized"), TRITON_INTERPRET="1")
    assert "no kernel for 8 bits in groups of 64, torch computes them: products of 1 rows are off by" in told
