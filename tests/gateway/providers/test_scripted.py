"""The scripted upstream: it answers correctly by default, and each fault does what its name says."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError, UpstreamError
from gateway.providers.managed import wait_ready
from gateway.providers.scripted import ScriptedServer
from gateway.providers.scripted_answer import instance_of
from gateway.upstream import Endpoint, Pool

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "messages": "/v1/messages",
         "embeddings": "/v1/embeddings", "count_tokens": "/v1/messages/count_tokens"}  # fmt: skip


def request(dialect: str, model: str, **fields: Any) -> dict[str, Any]:
    if dialect == "completions":
        return {"model": model, "prompt": "one two three", **fields}
    return {"model": model, "messages": [{"role": "user", "content": "one two three"}], **fields}


async def ask(
    server: ScriptedServer, dialect: str, body: dict[str, Any], *, head_s: float = 60.0, stall_s: float = 60.0
) -> tuple[int, bytes]:
    """Status and body of an answer. Raises UpstreamError as the pool does."""
    pool = Pool(Endpoint.parse(server.url), max_connections=1, connect_timeout_s=60)
    head = b"POST %b HTTP/1.1\r\nhost: x\r\n" % PATHS[dialect].encode()
    try:
        response = await pool.send(head, json.dumps(body).encode(), timeout_s=head_s)
        taken = b""
        while piece := await response.chunk(stall_s):
            taken += piece
        return response.status, taken
    finally:
        await pool.aclose()


def events(stream: bytes) -> list[dict[str, Any]]:
    datas = [line[6:] for line in stream.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(data) for data in datas if data != b"[DONE]"]


@pytest.mark.parametrize("dialect", ["chat", "completions"])
async def test_openai_streams_say_what_bodies_say(dialect: str) -> None:
    """Joined deltas equal the whole answer, and both count the same usage."""
    async with ScriptedServer() as server:
        whole = json.loads((await ask(server, dialect, request(dialect, "m", n=2)))[1])
        asked = request(dialect, "m", n=2, stream=True, stream_options={"include_usage": True})
        _, stream = await ask(server, dialect, asked)
    assert stream.endswith(b"data: [DONE]\n\n")
    *spoken, last = events(stream)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert whole["usage"]["prompt_tokens"] == 3
    assert whole["usage"]["completion_tokens"] == 6
    for choice in whole["choices"]:
        mine = [e["choices"][0] for e in spoken if e["choices"][0]["index"] == choice["index"]]
        text = "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in mine)
        assert text == choice.get("text", choice.get("message", {}).get("content")) == "one two three"
        assert mine[-1]["finish_reason"] == "stop"


async def test_messages_stream_says_what_the_body_says() -> None:
    """Anthropic's events carry the same text, stop reason and usage as the whole message."""
    async with ScriptedServer() as server:
        whole = json.loads((await ask(server, "messages", request("messages", "m", max_tokens=2)))[1])
        _, stream = await ask(server, "messages", request("messages", "m", max_tokens=2, stream=True))
        counted = json.loads((await ask(server, "count_tokens", request("messages", "m")))[1])
    said = events(stream)
    assert [said[0]["type"], said[-2]["type"], said[-1]["type"]] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    text = "".join(e["delta"]["text"] for e in said if e["type"] == "content_block_delta")
    assert text == whole["content"][0]["text"] == "one two "
    assert said[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "max_tokens"
    assert said[-2]["usage"] == whole["usage"]
    assert counted == {"input_tokens": 3}


async def test_tools_json_logprobs_and_images() -> None:
    """Forced tools are called, schemas are filled, log-probabilities and images are counted."""
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    image = [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    async with ScriptedServer() as server:
        called = json.loads(
            (await ask(server, "chat", request("chat", "m", tools=[tool], tool_choice="required")))[1]
        )
        shaped = json.loads((await ask(server, "chat", request("chat", "m", response_format=form)))[1])
        scored = json.loads((await ask(server, "chat", request("chat", "m", logprobs=True)))[1])
        seen = json.loads((await ask(server, "chat", {"messages": [{"role": "user", "content": image}]}))[1])
    assert called["choices"][0]["message"]["tool_calls"][0]["function"] == {
        "name": "f",
        "arguments": '{"a":0}',
    }
    assert called["choices"][0]["finish_reason"] == "tool_calls"
    assert json.loads(shaped["choices"][0]["message"]["content"]) == {"a": 0}
    assert [t["token"] for t in scored["choices"][0]["logprobs"]["content"]] == ["one ", "two ", "three"]
    assert seen["usage"]["prompt_tokens"] == 88


async def test_streamed_tool_calls_join() -> None:
    """The pieces of a streamed tool call are its arguments."""
    call = {"name": "f", "arguments": {"city": "Bern and more"}}
    async with ScriptedServer({"m": [{"tool_calls": [call]}]}) as server:
        _, stream = await ask(server, "chat", request("chat", "m", stream=True))
        _, message = await ask(server, "messages", request("messages", "m", stream=True))
    pieces = [c["function"]["arguments"] for e in events(stream)
              for c in e["choices"][0]["delta"].get("tool_calls", [])]  # fmt: skip
    assert json.loads("".join(pieces)) == call["arguments"]
    parts = [e["delta"]["partial_json"] for e in events(message) if e["type"] == "content_block_delta"]
    assert json.loads("".join(parts)) == call["arguments"]


async def test_embeddings_know_shared_words() -> None:
    """The same text has the same vector, and shared words bring texts nearer."""
    async with ScriptedServer() as server:
        body = {"model": "e", "input": ["red car", "red car", "red bus", "cold soup"], "dimensions": 128}
        data = json.loads((await ask(server, "embeddings", body))[1])["data"]
    a, again, near, far = (d["embedding"] for d in data)
    dot = [sum(x * y for x, y in zip(a, other, strict=True)) for other in (again, near, far)]
    assert len(a) == 128
    assert dot[0] > dot[1] > dot[2]
    assert abs(dot[0] - 1) < 1e-5


async def test_steps_are_consumed_and_the_last_repeats() -> None:
    """The n-th request of a model gets its n-th step, with its status, headers and error."""
    steps = [{"status": 503, "retry_after_s": 2}, {"status": 529, "error": "busy"}, {"text": "ok"}]
    async with ScriptedServer({"m": steps, "default": [{"text": "other"}]}) as server:
        answers = [await ask(server, "chat", request("chat", "m")) for _ in range(4)]
        other = await ask(server, "chat", request("chat", "unknown"))
        pool = Pool(Endpoint.parse(server.url), max_connections=1, connect_timeout_s=60)
        told = json.loads(await (await pool.send(b"GET /_seen HTTP/1.1\r\n", b"", timeout_s=60)).read(100_000))
        await pool.aclose()
    assert [status for status, _ in answers] == [503, 529, 200, 200]
    assert json.loads(answers[1][1])["error"] == {
        "message": "busy", "type": "overloaded_error", "param": None, "code": None}  # fmt: skip
    assert b'"other"' in other[1]
    assert (told["requests"], told["by_model"]) == (5, {"m": 4, "unknown": 1})
    assert told["recent"][0]["headers"]["host"] == "x"


@pytest.mark.parametrize("dialect", ["chat", "completions", "messages"])
@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        ("close", "reset"),
        ("rst", "reset"),
        ("silent", "timeout"),
        ("garbage", "bad_response"),
        ("big_head", "bad_response"),
        ("cut", "reset"),
        ("cut_rst", "reset"),
        ("stall", "stream_stalled"),
        ("bad_chunk", "bad_response"),
        ("wrong_length", "reset"),
    ],
)
async def test_faults_of_the_connection(dialect: str, fault: str, failure: str) -> None:
    """A fault of the transport raises its own failure in every dialect, streamed or not."""
    async with ScriptedServer({"m": [{"fault": fault, "after": 1}]}) as server:
        for stream in (False, True):
            with pytest.raises(UpstreamError) as caught:
                limits = {"silent": {"head_s": 0.5}, "stall": {"stall_s": 0.05}}.get(fault, {})
                await ask(server, dialect, request(dialect, "m", stream=stream), **limits)
            assert caught.value.failure == failure


