"""Starts a process of `headgate serve`: what workers and the control process have in common."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable, Coroutine

import uvloop
from msgspec.structs import replace

from gateway.config.load import load
from gateway.config.types import Config
from gateway.errors import ConfigError
from gateway.logs import secrets_of, set_up


def run_child(
    module: str, work: Callable[[Config, list[socket.socket], argparse.Namespace], Coroutine[None, None, None]]
) -> None:
    """Read the command line and the configuration, then run `work` with the configuration, the listening sockets that
    the supervisor has opened, and the command line.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--config", default=None)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--fd", type=int, action="append", default=[])
    parser.add_argument("--ready-fd", type=int, default=None)
    parser.add_argument("--parent", type=int, default=0)
    chosen = parser.parse_args()
    try:
        config = load(chosen.config, os.environ)
        if chosen.workers is not None:  # the command line's number takes precedence over the file's
            config = replace(config, server=replace(config.server, workers=chosen.workers))
        set_up(config.telemetry.log_level, config.telemetry.log_format, secrets_of(config))
        sockets = [socket.socket(fileno=fd) for fd in chosen.fd]
        for sock in sockets:
            sock.setblocking(False)
        uvloop.run(work(config, sockets, chosen))
    except ConfigError as fault:
        raise SystemExit(str(fault)) from None
