"""A streamed answer on its way from an upstream to the client, without I/O.

`feed` gives what may go out now; the terminal events are kept back for `tail`, which the driver sends only
once the answer is settled. So a client that saw the end can rely on it, and a stream cut, stalled or spoilt
in the middle can never look like a clean one: it ends with an error event and no terminal.

Between equal dialects the bytes pass as they came, save for what the client didn't ask for: the usage chunk
and the `"usage": null` of OpenAI's chunks when it didn't ask for usage, and log-probabilities that a cascade
wanted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce
from typing import Any

import msgspec

from gateway.errors import HeadgateError, UpstreamError
from gateway.wire.answer import strip_logprobs, translate_answer
from gateway.wire.assemble import assemble_chat, assemble_messages
from gateway.wire.body import Raw, encode_json
from gateway.wire.chunk import BAD_JSON, Choice, Chunk, Delta, LogprobSummary, Peek, strict
from gateway.wire.errors import classify_in_stream
from gateway.wire.hosted_tools import Runs
from gateway.wire.pause import joined
from gateway.wire.readers import MessagesReader, Reader, reader_of
from gateway.wire.responses import as_asked
from gateway.wire.responses_reader import ResponsesReader
from gateway.wire.responses_writer import ResponsesWriter
from gateway.wire.seen import Seen
from gateway.wire.sse import BOM, COMMENT, EventTooLong, Splitter, data_of, frame, name_of
from gateway.wire.usage import Usage
from gateway.wire.writers import DONE, Writer, writer_of

Json = dict[str, Any]
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
TYPED = frozenset({"messages", "responses"})
"""Dialects whose events have types, one of which is the end."""
_NULL_USAGE = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')


class Relay:
    """One upstream stream. Once `fault` is set, nothing more comes out but `error`."""

    __slots__ = (
        "_collected",
        "_dst",
        "_include_usage",
        "_late",
        "_model",
        "_paid",
        "_parts",
        "_reader",
        "_request",
        "_same",
        "_seen",
        "_splitter",
        "_src",
        "_strip_logprobs",
        "_terminal",
        "_told_before",
        "_usage_events",
        "_writer",
        "cause",
        "events",
        "fault",
        "unread",
    )  # fmt: skip

    def __init__(self, src: str, dst: str, *, model: str, request: Raw, options: Options) -> None:
        self._src, self._dst, self._same = src, dst, src == dst
        self._model, self._request = model, request
        self._reader: Reader = MessagesReader(pauses=True) if options.pauses else reader_of(src)
        self._writer: Writer = writer_of(dst, model, request, options.include_usage)
        self._include_usage = options.include_usage
        self._strip_logprobs = options.strip_logprobs
        self._collected: list[bytes] | None = [] if options.collect or options.pauses else None
        self._parts: list[Json] = []
        """Of a turn that was paused: the messages before the one under way."""
        self._paid = Usage()
        """Theirs."""
        self._told_before = (0, 0)
        """Characters in them of the answer and of what was thought."""
        self._splitter = Splitter()
        self._seen = Seen()
        self._terminal: list[bytes] = []
        self._usage_events: list[bytes] = []
        self._late = b""
        self.unread = b""
        """What came behind the last event and is none."""
        self.events = 0
        """Whole events that have come, pings and comments included: the upstream's signs of life."""
        self.fault: str | None = None
        self.cause: UpstreamError | None = None
        """Of the fault, when the upstream said it: a late 429 is told from an overload."""

    def feed(self, data: bytes) -> bytes:
        """What may go to the client now."""
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
        return b"".join([self._take(event) for event in events])

    def _take(self, event: bytes) -> bytes:
        if self.fault is not None or self._reader.done:
            return b""
        payload = data_of(event)
        if payload is None:
            return event if self._same else b""
        try:
            chunk = self._reader.read(payload, self._seen)
        except BAD_JSON:
            if (mended := strict(payload)) is not None:
                return self._take(frame(mended, name_of(event).decode()))
            message = "the upstream sent an event that isn't JSON"
            return self._fail("stream_malformed", UpstreamError("stream_malformed", message))
        if chunk is not None and (chunk.error is not None or chunk.object == "error"):
            return self._fail("stream_error", _cause(chunk))
        if self._collected is not None:
            self._collected.append(payload)
        if self._same:
            return self._pass(event, payload)
        return b"" if chunk is None else self._writer.write(chunk)

    def _pass(self, event: bytes, payload: bytes) -> bytes:
        if isinstance(self._writer, ResponsesWriter) and isinstance(self._reader, ResponsesReader):
            event = self._told_of(payload, self._writer.id) if self._reader.tells_response else event
        if self._reader.withheld:
            if self._reader.done:
                self._terminal.append(event)
            elif self._include_usage:
                self._usage_events.append(event)
            return b""
        if self._src in TYPED:
            return event
        if self._strip_logprobs and b'"logprobs"' in payload:
            event = frame(strip_logprobs(payload))
        if not self._include_usage and b'"usage"' in event:
            plain = event.replace(b',"usage":null', b"")
            event = plain if len(plain) < len(event) else _NULL_USAGE.sub(b"", event)
        return event

    def _told_of(self, payload: bytes, id: str) -> bytes:
        """An event of the Responses API whose response tells of the request what the client sent, under this id."""
        told = msgspec.json.decode(payload, type=Raw)
        told["response"] = msgspec.Raw(as_asked(bytes(told["response"]), self._request, id))
        return frame(encode_json(told), msgspec.json.decode(told["type"]))

    def _fail(self, fault: str, cause: UpstreamError) -> bytes:
        self.fault, self.cause = fault, cause
        return b""

    def end(self) -> str | None:
        """The upstream closed: None when the answer is whole, else its fault."""
        if self.fault is None and not self._reader.done:
            self._take_last(self._splitter.flush())
        if self.fault is None and not self.finished and not self.paused:
            if self._src not in TYPED and self._seen.ended and not self._reader.done:
                self._reader.done = (
                    True  # a finish reason, then a clean close: some providers never send [DONE]
                )
            else:
                self._fail(
                    "stream_cut", UpstreamError("stream_cut", "the upstream's stream ended without its end")
                )
        return self.fault

    def _take_last(self, held: bytes) -> None:
        """A last event whose blank line is missing counts if it is whole, and is cut short if it isn't."""
        payload = data_of(held + b"\n\n") if held.strip() else None
        if payload is None:
            self.unread = held
            return
        try:
            whole = payload.strip() == b"[DONE]" or isinstance(msgspec.json.decode(payload), dict)
        except BAD_JSON:
            return
        if whole:
            self._late = self._take(held.rstrip(b"\r\n") + b"\n\n")

    def tail(self) -> bytes:
        """The terminal bytes; only when `finished`."""
        assert self.finished, "a stream that isn't finished has no tail"
        if self._parts:
            self._seen.usage += self._paid
        if not self._same:
            return self._late + self._writer.tail(self._seen)
        if self._src in TYPED:
            return self._late + b"".join(self._terminal)
        usage = b"".join(self._usage_events)
        if self._include_usage and not usage and self._seen.usage.known:
            usage = self._writer.usage(self._seen)
        return self._late + usage + (b"".join(self._terminal) or DONE)

    def message(self) -> Json:
        """What came of a paused turn since it began or went on."""
        return msgspec.json.decode(self._assembled(assemble_messages))  # type: ignore[no-any-return]

    def resume(self, said: Json) -> None:
        """The rest of the turn will come as a stream of its own. `said`: the `message` so far."""
        assert self.paused and isinstance(self._reader, MessagesReader)
        self._parts.append(said)
        self._paid += self._seen.usage
        self._told_before = len("".join(self._seen.texts)), len("".join(self._seen.thoughts))
        self._seen.usage, self._seen.ran = Usage(), Runs()
        self._collected, self._splitter = [], Splitter()
        self._reader.resume()

    def leave_off(self) -> bytes:
        """End a paused turn that will not go on, as one that reached its limit."""
        chunk = Chunk([Choice(delta=Delta(), finish_reason="length")])
        self._seen.take(chunk)
        return self._writer.write(chunk)

    def error(self, exc: HeadgateError) -> bytes | None:
        """The in-band error that ends a stream which can't be finished; None: nothing but a broken connection does."""
        if self._same and isinstance(self._reader, ResponsesReader) and isinstance(self._writer, ResponsesWriter):
            self._writer.resume(self._reader.response, self._reader.sequence)
        return self._writer.error(exc)

    def answer(self) -> bytes:
        """The answer as it is without streaming, in the client's dialect; after `tail`, with collect=True."""
        assert self._collected is not None and self.finished
        if isinstance(self._writer, ResponsesWriter):
            if isinstance(self._reader, ResponsesReader):
                return as_asked(self._reader.response, self._request, self._writer.id)
            return encode_json(self._writer.whole(self._seen))
        body = self._assembled(assemble_messages if self._src == "messages" else assemble_chat)
        if self._parts:
            body = encode_json(reduce(joined, [*self._parts, msgspec.json.decode(body)]))
        strip = self._strip_logprobs and self._src != "messages"
        return translate_answer(
            body, self._src, self._dst, model=self._model, request=self._request, strip=strip
        )

    def _assembled(self, assemble: Callable[[list[bytes]], bytes]) -> bytes:
        assert self._collected is not None
        try:
            return assemble(self._collected)
        except (*BAD_JSON, KeyError, TypeError, AttributeError) as error:
            raise UpstreamError("bad_response", f"the stream can't be assembled: {error!r}") from None

    @property
    def sign(self) -> bytes:
        """What may stand between any two events and says only that the stream lives."""
        return PING if self._dst == "messages" else COMMENT

    @property
    def started(self) -> bool:
        """Something of the answer has come: content, a tool's delta, an end; not a role, ping or comment."""
        return self._seen.started

    @property
    def finished(self) -> bool:
        return self._reader.done and self._seen.ended and self.fault is None

    @property
    def paused(self) -> bool:
        """The turn is to go on: `resume` it, or `leave_off`."""
        return isinstance(self._reader, MessagesReader) and self._reader.paused and not self._seen.ended

    @property
    def over(self) -> bool:
        """Nothing more comes of this stream."""
        return self._reader.done or self.fault is not None

    @property
    def usage(self) -> Usage:
        """Of a turn that went on, since then."""
        return self._seen.usage.with_runs(self._seen.ran)

    @property
    def counted(self) -> bool:
        return self._seen.counted

    @property
    def text(self) -> str:
        return "".join(self._seen.texts)

    @property
    def logprobs(self) -> LogprobSummary:
        return self._seen.logprobs

    def peek(self) -> Peek:
        return self._seen.peek()

    def part(self) -> Peek:
        """The same, of a turn that went on since then."""
        seen, (texts, thoughts) = self._seen.peek(), self._told_before
        if not self._parts:
            return seen
        return msgspec.structs.replace(seen, text=seen.text[texts:], thought=seen.thought[thoughts:])


class Options(msgspec.Struct, frozen=True):
    include_usage: bool = False
    """The client asked for the usage chunk."""
    strip_logprobs: bool = False
    collect: bool = False
    """Keep the payloads for `answer`."""
    pauses: bool = False
    """Of Anthropic's streams for other clients: a paused turn is no end, whoever reads the stream lets it go on."""


def relay(
    src: str,
    dst: str,
    *,
    model: str,
    request: Raw,
    include_usage: bool = False,
    strip_logprobs: bool = False,
    collect: bool = False,
    pauses: bool = False,
) -> Relay:
    """From the upstream's dialect `src` to the client's `dst`; translated events carry the name `model`."""
    options = Options(include_usage, strip_logprobs, collect, pauses)
    return Relay(src, dst, model=model, request=request, options=options)


def _cause(chunk: Chunk) -> UpstreamError:
    error = chunk.error if chunk.error is not None else {"message": chunk.message, "code": chunk.code}
    return classify_in_stream(error)
