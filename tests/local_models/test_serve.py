"""The server as its client sees it: a real process, a real socket, OpenAI's own client."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, BadRequestError, NotFoundError

from local_models.tasks import held_out_questions, is_right
from tests.local_models.conftest import serving

LARGE = "tiny-large"
SUM = [{"role": "user", "content": "12+345 reversed="}]
BOOKING = [{"role": "user", "content": "table friday 7pm for two"}]


async def test_both_shipped_models_are_listed(client: Any) -> None:
    """/v1/models lists them, and each can be retrieved."""
    names = [model.id async for model in client.models.list()]
    assert names == ["tiny-large", "tiny-small"]
    assert (await client.models.retrieve(LARGE)).id == LARGE


async def test_the_large_model_knows_more_than_the_small_one(client: Any) -> None:
    """On held-out questions both can make bookings; only the large one can add."""
    questions = held_out_questions(120, seed=5)

    async def score(model: str) -> dict[str, float]:
        async def ask(prompt: str) -> str:
            answer = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
            return answer.choices[0].message.content or ""

        texts = await asyncio.gather(*(ask(question.prompt) for question in questions))
        right: dict[str, list[bool]] = {kind: [] for kind in ("booking", "larger", "total")}
        for question, text in zip(questions, texts, strict=True):
            right[question.kind].append(is_right(question, text))
        return {kind: sum(hits) / len(hits) for kind, hits in right.items()}

    small, large = await score("tiny-small"), await score(LARGE)
    assert small["booking"] > 0.9 and large["booking"] > 0.9
    assert small["total"] < 0.4 and large["total"] > 0.85


async def test_streamed_text_is_the_whole_answer(client: Any) -> None:
    """The deltas join to the whole answer; usage comes last and only if requested."""
    whole = await client.chat.completions.create(model=LARGE, messages=BOOKING)
    stream = await client.chat.completions.create(
        model=LARGE, messages=BOOKING, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content == '{"n":2,"day":"fri","h":19}'
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"
    assert chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == len(text) + 1
    plain = await client.chat.completions.create(model=LARGE, messages=BOOKING, stream=True)
    assert all(chunk.usage is None for chunk in [chunk async for chunk in plain])


async def test_a_full_queue_states_when_to_retry(tmp_path: Path) -> None:
    """The headers are those that OpenAI's client reads, streamed or not; the waiting requests are answered."""
    options = {"kv_tokens": 8192, "most_waiting": 1, "most_running": 1}
    with serving(tmp_path / "models.sock", options) as socket:
        transport = httpx.AsyncHTTPTransport(uds=socket)
        async with httpx.AsyncClient(transport=transport, base_url="http://local", timeout=60) as http:
            body = {"model": LARGE, "messages": SUM, "max_tokens": 400, "ignore_eos": True}
            asked = [http.post("/v1/chat/completions", json={**body, "stream": n % 2 == 0}) for n in range(12)]
            answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            seconds, ms = (int(answer.headers[name]) for name in ("retry-after", "retry-after-ms"))
            assert 1 <= ms <= 1000 * seconds < 60_000 and answer.json()["error"]["code"] == "engine_full"


