"""Relays a streamed answer from an upstream to the client, without I/O.

`feed` returns what may go out now. The terminal events are kept back for `tail`, which the driver sends only once the
answer is settled. So a client that saw the end can rely on it, and a stream that is cut, stalled or malformed in the
middle never looks complete: it ends with an error event and without a terminal event.

Between equal dialects the bytes are passed on unchanged, except for what the client didn't request: the usage chunk and
the `"usage": null` of OpenAI's chunks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce
from typing import Any

import msgspec

from gateway.errors import HeadgateError, UpstreamError
from gateway.wire.answer import translate_answer
from gateway.wire.assemble import assemble_chat, assemble_messages
from gateway.wire.body import Raw, encode_json
from gateway.wire.chunk import BAD_JSON, Choice, Chunk, Delta, Peek, text_chunk, to_strict_json
from gateway.wire.errors import classify_in_stream
from gateway.wire.event_template import EventTemplate, learn
from gateway.wire.hosted_tools import Runs
from gateway.wire.pause import joined
from gateway.wire.readers import MessagesReader, Reader, reader_of
from gateway.wire.responses import as_requested
from gateway.wire.responses_reader import ResponsesReader
from gateway.wire.responses_writer import ResponsesWriter
from gateway.wire.seen import Seen
from gateway.wire.sse import BOM, COMMENT, EventTooLong, Splitter, data_of, frame, name_of
from gateway.wire.usage import Usage
from gateway.wire.writers import DONE, Writer, writer_of

Json = dict[str, Any]
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
TYPED = frozenset({"messages", "responses"})
"""Dialects whose events have types, one of which ends the stream."""
LEARN_AT = frozenset({2, 4, 8, 16})
"""Numbers of pieces of text after which a template of their events is looked for, until there is one."""
FEWEST_AT_ONCE = 4
"""So many events, received in one read, may be taken together."""
_NULL_USAGE = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')


class Relay:
    """One upstream stream. Once `fault` is set, only `error` returns anything for the client."""

    __slots__ = (
        "_chars_before",
        "_collected",
        "_dst",
        "_include_usage",
        "_late",
        "_model",
        "_parts",
        "_reader",
        "_request",
        "_same",
        "_seen",
        "_splitter",
        "_src",
        "_template",
        "_terminal",
        "_uncollected",
        "_usage_before",
        "_usage_events",
        "_writer",
        "cause",
        "events",
        "fault",
        "unread",
    )  # fmt: skip

    def __init__(
        self,
        src: str,
        dst: str,
        *,
        model: str,
        request: Raw,
        include_usage: bool = False,
        collect: bool = False,
        pauses: bool = False,
    ) -> None:
        """`src`: the upstream's dialect; `dst`: the client's, whose translated events have the name `model`.
        `include_usage`: the client requested the usage chunk. `collect`: keep the payloads for `answer`. `pauses`: for
        Anthropic's streams to clients of other APIs, where a paused turn doesn't end the answer, but is continued.
        """
        self._src, self._dst, self._same = src, dst, src == dst
        self._model, self._request = model, request
        self._reader: Reader = MessagesReader(pauses=True) if pauses else reader_of(src)
        self._writer: Writer = writer_of(dst, model, request, include_usage)
        self._include_usage = include_usage
        self._collected: list[bytes] | None = [] if collect or pauses else None
        self._parts: list[Json] = []
        """The messages of a paused turn before the current one."""
        self._usage_before = Usage()
        """The usage of those messages."""
        self._chars_before = (0, 0)
        """Characters of text and of thoughts in those messages."""
        self._splitter = Splitter()
        self._seen = Seen()
        self._template: EventTemplate | None = None
        self._uncollected = 0
        """How many of the latest texts were read by the template and are not in `_collected` yet."""
        self._terminal: list[bytes] = []
        self._usage_events: list[bytes] = []
        self._late = b""
        self.unread = b""
        """Bytes after the last event that aren't an event."""
        self.events = 0
        """Complete events received, pings and comments included, which show that the upstream is alive."""
        self.fault: str | None = None
        self.cause: UpstreamError | None = None
        """The error behind `fault`, which distinguishes a late 429 from an overload."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the upstream, and return those that may go to the client now."""
        if self.fault is not None or self._reader.done:
            return b""
        if not self.events:
            data = data.removeprefix(BOM)
        try:
            events = self._splitter.feed(data)
        except EventTooLong as error:
            return self._fail("stream_malformed", UpstreamError("stream_malformed", str(error)))
        self.events += len(events)
        if len(events) == 1:
            return self._take(events[0])
        return self._take_several(events)

    def _take_several(self, events: list[bytes]) -> bytes:
        """Take events together if the template fits all of them, otherwise each half of them by itself."""
        if not self._same or len(events) < FEWEST_AT_ONCE:
            return b"".join([self._take(event) for event in events if not self.over])
        if self._template is not None and not self.over and (taken := self._template.take(events)) is not None:
            text, passed = taken
            self._seen.texts.append(text)
            self._uncollected += 1
            return passed
        half = len(events) // 2
        return self._take_several(events[:half]) + self._take_several(events[half:])

    def _take(self, event: bytes) -> bytes:
        template = self._template
        if template is not None and (text := template.text_of(event)) is not None:
            self._seen.texts.append(text)
            self._uncollected += 1
            return template.passed(event) if self._same else self._writer.write(text_chunk(text))
        if self._uncollected:
            self._collect_texts()
        payload = data_of(event)
        if payload is None:
            return event if self._same else b""
        try:
            chunk = self._reader.read(payload, self._seen)
        except BAD_JSON:
            if (mended := to_strict_json(payload)) is not None:
                return self._take(frame(mended, name_of(event).decode()))
            message = "the upstream sent an event that isn't JSON"
            return self._fail("stream_malformed", UpstreamError("stream_malformed", message))
        if chunk is not None and (chunk.error is not None or chunk.object == "error"):
            return self._fail("stream_error", _cause(chunk))
        if self._collected is not None:
            self._collected.append(payload)
        passed = self._pass(event, payload) if self._same else event
        if template is None and chunk is not None and self._src != "responses" and len(self._seen.texts) in LEARN_AT:
            self._template = learn(event, payload, passed)
        if self._same:
            return passed
        return b"" if chunk is None else self._writer.write(chunk)

    def _collect_texts(self) -> None:
        """Collect the latest texts, whose events fitted the template, as one event."""
        if self._collected is not None and self._template is not None:
            texts = self._seen.texts[-self._uncollected :]
            self._collected.append(data_of(self._template.event("".join(texts))) or b"")
        self._uncollected = 0

    def _pass(self, event: bytes, payload: bytes) -> bytes:
        if isinstance(self._writer, ResponsesWriter) and isinstance(self._reader, ResponsesReader):
            event = self._as_requested(payload, self._writer.id) if self._reader.has_response else event
        if self._reader.withheld:
            if self._reader.done:
                self._terminal.append(event)
            elif self._include_usage:
                self._usage_events.append(event)
            return b""
        if self._src in TYPED:
            return event
        if not self._include_usage and b'"usage"' in event:
            plain = event.replace(b',"usage":null', b"")
            event = plain if len(plain) < len(event) else _NULL_USAGE.sub(b"", event)
        return event

    def _as_requested(self, payload: bytes, id: str) -> bytes:
        """An event of the Responses API whose response has this id and repeats the client's own request fields."""
        fields = msgspec.json.decode(payload, type=Raw)
        fields["response"] = msgspec.Raw(as_requested(bytes(fields["response"]), self._request, id))
        return frame(encode_json(fields), msgspec.json.decode(fields["type"]))

    def _fail(self, fault: str, cause: UpstreamError) -> bytes:
        self.fault, self.cause = fault, cause
        return b""

    def end(self) -> str | None:
        """The upstream has closed the stream: None where the answer is complete, else the fault."""
        if self.fault is None and not self._reader.done:
            self._take_last(self._splitter.flush())
        if self.fault is None and not self.finished and not self.paused:
            if self._src not in TYPED and self._seen.ended and not self._reader.done:
                self._reader.done = True  # a finish reason, then a clean close: some providers never send [DONE]
            else:
                self._fail(
                    "stream_cut", UpstreamError("stream_cut", "the upstream's stream ended without its end")
                )
        return self.fault

    def _take_last(self, held: bytes) -> None:
        """Take a last event without its blank line, if it is complete; an incomplete one is ignored."""
        payload = data_of(held + b"\n\n") if held.strip() else None
        if payload is None:
            self.unread = held
            return
        try:
            is_whole = payload.strip() == b"[DONE]" or isinstance(msgspec.json.decode(payload), dict)
        except BAD_JSON:
            return
        if is_whole:
            self._late = self._take(held.rstrip(b"\r\n") + b"\n\n")

    def tail(self) -> bytes:
        """The terminal events; may be called only when `finished`."""
        assert self.finished, "a stream that isn't finished has no tail"
        if self._parts:
            self._seen.usage += self._usage_before
        if not self._same:
            return self._late + self._writer.tail(self._seen)
        if self._src in TYPED:
            return self._late + b"".join(self._terminal)
        usage = b"".join(self._usage_events)
        if self._include_usage and not usage and self._seen.usage.known:
            usage = self._writer.usage(self._seen)
        return self._late + usage + (b"".join(self._terminal) or DONE)

    def message(self) -> Json:
        """The message since the turn began or was last continued."""
        return msgspec.json.decode(self._assembled(assemble_messages))  # type: ignore[no-any-return]

    def resume(self, said: Json) -> None:
        """Continue a paused turn, whose rest comes as another stream. `said`: the `message` so far."""
        assert self.paused and isinstance(self._reader, MessagesReader)
        self._parts.append(said)
        self._usage_before += self._seen.usage
        self._chars_before = len("".join(self._seen.texts)), len("".join(self._seen.thoughts))
        self._seen.usage, self._seen.ran = Usage(), Runs()
        self._collected, self._splitter = [], Splitter()
        self._reader.resume()

    def leave_off(self) -> bytes:
        """End a paused turn that won't be continued, as if it had reached its token limit."""
        chunk = Chunk([Choice(delta=Delta(), finish_reason="length")])
        self._seen.take(chunk)
        return self._writer.write(chunk)

    def error(self, exc: HeadgateError) -> bytes | None:
        """The error event that ends an incomplete stream; None where only closing the connection can end it."""
        if self._same and isinstance(self._reader, ResponsesReader) and isinstance(self._writer, ResponsesWriter):
            self._writer.resume(self._reader.response, self._reader.sequence)
        return self._writer.error(exc)

    def answer(self) -> bytes:
        """The answer as a whole body in the client's dialect. Needs `collect=True`, and must be called after `tail`."""
        assert self._collected is not None and self.finished
        if isinstance(self._writer, ResponsesWriter):
            if isinstance(self._reader, ResponsesReader):
                return as_requested(self._reader.response, self._request, self._writer.id)
            return encode_json(self._writer.whole(self._seen))
        body = self._assembled(assemble_messages if self._src == "messages" else assemble_chat)
        if self._parts:
            body = encode_json(reduce(joined, [*self._parts, msgspec.json.decode(body)]))
        return translate_answer(body, self._src, self._dst, model=self._model, request=self._request)

    def _assembled(self, assemble: Callable[[list[bytes]], bytes]) -> bytes:
        assert self._collected is not None
        if self._uncollected:
            self._collect_texts()
        try:
            return assemble(self._collected)
        except (*BAD_JSON, KeyError, TypeError, AttributeError) as error:
            raise UpstreamError("bad_response", f"the stream can't be assembled: {error!r}") from None

    @property
    def sign(self) -> bytes:
        """An event that may be sent between any two others to keep the connection alive."""
        return PING if self._dst == "messages" else COMMENT

    @property
    def started(self) -> bool:
        """Whether a part of the answer has come: content, a tool's delta or an end; not a role, ping or comment."""
        return self._seen.started

    @property
    def finished(self) -> bool:
        return self._reader.done and self._seen.ended and self.fault is None

    @property
    def paused(self) -> bool:
        """Whether the turn is paused: `resume` must continue it, or `leave_off` end it."""
        return isinstance(self._reader, MessagesReader) and self._reader.paused and not self._seen.ended

    @property
    def over(self) -> bool:
        """Whether the stream has ended or failed."""
        return self._reader.done or self.fault is not None

    @property
    def usage(self) -> Usage:
        """The usage since the turn began or was last continued."""
        return self._seen.usage.with_runs(self._seen.ran)

    @property
    def counted(self) -> bool:
        return self._seen.counted

    def peek(self) -> Peek:
        return self._seen.peek()

    def part(self) -> Peek:
        """As `peek`, with the text and thoughts since the turn began or was last continued."""
        seen, (text_chars, thought_chars) = self._seen.peek(), self._chars_before
        if not self._parts:
            return seen
        return msgspec.structs.replace(seen, text=seen.text[text_chars:], thought=seen.thought[thought_chars:])


def _cause(chunk: Chunk) -> UpstreamError:
    error = chunk.error if chunk.error is not None else {"message": chunk.message, "code": chunk.code}
    return classify_in_stream(error)
