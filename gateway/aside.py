"""Processes for work that the one which needs it had better not do itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

log = logging.getLogger("headgate.processes")


def forked(
    count: int, begin: Callable[..., None] | None = None, given: tuple[Any, ...] = ()
) -> ProcessPoolExecutor | None:
    """So many copies of this process, each of which calls `begin` with what is given. None: the system has no shared
    memory for their locks, as a container without /dev/shm; the work has to be done here.
    """
    try:
        return ProcessPoolExecutor(count, get_context("fork"), begin, given)
    except (OSError, ImportError, NotImplementedError) as fault:
        log.debug("no processes for work aside: %s", fault)
        return None
