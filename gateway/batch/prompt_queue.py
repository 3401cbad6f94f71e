"""Decides which prompt is asked next: a queue for each arm, prompts that wait for a time, and prompts that wait for
money.

Pure: time is an argument, in monotonic seconds.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gateway.batch.types import UNASSIGNED, Arm

OPEN, WAITS, BUSY, AWAY, DONE, FAILED = range(6)
"""States of a prompt: in a queue, waiting for a time or for money, being asked, at a provider's batch endpoint,
answered, failed for good.
"""


class PromptQueue:
    """The prompts of one job."""

    def __init__(self, arms: Sequence[Arm], arm: NDArray[np.int16]) -> None:
        self.arms = arms
        self.arm = arm.copy()
        """The arm planned for each prompt now, or UNASSIGNED."""
        self.state = np.zeros(len(arm), np.uint8)
        self.tries: Counter[int] = Counter()
        """Calls made so far, by prompt."""
        self.refused: dict[int, set[int]] = {}
        """Arms whose worst case the money left did not cover, by prompt."""
        self.unfunded: deque[int] = deque()
        """Prompts that wait for money which calls under way still hold."""
        self._lines: list[deque[int]] = [deque() for _ in arms]
        self._later: list[tuple[float, int]] = []
        self._turn = 0

    def fill(self) -> None:
        """Queue every open prompt. Call it once, before the first `take`."""
        for place in np.flatnonzero(self.state == OPEN).tolist():
            self.put(place)

    def put(self, place: int) -> None:
        """Append a prompt to its arm's queue. A prompt without an arm stays out of the queues until a plan gives it
        one.
        """
        arm = int(self.arm[place])
        self.state[place] = OPEN
        if arm != UNASSIGNED:
            self._lines[arm].append(place)

    def put_later(self, place: int, at_s: float) -> None:
        """Let a prompt wait until `at_s`."""
        self.state[place] = WAITS
        heapq.heappush(self._later, (at_s, place))

    def put_unfunded(self, place: int) -> None:
        """Let a prompt wait until money is released."""
        self.state[place] = WAITS
        self.unfunded.append(place)

    def wake(self, now: float) -> None:
        """Queue the prompts that have waited long enough."""
        while self._later and self._later[0][0] <= now:
            self.put(heapq.heappop(self._later)[1])

    def wakes_s(self) -> float | None:
        """When the next waiting prompt may be asked; None where none waits for a time."""
        return self._later[0][0] if self._later else None

    def take(self, lets: Callable[[Arm], bool]) -> int | None:
        """The next prompt of an arm that `lets` allows, the arms taking turns; None where there is none.

        A prompt whose arm was changed is still in its old queue, where it is skipped.
        """
        for step in range(len(self._lines)):
            arm = (self._turn + step) % len(self._lines)
            line = self._lines[arm]
            while line and (self.state[line[0]] != OPEN or self.arm[line[0]] != arm):
                line.popleft()
            if line and lets(self.arms[arm]):
                self._turn = arm + 1
                place = line.popleft()
                self.state[place] = BUSY
                return place
        return None

    def take_unfunded(self) -> int | None:
        """The prompt that has waited longest for money; None where none waits."""
        if not self.unfunded:
            return None
        place = self.unfunded.popleft()
        self.state[place] = BUSY
        return place

    def plan(self, rest: NDArray[np.intp], arm: NDArray[np.int16]) -> None:
        """Give new arms to the prompts of `rest` that are not being asked; those left UNASSIGNED keep their old arm."""
        still = rest[(self.state[rest] <= WAITS) & (arm[rest] != UNASSIGNED)]
        moved = still[self.arm[still] != arm[still]]
        self.arm[moved] = arm[moved]
        for place in moved[self.state[moved] == OPEN].tolist():
            self.put(place)

    def end(self, place: int, state: int) -> None:
        """Set the state to DONE, FAILED or AWAY."""
        self.state[place] = state
        self.refused.pop(place, None)

    @property
    def is_dry(self) -> bool:
        """Whether no prompt is queued or waits, though some may be without an arm."""
        waits = bool(self._later or self.unfunded)
        return not waits and not ((self.state == OPEN) & (self.arm != UNASSIGNED)).any()

    def rest(self) -> NDArray[np.intp]:
        """Prompts that have not ended and are not being asked."""
        return np.flatnonzero(self.state <= WAITS)

    def waiting(self) -> dict[str, int]:
        """Calls still to be made or under way, by model."""
        counts = np.bincount(self.arm[self.state <= BUSY] + 1, minlength=len(self.arms) + 1)[1:]
        found: Counter[str] = Counter()
        for arm, count in zip(self.arms, counts.tolist(), strict=True):
            found[arm.model] += count * max(1, arm.samples)
        return found

    def at_endpoints(self) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Open prompts whose arm is a provider's batch endpoint, by arm."""
        for number, arm in enumerate(self.arms):
            if arm.via == "batch":
                places = np.flatnonzero((self.state == OPEN) & (self.arm == number))
                if len(places):
                    yield number, places
