"""The engine: an answer depends on its own request only, and every request ends exactly once."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from local_models import shipped_models
from local_models.engine import Engine, EngineOptions
from local_models.errors import EngineFull, LocalModelError, PromptTooLong, RequestRefused
from local_models.request import Finished, Request, Sampling
from tests.local_models.checkpoints import Answer, codec, decoder, engine, greedy, prompts, run


def alone(requests: list[Request], **options: Any) -> dict[str, Answer]:
    """Each request's answer from an engine that serves no other request."""
    return {request.id: run(engine(**options), [request])[request.id] for request in requests}


def some_requests(count: int, seed: int) -> list[Request]:
    """Greedy and sampled requests of many lengths, some with a common beginning."""
    rng = random.Random(seed)
    asked = prompts(count, seed)
    shared = prompts(1, seed + 1, longest=60)[0]
    requests = []
    for at, prompt in enumerate(asked):
        ids = shared + prompt if rng.random() < 0.5 else prompt
        sampling = Sampling(temperature=rng.choice([0.0, 1.0]), top_p=0.9, seed=at)
        requests.append(Request(str(at), tuple(ids), rng.randint(1, 24), sampling, ignore_end=True, top_logprobs=0))
    return requests


def assert_same(one: dict[str, Answer], other: dict[str, Answer]) -> None:
    """Asserts equal tokens, and log-probabilities that are equal to the last bit."""
    for name in one:
        assert one[name].ids == other[name].ids
        assert one[name].logprobs == other[name].logprobs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_does_not_depend_on_its_batch(dtype: str) -> None:
    """Sixteen concurrent requests get the same bits as each alone."""
    requests = some_requests(16, seed=2)

    def fresh() -> Engine:
        return Engine(decoder("tiny-small", dtype), codec(), EngineOptions(kv_tokens=4096))

    single = {request.id: run(fresh(), [request])[request.id] for request in requests}
    assert_same(run(fresh(), requests), single)


@pytest.mark.parametrize("step_tokens", [5, 33, 512])
def test_an_answer_does_not_depend_on_the_chunks_of_its_prompt(step_tokens: int) -> None:
    """Chunked prefill changes no bit."""
    requests = some_requests(8, seed=3)
    assert_same(run(engine(step_tokens=step_tokens), requests), alone(requests))


@pytest.mark.parametrize("copy_while_free", [0.0, 1.0])
def test_an_answer_does_not_depend_on_the_cache(copy_while_free: float) -> None:
    """A prefix that is copied or shared gives the same result as computing it."""
    requests = some_requests(8, seed=4)
    warm = engine(copy_while_free=copy_while_free)
    run(warm, requests)
    again = run(warm, requests)
    assert any(answer.last.usage.cached_tokens > 16 for answer in again.values())
    assert_same(again, alone(requests))


def test_an_answer_survives_preemption() -> None:
    """With too little memory sequences are preempted and computed again, with the same result."""
    requests = [greedy(str(at), prompt, 60) for at, prompt in enumerate(prompts(6, seed=5, longest=30))]
    small = Engine(decoder(), codec(), EngineOptions(kv_tokens=192), predict=lambda request: 1)
    answers = run(small, requests)
    assert small.scheduler.preempted > 0
    assert_same(answers, alone(requests))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_every_request_ends_once(seed: int) -> None:
    """With cancellations, deadlines, stop strings and little memory each has one end, and no block is leaked."""
    rng = random.Random(seed)
    clock = [0.0]
    troubled = Engine(
        decoder(),
        codec(),
        EngineOptions(kv_tokens=rng.choice([160, 320, 1024]), step_tokens=rng.choice([7, 64])),
        predict=lambda request: rng.randint(1, request.max_tokens),
        clock=lambda: clock[0],
    )
    ended: list[str] = []
    added: list[str] = []
    while len(added) < 12 or troubled.busy:
        if len(added) < 12 and rng.random() < 0.5:
            name = str(len(added))
            added.append(name)
            prompt = prompts(1, rng.randrange(2**32), longest=60)[0]
            stop = ("a",) if rng.random() < 0.3 else ()
            deadline_s = clock[0] + rng.random() * 20 if rng.random() < 0.3 else None
            troubled.add(
                Request(
                    name,
                    tuple(prompt),
                    rng.randint(1, 60),
                    Sampling(1.0, seed=1),
                    stop,
                    deadline_s=deadline_s,
                )
            )
        events = troubled.cancel(rng.choice(added)) if added and rng.random() < 0.1 else troubled.step()
        ended += [event.request_id for event in events if isinstance(event, Finished)]
        clock[0] += 1.0
        troubled.audit()
    assert sorted(ended) == sorted(added)
    troubled.blocks.forget()
    assert troubled.blocks.free == troubled.blocks.count


