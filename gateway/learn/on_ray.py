"""Runs folds and resamples as Ray tasks, to train and evaluate on many cores or machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.ray_cluster import start_ray
from routers.cores import one_core
from routers.parallel import ParallelMap, T


def on_ray(workers: int) -> ParallelMap:
    """Join or start a cluster, and return the function that runs pieces on it. Raises ConfigError where Ray is missing.
    """
    start_ray(workers)
    return _ray_map


def _ray_map(work: Callable[..., T], shared: tuple[Any, ...], pieces: Sequence[Any]) -> list[T]:
    """Run `work` on each piece; `shared` arguments are sent to each machine once."""
    import ray

    sent = [ray.put(part) for part in shared]
    task = ray.remote(num_cpus=1)(_worked)
    found: list[T] = ray.get([task.remote(work, piece, *sent) for piece in pieces])
    return found


def _worked(work: Callable[..., T], piece: Any, *shared: Any) -> T:
    with one_core():
        return work(*shared, piece)
