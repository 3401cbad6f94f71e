"""Solved cases shown before a question to models that are not expected to answer it well by themselves (few-shot
examples).

A route's file has questions with right answers, each of one tenant (EcoAssistant). The most similar cases are shown,
the most similar last. How many depends on the quality that the router expects of the model: none where that is high
enough, because every case costs tokens (DynaICL). The client's own messages stay unchanged and in order. Cases are
never shown to another tenant.
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
"""Most bytes of JSON around a case's two turns."""
_encode = msgspec.json.Encoder().encode


class CaseLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a route's file."""

    question: str
    answer: str
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class SolvedCases:
    """The solved cases of one route."""

    stores: Mapping[str, Solved]
    """The cases of each tenant."""
    most: int
    """Most cases that are shown for one question."""
    bound_tokens: int
    """Upper bound on the tokens of `most` cases, counted in bytes, because a token has at least one."""
    featurizer: Featurizer

    def shown_in(
        self, plan: Plan, messages: Sequence[Message], question: str, tenant: str, choice: Choice
    ) -> tuple[Plan, int]:
        """The plan with cases before the question, in each step whose model is not expected to do well enough without
        them; and the largest number of cases in a step, 0 where none are shown.
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
    """The part of the vector that questions are compared by, which depends on their words and not on their length."""
    return featurizer.describe(text).vector[: featurizer.layout.tail.stop]


def open_solved(path: str, most: int, setting: str = "routes.solved") -> SolvedCases:
    """The cases in a file. Raises ConfigError, which names the setting, where it can't be read or a line is no case."""
    try:
        return _opened(path, Path(path).stat().st_mtime_ns, most)
    except OSError as error:
        raise ConfigError([f"{setting}: {path}: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigError([f"{setting}: {path}: {error}"]) from None


@lru_cache(maxsize=16)
def _opened(path: str, changed_ns: int, most: int) -> SolvedCases:
    """The cases, cached until the file changes, so that a reload doesn't embed every case again."""
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