@pytest.mark.parametrize("dialect", ["chat", "completions", "messages"])
@pytest.mark.parametrize("fault", ["malformed", "late_error", "no_done", "no_finish"])
async def test_faults_of_content(dialect: str, fault: str) -> None:
    """A fault of content comes over a sound connection, after `after` pieces of text."""
    async with ScriptedServer({"m": [{"fault": fault, "after": 2}]}) as server:
        _, stream = await ask(server, dialect, request(dialect, "m", stream=True))
    end = b"message_stop" if dialect == "messages" else b"[DONE]"
    assert (end in stream) == (fault == "malformed")
    assert b'"two "' in stream
    assert (b'"three"' in stream) == (fault not in ("late_error",))
    assert (b"rate_limit_error" in stream) == (fault == "late_error")
    assert (b'"choi\n\n' in stream) == (fault == "malformed")
    assert (b'"stop"' in stream or b'"end_turn"' in stream) == (fault in ("malformed", "no_done"))


async def test_faults_before_any_content() -> None:
    """With `after = 0` only the opening events are sent and no text; with -1 only the head."""
    table = {"0": [{"fault": "late_error", "after": 0}], "-1": [{"fault": "late_error", "after": -1}]}
    async with ScriptedServer(table) as server:
        _, opened = await ask(server, "chat", request("chat", "0", stream=True))
        _, bare = await ask(server, "chat", request("chat", "-1", stream=True))
    assert [("error" in e) for e in events(opened)] == [False, True]
    assert [("error" in e) for e in events(bare)] == [True]


