"""Measures reward-guided drafting (RSD) on the two shipped models: the share of the large model's tokens that keeps its
accuracy.

The shipped models follow no instructions, so a step is a few tokens, and the next step continues the answer, written by
the engine directly. The gateway's own `Stepwise` decides. The threshold is chosen on learning questions. It is compared
with a cascade of whole answers that must reach the same share of accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import nan
from typing import Any

import numpy as np

from cascade.confidence import RAW
from cascade.stepwise import Stepwise
from cascade.types import Evidence, Keep, Outcome, Step
from gateway.tiny.figures import difference, mean, ratio
from local_models import shipped_models
from local_models.engine import Engine
from local_models.request import Delta, Request
from local_models.tasks import Question, is_right

SMALL, LARGE = "tiny-small", "tiny-large"
STEP_TOKENS = 6
MOST_TOKENS = 48
GRID = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
SO_FAR = "so far"
END = "####"
"""The mark by which `Stepwise` recognises a finished solution; no answer of the shipped models contains it."""


@dataclass(frozen=True, slots=True)
class Written:
    """One answer and the tokens that it took."""

    right: bool
    large_tokens: int
    """Tokens written by the large model."""
    all_tokens: int


class Writers:
    """Both models' engines, with a cache of what they have written."""

    def __init__(self) -> None:
        self.engines = {name: Engine.load(shipped_models()[name]) for name in (SMALL, LARGE)}
        self.codec = self.engines[SMALL].codec
        self._written = dict[tuple[str, str, str, int], Outcome]()
        self._ids = count()

    def write(self, model: str, question: Question, so_far: str, most: int) -> Outcome:
        """The next tokens after `so_far`, at most `most`, by greedy decoding."""
        key = (model, question.prompt, so_far, most)
        if key not in self._written:
            self._written[key] = self._write(*key)
        return self._written[key]

    def _write(self, model: str, prompt: str, so_far: str, most: int) -> Outcome:
        prompt_ids = self.codec.encode_chat([{"role": "user", "content": prompt}])
        ids = (*prompt_ids, *(self.codec.encode(so_far) if so_far else ()))
        engine, text, logprobs, tokens = self.engines[model], "", list[float](), 0
        engine.add(Request(str(next(self._ids)), ids, most, top_logprobs=0))
        while engine.busy:
            for event in engine.step():
                text += event.text
                if isinstance(event, Delta):
                    logprobs += [token.logprob for token in event.logprobs]
                    continue
                tokens = event.usage.output_tokens
                if event.reason == "stop":
                    text += END
        typical, least = (float(np.mean(logprobs)), min(logprobs)) if logprobs else (nan, nan)
        return Outcome(model, evidence=Evidence(typical, least, output_tokens=tokens, text=text))


def stepwise(writers: Writers, question: Question, accept_at: float) -> Written:
    """The answer written in steps by the small model, with steps below `accept_at` rewritten by the large one."""
    history, drafts = list[Outcome](), drafting(accept_at)
    while not isinstance(move := drafts.next(history, lambda step: True), Keep):
        step = move.steps[0]
        most = STEP_TOKENS if SO_FAR in step.overrides else MOST_TOKENS
        history.append(writers.write(step.model, question, str(step.overrides.get(SO_FAR, "")), most))
    text = move.text or ("" if move.kept is None else history[move.kept].evidence.text)
    return Written(is_right(question, joined(text)), tokens(history, LARGE), tokens(history, LARGE, SMALL))


def drafting(accept_at: float) -> Stepwise:
    """The drafting strategy, in which each step continues the accepted text."""
    most = MOST_TOKENS // STEP_TOKENS + 1
    return Stepwise(Step(SMALL), Step(LARGE), lambda so_far: {SO_FAR: joined(so_far)}, accept_at, most)


def joined(steps: str) -> str:
    """The answer without the line breaks between steps and the mark at its end; the shipped models write neither."""
    return steps.replace("\n", "").removesuffix(END)


def whole(writers: Writers, question: Question, accept_at: float) -> Written:
    """The small model's answer, or the large one's where its confidence is below `accept_at`: the cascade that drafting
    is compared with.
    """
    history = [writers.write(SMALL, question, "", MOST_TOKENS)]
    if not RAW(SMALL, history[0].evidence) >= accept_at:
        history.append(writers.write(LARGE, question, "", MOST_TOKENS))
    right = is_right(question, joined(history[-1].evidence.text))
    return Written(right, tokens(history, LARGE), tokens(history, LARGE, SMALL))


def report(learning: Sequence[Question], judging: Sequence[Question], share: float) -> dict[str, Any]:
    """The large model's tokens at `share` of its accuracy, by steps and by whole answers, on the judging questions."""
    writers = Writers()
    alone = [whole(writers, question, 2.0) for question in judging]
    target = share * float(np.mean([whole(writers, question, 2.0).right for question in learning]))
    figures: dict[str, Any] = {"step_tokens": STEP_TOKENS}
    for name, way in (("by_steps", stepwise), ("by_answers", whole)):
        tried = {at: [way(writers, question, at) for question in learning] for at in GRID}
        accept_at = thriftiest(tried, target)
        figures[name] = {"accept_at": accept_at, **beside([way(writers, q, accept_at) for q in judging], alone)}
    return figures


def thriftiest(tried: dict[float, list[Written]], target: float) -> float:
    """Among the thresholds that reach the target accuracy, the one with the fewest tokens of the large model; the
    highest threshold where none does.
    """
    enough = [at for at, written in tried.items() if np.mean([one.right for one in written]) >= target]
    return min(enough, key=lambda at: sum(one.large_tokens for one in tried[at]), default=max(tried))


def beside(written: Sequence[Written], alone: Sequence[Written]) -> dict[str, Any]:
    """Answers written in one way, compared with the large model's own."""
    right, theirs = [float(one.right) for one in written], [float(one.right) for one in alone]
    return {
        "accuracy": mean(right),
        "accuracy_minus_large": difference(right, theirs),
        "large_token_share": ratio([one.large_tokens for one in written], [one.large_tokens for one in alone]),
        "all_token_ratio": ratio([one.all_tokens for one in written], [one.large_tokens for one in alone]),
    }


def tokens(history: Sequence[Outcome], *models: str) -> int:
    """Number of tokens that these models wrote."""
    return sum(outcome.evidence.output_tokens for outcome in history if outcome.model in models)
