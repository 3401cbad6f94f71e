"""What has been seen of a streamed answer: enough to bill it, judge it and know whether it is complete.

It takes chunks of any upstream dialect. Parts are kept in lists and joined on demand, so a chunk costs well under a
microsecond here.
"""

from __future__ import annotations

from gateway.wire.chunk import (
    FAILED_FINISHES,
    FINISHES,
    Choice,
    Chunk,
    LogprobSummary,
    Peek,
    ToolDelta,
    begins_new_call,
    failure_of,
)
from gateway.wire.hosted_tools import Runs
from gateway.wire.usage import Usage


class ToolCall:
    """One tool call, as far as it has been received."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self, call_id: str) -> None:
        self.id = call_id
        self.name = ""
        self.arguments: list[str] = []


class Seen:
    """Accumulates the first choice's content, every choice's finish reason, and the usage."""

    __slots__ = (
        "_slots", "counted", "finish_reason", "id", "logprobs", "model", "open", "other_chars", "other_endings",
        "ran", "refusals", "started", "stop_sequence", "texts", "thoughts", "tier", "tools", "usage", "usage_payload",
    )  # fmt: skip

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self.started = False
        self.open: dict[int, bool] = {}
        """Whether each choice, by its index, has ended."""
        self.finish_reason = ""
        self.other_endings: list[str] = []
        self.other_chars = 0
        self.stop_sequence: str | None = None
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.refusals: list[str] = []
        self.tools: list[ToolCall] = []
        self._slots: dict[int, int] = {}
        self.logprobs = LogprobSummary()
        self.usage = Usage()
        """Usage without the tool runs of `ran`."""
        self.ran = Runs()
        """Runs of the provider's hosted tools, which are billed even if the stream breaks off."""
        self.tier = ""
        self.usage_payload = b""
        """The last event of a chat stream that reports usage."""
        self.counted = True
        """False: the usage was reported at the start of the answer and doesn't include its output."""

    @property
    def ended(self) -> bool:
        """Whether every choice has a finish reason."""
        return bool(self.open) and all(self.open.values())

    def take(self, chunk: Chunk) -> None:
        if not self.id:
            self.id, self.model = chunk.id or "", chunk.model or ""
        if chunk.service_tier:
            self.tier = chunk.tier
        if chunk.usage is not None:
            usage = Usage.from_openai(chunk.usage)
            self.usage = usage if usage.tells or not self.usage.known else self.usage
        for choice in chunk.choices:
            index = choice.index
            if choice.finish_reason:
                self.open[index] = True
                if chunk.x_groq is not None and not self.usage.known:
                    self.usage = Usage.from_openai(chunk.x_groq.get("usage"))
                if choice.finish_reason in FAILED_FINISHES and chunk.error is None:
                    chunk.error = failure_of(choice)
                if index:
                    self.other_endings.append(choice.finish_reason)
            elif index not in self.open:
                self.open[index] = False
            if not self.started:
                self.started = choice.is_real
            if index == 0:
                self._take_first(choice, chunk)
            else:
                self.other_chars += choice.chars

    def _take_first(self, choice: Choice, chunk: Chunk) -> None:
        if choice.finish_reason:
            self.finish_reason = FINISHES.get(choice.finish_reason, choice.finish_reason)
            self.stop_sequence = chunk.stop_sequence
        if choice.logprobs is not None:
            self.logprobs.take(choice.logprobs.values())
        if choice.text:
            self.texts.append(choice.text)
        delta = choice.delta
        if delta is None:
            return
        if delta.content:
            self.texts.append(delta.content)
        if thought := delta.reasoning_content or delta.reasoning:
            self.thoughts.append(thought)
        if delta.refusal:
            self.refusals.append(delta.refusal)
        if delta.tool_calls:
            for tool in delta.tool_calls:
                self._take_tool(tool)
        if delta.executed_tools:
            self.ran.executed(delta.executed_tools)

    def _take_tool(self, tool: ToolDelta) -> None:
        """Add a piece of a call, and set its index to the call's place. Some providers give every call the index 0, so
        a new id, or a new name, begins a new call.
        """
        slot = self._slots.get(tool.index)
        if slot is None or (tool.id and tool.id != self.tools[slot].id) or self._is_new_call(tool, self.tools[slot]):
            slot = self._slots[tool.index] = self._slot_of(tool.id)
        tool.index = slot
        call = self.tools[slot]
        if tool.function is not None:
            call.name = call.name or tool.function.name or ""
            if tool.function.arguments:
                call.arguments.append(tool.function.arguments)

    def _is_new_call(self, tool: ToolDelta, call: ToolCall) -> bool:
        name = tool.function.name if tool.function is not None else None
        return bool(name) and begins_new_call(tool.id, name, call.name, "".join(call.arguments))

    def _slot_of(self, call_id: str | None) -> int:
        for slot, call in enumerate(self.tools):
            if call_id and call.id == call_id:
                return slot
        self.tools.append(ToolCall(call_id or ""))
        return len(self.tools) - 1

    def peek(self) -> Peek:
        return Peek(
            self.id,
            self.model,
            self.finish_reason,
            "".join(self.texts),
            "".join(self.refusals),
            "".join(self.thoughts),
            self.usage.with_runs(self.ran),
            self.logprobs,
            [call.name for call in self.tools],
            ["".join(call.arguments) for call in self.tools],
            self.other_endings,
            self.other_chars,
            self.tier,
        )
