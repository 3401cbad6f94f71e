"""Events of background streams, in both databases."""

from __future__ import annotations

from gateway.journal.events import Events
from gateway.journal.store import Store


def test_events_are_read_from_any_position(store: Store) -> None:
    """Each is read once, however they were written; another tenant reads none, and none are left after their removal.
    """
    kept, told = Events(store.engine), [b"data: %d\n\n" % number for number in range(10)]
    assert kept.since("resp_1", "acme", 0) == ([], True) and kept.known("resp_1", "acme") == (0, False)
    for _ in range(2):
        kept.add("resp_1", "acme", 0, told[:3], 1.0, last=False)
    kept.add("resp_1", "acme", 3, told[3:9], 2.0, last=False)
    assert kept.since("resp_1", "acme", 5) == (told[5:9], True) and kept.known("resp_1", "acme") == (9, False)
    kept.add("resp_1", "acme", 9, told[9:], 3.0, last=True)
    for place in range(12):
        assert kept.since("resp_1", "acme", place) == (told[place:], False)
    assert kept.known("resp_1", "acme") == (10, True) and kept.since("resp_1", "other", 0) == ([], True)
    kept.remove("resp_1", "other")
    kept.forget(1.0)
    assert kept.known("resp_1", "acme") == (10, True)
    kept.remove("resp_1", "acme")
    assert kept.known("resp_1", "acme") == (0, False)
