"""Concurrent identical requests make one upstream call."""

from __future__ import annotations

import asyncio
import random

from cache.entry import Entry
from cache.flight import Flight, Ticket
from tests.cache.entries import entry


async def follow(ticket: Ticket) -> tuple[Entry | None, bool]:
    """Waits as a follower; returns the entry, and whether this request now leads. A new leader gives up its lead."""
    with ticket:
        return await ticket.wait(5), ticket.leader


async def test_followers_get_the_leaders_answer() -> None:
    """One request leads, all others get its entry, and the next request starts anew."""
    flight, one = Flight(), entry()
    leader = flight.join(b"k")
    followers = [asyncio.create_task(follow(flight.join(b"k"))) for _ in range(5)]
    await asyncio.sleep(0)
    with leader:
        assert leader.leader
        leader.land(one)
    assert await asyncio.gather(*followers) == [(one, False)] * 5
    assert len(flight) == 0 and flight.join(b"k").leader


async def test_other_keys_do_not_wait() -> None:
    """Each key has its own flight."""
    flight = Flight()
    assert flight.join(b"k").leader and flight.join(b"l").leader


async def test_a_failed_leader_hands_over_to_one_follower_after_another() -> None:
    """While upstream calls fail, at most one request for a key is in flight at any time."""
    flight, active, asked = Flight(), 0, 0

    async def request() -> Entry | None:
        nonlocal active, asked
        with flight.join(b"k") as ticket:
            if not ticket.leader:
                found = await ticket.wait(5)
                if found is not None:
                    return found
            assert ticket.leader
            active, asked = active + 1, asked + 1
            assert active == 1
            await asyncio.sleep(0)
            active -= 1
            if asked < 4:
                return None
            ticket.land(entry())
            return entry()

    answers = await asyncio.gather(*(request() for _ in range(10)))
    assert asked == 4 and answers == [None] * 3 + [entry()] * 7
    assert len(flight) == 0


async def test_an_answer_that_may_not_be_shared_makes_followers_ask_themselves() -> None:
    """Followers of an answer that may not be cached don't wait for each other."""
    flight = Flight()
    leader = flight.join(b"k")
    followers = [asyncio.create_task(follow(flight.join(b"k"))) for _ in range(3)]
    await asyncio.sleep(0)
    leader.land(None)
    assert await asyncio.gather(*followers) == [(None, False)] * 3


async def test_a_follower_waits_no_longer_than_its_timeout() -> None:
    """A follower that times out leaves the others undisturbed."""
    flight, one = Flight(), entry()
    leader, hasty = flight.join(b"k"), flight.join(b"k")
    patient = asyncio.create_task(follow(flight.join(b"k")))
    with hasty:
        assert await hasty.wait(0.0) is None and not hasty.leader
    leader.land(one)
    assert await patient == (one, False)


async def test_a_cancelled_successor_passes_the_lead_on() -> None:
    """A follower that is cancelled at the moment it becomes the leader passes the lead to the next one."""
    flight = Flight()
    leader = flight.join(b"k")
    heir = asyncio.create_task(follow(flight.join(b"k")))
    await asyncio.sleep(0)
    other = asyncio.create_task(follow(flight.join(b"k")))
    await asyncio.sleep(0)
    leader.leave()
    heir.cancel()
    assert await other == (None, True)
    assert len(flight) == 0


async def test_every_waiter_ends_in_any_order() -> None:
    """Whatever leaders and followers do, every request ends, and no flight is left."""
    flight, rng = Flight(), random.Random(3)

    async def request() -> None:
        with flight.join(b"%d" % rng.randrange(3)) as ticket:
            if not ticket.leader:
                await ticket.wait(rng.choice([0.0, 0.001, 10.0]))
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            if ticket.leader and rng.random() < 0.5:
                ticket.land(rng.choice([None, entry()]))

    tasks = [asyncio.create_task(request()) for _ in range(400)]
    await asyncio.sleep(0)
    for task in rng.sample(tasks, 100):
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
    assert len(flight) == 0
