"""What the engine's kernels and its decoding do on a GPU: `python -m tests.bench.local_gpu [--only kernels attention
decode]`.

Kernels: microseconds of each product, bytes it must move (weights, scales, activations in and out), their share of the
copy bandwidth measured in the same run, and the speed beside torch's bf16 product and tinygemm
(`torch.ops.aten._weight_int4pack_mm`), on shapes of real models. So many copies of the weights are taken in turn that
they don't fit the cache twice over; calls are replayed as one graph. Decoding: tokens a second of a whole model with
random weights, as the share of what reading every weight and key once would allow, beside transformers' `generate`.
Without a GPU every row says "not measured".
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from local_models.checkpoint import expected_shapes
from local_models.shape import Shape, shape_of

NOT_MEASURED = "not measured"
MATRICES = {
    "square 8192": (8192, 8192), "7b qkv": (4608, 3584), "7b gate_up": (37888, 3584), "7b down": (3584, 18944),
    "1b o": (2048, 2048),
}  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 32, 64)
GROUP = 128
WANTED = {1: 2.2, 16: 1.8, 64: 1.3}
"""Least speed-up of four bits over bf16 at 8192 x 8192, by rows."""
MODELS: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": {
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "max_position_embeddings": 4096, "rope_theta": 1e6, "torch_dtype": "bfloat16",
    },
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 4096, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    },
}  # fmt: skip
Work = Callable[[int], object]
"""One call with the copy of the weights of that number."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One product: its time, what it moved, and how far off it was."""

    name: str
    us: float
    moved: int
    off: float | None

    def told(self, copy_gb_s: float, bf16_us: float) -> dict[str, Any]:
        gb_s = self.moved / self.us / 1e3
        return {
            "kernel": self.name, "us": round(self.us, 2), "bytes": self.moved, "gb_s": round(gb_s),
            "share_of_copy": round(gb_s / copy_gb_s, 3), "times_bf16": round(bf16_us / self.us, 2),
            "relative_error": self.off,
        }  # fmt: skip


def bytes_moved(rows: int, columns: int, inner: int, bits: int, group: int = GROUP) -> int:
    """Weights, their scales in bf16 where there are any, activations in and out in bf16."""
    scales = 0 if bits == 16 else 2 * columns * inner // group
    return columns * inner * bits // 8 + scales + 2 * rows * (inner + columns)


def ceiling_tokens_s(shape: Shape, bits: int, batch: int, context: int, copy_gb_s: float) -> float:
    """Tokens a second of all sequences if a step did nothing but read each weight and each key and value once."""
    head = shape.vocabulary * shape.hidden
    blocks = shape.parameters - head * (1 if shape.tied else 2)
    weights = blocks * bits / 8 + head * (1 if bits < 16 else 2)
    scales = 0 if bits == 16 else 2 * (blocks + head) / GROUP
    cached = 4 * shape.layers * shape.kv_heads * shape.head_dim * context * batch
    return batch * copy_gb_s * 1e9 / (weights + scales + cached)


def graph_us(work: Work, copies: int, rounds: int = 20) -> float:
    """Microseconds of one call, `copies` of them in a graph; the median of the replays."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for at in range(copies):
            work(at)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for at in range(copies):
            work(at)
    return _median_us(graph.replay, rounds) / copies


def _median_us(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return statistics.median(times)


def copy_gb_s() -> float:
    """Bytes read and written a second by a copy of a gigabyte."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * len(source) / _median_us(lambda: target.copy_(source), 20) / 1e3