async def test_a_stream_ends_with_done(http: httpx.AsyncClient) -> None:
    """The last event is [DONE]."""
    answer = await http.post("/v1/chat/completions", json={"model": LARGE, "messages": SUM, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\ndata: [DONE]\n\n")


async def test_logprobs_match_the_answer(client: Any) -> None:
    """There is an entry per token, whose token is the most likely alternative; streamed answers have the same."""
    body = {"model": LARGE, "messages": SUM, "logprobs": True, "top_logprobs": 3}
    answer = await client.chat.completions.create(**body)
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == answer.choices[0].message.content == "753"
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token
        assert [t.logprob for t in entry.top_logprobs] == sorted(t.logprob for t in entry.top_logprobs)[::-1]
    chunks = [chunk async for chunk in await client.chat.completions.create(**body, stream=True)]
    streamed = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == ["7", "5", "3"]
    # one is computed in a batch with others and the other alone, with the same bits
    assert [entry.logprob for entry in streamed] == [entry.logprob for entry in entries]


async def test_a_seed_repeats_and_choices_differ(client: Any) -> None:
    """The same seed gives the same choices again; the choices of one request are drawn independently."""

    async def draw() -> list[str]:
        answer = await client.chat.completions.create(
            model="tiny-small", messages=[{"role": "user", "content": "zz?"}], n=4, temperature=1.9, seed=7
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        return [choice.message.content or "" for choice in answer.choices]

    first = await draw()
    assert first == await draw()
    assert len(set(first)) > 1


async def test_a_stop_string_ends_the_answer_before_itself(client: Any) -> None:
    """No part of the stop string is sent, streamed or not."""
    whole = await client.chat.completions.create(model=LARGE, messages=BOOKING, stop=['"day":', "zzz"])
    assert whole.choices[0].message.content == '{"n":2,'
    assert whole.choices[0].finish_reason == "stop"
    stream = await client.chat.completions.create(model=LARGE, messages=BOOKING, stop='"day":', stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == '{"n":2,'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("stops", "met"), [(["never", "day"], "day"), (["never"], None)])
async def test_the_matched_stop_string_is_reported(
    client: Any, stops: list[str], met: str | None, stream: bool
) -> None:
    """Anthropic's clients get its text."""
    asked = client.chat.completions.create(model="tiny-small", messages=BOOKING, stop=stops, stream=stream)
    answer = await asked
    last = [chunk async for chunk in answer][-1] if stream else answer
    assert (last.model_extra or {}).get("stop_sequence") == met


async def test_max_tokens_ends_with_reason_length(client: Any) -> None:
    """A truncated answer is marked and counted exactly."""
    answer = await client.chat.completions.create(model=LARGE, messages=BOOKING, max_completion_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


async def test_a_schema_is_obeyed(client: Any) -> None:
    """A model that never saw the schema still answers by it."""
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "side": {"enum": ["left", "right"]}},
        "required": ["ok", "side"],
        "additionalProperties": False,
    }
    answer = await client.chat.completions.create(
        model="tiny-small",
        messages=[{"role": "user", "content": "hello"}],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    said = json.loads(answer.choices[0].message.content or "")
    assert said.keys() == {"ok", "side"} and said["side"] in ("left", "right")
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        ({"regex": "[0-9]{3}-[a-c]{1,4}!"}, r"[0-9]{3}-[a-c]{1,4}!"),
        ({"choice": ["yes", "no (why?)"]}, r"yes|no \(why\?\)"),
        ({"grammar": 'start: "up" | "down" "!"'}, r"up|down!"),
        ({"json": {"type": "integer", "minimum": 3, "maximum": 9}}, r"[3-9]"),
    ],
)
async def test_other_grammars_are_obeyed(client: Any, wanted: dict[str, object], pattern: str) -> None:
    """A regular expression, a choice, a Lark grammar and a schema in vLLM's fields work for chat and completions."""
    pytest.importorskip("llguidance")
    extra = {"structured_outputs": wanted}
    messages = [{"role": "user", "content": "hello"}]
    chat = await client.chat.completions.create(model="tiny-small", messages=messages, max_tokens=40, extra_body=extra)
    plain = await client.completions.create(model="tiny-small", prompt="hello", max_tokens=40, extra_body=extra)
    for text in (chat.choices[0].message.content, plain.choices[0].text):
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("schema", [{"enum": ["\\"]}, {"const": "日本"}, {"$ref": "#"}])
async def test_a_structure_that_the_model_cannot_write_is_refused(
    client: Any, schema: dict[str, object], stream: bool
) -> None:
    """An empty schema, or characters that no token has, are an error, and never half an answer with `stop`."""
    pytest.importorskip("llguidance")
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(APIError, match="no token of this model can go on") as caught:
        answer = await client.chat.completions.create(
            model="tiny-small", messages=messages, response_format=wanted, stream=stream
        )
        async for _ in answer:
            pass
    assert caught.value.param == "response_format" and caught.value.type == "invalid_request_error"


async def test_completions_take_texts_and_tokens(client: Any) -> None:
    """A prompt may be a text, several texts, or token ids; each has its choices in order."""
    text = "<user>12+345 reversed=<asst>"
    answer = await client.completions.create(model=LARGE, prompt=[text, text], logprobs=1, temperature=0)
    assert [choice.text for choice in answer.choices] == ["753", "753"]
    assert answer.choices[0].logprobs.tokens == ["7", "5", "3"]
    assert answer.choices[0].logprobs.text_offset == [0, 1, 2]
    ids = await client.completions.create(model=LARGE, prompt=[2, 5, 6, 3], max_tokens=2)
    assert ids.usage.prompt_tokens == 4


async def test_embeddings_are_unit_vectors_in_both_encodings(client: Any) -> None:
    """Numbers and base64 are equal, and equal texts have equal vectors of length 1."""
    texts = ["table friday", "table friday", "12+345"]
    plain = await client.embeddings.create(model="tiny-small", input=texts, encoding_format="float")
    packed = await client.embeddings.create(model="tiny-small", input=texts)
    vectors = [item.embedding for item in plain.data]
    for item, vector in zip(packed.data, vectors, strict=True):
        assert item.embedding == pytest.approx(vector)
    assert vectors[0] == vectors[1] != vectors[2]
    assert all(sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-5) for vector in vectors)
    assert plain.usage.prompt_tokens == sum(map(len, texts))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10_000}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "long " * 500}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 7}}}},
            "response_format",
        ),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: nowhere"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"frequency": 1}, "frequency"),
        ({"seed": "x"}, "seed"),
    ],
)
async def test_an_unsupported_field_is_named(
    http: httpx.AsyncClient, change: dict[str, object], param: str
) -> None:
    """It is answered with 400 in OpenAI's form, before anything is streamed."""
    for stream in (False, True):
        body = {"model": LARGE, "messages": SUM, "stream": stream, **change}
        if stream and "stream_options" in change:
            continue
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == param and error["type"] == "invalid_request_error" and error["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"model": "tiny-large"}', b"[" * 100_000])
async def test_an_invalid_body_is_a_400(http: httpx.AsyncClient, content: bytes) -> None:
    """Broken JSON and missing fields are the client's error."""
    answer = await http.post("/v1/chat/completions", content=content)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["message"]


async def test_errors_are_those_of_the_official_client(client: Any) -> None:
    """An unknown model raises NotFoundError; too long a prompt has its own code."""
    with pytest.raises(NotFoundError, match="no model"):
        await client.chat.completions.create(model="nobody", messages=SUM)
    with pytest.raises(BadRequestError) as caught:
        await client.chat.completions.create(
            model=LARGE, messages=[{"role": "user", "content": "9" * 600}], stream=True
        )
    assert caught.value.code == "context_length_exceeded"


async def test_an_unknown_path_is_a_404(http: httpx.AsyncClient) -> None:
    """The error has OpenAI's form."""
    answer = await http.get("/v1/elsewhere")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


async def test_a_client_that_leaves_stops_the_computation(http: httpx.AsyncClient) -> None:
    """After a disconnect in the middle of a stream none of its requests continues, and no block is in use."""
    body = {"model": LARGE, "messages": SUM, "stream": True, "ignore_eos": True, "max_tokens": 480, "n": 4}
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_lines():
            break
    for _ in range(400):
        metrics = (await http.get("/metrics")).text
        if re.search(r'running\{model="tiny-large"\} 0\b', metrics):
            break
    assert re.search(r'running\{model="tiny-large"\} 0\b', metrics)
    assert re.search(r'local_kv_usage_ratio\{model="tiny-large"\} 0\.0\b', metrics)


async def test_a_deadline_ends_the_answer(client: Any) -> None:
    """What was computed until the deadline is returned as a truncated answer."""
    answer = await client.chat.completions.create(
        model=LARGE, messages=SUM, max_tokens=480, extra_body={"ignore_eos": True, "deadline_s": 0.01}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens < 480


async def test_metrics_count_tokens(http: httpx.AsyncClient) -> None:
    """The counters grow by the reported usage."""

    async def output_tokens() -> int:
        found = re.search(r'output_tokens_total\{model="tiny-small"\} (\d+)', (await http.get("/metrics")).text)
        assert found
        return int(found[1])

    before = await output_tokens()
    answer = await http.post("/v1/chat/completions", json={"model": "tiny-small", "messages": BOOKING})
    assert await output_tokens() - before == answer.json()["usage"]["completion_tokens"]


async def test_any_answer_can_be_scored(client: Any, http: httpx.AsyncClient) -> None:
    """The log-probabilities of a model's own answer are those that it was given; a wrong answer is less likely."""
    said = await client.chat.completions.create(model=LARGE, messages=SUM, logprobs=True, temperature=0)
    own = [entry.logprob for entry in said.choices[0].logprobs.content]
    text = said.choices[0].message.content
    scored = (await http.post("/v1/score", json={"model": LARGE, "messages": SUM, "answer": text})).json()
    assert scored["logprobs"] == pytest.approx(own, abs=1e-4)
    assert scored["sum"] == pytest.approx(sum(own), abs=1e-3) and "".join(scored["tokens"]) == text
    wrong = (await http.post("/v1/score", json={"model": LARGE, "messages": SUM, "answer": "000"})).json()
    assert wrong["mean"] < scored["mean"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a"}, "answer"),
        ({"answer": "a"}, "prompt"),
        ({"prompt": "a", "messages": [], "answer": "b"}, "prompt"),
        ({"prompt": "a", "answer": ""}, "prompt"),
        ({"prompt": "1 " * 600, "answer": "b"}, "prompt"),
        ({"prompt": "a", "answer": "b", "n": 2}, "n"),
    ],
)
async def test_an_invalid_scoring_request_names_its_field(
    http: httpx.AsyncClient, body: dict[str, object], param: str
) -> None:
    """It is answered with 400 in OpenAI's form."""
    answer = await http.post("/v1/score", json={"model": LARGE, **body})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
