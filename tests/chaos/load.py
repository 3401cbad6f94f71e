"""Clients that send requests without pause, and what they saw: right answers, stated refusals, broken or wrong answers.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from tests.faults.endings import assert_error_shape, read_stream, text_of
from tests.faults.talk import Heard, ask, question

SURFACES = ("chat", "completions", "messages", "responses")
FEEDBACK_SHARE = 0.2
PAUSE_S = 0.05
"""A client's pause after a refusal."""
PATIENCE_S = 20.0


@dataclass(slots=True)
class Load:
    """What all clients of a run saw."""

    url: str
    answered: list[str] = field(default_factory=list)
    """Ids of decisions whose answer was complete and right."""
    acknowledged: list[str] = field(default_factory=list)
    """Ids of acknowledged feedback."""
    right: Counter[str] = field(default_factory=Counter)
    """Counts by key."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Outcomes since the last `turn`: right, refused NNN code, broken."""
    wrong: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    """The slowest right answer since the last `turn`."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def turn(self) -> tuple[Counter[str], float]:
        """Returns the outcomes so far, and starts counting anew."""
        seen, longest = self.outcomes, self.longest_s
        self.outcomes, self.longest_s = Counter(), 0.0
        return seen, longest

    async def client(self, seed: int, key: str, model: str = "") -> None:
        """Sends requests until it is cancelled. An empty `model` stands for any of the routes."""
        draw = random.Random(seed)
        while True:
            asked = model or draw.choice(("fresh", "kept"))
            if not await self.one(draw, key, asked):
                await asyncio.sleep(PAUSE_S)

    async def one(self, draw: random.Random, key: str, model: str) -> bool:
        """Whether the request got a right answer."""
        surface, stream = draw.choice(SURFACES), draw.random() < 0.5
        said = f"{key} says {draw.randrange(6) if model == 'kept' else f'number {next(self._numbers)}'}"
        body = with_text(surface, question(surface, model, stream=stream), said)
        begun = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                heard = await ask(self.url, surface, body, authorization=f"Bearer hg-{key}")
        except (OSError, TimeoutError) as error:
            self.outcomes[f"broken ({type(error).__name__})"] += 1
            return False
        if not heard.whole:
            self.outcomes["broken (no proper end)"] += 1
            return False
        return await self.judge(draw, key, surface, stream, said, heard, time.monotonic() - begun)

    async def judge(
        self, draw: random.Random, key: str, surface: str, stream: bool, said: str, heard: Heard, took_s: float
    ) -> bool:
        try:
            verdict = verdict_on(surface, heard, said, stream=stream)
        except (AssertionError, KeyError, IndexError, msgspec.MsgspecError) as fault:
            self.outcomes["WRONG"] += 1
            self.wrong.append(f"{surface} {said!r}: {fault} {bytes(heard.body[:300])!r}")
            return False
        self.outcomes[verdict] += 1
        if verdict != "right":
            return False
        self.longest_s = max(self.longest_s, took_s)
        self.right[key] += 1
        self.answered.append(heard.decision_id)
        if draw.random() < FEEDBACK_SHARE:
            await self.give_feedback(key, heard.decision_id)
        return True

    async def give_feedback(self, key: str, decision_id: str) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                body = {"decision_id": decision_id, "score": 1.0}
                heard = await ask(self.url, "feedback", body, authorization=f"Bearer hg-{key}")
            if heard.status == 200 and heard.whole:
                self.acknowledged.append(heard.json["id"])
            elif heard.status:
                self.outcomes[f"feedback refused {heard.status} {heard.json['error']['code']}"] += 1


def with_text(surface: str, body: dict[str, object], said: str) -> dict[str, object]:
    if surface in ("chat", "messages"):
        return {**body, "messages": [{"role": "user", "content": said}]}
    return {**body, ("prompt" if surface == "completions" else "input"): said}


def verdict_on(surface: str, heard: Heard, said: str, *, stream: bool) -> str:
    """`right`, or why the request was refused; raises AssertionError for anything else."""
    if heard.status != 200:
        assert_error_shape(surface, heard)
        assert heard.status in (429, 503), f"status {heard.status}"
        error = heard.json["error"]
        return f"refused {heard.status} {error.get('code') or error['type']}"
    if not stream:
        text = text_of(surface, heard.json)
        assert text == said, text
        return "right"
    seen = read_stream(heard.body)
    if seen.errors:
        assert (seen.errors, seen.last) == (1, "error"), heard.body
        return "stream ended in an error"
    assert (seen.terminals, seen.last) == (1, "terminal"), heard.body
    assert seen.text == said, seen.text
    return "right"
