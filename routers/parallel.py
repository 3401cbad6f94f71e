"""Independent pieces of one computation, such as folds of a training or chunks of a bootstrap. The caller decides what
runs them, one after the other or in parallel; the results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class ParallelMap(Protocol):
    """Computes `work(*shared, piece)` for every piece and returns the results in the pieces' order. `work` must be a
    function of a module, and `shared` and the pieces must be picklable.
    """

    def __call__(self, work: Callable[..., T], shared: tuple[Any, ...], pieces: Sequence[Any]) -> list[T]:
        """Return the results."""


def serial_map(work: Callable[..., T], shared: tuple[Any, ...], pieces: Sequence[Any]) -> list[T]:
    """Runs the work in this process, piece by piece."""
    return [work(*shared, piece) for piece in pieces]
