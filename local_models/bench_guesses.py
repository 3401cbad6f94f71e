"""Benchmark of speculative decoding: tokens per pass of the large shipped model when the small one guesses ahead.

It compares a budget of guesses for the whole batch that is given to the likeliest guesses (TETRIS) with the same budget
given to all answers in turn, and the guesses kept with the most that any rule of acceptance could keep (optimal
multi-draft speculation). It counts tokens and measures no times; answers are the same with and without guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Ids
from typing import Any

from local_models import shipped_models
from local_models.decoder import Decoder
from local_models.engine import Engine, EngineOptions
from local_models.intervals import mean_and_half_width, mean_ratio
from local_models.request import Request, Sampling
from local_models.speculate import Draft, ModelDrafter
from local_models.tasks import held_out_questions
from local_models.text import TextCodec

STREAMS = 8
FARTHEST = 8
"""Tokens guessed ahead of an answer, of which the budget takes some."""


class InTurn(ModelDrafter):
    """Gives the budget to every answer's first guess, then to every second one, as without knowing how likely a guess
    is.
    """

    def propose(self, contexts: Mapping[str, Ids[int]], most: int) -> dict[str, Draft]:
        guesses = super().propose(contexts, most)
        return {name: Draft(guess.ids, (0.5,) * len(guess.ids)) for name, guess in guesses.items()}


def guess_cases(questions: int, rounds: int, each: Ids[int] = (1, 2, 4)) -> list[dict[str, Any]]:
    """Greedy and sampled answers, other questions in each round; means with 95 % intervals over rounds."""
    large, small = (Decoder.load(shipped_models()[name]) for name in ("tiny-large", "tiny-small"))
    codec = TextCodec(shipped_models()["tiny-large"])

    def run(requests: list[Request], drafter: type[ModelDrafter], budget: int) -> Engine:
        options = EngineOptions(8192, most_running=STREAMS, draft_tokens=FARTHEST, draft_budget=budget)
        engine = Engine(large, codec, options, drafter=drafter(small, 8192))
        for request in requests:
            engine.add(request)
        while engine.busy:
            engine.step()
        return engine

    rows = []
    for temperature in (0.0, 1.0):
        asked = [_requests(codec, questions, 40 + at, temperature) for at in range(rounds)]
        for most in each:
            in_turn, likeliest = (
                [run(requests, drafter, most * STREAMS) for requests in asked] for drafter in (InTurn, ModelDrafter)
            )
            rows.append({"temperature": temperature, "budget": most * STREAMS, **_beside(in_turn, likeliest)})
    return rows


def _requests(codec: TextCodec, count: int, seed: int, temperature: float) -> list[Request]:
    chats = [codec.encode_chat([{"role": "user", "content": q.prompt}]) for q in held_out_questions(count, seed)]
    return [Request(str(at), tuple(ids), 48, Sampling(temperature, seed=at)) for at, ids in enumerate(chats)]


def _beside(in_turn: Ids[Engine], likeliest: Ids[Engine]) -> dict[str, Any]:
    both = {"in turn": in_turn, "likeliest first": likeliest}
    tokens = {name: [_a_pass(engine, engine.output_tokens) for engine in engines] for name, engines in both.items()}
    guesses = {name: [_a_pass(engine, engine.drafted_tokens) for engine in engines] for name, engines in both.items()}
    return {
        "tokens_a_pass": {name: mean_and_half_width(found) for name, found in tokens.items()},
        "guesses_a_pass": {name: mean_and_half_width(found) for name, found in guesses.items()},
        "more_tokens": mean_ratio(tokens["likeliest first"], tokens["in turn"]),
        "kept_of_optimum": mean_ratio(
            [engine.accepted_tokens for engine in likeliest], [engine.acceptable_tokens for engine in likeliest]
        ),
    }


def _a_pass(engine: Engine, tokens: int) -> float:
    """So many tokens for each pass of each answer, which yields one token more than the guesses kept in it."""
    return tokens / (engine.output_tokens - engine.accepted_tokens)
