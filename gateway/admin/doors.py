"""Asks the workers of this machine, at their side doors. Who does not answer in time is silent, never waited for."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec

from gateway.door import short

ANSWER_WITHIN_S = 1.0
_READ_BYTES = 1 << 18


def doors(run_dir: Path) -> list[Path]:
    """Those of workers that run."""
    return [door for door in sorted(run_dir.glob("worker-*.door")) if _opens(door)]


def ask(door: Path, question: dict[str, Any]) -> Any:
    """A worker's answer; None: it is silent or could not."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, short(door) as name:
            sock.settimeout(ANSWER_WITHIN_S)
            sock.connect(name)
            sock.sendall(msgspec.json.encode(question) + b"\n")
            answer = msgspec.json.decode(_line(sock))
    except (OSError, msgspec.DecodeError):
        return None
    return None if isinstance(answer, dict) and "error" in answer else answer


def ask_all(run_dir: Path, question: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Answers by worker, and the names of the silent ones."""
    answers = {door.stem: ask(door, question) for door in sorted(run_dir.glob("worker-*.door"))}
    told = {name: answer for name, answer in answers.items() if answer is not None}
    return told, [name for name in answers if name not in told]


def settings_version(door: Path) -> int | None:
    """Of the settings that the worker goes by; asking makes it look at once."""
    answer = ask(door, {"ask": "version"})
    return answer if isinstance(answer, int) else None


def _opens(door: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, short(door) as name:
            sock.settimeout(ANSWER_WITHIN_S)
            sock.connect(name)
    except OSError:
        return False
    return True


def _line(sock: socket.socket) -> bytes:
    parts: list[bytes] = []
    while part := sock.recv(_READ_BYTES):
        parts.append(part)
        if part.endswith(b"\n"):
            break
    return b"".join(parts)
