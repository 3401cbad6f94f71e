"""Blocks of lines, read and estimated in this process or in others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.batch.read import LineReader, ReadOptions
from gateway.batch.scan import BLOCK_LINES, Line, Scanner, scanned
from gateway.batch.types import Problem
from tests.gateway.batch.planned import plan_context


def scanner(folder: Path, options: ReadOptions | None = None) -> Scanner:
    context = plan_context(folder)
    return Scanner(LineReader(context.book, options or ReadOptions()), tuple(context.book.models), "team", "route")


def lines(count: int) -> Iterator[Line]:
    for number in range(1, count + 1):
        if number % 97 == 0:
            yield number, b"{broken"
        elif number % 101 == 0:
            yield Problem(number, "", "too long", "request_too_large")
        else:
            yield number, json.dumps({"prompt": f"What is {number} + {number}?", "id": str(number)}).encode()


def test_estimates_belong_to_good_lines(tmp_path: Path) -> None:
    """Row i of the estimates is the i-th good line; bad lines have none."""
    found = next(iter(scanned(scanner(tmp_path), iter([(1, b'"hi"'), (2, b"{"), (3, b'"you there"')]), 1)))
    assert found.good.lines == [1, 3]
    assert [problem.line for problem in found.problems] == [2]
    assert found.estimates.quality.shape == (2, 2)
    assert (found.lines, found.bytes) == (3, 4 + 1 + 11)


def test_a_prompt_over_every_context_is_a_problem(tmp_path: Path) -> None:
    """It has its tokens and each model's reason."""
    found = scanner(tmp_path).scan([(1, json.dumps({"prompt": "word " * 5_000}).encode())])
    assert not len(found.good)
    assert found.problems[0].code == "context_length_exceeded"
    assert "tokens" in found.problems[0].message


def test_a_floor_that_no_model_reaches_is_a_problem(tmp_path: Path) -> None:
    """It has the best quality that is possible."""
    found = scanner(tmp_path, ReadOptions(floor=0.999)).scan([(1, b'"hi"')])
    assert (found.problems[0].code, len(found.good)) == ("floor_unreachable", 0)


@pytest.mark.parametrize("have_memory", [True, False])
def test_several_processes_find_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, have_memory: bool
) -> None:
    """The order is the same, also without shared memory (/dev/shm)."""
    count = 3 * BLOCK_LINES + 17
    alone = list(scanned(scanner(tmp_path), lines(count), 1))
    if not have_memory:
        monkeypatch.setattr("_multiprocessing.SemLock", _no_shared_memory)
    together = list(scanned(scanner(tmp_path), lines(count), 2))
    assert [block.good for block in together] == [block.good for block in alone]
    assert [block.problems for block in together] == [block.problems for block in alone]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.estimates.quality, other.estimates.quality)
        np.testing.assert_array_equal(one.estimates.cost_usd, other.estimates.cost_usd)


def _no_shared_memory(*_: object) -> None:
    raise FileNotFoundError(2, "No such file or directory")  # the error of sem_open


def test_only_a_few_blocks_are_read_ahead(tmp_path: Path) -> None:
    """A large input is never in memory completely."""
    taken = 0

    def counted() -> Iterator[Line]:
        nonlocal taken
        for line in lines(20 * BLOCK_LINES):
            taken += 1
            yield line

    blocks = scanned(scanner(tmp_path), counted(), 2)
    next(blocks)
    assert taken <= 7 * BLOCK_LINES
    blocks.close()
