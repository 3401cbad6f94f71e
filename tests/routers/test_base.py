"""The functions that all estimators share, on tables that are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from routers.estimators.base import deviation_of_mean, folds, observed_mean, parted, row_keys, softmax, task_table

GAP = np.nan


def test_means_are_shrunk_by_pseudo_observations() -> None:
    """Four pseudo-scores at the mean of all scores, 2/3, are added to each model's own."""
    scores = np.array([[1.0, 0.0], [1.0, GAP]])
    assert observed_mean(scores) == pytest.approx([(2 + 4 * 2 / 3) / 6, (0 + 4 * 2 / 3) / 5])
    assert observed_mean(scores, 0.0) == pytest.approx([1.0, 0.0])


def test_a_task_is_shrunk_toward_its_models_mean() -> None:
    """That mean is itself shrunk by at most four pseudo-scores. A cell without a score gets that mean."""
    scores = np.array([[1.0, 0.0], [1.0, GAP], [0.0, GAP]])
    names, table, count = task_table(scores, ["b", "a", "b"], 10.0)
    base = [(2 + 4 * 0.5) / 7, (0 + 4 * 0.5) / 5]
    assert names == ["a", "b"] and count.tolist() == [[1, 0], [2, 1]]
    assert table[0] == pytest.approx([(1 + 10 * base[0]) / 11, base[1]])
    assert table[1] == pytest.approx([(1 + 10 * base[0]) / 12, (0 + 10 * base[1]) / 11])
    base = [(2 + 2 * 0.5) / 5, (0 + 2 * 0.5) / 3]
    assert task_table(scores, ["b", "a", "b"], 2.0)[1][0] == pytest.approx([(1 + 2 * base[0]) / 3, base[1]])


def test_the_deviation_of_a_mean_is_that_of_a_share() -> None:
    """It is sqrt(p (1 - p) / n), where p (1 - p) is taken to be at least .01."""
    found = deviation_of_mean(np.array([0.2, 0.5, 1.0]), np.array([4.0, 25.0, 100.0]))
    assert found == pytest.approx([0.2, 0.1, 0.01])


def test_a_row_with_one_score_has_the_level_predicted_for_it() -> None:
    """The level of a row with more scores is their mean deviation from their models' means."""
    scores = np.array([[1.0, 0.0], [1.0, GAP], [GAP, GAP]])
    rest = scores - observed_mean(scores)
    level, deviation = parted(scores, np.array([9.0, 0.1, 0.2]))
    assert level == pytest.approx([rest[0].mean(), 0.1, 0.2])
    assert deviation[:2] + level[:2, None] == pytest.approx(rest[:2], nan_ok=True) and np.isnan(deviation[2]).all()
    assert parted(scores)[0] == pytest.approx([rest[0].mean(), 0.0, 0.0])


def test_equal_rows_share_a_fold() -> None:
    """Rows that differ by rounding are equal. With fewer than 2 k different rows, equal rows may be parted."""
    x = np.repeat(np.arange(8.0)[:, None], 2, axis=0)
    x[1::2] += 1e-9
    x[0] = -0.0
    four = folds(row_keys(x), 4, 0)
    assert (four[::2] == four[1::2]).all() and set(four.tolist()) == {0, 1, 2, 3}
    five = folds(row_keys(x), 5, 0)
    assert sorted(np.bincount(five)) == [3, 3, 3, 3, 4] and (five[::2] != five[1::2]).any()


def test_a_softmax_of_large_numbers_is_finite() -> None:
    """Their exponentials alone would be infinite, or all zero."""
    assert softmax(np.array([[1000.0, 1000.0], [-1000.0, -1000.0]])) == pytest.approx(0.5)
