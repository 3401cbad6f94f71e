"""Several decoding steps in one call, because for a small model the overhead between steps costs as much as the steps.

It is possible while all running sequences decode greedily and none waits. The number of steps is limited by time, since
their tokens are delivered together. A waiting job ends the call after the current step (`Engine.hurry`). The tokens are
those of single steps, bit for bit. Not possible where the scores must be looked at: with sampling, penalties, grammars,
log-probabilities or guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from local_models.blocks import BlockPool
from local_models.scheduler import Sequence, Work

MOST_STEPS = 32
PATIENCE_S = 0.05
"""The most seconds that one call may take."""


class StepTimes:
    """Seconds of a step, by the number of sequences that decode in it."""

    def __init__(self) -> None:
        self._step_s: dict[int, float] = {}

    def learn(self, work: list[Work], step_s: float) -> None:
        """Learn the seconds of a step; one that computes prompts is ignored."""
        if all(piece.sequence.is_decoding for piece in work):
            self._step_s[len(work)] = step_s

    def steps(self, work: list[Work]) -> int:
        """The number of steps to make at once; 1 until a step of at least as many sequences was timed."""
        step_s = next((self._step_s[many] for many in sorted(self._step_s) if many >= len(work)), PATIENCE_S)
        return max(1, min(MOST_STEPS, int(PATIENCE_S / max(step_s, 1e-6))))


def tokens_left(work: list[Work], steps: int) -> list[int]:
    """Tokens that each sequence may still generate within `steps` steps, largest first; the work is sorted into that
    order.
    """
    work.sort(key=_left, reverse=True)
    return [min(steps, _left(piece)) for piece in work]


def _left(piece: Work) -> int:
    return piece.sequence.request.max_tokens - piece.sequence.output_tokens


def is_greedy(work: list[Work]) -> bool:
    """True when each piece is the next token of a sequence that takes the likeliest one and tells nothing of it."""
    return all(
        piece.sequence.is_decoding
        and not piece.drafts
        and piece.sequence.matcher is None
        and piece.sequence.request.top_logprobs is None
        and piece.sequence.request.sampling.plain_greedy
        for piece in work
    )


def reserve(blocks: BlockPool, work: list[Work], left: list[int]) -> bool:
    """Give each sequence the slots of so many tokens; False when they can't be had now."""
    for piece, tokens in zip(work, left, strict=True):
        table = piece.sequence.table
        if table is None or not blocks.grow(table, len(piece.sequence.ids) + tokens - 1):
            return False
    return True


@dataclass(frozen=True, slots=True)
class NewTokens:
    """New tokens of one sequence after several steps."""

    text: str
    token_ids: tuple[int, ...]
    """The tokens of `text`; an end token is not among them."""
    reason: Literal["stop", "length", "error"] | None
    """Why the sequence ends here; None: it goes on."""
    rest: str = ""
    """Text that was held back and is final now."""


def append(sequence: Sequence, tokens: list[int], end_ids: tuple[int, ...]) -> NewTokens:
    """Add tokens to a sequence, up to the one that ends it; -1 stands for scores that are no numbers."""
    request, stream = sequence.request, sequence.stream
    assert stream is not None
    text, token_ids = "", list[int]()
    for token_id in tokens:
        if token_id < 0:
            return NewTokens(text + stream.push(*([] if stream.stops else token_ids)), tuple(token_ids), "error")
        sequence.computed += 1
        sequence.ids.append(token_id)
        sequence.said[token_id] += 1
        if token_id in end_ids and not request.ignore_end:
            text += "" if stream.stops else stream.push(*token_ids)
            return NewTokens(text, tuple(token_ids), "stop", stream.finish())
        token_ids.append(token_id)
        if stream.stops:
            text += stream.push(token_id)
            if stream.stopped_by is not None:
                return NewTokens(text, tuple(token_ids), "stop")
    text += "" if stream.stops else stream.push(*token_ids)
    done = sequence.output_tokens >= request.max_tokens
    return NewTokens(text, tuple(token_ids), "length" if done else None, stream.finish() if done else "")
