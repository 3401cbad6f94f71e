"""Listening sockets and the files they are, as workers, control and supervisor share them."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
from contextlib import suppress

from gateway.config import Server
from gateway.errors import ConfigError

BACKLOG = 2048
UNREAD_S = 120.0
"""A client that takes nothing of what waits for it for this long has left, whatever its connection says."""
FILES_EVERY_S = 1.0
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)

log = logging.getLogger("headgate.files")


def raise_file_limit() -> None:
    """As many open files, so connections, as the system allows; shells start processes with less."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # a system that has no more after all
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def watch_files() -> None:
    """Say when none can be opened any more: the system turns new connections away without a word to anybody."""
    were_left = True
    while True:
        are_left = are_files_left()
        if were_left and not are_left:
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            log.error("all %d file descriptors are in use: new connections are turned away, those that are open go on. "
                      "Raise the limit (ulimit -Hn, LimitNOFILE), or start more workers", most)  # fmt: skip
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
    """Where the control process listens; the data plane's address unless told otherwise."""
    return server.admin_host or server.host


def in_url(host: str) -> str:
    """A host as URLs spell it."""
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int, setting: str = "server.port", *, is_first: bool = True) -> socket.socket:
    """A listening socket on the shared port: the kernel spreads connections over all that listen there.

    `is_first`: nobody may listen there yet. Raises ConfigError, naming the setting, where somebody does.
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


def taken_over(fds: list[int]) -> list[socket.socket]:
    """Sockets that the supervisor opened and handed down."""
    found = [socket.socket(fileno=fd) for fd in fds]
    for sock in found:
        sock.setblocking(False)
    return found
