"""Solved cases put before a question, for models that are not expected to answer it well on their own.

A route's file holds questions with answers that were right, each of a tenant (EcoAssistant). The nearest are shown, the
nearest last; how many depends on what the router expects of the model: none where it is good enough, for every case is
paid for in tokens (DynaICL). The client's own messages stay whole and in order. Cases never cross tenants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec
from msgspec.structs import replace

from cascade.demonstrations import Case, Solved, Vector, demonstrations_for
from cascade.prompts import Message, demonstrated
from cascade.types import Plan
from gateway.errors import ConfigError
from routers.features import Featurizer, shipped_featurizer
from routers.types import Choice

TURN_BYTES = 64
"""Of JSON around a case's two turns, at most."""
_encode = msgspec.json.Encoder().encode


class CaseLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file."""

    question: str
    answer: str
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class SolvedCases:
    """Of one route."""

    stores: Mapping[str, Solved]
    most: int
    bound_tokens: int
    """No `most` cases have more; a token is at least one byte."""
    featurizer: Featurizer

    def shown_in(
        self, plan: Plan, messages: Sequence[Message], question: str, tenant: str, choice: Choice
    ) -> tuple[Plan, int]:
        """The plan with cases before the question of each step that is not expected to do well enough without, and how
        many the step that sees most is shown; 0: there are none to show.
        """
        store = self.stores.get(tenant)
        if store is None or not messages or plan.strategy is not None:
            return plan, 0
        quality = {estimate.model: estimate.quality for estimate in choice.estimates}
        counts = [demonstrations_for(quality.get(step.model, float("nan")), self.most) for step in plan.steps]
        if not any(counts):
            return plan, 0
        nearest = store.nearest(meaning(self.featurizer, question), max(counts), exclude=question)
        pairs = [(case.question, case.answer) for case in nearest]
        steps = [
            replace(step, overrides={**step.overrides, **demonstrated(messages, pairs[-count:])})
            if count and pairs
            else step
            for step, count in zip(plan.steps, counts, strict=True)
        ]
        return replace(plan, steps=tuple(steps)), min(max(counts), len(pairs))


def meaning(featurizer: Featurizer, text: str) -> Vector:
    """What two questions are compared by: their words, not their length."""
    return featurizer.describe(text).vector[: featurizer.layout.tail.stop]


def open_solved(path: str, most: int, setting: str = "routes.solved") -> SolvedCases:
    """ConfigError, naming the setting, where the file can't be read or a line is no case."""
    try:
        return _opened(path, Path(path).stat().st_mtime_ns, most)
    except OSError as error:
        raise ConfigError([f"{setting}: {path}: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigError([f"{setting}: {path}: {error}"]) from None


@lru_cache(maxsize=16)
def _opened(path: str, changed_ns: int, most: int) -> SolvedCases:
    """Read again only where the file has changed: a reload must not embed every case anew."""
    featurizer, stores, sizes = shipped_featurizer(), dict[str, Solved](), list[int]()
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            case = msgspec.json.decode(line, type=CaseLine)
            store = stores.setdefault(case.tenant, Solved())
            store.remember(Case(case.question, case.answer, meaning(featurizer, case.question)))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        sizes.append(len(_encode(case.question)) + len(_encode(case.answer)) + TURN_BYTES)
    return SolvedCases(stores, most, sum(sorted(sizes)[-most:]), featurizer)
