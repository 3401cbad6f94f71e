"""Speculative decoding: guess several tokens and check them in one pass. It takes fewer steps and gives exactly the
same answer.

The engine's scores do not depend on how many rows are computed together, and a request's randomness depends on the
position alone. So a guess is accepted exactly when it is the token that would have been chosen without guessing, and
speculation changes nothing but the time, sampled answers included. With one guess a position the chance of that is the
target's own probability of the guess, which no rule of acceptance can exceed for a deterministic guess.

Guesses come from the text itself (n-grams that occurred before), or from a smaller model. How many rows a step may
spend on guesses is one budget for the whole batch, given to the likeliest guesses first (TETRIS).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from local_models.attention import KVCache, Segment
from local_models.blocks import BlockPool, BlockTable, common_length
from local_models.decoder import Batch, Decoder
from local_models.device import device_for
from local_models.errors import CheckpointError
from local_models.options import EngineOptions
from local_models.runner import slot_numbers
from local_models.text import TextCodec

_START_RATE = 0.6
_MEMORY = 0.9


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next, in order, each with its probability given those before it."""

    ids: tuple[int, ...]
    probabilities: tuple[float, ...]


NOTHING = Draft((), ())


class Drafter(Protocol):
    """Proposes draft tokens."""

    def propose(self, contexts: Mapping[str, Ids[int]], most: int) -> dict[str, Draft]:
        """Up to `most` tokens to follow each context, by request."""

    def learn(self, request_id: str, drafted: int, accepted: int) -> None:
        """Learn how many tokens of a draft were accepted."""

    def forget(self, request_id: str) -> None:
        """The request has ended."""


def share_budget(guesses: dict[str, Draft], budget: int) -> dict[str, tuple[int, ...]]:
    """The `budget` guesses likeliest to be accepted, whole batch considered.

    A guess counts only if all before it in its sequence do, so its worth is the product of probabilities up
    to it; products only fall, so taking the best next guess `budget` times is optimal (TETRIS, prefix-closed
    greedy).
    """
    taken = dict.fromkeys(guesses, 0)
    heap = [(-guess.probabilities[0], name) for name, guess in guesses.items() if guess.ids]
    heapq.heapify(heap)
    while heap and budget > 0:
        worth, name = heapq.heappop(heap)
        taken[name] += 1
        budget -= 1
        if taken[name] < len(guesses[name].ids):
            heapq.heappush(heap, (worth * guesses[name].probabilities[taken[name]], name))
    return {name: guesses[name].ids[:count] for name, count in taken.items()}


@dataclass(slots=True)
class _Text:
    """State of an n-gram drafter for one request."""

    after: dict[tuple[int, ...], int] = field(default_factory=dict)
    indexed: int = 0
    rate: float = _START_RATE


class NgramDrafter:
    """Guesses that the text goes on as it did after the same last tokens before."""

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._texts: dict[str, _Text] = {}

    def propose(self, contexts: Mapping[str, Ids[int]], most: int) -> dict[str, Draft]:
        return {name: self._propose(name, ids, most) for name, ids in contexts.items()}

    def learn(self, request_id: str, drafted: int, accepted: int) -> None:
        text = self._texts.get(request_id)
        if text is not None and drafted:
            text.rate = _MEMORY * text.rate + (1 - _MEMORY) * accepted / drafted

    def forget(self, request_id: str) -> None:
        self._texts.pop(request_id, None)

    def _propose(self, name: str, ids: Ids[int], most: int) -> Draft:
        text = self._texts.setdefault(name, _Text())
        self._index(text, ids)
        for length in self._lengths:
            at = text.after.get(tuple(ids[len(ids) - length :])) if len(ids) > length else None
            if at is not None:
                follow = tuple(ids[at : at + most])
                return Draft(follow, (text.rate,) * len(follow))
        return NOTHING

    def _index(self, text: _Text, ids: Ids[int]) -> None:
        """Remember where each n-gram ended, once something has followed it."""
        for end in range(max(1, text.indexed), len(ids)):
            for length in self._lengths:
                if end >= length:
                    text.after[tuple(ids[end - length : end])] = end
        text.indexed = len(ids)


