"""Whole answers that came in another form than was asked for. Looked at only where one can't be read as it is."""

from __future__ import annotations

from gateway.wire.chunk import strict
from gateway.wire.relay import relay

_STREAMED = (b"data:", b"event:", b":")
_DIALECTS = frozenset({"chat", "completions", "messages", "responses"})


def whole(body: bytes, dialect: str) -> bytes | None:
    """The answer that a stream tells, or JSON that only needs to be made strict; None: nothing of the kind.

    Raises UpstreamError where the stream tells of an error, or not its end.
    """
    if dialect not in _DIALECTS or not body.lstrip().startswith(_STREAMED):
        return strict(body)
    flow = relay(dialect, dialect, model="", request={}, collect=True)
    flow.feed(body)
    if flow.end():
        assert flow.cause is not None
        raise flow.cause
    return flow.answer()
