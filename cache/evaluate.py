"""`python -m cache.evaluate`: what the semantic cache does on labelled questions, beside the rules it replaces.

Streams are asked in random orders, one order per seed. `--embedder` is `minilm:FOLDER` (numpy), `onnx:FOLDER` or
`native:FOLDER` (what `cache.minilm_onnx` or `cache.minilm_native` wrote), or `MODULE:NAME` of any function that turns a
text into a vector. Vectors and who is nearest to whom are kept in `--vectors FOLDER` between runs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cache.acceptance import AcceptanceOptions
from cache.baselines import EntryRule, StaticRule
from cache.minilm import MiniLM, OnnxEmbedder
from cache.minilm_native import NativeEmbedder
from cache.pairs import PairFigures, judge_pairs
from cache.ranking import Ranking
from cache.streams import Figures, HitRule, Stream, banking77, clinc150, qqp_clusters, qqp_pairs, replay, replay_rule

Embed = Callable[[str], NDArray[np.float32]]

STREAMS = {"banking77": banking77, "clinc150": clinc150, "qqp_clusters": qqp_clusters}
EPS = {"banking77": 0.03, "clinc150": 0.03, "qqp_clusters": 0.10}
_EMBEDDERS = "minilm:FOLDER, onnx:FOLDER, native:FOLDER or MODULE:NAME"
_COLUMNS = {
    "hit_share": "hits",
    "false_hit_rate": "false hits",
    "wrong_share": "wrong of all",
    "audited_high": "audited <=",
    "out_of_scope_hits": "out of scope",
    "hit_share_at_end": "hits at end",
    "judged_share": "judged",
    "judged_share_at_end": "judged at end",
}
_WITH_INTERVAL = ("hit_share", "false_hit_rate", "wrong_share")
_BASELINE_ORDERS = 5
"""They take long, and vary little from one order to the next."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for and print it."""
    args = _parser().parse_args(arguments)
    embed, identity = load_embedder(args.embedder)
    report: dict[str, object] = {"embedder": identity}
    screen = Console(stderr=args.json, width=150)
    for name in args.streams:
        if name == "qqp_pairs":
            report[name] = _pairs(args, embed, identity, screen).as_dict()
        else:
            report[name] = _stream(name, args, embed, identity, screen)
    if args.json:
        json.dump(report, sys.stdout, indent=2)


def load_embedder(spec: str) -> tuple[Embed, str]:
    """The function behind `--embedder`, and what to call its vectors."""
    kind, _, rest = spec.partition(":")
    if kind in ("minilm", "onnx", "native"):
        model = MiniLM(rest) if kind == "minilm" else OnnxEmbedder.of(rest) if kind == "onnx" else NativeEmbedder(rest)
        return model, model.id
    if not rest:
        raise SystemExit(f"--embedder is {_EMBEDDERS}, not {spec!r}")
    found = getattr(importlib.import_module(kind), rest)
    return found, spec.replace(":", "-")


def vectors_of(texts: list[str], embed: Embed, identity: str, folder: Path | None) -> NDArray[np.float32]:
    """Unit vectors of all texts, from `folder` where they were made before."""
    digest = hashlib.blake2b("\0".join([identity, *texts]).encode(), digest_size=8).hexdigest()
    file = folder / f"{digest}.npy" if folder is not None else None
    if file is not None and file.exists():
        kept: NDArray[np.float32] = np.load(file)
        return kept
    shown = track(texts, f"{len(texts)} vectors", console=Console(stderr=True))
    made = np.array([embed(text) for text in shown], np.float32)
    made /= np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-9)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, made)
    return made


def summary(runs: list[Figures], eps: float | None = None) -> dict[str, float]:
    """Means over orders, of some with their 95 % half width (Student's t); with `eps`, in what share of them the
    false-hit rate stayed within it."""
    rows = [run.as_dict() for run in runs]
    found = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    for name in _WITH_INTERVAL if len(runs) > 1 else ():
        found[f"{name}_half_width"] = half_width([row[name] for row in rows])
    if eps is not None:
        found["bound_held"] = float(np.mean([run.false_hit_rate <= eps for run in runs]))
    found["worst_false_hit_rate"] = max(run.false_hit_rate for run in runs)
    found["orders"] = len(runs)
    return found


