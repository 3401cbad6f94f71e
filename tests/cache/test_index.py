"""The index finds what a full search would, through any adding and removing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache.index import FlatIndex, GraphIndex


def unit(rng: np.random.Generator) -> NDArray[np.float32]:
    """A random direction."""
    vector = rng.normal(size=8).astype(np.float32)
    return vector / np.linalg.norm(vector)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 200))
def test_the_nearest_are_found(seed: int, moves: int) -> None:
    """After any moves the k nearest are those of a dictionary searched in full, to what a byte a dimension can tell."""
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


def test_little_is_kept_free() -> None:
    """An index of one vector is small, and one of many keeps at most a quarter free."""
    rng, index = np.random.default_rng(0), FlatIndex(8)
    assert index.nbytes() == 0 and index.search(unit(rng), 3) == ([], [])
    for label in range(1000):
        index.add(label, unit(rng))
        if label > 20:
            assert index.nbytes() <= 1.25 * (label + 1) * (8 + 4)


def test_a_graph_finds_what_a_full_search_finds() -> None:
    """While vectors move into the graph and out again, the nearest is found nearly always, the removed never."""
    rng = np.random.default_rng(0)
    vectors = np.array([unit(rng) for _ in range(2000)])
    index = GraphIndex(8)
    gone = set()
    for label in range(2000):
        index.add(label, vectors[label])
        if label % 300 == 299:
            index.settle(200)
        if label % 7 == 6:
            gone.add(label - 3)
            index.remove(label - 3)
    left = np.array(sorted(set(range(2000)) - gone))
    right = 0
    for _ in range(200):
        asked = unit(rng)
        labels, near = index.search(asked, 5)
        assert not gone & set(labels) and near == sorted(near, reverse=True) and len(set(labels)) == 5
        right += labels[0] == left[np.argmax(vectors[left] @ asked)]
    assert right >= 196 and len(index) == len(left) == len(index.labels())


def test_settling_beside_searches_and_removals_loses_nothing() -> None:
    """With another thread moving vectors into the graph every search is right and every removal holds."""
    rng = np.random.default_rng(1)
    vectors = np.array([unit(rng) for _ in range(1500)])
    index = GraphIndex(8)
    for label in range(1500):
        index.add(label, vectors[label])
    with ThreadPoolExecutor(1) as other:
        moving = other.submit(lambda: [index.settle(100) for _ in range(15)])
        for label in range(0, 1500, 3):
            index.remove(label)
            kept = label + 1
            labels, near = index.search(vectors[kept], 1)
            assert near[0] > 0.99 and labels[0] % 3
        moving.result()
    while index.settle():
        pass
    assert len(index) == 1000
    assert all(index.search(vectors[label], 8)[0].count(label) == 0 for label in range(0, 1500, 3))
