"""Structured logs, as JSON or as text, without secrets and prompts.

Known secrets, and whatever looks like a credential, are replaced wherever they occur. A field whose name stands for
text of a request is replaced by its size. An exception is logged by its type and traceback lines; its message goes
through the same filter.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import select
import stat
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, Literal, TextIO

from gateway.config.types import Config, Secret

log = logging.getLogger("headgate.logs")

HIDDEN = "***"
MAX_CHARS = 8192
"""Longest message; a longer one is cut, since only text of a request is that long."""
MOST_WAITING = 1000
"""Most lines that wait to be written; further ones are dropped."""
FLUSH_WITHIN_S = 1.0
TEXT_FIELDS = frozenset(
    {
        "prompt", "messages", "content", "text", "input", "body", "answer", "completion", "output", "system",
        "arguments", "prompt_text", "answer_text", "raw",
    }
)  # fmt: skip
"""Names of fields that hold text of a request or an answer."""
SECRET_FIELDS = re.compile(r"key$|token$|secret|password|authorization|cookie|credential", re.IGNORECASE)

_LOOKS_SECRET = re.compile(
    r"(?P<bearer>\b(?:bearer|basic)\s+)[^\s\"',]+"
    r"|\b(?:hg|sk|pk|rk|xai|gsk|ghp|gho|AIza|AKIA)[-_A-Za-z0-9]{12,}"
    r"|(?P<field>\b(?:x-api-key|api[-_]?key|authorization|cookie|password|secret)"
    r"(?:[\"']?\s*[:=]\s*(?:b?[\"'])?|[\"'],\s*b?[\"'])(?:(?:bearer|basic)\s+)?)"
    r"(?!\*\*\*)[^\s\"',;&]+"
    r"|(?P<url>\b[a-z][a-z0-9+.-]{0,30}://[^\s/:@]*:)[^\s/@]+(?=@)",
    re.IGNORECASE,
)
_UNSEEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069]")
"""Control characters, line separators and changes of text direction."""
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class SecretFilter:
    """Replaces secrets in text: the given ones, whatever they look like, and everything that looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def clean(self, text: str) -> str:
        """The text without secrets and control characters, on one line of bounded length."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        if len(text) > MAX_CHARS:
            text = text[:MAX_CHARS] + f"... ({len(text) - MAX_CHARS} more characters)"
        return _UNSEEN.sub(_escaped, _LOOKS_SECRET.sub(_hide, text))

    def field(self, name: str, value: object) -> object:
        """The value as it may be logged under this name."""
        if SECRET_FIELDS.search(name):
            return HIDDEN
        if name in TEXT_FIELDS:
            size = len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0
            return f"<{type(value).__name__} of {size}>"
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, dict):
            return {str(key): self.field(str(key), item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.field(name, item) for item in value]
        return self.clean(str(value))


def _hide(match: re.Match[str]) -> str:
    kept = match["bearer"] or match["field"] or match["url"] or ""
    return kept + HIDDEN


def _escaped(match: re.Match[str]) -> str:
    return repr(match[0])[1:-1]


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, message, then the record's extra fields."""

    def __init__(self, secret_filter: SecretFilter) -> None:
        super().__init__()
        self._secret_filter = secret_filter

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._secret_filter.clean(_message(record)),
            **_extra(record, self._secret_filter),
        }
        return json.dumps(line, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """Formats a record as one line of text: time, level, logger, message, then the extra fields as name=value."""

    def __init__(self, secret_filter: SecretFilter) -> None:
        super().__init__()
        self._secret_filter = secret_filter

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        message = self._secret_filter.clean(_message(record))
        fields = "".join(f" {name}={value}" for name, value in _extra(record, self._secret_filter).items())
        return f"{time} {record.levelname.lower():7} {record.name}: {message}{fields}"


def _message(record: logging.LogRecord) -> str:
    """The record's message. One whose arguments don't fit is logged without them: `logging` itself would print them
    unfiltered.
    """
    try:
        return record.getMessage()
    except (TypeError, ValueError):
        return f"{record.msg} (arguments don't fit)"


def _extra(record: logging.LogRecord, secret_filter: SecretFilter) -> dict[str, object]:
    """The fields that the caller gave by `extra=`, and the exception or stack if there is one. Private attributes,
    which libraries add to every record, are left out.
    """
    given = {name: value for name, value in vars(record).items() if name not in _OWN and not name.startswith("_")}
    fields = {name: secret_filter.field(name, value) for name, value in given.items()}
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = secret_filter.clean(_error_chain(record.exc_info[1]))
    if record.stack_info:
        fields["stack"] = secret_filter.clean(record.stack_info)
    return fields


def _error_chain(error: BaseException) -> str:
    """An exception and its causes: type, message and traceback lines of each, without values of variables."""
    parts: list[str] = []
    following: BaseException | None = error
    while following is not None and len(parts) < 5:
        places, trace = [], following.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} {code.co_name}")
            trace = trace.tb_next
        parts.append(f"{type(following).__name__}: {following} [{' > '.join(places[-8:])}]")
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return " <- ".join(parts)


