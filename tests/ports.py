"""Ports for servers that must be told where to listen; each belongs to one process as long as it runs.

They are below the range from which the kernel assigns ports, so no other program takes one between its choice and its
server's bind, and no two test processes get the same one.
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
    """A port on which nobody listens and which no other test process gets. Raises OSError if none is left."""
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
