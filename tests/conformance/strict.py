"""A client that takes nothing on trust: each body and each event as the official packages' own types have it, required
fields and all (their clients build objects without a look), and the order of events as the APIs promise it.

    told = await Strict(url).ask("responses", {...}, live=True)
    told.answer
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, Literal, TypeVar, get_args

import httpx
from anthropic.types import Message, RawMessageStreamEvent
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

Json = dict[str, Any]
T = TypeVar("T")
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses",
         "messages": "/v1/messages"}  # fmt: skip
_BODIES = {"chat": ChatCompletion, "completions": Completion, "responses": Response, "messages": Message}
_EVENTS: dict[str, Any] = {"chat": ChatCompletionChunk, "completions": Completion, "responses": ResponseStreamEvent,
                           "messages": RawMessageStreamEvent}  # fmt: skip
_DONE = {"response.output_text": "text", "response.refusal": "refusal", "response.reasoning_text": "text",
         "response.function_call_arguments": "arguments", "response.custom_tool_call_input": "input",
         "response.reasoning_summary_text": "text"}  # fmt: skip


class Page(BaseModel, Generic[T]):
    """The common fields of OpenAI's lists."""

    object: Literal["list"]
    data: list[T]


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


class Strict:
    """A client that checks everything that a gateway sends."""

    def __init__(self, url: str, key: str = "k") -> None:
        self._client = httpx.AsyncClient(base_url=url, verify=False, headers={"authorization": f"Bearer {key}"})

    async def ask(self, surface: str, body: Json, *, live: bool) -> Json:
        """The answer, assembled if it was streamed."""
        asked = {**body, "stream": True} if live else body
        if live and surface in ("chat", "completions"):
            asked |= {"stream_options": {"include_usage": True}}
        answer = await self._client.post(PATHS[surface], json=asked)
        assert answer.status_code == 200, answer.text
        return whole(surface, answer.json()) if not live else _STREAMS[surface](events_of(surface, answer.text))

    async def again(self, response_id: str) -> Json:
        """A stored response, retrieved as a stream."""
        answer = await self._client.get(f"/v1/responses/{response_id}", params={"stream": "true"})
        return response_of(events_of("responses", answer.text))

    async def broken(self, surface: str, body: Json) -> list[Json]:
        """The events of a stream that ends with an error; only the Responses API has a type for that event."""
        answer = await self._client.post(PATHS[surface], json={**body, "stream": True})
        assert answer.status_code == 200 and "[DONE]" not in answer.text
        *events, last = answer.text.removesuffix("\n\n").split("\n\n")
        told = events_of(surface, "".join(f"{event}\n\n" for event in events), ends=False)
        final = json.loads(last.partition("data: ")[2])
        if surface == "responses":
            _check(surface, final)
        elif surface == "messages":
            assert last.startswith("event: error\n") and final["type"] == "error"
        return [*told, final]

    async def post(self, path: str, body: Json, kind: Any) -> None:
        answer = await self._client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        adapter(kind).validate_json(answer.content)

    async def get(self, path: str, kind: Any) -> Json:
        answer = await self._client.get(path)
        assert answer.status_code == 200, answer.text
        adapter(kind).validate_json(answer.content)
        return answer.json()

    async def close(self) -> None:
        await self._client.aclose()


def events_of(surface: str, text: str, *, ends: bool = True) -> list[Json]:
    assert text.endswith("\n\n")
    told = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in event.split("\n"))
        if lines["data"] == "[DONE]":
            assert surface in ("chat", "completions") and event == text.rstrip().split("\n\n")[-1]
            continue
        payload = json.loads(lines["data"])
        _check(surface, payload)
        assert lines.get("event") == payload.get("type"), "the event's name is its type"
        told.append(payload)
    assert ("data: [DONE]" in text) is (ends and surface in ("chat", "completions"))
    return told


@cache
def _of_type(surface: str, kind: str) -> Any:
    """The official type of an event of this kind; an empty kind is an API's only one."""
    if not kind:
        return _EVENTS[surface]
    kinds = get_args(get_args(_EVENTS[surface])[0])
    (found,) = [one for one in kinds if kind in get_args(one.model_fields["type"].annotation)]
    return found