async def test_loris_is_slow_and_right() -> None:
    """An answer that is sent one byte at a time is complete."""
    async with ScriptedServer({"m": [{"text": "slow", "fault": "loris"}]}) as server:
        assert b'"slow"' in (await ask(server, "chat", request("chat", "m")))[1]


async def test_usage_can_be_missing_or_dictated() -> None:
    """A script decides which usage is reported, if any."""
    told = {"input_tokens": 100, "output_tokens": 7, "cached_tokens": 40, "reasoning_tokens": 5}
    async with ScriptedServer({"quiet": [{"usage": False}], "m": [told]}) as server:
        quiet = json.loads((await ask(server, "chat", request("chat", "quiet")))[1])
        chat = json.loads((await ask(server, "chat", request("chat", "m")))[1])["usage"]
        claude = json.loads((await ask(server, "messages", request("messages", "m")))[1])["usage"]
    assert "usage" not in quiet
    assert (chat["prompt_tokens"], chat["completion_tokens"]) == (100, 12)
    assert chat["prompt_tokens_details"]["cached_tokens"] == 40
    assert (claude["input_tokens"], claude["cache_read_input_tokens"], claude["output_tokens"]) == (
        60,
        40,
        12,
    )


def test_scripts_are_checked() -> None:
    """An unknown field, fault or type is refused with the script's name."""
    for step in ({"txt": "x"}, {"fault": "fire"}, {"status": "503"}):
        with pytest.raises(ConfigError, match=r"options\.scripts\.m"):
            ScriptedServer({"m": [step]})


def test_instances_fit_their_schema() -> None:
    """The least instance of a schema has what it requires, of the right type."""
    schema = {"type": "object", "required": ["s", "l", "e", "u"], "properties": {
        "s": {"type": "string"}, "l": {"type": "array", "items": {"type": "number"}, "minItems": 2},
        "e": {"enum": ["x", "y"]}, "u": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}}}  # fmt: skip
    assert instance_of(schema) == {"s": "text", "l": [0.5, 0.5], "e": "x", "u": True}


async def test_runs_as_a_command(tmp_path: Path) -> None:
    """The command listens on the given socket, follows its scripts and ends on SIGTERM."""
    socket = tmp_path / "s.sock"
    command = [
        "-m",
        "gateway.providers.scripted",
        "--uds",
        str(socket),
        "--scripts",
        '{"m": [{"text": "hi"}]}',
    ]
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.DEVNULL)
    try:
        assert await wait_ready(socket, timeout_s=60)
        pool = Pool(Endpoint.parse(f"unix:{socket}"), max_connections=1, connect_timeout_s=60)
        response = await pool.send(b"POST /v1/chat/completions HTTP/1.1\r\n", b'{"model": "m"}', timeout_s=60)
        assert b'"hi"' in await response.read(10_000)
        await pool.aclose()
    finally:
        child.terminate()
        assert await asyncio.wait_for(child.wait(), 60) == 0
