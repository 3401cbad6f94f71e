"""Blocks, the prefix tree, and the order of eviction."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_models.blocks import BlockPool, BlockTable, SlotCopy

SIZE = 4


def filled(blocks: BlockPool, ids: list[int], salt: str = "", ends_turn: bool = False) -> BlockTable:
    """A table whose tokens are all computed and in the prefix tree."""
    taken = blocks.take(ids, len(ids), salt)
    assert taken is not None
    blocks.commit(taken[0], ids, len(ids), ends_turn=ends_turn)
    return taken[0]


def remember(blocks: BlockPool, ids: list[int], *, ends_turn: bool = False) -> None:
    """Compute a prompt and add it to the tree."""
    blocks.release(filled(blocks, ids, ends_turn=ends_turn))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([None, 1.0]))
def test_every_block_has_one_owner(seed: int, copy: float, alpha: float | None) -> None:
    """Blocks are taken, grown, committed and released in any order: the audit passes, and in the end all are free."""
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
def test_cached_slots_hold_their_prefix(seed: int, copy: float) -> None:
    """Slots that are reported as cached hold the tokens of that exact prefix, shared or copied."""
    rng = random.Random(seed)
    blocks = BlockPool(32, SIZE, copy_while_free=copy)
    slots: dict[int, tuple[int, ...]] = {}
    for _ in range(30):
        ids = [rng.randrange(2) for _ in range(rng.randint(1, 24))]
        taken = blocks.take(ids, len(ids))
        assert taken is not None
        table, copies = taken
        for each in copies:
            assert isinstance(each, SlotCopy)
            for at in range(each.count):
                slots[each.target + at] = slots[each.source + at]
        place = [table.blocks[at // SIZE] * SIZE + at % SIZE for at in range(len(ids))]
        for at in range(table.cached_tokens):
            assert slots[place[at]] == tuple(ids[: at + 1])
        for at in range(table.cached_tokens, len(ids)):
            slots[place[at]] = tuple(ids[: at + 1])
        blocks.commit(table, ids, len(ids))
        blocks.release(table)


def test_a_prompt_starts_at_the_end_of_the_common_prefix() -> None:
    """Full blocks are shared; of the block in which prompts differ, the common tokens are copied."""
    blocks = BlockPool(16, 8, copy_while_free=1.0)
    remember(blocks, [1] * 8 + [2, 3, 4, 5, 6, 7, 8, 9])
    table, copies = blocks.take([1] * 8 + [2, 3, 4, 5, 6, 0, 0], 16) or pytest.fail("no room")
    assert table.cached_tokens == 13
    assert [copy.count for copy in copies if isinstance(copy, SlotCopy)] == [5]


def test_the_last_token_is_always_computed() -> None:
    """A prompt that is completely cached still computes one token for its scores."""
    blocks = BlockPool(8, SIZE)
    remember(blocks, [1] * 8)
    table, _ = blocks.take([1] * 8, 8) or pytest.fail("no room")
    assert table.cached_tokens <= 7


def test_blocks_of_a_sequence_are_contiguous_if_possible() -> None:
    """A new sequence gets one run of blocks, and grows into the next block if that is free."""
    blocks = BlockPool(8, SIZE)
    table, _ = blocks.take([1] * 9, 9) or pytest.fail("no room")
    assert blocks.grow(table, 16)
    assert table.blocks == [0, 1, 2, 3]


def test_a_lack_of_blocks_changes_nothing() -> None:
    """A sequence too large for the free blocks gets none."""
    blocks = BlockPool(4, SIZE)
    table = filled(blocks, [1] * 12)
    assert blocks.take([2] * 8, 8) is None
    assert blocks.free == 1
    assert not blocks.grow(table, 24)
    blocks.audit([table])


def test_single_prompts_are_evicted_before_repeated_ones() -> None:
    """This is Marconi's admission: many prompts seen once don't evict a prefix seen twice, which LRU would."""

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


def test_a_conversation_outlives_single_prompts() -> None:
    """A prefix that ends in an answer is kept longer for the next turn than a prompt alone."""

    def cached(ends_turn: bool) -> int:
        blocks = BlockPool(8, SIZE)
        for at in range(20):
            remember(blocks, [50 + at] * 8)  # the usual lifetime in the cache
        remember(blocks, [1] * 12, ends_turn=ends_turn)
        for at in range(3):
            remember(blocks, [10 + at] * 8)
        table, _ = blocks.take([1] * 12 + [2], 13) or pytest.fail("no room")
        return table.cached_tokens

    assert cached(ends_turn=True) == 12 > cached(ends_turn=False)


def test_popularity_decays() -> None:
    """A prefix that was requested often, long ago, is evicted in the end."""
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