def half_width(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Half width of the 95 % interval of the values' mean, by Student's t."""
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def _stream(name: str, args: argparse.Namespace, embed: Embed, identity: str, screen: Console) -> object:
    stream = STREAMS[name](args.data)
    vectors = vectors_of(stream.texts, embed, identity, args.vectors)
    ranking = Ranking.of(vectors, args.vectors)
    eps = args.eps or EPS[name]
    rows = {f"learned, eps {eps}": _orders(stream, ranking, args, eps, 0.0)}
    for error in args.judge_error:
        rows[f"learned, eps {eps}, judge errs {error:.0%}"] = _orders(stream, ranking, args, eps, error)
    if args.baselines:
        rows |= _baselines(stream, vectors, range(args.seed, args.seed + min(args.orders, _BASELINE_ORDERS)))
    table = Table(title=f"{name}: {len(stream.texts)} questions")
    table.add_column("rule")
    for title in (*_COLUMNS.values(), "bound held"):
        table.add_column(title, justify="right")
    for rule, found in rows.items():
        cells = [_cell(found, column) for column in _COLUMNS]
        table.add_row(rule, *cells, f"{found['bound_held']:.2f}" if "bound_held" in found else "")
    screen.print(table)
    return rows


def _orders(stream: Stream, ranking: Ranking, args: argparse.Namespace, eps: float, error: float) -> dict[str, float]:
    seeds = range(args.seed, args.seed + args.orders)
    title = f"{stream.name}, eps {eps}" + (f", judge errs {error:.0%}" if error else "")
    options = AcceptanceOptions(eps=eps)
    runs = [
        replay(stream, ranking, options=options, seed=seed, judge_error=error, guard=not args.no_guard)
        for seed in track(seeds, title, console=Console(stderr=True))
    ]
    return summary(runs, eps)


def _cell(found: dict[str, float], column: str) -> str:
    half = found.get(f"{column}_half_width")
    return f"{found[column]:.4f}" + (f" (+-{half:.4f})" if half is not None else "")


def _baselines(stream: Stream, vectors: NDArray[np.float32], seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    rules: dict[str, Callable[[int], HitRule]] = {
        **{f"static {at}": partial(_static, at) for at in (0.80, 0.90, 0.95)},
        **{f"vCache, delta {delta}": partial(_per_entry, delta) for delta in (0.01, 0.02, 0.05)},
    }
    return {
        name: summary([replay_rule(stream, vectors, rule(seed), seed=seed) for seed in seeds])
        for name, rule in rules.items()
    }


def _static(threshold: float, seed: int) -> HitRule:
    return StaticRule(threshold)


def _per_entry(delta: float, seed: int) -> HitRule:
    return EntryRule(delta, random.Random(seed))


def _pairs(args: argparse.Namespace, embed: Embed, identity: str, screen: Console) -> PairFigures:
    pairs = qqp_pairs(args.data)[: args.pairs]
    texts = sorted({text for pair in pairs for text in pair[:2]})
    vectors = dict(zip(texts, vectors_of(texts, embed, identity, args.vectors), strict=True))
    found = judge_pairs(pairs, vectors, seed=args.seed)
    table = Table(title=f"QQP pairs: {found.pairs} test pairs of other questions than those learnt from")
    for title in ("rule", "hit share at precision .90", "AUC"):
        table.add_column(title)
    table.add_row("cosine alone", f"{found.cosine_share:.4f}", f"{found.cosine_auc:.4f}")
    table.add_row("words and vectors", f"{found.learned_share:.4f}", f"{found.learned_auc:.4f}")
    screen.print(table)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m cache.evaluate", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77, clinc150, gptcache_qqp")
    parser.add_argument("--embedder", required=True, help=_EMBEDDERS)
    parser.add_argument("--vectors", type=Path, help="folder to keep vectors in")
    parser.add_argument("--streams", nargs="+", default=[*STREAMS, "qqp_pairs"], choices=[*STREAMS, "qqp_pairs"])
    parser.add_argument("--eps", type=float, help="bound on the false-hit rate; default by stream")
    parser.add_argument("--orders", type=int, default=3, help="random orders per stream")
    parser.add_argument("--seed", type=int, default=0, help="first order's seed")
    parser.add_argument("--judge-error", type=float, nargs="*", default=[], help="a judge that errs so often too")
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--no-guard", action="store_true", help="leave the lexical guards out")
    parser.add_argument("--pairs", type=int, help="use the first N pairs only")
    parser.add_argument("--json", action="store_true", help="figures as JSON on standard output")
    return parser


if __name__ == "__main__":
    main()
