"""Blocks, the prefix tree, and what is forgotten first."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_models.blocks import BlockPool, BlockTable

SIZE = 4


def filled(blocks: BlockPool, ids: list[int], salt: str = "", ends_turn: bool = False) -> BlockTable:
    """A table whose tokens are all computed and offered to the tree."""
    taken = blocks.take(ids, len(ids), salt)
    assert taken is not None
    blocks.commit(taken[0], ids, len(ids), ends_turn=ends_turn)
    return taken[0]


def remember(blocks: BlockPool, ids: list[int], *, ends_turn: bool = False) -> None:
    """Compute a prompt and leave it to the tree."""
    blocks.release(filled(blocks, ids, ends_turn=ends_turn))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([None, 1.0]))
def test_any_order_of_use_keeps_every_block_owned_once(seed: int, copy: float, alpha: float | None) -> None:
    """Taking, growing, committing and releasing in any order: the audit holds, and the end frees all."""
    rng = random.Random(seed)
    blocks = BlockPool(24, SIZE, alpha=alpha, copy_while_free=copy)
    held: list[tuple[BlockTable, list[int]]] = []
    for _ in range(60):
        if held and rng.random() < 0.4:
            table, ids = held.pop(rng.randrange(len(held)))
            if rng.random() < 0.5:
                ids += [rng.randrange(3) for _ in range(rng.randint(1, 9))]
                if blocks.grow(table, len(ids)):
                    blocks.commit(table, ids, len(ids), ends_turn=rng.random() < 0.5)
            blocks.release(table)
        else:
            ids = [rng.randrange(3) for _ in range(rng.randint(1, 30))]
            taken = blocks.take(ids, len(ids) + rng.randint(0, 9), rng.choice(["", "other"]))
            if taken is not None:
                table, copies = taken
                assert table.cached_tokens < len(ids)
                assert all(target.target // SIZE in table.private for target in copies)
                blocks.commit(table, ids, rng.randint(table.cached_tokens, len(ids)))
                held.append((table, ids))
        blocks.audit([table for table, _ in held])
    for table, _ in held:
        blocks.release(table)
    blocks.forget()
    assert blocks.free == blocks.count


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 1.0]))
def test_what_is_called_cached_is_there(seed: int, copy: float) -> None:
    """Slots said to be cached hold the tokens computed for that very prefix, shared or copied."""
    rng = random.Random(seed)
    blocks = BlockPool(32, SIZE, copy_while_free=copy)
    slots: dict[int, tuple[int, ...]] = {}
    for _ in range(30):
        ids = [rng.randrange(2) for _ in range(rng.randint(1, 24))]
        taken = blocks.take(ids, len(ids))
        assert taken is not None
        table, copies = taken
        for each in copies:
            for at in range(each.count):
                slots[each.target + at] = slots[each.source + at]
        place = [table.blocks[at // SIZE] * SIZE + at % SIZE for at in range(len(ids))]
        for at in range(table.cached_tokens):
            assert slots[place[at]] == tuple(ids[: at + 1])
        for at in range(table.cached_tokens, len(ids)):
            slots[place[at]] = tuple(ids[: at + 1])
        blocks.commit(table, ids, len(ids))
        blocks.release(table)


def test_a_prompt_starts_where_an_equal_beginning_ended() -> None:
    """Full blocks are shared; of the block where prompts part, the common tokens are copied."""
    blocks = BlockPool(16, 8, copy_while_free=1.0)
    remember(blocks, [1] * 8 + [2, 3, 4, 5, 6, 7, 8, 9])
    table, copies = blocks.take([1] * 8 + [2, 3, 4, 5, 6, 0, 0], 16) or pytest.fail("no room")
    assert table.cached_tokens == 13
    assert [copy.count for copy in copies] == [5]


def test_the_last_token_is_always_computed() -> None:
    """A prompt that is cached whole still computes one token, whose scores are wanted."""
    blocks = BlockPool(8, SIZE)
    remember(blocks, [1] * 8)
    table, _ = blocks.take([1] * 8, 8) or pytest.fail("no room")
    assert table.cached_tokens <= 7


def test_blocks_of_a_sequence_lie_in_a_row_while_they_can() -> None:
    """A fresh sequence gets one run, and grows behind it when the next block is free."""
    blocks = BlockPool(8, SIZE)
    table, _ = blocks.take([1] * 9, 9) or pytest.fail("no room")
    assert blocks.grow(table, 16)
    assert table.blocks == [0, 1, 2, 3]


def test_no_room_is_said_and_changes_nothing() -> None:
    """A sequence too large for what is left gets no block at all."""
    blocks = BlockPool(4, SIZE)
    table = filled(blocks, [1] * 12)
    assert blocks.take([2] * 8, 8) is None
    assert blocks.free == 1
    assert not blocks.grow(table, 24)
    blocks.audit([table])


def test_one_off_prompts_go_before_what_was_asked_twice() -> None:
    """Marconi's admission: a flood of prompts seen once leaves a prefix seen twice where it is; LRU loses
    it."""

    def survives(alpha: float | None) -> bool:
        blocks = BlockPool(12, SIZE, alpha=alpha)
        shared = [1] * 16
        remember(blocks, [*shared, 7])
        remember(blocks, [*shared, 8])
        for at in range(10):
            remember(blocks, [10 + at] * 8)
        table, _ = blocks.take([*shared, 9], 17) or pytest.fail("no room")
        return table.cached_tokens == 16

    assert survives(1.0) and not survives(None)


def test_a_conversation_outlives_one_off_prompts() -> None:
    """What an answer ended is kept longer for the next turn than a prompt that was only asked."""

    def cached(ends_turn: bool) -> int:
        blocks = BlockPool(8, SIZE)
        for at in range(20):
            remember(blocks, [50 + at] * 8)  # the cache's usual lifetime
        remember(blocks, [1] * 12, ends_turn=ends_turn)
        for at in range(3):
            remember(blocks, [10 + at] * 8)
        table, _ = blocks.take([1] * 12 + [2], 13) or pytest.fail("no room")
        return table.cached_tokens

    assert cached(ends_turn=True) == 12 > cached(ends_turn=False)


def test_what_once_was_popular_ages() -> None:
    """A prefix seen often, but not for very long, gives way in the end."""
    blocks = BlockPool(12, SIZE)
    for at in range(6):
        remember(blocks, [*[1] * 16, 5 + at])
    for at in range(400):
        remember(blocks, [20 + at] * 8)
    table, _ = blocks.take([*[1] * 16, 9], 17) or pytest.fail("no room")
    assert table.cached_tokens == 0


def test_sharing_can_be_switched_off() -> None:
    """Without sharing nothing is ever cached."""
    blocks = BlockPool(8, SIZE, share=False)
    remember(blocks, [1] * 12)
    assert blocks.cached == 0 and blocks.free == 8
