"""What nearest neighbours cost: one large index, and many tenants in one structure. Part of `python -m cache.bench`.

Times are CPU time, so that a busy machine does not count; searches go to places that the processor's caches have
long forgotten, as they do where many tenants ask.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cache.acceptance import Fitted, Terms
from cache.entry import Entry
from cache.index import FlatIndex, GraphIndex
from cache.key import Partition
from cache.memory import MemoryStore
from cache.neighbours import FEATURES
from cache.semantic import SemanticCache

Vectors = NDArray[np.float32]
_ASKED = 500
_AT_ONCE = 4096


def cpu_ms(work: Callable[[int], object], times: int) -> float:
    """Median CPU time of one call, in milliseconds."""
    return statistics.median(cpu_spent(work, times))


def cpu_spent(work: Callable[[int], object], times: int) -> list[float]:
    """CPU time of each of several calls, in milliseconds."""
    spent = []
    for n in range(times):
        began = time.process_time_ns()
        work(n)
        spent.append((time.process_time_ns() - began) / 1e6)
    return spent


def near_real(n: int, dimension: int, seed: int = 0) -> Vectors:
    """Vectors in clouds, as sentences lie."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 20), dimension)).astype(np.float32)
    made = np.empty((n, dimension), np.float32)
    for start in range(0, n, 50_000):
        part = made[start : start + 50_000]
        part[:] = centres[rng.integers(0, len(centres), len(part))]
        part += np.float32(0.7) * rng.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return made


def bench_index(sizes: tuple[int, ...] = (10_000, 100_000), dimension: int = 384) -> dict[str, dict[str, float]]:
    """Search time, recall of the nearest and bytes per vector of the graph index beside a full search."""
    return {f"{size} vectors": _index_figures(near_real(size, dimension)) for size in sizes}


def _index_figures(vectors: Vectors) -> dict[str, float]:
    size, dimension = vectors.shape
    asked = _asked(vectors)
    index, began = GraphIndex(dimension), time.process_time()
    for start in track(range(0, size, _AT_ONCE), f"{size} vectors", console=Console(stderr=True)):
        for n in range(start, min(start + _AT_ONCE, size)):
            index.add(n, vectors[n])
        while index.settle():
            pass
    built_s = time.process_time() - began
    near = [vectors @ vector for vector in asked]
    found = [index.search(vector, 8)[0][0] for vector in asked]
    right = [int(np.argmax(true)) == label for true, label in zip(near, found, strict=True)]
    as_near = [true.max() - true[label] <= 0.001 for true, label in zip(near, found, strict=True)]
    spent = cpu_spent(lambda n: index.search(asked[n % _ASKED], 8), 3 * _ASKED)
    return {
        "search_ms": round(statistics.median(spent), 4),
        "search_p99_ms": round(sorted(spent)[int(0.99 * len(spent))], 4),
        "full_search_ms": round(cpu_ms(lambda n: vectors @ asked[n % _ASKED], 20), 4),
        "recall_at_1": round(float(np.mean(right)), 4),
        "as_near_within_001": round(float(np.mean(as_near)), 4),
        "bytes_per_vector": round(index.nbytes() / size),
        "build_ms_per_vector": round(built_s / size * 1e3, 4),
    }


def _asked(vectors: Vectors) -> Vectors:
    """Other words for some of the questions: at a cosine of about .86 to them."""
    rng = np.random.default_rng(1)
    size, dimension = vectors.shape
    noise = 0.03 * rng.normal(size=(_ASKED, dimension)).astype(np.float32)
    asked = vectors[rng.integers(0, size, _ASKED)] + noise
    made: Vectors = (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)
    return made


def bench_tenants(
    tenants: int = 1000, entries: int = 1000, dimension: int = 384, shared: int = 50_000
) -> dict[str, float]:
    """Many tenants in one semantic cache, asked in random order, beside an array of each tenant's own and beside one
    graph that holds the vectors of `shared` of their entries for all.
    """
    cache = trusting(MemoryStore(1 << 30), dimension, tenants * entries)
    vectors = near_real(entries, dimension)
    for tenant in track(range(tenants), "tenants", console=Console(stderr=True)):
        name = str(tenant)
        for n in range(entries):
            entry = Entry(f"{name}:{n}", "chat", b"", "m", "", 0.0, 1e9, 0.0, tenant=name)
            question = Partition(name.encode(), f"question {n}")
            cache.record(question, vectors[n], entry, key=entry.id.encode())
    cache.maintain()
    spaces = [space.index for space in cache._spaces.values()]
    own = [vectors.copy() for _ in range(tenants)]
    alone = FlatIndex(dimension)
    for n in range(entries):
        alone.add(n, vectors[n])
    rng = random.Random(0)
    asked = [(rng.randrange(tenants), vectors[rng.randrange(entries)]) for _ in range(3000)]
    graph = _one_graph(min(shared, tenants * entries), dimension)

    def own_array(n: int) -> object:
        near = own[asked[n][0]] @ asked[n][1]
        top = np.argpartition(near, entries - 8)[entries - 8 :]
        return top[np.argsort(-near[top])].tolist()

    return {
        "entries": len(cache),
        "search_ms": round(cpu_ms(lambda n: spaces[asked[n][0]].search(asked[n][1], 8), 3000), 4),
        "own_array_ms": round(cpu_ms(own_array, 3000), 4),
        "one_tenant_alone_ms": round(cpu_ms(lambda n: alone.search(asked[n][1], 8), 3000), 4),
        "shared_graph_ms": round(cpu_ms(lambda n: graph.search(asked[n][1], 8), 1000), 4),
        "bytes_per_vector": round(sum(space.nbytes() for space in spaces) / len(cache)),
        "shared_graph_bytes_per_vector": round(graph.nbytes() / len(graph)),
    }


def _one_graph(size: int, dimension: int) -> GraphIndex:
    graph = GraphIndex(dimension)
    for n, vector in enumerate(near_real(size, dimension)):
        graph.add(n, vector)
        if n % _AT_ONCE == _AT_ONCE - 1:
            while graph.settle():
                pass
    while graph.settle():
        pass
    return graph


def trusting(store: MemoryStore, dimension: int, max_entries: int) -> SemanticCache:
    """A semantic cache whose rule has learnt to accept whatever is near."""
    cache = SemanticCache(store, dimension=dimension, terms=Terms(), rng=random.Random(0), max_entries=max_entries)
    ones = np.ones(FEATURES)
    cache.acceptance.fitted = Fitted(0 * ones, ones, np.zeros(FEATURES + 1), 0.0, 0.0, 1)
    return cache
