"""Live streams on their way to clients, and keep-alives in those that are silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gateway.reply import Reply
from gateway.upstream import Response
from gateway.wire.relay import Relay


class LiveStreams:
    """The live streams of a worker, with one timer for all of them that sends keep-alives on those that are silent.

    Proxies close a silent connection, and a model that reasons is silent for minutes. A stream is silent to the client
    as well where the client's API has no form for the upstream's own keep-alives.
    """

    def __init__(self, every_s: float) -> None:
        """`every_s` is the interval of keep-alives in seconds; 0 turns them off."""
        self._every_s = every_s
        self.passing: set[LiveStream] = set()

    async def run(self) -> None:
        """Send keep-alives until cancelled."""
        while self._every_s:
            await asyncio.sleep(self._every_s)
            for one in self.passing:
                one.sign()


@dataclass(slots=True, eq=False)
class LiveStream:
    """Passes a live stream from the upstream's connection to the client's without waking the request's task for each
    part.
    """

    response: Response
    flow: Relay
    reply: Reply
    now: Callable[[], float]
    silence_s: float
    """Longest time between two events, in seconds."""
    ends_s: float
    """Monotonic time of the stream's deadline."""
    silent_s: float = 0.0
    """Monotonic time by which the next event must have arrived."""
    events: int = -1
    """Number of events that had arrived when `silent_s` was last set."""
    quiet: bool = False
    """Nothing was sent since the last keep-alive tick."""

    def take(self, data: bytes) -> bool:
        """Pass on a part of the stream. False where the stream is over, or the client has to catch up first."""
        flow, goes_on = self.flow, True
        if out := flow.feed(data):
            self.quiet = False
            goes_on = self.reply.push(out)
        if flow.over:
            return False
        if goes_on:
            self.response.grant(self.due_s())
        return goes_on

    def sign(self) -> None:
        """Send a keep-alive where nothing was sent since the last call. Parts are whole events, so it never falls
        inside one.
        """
        if self.quiet and not self.flow.over and (data := self.flow.sign):
            self.reply.sign(data)
        self.quiet = True

    def due_s(self) -> float:
        """Monotonic time by which the next event must arrive. Bytes that complete no event count as silence."""
        if self.flow.events > self.events:
            self.events, self.silent_s = self.flow.events, self.now() + self.silence_s
        return min(self.silent_s, self.ends_s)
