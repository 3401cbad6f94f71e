"""Conversations in both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

import msgspec
import pytest
import sqlalchemy as sa

from gateway.errors import CallerError, NotFound
from gateway.journal.conversations import Conversation, Conversations, Item, Limits
from gateway.journal.store import Store
from gateway.journal.tables import conversations


def item(name: str) -> Item:
    return Item(name, msgspec.Raw(b'{"said":"%b"}' % name.encode()))


def conversations_with(store: Store, *names: str) -> Conversations:
    kept = Conversations(store.engine)
    kept.add(Conversation("conv_1", "acme", 1.0, 1.0, {"a": "b"}), [item(name) for name in names])
    return kept


def test_items_keep_their_order_and_names(store: Store) -> None:
    """The second of two items with one name gets another name; deleting an item changes no other's place."""
    kept = conversations_with(store, "a", "b")
    (again, fresh) = kept.append("conv_1", "acme", [item("a"), item("c")], 2.0)
    assert again.id != "a" and fresh.id == "c"
    kept.remove("conv_1", "acme", "b", 3.0)
    kept.append("conv_1", "acme", [item("d")], 4.0)
    assert [one.id for one in kept.items("conv_1")] == ["a", again.id, "c", "d"]
    assert [one.id for one in kept.items("conv_1", up_to=3)] == ["a", again.id]
    page = kept.page("conv_1", "acme", after="d", limit=2, oldest_first=False)
    assert [one.id for one in page] == ["c", again.id]
    told = kept.find("conv_1", "acme")
    assert (told.items, told.places, told.bytes) == (4, 5, 4 * len(b'{"said":"a"}'))
    with pytest.raises(NotFound):
        kept.remove("conv_1", "acme", "b", 5.0)


def test_no_name_is_used_twice(store: Store) -> None:
    """Neither within one addition nor where a name looks like one that was made here."""
    kept = conversations_with(store, "a_3", "a")
    assert len({one.id for one in kept.append("conv_1", "acme", [item("b"), item("a"), item("b")], 2.0)}) == 3
    assert [bytes(one.item) for one in kept.items("conv_1")] == [bytes(item(name).item) for name in ("a_3", *"abab")]


def test_a_refused_change_changes_nothing(store: Store) -> None:
    """It exceeds the limits, is another tenant's, or its conversation is deleted."""
    kept = conversations_with(store, "a")
    for limits in (Limits(1, 1000), Limits(9, 20)):
        with pytest.raises(CallerError):
            kept.append("conv_1", "acme", [item("b")], 9.0, limits)
    for change in (
        lambda: kept.append("conv_1", "other", [item("b")], 9.0), lambda: kept.delete("conv_1", "other"),
        lambda: kept.describe("conv_1", "other", {}, 9.0), lambda: kept.remove("conv_1", "other", "a", 9.0),
        lambda: kept.item("conv_1", "other", "a"),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            change()
    told = kept.find("conv_1", "acme")
    assert (told.items, told.time_s, told.metadata) == (1, 1.0, {"a": "b"}) and len(kept.items("conv_1")) == 1
    kept.delete("conv_1", "acme")
    with pytest.raises(NotFound):
        kept.append("conv_1", "acme", [item("b")], 9.0)
    assert len(kept.items("conv_1")) == 1
    assert kept.forget(0.5) == 0 and kept.forget(10.0) == 1 and not kept.items("conv_1")


def test_what_is_used_meanwhile_is_not_forgotten(store: Store) -> None:
    """A turn that is added while old conversations are deleted keeps its conversation, with all items."""
    kept = conversations_with(store, "a")
    with ThreadPoolExecutor(1) as threads:
        with store.engine.begin() as connection:
            connection.execute(sa.update(conversations).values(time_s=20.0))
            forgetting = threads.submit(kept.forget, 10.0)
            wait([forgetting], timeout=0.2)
        assert forgetting.result() == 0
    assert kept.find("conv_1", "acme").items == len(kept.items("conv_1")) == 1


def test_concurrent_additions_are_all_stored(store: Store) -> None:
    """No items are lost, and each addition's items stay together."""
    kept = conversations_with(store)
    with ThreadPoolExecutor(8) as threads:
        turns = [[item(f"{number} {part}") for part in "abc"] for number in range(24)]
        list(threads.map(lambda turn: kept.append("conv_1", "acme", turn, 2.0), turns))
    ids = [one.id for one in kept.items("conv_1")]
    assert len(ids) == 72 and {tuple(ids[at : at + 3]) for at in range(0, 72, 3)} == {
        tuple(one.id for one in turn) for turn in turns
    }
