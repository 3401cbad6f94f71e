"""Hedging: a second attempt beside a late one, of which the first to answer wins."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cascade.types import Rung
from gateway.attempt import Opened, Sender
from gateway.exchange import Exchange
from gateway.fleet import Deployment


@dataclass(slots=True)
class Hedging:
    """Starts a second attempt when the first is late, for at most a share of the worker's requests."""

    requests: int = 0
    """Attempts that could have been hedged."""
    hedged: int = 0

    async def open(
        self, sender: Sender, exchange: Exchange, rung: Rung, deployment: Deployment, *, live: bool
    ) -> Opened:
        """The attempt that answers first; the other is cancelled and charged. Raises UpstreamError if all fail."""
        self.requests += 1
        first = asyncio.ensure_future(sender.open(exchange, rung, deployment, live=live))
        twins: set[asyncio.Future[Opened]] = {first}
        winner: Opened | None = None
        try:
            await asyncio.wait(twins, timeout=exchange.route.config.hedge_after_s)
            if not first.done() and self.allowed(exchange):
                exchange.hedged = True
                other = sender.fleet.pick(rung.model, 0.0, sender.now(), avoid=deployment) or deployment
                twins.add(asyncio.ensure_future(sender.open(exchange, rung, other, live=live, hedge=True)))
            winner = await _first_answer(twins)
            await _abandon(sender, exchange, twins, winner)
        except BaseException:
            await _abandon(sender, exchange, twins, None)
            raise
        return winner

    def allowed(self, exchange: Exchange) -> bool:
        """Count a hedge of this request if it may have one: it had none, has an attempt left, and the share of hedged
        requests stays within `hedge_max_share`.
        """
        config = exchange.route.config
        if exchange.hedged or len(exchange.attempts) >= config.max_attempts:
            return False
        max_share = config.hedge_max_share
        if self.hedged + 1 > max_share * max(self.requests, 1 / max(max_share, 1e-9)):
            return False
        self.hedged += 1
        return True


async def _first_answer(waiting: set[asyncio.Future[Opened]]) -> Opened:
    """The first attempt to succeed. Raises the error of one only when all have failed."""
    while True:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        answered = [attempt for attempt in done if attempt.exception() is None]
        if answered or not waiting:
            return (answered or list(done))[0].result()


async def _abandon(
    sender: Sender, exchange: Exchange, twins: set[asyncio.Future[Opened]], winner: Opened | None
) -> None:
    """Cancel the attempts under way, and close and charge those that answered later than the winner."""
    running = [twin for twin in twins if not twin.done()]
    for twin in running:
        twin.cancel()
    if running:
        await asyncio.wait(running)
    for twin in twins:
        if not twin.cancelled() and twin.exception() is None and twin.result() is not winner:
            sender.abandon(exchange, twin.result())