def _check(surface: str, event: Json) -> None:
    """Check an event against its official type; pings, and pieces of a completion before its end, have none."""
    if surface == "completions":
        pieces = [one | {"finish_reason": one["finish_reason"] or "stop"} for one in event["choices"]]
        event = {**event, "choices": pieces}
    if event.get("type") != "ping":
        adapter(_of_type(surface, event.get("type", ""))).validate_python(event)


def whole(surface: str, answer: Json) -> Json:
    adapter(_BODIES[surface]).validate_python(answer)
    if surface == "responses":
        ids = [item["id"] for item in answer["output"]]
        assert len(set(ids)) == len(ids) and answer["status"] in ("completed", "incomplete")
        assert (answer["incomplete_details"] is None) is (answer["status"] == "completed")
    if surface in ("chat", "completions"):
        assert [one["index"] for one in answer["choices"]] == list(range(len(answer["choices"])))
        assert all(one["finish_reason"] for one in answer["choices"])
        usage = answer["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    if surface == "messages":
        assert answer["stop_reason"]
    return answer


def chat_of(events: list[Json]) -> Json:
    """Checks for one id, one role per choice, usage only in the last event, and nothing after a choice's end."""
    assert len({(one["id"], one["created"], one["model"], one["object"]) for one in events}) == 1
    *chunks, last = events
    assert last["choices"] == [] and last["usage"] and all(one["usage"] is None for one in chunks)
    choices: dict[int, Json] = {}
    for one in (one for chunk in chunks for one in chunk["choices"]):
        known = one["index"] in choices
        choice = choices.setdefault(one["index"], {"message": {"content": None}, "finish_reason": None, "tokens": []})
        assert choice["finish_reason"] is None, "nothing comes behind the end"
        choice["finish_reason"] = one["finish_reason"]
        if "text" in one:
            choice["message"]["content"] = (choice["message"]["content"] or "") + one["text"]
            continue
        choice["tokens"] += (one.get("logprobs") or {}).get("content") or []
        _grow(choice["message"], dict(one["delta"]), known)
    assert sorted(choices) == list(range(len(choices))) and all(one["finish_reason"] for one in choices.values())
    return {"id": last["id"], "usage": last["usage"], "choices": [choices[index] for index in sorted(choices)]}


def _grow(message: Json, delta: Json, known: bool) -> None:
    assert ("role" in delta) is not known, "the role comes once, first"
    message["role"] = delta.pop("role", message.get("role"))
    for call in delta.pop("tool_calls", None) or ():
        calls = message.setdefault("tool_calls", [])
        if call["index"] == len(calls):
            assert call["id"] and call["type"] == "function" and call["function"]["name"]
            calls.append({**call, "function": {"arguments": "", **call["function"]}})
        else:
            assert call["index"] < len(calls) and not call.get("id")
            calls[call["index"]]["function"]["arguments"] += call["function"].get("arguments") or ""
    for name, value in delta.items():
        message[name] = (message.get(name) or "") + value if isinstance(value, str) else value or message.get(name)


def message_of(events: list[Json]) -> Json:
    """Checks that blocks open and close in order, with indexes from 0, and that deltas fit the open block."""
    start, *between, end, stop = [one for one in events if one["type"] != "ping"]
    assert [start["type"], end["type"], stop["type"]] == ["message_start", "message_delta", "message_stop"]
    message = dict(start["message"])
    assert message["content"] == [] and message["stop_reason"] is None
    content: list[Json] = []
    is_open, inputs = False, ""
    for one in between:
        if one["type"] == "content_block_start":
            assert not is_open and one["index"] == len(content)
            is_open, inputs = True, ""
            content.append(dict(one["content_block"]))
            continue
        assert is_open and one["index"] == len(content) - 1
        if one["type"] == "content_block_stop":
            is_open = False
            if inputs:
                content[-1]["input"] = json.loads(inputs) if end["delta"]["stop_reason"] != "max_tokens" else {}
            continue
        delta, block = one["delta"], content[-1]
        kinds = {"text_delta": "text", "citations_delta": "text", "thinking_delta": "thinking",
                 "signature_delta": "thinking", "input_json_delta": block["type"]}  # fmt: skip
        assert kinds[delta["type"]] == block["type"]
        if delta["type"] == "citations_delta":
            block["citations"] = [*(block.get("citations") or ()), delta["citation"]]
        inputs += delta.get("partial_json", "")
        for name in ("text", "thinking", "signature"):
            block[name] = block[name] + delta[name] if name in delta else block.get(name)
    assert not is_open
    usage = message["usage"] | {name: value for name, value in end["usage"].items() if value is not None}
    content = [{name: value for name, value in block.items() if value is not None} for block in content]
    return whole("messages", message | end["delta"] | {"content": content, "usage": usage})


def response_of(events: list[Json]) -> Json:
    """Numbered without a gap; an item is added, its parts open, grow and close, and it is done as the end tells it."""
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    created, progress, *between, last = events
    assert [created["type"], progress["type"]] == ["response.created", "response.in_progress"]
    response = whole("responses", last["response"])
    assert last["type"] == f"response.{response['status']}"
    changing = {"status", "output", "usage", "completed_at", "incomplete_details", "service_tier"}
    for one in (created, progress):
        adapter(Response).validate_python(one["response"])
        assert one["response"]["status"] == "in_progress" and one["response"]["output"] == []
        assert {name: value for name, value in one["response"].items() if name not in changing} == {
            name: value for name, value in response.items() if name not in changing}  # fmt: skip
    items: list[_Item] = []
    for one in between:
        if one["type"] == "response.output_item.added":
            assert one["output_index"] == len(items)
            items.append(_Item(one["item"]))
        else:
            assert one["output_index"] < len(items), "no event of an item comes before it"
            items[one["output_index"]].take(one)
    assert [item.done for item in items] == response["output"]
    return response


class _Item:
    """An item, assembled from its events."""

    def __init__(self, added: Json) -> None:
        self.added = added
        self.done: Json | None = None
        self.parts: list[Json] = []
        self.grown: dict[tuple[str, int], str] = {}
        self.told: dict[tuple[str, int], str] = {}
        self.cited: list[Json] = []
        self.open: int | None = None
        assert added.get("status", "in_progress") == "in_progress" and not added.get("content")
        assert not added.get("arguments") and not added.get("input")

    def take(self, event: Json) -> None:
        kind = event["type"]
        at: Any = event.get("content_index", event.get("summary_index", 0))
        assert self.done is None, "nothing comes behind an item's end"
        if kind == "response.output_item.done":
            self._end(event["item"])
            return
        assert event["item_id"] == self.added["id"]
        if kind == "response.content_part.added":
            assert self.open is None and at == len(self.parts)
            self.open = at
            assert not (event["part"].get("text") or event["part"].get("refusal"))
            return
        name, _, step = kind.rpartition(".")
        if kind == "response.content_part.done":
            assert self.open == at
            self.open = None
            self.parts.append(event["part"])
        elif kind == "response.output_text.annotation.added":
            assert self.open == at and event["annotation_index"] == len(self.cited)
            self.cited.append(event["annotation"])
        elif step == "delta":
            assert "content_index" not in event or self.open == at
            assert (name, at) not in self.told
            self.grown[name, at] = self.grown.get((name, at), "") + event["delta"]
        elif step == "done" and name in _DONE:
            self.told[name, at] = event[_DONE[name]]

    def _end(self, item: Json) -> None:
        assert self.open is None and item["id"] == self.added["id"] and item["type"] == self.added["type"]
        assert item.get("status", "completed") in ("completed", "incomplete", "failed")
        for place, text in self.grown.items():
            assert self.told[place] == text, "what is done is what has grown"
        if item["type"] in ("message", "reasoning") and item.get("content"):
            assert item["content"] == self.parts
            cites = [one for part in self.parts for one in part.get("annotations") or ()]
            assert cites == self.cited
        if "arguments" in item:
            assert self.told["response.function_call_arguments", 0] == item["arguments"]
        if item["type"] == "custom_tool_call":
            assert self.told["response.custom_tool_call_input", 0] == item["input"]
        self.done = item


_STREAMS: dict[str, Callable[[list[Json]], Json]] = {
    "chat": chat_of, "completions": chat_of, "responses": response_of, "messages": message_of,
}  # fmt: skip
