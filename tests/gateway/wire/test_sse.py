"""Splitting bytes into server-sent events."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.sse import EventTooLong, Splitter, data_of, name_of

pieces = st.lists(
    st.sampled_from([b"data: a", b":c", b"\n", b"\r\n", b"\r", b"\n\n", b"event: e"]), max_size=30
)


@given(pieces, st.lists(st.integers(0, 80), max_size=8))
def test_splitting_anywhere_finds_the_same_events(parts: list[bytes], cuts: list[int]) -> None:
    """The same events are found wherever the bytes are split, even inside a line end."""
    stream = b"".join(parts) + b"x"
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    whole, cut = Splitter(), Splitter()
    events = [event for a, b in itertools.pairwise(places) for event in cut.feed(stream[a:b])]
    assert events == whole.feed(stream)
    assert b"".join(events) + cut.flush() == stream


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"event: e\ndata: x\n\n", b"x"),
        (b"event: e\r\ndata: x\r\n\r\n", b"x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\nid: 7\n\n", b"a"),
        (b": ping\n\n", None),
        (b"event: e\n\n", None),
        (b"\xef\xbb\xbfdata: x\n\n", b"x"),
    ],
)
def test_data_of_an_event(event: bytes, data: bytes | None) -> None:
    """As in the HTML standard, data lines are joined, one leading space is removed, and comments have no data."""
    assert data_of(event) == data


def test_name_of_an_event() -> None:
    """The `event:` field, where there is one."""
    assert (name_of(b"event: e\ndata: x\n\n"), name_of(b"data: x\n\n")) == (b"e", b"")


def test_an_endless_event_is_refused() -> None:
    """An event that never ends is refused before it fills the memory."""
    splitter = Splitter(max_event_bytes=100)
    with pytest.raises(EventTooLong):
        for _ in range(20):
            splitter.feed(b"data: 123456")
