"""Shows what a decision takes on one core: `python -m routers.bench.speed`.

A decision is features, estimates and choice among ten priced models with exploration. Hot: one after the other, each
another text. Cold: in between eight megabytes are walked through, as a server's other work would. Routers are trained
on seeded made-up outcomes, for what they know does not change what they cost.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from time import perf_counter_ns, thread_time_ns

import numpy as np
from numpy.typing import NDArray

from routers.cores import one_core
from routers.features import Featurizer, shipped_featurizer
from routers.fit import described, fit_router
from routers.outcomes import Outcomes
from routers.plugin import PluginRouter
from routers.select import Exploration
from routers.types import Candidate, Knobs

MODELS = tuple(f"m{i}" for i in range(10))
POOL = [Candidate(name, 0.1 * (i + 1), 0.4 * (i + 1)) for i, name in enumerate(MODELS)]
KNOBS = Knobs(cost_weight=0.5)
LENGTHS = {"30 tokens": 22, "1,000 tokens": 760}
"""Words of a text."""
Clock = Callable[[], int]
TEXT = (
    "which of these is not a river in the north and why did people move there before the war ended compute sum x of "
    "plus seven write short story about old garden function returns list each number integer patient showed signs from "
    "energy water court ruled that market price rises when supply falls choose best answer below explain step by step"
)


def texts(words: int, count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(TEXT.split(), words)) + "?" for _ in range(count)]


def trained(kind: str, featurizer: Featurizer, rows: int = 400) -> PluginRouter:
    rng, asked = np.random.default_rng(0), texts(25, rows, 1)
    m = len(MODELS)
    none = np.full((rows, m), np.nan)
    data = Outcomes(
        tuple(map(str, range(rows))), tuple(asked), tuple("abcd"[i % 4] for i in range(rows)), np.full(rows, "train"),
        MODELS, rng.random((rows, m)), rng.lognormal(-7, 1, (rows, m)), none, none, rng.lognormal(5, 1, (rows, m)),
        none, none, none,
    )  # fmt: skip
    return fit_router(kind, data, described(data, featurizer), featurizer, exploration=Exploration(floor=0.02))


def timed(
    decide: Callable[[str], object], asked: Sequence[str], disturb: NDArray[np.int64] | None, clock: Clock
) -> list[float]:
    """Microseconds of each decision, the first ones left out."""
    found = []
    for text in (*asked[:20], *asked):
        if disturb is not None:
            disturb += 1
        begun = clock()
        decide(text)
        found.append((clock() - begun) / 1000)
    return found[-len(asked) :]


def measured(kind: str, count: int, clock: Clock = perf_counter_ns) -> dict[str, dict[str, float]]:
    featurizer = shipped_featurizer()
    router = trained(kind, featurizer)

    def decide(text: str) -> object:
        return router.choose(featurizer.describe(text, max_output_tokens=300), POOL, KNOBS, 0.4)

    report = {}
    for name, words in LENGTHS.items():
        asked = texts(words, count, 2)
        for state, walked in (("hot", None), ("cold", np.zeros(1_000_000, np.int64))):
            found = np.percentile(timed(decide, asked, walked, clock), [10, 50, 95])
            report[f"{name}, {state}"] = dict(zip(("p10_us", "p50_us", "p95_us"), found.tolist(), strict=True))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.speed", description=__doc__)
    parser.add_argument("--decisions", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--cpu", action="store_true", help="time at work, where others use the machine too"
    )
    args = parser.parse_args()
    clock = thread_time_ns if args.cpu else perf_counter_ns
    with one_core():
        report = {kind: measured(kind, args.decisions, clock) for kind in ("ensemble", "linear")}
    if args.json:
        print(json.dumps(report))
        return
    for kind, rows in report.items():
        for name, row in rows.items():
            print(f"{kind:9s} {name:20s} " + "  ".join(f"{key[:-3]} {us:7.1f} us" for key, us in row.items()))


if __name__ == "__main__":
    main()
