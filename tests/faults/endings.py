"""How an answer ended, as a client would see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from tests.faults.talk import Heard

TERMINALS = {"message_stop", "response.completed", "response.incomplete"}
ERRORS = {"error", "response.failed"}


@dataclass(slots=True)
class Streamed:
    """The contents of a stream."""

    text: str = ""
    terminals: int = 0
    errors: int = 0
    last: str = ""
    """terminal | error | content"""


def read_stream(body: bytes | bytearray) -> Streamed:
    """Read the events of any surface. Raises for data that is neither JSON nor [DONE]."""
    seen = Streamed()
    assert body.endswith(b"\n\n"), body[-100:]
    for event in body[:-2].split(b"\n\n"):
        data = event.partition(b"data: ")[2]
        if data == b"[DONE]":
            seen.terminals += 1
            seen.last = "terminal"
        elif data:
            _take(seen, msgspec.json.decode(data))
    return seen


def _take(seen: Streamed, event: dict[str, Any]) -> None:
    """The parsed events of a stream, on any surface."""
    kind = event.get("type") or ""
    if kind in TERMINALS:
        seen.terminals += 1
        seen.last = "terminal"
    elif kind in ERRORS or event.get("error"):
        seen.errors += 1
        seen.last = "error"
    else:
        seen.text += _delta(kind, event)
        seen.last = "content"


def _delta(kind: str, event: dict[str, Any]) -> str:
    if kind == "content_block_delta":
        return str(event["delta"].get("text", ""))
    if kind == "response.output_text.delta":
        return str(event["delta"])
    choice = (event.get("choices") or [{}])[0]
    return str(choice.get("text") or (choice.get("delta") or {}).get("content") or "")


def text_of(surface: str, answer: dict[str, Any]) -> str:
    """The text of a whole answer."""
    if surface == "messages":
        return "".join(block["text"] for block in answer["content"])
    if surface == "responses":
        return "".join(part["text"] for item in answer["output"] for part in item["content"])
    choice = answer["choices"][0]
    return str(choice["text"] if surface == "completions" else choice["message"]["content"])


def assert_error_shape(surface: str, heard: Heard) -> None:
    """The four keys of OpenAI's error, or Anthropic's envelope."""
    said = heard.json
    if surface == "messages":
        assert said["type"] == "error" and set(said["error"]) == {"type", "message"}, said
    else:
        assert set(said["error"]) == {"message", "type", "param", "code"}, said


def ending_of(surface: str, heard: Heard, *, stream: bool, texts: dict[str, str]) -> str:
    """The kind of ending: answer, fallback, error or in-band error.

    Anything else raises. `texts` are the texts of complete answers.
    """
    assert heard.heads == 1 and heard.whole, f"the message has no proper end: {heard}"
    if heard.status != 200:
        assert_error_shape(surface, heard)
        return "error"
    if not stream:
        return _which(text_of(surface, heard.json), texts)
    seen = read_stream(heard.body)
    assert (seen.terminals, seen.errors) in ((1, 0), (0, 1)), heard.body
    if seen.errors:
        assert seen.last == "error", heard.body
        return "in-band error"
    assert seen.last == "terminal", heard.body
    return _which(seen.text, texts)


def _which(text: str, texts: dict[str, str]) -> str:
    for ending, expected in texts.items():
        if text == expected:
            return ending
    raise AssertionError(f"the answer says {text!r}")
