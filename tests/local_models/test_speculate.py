"""Speculative decoding changes the number of steps and nothing else."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Ids
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_models import shipped_models
from local_models.engine import Engine, EngineOptions
from local_models.errors import CheckpointError
from local_models.request import Request, Sampling
from local_models.sampler import chance
from local_models.speculate import (
    Draft,
    ModelDrafter,
    NgramDrafter,
    share_budget,
)
from local_models.tasks import held_out_questions
from tests.local_models.checkpoints import Answer, codec, decoder, engine, greedy, prompts, run

probabilities = st.lists(st.floats(0.01, 1.0), min_size=0, max_size=4)


def assert_same(one: dict[str, Answer], other: dict[str, Answer]) -> None:
    for name in one:
        assert (one[name].ids, one[name].logprobs) == (other[name].ids, other[name].logprobs)


def with_model(draft_tokens: int, **options: Any) -> Engine:
    """The large model with the small one as its drafter."""
    return Engine(
        decoder("tiny-large"),
        codec(),
        EngineOptions(**{"kv_tokens": 4096, "draft_tokens": draft_tokens, **options}),
        drafter=ModelDrafter(decoder("tiny-small"), 4096),
    )


def questions(count: int) -> list[Request]:
    """Held-out bookings and comparisons, half of them sampled."""
    asked = held_out_questions(count, seed=4, shares={"booking": 1.0, "larger": 1.0})
    return [
        Request(
            str(at),
            tuple(codec().encode_chat([{"role": "user", "content": question.prompt}])),
            40,
            Sampling(temperature=at % 2 * 1.2, seed=at),
            top_logprobs=0,
        )
        for at, question in enumerate(asked)
    ]


def test_drafts_of_a_small_model_change_nothing_and_save_steps() -> None:
    """Greedy and sampled answers equal those without speculation bit for bit, in far fewer steps."""
    plain, guessed = engine("tiny-large"), with_model(4)
    assert_same(run(guessed, questions(12)), run(plain, questions(12)))
    assert guessed.accepted_tokens > 0.6 * guessed.drafted_tokens > 0
    assert guessed.steps < 0.6 * plain.steps


def test_a_drafter_is_named_by_its_folder(tmp_path: Path) -> None:
    """The options suffice; one with another vocabulary, or with nothing to draft, is refused at load."""
    shipped = shipped_models()
    options = EngineOptions(kv_tokens=4096, draft_tokens=4, draft_model=str(shipped["tiny-small"]))
    guessed = Engine.load(shipped["tiny-large"], options)
    plain = Engine.load(shipped["tiny-large"], replace(options, draft_tokens=0, draft_model=None))
    assert_same(run(guessed, questions(6)), run(plain, questions(6)))
    assert guessed.accepted_tokens > 0.6 * guessed.drafted_tokens > 0
    with pytest.raises(CheckpointError, match="draft_tokens is 0"):
        Engine.load(shipped["tiny-large"], replace(options, draft_tokens=0))
    other = tmp_path / "other"
    shutil.copytree(shipped["tiny-small"], other)
    words = json.loads((other / "tokenizer.json").read_text())
    words["added_tokens"][0]["content"] += "!"
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match="tokenizer is another one"):
        Engine.load(shipped["tiny-large"], replace(options, draft_model=str(other)))


def test_ngram_drafts_change_nothing_and_save_steps() -> None:
    """N-grams draft the parts that an answer repeats."""
    requests = [greedy(str(at), prompt, 80) for at, prompt in enumerate(prompts(6, seed=3))]
    plain, guessed = engine(), engine(draft_tokens=4)
    assert_same(run(guessed, requests), run(plain, requests))
    assert guessed.accepted_tokens > 0 and guessed.steps < plain.steps


@pytest.mark.parametrize("budget", [1, 3])
def test_a_small_budget_changes_nothing(budget: int) -> None:
    """With few drafted tokens per step, and with too little memory, the answers stay the same."""
    requests = questions(6)
    tight = Engine(
        decoder("tiny-large"),
        codec(),
        EngineOptions(kv_tokens=192, draft_tokens=4, draft_budget=budget),
        predict=lambda request: 1,
        drafter=ModelDrafter(decoder("tiny-small"), 128),
    )
    assert_same(run(tight, requests), run(engine("tiny-large"), requests))


class Sure:
    """A drafter that always proposes the same tokens with certainty."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self._draft = Draft(ids, (1.0,) * len(ids))

    def propose(self, contexts: Mapping[str, Ids[int]], most: int) -> dict[str, Draft]:
        return dict.fromkeys(contexts, self._draft)

    def learn(self, request_id: str, drafted: int, accepted: int) -> None: ...

    def forget(self, request_id: str) -> None: ...


