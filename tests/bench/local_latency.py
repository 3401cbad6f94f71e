"""How well the latencies of the shipped local models are foretold: `python -m tests.bench.local_latency [--answers N]`.

Prompts and answers of random lengths, one after another on one thread, measured by the clock, go into a folder of
outcomes, which `routers.bench.latency` reads: three in ten are held out. Texts say nothing of the lengths, so
`foretold` knows none of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import parquet

from local_models import shipped_models
from local_models.decoder import Decoder
from local_models.engine import Engine, EngineOptions
from local_models.request import Request
from local_models.text import TextCodec
from routers.bench.latency import as_text, compared
from routers.outcomes import read_outcomes

LONGEST_PROMPT, LONGEST_ANSWER = 400, 96
Row = dict[str, Any]


def measured(model: str, answers: int) -> list[Row]:
    folder, rng = shipped_models()[model], np.random.default_rng(0)
    decoder = Decoder.load(folder)
    engine = Engine(decoder, TextCodec(folder), EngineOptions(kv_tokens=4096, share_prefixes=False))
    rows: list[Row] = []
    for at in range(-5, answers):  # the first few warm it up
        prompt, output = int(rng.integers(8, LONGEST_PROMPT)), int(rng.integers(1, LONGEST_ANSWER))
        ids = tuple(rng.integers(8, decoder.shape.vocabulary, prompt).tolist())
        began_s = time.perf_counter()
        engine.add(Request(str(at), ids, output, ignore_end=True))
        while engine.busy:
            engine.step()
        took_s = time.perf_counter() - began_s
        if at >= 0:
            rows.append({"query_id": str(at), "model": model, "score": 1.0, "input_tokens": prompt,
                         "output_tokens": output, "latency_s": took_s})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.local_latency", description=__doc__)
    parser.add_argument("--answers", type=int, default=300, help="of each model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for model in shipped_models() for row in measured(model, args.answers)]
    queries = [{"query_id": str(at), "task": "any", "text": f"question {at}"} for at in range(args.answers)]
    with tempfile.TemporaryDirectory() as name:
        for file, table in (("queries", queries), ("outcomes", rows)):
            parquet.write_table(pyarrow.Table.from_pylist(table), Path(name) / f"{file}.parquet")
        print(as_text(compared(read_outcomes(Path(name)))))


if __name__ == "__main__":
    main()
