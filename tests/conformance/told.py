"""What an answer tells, whatever API it came by: the same facts must come out on every way through the gateway."""

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
    """In OpenAI's words."""
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
