"""Sends questions to the workers of this machine over their control sockets. A worker that is late counts as silent."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec

from gateway.serve.control_socket import short

ANSWER_WITHIN_S = 1.0
_READ_BYTES = 1 << 18


def socket_paths(run_dir: Path) -> list[Path]:
    """Control sockets of the workers that run."""
    return [path for path in sorted(run_dir.glob("worker-*.door")) if _opens(path)]


def ask(path: Path, question: dict[str, Any]) -> Any:
    """A worker's answer; None where it is silent, or answers with an error."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, short(path) as name:
            sock.settimeout(ANSWER_WITHIN_S)
            sock.connect(name)
            sock.sendall(msgspec.json.encode(question) + b"\n")
            answer = msgspec.json.decode(_line(sock))
    except (OSError, msgspec.DecodeError):
        return None
    return None if isinstance(answer, dict) and "error" in answer else answer


def ask_all(run_dir: Path, question: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Answers by worker, and the names of the silent workers."""
    replies = {path.stem: ask(path, question) for path in sorted(run_dir.glob("worker-*.door"))}
    answers = {name: reply for name, reply in replies.items() if reply is not None}
    return answers, [name for name in replies if name not in answers]


def settings_version(path: Path) -> int | None:
    """Version of the settings that the worker uses; the question makes it check for a newer one. None: it is silent."""
    answer = ask(path, {"ask": "version"})
    return answer if isinstance(answer, int) else None


def _opens(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, short(path) as name:
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
