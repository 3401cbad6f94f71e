"""Chosen settings against exhaustive search: `python -m tests.bench.local_settings [--runs FILE | --shipped]`.

Every setting is run on every case (CPU-seconds, one thread, random weights of real shapes), or the runs are read from
FILE when it exists, and written there when not; `--shipped` are those that come with the package. Then each case in
turn is left out: a chooser that learnt from the runs of the other shapes alone names a setting, and what that setting
took is compared with the best of all. As an engine does with `settings = "auto"`, it may also try what it named, learn
from that and name another, a few times. Beside it: the roofline alone, the setting that is best on average over the
other shapes, and the engine's defaults. Nothing of the case's own shape is learnt from but what was tried on it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch

from local_models import shipped_models
from local_models.bench import SHAPES, random_shape
from local_models.checkpoint import expected_shapes
from local_models.decoder import Decoder
from local_models.engine import Engine, EngineOptions
from local_models.request import Delta, Request
from local_models.settings import Case, Ran, Setting, SettingsChooser, next_setting, read_runs, write_runs
from local_models.text import TextCodec
from local_models.tuning import MOST_TRIED, PRIOR, measured_machine, repeated_tokens

MODELS = {
    "1m": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4,
           "num_key_value_heads": 4, "vocab_size": 1024},
    "3m": SHAPES["3m"],
    "6m": {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 7, "num_attention_heads": 4,
           "num_key_value_heads": 2, "vocab_size": 2048},
    "10m": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 10, "num_attention_heads": 8,
            "num_key_value_heads": 2, "vocab_size": 4096},
    "20m": {"hidden_size": 448, "intermediate_size": 1152, "num_hidden_layers": 8, "num_attention_heads": 7,
            "num_key_value_heads": 7, "vocab_size": 4096},
    "30m": SHAPES["30m"],
}  # fmt: skip
WORKLOADS = ((1, 64, 0.0), (1, 320, 0.0), (6, 64, 0.0), (6, 320, 0.0), (6, 320, 0.8))
NEW = 24
DEFAULT = Setting(False, 512, 0, True)
SETTINGS = [Setting(*parts) for parts in itertools.product((False, True), (64, 512), (0, 4), (True, False))]


def weights_of(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random weights, as large as transformers starts them."""
    torch.manual_seed(0)
    return {
        name: torch.ones(size) if len(size) == 1 else 0.02 * torch.randn(size)
        for name, size in expected_shapes(random_shape(config)).items()
    }


def prompts_of(vocabulary: int, streams: int, length: int, shared: float) -> list[list[int]]:
    rng = random.Random(length)
    common = [rng.randrange(2, vocabulary) for _ in range(int(shared * length))]
    return [common + [rng.randrange(2, vocabulary) for _ in range(length - len(common))] for _ in range(streams)]


def measure(decoder: Decoder, setting: Setting, prompts: list[list[int]]) -> tuple[float, list[list[int]]]:
    """CPU-seconds of all answers, the first prompt's before the others'; and the answers."""
    options = EngineOptions(
        kv_tokens=len(prompts) * 512, step_tokens=setting.step_tokens, draft_tokens=setting.draft_tokens,
        share_prefixes=setting.share_prefixes,
    )  # fmt: skip
    engine = Engine(decoder, TextCodec(shipped_models()["tiny-small"]), options)
    said: list[list[int]] = [[] for _ in prompts]
    began_s = time.process_time()
    for some in (prompts[:1], prompts[1:]):
        for prompt in some:
            engine.add(Request(str(prompts.index(prompt)), tuple(prompt), NEW, ignore_end=True))
        while engine.busy:
            for event in engine.step():
                if isinstance(event, Delta):
                    said[int(event.request_id)] += event.token_ids
    return time.process_time() - began_s, said


def repeated_share(answers: list[list[int]]) -> float:
    """Share of tokens that followed the same two before, of those that could."""
    return sum(map(repeated_tokens, answers)) / max(1, sum(len(ids) - 2 for ids in answers))


def tried_out(others: list[Ran], case: Case, times: dict[Setting, float]) -> tuple[Setting, int]:
    """Where an engine ends that tries what looks better, and how many settings it ran with."""
    chooser, tried = SettingsChooser(others), dict[Setting, float]()
    while (setting := next_setting(chooser, case, SETTINGS, tried, MOST_TRIED)) not in tried:
        tried[setting] = times[setting]
        chooser.learn(Ran(case, setting, times[setting]))
    return setting, len(tried)


def all_runs(models: list[str]) -> list[Ran]:
    """Every setting on every case."""
    runs = []
    read_gb_s, gflop_s = measured_machine()
    for config in map(MODELS.__getitem__, models):
        shape, weights = random_shape(config), weights_of(config)
        decoders = {int8: Decoder(shape, dict(weights), int8=int8) for int8 in (False, True)}
        for streams, length, shared in WORKLOADS:
            prompts = prompts_of(shape.vocabulary, streams, length, shared)
            _, answers = measure(decoders[False], DEFAULT, prompts)
            case = Case(
                shape.parameters, shape.layers, shape.hidden, 2 * shape.layers * shape.kv_heads * shape.head_dim, 4,
                read_gb_s, gflop_s, streams, length, NEW, shared * (streams - 1) / streams, repeated_share(answers),
            )  # fmt: skip
            runs += [Ran(case, s, measure(decoders[s.int8], s, prompts)[0]) for s in SETTINGS]
    return runs


def judged(runs: list[Ran]) -> dict[str, Any]:
    """How each way of choosing fares on cases whose shape it never saw; times over the best, geometric means."""
    took = {(ran.case, ran.setting): ran.seconds for ran in runs}
    cases = list(dict.fromkeys(ran.case for ran in runs))
    over: dict[str, list[float]] = {}
    exact: dict[str, int] = {}
    for case in cases:
        others = [ran for ran in runs if ran.case.parameters != case.parameters]
        times = {setting: took[case, setting] for setting in SETTINGS}
        chosen = {
            f"learnt from other shapes, up to {MOST_TRIED} tried": tried_out(others, case, times)[0],
            "learnt from other shapes": SettingsChooser(others).choose(case, SETTINGS),
            "roofline alone": SettingsChooser().choose(case, SETTINGS),
            "best on average elsewhere": min(
                SETTINGS, key=lambda s: sum(math.log(ran.seconds) for ran in others if ran.setting == s)
            ),
            "defaults": DEFAULT,
        }
        for name, setting in chosen.items():
            over.setdefault(name, []).append(times[setting] / min(times.values()))
            exact[name] = exact.get(name, 0) + (times[setting] <= 1.05 * min(times.values()))
    return {
        name: {
            "within_5_percent_of_best": f"{exact[name]}/{len(cases)}",
            "times_best": round(math.exp(sum(map(math.log, ratios)) / len(ratios)), 3),
            "worst": round(max(ratios), 2),
        }
        for name, ratios in over.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.local_settings", description=__doc__)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--shipped", dest="runs", action="store_const", const=PRIOR, help="judge the shipped runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.runs and args.runs.exists():
        runs = read_runs(args.runs)
    else:
        runs = all_runs(args.models)
        if args.runs:
            write_runs(args.runs, runs)
    print(json.dumps({"runs": len(runs), "settings": len(SETTINGS), "chosen": judged(runs)}, indent=1))


if __name__ == "__main__":
    main()
