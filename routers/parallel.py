"""Independent pieces of one computation, worked on in any order: folds of a training, chunks of a bootstrap.

What runs them is given by the caller: here one after the other, elsewhere side by side. The pieces and their results
are the same either way, and so is every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class ParallelMap(Protocol):
    """`work(*shared, piece)` of every piece, in the pieces' order. `work` is a module's function; `shared` and pieces
    can be sent to another process.
    """

    def __call__(self, work: Callable[..., T], shared: tuple[Any, ...], pieces: Sequence[Any]) -> list[T]:
        """The results."""


def serial_map(work: Callable[..., T], shared: tuple[Any, ...], pieces: Sequence[Any]) -> list[T]:
    """Runs the work in this process, piece by piece."""
    return [work(*shared, piece) for piece in pieces]
