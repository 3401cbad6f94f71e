"""What nearest neighbours cost: one large index, and many tenants in one structure. Part of `python -m cache.bench`.

Times are CPU time, so that a busy machine does not count; searches go to places that the processor's caches have
long forgotten, as they do where many tenants ask.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cache.acceptance import Acceptance, Fitted
from cache.entry import Entry
from cache.index import FlatIndex
from cache.ivf import IvfIndex
from cache.key import Partition
from cache.memory import MemoryStore
from cache.neighbours import FEATURES
from cache.semantic import Miss, SemanticCache

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


def cpu_beside(works: Mapping[str, Callable[[int], object]], times: int) -> dict[str, list[float]]:
    """CPU time of each call of several works that take turns, so that all meet the same machine."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for n in range(times):
        for name, work in works.items():
            spent[name] += cpu_spent(lambda _, n=n, work=work: work(n), 1)  # type: ignore[misc]
    return spent


def median_interval(spent: Sequence[float]) -> tuple[float, float]:
    """95 %, of the median by ranks: exact whatever the times' distribution, for calls that don't depend on each other.
    """
    ranked, reach = sorted(spent), 1.96 * len(spent) ** 0.5 / 2
    low, high = int(len(spent) / 2 - reach), int(len(spent) / 2 + reach)
    return round(ranked[max(low, 0)], 4), round(ranked[min(high, len(spent) - 1)], 4)


def near_real(n: int, dimension: int, seed: int = 0) -> Vectors:
    """Vectors in clusters, as those of sentences are."""
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
    """Search time, recall of the nearest and bytes per vector of the index of cells beside a full search."""
    return {f"{size} vectors": _index_figures(near_real(size, dimension)) for size in sizes}


def _index_figures(vectors: Vectors) -> dict[str, float]:
    size, dimension = vectors.shape
    asked = _asked(vectors)
    index, adding = IvfIndex(FlatIndex(dimension)), []
    for start in track(range(0, size, _AT_ONCE), f"{size} vectors", console=Console(stderr=True)):
        part = enumerate(vectors[start : start + _AT_ONCE], start)
        adding += cpu_spent(lambda _, part=part: index.add(*next(part)), min(_AT_ONCE, size - start))  # type: ignore[misc]
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
        "add_ms": round(statistics.mean(adding), 4),
        "slowest_add_ms": round(max(adding), 4),
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
    tenants: int = 1000, entries: int = 1000, dimension: int = 384, shared: int = 100_000
) -> dict[str, Any]:
    """Many tenants in one semantic cache, asked in random order, beside an index of one tenant's alone, an array of
    floats of each tenant's own, and one index that holds the vectors of `shared` entries for all. Medians, each with
    its 95 % interval.
    """
    cache = trusting(MemoryStore(1 << 30), dimension, tenants * entries)
    vectors, before = near_real(entries, dimension), _resident_bytes()
    for tenant in track(range(tenants), "tenants", console=Console(stderr=True)):
        _fill(cache, str(tenant), vectors)
    resident = _resident_bytes() - before
    spaces = [space.index for space in cache._partitions.values()]
    own = [vectors.copy() for _ in range(tenants)]
    alone = FlatIndex(dimension)
    for n in range(entries):
        alone.add(n, vectors[n])
    rng = random.Random(0)
    asked = [(rng.randrange(tenants), vectors[rng.randrange(entries)]) for _ in range(3000)]

    def own_array(n: int) -> object:
        near = own[asked[n][0]] @ asked[n][1]
        top = np.argpartition(near, entries - 8)[entries - 8 :]
        return top[np.argsort(-near[top])].tolist()

    def whose(n: int) -> str:
        """Whose answer is proposed, to a question that all tenants have."""
        tenant = str(asked[n][0])
        found = cache.propose(Partition(tenant.encode(), "question 1"), asked[n][1], tenant=tenant, now_s=1.0)
        return tenant if isinstance(found, Miss) else found[0].tenant

    searches = {
        "search_ms": lambda n: spaces[asked[n][0]].search(asked[n][1], 8),
        "one_tenant_alone_ms": lambda n: alone.search(asked[n][1], 8),
        "own_array_ms": own_array,
    }
    spent = cpu_beside(searches, 3000)
    whole = _filled(near_real(min(shared, tenants * entries), dimension))
    of_all = cpu_spent(lambda n: whole.search(asked[n][1], 8), 1000)
    return {
        "entries": len(cache),
        **{name: round(statistics.median(times), 4) for name, times in spent.items()},
        **{f"{name}_95": median_interval(times) for name, times in spent.items()},
        "crossed": sum(whose(n) != str(asked[n][0]) for n in range(3000)),
        "shared_index_ms": round(statistics.median(of_all), 4),
        "shared_index_ms_95": median_interval(of_all),
        "bytes_per_vector": round(sum(space.nbytes() for space in spaces) / len(cache)),
        "shared_index_bytes_per_vector": round(whole.nbytes() / len(whole)),
        "process_bytes_per_entry": round(resident / len(cache)),
    }


def _fill(cache: SemanticCache, tenant: str, vectors: Vectors) -> None:
    for n, vector in enumerate(vectors):
        entry = Entry(f"{tenant}:{n}", "chat", b"", "m", "", 0.0, 1e9, 0.0, tenant=tenant)
        cache.record(Partition(tenant.encode(), f"question {n}"), vector, entry, key=entry.id.encode())


def _filled(vectors: Vectors) -> IvfIndex:
    index = IvfIndex(FlatIndex(vectors.shape[1]))
    for label, vector in enumerate(vectors):
        index.add(label, vector)
    return index


def _resident_bytes() -> int:
    """What this process holds in memory; 0 where the system doesn't tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def trusting(store: MemoryStore, dimension: int, max_entries: int) -> SemanticCache:
    """A semantic cache whose rule has learnt to accept whatever is near."""
    acceptance, ones = Acceptance(rng=random.Random(0)), np.ones(FEATURES)
    acceptance.fitted = Fitted(0 * ones, ones, np.zeros(FEATURES + 1), 0.0, 0.0, 1)
    return SemanticCache(store, dimension=dimension, acceptance=acceptance, max_entries=max_entries)
