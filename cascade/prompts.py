"""The few requests that strategies make on their own: verify, refine, skeleton, one point, demonstrations.

Each is a pure function from a chat's messages to the fields of another request; null takes a field away. The client's
own messages are kept whole and in front; only text is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, object]
Fields = dict[str, Any]


def verification(messages: Sequence[Message], answer: str) -> Fields:
    """Ask whether the answer is right, in one word."""
    asked = "Is this answer to my question correct? Reply with one word, Correct or Incorrect."
    form = {"response_format": None, "stop": None, "logit_bias": None, "tool_choice": "none"}
    return {"messages": [*messages, _assistant(answer), _user(asked)], "max_tokens": 4, "temperature": 0.7, **form}


def refinement(messages: Sequence[Message], answer: str) -> Fields:
    """Ask for the answer again, faults mended."""
    asked = (
        "Look for mistakes and gaps in this answer, then give the complete corrected answer. "
        "Give only the answer, in the form first asked for."
    )
    return {"messages": [*messages, _assistant(answer), _user(asked)]}


def skeleton(messages: Sequence[Message], most: int = 10) -> Fields:
    """Ask for the answer's outline only."""
    asked = (
        f"Do not answer yet. Give only the skeleton of your answer: a numbered list of 3 to {most} points, "
        "each of 3 to 5 words."
    )
    return {"messages": [*messages, _user(asked)]}


def point(messages: Sequence[Message], outline: str, number: int, title: str) -> Fields:
    """Ask for one point of the outline, in a sentence or two."""
    asked = f"Write point {number} ({title}) of that outline in one or two short sentences, and nothing else."
    return {"messages": [*messages, _assistant(outline), _user(asked)]}


def next_step(messages: Sequence[Message], so_far: str) -> Fields:
    """Ask for the next step of a solution only."""
    asked = "Give only the next step, in one or two sentences. Begin the last step with 'Final answer:'."
    written = [_assistant(so_far)] if so_far else []
    return {"messages": [*messages, *written, _user(asked)], "stop": ["\n\n"]}


def demonstrated(messages: Sequence[Message], solved: Sequence[tuple[str, str]]) -> Fields:
    """The chat with solved cases of its kind before its last turn."""
    shown: list[Message] = []
    for question, answer in solved:
        shown += [_user(question), _assistant(answer)]
    return {"messages": [*messages[:-1], *shown, *messages[-1:]]}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
