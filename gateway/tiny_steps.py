"""Reward-guided drafting on the two shipped models: how many of the large model's tokens keep its accuracy (RSD).

The shipped models know no instructions, so that a step is a few tokens and the next one goes on where the answer
stands, asked of the engine directly; what decides is the gateway's own `Stepwise`. The threshold is chosen on learning
questions, and the same share of accuracy is asked of sending whole answers to the large model.
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
from gateway.tiny_figures import difference, mean, ratio
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
"""What `Stepwise` knows an ended solution by; no answer of the shipped models holds it."""


@dataclass(frozen=True, slots=True)
class Written:
    """One answer and what it took."""

    right: bool
    large_tokens: int
    """That the large model wrote."""
    all_tokens: int


class Writers:
    """Both engines, and what they have said: the same beginning is never written twice."""

    def __init__(self) -> None:
        self.engines = {name: Engine.load(shipped_models()[name]) for name in (SMALL, LARGE)}
        self.codec = self.engines[SMALL].codec
        self._said = dict[tuple[str, str, str, int], Outcome]()
        self._ids = count()

    def write(self, model: str, question: Question, so_far: str, most: int) -> Outcome:
        """The next tokens, greedily, at most so many."""
        key = (model, question.prompt, so_far, most)
        if key not in self._said:
            self._said[key] = self._write(*key)
        return self._said[key]

    def _write(self, model: str, prompt: str, so_far: str, most: int) -> Outcome:
        asked = self.codec.encode_chat([{"role": "user", "content": prompt}])
        ids = (*asked, *(self.codec.encode(so_far) if so_far else ()))
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
    """The answer by steps of the small model, those below `accept_at` by the large one."""
    history, drafts = list[Outcome](), drafting(accept_at)
    while not isinstance(move := drafts.next(history, lambda step: True), Keep):
        step = move.steps[0]
        most = STEP_TOKENS if SO_FAR in step.overrides else MOST_TOKENS
        history.append(writers.write(step.model, question, str(step.overrides.get(SO_FAR, "")), most))
    text = move.text or ("" if move.kept is None else history[move.kept].evidence.text)
    return Written(is_right(question, joined(text)), tokens(history, LARGE), tokens(history, LARGE, SMALL))


def drafting(accept_at: float) -> Stepwise:
    """Steps go on in the text that stands; an empty one ends it."""
    most = MOST_TOKENS // STEP_TOKENS + 1
    return Stepwise(Step(SMALL), Step(LARGE), lambda so_far: {SO_FAR: joined(so_far)}, accept_at, most)


def joined(steps: str) -> str:
    """No answer of the shipped models has a line break, so that those between steps go; so does the end's mark."""
    return steps.replace("\n", "").removesuffix(END)


def whole(writers: Writers, question: Question, accept_at: float) -> Written:
    """The small model's answer, or the large one's where it shows less: the cascade that steps are laid beside."""
    asked = [writers.write(SMALL, question, "", MOST_TOKENS)]
    if not RAW(SMALL, asked[0].evidence) >= accept_at:
        asked.append(writers.write(LARGE, question, "", MOST_TOKENS))
    right = is_right(question, joined(asked[-1].evidence.text))
    return Written(right, tokens(asked, LARGE), tokens(asked, LARGE, SMALL))


def report(learning: Sequence[Question], judging: Sequence[Question], share: float) -> dict[str, Any]:
    """Large-model tokens at `share` of its accuracy, by steps and by whole answers, on the judging questions."""
    writers = Writers()
    alone = [whole(writers, question, 2.0) for question in judging]
    target = share * float(np.mean([whole(writers, question, 2.0).right for question in learning]))
    found: dict[str, Any] = {"step_tokens": STEP_TOKENS}
    for name, way in (("by_steps", stepwise), ("by_answers", whole)):
        tried = {at: [way(writers, question, at) for question in learning] for at in GRID}
        accept_at = thriftiest(tried, target)
        found[name] = {"accept_at": accept_at, **beside([way(writers, q, accept_at) for q in judging], alone)}
    return found


def thriftiest(tried: dict[float, list[Written]], target: float) -> float:
    """The threshold with the fewest large-model tokens of those that reach the target; the highest where none does."""
    enough = [at for at, written in tried.items() if np.mean([one.right for one in written]) >= target]
    return min(enough, key=lambda at: sum(one.large_tokens for one in tried[at]), default=max(tried))


def beside(written: Sequence[Written], alone: Sequence[Written]) -> dict[str, Any]:
    """A way of answering beside the large model's own."""
    right, theirs = [float(one.right) for one in written], [float(one.right) for one in alone]
    return {
        "accuracy": mean(right),
        "accuracy_minus_large": difference(right, theirs),
        "large_token_share": ratio([one.large_tokens for one in written], [one.large_tokens for one in alone]),
        "all_token_ratio": ratio([one.all_tokens for one in written], [one.large_tokens for one in alone]),
    }


def tokens(history: Sequence[Outcome], *models: str) -> int:
    """That these models wrote."""
    return sum(outcome.evidence.output_tokens for outcome in history if outcome.model in models)
