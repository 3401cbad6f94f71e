"""How fast the engine is, beside its rivals on the same weights: `python -m local_models.bench`.

Every figure is a ratio of CPU-seconds on one thread, rivals run in turn within each round and the best round
of each counts, so that other work on the machine weighs on all alike. Weights are random, of a real model's
shape: good for speed, never for quality. Rivals that are not installed are left out, and a table says so.
Nothing here uses a GPU: that is `python -m tests.bench.local_gpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from local_models import shipped_models
from local_models.bench_guesses import STREAMS, guess_cases
from local_models.bench_prefixes import blocks_met, prefix_cases, prefix_trace
from local_models.checkpoint import expected_shapes
from local_models.decoder import DTYPES, Decoder
from local_models.engine import Engine, EngineOptions
from local_models.intervals import formatted, mean_and_half_width, mean_ratio
from local_models.products import int8_levels
from local_models.request import Delta, Request
from local_models.scheduler import PredictTokens
from local_models.shape import Shape, shape_of
from local_models.text import TextCodec

SHAPES: dict[str, dict[str, Any]] = {
    "3m": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6,
           "num_key_value_heads": 2, "vocab_size": 2048},
    "30m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 6,
            "num_key_value_heads": 2, "vocab_size": 8192},
    "smollm2-135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                     "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
}  # fmt: skip
_LLAMA = Path(__file__).parent.parent / "tests" / "bench" / "local_llama.py"
Prompts = list[list[int]]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run said, and its CPU-seconds."""

    answers: Prompts
    """Empty where a rival's are in other numbers."""
    whole_s: float
    decode_s: float | None = None
    """After every answer's first token; None where that moment can't be seen."""


Run = Callable[[Prompts, int], Cost]


@dataclass(frozen=True, slots=True)
class Case:
    """So many streams with prompts of so many tokens, each answered with `new` tokens."""

    streams: int
    prompt: int
    new: int


def decode_case(runs: dict[str, Run], case: Case, vocabulary: int, rounds: int) -> dict[str, Any]:
    """CPU-seconds of each rival on one case, whole and after each answer's first token, and whether answers agree."""
    rng = random.Random(case.streams)
    prompts = [[rng.randrange(2, vocabulary) for _ in range(case.prompt)] for _ in range(case.streams)]
    whole: dict[str, float] = {}
    decode: dict[str, float] = {}
    answers: dict[str, Prompts] = {}
    for _ in range(rounds):
        for name, run in runs.items():
            cost = run(prompts, case.new)
            answers[name] = cost.answers
            whole[name] = min(cost.whole_s, whole.get(name, cost.whole_s))
            if cost.decode_s is not None:
                decode[name] = min(cost.decode_s, decode.get(name, cost.decode_s))
    own = answers[next(iter(answers))]
    same = {name: sum(a == b for a, b in zip(said, own, strict=True)) for name, said in answers.items() if said}
    return {
        "streams": case.streams, "prompt_tokens": case.prompt, "new_tokens": case.new, "cpu_s": whole,
        "decode_cpu_s": decode, "same_answers": same,
    }  # fmt: skip


