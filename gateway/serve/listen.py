"""Listening sockets and the limit of open files, for workers, the control process and the supervisor."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
from contextlib import suppress

from gateway.config.types import Server
from gateway.errors import ConfigError

BACKLOG = 2048
UNREAD_S = 120.0
"""A connection is closed when its client acknowledges none of the data sent to it for this long."""
FILES_EVERY_S = 1.0
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)

log = logging.getLogger("headgate.files")


def raise_file_limit() -> None:
    """Allow this process as many open files, and so connections, as the system permits; shells set a lower limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # some systems refuse their own hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def watch_files() -> None:
    """Log when no file can be opened any more, since the system then refuses new connections silently. Runs until
    cancelled.
    """
    were_left = True
    while True:
        are_left = are_files_left()
        if were_left and not are_left:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            log.error("all %d file descriptors are in use: new connections are turned away, open ones go on. "
                      "Raise the limit (ulimit -Hn, LimitNOFILE), or start more workers", limit)  # fmt: skip
        elif are_left and not were_left:
            log.warning("there are file descriptors again")
        were_left = are_left
        await asyncio.sleep(FILES_EVERY_S)


def are_files_left() -> bool:
    try:
        os.close(os.dup(0))
    except OSError as fault:
        return fault.errno not in OUT_OF_FILES
    return True


def admin_host(server: Server) -> str:
    """The host that the control process listens on: `server.admin_host`, or `server.host` where that is empty."""
    return server.admin_host or server.host


def in_url(host: str) -> str:
    """The host as URLs write it: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int, setting: str = "server.port", *, is_first: bool = True) -> socket.socket:
    """A listening socket with SO_REUSEPORT: the kernel spreads connections over all sockets that listen on the port.

    Raises ConfigError, which names the setting, where it can't listen there; with `is_first` also where another socket
    already does.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if is_first:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # the sockets it accepts inherit it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNREAD_S * 1e3))
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError([f"{setting}: {host}:{port}: {error.strerror}"]) from None
    sock.setblocking(False)
    return sock
