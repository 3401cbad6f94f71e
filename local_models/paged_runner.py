"""The runner for a GPU: sequences that decode go through steps of fixed shape, prompts through the decoder's own pass.

A sequence's next token, and each guess behind it, is one row of a `DecodeSteps` step: a graph that reads the paged pool
in place. Chunks of prompts are one flat batch, attended to by torch in tiles of one block, which depend on a token's
position alone. The two are computed one after the other, so a step that mixes them reads the weights twice; prompts
are bound by sums, not by reading.

A row depends on its own sequence only as far as its products do (`EngineOptions.invariant`). What was computed as part
of a prompt and what was decoded differ in rounding, so a sequence that was put aside may go on differently.
Any device will do: without a GPU, Triton's interpreter computes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from local_models.decoder import Decoder
from local_models.paged import DecodeSteps, token_step
from local_models.runner import Runner, slot_numbers
from local_models.scheduler import Work


class PagedRunner(Runner):
    """Single tokens in place, prompts in chunks."""

    spare_blocks = 1

    def __init__(self, decoder: Decoder, blocks: int) -> None:
        super().__init__(decoder, blocks)
        size = decoder.block_tokens
        compute = token_step(decoder, self.pool.tensor)
        self.steps = DecodeSteps(compute, decoder.device, -(-decoder.shape.context_tokens // size), blocks * size)

    def run(self, work: list[Work]) -> Tensor:
        decoding = [piece for piece in work if piece.sequence.is_decoding]
        prompts = [piece for piece in work if not piece.sequence.is_decoding]
        ending = [piece for piece in prompts if piece.start + piece.count == len(piece.sequence.ids)]
        decoded = self._decode(decoding)
        said = dict(zip(map(id, decoding), decoded.split([1 + len(piece.drafts) for piece in decoding]), strict=True))
        if prompts:
            said |= zip(map(id, ending), super().run(prompts).split(1), strict=False)
        rows = [said[id(piece)] for piece in work if id(piece) in said]
        return torch.cat(rows) if rows else decoded

    def _decode(self, work: list[Work]) -> Tensor:
        """Scores of the newest token and of each guess, in the order of the work."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tables: list[list[int]] = []
        for piece in work:
            assert piece.sequence.table is not None
            blocks, rows = piece.sequence.table.blocks, 1 + len(piece.drafts)
            ids += [piece.sequence.ids[piece.start], *piece.drafts]
            positions += range(piece.start, piece.start + rows)
            slots += slot_numbers(blocks, piece.start, piece.start + rows, self.decoder.block_tokens)
            tables += [blocks] * rows
        if not ids:
            return torch.empty(0, self.decoder.shape.vocabulary)
        return self.steps.run(ids, positions, slots, tables).float().cpu()