def test_nothing_is_drafted_after_an_answers_end() -> None:
    """Tokens after the end token, or beyond the request's limit, could never be kept."""
    end = next(iter(decoder("tiny-large").shape.end_ids))

    def drafted(ids: tuple[int, ...], requests: list[Request]) -> list[int]:
        options = EngineOptions(kv_tokens=4096, draft_tokens=4, draft_budget=4)
        answers = run(Engine(decoder("tiny-large"), codec(), options, drafter=Sure(ids)), requests)
        return [answers[request.id].last.usage.drafted_tokens for request in requests]

    one, other = (replace(request, sampling=Sampling()) for request in questions(2))
    passes = len(run(engine("tiny-large"), [other])[other.id].ids)
    assert drafted((end, 5, 5, 5), [other]) == [passes]
    short = replace(one, max_tokens=2)
    assert drafted((end, 5, 5, 5), [replace(other, ignore_end=True)])[0] > 2 * passes
    assert drafted((5, 5, 5, 5), [short, other]) == [0, *drafted((5, 5, 5, 5), [other])]


def test_usage_counts_drafted_tokens() -> None:
    """Each request has the number of drafted and of accepted tokens."""
    answers = run(with_model(4), questions(4))
    for answer in answers.values():
        usage = answer.last.usage
        assert 0 <= usage.accepted_tokens <= usage.drafted_tokens
    assert sum(answer.last.usage.accepted_tokens for answer in answers.values()) > 0


def test_as_many_drafts_are_kept_as_under_the_best_rule() -> None:
    """For greedy decoding the counts are equal; for sampling they differ by chance only."""
    greedily, sampled = with_model(4), with_model(4)
    run(greedily, [replace(request, sampling=Sampling()) for request in questions(6)])
    assert greedily.acceptable_tokens == greedily.accepted_tokens > 0
    run(
        sampled,
        [replace(r, sampling=Sampling(temperature=1.2, top_k=40, seed=at)) for at, r in enumerate(questions(24))],
    )
    off = abs(sampled.acceptable_tokens - sampled.accepted_tokens)
    assert 0 < off < 4 * max(1.0, sampled.drafted_tokens * 0.25) ** 0.5
    assert 0 < sampled.acceptable_tokens <= sampled.drafted_tokens


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.7, 1.5]), st.integers(0, 5), st.floats(0.3, 1.0))
def test_the_probabilities_of_all_drafts_sum_to_one(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    """The sum is over the tokens that may be drawn."""
    scores = np.random.default_rng(seed).normal(size=12).astype(np.float32)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    chances = np.array([chance(scores, sampling, Counter(), token_id) for token_id in range(12)])
    assert chances.sum() == pytest.approx(1.0) and (chances >= 0).all()


def test_a_finished_request_leaves_nothing_with_the_drafter() -> None:
    """When all requests have ended the small model's pool is free."""
    drafter = ModelDrafter(decoder("tiny-small"), 1024)
    some = Engine(decoder("tiny-large"), codec(), EngineOptions(kv_tokens=2048, draft_tokens=3), drafter=drafter)
    run(some, questions(5))
    assert drafter._blocks.free == drafter._blocks.count and not drafter._tracks


def test_ngrams_propose_what_followed_before() -> None:
    """The longest n-gram that was seen before decides."""
    drafter = NgramDrafter()
    assert drafter.propose({"a": [1, 2, 3, 4, 9, 8, 2, 3, 4]}, 2)["a"].ids == (9, 8)
    assert drafter.propose({"a": [1, 2, 3, 4, 9, 8, 2, 3, 4, 9, 5]}, 2)["a"].ids == ()


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), probabilities, max_size=4), st.integers(0, 8))
def test_the_budget_goes_where_acceptance_is_likeliest(chances: dict[str, list[float]], budget: int) -> None:
    """No other division of the budget has a higher expected number of accepted tokens."""
    guesses = {name: Draft(tuple(range(len(p))), tuple(p)) for name, p in chances.items()}
    shared = share_budget(guesses, budget)

    def expected(counts: tuple[int, ...]) -> float:
        return sum(
            float(np.prod(guess.probabilities[:upto]))
            for guess, count in zip(guesses.values(), counts, strict=True)
            for upto in range(1, count + 1)
        )

    counts = tuple(len(shared[name]) for name in guesses)
    assert sum(counts) <= budget
    every = itertools.product(*(range(len(guess.ids) + 1) for guess in guesses.values()))
    best = max((expected(counts) for counts in every if sum(counts) <= budget), default=0.0)
    assert expected(counts) == pytest.approx(best)
