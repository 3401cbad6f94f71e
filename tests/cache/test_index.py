"""The index finds what a full search would find, after any additions and removals."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache.index import FlatIndex, most
from cache.ivf import IvfIndex


def unit(rng: np.random.Generator, dimension: int = 8) -> NDArray[np.float32]:
    """A random unit vector."""
    vector = rng.normal(size=dimension).astype(np.float32)
    return vector / np.linalg.norm(vector)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 200))
def test_the_nearest_are_found(seed: int, moves: int) -> None:
    """After any operations the k nearest are those of a full search, up to the rounding to one byte per dimension."""
    rng = np.random.default_rng(seed)
    index = FlatIndex(8)
    held: dict[int, NDArray[np.float32]] = {}
    for label in range(moves):
        if held and rng.random() < 0.3:
            gone = int(rng.choice(list(held)))
            index.remove(gone)
            del held[gone]
        else:
            held[label] = unit(rng)
            index.add(label, held[label])
    asked = unit(rng)
    labels, near = index.search(asked, 5)
    true = {label: float(vector @ asked) for label, vector in held.items()}
    ranked = sorted(true.values(), reverse=True)[:5]
    assert len(set(labels)) == len(ranked) and near == sorted(near, reverse=True)
    assert np.allclose(near, [true[label] for label in labels], atol=0.015)
    assert np.allclose(near, ranked, atol=0.015)
    assert len(index) == len(held) and sorted(index.labels()) == sorted(held)
    assert np.allclose(index.gather(sorted(held)), [held[label] for label in sorted(held)], atol=0.005) or not held


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3000), st.integers(1, 70), st.booleans())
def test_the_k_largest_are_found(seed: int, size: int, n: int, coarse: bool) -> None:
    """As many as requested are returned, and none is smaller than one left out, however many are equal."""
    values = np.random.default_rng(seed).normal(size=size)
    values = np.round(values) if coarse else values
    found = most(values, n)
    assert len(set(found.tolist())) == min(n, size)
    assert sorted(values[found]) == sorted(values)[-n:]


def test_little_memory_is_reserved() -> None:
    """An index of one vector is small, and a large one reserves at most a quarter more than it uses."""
    rng, index = np.random.default_rng(0), FlatIndex(8)
    assert index.nbytes() == 0 and index.search(unit(rng), 3) == ([], [])
    for label in range(1000):
        index.add(label, unit(rng))
        if label > 20:
            assert index.nbytes() <= 1.25 * (label + 1) * (8 + 4 + 8)


def test_a_label_that_is_not_there_cannot_be_removed() -> None:
    """Removing a label that was never added raises an error and removes nothing else."""
    rng = np.random.default_rng(0)
    for index in (FlatIndex(8), IvfIndex(FlatIndex(8))):
        index.add(1, unit(rng))
        with pytest.raises(KeyError):
            index.remove(2)
        assert index.labels() == [1]


def test_cells_find_what_a_full_search_finds() -> None:
    """While thousands of vectors are added and removed, the nearest is found nearly always, and a removed one never."""
    rng = np.random.default_rng(0)
    vectors = np.array([unit(rng, 16) for _ in range(6000)])
    index, gone = IvfIndex(FlatIndex(16)), set()
    for label in range(6000):
        index.add(label, vectors[label])
        if label % 3 == 2:
            gone.add(label - 1)
            index.remove(label - 1)
    left = np.array(sorted(set(range(6000)) - gone))
    right = 0
    for _ in range(200):
        asked = unit(rng, 16)
        labels, near = index.search(asked, 5)
        assert not gone & set(labels) and near == sorted(near, reverse=True) and len(set(labels)) == 5
        assert np.allclose(near, vectors[labels] @ asked, atol=0.01)
        right += labels[0] == left[np.argmax(vectors[left] @ asked)]
    assert right >= 190 and sorted(index.labels()) == left.tolist() and len(index) == len(left)
    assert np.allclose(index.gather(labels), vectors[labels], atol=0.01)


def test_a_flat_index_is_moved_into_cells_step_by_step() -> None:
    """Its vectors stay findable while each addition splits one cell, until no cell is large."""
    rng = np.random.default_rng(1)
    flat, vectors = FlatIndex(16), np.array([unit(rng, 16) for _ in range(4300)])
    for label in range(4000):
        flat.add(label, vectors[label])
    index = IvfIndex(flat)
    for label in range(4000, 4300):
        index.add(label, vectors[label])
        asked = int(rng.integers(label + 1))
        assert index.search(vectors[asked], 1)[0] == [asked]
    assert len(index) == 4300 and len(index._cells) > 16
    assert max(map(len, index._cells.values())) <= 256


def test_an_index_can_be_emptied_and_filled_again() -> None:
    """Empty cells are removed; an empty index finds nothing and can be filled again."""
    rng = np.random.default_rng(2)
    index = IvfIndex(FlatIndex(8))
    for _ in range(2):
        for label in range(1000):
            index.add(label, unit(rng))
        for label in rng.permutation(1000).tolist():
            index.remove(label)
        assert len(index) == 0 and not index._cells and index.search(unit(rng), 3) == ([], [])


def test_a_thousand_equal_vectors_are_no_problem() -> None:
    """No direction separates equal vectors, so their cells are halved in order of arrival."""
    one = unit(np.random.default_rng(3))
    index = IvfIndex(FlatIndex(8))
    for label in range(1000):
        index.add(label, one)
    labels, near = index.search(one, 5)
    assert len(set(labels)) == 5 and min(near) > 0.99 and len(index) == 1000


def test_it_lives_beside_onnxruntime() -> None:
    """The index can be loaded before ONNX Runtime, which MiniLM needs, and both work in one process."""
    pytest.importorskip("onnxruntime")
    program = (
        "import numpy as np; from cache.index import FlatIndex; import onnxruntime\n"
        "index = FlatIndex(2); index.add(7, np.array([0, 1], np.float32))\n"
        "assert index.search(np.array([0, 1], np.float32), 1)[0] == [7]"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
