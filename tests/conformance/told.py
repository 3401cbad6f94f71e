"""The facts of an answer, whatever its API: they must be the same on every way through the gateway."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Told:
    text: str
    calls: tuple[tuple[str, str], ...]
    """Name and arguments of each tool call; the arguments as canonical JSON."""
    finish: str
    """In OpenAI's names."""
    input_tokens: int
    output_tokens: int


_FINISH = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls", "stop_sequence": "stop"}


def _call(name: str, arguments: Any) -> tuple[str, str]:
    value = json.loads(arguments) if isinstance(arguments, str) else arguments
    return name, json.dumps(value, sort_keys=True)


def of_chat(answer: Any) -> Told:
    choice = answer.choices[0]
    calls = tuple(_call(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ())
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return Told(choice.message.content or "", calls, choice.finish_reason, usage.prompt_tokens,
                usage.completion_tokens)  # fmt: skip


def of_chat_events(events: list[Any]) -> Told:
    """Checks that only the last chunk has usage, and no choices."""
    *chunks, last = events
    assert last.choices == [] and all(chunk.usage is None for chunk in chunks)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == [choices[-1].finish_reason]
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for call in (call for choice in choices for call in choice.delta.tool_calls or ()):
        names.setdefault(call.index, call.function.name)
        arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    calls = tuple(_call(names[index], arguments[index]) for index in sorted(names))
    text = "".join(choice.delta.content or "" for choice in choices)
    return Told(text, calls, choices[-1].finish_reason, last.usage.prompt_tokens, last.usage.completion_tokens)


def of_completion(answer: Any) -> Told:
    choice, usage = answer.choices[0], answer.usage
    return Told(choice.text, (), choice.finish_reason, usage.prompt_tokens, usage.completion_tokens)


def of_completion_events(events: list[Any]) -> Told:
    choices = [event.choices[0] for event in events if event.choices]
    usage = events[-1].usage
    assert events[-1].choices == []
    text = "".join(choice.text for choice in choices)
    return Told(text, (), choices[-1].finish_reason, usage.prompt_tokens, usage.completion_tokens)


def of_response(answer: Any) -> Told:
    calls = tuple(_call(item.name, item.arguments) for item in answer.output if item.type == "function_call")
    finish = "length" if answer.status == "incomplete" else "tool_calls" if calls else "stop"
    return Told(answer.output_text, calls, finish, answer.usage.input_tokens, answer.usage.output_tokens)


def of_message(answer: Any) -> Told:
    text = "".join(block.text for block in answer.content if block.type == "text")
    calls = tuple(_call(block.name, block.input) for block in answer.content if block.type == "tool_use")
    usage = answer.usage
    read = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    return Told(text, calls, _FINISH[answer.stop_reason], read, usage.output_tokens)


def of_message_events(events: list[Any]) -> Told:
    """Checks that blocks open and close in order; input tokens come at the start or end, output tokens at the end."""
    assert [events[0].type, events[-2].type, events[-1].type] == ["message_start", "message_delta", "message_stop"]
    texts: list[str] = []
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    open_block = None
    for event in events[1:-2]:
        if event.type == "content_block_start":
            assert open_block is None
            open_block = event.index
            if event.content_block.type == "tool_use":
                names[event.index] = event.content_block.name
        elif event.type == "content_block_delta":
            assert event.index == open_block
            texts.append(event.delta.text if event.delta.type == "text_delta" else "")
            if event.delta.type == "input_json_delta":
                arguments[event.index] = arguments.get(event.index, "") + event.delta.partial_json
        elif event.type == "content_block_stop":
            assert event.index == open_block
            open_block = None
    calls = tuple(_call(name, arguments.get(index, "{}")) for index, name in names.items())
    usage, start = events[-2].usage, events[0].message.usage
    read = sum(
        getattr(usage, name) or getattr(start, name) or 0
        for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    )
    return Told("".join(texts), calls, _FINISH[events[-2].delta.stop_reason], read, usage.output_tokens)