def test_a_request_that_never_fits_is_refused_at_once() -> None:
    """More tokens than the context or the memory can hold are the client's error, and other requests continue."""
    small = engine(kv_tokens=64)
    with pytest.raises(PromptTooLong, match="exceed 64 tokens"):
        small.add(greedy("a", [5] * 40, 30))
    with pytest.raises(PromptTooLong, match="exceed 512 tokens"):
        engine().add(greedy("b", [5] * 500, 13))
    assert len(run(small, [greedy("c", [5] * 40, 24)])["c"].ids) == 24


@pytest.mark.parametrize("ids", [[], [97], [-1]])
def test_an_invalid_prompt_is_refused(ids: list[int]) -> None:
    """It has no tokens, or ids outside the vocabulary."""
    with pytest.raises(RequestRefused):
        engine().add(greedy("a", ids))


def test_a_full_queue_refuses() -> None:
    """Beyond the maximum length of the queue a request is refused; the waiting ones are served."""
    full = engine(most_waiting=2)
    first = [greedy(name, [5, 6]) for name in "ab"]
    for request in first:
        full.add(request)
    with pytest.raises(EngineFull):
        full.add(greedy("c", [5]))
    while full.busy:
        full.step()


def test_a_full_queue_estimates_the_wait() -> None:
    """At first the estimate is the time without progress; then it follows the recent rate, and grows while nothing
    ends.
    """
    now = [100.0]
    full = engine(most_waiting=2, most_running=1)
    full._clock = lambda: now[0]

    def wait_s() -> float:
        with pytest.raises(EngineFull) as caught:
            full.add(greedy("x", [5]))
        return caught.value.retry_after_s

    for name in "ab":
        full.add(greedy(name, [5, 6]))
    now[0] += 3.0
    assert wait_s() == 3.0
    for name in "cdefg":
        while len(full.scheduler.waiting) == 2:
            full.step()
        full.add(greedy(name, [5, 6]))
        now[0] += 2.0
    assert wait_s() == pytest.approx(2.0, abs=0.5)
    now[0] += 50.0
    assert wait_s() > 10.0


def test_nan_scores_end_one_request_only() -> None:
    """It gets an error, and its neighbour finishes."""
    broken = engine()
    compute = broken.runner.decoder.logits

    class Poisoned:
        block_tokens = broken.runner.decoder.block_tokens
        forward = staticmethod(broken.runner.decoder.forward)

        @staticmethod
        def logits(hidden: torch.Tensor) -> torch.Tensor:
            scores = compute(hidden).clone()
            scores[0, 3] = float("nan")
            return scores

    broken.runner.decoder = Poisoned()  # type: ignore[assignment]
    broken.add(greedy("sick", [5, 6]))
    events = broken.step()
    assert [(e.request_id, e.reason) for e in events if isinstance(e, Finished)] == [("sick", "error")]
    broken.runner.decoder = decoder()
    assert run(broken, [greedy("well", [5, 6])])["well"].last.reason == "length"


def test_a_request_is_cancelled_once() -> None:
    """Cancelling ends it immediately; cancelling again has no effect."""
    some = engine()
    some.add(greedy("a", [5, 6], 50))
    some.step()
    (event,) = some.cancel("a")
    assert isinstance(event, Finished) and event.reason == "cancelled"
    assert some.cancel("a") == [] and not some.busy
    some.audit()