@dataclass(slots=True)
class _Track:
    """A request's blocks in the small model's pool, and the tokens whose keys they hold."""

    table: BlockTable
    seen: list[int]


class ModelDrafter:
    """Guesses by the likeliest tokens of a smaller model with the same tokenizer."""

    def __init__(self, decoder: Decoder, kv_tokens: int) -> None:
        self._decoder = decoder
        self._blocks = BlockPool(kv_tokens // decoder.block_tokens, decoder.block_tokens, share=False)
        self._pool: KVCache = decoder.new_pool(self._blocks.count)
        self._tracks: dict[str, _Track] = {}

    def propose(self, contexts: Mapping[str, Ids[int]], most: int) -> dict[str, Draft]:
        """Catch up with the accepted tokens, then continue, all requests in one batch."""
        texts = {name: list(ids) for name, ids in contexts.items() if self._has_room(name, ids, most)}
        said: dict[str, list[tuple[int, float]]] = {name: [] for name in texts}
        for _ in range(most if texts else 0):
            for name, (token_id, probability) in self._next(texts).items():
                texts[name].append(token_id)
                said[name].append((token_id, probability))
        guesses = dict.fromkeys(contexts, NOTHING)
        for name, pairs in said.items():
            guesses[name] = Draft(tuple(i for i, _ in pairs), tuple(p for _, p in pairs))
        return guesses

    def learn(self, request_id: str, drafted: int, accepted: int) -> None:
        """Learns nothing: its probabilities are those of the small model."""

    def forget(self, request_id: str) -> None:
        track = self._tracks.pop(request_id, None)
        if track is not None:
            self._blocks.release(track.table)

    def _has_room(self, name: str, ids: Ids[int], most: int) -> bool:
        """Find the request's place, as far as its text still agrees; False when the pool is full."""
        tokens = len(ids) + most
        if tokens > self._decoder.shape.context_tokens:
            return False
        track = self._tracks.get(name)
        if track is None:
            taken = self._blocks.take(ids, tokens)
            if taken is None:
                return False
            self._tracks[name] = _Track(taken[0], [])
            return True
        del track.seen[common_length(track.seen, ids[:-1]) :]
        return self._blocks.grow(track.table, tokens)

    def _next(self, texts: dict[str, list[int]]) -> dict[str, tuple[int, float]]:
        """The small model's likeliest next token of each text."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        last: list[int] = []
        segments = []
        for name, text in texts.items():
            track = self._tracks[name]
            start = len(track.seen)
            segments.append(Segment(len(ids), len(text) - start, start, track.table.blocks))
            ids += text[start:]
            positions += range(start, len(text))
            slots += slot_numbers(track.table.blocks, start, len(text), self._blocks.block_tokens)
            last.append(len(ids) - 1)
            track.seen = list(text)
        tensors = [torch.tensor(values, dtype=torch.long) for values in (ids, positions, slots, last)]
        hidden = self._decoder.forward(Batch(tensors[0], tensors[1], tensors[2], segments, tensors[3]), self._pool)
        best = self._decoder.logits(hidden).softmax(-1).max(-1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return dict(zip(texts, pairs, strict=True))


def model_drafter(model: Path, codec: TextCodec, options: EngineOptions) -> ModelDrafter | None:
    """The drafter that the options ask for; None where they name none, or the model itself. Raises CheckpointError
    where the two models' tokenizers differ.
    """
    if options.draft_model is None or Path(options.draft_model).resolve() == model.resolve():
        return None
    if not options.draft_tokens:
        raise CheckpointError("draft_model guesses nothing while draft_tokens is 0; set it, to 4 say")
    folder = Path(options.draft_model)
    if TextCodec(folder).tokenizer.to_str() != codec.tokenizer.to_str():
        raise CheckpointError(f"{folder} can't guess for this model: its tokenizer is another one")
    decoder = Decoder.load(
        folder, options.dtype, options.block_tokens, int8=options.int8, device=str(device_for(options.device))
    )
    return ModelDrafter(decoder, options.kv_tokens)
