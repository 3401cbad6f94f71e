"""Forked helper processes, for work that would block or bloat the process that needs it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

log = logging.getLogger("headgate.processes")


def forked(
    count: int, initializer: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor | None:
    """A pool of `count` forks of this process, each of which first calls `initializer(*arguments)`. None where the
    system has no shared memory for their locks (a container without /dev/shm): then the caller has to do the work.
    """
    try:
        return ProcessPoolExecutor(count, get_context("fork"), initializer, arguments)
    except (OSError, ImportError, NotImplementedError) as fault:
        log.debug("helper processes can't be started, the work is done in this process: %s", fault)
        return None
