"""Live streams on their way to clients, and the signs of life in those that are silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gateway.reply import Reply
from gateway.upstream import Response
from gateway.wire.relay import Relay


class LiveStreams:
    """Those under way in a worker; one clock for all of them shows that they live where nothing comes for long.

    Proxies cut a connection that is silent, and a model that thinks is silent for minutes; so is one whose own signs of
    life the client's API has no word for.
    """

    def __init__(self, every_s: float) -> None:
        """0: never."""
        self._every_s = every_s
        self.passing: set[LiveStream] = set()

    async def run(self) -> None:
        """Until cancelled."""
        while self._every_s:
            await asyncio.sleep(self._every_s)
            for one in self.passing:
                one.sign()


@dataclass(slots=True, eq=False)
class LiveStream:
    """Passes a live stream from the upstream's connection to the client's, without waking this task for each part."""

    response: Response
    flow: Relay
    reply: Reply
    now: Callable[[], float]
    silence_s: float
    """Between two events."""
    ends_s: float
    silent_s: float = 0.0
    """When the next event must have arrived."""
    events: int = -1
    quiet: bool = False
    """Nothing went out since the last look."""

    @property
    def over(self) -> bool:
        return self.flow.over

    def take(self, data: bytes) -> bool:
        """Pass a part on. False: the stream is over, or the client has to catch up first."""
        goes_on = True
        if out := self.flow.feed(data):
            self.quiet = False
            goes_on = self.reply.push(out)
        if self.over:
            return False
        if goes_on and self.flow.events > self.events:
            self.response.grant(self.left_s())
        return goes_on

    def sign(self) -> None:
        """What goes out is whole events, so it never stands inside one."""
        if self.quiet and not self.over and (data := self.flow.sign):
            self.reply.sign(data)
        self.quiet = True

    def left_s(self) -> float:
        """Seconds left for the next event. Bytes that complete no event count as silence."""
        now = self.now()
        if self.flow.events > self.events:
            self.events, self.silent_s = self.flow.events, now + self.silence_s
        return min(self.silent_s, self.ends_s) - now
