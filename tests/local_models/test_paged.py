"""Decoding for a GPU without having one: run by Triton's interpreter, and compiled for sm_90."""

import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.local_models.test_kernels import run_python

# in a process of its own, because whether kernels are interpreted is decided when they are defined
_ATTENTION = """
import torch
from torch.nn.functional import scaled_dot_product_attention
from local_models.paged import attend_paged

torch.manual_seed(0)
for heads, kv_heads, d, size, window in ((6, 2, 32, 16, 0), (4, 4, 64, 16, 20), (8, 1, 12, 32, 0)):
    keys, values = torch.randn(2, kv_heads, 24 * size, d)
    lengths = [1, size, 5 * size + 3, 9 * size - 1]
    order = torch.randperm(24).tolist()
    tables = [[order.pop() for _ in range(-(-n // size))] for n in lengths]
    table = torch.tensor([blocks + [0] * (9 - len(blocks)) for blocks in tables], dtype=torch.int32)
    q, seen = torch.randn(4, heads, d), torch.tensor(lengths, dtype=torch.int32)
    found = attend_paged(q, keys, values, table, seen, size, window)
    for at, n in enumerate(lengths):
        slots = (torch.tensor(tables[at])[:, None] * size + torch.arange(size)).flatten()[:n][-window:]
        k, v = (t[:, slots].double().repeat_interleave(heads // kv_heads, 0) for t in (keys, values))
        exact = scaled_dot_product_attention(q[at].double().unsqueeze(1), k, v)[:, 0]
        assert (found[at] - exact).norm() < 1e-5 * exact.norm(), (heads, at)
        alone = attend_paged(q[at : at + 1], keys, values, table[at : at + 1], seen[at : at + 1], size, window)
        assert torch.equal(alone[0], found[at])
print("exact")
"""

_STEPS = """
import sys
from pathlib import Path
import torch
from local_models.attention import Segment
from local_models.decoder import Batch, Decoder
from local_models.paged import DecodeSteps, token_step

decoder = Decoder.load(Path(sys.argv[1]), "float32", 16, native=False)
blocks = 12
pool, other = decoder.new_pool(blocks), decoder.new_pool(blocks)
tables, prompts = [[3, 1], [0, 5, 2], [7]], [list(range(5, 25)), list(range(9, 49)), [6, 7]]
steps = DecodeSteps(token_step(decoder, pool.tensor), torch.device("cpu"), blocks, blocks * 16 - 1)

def batch(pieces):
    ids, positions, slots, segments, wanted = [], [], [], [], []
    for table, start, tokens in pieces:
        segments.append(Segment(len(ids), len(tokens), start, table))
        ids += tokens
        positions += range(start, start + len(tokens))
        slots += [table[at // 16] * 16 + at % 16 for at in range(start, start + len(tokens))]
        wanted.append(len(ids) - 1)
    tensors = [torch.tensor(values) for values in (ids, positions, slots, wanted)]
    return Batch(tensors[0], tensors[1], tensors[2], segments, tensors[3])

for some in (pool, other):
    scores = decoder.logits(decoder.forward(batch(list(zip(tables, [0] * 3, prompts))), some))
at = [len(prompt) for prompt in prompts]
for _ in range(6):
    ids = scores.argmax(-1).tolist()
    scores = decoder.logits(decoder.forward(batch([(t, n, [i]) for t, n, i in zip(tables, at, ids)]), other))
    slots = [table[n // 16] * 16 + n % 16 for table, n in zip(tables, at)]
    found = steps.run(ids, at, slots, tables)
    assert (found - scores).abs().max() < 1e-4 and found.argmax(-1).tolist() == scores.argmax(-1).tolist()
    at = [n + 1 for n in at]
assert steps.shapes == 1
print("same tokens")
"""

_COMPILED = """
import sys
from tests.local_models.sm90 import compiled_attention

for window in (0, 4096):
    sys.stdout.write(compiled_attention(window).asm["ptx"])
"""


def test_paged_attention_equals_the_reference() -> None:
    """With scattered blocks, different lengths, shared heads, a window and odd head sizes it agrees with float64, and
    bit for bit with the sequence alone.
    """
    assert run_python(_ATTENTION, TRITON_INTERPRET="1").strip() == "exact"


def test_a_step_of_fixed_shape_equals_the_decoder(tmp_path: Path) -> None:
    """Three sequences in a step for four, six tokens long, have the decoder's tokens, with one shape and one graph."""
    from tests.local_models.checkpoints import write_folder

    write_folder("qwen3", tmp_path, head_dim=16)
    assert run_python(_STEPS, str(tmp_path), TRITON_INTERPRET="1").strip() == "same tokens"


def test_paged_attention_compiles_for_sm90(tmp_path: Path) -> None:
    """Tensor cores are used, and no register is spilled."""
    ptx = run_python(_COMPILED, TRITON_CACHE_DIR=str(tmp_path))
    assert "sm_90" in ptx and "mma" in ptx
    assert not re.search(r"\b(ld|st)\.local", ptx)
