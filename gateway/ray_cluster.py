"""Ray (extra `ray`), joined or started: what large work is spread over. Nothing distributed here is ours."""

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
    """Join the cluster that RAY_ADDRESS names, else start one on this machine. ConfigError where Ray is missing."""
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
    """Ray's native code may log to file descriptor 1, whatever Python is told: from here on that is standard error, and
    Python alone writes to what was standard output, so that `--json` stays one document.
    """
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(2, 1)


def _start_own(ray: Any, cpus: int) -> None:
    """Ray gives its own helper process 15 s to import itself (ray-project/ray#65983): too little on a busy machine;
    each try finds more of it in memory.
    """
    for left in reversed(range(TRIES)):
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, configure_logging=False)
            return
        except Exception as error:  # Ray has no name for it
            if _SLOW not in str(error) or not left:
                raise
            log.warning("Ray did not start in time; trying again")
