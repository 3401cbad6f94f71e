"""A worker's control socket: a Unix socket in the run folder, over which the control process sends it requests.

Requests and answers are one JSON object a line. It takes no part in the request path, and slow work runs in a thread.
Only the gateway's own user can open the socket, which is all its protection, so no secret is sent over it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from cache.acceptance import NEVER
from cache.entry import Entry
from cache.memory import MemoryStore
from cache.sqlite import SqliteStore
from gateway.asgi import App
from gateway.wire.peek import peek

log = logging.getLogger("headgate.control_socket")

MAX_LINE_BYTES = 1 << 16
MAX_PATH_BYTES = 100
"""Longest path that fits a socket's address."""
SHOWN_CHARACTERS = 200
MOST_READ = 5000
"""Most entries of a cache file that are searched: those that expire last."""
Ask = dict[str, Any]
Answer = Callable[[App, Ask], Awaitable[Any]]
Follow = Callable[[], None]


def socket_path(run_dir: str | Path, index: int) -> Path:
    return Path(run_dir) / f"worker-{index}.door"


@contextmanager
def short(path: Path) -> Iterator[str]:
    """A name of the path that fits a socket's address, however long the folder's path is."""
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class ControlSocket:
    """The socket of one worker. `follow`: puts new settings into force at once."""

    def __init__(self, app: App, follow: Follow) -> None:
        self._app = app
        self._follow = follow
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._path = socket_path(app.services.config.server.run_dir, app.services.index)

    async def open(self) -> None:
        """Start to listen. If that fails it is only logged: the admin pages then lack this worker's figures."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            with short(self._path) as name:
                self._server = await asyncio.start_unix_server(self._serve, name, limit=MAX_LINE_BYTES)
            self._path.chmod(0o600)
            self._inode = self._path.stat().st_ino
        except OSError as error:
            log.warning("the socket for the control process can't be opened: %s", error)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            with suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:  # else the worker's successor has replaced it
                    self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(msgspec.json.encode(await self._answer(line)) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:
            log.debug("the control process left: %s", error)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Any:
        try:
            ask: Ask = msgspec.json.decode(line, type=dict[str, Any])
            if ask.get("ask") == "version":
                self._follow()
            return await _ANSWERS[ask["ask"]](self._app, ask)
        except Exception as error:
            log.exception("a request of the control process failed")
            return {"error": f"{type(error).__name__}: {error}"}


async def version(app: App, _: Ask) -> int:
    """The version of the settings in force."""
    return app.services.current.applied


async def fleet(app: App, _: Ask) -> list[dict[str, Any]]:
    """The health of each deployment."""
    return [asdict(health) for health in app.services.fleet.snapshot(app.services.now())]


async def cache(app: App, _: Ask) -> dict[str, Any]:
    """Counts of the cache's store; audits of the semantic tier by route; and whether its entries can be listed."""
    cache, routes = app.services.cache, {}
    for route, semantic in cache.semantic.items():
        acceptance = semantic.acceptance
        rate, fitted = acceptance.false_hit_rate(), acceptance.fitted
        known = fitted is not None and fitted.threshold < NEVER
        routes[route] = {
            "audited": rate.n, "wrong": round(rate.value * rate.n, 6), "requests": acceptance.requests,
            "judgements": acceptance.judgements, "threshold": fitted.threshold if fitted and known else None,
        }  # fmt: skip
    listed = isinstance(cache.store, MemoryStore | SqliteStore)
    return {"store": asdict(cache.store.stats()), "routes": routes, "listed": listed}


async def entries(app: App, ask: Ask) -> dict[str, Any]:
    """The newest `limit` entries that contain `query` in an id or, with `text`, in the question or the answer; and how
    many there are. `tenant` and `model` filter them.
    """
    cache = app.services.cache
    store = cache.store
    if not isinstance(store, MemoryStore | SqliteStore):
        return {"data": [], "total": 0, "listed": False}
    stored = store.entries() if isinstance(store, MemoryStore) else await asyncio.to_thread(store.entries, MOST_READ)
    questions = {id: text for one in cache.semantic.values() for id, text in one.questions().items()}
    return await asyncio.to_thread(_matching, stored, questions, ask, app.services.clock())


def _matching(stored: list[Entry], questions: dict[str, str], ask: Ask, now_s: float) -> dict[str, Any]:
    query = str(ask.get("query", "")).casefold()
    matching = [
        entry
        for entry in stored
        if now_s < entry.created_s + entry.ttl_s
        and ask.get("tenant", "") in ("", entry.tenant)
        and ask.get("model", "") in ("", entry.model)
        and (not query or _contains(entry, questions.get(entry.id, ""), query, bool(ask.get("text"))))
    ]
    matching.sort(key=lambda entry: -entry.created_s)
    newest = matching[: int(ask.get("limit", 100))]
    data = [_shown(entry, questions.get(entry.id, "")) for entry in newest]
    return {"data": data, "total": len(matching), "listed": True}


def _contains(entry: Entry, question: str, query: str, text: bool) -> bool:
    if query in entry.id.casefold() or query in entry.decision_id.casefold():
        return True
    return text and (query in question.casefold() or query in entry.body.decode("utf-8", "replace").casefold())


def _shown(entry: Entry, question: str) -> dict[str, Any]:
    return {
        "id": entry.id, "tenant": entry.tenant, "model": entry.model, "surface": entry.surface,
        "decision_id": entry.decision_id, "created_s": entry.created_s, "expires_s": entry.created_s + entry.ttl_s,
        "cost_usd": entry.cost_usd, "size_bytes": len(entry.body), "question": question[:SHOWN_CHARACTERS],
        "answer": peek(entry.body, entry.surface).text[:SHOWN_CHARACTERS],
    }  # fmt: skip


async def forget(app: App, ask: Ask) -> bool:
    """Delete the entry `id`, or all entries of `tenant`, before the next request."""
    cache = app.services.cache
    if "tenant" in ask:
        return await cache.delete_tenant(str(ask["tenant"]))
    return await cache.delete(str(ask["id"]), tenant=None)


_ANSWERS: dict[str, Answer] = {
    "version": version, "fleet": fleet, "cache": cache, "entries": entries, "forget": forget,
}  # fmt: skip
