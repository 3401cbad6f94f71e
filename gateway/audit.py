"""Judges the semantic cache in the background: was a hit right, and would a miss have been?

Of the hits, a share is asked again and the answers compared; of the misses near an entry, the fresh answer is compared
with that entry's. The verdicts train the cache's acceptance rule and bound its false-hit rate. The answers of measured
requests of certified cascades are compared here too. Work waits in a short queue; when that is full the question stays
unjudged, and no request ever waits for it. The judge's and repeated questions are charged to the route, never to the
caller, and recorded in the journal under the key `audit`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable

import msgspec
from msgspec.structs import replace

from cache.semantic import Comparison, SemanticCache
from cascade.promise import is_measured
from gateway.call import Arrival, Call, read_call
from gateway.exchange import Exchange
from gateway.journal.record import FeedbackRecord, new_id
from gateway.keys import Caller
from gateway.money.ledger import Account
from gateway.reply import Heard, Reply
from gateway.services import Services
from gateway.wire.peek import peek

log = logging.getLogger("headgate.audit")

MAX_WAITING = 64
"""Most audits waiting or under way; further ones are skipped."""
AT_ONCE = 2
JUDGE_TIMEOUT_S = 60.0
QUESTION = (
    "Two answers were given to the same kind of question. Do they say the same, so that a user would be equally "
    "well served by either? Reply with the one word yes or no.\n\nFirst answer:\n{first}\n\nSecond answer:\n{second}"
)

VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)

Answer = Callable[[Call, Reply, Caller], Awaitable[Exchange | None]]


class Auditor:
    """Audits one worker's answers. `answer`: the request path, entered with a caller and so without `identify`."""

    def __init__(self, services: Services, answer: Answer) -> None:
        self.s = services
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(AT_ONCE)
        self.skipped = 0
        """Number of questions left unjudged because the queue was full."""
        self._silent: set[str] = set()
        """Names of judges that gave no verdict when last asked."""

    def after_hit(self, exchange: Exchange) -> None:
        """Ask upstream what the cache has just answered, if this hit was drawn for an audit."""
        comparison = exchange.comparison
        if comparison is not None and exchange.hit is not None:
            self._start(self._ask_again(exchange, comparison, exchange.hit.entry.body))

    def after_miss(self, exchange: Exchange, comparison: Comparison | None) -> None:
        """Compare a fresh answer with the nearest entry, if this miss was drawn for an audit; then refit the acceptance
        rule if that is due.
        """
        if comparison is not None:
            self._start(self._compare(exchange, comparison, exchange.answer_body))
        cache = self.s.cache.semantic_of(exchange.route) if exchange.similar is not None else None
        if cache is not None and cache.acceptance.due:
            self._start(asyncio.to_thread(cache.maintain))

    def after_climb(self, exchange: Exchange) -> None:
        """Compare the two answers of a request that a certified cascade measures."""
        plan = exchange.plan
        if exchange.route.promise is not None and plan is not None and is_measured(plan):
            self._start(self._measure(exchange))

    async def drain(self) -> None:
        """Wait until no audit is waiting or under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.drain()

    def _start(self, work: Awaitable[None]) -> None:
        if len(self._tasks) >= MAX_WAITING:
            self.skipped += 1
            if asyncio.iscoroutine(work):
                work.close()
            return
        task = asyncio.ensure_future(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            async with self._gate:
                await work
        except Exception:
            log.exception("an audit failed; its question stays unjudged")

    async def _ask_again(self, exchange: Exchange, comparison: Comparison, served: bytes) -> None:
        fresh = await self._ask(repeated(exchange.call), exchange.caller)
        if fresh:
            await self._judge(exchange, comparison, served, fresh)

    async def _compare(self, exchange: Exchange, comparison: Comparison, fresh: bytes) -> None:
        entry = await self.s.cache.store.get(comparison.key, tenant=comparison.tenant, now_s=self.s.clock())
        if entry is not None and entry.id == comparison.entry_id:
            await self._judge(exchange, comparison, entry.body, fresh)

    async def _judge(self, exchange: Exchange, comparison: Comparison, stored: bytes, fresh: bytes) -> None:
        """Give the verdict to the cache. It may ask for another comparison with the same fresh answer."""
        cache: SemanticCache = self.s.cache.semantic_of(exchange.route)
        following: Comparison | None = comparison
        while following is not None:
            is_right = await self.same(exchange, stored, fresh) if stored else None
            following = cache.audit(following.row, is_right)
            if following is not None:
                entry = await self.s.cache.store.get(following.key, tenant=following.tenant, now_s=self.s.clock())
                stored = entry.body if entry is not None else b""

    async def _measure(self, exchange: Exchange) -> None:
        """Record whether the models' answers agree. Nothing is recorded if an answer failed or has no text."""
        assert exchange.plan is not None
        text_of = {attempt.model: attempt.evidence.text for attempt in exchange.attempts if not attempt.failure}
        texts = [text_of.get(step.model, "") for step in exchange.plan.steps]
        if not all(texts):
            return
        same = await self.alike(exchange, *texts)
        if same is None:
            return
        feedback = FeedbackRecord(
            id=new_id("fb"), time_s=self.s.clock(), tenant=exchange.caller.tenant, decision_id=exchange.decision_id,
            label="same" if same else "different", source="reference",
        )  # fmt: skip
        self.s.spool.append(feedback)

    async def same(self, exchange: Exchange, first: bytes, second: bytes) -> bool | None:
        """`alike` for two answers in the client's dialect."""
        surface = exchange.call.surface
        return await self.alike(exchange, *(peek(body, surface).text for body in (first, second)))

    async def alike(self, exchange: Exchange, *texts: str) -> bool | None:
        """True if two texts are equal up to case and spacing, or as JSON, or the route's judge says that they mean the
        same. None if the judge gives no verdict.
        """
        if plain(texts[0]) == plain(texts[1]):
            return True
        judge = exchange.route.config.cache_judge
        if not judge:
            return False
        body = await self._ask(self._judging(judge, *texts), exchange.caller, exchange.route.accounts)
        verdict = VERDICT.match(peek(body, "chat").text) if body else None
        self._note_verdict(judge, verdict is not None)
        return verdict.group(1).lower() == "yes" if verdict is not None else None

    def _note_verdict(self, judge: str, was_given: bool) -> None:
        """Log once when a judge stops giving verdicts."""
        if was_given:
            self._silent.discard(judge)
        elif judge not in self._silent:
            self._silent.add(judge)
            log.warning("the judge %s answers neither yes nor no, so the comparison stays unjudged", judge)

    def _judging(self, model: str, first: str, second: str) -> Call:
        question = QUESTION.format(first=first, second=second)
        message = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
        now = self.s.now()
        arrival = Arrival({}, "", self.s.ids.new("req"), now)
        return read_call("chat", json.dumps(message).encode(), arrival, max_messages=1, timeout_s=JUDGE_TIMEOUT_S)

    async def _ask(self, call: Call, asked_by: Caller, accounts: tuple[Account, ...] = ()) -> bytes:
        """The answer of the whole request path; empty without one. `accounts`: charged beside the call's route."""
        call = replace(call, request_id=self.s.ids.new("req"), received_s=self.s.now())
        reply = Heard()
        caller = Caller("audit", "audit", tenant=asked_by.tenant, explore=False, accounts=accounts)
        await self._answer(call, reply, caller)
        return bytes(reply.body) if reply.status == 200 else b""


def repeated(call: Call) -> Call:
    """The same call, not streamed and without the cache."""
    raw = {name: value for name, value in call.raw.items() if name not in ("stream", "stream_options")}
    return replace(call, raw=raw, body=b"", stream=False, options=replace(call.options, cache="none"))


def plain(text: str) -> object:
    """A form that is equal for texts with certainly the same meaning: canonical JSON, or words without case, spacing
    and the last full stop.
    """
    try:
        return msgspec.json.encode(msgspec.json.decode(text), order="deterministic")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return " ".join(text.split()).casefold().rstrip(".")