def engine_run(decoder: Decoder, **options: Any) -> Run:
    """Our engine, all prompts added at once."""
    codec = TextCodec(shipped_models()["tiny-small"])

    def run(prompts: Prompts, new: int) -> Cost:
        size = decoder.block_tokens
        kv_tokens = sum(-(-(len(prompt) + new) // size) * size for prompt in prompts) + size
        engine = Engine(decoder, codec, EngineOptions(kv_tokens=kv_tokens, **options))
        said: list[list[int]] = [[] for _ in prompts]
        began_s, first_s = time.process_time(), 0.0
        for at, prompt in enumerate(prompts):
            engine.add(Request(str(at), tuple(prompt), new, ignore_end=True))
        while engine.busy:
            for event in engine.step():
                if isinstance(event, Delta):
                    said[int(event.request_id)] += event.token_ids
            if not first_s and all(said):
                first_s, decoded = time.process_time(), sum(map(len, said)) - len(said)
        ended_s = time.process_time()
        # Some decoded beside later prompts: what is left is scaled to all tokens after the first.
        total = len(said) * (new - 1)
        return Cost(said, ended_s - began_s, (ended_s - first_s) * total / max(1, total - decoded))

    return run


def generate_run(model: Any) -> Run:
    """transformers' `generate`, the prompts as one batch."""

    def run(prompts: Prompts, new: int) -> Cost:
        ids, steps_s = torch.tensor(prompts), list[float]()

        def note(ids: torch.Tensor, _: object) -> torch.Tensor:
            steps_s.append(time.process_time())
            return torch.zeros(len(ids), dtype=torch.bool)

        began_s = time.process_time()
        with torch.inference_mode():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, stopping_criteria=[note]
            )
        ended_s = time.process_time()
        return Cost(output[:, ids.shape[1] :].tolist(), ended_s - began_s, ended_s - steps_s[0])

    return run


def continuous_run(model: Any) -> Run:
    """transformers' continuous batching, its cache sized to what the prompts need."""
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig

    def run(prompts: Prompts, new: int) -> Cost:
        blocks = sum(-(-(len(prompt) + new) // 32) + 1 for prompt in prompts)
        batching = ContinuousBatchingConfig(page_size=32, num_blocks=blocks, max_batch_tokens=512)
        generation = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
        began_s = time.process_time()
        outputs = model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=batching, progress_bar=False
        )
        spent_s = time.process_time() - began_s
        return Cost([list(output.generated_tokens) for output in outputs.values()], spent_s)

    return run


def llama_run(child: subprocess.Popen[str]) -> Run:
    """llama.cpp in its own environment; CPU-seconds by its own account, decoding by a run that ends at one token."""

    def ask(prompts: Prompts, new: int) -> float:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
        child.stdin.flush()
        return float(json.loads(child.stdout.readline())["cpu_s"])

    def run(prompts: Prompts, new: int) -> Cost:
        first_s, whole_s = ask(prompts, 1), ask(prompts, new)
        return Cost([], whole_s, max(1e-9, whole_s - first_s))

    return run


def start_llama(python: str, model: Any, config: dict[str, Any], kind: str, most: Case) -> Run:
    """A llama.cpp server on the model's weights in one of its own number formats."""
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        numpy.savez(file, **{name: tensor.float().numpy() for name, tensor in model.state_dict().items()})
        file.flush()
        child = subprocess.Popen([python, str(_LLAMA)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdin is not None and child.stdout is not None
        context = most.prompt + most.new + 32
        about = {"weights": file.name, "config": config, "kind": kind, "streams": most.streams, "context": context}
        child.stdin.write(json.dumps(about) + "\n")
        child.stdin.flush()
        if not child.stdout.readline():
            raise RuntimeError(f"llama.cpp did not start with {kind}")
    return llama_run(child)


def rivals(
    config: dict[str, Any], dtype: torch.dtype, *, continuous: bool, llama: str | None, most: Case
) -> dict[str, Run]:
    """Our engine first, then whatever of transformers is installed, all on the same random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    rival_config = LlamaConfig(
        **config, max_position_embeddings=2048, tie_word_embeddings=True,
        eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(rival_config).to(dtype).eval()
    shape = random_shape(config)
    runs = {
        "engine": engine_run(Decoder(shape, dict(model.state_dict()))),
        "engine int8": engine_run(Decoder(shape, dict(model.state_dict()), int8=True)),
        "engine, torch alone": engine_run(Decoder(shape, dict(model.state_dict()), native=False)),
    }
    runs["transformers generate"] = generate_run(model)
    if continuous:
        runs["transformers continuous batching"] = continuous_run(model)
    for kind in ("Q8_0", "Q4_0"):
        if llama is not None:
            runs[f"llama.cpp {kind}"] = start_llama(llama, model, config, kind, most)
    return runs


def random_shape(config: dict[str, Any]) -> Shape:
    """A Llama of these sizes with a tied head and no end token."""
    return shape_of(
        {
            **config,
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
        (),
    )


def admission_case(requests: int, rounds: int) -> dict[str, Any]:
    """CPU-seconds and steps at the same memory for mixed traces, another in each round: worst-case reservation,
    predicted lengths, and the lengths that answers turned out to have, known beforehand.
    """
    folder = shipped_models()["tiny-large"]
    decoder, codec = Decoder.load(folder), TextCodec(folder)
    from local_models.tasks import held_out_questions

    steps: dict[str, list[int]] = {}
    cpu_s: dict[str, list[float]] = {}
    for at in range(rounds):
        asked = [question.prompt for question in held_out_questions(requests, seed=9 + at)]
        lengths: dict[str, int] = {}
        rules: dict[str, PredictTokens | None] = {
            "worst case": lambda request: request.max_tokens,
            "predicted": None,
            "true lengths": lambda request, lengths=lengths: lengths[request.id],  # type: ignore[misc]
        }
        for name, predict in rules.items():
            engine = Engine(decoder, codec, EngineOptions(kv_tokens=2048, share_prefixes=False), predict=predict)
            took_s, counted = _answer_all(engine, asked)
            cpu_s.setdefault(name, []).append(took_s)
            steps.setdefault(name, []).append(engine.steps)
            lengths.update(counted)
    return {
        "requests": requests, "kv_tokens": 2048, "max_tokens": 400, "cpu_s": cpu_s, "steps": steps,
        "faster": {name: mean_ratio(cpu_s["worst case"], spent) for name, spent in cpu_s.items()},
        "fewer_steps": {name: mean_ratio(steps["worst case"], taken) for name, taken in steps.items()},
    }  # fmt: skip


def _answer_all(engine: Engine, prompts: list[str]) -> tuple[float, dict[str, int]]:
    """CPU-seconds, and each answer's tokens; a few are answered before the others come, so that there are lengths to
    learn from.
    """
    lengths: dict[str, int] = {}
    started_s = time.process_time()
    for at, prompt in enumerate(prompts):
        ids = engine.codec.encode_chat([{"role": "user", "content": prompt}])
        engine.add(Request(str(at), tuple(ids), 400))
        if at == 40:
            _drain(engine, lengths)
    _drain(engine, lengths)
    return time.process_time() - started_s, lengths


def _drain(engine: Engine, lengths: dict[str, int] | None = None) -> None:
    while engine.busy:
        for event in engine.step():
            if lengths is not None and isinstance(event, Delta):
                lengths[event.request_id] = lengths.get(event.request_id, 0) + len(event.token_ids)


def first_token_case(kind: str, requests: int) -> dict[str, Any]:
    """CPU-milliseconds to the first token of a trace's prompts, one after another (3M shape, float32), with memory for
    a tenth of their blocks.
    """
    decoder = Decoder(random_shape(SHAPES["3m"]), random_weights(SHAPES["3m"]))
    codec, trace = TextCodec(shipped_models()["tiny-small"]), prefix_trace(kind, 1, requests)
    kv_tokens = max(32, len(blocks_met(trace)) // 10) * decoder.block_tokens
    token_bytes = decoder.new_pool(1).bytes // decoder.block_tokens
    rules: dict[str, dict[str, Any]] = {
        "no cache": {"share_prefixes": False}, "lru": {"eviction_alpha": None}, "marconi": {},
        "marconi, four times as much in memory beside": {"tier_memory_mb": -(-4 * kv_tokens * token_bytes // 2**20)},
    }  # fmt: skip
    engines = {name: Engine(decoder, codec, EngineOptions(kv_tokens, **rule)) for name, rule in rules.items()}
    waits: dict[str, list[float]] = {name: [] for name in rules}
    for at, asked in enumerate(trace):
        for name, engine in engines.items():
            began_s = time.process_time()
            engine.add(Request(str(at), tuple(asked.prompt), 2, ignore_end=True))
            while not any(isinstance(event, Delta) for event in engine.step()):
                pass
            waits[name].append(1e3 * (time.process_time() - began_s))
            _drain(engine)
    again = {name: [ms for ms, asked in zip(spent, trace, strict=True) if asked.again] for name, spent in waits.items()}
    return {
        "trace": kind, "requests": requests, "kv_tokens": kv_tokens,
        "hit_rate": {
            name: blocks.hit_tokens / blocks.asked_tokens
            for name, blocks in ((name, engine.scheduler.blocks) for name, engine in engines.items())
        },
        "ms": {name: mean_and_half_width(spent) for name, spent in waits.items()},
        "again_ms": {name: mean_and_half_width(spent) for name, spent in again.items()},
        "again_ms_less_than_lru": {
            name: mean_and_half_width([a - b for a, b in zip(again["lru"], spent, strict=True)])
            for name, spent in again.items()
        },
    }  # fmt: skip


def random_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(size) * 0.02 for name, size in expected_shapes(random_shape(config)).items()}


def _print_decode(row: dict[str, Any]) -> None:
    print(f"\n{row['streams']} streams, {row['prompt_tokens']} prompt + {row['new_tokens']} new tokens")
    own, own_decode = row["cpu_s"]["engine"], row["decode_cpu_s"]["engine"]
    for name, seconds in row["cpu_s"].items():
        decode = row["decode_cpu_s"].get(name)
        text = "not seen apart      " if decode is None else f"{decode:7.3f} s, {decode / own_decode:5.2f} x"
        alike = f"; {row['same_answers'][name]}/{row['streams']} answers alike" if name in row["same_answers"] else ""
        print(f"  {name:34} decode {text}; whole {seconds:7.3f} CPU-s, {seconds / own:5.2f} x the engine's{alike}")


def main() -> None:
    """Run the cases chosen and print tables, or JSON."""
    parser = argparse.ArgumentParser(description="The engine beside its rivals, in CPU-seconds on one thread.")
    parser.add_argument("--shape", choices=SHAPES, default="30m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 24])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-continuous", action="store_true", help="leave transformers' continuous batching out")
    parser.add_argument("--llama", metavar="PYTHON", help="of an environment as tests/bench/local_llama.py says")
    parser.add_argument("--only", choices=("decode", "prefix", "admission", "guesses"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    report = _measured(args)
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        _print_report(report)


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    """The cases chosen; a table of each as it is done, unless JSON is wanted."""
    report: dict[str, Any] = {"torch": torch.__version__, "int8_levels": int8_levels(), "gpu": "not measured"}
    if args.only in (None, "decode"):
        config, cases = SHAPES[args.shape], [Case(n, args.prompt, args.new) for n in args.streams]
        runs = rivals(
            config, DTYPES[args.dtype], continuous=not args.no_continuous, llama=args.llama,
            most=max(cases, key=lambda case: case.streams),
        )  # fmt: skip
        report["decode"] = []
        for case in cases:
            report["decode"].append(decode_case(runs, case, config["vocab_size"], args.rounds))
            if not args.json:
                _print_decode(report["decode"][-1])
                sys.stdout.flush()
    if args.only in (None, "prefix"):
        report["prefix"] = prefix_cases(300, 5)
        report["first_token"] = [first_token_case(kind, 200) for kind in ("shared", "turns")]
    if args.only in (None, "admission"):
        report["admission"] = admission_case(300, max(args.rounds, 5))
    if args.only in (None, "guesses"):
        report["guesses"] = guess_cases(200, max(args.rounds, 5))
    return report


def _print_report(report: dict[str, Any]) -> None:
    """All but the decoding, which is printed as it is measured."""
    for row in report.get("prefix", []):
        print(f"\nprefix cache, {row['trace']}, memory for a tenth of {row['tenth_of']}: hit rates")
        for name, rate in (row["hit_rate"] | row["beside"]).items():
            print(f"  {name:98} {formatted(rate, '6.1%')}")
    for row in report.get("first_token", []):
        print(f"\nfirst token, {row['trace']}, memory for a tenth: CPU-ms, where asked again, less than LRU")
        for name, rate in row["hit_rate"].items():
            waits = (formatted(row[wait][name], "5.1f") for wait in ("ms", "again_ms", "again_ms_less_than_lru"))
            print(f"  {name:44} {', '.join(waits)}; found {rate:.1%}")
    if "admission" in report:
        row = report["admission"]
        for name in ("predicted", "true lengths"):
            faster, fewer = formatted(row["faster"][name]), formatted(row["fewer_steps"][name])
            print(f"\nadmission by {name}: {faster} x worst-case reservation's speed, {fewer} x fewer steps")
    for row in report.get("guesses", []):
        drawn = "greedy" if row["temperature"] == 0 else f"temperature {row['temperature']:g}"
        print(f"\n{row['budget']} guesses a step for {STREAMS} answers, {drawn}; the large model's tokens a pass:")
        for name, tokens in row["tokens_a_pass"].items():
            print(f"  {name:16} {formatted(tokens)} of {formatted(row['guesses_a_pass'][name])} guesses (without: 1)")
        more, kept = formatted(row["more_tokens"]), formatted(row["kept_of_optimum"], ".3f")
        print(f"  {more} x as many tokens; {kept} of what the best rule of acceptance would keep")
    print("\nGPU: not measured here, see python -m tests.bench.local_gpu")


if __name__ == "__main__":
    main()
