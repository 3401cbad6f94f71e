"""`python -m cache.pair_fit PAIRS OUT --embedder ...`: a pair rule for a route's `cache_rule`, from labelled pairs.

PAIRS has a line for each two questions, tabs between: one question, the other, 1 where one answer serves both and 0
where it doesn't; a first line whose third field is no number is its heading. It may be gzipped. The embedder must be
the one that the cache compares by (`embedding.path`), and is written into OUT. Told on the way: how well the rule
does on questions it was not learnt from. Needs scikit-learn, which serving does not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path

from cache.evaluate import load_embedder, vectors_of
from cache.pair_rule import Pair, fit_pair_rule
from cache.pairs import cosines, judge_pairs


def read_pairs(file: Path) -> list[Pair]:
    """The labelled pairs of a file. ValueError, with the line's number, for a line of another form."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]
    found = []
    for number, row in enumerate(rows, 1):
        if len(row) == 3 and row[2] in ("0", "1"):
            found.append((row[0], row[1], row[2] == "1"))
        elif number > 1:
            raise ValueError(f"{file}, line {number}: not two questions and a 0 or 1, with tabs between")
    return found


def main() -> None:
    """Fit the rule, measure it, and write it."""
    parser = argparse.ArgumentParser("python -m cache.pair_fit", description=__doc__)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--embedder", required=True, help="minilm:FOLDER, onnx:FOLDER or native:FOLDER")
    parser.add_argument("--vectors", type=Path, help="folder to keep vectors in")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        pairs = read_pairs(args.pairs)
        embed, name = load_embedder(args.embedder)
        texts = sorted({text for pair in pairs for text in pair[:2]})
        vectors = dict(zip(texts, vectors_of(texts, embed, name, args.vectors), strict=True))
        figures = judge_pairs(pairs, vectors, seed=args.seed)
        rule = fit_pair_rule(pairs, cosines(pairs, vectors), embedder=name, seed=args.seed)
        rule.save(args.out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"no rule was learnt: {error}") from None
    json.dump({"pairs": len(pairs), "embedder": name, "on_other_questions": figures.as_dict()}, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
