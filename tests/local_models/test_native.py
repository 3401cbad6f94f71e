"""The kernels in C: correct, the same for a row in any batch, and optional."""

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from local_models import multi_step, native, shipped_models
from local_models.attention import Attention, KVCache, Segment
from local_models.decoder import Decoder, _rows
from local_models.engine import Engine, EngineOptions
from local_models.native import Int8Panels, Kernels, Panels
from local_models.quant import quantize
from local_models.request import Finished, Request
from local_models.scheduler import Work
from tests.local_models.checkpoints import VARIANTS, codec, generated, greedy, prompts, run, write_folder

TYPES = [torch.float32, torch.bfloat16]
NEAR = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


@pytest.fixture
def kernels() -> Kernels:
    """The compiled functions; the test is skipped where they can't be compiled."""
    found = native.kernels()
    if found is None:
        pytest.skip("no compiler or no AVX2 here")
    return found


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("columns", "k"), [(1, 1), (16, 8), (53, 75), (200, 33), (64, 512)])
def test_products_are_right_and_depend_on_their_row_only(
    kernels: Kernels, dtype: torch.dtype, columns: int, k: int
) -> None:
    """Dense and integer products of every small shape are near the exact one, and equal bit for bit to the row alone.
    """
    torch.manual_seed(columns)
    weight, bias, x = torch.randn(columns, k).to(dtype), torch.randn(columns), torch.randn(20, k).to(dtype)
    packed = quantize(weight, 8, k)
    dense = Panels(kernels, weight, bias)
    whole = Int8Panels(kernels, packed.values, packed.scales, bias)
    for linear, exact in ((dense, weight), (whole, packed.expand())):
        found = linear(x)
        limit = NEAR[dtype] if linear is dense else 3e-2
        assert off(found, x.double() @ exact.double().T + bias) < limit
        for rows in (1, 2, 3, 4, 5, 6, 7, 13):
            assert torch.equal(linear(x[-rows:].contiguous()), found[-rows:])


@pytest.mark.parametrize("k", [1, 6, 128, 131, 600])
def test_integer_products_never_saturate(kernels: Kernels, k: int) -> None:
    """With weights and activations at their limits, of one sign or mixed, the integer sums are exact."""
    torch.manual_seed(k)
    limits = torch.tensor([-128, 127], dtype=torch.int8)
    weight = limits[torch.randint(0, 2, (37, k))]
    weight[:2] = limits[:, None]
    x = torch.randint(0, 2, (9, k)) * 128.0 - 64.0
    x[:2] = torch.tensor([[-64.0], [64.0]])
    x[2:, 1:] += torch.randint(0, 9, (7, k - 1)) * -x[2:, 1:].sign()
    x[:, ::128] = 64.0  # so that the scale of every group is 1
    exact = x.double() @ weight.double().T
    assert torch.equal(Int8Panels(kernels, weight, torch.ones(37))(x).double(), exact)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stays_nan(kernels: Kernels, bad: float) -> None:
    """Integer products don't hide it, and other rows aren't affected."""
    x = torch.randn(5, 40)
    linear = Int8Panels(kernels, torch.randint(-127, 128, (16, 40), dtype=torch.int8), torch.ones(16))
    clean = linear(x)
    x[2, 17] = bad
    found = linear(x)
    assert found[2].isnan().all() and torch.equal(found[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "d", "window"), [(4, 2, 16, 0), (3, 1, 64, 0), (2, 2, 80, 9), (8, 1, 128, 40)]
)
def test_attention_equals_the_reference(
    kernels: Kernels, dtype: torch.dtype, heads: int, kv_heads: int, d: int, window: int
) -> None:
    """Scattered blocks, several sequences, chunks, single tokens and windows are compared with a masked softmax in
    float64.
    """
    torch.manual_seed(d)
    size, blocks = 16, 24
    keys, values = torch.randn(2, kv_heads, blocks * size, d).to(dtype)
    segments = [Segment(0, 1, 70, [3, 9, 1, 20, 4]), Segment(1, 21, 30, [7, 8, 2, 11]), Segment(22, 5, 0, [23])]
    qkv = torch.randn(27, (heads + 2 * kv_heads) * d).to(dtype)
    found = kernels.attend(qkv, keys, values, _rows(segments), heads, window, size)
    for segment in segments:
        rows, slots = slice(segment.row, segment.row + segment.count), slots_of(segment, size)
        exact = attended(qkv[rows], keys[:, slots], values[:, slots], segment.start, heads, window)
        assert off(found[rows], exact) < NEAR[dtype]
        alone = kernels.attend(
            qkv[rows][-1:].contiguous(), keys, values,
            _rows([Segment(0, 1, segment.start + segment.count - 1, segment.blocks)]), heads, window, size,
        )  # fmt: skip
        assert torch.equal(alone[0], found[rows][-1])


