"""One connection to Redis for a whole worker. The commands of one turn of the event loop are sent in one write.

A client with a pool would cost more than the rest of a request; here a command costs its bytes and a future. Every
answer has a deadline. A server that fails several times is not tried for a moment, after which one command finds out
whether it is back; so a Redis that is down or stuck costs its timeout a few times and not once a request. Clusters and
sentinels are not supported: there is one server, `storage.redis_url`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from gateway.upstream.lookup import Name

log = logging.getLogger("headgate.redis")

Word = str | bytes | int | float

PATIENCE = 3
"""Number of failures in a row after which commands fail without being sent."""
REST_S = 0.5
"""How long commands then fail, until one may try again."""
HELD_UP_S = 0.02
"""A timer this late shows that the event loop was blocked, so that an answer may have arrived unread."""


class RedisAway(RedisError):
    """There is no connection, no answer came in time, or this has just happened too often."""


class RedisRefused(RedisError):
    """Redis answered with an error: the command is at fault, or the server is busy, full or read-only."""


class Script:
    """The text of a Lua script, and the SHA-1 digest that Redis knows it by."""

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisWire:
    """Connects at the first command, and again after every fault."""

    def __init__(self, url: str, *, timeout_s: float = 0.1) -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, not {timeout_s}")
        self.timeout_s = timeout_s
        self._address: dict[str, Any] = dict(parse_url(url))
        self._name = Name(self._address.get("host", "localhost"))
        self._line: _Line | None = None
        self._connecting: asyncio.Task[_Line] | None = None
        self._failures = 0
        self._rests_until_s = 0.0

    @property
    def is_away(self) -> bool:
        """The last command failed."""
        return self._failures > 0

    async def ask(self, *words: Word) -> Any:
        """Send one command and return the answer, with strings as bytes. Raises RedisAway or RedisRefused."""
        if self._failures >= PATIENCE:
            self._rest()
        line = self._line
        try:
            if line is None or line.broken:
                line = await self._connect()
            answer = await line.send(words)
        except RedisRefused:
            self._failures = 0
            raise
        except (OSError, TimeoutError, hiredis.HiredisError, RedisAway) as fault:
            self._fail(fault)
            raise RedisAway(f"{type(fault).__name__}: {fault}") from None
        self._failures = 0
        return answer

    async def run(self, script: Script, keys: Sequence[Word], arguments: Sequence[Word]) -> Any:
        """Run a script by its digest, or by its text where Redis, or a proxy before it, doesn't know the digest."""
        try:
            return await self.ask("EVALSHA", script.digest, len(keys), *keys, *arguments)
        except RedisRefused as refused:
            if not str(refused).startswith("NOSCRIPT"):
                raise
            return await self.ask("EVAL", script.text, len(keys), *keys, *arguments)

    async def run_all(self, commands: Sequence[tuple[Script, Sequence[Word], Sequence[Word]]]) -> list[Any]:
        """Run many scripts in one write and return the answers in order. Raises RedisAway or RedisRefused at the first
        that fails.
        """
        line = self._line
        if line is None or line.broken:
            await self.ask("PING")
            line = self._line
        assert line is not None
        waiting = [
            line.send(("EVALSHA", script.digest, len(keys), *keys, *arguments)) for script, keys, arguments in commands
        ]
        try:
            answers = await asyncio.gather(*waiting, return_exceptions=True)
        except BaseException:
            for one in waiting:
                one.cancel()
            raise
        for at, answer in enumerate(answers):
            if isinstance(answer, RedisRefused) and str(answer).startswith("NOSCRIPT"):
                answers[at] = await self.run(*commands[at])
            elif isinstance(answer, RedisRefused):
                raise answer
            elif isinstance(answer, BaseException):
                self._fail(answer)
                raise RedisAway(f"{type(answer).__name__}: {answer}") from None
        return answers

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._line is not None:
            self._line.close(RedisAway("closed"))

    async def _connect(self) -> _Line:
        """Connect; concurrent callers share one attempt."""
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._open())
            self._connecting.add_done_callback(self._connected)
        return await asyncio.shield(self._connecting)

    def _connected(self, task: asyncio.Task[_Line]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._line = task.result()

    async def _open(self) -> _Line:
        address, loop = self._address, asyncio.get_running_loop()

        def make() -> _Line:
            return _Line(loop, self.timeout_s)

        async with asyncio.timeout(self.timeout_s):
            if path := address.get("path"):
                _, line = await loop.create_unix_connection(make, path)
            else:
                _, line = await self._name.connect(make, address.get("port", 6379), self._tls())
            await self._greet(line)
        return line

    async def _greet(self, line: _Line) -> None:
        """Authenticate and select the database. A server that refuses either counts as away, so that it is not tried at
        every command.
        """
        try:
            for words in self._greeting():
                await line.send(words)
        except RedisRefused as refused:
            line.close(refused)
            raise RedisAway(str(refused)) from None

    def _greeting(self) -> list[tuple[Word, ...]]:
        address, words = self._address, list[tuple[Word, ...]]()
        if password := address.get("password"):
            user = address.get("username")
            words.append(("AUTH", user, password) if user else ("AUTH", password))
        if number := address.get("db"):
            words.append(("SELECT", number))
        return words

    def _tls(self) -> ssl.SSLContext | None:
        if "SSL" not in getattr(self._address.get("connection_class"), "__name__", ""):
            return None
        context = ssl.create_default_context(cafile=self._address.get("ssl_ca_certs"))
        if self._address.get("ssl_cert_reqs") == "none":
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if certificate := self._address.get("ssl_certfile"):
            context.load_cert_chain(certificate, self._address.get("ssl_keyfile"))
        return context

    def _rest(self) -> None:
        now = time.monotonic()
        if now < self._rests_until_s:
            raise RedisAway("it has just failed several times in a row")
        self._rests_until_s = now + REST_S

    def _fail(self, fault: BaseException) -> None:
        self._failures += 1
        if self._failures == PATIENCE:
            self._rests_until_s = time.monotonic() + REST_S
            log.warning("redis is away: %s: %s", type(fault).__name__, fault)


class _Line(asyncio.Protocol):
    """One connection, and the futures of its answers in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self.broken = False
        self._loop = loop
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(protocolError=hiredis.ProtocolError, replyError=hiredis.ReplyError)
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._outgoing: list[bytes] = []
        self._watch: asyncio.TimerHandle | None = None
        self._looked_again = False
        """Whether `_look` has already waited once since data last arrived."""

    def send(self, words: Sequence[Word]) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self.broken:
            answer.set_exception(RedisAway("the connection is gone"))
            return answer
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(hiredis.pack_command(cast(tuple[str | int | float | bytes | memoryview], tuple(words))))
        self._waiting.append((answer, self._loop.time() + self._timeout_s))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._look)
        return answer

    def _flush(self) -> None:
        if self._transport is not None and self._outgoing and not self.broken:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _look(self) -> None:
        """Close the connection where the first answer is late, since answers come in order and all others wait for it.
        Where the event loop was blocked, it first gets a chance to read its sockets.
        """
        self._watch = None
        if not self._waiting:
            return
        due_s, now = self._waiting[0][1], self._loop.time()
        if now < due_s:
            self._watch = self._loop.call_at(due_s, self._look)
        elif now - due_s > HELD_UP_S and not self._looked_again:
            self._looked_again = True
            self._watch = self._loop.call_later(HELD_UP_S, self._look)
        else:
            self.close(TimeoutError(f"no answer within {self._timeout_s:g} s"))

    def close(self, why: Exception) -> None:
        self.broken = True
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            answer, _ = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(why)

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(RedisAway("the connection was closed") if exc is None else exc)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        self._looked_again = False
        try:
            reader.feed(data)
            reply = reader.gets()
            while reply is not False and not self.broken:
                answer, _ = waiting.popleft()
                if isinstance(reply, hiredis.ReplyError):
                    self._refuse(answer, str(reply))
                elif not answer.done():
                    answer.set_result(reply)
                reply = reader.gets()
        except (hiredis.HiredisError, IndexError) as fault:
            self.close(RedisAway(f"the answer is not in Redis' protocol: {fault}"))

    def _refuse(self, answer: asyncio.Future[Any], why: str) -> None:
        if not answer.done():
            answer.set_exception(RedisRefused(why))
        if "READONLY" in why or why.startswith("MASTERDOWN"):
            # Its name may resolve to the new primary by now.
            self.close(RedisAway(f"the server is no longer the primary: {why}"))
