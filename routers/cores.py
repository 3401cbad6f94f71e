"""Fitting on one core: on a machine that also answers requests, linear algebra over all cores starves
everybody, and on a busy one its spinning threads are many times slower than a single one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


def one_core() -> AbstractContextManager[Any]:
    """A context in which BLAS and OpenMP run on one thread."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    limits: AbstractContextManager[Any] = threadpool_limits(1)
    return limits
