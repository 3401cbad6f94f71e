from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.journal.frames import MARKER, framed, read_frames

payloads = st.lists(st.binary(max_size=40) | st.just(MARKER * 3), max_size=8)


@given(payloads)
def test_framed_payloads_are_read_back(contents: list[bytes]) -> None:
    """Payloads are read in order, even if they contain the marker, and cover the file."""
    data = b"".join(map(framed, contents))
    frames = list(read_frames(data, final=True))
    assert [frame.payload for frame in frames] == contents
    assert not any(frame.damaged for frame in frames)
    assert (frames[-1].end if frames else 0) == len(data)


@given(payloads.filter(bool), st.data())
def test_a_torn_tail_waits_or_is_set_aside(contents: list[bytes], data: st.DataObject) -> None:
    """Every complete frame of a truncated file is read; the rest is still being written, or is damaged if nobody writes
    any more.
    """
    whole = b"".join(map(framed, contents))
    kept = b"".join(map(framed, contents[:-1]))
    torn = whole[: data.draw(st.integers(len(kept) + 1, len(whole) - 1))]
    live = list(read_frames(torn, final=False))
    assert [frame.payload for frame in live] == contents[:-1]
    ended = list(read_frames(torn, final=True))
    assert [frame.payload for frame in ended if not frame.damaged] == contents[:-1]
    assert ended[-1].damaged and ended[-1].end == len(torn)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=3, max_size=8), st.data())
def test_damage_loses_one_frame(contents: list[bytes], data: st.DataObject) -> None:
    """One flipped bit anywhere in a frame loses that frame and no other."""
    victim = data.draw(st.integers(0, len(contents) - 2))
    start = sum(len(framed(payload)) for payload in contents[:victim])
    at = start + data.draw(st.integers(0, len(framed(contents[victim])) - 1))
    spoiled = bytearray(b"".join(map(framed, contents)))
    spoiled[at] ^= 1 << data.draw(st.integers(0, 7))
    read = [frame.payload for frame in read_frames(bytes(spoiled), final=True) if not frame.damaged]
    assert read == contents[:victim] + contents[victim + 1 :]


@given(payloads, st.integers(0, 200))
def test_offsets_count_from_the_files_beginning(contents: list[bytes], base: int) -> None:
    """`base` shifts the positions of frames and nothing else."""
    data = b"".join(map(framed, contents))
    plain = [(frame.start + base, frame.end + base) for frame in read_frames(data, final=True)]
    assert [(frame.start, frame.end) for frame in read_frames(data, final=True, base=base)] == plain
