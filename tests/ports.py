"""Ports for servers that are told where to listen: each is one process's own for as long as that process runs.

Below what the kernel hands out by itself, so nothing else takes a port between our choosing it and its server's
binding it; and no two test processes are given the same one.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

PORTS = range(12_000, 32_000)

_leases: list[IO[str]] = []
"""Locked files, one per port handed out; the locks end with the process."""


def free_port() -> int:
    """Nobody listens there, and nobody else is told of it. Raises OSError where none is left."""
    folder = Path(tempfile.gettempdir()) / f"headgate-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for port in random.sample(PORTS, len(PORTS)):
        lease = (folder / str(port)).open("w")
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            lease.close()
            continue
        _leases.append(lease)
        return port
    raise OSError("no free port is left: are servers of earlier tests still running?")
