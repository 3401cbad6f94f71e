"""Which tokens of which sequences are computed in the next step: plain data structures, no torch, no clock of
its own.

One budget of tokens a step: every running sequence decodes, what is left goes to prompts in chunks, oldest
first. A sequence is admitted with room for its predicted length (S^3), not for the longest it might become;
when the prediction was too short it grows, and when nothing is left to grow into, the youngest sequence is
put aside: its blocks are given up and it waits, first in line, to be computed again, mostly from the prefix
tree.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from local_models.blocks import BlockPool, BlockTable, SlotCopy, SlotFill
from local_models.errors import EngineFull, PromptTooLong
from local_models.request import Request, Usage
from local_models.text import TokenStream

PredictTokens = Callable[[Request], int]


class TokenMatcher(Protocol):
    """The tokens that a grammar allows next."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """One flag a token of the vocabulary."""

    def advance(self, token_id: int) -> None:
        """Take a chosen token."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A request in progress: its tokens so far, and how many of them have keys and values."""

    request: Request
    ids: list[int]
    arrived_s: float
    predicted_tokens: int
    usage: Usage
    table: BlockTable | None = None
    computed: int = 0
    started_s: float | None = None
    first_token_s: float | None = None
    said: Counter[int] = field(default_factory=Counter)
    stream: TokenStream | None = None
    matcher: TokenMatcher | None = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def output_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """True when only the newest token is left to compute."""
        return self.table is not None and self.computed == len(self.ids) - 1 and self.output_tokens > 0


@dataclass(slots=True)
class Work:
    """Compute tokens `start .. start + count` of a sequence; `drafts` follow the last of them."""

    sequence: Sequence
    start: int
    count: int
    drafts: list[int] = field(default_factory=list)


@dataclass(slots=True)
class SchedulerOutput:
    """One step: what to compute, and which slots to copy first."""

    work: list[Work]
    copies: list[SlotCopy | SlotFill]


_ADMISSIONS = 32


class Scheduler:
    """The waiting line and the running set of one engine."""

    def __init__(
        self,
        blocks: BlockPool,
        context_tokens: int,
        predict: PredictTokens,
        *,
        step_tokens: int = 512,
        most_running: int = 64,
        most_waiting: int = 1024,
    ) -> None:
        self.blocks = blocks
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._admitted_s: deque[float] = deque(maxlen=_ADMISSIONS)
        """Times at which the last sequences were admitted."""
        self.preempted = 0
        self._context_tokens = context_tokens
        self._predict = predict
        self.step_tokens = step_tokens
        self._most_running = most_running
        self._most_waiting = most_waiting

    @property
    def capacity_tokens(self) -> int:
        """The most tokens of a prompt and its answer together that can ever be served."""
        return min(self._context_tokens, self.blocks.count * self.blocks.block_tokens)

    def add(self, request: Request, now_s: float) -> Sequence:
        """Put a request in line.

        Raises `PromptTooLong` for what can never fit and `EngineFull` for what cannot wait now.
        """
        tokens = len(request.prompt_ids) + request.max_tokens
        if tokens > self.capacity_tokens:
            raise PromptTooLong(
                f"{len(request.prompt_ids)} prompt tokens and up to {request.max_tokens} of answer "
                f"exceed {self.capacity_tokens} tokens"
            )
        if len(self.waiting) >= self._most_waiting:
            raise EngineFull(f"{len(self.waiting)} requests wait already", self._place_in_s(now_s))
        predicted = max(1, min(request.max_tokens, self._predict(request)))
        usage = Usage(prompt_tokens=len(request.prompt_ids))
        sequence = Sequence(request, list(request.prompt_ids), now_s, predicted, usage)
        self.waiting.append(sequence)
        return sequence

    def _place_in_s(self, now_s: float) -> float:
        """Expected seconds until one place in the waiting line becomes free, from the recent admissions; without any,
        the time for which the first in line has waited.
        """
        moved = self._admitted_s
        since = moved[0] if moved else self.waiting[0].arrived_s if self.waiting else now_s
        return (now_s - since) / max(1, len(moved))

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its blocks back."""
        if sequence.table is not None:
            self.blocks.release(sequence.table)
            sequence.table = None
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def plan(self, now_s: float) -> SchedulerOutput:
        """The next step's work; empty when nothing can run."""
        plan = SchedulerOutput([], [])
        budget = self.step_tokens
        for sequence in list(self.running):
            if sequence.is_decoding and self._has_room(sequence):
                plan.work.append(Work(sequence, sequence.computed, 1))
                budget -= 1
        budget = self._continue_prompts(plan, budget)
        self._admit(plan, budget, now_s)
        return plan

    def _continue_prompts(self, plan: SchedulerOutput, budget: int) -> int:
        for sequence in self.running:
            if budget > 0 and not sequence.is_decoding:
                count = min(budget, len(sequence.ids) - sequence.computed)
                plan.work.append(Work(sequence, sequence.computed, count))
                budget -= count
        return budget

    def _admit(self, plan: SchedulerOutput, budget: int, now_s: float) -> None:
        while self.waiting and budget > 0 and len(self.running) < self._most_running:
            sequence = self.waiting[0]
            tokens = max(len(sequence.ids) + 1, sequence.prompt_tokens + sequence.predicted_tokens)
            taken = self.blocks.take(sequence.ids, tokens, sequence.request.salt)
            if taken is None:
                return
            sequence.table, copies = taken
            plan.copies += copies
            self.waiting.popleft()
            self._admitted_s.append(now_s)
            self.running.append(sequence)
            sequence.computed = sequence.table.cached_tokens
            if sequence.started_s is None:
                sequence.started_s = now_s
                sequence.usage.queue_s = now_s - sequence.arrived_s
                sequence.usage.cached_tokens = sequence.computed
            count = min(budget, len(sequence.ids) - sequence.computed)
            plan.work.append(Work(sequence, sequence.computed, count))
            budget -= count

    def _has_room(self, sequence: Sequence) -> bool:
        """Make room for one more token, preempting younger sequences where necessary."""
        assert sequence.table is not None
        while not self.blocks.grow(sequence.table, len(sequence.ids)):
            youngest = self.running[-1]
            self._put_aside(youngest)
            if youngest is sequence:
                return False
        return True

    def _put_aside(self, sequence: Sequence) -> None:
        assert sequence.table is not None
        self.blocks.release(sequence.table)
        sequence.table = None
        sequence.computed = 0
        # Twice as long as it has become, so that it is not put aside again at once.
        sequence.predicted_tokens = min(sequence.request.max_tokens, 2 * max(1, sequence.output_tokens))
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)
        self.preempted += 1