def slots_of(segment: Segment, size: int) -> torch.Tensor:
    return (torch.tensor(segment.blocks)[:, None] * size + torch.arange(size)).flatten()


def attended(
    qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, heads: int, window: int
) -> torch.Tensor:
    """A masked softmax in float64 of the queries from position `start` on, over keys and values `[kv head, position,
    d]`.
    """
    kv_heads, count, d = keys.shape
    k, v = (t.double().repeat_interleave(heads // kv_heads, 0) for t in (keys, values))
    q = qkv[:, : heads * d].double().view(-1, heads, d).transpose(0, 1)
    at = torch.arange(start, start + len(qkv))[:, None]
    seen = torch.arange(count) <= at
    if window:
        seen &= torch.arange(count) > at - window
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(0, 1).flatten(1)


def placed(kernels: Kernels, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stores keys and values `[kv head, slot, d]` in 8-bit slots, whatever was in them before."""
    kv_heads, slots, d = keys.shape
    pool = torch.randint(-128, 128, (2, kv_heads, slots, d + native.STEP_BYTES), dtype=torch.int8)
    qkv = torch.cat([torch.zeros(1, slots, d).to(keys), keys, values]).transpose(0, 1).reshape(slots, -1).contiguous()
    turns = torch.ones(slots, d).to(keys), torch.zeros(slots, d).to(keys)
    at = torch.arange(slots)
    kernels.place(qkv, None, 1e-6, turns, torch.zeros(slots, dtype=torch.long), at, pool[0], pool[1])
    return pool[0], pool[1]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "d", "window"), [(4, 2, 16, 0), (3, 1, 64, 0), (2, 2, 80, 9), (8, 1, 128, 40)]
)
def test_8_bit_attention_is_near_the_reference(
    kernels: Kernels, dtype: torch.dtype, heads: int, kv_heads: int, d: int, window: int
) -> None:
    """With a scale per slot and head it is within 1.5 % of float64's, equal bit for bit to the sequence alone, and not
    changed by slots beyond the sequence, even with NaN.
    """
    torch.manual_seed(d)
    size, blocks = 16, 24
    keys, values = torch.randn(2, kv_heads, blocks * size, d).to(dtype)
    segments = [Segment(0, 1, 70, [3, 9, 1, 20, 4]), Segment(1, 21, 30, [7, 8, 2, 11]), Segment(22, 5, 0, [23])]
    qkv = torch.randn(27, (heads + 2 * kv_heads) * d).to(dtype)
    found = kernels.attend(qkv, *placed(kernels, keys, values), _rows(segments), heads, window, size)
    for segment in segments:
        rows, slots = slice(segment.row, segment.row + segment.count), slots_of(segment, size)
        exact = attended(qkv[rows], keys[:, slots], values[:, slots], segment.start, heads, window)
        assert off(found[rows], exact) < 1.5e-2
        last = segment.start + segment.count - 1
        bad_keys, bad_values = keys.clone(), values.clone()
        bad_keys[:, slots[last + 1 :]], bad_values[:, slots[last + 1 :]] = float("nan"), 1e9
        alone = kernels.attend(
            qkv[rows][-1:].contiguous(), *placed(kernels, bad_keys, bad_values),
            _rows([Segment(0, 1, last, segment.blocks)]), heads, window, size,
        )  # fmt: skip
        assert torch.equal(alone[0], found[rows][-1])


@pytest.mark.parametrize("of", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_8_bit_caches_do_not_hide_nan(kernels: Kernels, of: int, bad: float) -> None:
    """A NaN key or value gives NaN in the sequences that see it, and in no other."""
    both = torch.randn(2, 1, 32, 16)
    both[of, 0, 3, 5] = bad
    rows = _rows([Segment(0, 1, 7, [0]), Segment(1, 1, 2, [0]), Segment(2, 1, 7, [1])])
    found = kernels.attend(torch.randn(3, 3 * 16), *placed(kernels, *both), rows, 1, 0, 16)
    assert found[0].isnan().all() and not found[1:].isnan().any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_8_bit_answers_depend_on_no_batch_and_no_cache(kernels: Kernels, dtype: str, tmp_path: Path) -> None:
    """With 8-bit keys and values the bits are the same together, alone, with shared prefixes and with copied parts of
    blocks.
    """
    from tests.local_models.test_engine import assert_same, some_requests

    write_folder("llama", tmp_path, hidden_size=64)
    decoder = Decoder.load(tmp_path, dtype, 16, int8=True)
    assert decoder.kv_dtype == torch.int8
    requests = some_requests(12, seed=4)
    single = {}
    for request in requests:
        single.update(run(Engine(decoder, codec(), EngineOptions(kv_tokens=4096)), [request]))
    for copied in (0.0, 1.0):
        options = EngineOptions(kv_tokens=4096, step_tokens=48, copy_while_free=copied)
        assert_same(run(Engine(decoder, codec(), options), requests), single)


def plain(name: str, prompt: list[int], tokens: int) -> Request:
    """A request for the most likely tokens, up to this many, without log-probabilities."""
    return Request(name, tuple(prompt), tokens)


@pytest.mark.parametrize("int8", [False, True])
def test_several_steps_per_call_equal_single_ones(
    kernels: Kernels, int8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, text, ends and counts are the same, with end tokens, stop strings and different lengths, in fewer calls
    of C.
    """
    write_folder("mistral-window", tmp_path, hidden_size=64)
    decoder = Decoder.load(tmp_path, block_tokens=16, int8=int8)
    asked = [plain(str(at), ids, 5 + 9 * at) for at, ids in enumerate(prompts(5, seed=3))]
    longest = run(Engine(decoder, codec(), EngineOptions(kv_tokens=2048)), asked[4:])["4"]
    decoder.shape = dataclasses.replace(decoder.shape, end_ids=(longest.ids[20],))
    asked.append(dataclasses.replace(asked[4], id="never ends", ignore_end=True))
    asked.append(dataclasses.replace(asked[4], id="stopped", stop=(longest.text[2:5],)))

    unlike: list[bool] = []

    def answers(most: int) -> tuple[dict[str, tuple[object, ...]], int]:
        monkeypatch.setattr(multi_step, "MOST_STEPS", most)
        monkeypatch.setattr(multi_step, "PATIENCE_S", 60.0)
        calls: list[int] = []
        engine = Engine(decoder, codec(), EngineOptions(kv_tokens=2048))
        make = engine.runner.run_steps

        def counted(work: list[Work], left: list[int]) -> list[list[int]]:
            calls.append(left[0])
            unlike.append(left[-1] < left[0])
            return make(work, left)

        monkeypatch.setattr(engine.runner, "run_steps", counted)
        said = run(engine, asked)
        engine.audit()
        told: dict[str, tuple[object, ...]] = {
            name: (answer.ids, answer.text, answer.last.reason, answer.last.usage.output_tokens)
            for name, answer in said.items()
        }
        return told, len(calls)

    single, none = answers(1)
    several, calls = answers(7)
    assert several == single and none == 0 < calls and any(unlike)
    assert {"stop", "length"} == {reason for _, _, reason, _ in single.values()}


def test_a_waiting_request_shortens_a_call(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `hurry` a call of several steps returns after its first, and the next call makes as many as before."""
    write_folder("llama", tmp_path, hidden_size=64)
    monkeypatch.setattr(multi_step, "PATIENCE_S", 60.0)
    engine = Engine(Decoder.load(tmp_path, block_tokens=16), codec(), EngineOptions(kv_tokens=2048))
    engine.add(dataclasses.replace(plain("a", prompts(1, seed=4)[0], 99), ignore_end=True))
    for _ in range(3):
        engine.step()
    made = [engine.steps]
    for waits in (False, True, False):
        if waits:
            engine.hurry()
        engine.step()
        made.append(engine.steps)
    first, hurried, then = (after - before for before, after in itertools.pairwise(made))
    assert hurried == 1 < first == then


def test_several_steps_per_call_end_at_nan_scores(kernels: Kernels, tmp_path: Path) -> None:
    """That sequence ends with an error, and the others go on."""
    write_folder("llama", tmp_path, hidden_size=64)
    decoder = Decoder.load(tmp_path, block_tokens=16)
    engine = Engine(decoder, codec(), EngineOptions(kv_tokens=2048))
    for at, ids in enumerate(prompts(3, seed=8)):
        engine.add(dataclasses.replace(plain(str(at), ids, 30), ignore_end=True))
    while any(not sequence.is_decoding for sequence in engine._sequences.values()):
        engine.step()
    table = engine._sequences["1"].table
    assert table is not None
    engine.runner.pool.tensor[:, :, :, table.blocks[0] * 16] = float("nan")
    ended = {}
    while engine.busy:
        ended.update({event.request_id: event.reason for event in engine.step() if isinstance(event, Finished)})
    assert ended == {"0": "length", "1": "error", "2": "length"}
    engine.audit()


@pytest.mark.parametrize("dtype", TYPES)
def test_norm_and_gate_equal_torchs(kernels: Kernels, dtype: torch.dtype) -> None:
    """That holds also for widths that are no multiple of eight."""
    x, weight = torch.randn(7, 52).to(dtype), torch.randn(52).to(dtype)
    exact = F.rms_norm(x.double(), (52,), weight.double(), 1e-6)
    assert off(kernels.norm(x, weight, 1e-6), exact) < NEAR[dtype]
    one, other = x.double().chunk(2, -1)
    assert off(kernels.gate(x), F.silu(one) * other) < NEAR[dtype]


@pytest.mark.parametrize("variant", [name for name, (_, changes) in VARIANTS.items() if "head_dim" not in changes])
def test_every_family_equals_generate(kernels: Kernels, variant: str, tmp_path: Path) -> None:
    """Greedy answers of four families at several shapes, with heads of sixteen, are transformers', token for token."""
    changes = VARIANTS[variant][1]
    model = write_folder(variant, tmp_path, hidden_size=16 * changes.get("num_attention_heads", 4))
    decoder = Decoder.load(tmp_path, block_tokens=16)
    assert decoder.is_native
    asked = prompts(8, seed=11)
    answers = run(
        Engine(decoder, codec(), EngineOptions(kv_tokens=4096)),
        [greedy(str(at), ids, 20) for at, ids in enumerate(asked)],
    )
    for at, ids in enumerate(asked):
        assert list(answers[str(at)].ids) == generated(model, ids, 20)


@pytest.mark.parametrize("change", [{"HEADGATE_NATIVE": "0"}, {"PATH": "nowhere", "XDG_CACHE_HOME": "empty"}])
def test_torch_computes_without_the_kernels(
    change: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine answers if they are switched off or can't be compiled."""
    for name, value in change.items():
        monkeypatch.setenv(name, value if value == "0" else str(tmp_path / value))
    native.kernels.cache_clear()
    try:
        assert native.kernels() is None
        decoder = Decoder.load(shipped_models()["tiny-small"], block_tokens=16)
        assert not decoder.is_native
        answers = run(Engine(decoder, codec(), EngineOptions(kv_tokens=512)), [greedy("a", [5, 6], 9)])
        assert len(answers["a"].ids) == 9
    finally:
        native.kernels.cache_clear()


def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start uses the file in the folder; another source makes another file."""
    if shutil.which("cc") is None:
        pytest.skip("no compiler here")
    compiled: list[Path] = []

    def compile_(compiler: str, library: Path) -> None:
        compiled.append(library)
        library.touch()

    monkeypatch.setattr(native, "_compile", compile_)
    assert native._built(tmp_path) == native._built(tmp_path)
    monkeypatch.setattr(native, "_FLAGS", ("-O1",))
    native._built(tmp_path)
    assert len(compiled) == 2


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are executed, so it must be the user's alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shared = tmp_path / "headgate" / "native"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    assert native._folder() != shared
    shared.chmod(0o700)
    assert native._folder() == shared


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compute", ["native", "torch"])
def test_both_implementations_are_independent_of_the_batch(dtype: str, compute: str, tmp_path: Path) -> None:
    """With the kernels and with torch, sixteen concurrent requests get the same bits as each alone."""
    from tests.local_models.test_engine import assert_same, some_requests

    write_folder("mistral-window", tmp_path)
    decoder = Decoder.load(tmp_path, dtype, 16, native=compute == "native")
    requests = some_requests(16, seed=12)

    def answers(asked: list) -> dict:  # type: ignore[type-arg]
        return run(Engine(decoder, codec(), EngineOptions(kv_tokens=4096)), asked, audit=False)

    single = {name: answer for request in requests for name, answer in answers([request]).items()}
    assert_same(answers(requests), single)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of computing threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 13, 64])
def test_products_do_not_depend_on_the_number_of_threads(
    kernels: Kernels, threads: Callable[[int], None], dtype: torch.dtype, rows: int
) -> None:
    """One, two and three threads share a product's columns, and each element is computed by one thread in the same
    order.
    """
    torch.manual_seed(rows)
    x = torch.randn(rows, 67).to(dtype)
    for columns in (5, 64, 333, 1024):
        weight, bias = torch.randn(columns, 67).to(dtype), torch.randn(columns)
        packed = quantize(weight, 8, 67)
        for linear in (Panels(kernels, weight, bias), Int8Panels(kernels, packed.values, packed.scales, bias)):
            threads(1)
            alone = linear(x)
            for many in (2, 3, 2):
                threads(many)
                assert torch.equal(linear(x), alone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("int8", [False, True])
def test_answers_do_not_depend_on_the_number_of_threads(
    kernels: Kernels, threads: Callable[[int], None], dtype: str, int8: bool, tmp_path: Path
) -> None:
    """Twelve sequences with chunked prompts, windows and shared prefixes have the same ids and log-probabilities with
    one, two and three threads, and no block is leaked.
    """
    from tests.local_models.test_engine import assert_same, some_requests

    write_folder("mistral-window", tmp_path)
    requests = some_requests(12, seed=5)
    answers = []
    for many in (1, 2, 3, 2):
        threads(many)
        decoder = Decoder.load(tmp_path, dtype, 16, int8=int8)
        assert decoder.is_native
        answers.append(run(Engine(decoder, codec(), EngineOptions(kv_tokens=4096, step_tokens=48)), requests))
    for others in answers[1:]:
        assert_same(others, answers[0])


def test_both_implementations_of_attention_agree(kernels: Kernels) -> None:
    """The pool's attention in torch and the one in C agree on one layer."""
    from local_models.shape import shape_of

    shape = shape_of(
        {"architectures": ["LlamaForCausalLM"], "vocab_size": 9, "hidden_size": 64, "intermediate_size": 8,
         "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
        (),
    )  # fmt: skip
    pool = KVCache(shape, 8, 16, torch.float32)
    pool.tensor.normal_()
    segments = [Segment(0, 9, 37, [5, 0, 3])]
    qkv = torch.randn(9, 8 * 16)
    attention = Attention(shape, 16, torch.float32)
    tiles = pool.tiles(segments[0])
    q = qkv[:, : 4 * 16].contiguous().view(9, 4, 16)
    other = attention.attend(0, q, pool, tiles, attention.views(tiles, pool)[0])
    keys, values = pool.tensor[0]
    assert off(kernels.attend(qkv, keys, values, _rows(segments), 4, 0, 16), other) < 1e-6
