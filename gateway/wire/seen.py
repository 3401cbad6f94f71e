"""What has been seen of a streamed answer: enough to bill it, judge it and know whether it ended.

Fed with chunks of any upstream dialect. Parts accumulate in lists and are joined when asked for, so a chunk
costs well under a microsecond here.
"""

from __future__ import annotations

from gateway.wire.chunk import FINISHES, LOST, Choice, Chunk, LogprobSummary, Peek, ToolDelta, lost, tells_another
from gateway.wire.hosted_tools import Runs
from gateway.wire.usage import Usage


class ToolCall:
    """One call as far as it has come."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self, call_id: str) -> None:
        self.id = call_id
        self.name = ""
        self.arguments: list[str] = []


class Seen:
    """Accumulates the first choice's content, every choice's end, and usage."""

    __slots__ = (
        "_slots", "counted", "finish_reason", "id", "logprobs", "model", "open", "other_chars", "other_endings",
        "ran", "refusals", "started", "stop_sequence", "texts", "thoughts", "tier", "told_usage", "tools", "usage",
    )  # fmt: skip

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self.started = False
        self.open: dict[int, bool] = {}
        """Choice index to whether it has ended."""
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
        """Without `ran`."""
        self.ran = Runs()
        """Tools of the provider's own: paid, even if no end comes."""
        self.tier = ""
        self.told_usage = b""
        """Chat's last event that tells usage."""
        self.counted = True
        """False: usage is from the answer's start and knows nothing of the rest."""

    @property
    def ended(self) -> bool:
        """Every choice seen has a finish reason."""
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
                if choice.finish_reason in LOST and chunk.error is None:
                    chunk.error = lost(choice)
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
        """Some providers number every call 0: a new id is a new call, or a new name. The delta is renumbered."""
        slot = self._slots.get(tool.index)
        if slot is None or (tool.id and tool.id != self.tools[slot].id) or self._is_another(tool, self.tools[slot]):
            slot = self._slots[tool.index] = self._slot_of(tool.id)
        tool.index = slot
        call = self.tools[slot]
        if tool.function is not None:
            call.name = call.name or tool.function.name or ""
            if tool.function.arguments:
                call.arguments.append(tool.function.arguments)

    def _is_another(self, tool: ToolDelta, call: ToolCall) -> bool:
        name = tool.function.name if tool.function is not None else None
        return bool(name) and tells_another(tool.id, name, call.name, "".join(call.arguments))

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
