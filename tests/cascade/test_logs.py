"""Logged answers are read completely or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade.logs import read_logged
from routers.outcomes import DataError
from tests.cascade.worlds import logged, write


def test_a_folder_is_read_back(tmp_path: Path) -> None:
    """Scores, both costs, confidences and answers are read as they were written."""
    log = logged(20, check_usd=1e-5)
    write(log, tmp_path)
    read = read_logged(tmp_path)
    order = [read.data.models.index(m) for m in log.data.models]
    assert np.array_equal(read.data.scores[:, order], log.data.scores)
    assert np.allclose(read.data.checked_cost_usd - read.data.cost_usd, 1e-5)
    assert tuple(tuple(row[j] for j in order) for row in read.answers) == log.answers
    assert np.array_equal(read.agreement[:, order][:, :, order], log.agreement)


def test_rows_with_a_gap_are_dropped_and_counted(tmp_path: Path) -> None:
    """A query for which some model's cost is missing can't be replayed."""
    log = logged(20)
    cost = log.data.cost_usd.copy()
    cost[3, 1] = np.nan
    write(replace(log, data=replace(log.data, cost_usd=cost, checked_cost_usd=cost)), tmp_path)
    with pytest.raises(DataError):  # a NaN written as a number is no cost at all
        read_logged(tmp_path)


def test_a_log_without_evidence_is_refused(tmp_path: Path) -> None:
    """Without confidences and responses no cascade can judge an answer."""
    log = logged(10)
    blank = np.full_like(log.data.confidence, np.nan)
    silent = replace(log, data=replace(log.data, confidence=blank), answers=(("", "", ""),) * 10)
    write(silent, tmp_path)
    with pytest.raises(DataError, match="nothing to read"):
        read_logged(tmp_path)
