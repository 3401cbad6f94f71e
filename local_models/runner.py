"""Computes an engine's steps: from planned work to scores, by the decoder and the pool of keys and values.

A runner neither knows the requests' sampling rules nor chooses tokens. `Runner` computes a step as one flat batch, on
whatever device the decoder is; `local_models.paged_runner` has another for GPUs. Scores come back to the CPU, because
tokens are chosen there, each request by its own rules.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids

import torch
from torch import Tensor

from local_models.attention import KVCache, Segment
from local_models.blocks import SlotCopy, SlotFill
from local_models.decoder import Batch, Decoder
from local_models.errors import CheckpointError
from local_models.scheduler import Work


class Runner:
    """Computes work for one engine; owns the pool."""

    spare_blocks = 0
    """Blocks of the pool beyond those that sequences own."""

    def __init__(self, decoder: Decoder, blocks: int) -> None:
        self.decoder = decoder
        self.blocks = blocks
        self.pool = _pool(decoder, blocks + self.spare_blocks)

    def run(self, work: list[Work]) -> Tensor:
        """Float32 logits: one row for each piece of work that reaches its sequence's end, and one for each guess."""
        hidden = self.decoder.forward(flat_batch(work, self.decoder.block_tokens), self.pool)
        return self.decoder.logits(hidden).cpu() if len(hidden) else hidden.cpu()

    def run_steps(self, work: list[Work], left: list[int]) -> list[list[int]]:
        """Up to `left` likeliest next tokens of each decoding sequence, ordered by `left`, largest first; see
        `Decoder.decode`.
        """
        segments = []
        for row, piece in enumerate(work):
            assert piece.sequence.table is not None
            segments.append(Segment(row, 1, piece.start, piece.sequence.table.blocks))
        return self.decoder.decode(segments, [piece.sequence.ids[-1] for piece in work], self.pool, left)

    def copy(self, copies: list[SlotCopy | SlotFill]) -> None:
        """Copy keys and values, in order."""
        slots = self.pool.tensor
        for copy in copies:
            if isinstance(copy, SlotFill):
                slots[:, :, :, copy.target : copy.target + self.pool.block_tokens].copy_(copy.content)
                continue
            source = slots[:, :, :, copy.source : copy.source + copy.count]
            slots[:, :, :, copy.target : copy.target + copy.count].copy_(source)

    def embed(self, ids: Ids[int]) -> Tensor:
        """The mean hidden state of a text, of length 1."""
        hidden = self._alone(ids, 0)
        return torch.nn.functional.normalize(hidden.float().mean(0), dim=0).cpu()

    def score(self, prompt: Ids[int], answer: Ids[int]) -> list[float]:
        """Log-probabilities of an answer's tokens."""
        scores = self.decoder.logits(self._alone([*prompt, *answer][:-1], len(prompt) - 1)).cpu()
        chosen = torch.tensor(answer).unsqueeze(1)
        logprobs: list[float] = torch.log_softmax(scores, -1).gather(1, chosen)[:, 0].tolist()
        return logprobs

    def _alone(self, ids: Ids[int], first_wanted: int) -> Tensor:
        """Hidden states of a text from one of its tokens on, in a pool of its own."""
        count = len(ids)
        blocks = -(-count // self.decoder.block_tokens)
        positions = torch.arange(count)
        segment = Segment(0, count, 0, list(range(blocks)))
        batch = Batch(torch.tensor(ids), positions, positions, [segment], positions[first_wanted:])
        return self.decoder.forward(batch, self.decoder.new_pool(blocks))


def flat_batch(work: list[Work], block_tokens: int) -> Batch:
    """A step's tokens one after another; wanted are the rows that reach their sequence's end, guesses included."""
    ids: list[int] = []
    positions: list[int] = []
    write_slots: list[int] = []
    wanted: list[int] = []
    segments = []
    for piece in work:
        end = piece.start + piece.count
        rows = piece.count + len(piece.drafts)
        assert piece.sequence.table is not None
        blocks = piece.sequence.table.blocks
        segments.append(Segment(len(ids), rows, piece.start, blocks))
        ids += piece.sequence.ids[piece.start : end]
        ids += piece.drafts
        positions += range(piece.start, piece.start + rows)
        write_slots += slot_numbers(blocks, piece.start, piece.start + rows, block_tokens)
        if end == len(piece.sequence.ids):
            wanted += range(len(ids) - 1 - len(piece.drafts), len(ids))
    tensors = [torch.tensor(values, dtype=torch.long) for values in (ids, positions, write_slots, wanted)]
    return Batch(tensors[0], tensors[1], tensors[2], segments, tensors[3])


def slot_numbers(blocks: list[int], start: int, end: int, block_tokens: int) -> list[int]:
    """The slots of positions `start .. end` of a sequence that owns these blocks."""
    return [blocks[at // block_tokens] * block_tokens + at % block_tokens for at in range(start, end)]


def runner_for(decoder: Decoder, blocks: int) -> Runner:
    """The runner of a decoder's kind."""
    if not decoder.paged:
        return Runner(decoder, blocks)
    from local_models.paged_runner import PagedRunner

    return PagedRunner(decoder, blocks)


def _pool(decoder: Decoder, blocks: int) -> KVCache:
    """Raises CheckpointError where the device has no room for it."""
    try:
        return decoder.new_pool(blocks)
    except torch.OutOfMemoryError as error:
        tokens = blocks * decoder.block_tokens
        raise CheckpointError(f"kv_tokens {tokens} do not fit {decoder.device}: {error}") from error
