"""Turns prices into an assignment of whole prompts that keeps every limit.

At the best prices only a few prompts are near a tie between arms; these are moved. First the limits are met, by the
moves that lose least value; then what is left of the limits is used for moves that gain worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.batch.program import NEVER, Array, Program, Rows

LossOf = Callable[[slice], NDArray[np.float64]]
"""The loss of moving each row of a slice to each arm, shape (rows, arms); infinite where that move is not possible."""

_FULL = 1.0 + 1e-9
_PASSES = 8
_MOVES = 20_000
"""Most moves that are tried in one pass."""
_SCALINGS = 40
"""Most times that prices are raised."""
_DEAREST = 1e6
"""Largest price, per prompt: a limit far below float32's overflow."""


@dataclass(slots=True)
class Draft:
    """An assignment that is being improved."""

    program: Program
    prices: Array
    arm: NDArray[np.int16]
    uses: Array

    @property
    def fits(self) -> bool:
        """Whether every limit is kept."""
        return bool((self.uses <= _FULL).all())


def drafted(program: Program, prices: Array) -> Draft:
    """The prompts' choices at the prices. Where they exceed a limit by more than 0.2 %, its price is raised until they
    don't.
    """
    decision = program.decide(prices)
    draft = Draft(program, prices, decision.arm, program.uses(decision))
    least = 1e-3 * max(float(prices.max()), 1e-3 * len(program))
    raised = np.where(draft.uses > 1.0, np.maximum(prices, least), prices)
    rise = 1e-4
    for _ in range(_SCALINGS):
        if (draft.uses <= 1.0 + 2e-3).all():
            break
        raised = np.minimum(np.where(draft.uses > 1.0, raised * (1.0 + rise), raised), _DEAREST * len(program))
        rise *= 2.0
        decision = program.decide(raised)
        draft = Draft(program, prices, decision.arm, program.uses(decision))
    return draft


def rounded(program: Program, prices: Array) -> Draft:
    """The assignment of whole prompts; `fits` tells whether every limit is kept."""
    draft = drafted(program, prices)
    for _ in range(_PASSES):
        if draft.fits or not _relieve(draft):
            break
    if draft.fits:
        for _ in range(_PASSES):
            if not _fill(draft):
                break
    return draft


def _relieve(draft: Draft) -> bool:
    """Move prompts off the limits that are exceeded, the least loss per relief first. False where no move helps."""
    over = np.where(draft.uses > _FULL, 1.0, 0.0)
    rows, arms = _candidates(draft, lambda part: _losses_to_relieve(draft, over, part))
    return _move(draft, rows, arms, filling=False)


def _losses_to_relieve(draft: Draft, over: Array, part: slice) -> NDArray[np.float64]:
    """Loss of value per unit of relief of the exceeded limits, by row and arm; infinite where there is no relief."""
    program, own = draft.program, draft.arm[part, None].astype(np.intp)
    load = program.priced(over, part).astype(np.float64)
    value = program.values(draft.prices, part).astype(np.float64)
    relief = np.take_along_axis(load, own, 1) - load
    loss = np.take_along_axis(value, own, 1) - value
    helps = (relief > 1e-12) & (program.worth[part] > NEVER / 2)
    return np.where(helps, np.maximum(loss, 0.0) / np.where(helps, relief, 1.0), np.inf)


def _fill(draft: Draft) -> bool:
    """Use what is left of the limits for moves that gain worth, the least loss of value first. False where no move
    fits.
    """
    rows, arms = _candidates(draft, lambda part: _losses_to_fill(draft, part))
    return _move(draft, rows, arms, filling=True)


def _losses_to_fill(draft: Draft, part: slice) -> NDArray[np.float64]:
    program, own = draft.program, draft.arm[part, None].astype(np.intp)
    value = program.values(draft.prices, part).astype(np.float64)
    gain = program.worth[part] - np.take_along_axis(program.worth[part], own, 1)
    fits = gain > 1e-7
    for place, left in enumerate((1.0 - draft.uses).tolist()):
        only = np.zeros(len(draft.uses))
        only[place] = 1.0
        load = program.priced(only, part)
        fits &= load - np.take_along_axis(load, own, 1) <= left
    return np.where(fits, np.take_along_axis(value, own, 1) - value, np.inf)


def _candidates(draft: Draft, losses: LossOf) -> tuple[Rows, Rows]:
    """Rows and arms of the moves to try, in order: the best one of each row, and of these the best `_MOVES`."""
    rows: list[Rows] = []
    arms: list[Rows] = []
    costs: list[NDArray[np.float64]] = []
    for part in draft.program.parts():
        loss = losses(part)
        best = loss.argmin(1)
        least = np.take_along_axis(loss, best[:, None], 1)[:, 0]
        usable = np.flatnonzero(np.isfinite(least))
        if len(usable) > _MOVES:
            usable = usable[np.argpartition(least[usable], _MOVES)[:_MOVES]]
        rows.append(usable + part.start)
        arms.append(best[usable])
        costs.append(least[usable])
    order = np.argsort(np.concatenate(costs), kind="stable")[:_MOVES]
    return np.concatenate(rows)[order], np.concatenate(arms)[order]


def _move(draft: Draft, rows: Rows, arms: Rows, *, filling: bool) -> bool:
    """Make the moves in order: all that still fit when `filling`, otherwise until the limits are kept. Returns whether
    any was made.
    """
    program = draft.program
    change = program.use_of(rows, arms) - program.use_of(rows, draft.arm[rows].astype(np.intp))
    uses, moved = draft.uses.copy(), False
    for row, arm, step in zip(rows.tolist(), arms.tolist(), change, strict=True):
        after = uses + step
        if filling and not (after <= 1.0).all():
            continue
        if not filling and (after > np.maximum(uses, 1.0)).any():
            continue
        uses, moved = after, True
        draft.arm[row] = arm
        if not filling and (uses <= 1.0).all():
            break
    draft.uses = program.uses(program.tally(draft.arm))
    return moved
