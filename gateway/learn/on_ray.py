"""Folds and resamples as Ray's tasks: training and evaluation of large journals over many cores or machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.ray_cluster import start_ray
from routers.cores import one_core
from routers.spread import Found, Spread


def on_ray(workers: int) -> Spread:
    """A cluster joined or started, and what spreads work over it. ConfigError where Ray is missing."""
    start_ray(workers)
    return _spread


def _spread(work: Callable[..., Found], shared: tuple[Any, ...], pieces: Sequence[Any]) -> list[Found]:
    """What is shared is sent to each machine once."""
    import ray

    sent = [ray.put(part) for part in shared]
    task = ray.remote(num_cpus=1)(_worked)
    found: list[Found] = ray.get([task.remote(work, piece, *sent) for piece in pieces])
    return found


def _worked(work: Callable[..., Found], piece: Any, *shared: Any) -> Found:
    with one_core():
        return work(*shared, piece)