def secrets_of(config: Config) -> set[str]:
    """Every secret in the configuration; of a URL only its password."""
    secrets: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, Secret):
            secrets.add(_password(value) if "://" in value else str(value))
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif hasattr(value, "__struct_fields__"):
            for name in value.__struct_fields__:
                walk(getattr(value, name))

    walk(config)
    return secrets


def _password(url: str) -> str:
    """The password in a URL; empty where it has none."""
    login, at, _ = url.partition("://")[2].rpartition("@")
    return login.partition(":")[2] if at else ""


class NonBlockingHandler(logging.Handler):
    """Writes in a thread of its own, so that logging never waits for the reader of the log. While too many lines wait,
    further ones are dropped; their number is logged later.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._waiting: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._dropped = 0
        self._writer = threading.Thread()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._waiting.qsize() >= MOST_WAITING:
                self._dropped += 1
                return
            self._waiting.put(self.format(record) + "\n")
            if not self._writer.is_alive():  # at the first record, and in a forked process
                self._writer = threading.Thread(target=self._write, name="log", daemon=True)
                self._writer.start()
        except Exception:  # no thread can be started; `handleError` would print the record unfiltered
            self._dropped += 1

    def flush(self) -> None:
        """Wait until what was logged so far is written, for at most `FLUSH_WITHIN_S` seconds."""
        if self._writer.is_alive():
            written = threading.Event()
            self._waiting.put(written)
            written.wait(FLUSH_WITHIN_S)

    def _write(self) -> None:
        while True:
            line = self._waiting.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            with suppress(OSError):  # the reader is gone, or the disk is full
                self._write_out(line.encode("utf-8", "backslashreplace"))
            if self._dropped and self._waiting.empty():
                dropped, self._dropped = self._dropped, 0
                log.warning("%d lines of this log were dropped: nobody read them", dropped)

    def _write_out(self, rest: bytes) -> None:
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # another program has set O_NONBLOCK on the file description that it shares with us
                select.select((), (self._fd,), ())


def append_to(fd: int) -> int:
    """Set O_APPEND if the descriptor is a file, and return it. Without O_APPEND (the shell's `>`), writing would go on
    at the old offset after a log rotation has truncated the file, and leave a hole before it.
    """
    with suppress(OSError):
        if stat.S_ISREG(os.fstat(fd).st_mode):
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return fd


def set_up(
    level: str,
    style: Literal["json", "text"],
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> logging.Handler:
    """Send every logger's records through the filter of secrets to `stream` (default: standard error), and only there.
    """
    secret_filter = SecretFilter(secrets)
    blocks = stream or not sys.stderr
    handler = logging.StreamHandler(stream) if blocks else NonBlockingHandler(append_to(sys.stderr.fileno()))
    handler.setFormatter(JsonLines(secret_filter) if style == "json" else TextLines(secret_filter))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in ("httpx", "httpcore", "asyncio", "alembic", "uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(max(logging.WARNING, handler.level))
    return handler