def kernel_rows(copy: float) -> list[dict[str, Any]]:
    """Every kernel on every matrix at every number of rows."""
    from local_models.kernels import GroupLinear, RowsLinear
    from local_models.quant import quantize

    told = []
    for name, (columns, inner) in MATRICES.items():
        copies = max(4, -(-160 * 2**20 // (columns * inner // 2)))
        weights = [torch.randn(columns, inner, device="cuda") * 0.02 for _ in range(copies)]
        dense = [weight.bfloat16() for weight in weights]
        own: dict[int, list[Any]] = {
            bits: [GroupLinear(_halved(quantize(weight, bits, GROUP))) for weight in weights] for bits in (4, 8)
        }
        own[16] = [RowsLinear(weight) for weight in dense]
        tiny = [_tinygemm(weight) for weight in weights]
        for rows in ROWS:
            x = torch.randn(rows, inner, device="cuda", dtype=torch.bfloat16)
            exact = x.double() @ weights[0].double().T
            calls: list[tuple[str, int, Work]] = []
            calls += [("torch bf16", 16, lambda at: F.linear(x, dense[at]))]
            calls += [(f"W{bits}A16", bits, partial(lambda some, at: some[at](x), own[bits])) for bits in own]
            calls += [("tinygemm int4", 4, lambda at: tiny[at](x))]
            timed = [
                Timed(
                    label, graph_us(call, copies), bytes_moved(rows, columns, inner, bits),
                    round(float((call(0).double() - exact).norm() / exact.norm()), 5),  # type: ignore[attr-defined]
                )
                for label, bits, call in calls
            ]  # fmt: skip
            told += [{"matrix": name, "rows": rows, **one.told(copy, timed[0].us)} for one in timed]
    return told


def _halved(packed: Any) -> Any:
    """Scales in bf16, as the kernels were compiled for."""
    return type(packed)(packed.values, packed.scales.bfloat16(), packed.bits, packed.group)


def _tinygemm(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """torch's own four-bit product, with groups of the same size."""
    columns, inner = weight.shape
    grouped = weight.view(columns, inner // GROUP, GROUP)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp_min(1e-8)
    integers = ((grouped - low) / scale).round().clamp(0, 15).to(torch.int32).view(columns, inner)
    packed = torch.ops.aten._convert_weight_to_int4pack((integers[:, ::2] << 4 | integers[:, 1::2]).to(torch.uint8), 8)
    both = torch.cat([scale, low + 8 * scale], -1).transpose(0, 1).contiguous().bfloat16()
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, both)


def attention_rows(copy: float) -> list[dict[str, Any]]:
    """One query a sequence over scattered blocks, beside gathering them for torch's attention."""
    from local_models.paged import attend_paged

    told = []
    heads, kv_heads, d, size = 28, 4, 128, 64
    for batch, context in ((1, 1024), (16, 1024), (64, 1024), (16, 4096)):
        blocks = context // size
        pool = torch.randn(2, kv_heads, batch * context, d, device="cuda", dtype=torch.bfloat16)
        table = torch.randperm(batch * blocks, device="cuda").view(batch, blocks).int()
        lengths = torch.full((batch,), context, device="cuda", dtype=torch.int32)
        q = torch.randn(batch, heads, d, device="cuda", dtype=torch.bfloat16)
        slots = (table.long().unsqueeze(-1) * size + torch.arange(size, device="cuda")).flatten(1)

        def ours(_: int, q: Any = q, pool: Any = pool, table: Any = table, lengths: Any = lengths) -> torch.Tensor:
            return attend_paged(q, pool[0], pool[1], table, lengths, size)

        def gathered(_: int, q: Any = q, pool: Any = pool, slots: Any = slots) -> torch.Tensor:
            keys, values = (part[:, slots].transpose(0, 1) for part in pool)
            return F.scaled_dot_product_attention(q.unsqueeze(2), keys, values, enable_gqa=True)[:, :, 0]

        moved = 4 * batch * context * kv_heads * d + 4 * q.numel()
        exact = gathered(0)
        off = round(float((ours(0) - exact).norm() / exact.norm()), 5)
        timed = [
            Timed("gathered, torch", graph_us(gathered, 4), moved, None),
            Timed("paged", graph_us(ours, 4), moved, off),
        ]
        told += [{"batch": batch, "context": context, **one.told(copy, timed[0].us)} for one in timed]
    return told


def decode_rows(copy: float, context: int = 1024, new: int = 64) -> list[dict[str, Any]]:
    """Whole models: steps of our runner, and transformers' own on the same weights' shape."""
    told = []
    for name, config in MODELS.items():
        shape = shape_of(config, ())
        for bits in (16, 8, 4):
            told += _own_decode(name, shape, bits, (context, new), copy)
        told += _generate(name, config, (context, new), copy)
    return told


def _own_decode(name: str, shape: Shape, bits: int, length: tuple[int, int], copy: float) -> list[dict[str, Any]]:
    from local_models.decoder import Decoder
    from local_models.paged import DecodeSteps, token_step
    from local_models.quant import Weight, quantize

    context, new = length
    weights: dict[str, Weight] = {}
    for key, size in expected_shapes(shape).items():
        drawn = torch.randn(size, device="cuda", dtype=torch.bfloat16) * 0.02 if len(size) > 1 else _ones(size)
        is_kept = bits == 16 or len(size) == 1 or "embed" in key
        weights[key] = drawn if is_kept else _halved(quantize(drawn, 8 if "lm_head" in key else bits, GROUP))
    decoder = Decoder(shape, weights, 64, invariant=False)
    told = []
    for batch in (1, 16, 64):
        each = -(-(context + new) // 64)
        pool = decoder.new_pool(batch * each + 1)
        steps = DecodeSteps(token_step(decoder, pool.tensor), decoder.device, each, batch * each * 64)
        tables = [list(range(at * each, (at + 1) * each)) for at in range(batch)]

        def step(at: int, steps: Any = steps, tables: Any = tables) -> None:
            slots = [table[at // 64] * 64 + at % 64 for table in tables]
            steps.run([7] * len(tables), [at] * len(tables), slots, tables)

        step(context)
        tokens_s = batch * 1e6 / _median_us(lambda: step(context), new)
        ceiling = ceiling_tokens_s(shape, bits, batch, context, copy)
        told.append(_decoded(name, f"engine W{bits}", batch, tokens_s, ceiling))
    return told


def _ones(size: Sequence[int]) -> torch.Tensor:
    return torch.ones(tuple(size), device="cuda", dtype=torch.bfloat16)


def _decoded(model: str, engine: str, batch: int, tokens_s: float, ceiling: float) -> dict[str, Any]:
    return {
        "model": model, "engine": engine, "batch": batch, "tokens_s": round(tokens_s),
        "share_of_ceiling": round(tokens_s / ceiling, 3),
    }  # fmt: skip


def _generate(name: str, config: dict[str, Any], length: tuple[int, int], copy: float) -> list[dict[str, Any]]:
    """transformers' `generate` in bf16: the time of many tokens less that of one."""
    import transformers

    context, new = length
    family = config["architectures"][0].removesuffix("ForCausalLM")
    sizes = {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype")}
    with torch.device("cuda"):
        built = getattr(transformers, f"{family}Config")(**sizes)
        model = getattr(transformers, f"{family}ForCausalLM")(built).to(torch.bfloat16).eval()
    told = []
    for batch in (1, 16, 64):
        ids = torch.randint(5, 1000, (batch, context), device="cuda")

        def run(tokens: int, ids: torch.Tensor = ids) -> None:
            with torch.inference_mode():
                model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None
                )

        run(2)
        spent_us = _median_us(lambda: run(1 + new), 3) - _median_us(lambda: run(1), 3)
        ceiling = ceiling_tokens_s(shape_of(config, ()), 16, batch, context, copy)
        told.append(_decoded(name, "transformers bf16", batch, batch * new * 1e6 / spent_us, ceiling))
    return told


def reached(kernels: Sequence[dict[str, Any]], decode: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The goals beside what was measured; "not measured" where nothing was."""
    found: dict[str, Any] = {}
    for rows, least in WANTED.items():
        times = [one["times_bf16"] for one in kernels if _is(one, matrix="square 8192", rows=rows, kernel="W4A16")]
        found[f"W4A16 8192 x 8192, {rows} rows, >= {least} x bf16"] = times[0] if times else NOT_MEASURED
    for engine, least in (("engine W16", 0.75), ("engine W4", 0.5)):
        shares = [one["share_of_ceiling"] for one in decode if _is(one, model="qwen2.5-7b", engine=engine, batch=1)]
        found[f"{engine}, qwen2.5-7b, batch 1, >= {least} of its ceiling"] = shares[0] if shares else NOT_MEASURED
    return found


def _is(row: dict[str, Any], **wanted: Any) -> bool:
    return all(row[key] == value for key, value in wanted.items())


def main() -> None:
    """Measure what was chosen and print it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.local_gpu", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=("kernels", "attention", "decode"))
    chosen = parser.parse_args().only or ["kernels", "attention", "decode"]
    report: dict[str, Any] = {"torch": torch.__version__, "gpu": NOT_MEASURED}
    if torch.cuda.is_available():
        copy = copy_gb_s()
        report |= {"gpu": torch.cuda.get_device_name(), "copy_gb_s": round(copy)}
        measures = {"kernels": kernel_rows, "attention": attention_rows, "decode": decode_rows}
        for name in chosen:
            report[name] = measures[name](copy)
    else:
        report |= {"why": "torch finds no CUDA device here", **dict.fromkeys(chosen, NOT_MEASURED)}
    measured = {name: rows if isinstance(rows := report.get(name), list) else [] for name in ("kernels", "decode")}
    report["reached"] = reached(measured["kernels"], measured["decode"])
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