def test_a_deadline_holds_while_waiting() -> None:
    """A request that never ran ends at its deadline."""
    now_s = [0.0]
    some = Engine(decoder(), codec(), EngineOptions(kv_tokens=64, most_running=1), clock=lambda: now_s[0])
    some.add(greedy("runs", [5], 40))
    some.add(greedy("waits", [5], 40, deadline_s=3.0))
    some.step()
    now_s[0] = 3.0
    ended = [event for event in some.step() if isinstance(event, Finished)]
    assert [(event.request_id, event.reason) for event in ended] == [("waits", "deadline")]
    assert ended[0].usage.output_tokens == 0


def test_a_conversation_starts_where_its_last_turn_ended() -> None:
    """The next prompt contains the last answer, and only what is new is computed."""
    some = engine()
    first = prompts(1, seed=9, longest=80)[0] + [7] * 20
    answer = run(some, [greedy("one", first, 30)])["one"]
    second = [*first, *answer.ids, 9, 9, 9]
    usage = run(some, [greedy("two", second)])["two"].last.usage
    # all except the new words and the last answered token, which was never computed
    assert usage.cached_tokens == len(first) + 29 - (len(first) + 29) % 16


def test_salts_share_no_prefix() -> None:
    """A prefix that is cached for one tenant is computed again for another."""
    some = engine()
    prompt = [5] * 64
    run(some, [greedy("a", prompt, salt="one")])
    assert run(some, [greedy("b", prompt, salt="two")])["b"].last.usage.cached_tokens == 0
    assert run(some, [greedy("c", prompt, salt="one")])["c"].last.usage.cached_tokens > 0


def test_usage_is_exact() -> None:
    """Input and output tokens are counted, the end token included."""
    ids = codec().encode_chat([{"role": "user", "content": "table friday 7pm for two"}])
    answer = run(engine("tiny-large"), [Request("a", tuple(ids), 64)])["a"]
    assert answer.text == '{"n":2,"day":"fri","h":19}' and answer.last.reason == "stop"
    usage = answer.last.usage
    assert (usage.prompt_tokens, usage.output_tokens) == (len(ids), len(answer.text) + 1)
    assert usage.queue_s >= 0 and usage.prefill_s > 0 and usage.decode_s > 0


def test_the_score_of_an_answer_is_its_log_probability() -> None:
    """Scoring an engine's own answer gives its log-probabilities bit for bit; nonsense scores lower."""
    some = engine("tiny-large")
    prompt = codec().encode_chat([{"role": "user", "content": "table friday 7pm for two"}])
    said = run(some, [greedy("a", prompt, 26)])["a"]
    assert tuple(some.score(prompt, said.ids)) == said.logprobs
    assert sum(some.score(prompt, said.ids[::-1])) < sum(said.logprobs)
    with pytest.raises(RequestRefused):
        some.score(prompt, [])


def test_without_invariance_greedy_answers_are_equal() -> None:
    """The faster products change rounding only."""
    requests = [greedy(str(at), prompt, 12) for at, prompt in enumerate(prompts(6, seed=7))]
    options = EngineOptions(kv_tokens=2048, invariant=False)
    free = Engine.load(shipped_models()["tiny-large"], options)
    exact = run(engine("tiny-large"), requests)
    assert {name: answer.ids for name, answer in run(free, requests).items()} == {
        name: answer.ids for name, answer in exact.items()
    }


@pytest.mark.parametrize("ids", [[], [5, 999_999], [-1], [7] * 2000])
def test_an_invalid_text_is_refused(ids: list[int]) -> None:
    """No tokens, invalid ids and a text beyond the context raise a typed error, and the engine continues."""
    some = engine()
    with pytest.raises(RequestRefused):
        some.embed(ids)
    with pytest.raises(RequestRefused):
        some.score(ids, [5])
    assert float(some.embed([5, 6]).norm()) == pytest.approx(1.0)


def test_nan_scores_and_vectors_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding and scoring by a model with NaN raise an error."""
    some = engine()
    monkeypatch.setattr(some.runner, "embed", lambda ids: torch.full((4,), float("nan")))
    monkeypatch.setattr(some.runner, "score", lambda prompt, answer: [-1.0, float("nan")])
    with pytest.raises(LocalModelError, match="not numbers"):
        some.embed([5, 6])
    with pytest.raises(LocalModelError, match="not numbers"):
        some.score([5], [6, 7])
