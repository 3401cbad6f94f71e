"""Repairs whole answers that came in another form than requested. Used only where an answer can't be read as it is."""

from __future__ import annotations

from gateway.wire.chunk import to_strict_json
from gateway.wire.relay import Relay

_STREAMED = (b"data:", b"event:", b":")
_DIALECTS = frozenset({"chat", "completions", "messages", "responses"})


def whole(body: bytes, dialect: str) -> bytes | None:
    """The answer as a whole body, assembled from an event stream or made valid JSON; None where it is neither.

    Raises UpstreamError where the stream holds an error, or is incomplete.
    """
    if dialect not in _DIALECTS or not body.lstrip().startswith(_STREAMED):
        return to_strict_json(body)
    flow = Relay(dialect, dialect, model="", request={}, collect=True)
    flow.feed(body)
    if flow.end():
        assert flow.cause is not None
        raise flow.cause
    return flow.answer()
