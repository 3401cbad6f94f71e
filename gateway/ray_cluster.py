"""Joins or starts a Ray cluster (extra `ray`), over which large jobs are distributed."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from gateway.errors import ConfigError

log = logging.getLogger("headgate.ray")

TRIES = 6
_SLOW = "timed out during startup"


def start_ray(workers: int) -> None:
    """Join the cluster at RAY_ADDRESS, or start one on this machine where that is not set. Raises ConfigError where Ray
    is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(["--engine ray needs Ray: pip install 'headgate[ray]'"]) from None
    if ray.is_initialized():
        return
    _keep_stdout()
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    else:
        _start_own(ray, workers + 1)


def _keep_stdout() -> None:
    """Keep Ray's native code, which may log to file descriptor 1, out of the output of `--json`: that descriptor
    becomes standard error, and only Python's `sys.stdout` still writes to the standard output.
    """
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(2, 1)


def _start_own(ray: Any, cpus: int) -> None:
    """Start Ray, trying several times: it allows its own helper process 15 s for its imports (ray-project/ray#65983),
    which is too little on a busy machine, and each try finds more of the files in memory.
    """
    for left in reversed(range(TRIES)):
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, configure_logging=False)
            return
        except Exception as error:  # Ray has no exception class for this
            if _SLOW not in str(error) or not left:
                raise
            log.warning("Ray did not start in time; trying again")
