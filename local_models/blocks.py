"""Ownership of the key-value pool's slots: blocks, shared prefixes, and eviction.

A sequence owns blocks of `block_tokens` slots. Full blocks of computed tokens are kept in a tree by their tokens, so a
later prompt that begins alike starts where they end (PagedAttention's sharing, kept after the owner is gone). A block
in the tree is never written again; a prompt that leaves it half way copies the common part (copy on write).

While memory is plentiful a shared prefix is copied into the new sequence's own run of blocks, because attention reads
one run in place; when it is short the blocks themselves are shared and attention gathers them.

Eviction follows Marconi: a prefix that was requested again outlives one that was seen once, and of equals the one with
the least `recency + alpha * computation saved per byte` goes first. Popular prefixes still age, in units of how long a
block lasts at present. `alpha=None` is plain LRU, kept for comparison.

Evicted blocks may be kept elsewhere (`OffloadStore`) and are copied back when a prompt needs them again.

No torch: slots are integers here, and copies are returned for the owner of the pool to make.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from typing import Any, Protocol

_FREE = b"\x01"
_LEAST_COPY = 4
_CHILDREN_TRIED = 32
EVEN_DEPTH = 4096
"""Tokens of context at which attention costs about as much as the matrix products."""
_SIGHT, _TURN, _MOST_SIGHTS = 16.0, 1.0, 4.0
"""Additional lifetimes, in those of a block seen once, for each doubling of its sights and for the end of an answer;
and the most doublings that count.
"""


@dataclass(eq=False, slots=True)
class PrefixNode:
    """A full block of computed tokens, after the block of its parent."""

    parent: PrefixNode | None
    tokens: tuple[int, ...]
    block: int
    depth: int
    """Tokens before and in this block."""
    users: int = 0
    sights: int = 1
    last_used: int = 0
    ends_turn: bool = False
    """True where an answer ended here, so that the conversation's next turn will begin with this prefix."""
    children: dict[tuple[int, ...], PrefixNode] = field(default_factory=dict)
    name: bytes = b""
    """Name in the offload store; empty where there is none."""


@dataclass(frozen=True, slots=True)
class SlotCopy:
    """Copy the keys and values of `count` slots."""

    source: int
    target: int
    count: int


@dataclass(frozen=True, slots=True)
class SlotFill:
    """Copy a block that was kept elsewhere to the slots from `target` on."""

    content: Any
    target: int


class OffloadStore(Protocol):
    """Keeps evicted blocks by name."""

    def name(self, before: bytes, tokens: Ids[int]) -> bytes:
        """A block's name, after the block named `before`."""

    def put(self, name: bytes, block: int) -> None:
        """Keep what the pool's block holds at this moment."""

    def get(self, names: Ids[bytes]) -> list[Any]:
        """The contents of the longest beginning of `names` that is kept."""


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence, in order; those of `nodes` belong to the tree, the others to the
    sequence."""

    salt: str
    blocks: list[int]
    nodes: list[PrefixNode]
    cached_tokens: int
    """Tokens whose keys and values need not be computed."""
    committed: int = 0
    """Blocks already offered to the tree."""
    tail: PrefixNode | None = None
    """The tree's node that equals this sequence up to `committed` blocks; held, so that it stays."""

    @property
    def private(self) -> list[int]:
        """Blocks that are the sequence's alone."""
        shared = {node.block for node in self.nodes}
        return [block for block in self.blocks if block not in shared]


class BlockPool:
    """The block map and the prefix tree of one pool."""

    def __init__(
        self,
        count: int,
        block_tokens: int = 64,
        *,
        alpha: float | None = 1.0,
        share: bool = True,
        copy_while_free: float = 0.5,
        offload: OffloadStore | None = None,
        grain: int = 1,
    ) -> None:
        """`grain`: number of slots that can only be copied together, starting at a multiple of it."""
        self.count = count
        self.block_tokens = block_tokens
        self.hit_tokens = 0
        self.asked_tokens = 0
        self.evicted = 0
        self._alpha = alpha
        self.share = share
        self._copy_while_free = copy_while_free
        self._offload = offload
        self._grain = grain
        self._map = bytearray(_FREE * count)
        self._free = count
        self._roots: dict[str, PrefixNode] = {}
        self._nodes: set[PrefixNode] = set()
        self._clock = 0
        self._lifetime = 1.0

    @property
    def free(self) -> int:
        """Number of blocks that neither a sequence nor the tree holds."""
        return self._free

    @property
    def cached(self) -> int:
        """Blocks the tree holds."""
        return len(self._nodes)

    @property
    def reclaimable(self) -> int:
        """Number of blocks that a new sequence could get: free ones, and cached ones that no sequence uses."""
        return self._free + sum(node.users == 0 for node in self._nodes)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    def take(self, ids: Ids[int], tokens: int, salt: str = "") -> tuple[BlockTable, list[SlotCopy | SlotFill]] | None:
        """A table for `tokens` tokens that begin with `ids`, with what is already computed in it.

        None when so many blocks cannot be had now. At least the last of `ids` is left to compute.
        """
        self._clock += 1
        chain = self._matched(ids, salt)
        wanted = self.blocks_for(tokens)
        for node in chain:
            node.users += 1
        if not self._make_room(wanted - len(chain)):
            for node in chain:
                node.users -= 1
            return None
        self.asked_tokens += len(ids)
        table, laid = self._lay_out(chain, wanted, salt)
        copies: list[SlotCopy | SlotFill] = [*laid, *self._fills(ids, table, chain)]
        partial = self._copy_of_part(ids, table, chain) if len(copies) == len(laid) else None
        if partial:
            copies.append(partial)
            table.cached_tokens += partial.count
        self.hit_tokens += table.cached_tokens
        return table, copies

    def grow(self, table: BlockTable, tokens: int) -> bool:
        """Make `table` hold `tokens` tokens; False when the blocks cannot be had now."""
        missing = self.blocks_for(tokens) - len(table.blocks)
        if missing <= 0:
            return True
        if not self._make_room(missing):
            return False
        table.blocks += self._allocate(missing, after=table.blocks[-1] if table.blocks else -1)
        return True

    def commit(self, table: BlockTable, ids: Ids[int], computed: int, *, ends_turn: bool = False) -> None:
        """Offer the full blocks among the first `computed` tokens to the tree, for later prompts."""
        if not self.share:
            return
        size = self.block_tokens
        parent = table.tail or self._root(table.salt)
        while (table.committed + 1) * size <= computed:
            at = table.committed
            tokens = tuple(ids[at * size : (at + 1) * size])
            node = parent.children.get(tokens)
            if node is None:
                node = PrefixNode(parent, tokens, table.blocks[at], (at + 1) * size, last_used=self._clock)
                parent.children[tokens] = node
                if self._offload is not None:
                    node.name = self._offload.name(parent.name, tokens)
                self._nodes.add(node)
                node.users += 1
                table.nodes.append(node)
            elif node.block != table.blocks[at]:
                # Somebody else's equal block is in the tree already; ours stays ours.
                node.sights += 1
                node.last_used = self._clock
            table.committed += 1
            self._hold_tail(table, node)
            parent = node
        if ends_turn and table.tail is not None:
            table.tail.ends_turn = True

    def release(self, table: BlockTable) -> None:
        """Give up all of a table's blocks; those in the tree stay there until room is needed."""
        private = table.private
        for node in table.nodes:
            node.users -= 1
            node.last_used = self._clock
        for block in private:
            self._return(block)
        self._hold_tail(table, None)
        table.blocks, table.nodes = [], []

    def _hold_tail(self, table: BlockTable, node: PrefixNode | None) -> None:
        if node is not None:
            node.users += 1
        if table.tail is not None:
            table.tail.users -= 1
        table.tail = node

    def forget(self) -> None:
        """Drop every cached block that no sequence uses."""
        self._evict(len(self._nodes))

    def audit(self, tables: Ids[BlockTable]) -> None:
        """Assert that every block has exactly the owners it should have; for tests and idle moments."""
        cached = {node.block for node in self._nodes}
        assert len(cached) == len(self._nodes), "one block in two nodes"
        private: list[int] = []
        users: dict[int, int] = {}
        for table in tables:
            private += table.private
            for node in [*table.nodes, *([table.tail] if table.tail else [])]:
                users[node.block] = users.get(node.block, 0) + 1
        assert len(private) == len(set(private)), "one block in two tables"
        assert not cached & set(private), "a cached block is written by a sequence"
        assert all(node.users == users.get(node.block, 0) for node in self._nodes), "wrong count of users"
        taken = cached | set(private)
        assert taken == {block for block in range(self.count) if not self._map[block]}, "a leaked block"
        assert self._free == self.count - len(taken), "a wrong count of free blocks"

    def _root(self, salt: str) -> PrefixNode:
        return self._roots.setdefault(salt, PrefixNode(None, (), -1, 0, name=salt.encode()))

    def _matched(self, ids: Ids[int], salt: str) -> list[PrefixNode]:
        """The longest chain of cached blocks that `ids` begins with, one token left over."""
        chain: list[PrefixNode] = []
        node = self._roots.get(salt)
        size = self.block_tokens
        while node is not None and (len(chain) + 1) * size < len(ids):
            node = node.children.get(tuple(ids[len(chain) * size : (len(chain) + 1) * size]))
            if node is None:
                break
            node.sights += 1
            node.last_used = self._clock
            chain.append(node)
        return chain

    def _lay_out(self, chain: list[PrefixNode], wanted: int, salt: str) -> tuple[BlockTable, list[SlotCopy]]:
        """A table on the chain's own blocks, or on a fresh run into which they are copied."""
        size = self.block_tokens
        cached = len(chain) * size
        after = chain[-1].block if chain else -1
        table = BlockTable(salt, [], chain, cached, committed=len(chain))
        self._hold_tail(table, chain[-1] if chain else None)
        plentiful = self._free - wanted >= self._copy_while_free * self.count
        if chain and plentiful and not self._continues(chain, wanted):
            run = self._allocate(wanted)
            copies = [SlotCopy(node.block * size, run[at] * size, size) for at, node in enumerate(chain)]
            for node in chain:
                node.users -= 1
            table.nodes, table.blocks = [], run
            return table, copies
        table.blocks = [node.block for node in chain] + self._allocate(wanted - len(chain), after=after)
        return table, []

    def _fills(self, ids: Ids[int], table: BlockTable, chain: list[PrefixNode]) -> list[SlotFill]:
        """What the offload store has of the blocks that follow the chain."""
        if self._offload is None or not self.share:
            return []
        size, name, names = self.block_tokens, chain[-1].name if chain else table.salt.encode(), list[bytes]()
        for at in range(len(chain), (len(ids) - 1) // size):
            name = self._offload.name(name, ids[at * size : (at + 1) * size])
            names.append(name)
        contents = self._offload.get(names)
        table.cached_tokens += len(contents) * size
        own = table.blocks[len(chain) :]
        return [SlotFill(content, block * size) for content, block in zip(contents, own, strict=False)]

    def _continues(self, chain: list[PrefixNode], wanted: int) -> bool:
        """True when the chain lies in one run and what follows it is free."""
        first, missing = chain[0].block, wanted - len(chain)
        in_a_row = all(node.block == first + at for at, node in enumerate(chain))
        after = chain[-1].block + 1
        return in_a_row and self._map[after : after + missing] == _FREE * missing

    def _copy_of_part(self, ids: Ids[int], table: BlockTable, chain: list[PrefixNode]) -> SlotCopy | None:
        """The part of a cached block that `ids` has in common, to be copied into the sequence's own block."""
        parent = chain[-1] if chain else self._roots.get(table.salt)
        start = len(chain) * self.block_tokens
        if parent is None or not parent.children or len(table.blocks) <= len(chain):
            return None
        rest = tuple(ids[start : min(start + self.block_tokens, len(ids) - 1)])
        newest = sorted(parent.children.values(), key=lambda node: -node.last_used)[:_CHILDREN_TRIED]
        best = max(newest, key=lambda node: common_length(node.tokens, rest))
        count = common_length(best.tokens, rest) // self._grain * self._grain
        if count < _LEAST_COPY:
            return None
        return SlotCopy(best.block * self.block_tokens, table.blocks[len(chain)] * self.block_tokens, count)

    def _make_room(self, missing: int) -> bool:
        if missing > self._free:
            if missing > self.reclaimable:
                return False
            self._evict(missing - self._free)
        return missing <= self._free

    def _allocate(self, count: int, after: int = -1) -> list[int]:
        """`count` free blocks: in a row behind `after` if possible, else in a row, else anywhere."""
        if count <= 0:
            return []
        run = _FREE * count
        behind = after >= 0 and self._map[after + 1 : after + 1 + count] == run
        at = after + 1 if behind else self._map.find(run)
        if at >= 0:
            blocks = list(range(at, at + count))
        else:
            blocks, position = [], -1
            for _ in range(count):
                position = self._map.find(_FREE, position + 1)
                blocks.append(position)
        for block in blocks:
            self._map[block] = 0
        self._free -= count
        return blocks

    def _return(self, block: int) -> None:
        assert self._map[block] == 0, "a block was returned twice"
        self._map[block] = 1
        self._free += 1

    def _evict(self, count: int) -> None:
        """Drop up to `count` unused leaves, worst first; a parent whose last child went becomes a leaf."""
        heap = [(self._worth(node), id(node), node) for node in self._nodes if self._is_evictable(node)]
        heapq.heapify(heap)
        while heap and count > 0:
            _, _, node = heapq.heappop(heap)
            parent = node.parent
            assert parent is not None
            del parent.children[node.tokens]
            self._nodes.discard(node)
            if self._offload is not None:
                self._offload.put(node.name, node.block)
            self._return(node.block)
            self.evicted += 1
            self._lifetime += 0.05 * (self._clock - node.last_used - self._lifetime)
            count -= 1
            if parent in self._nodes and self._is_evictable(parent):
                heapq.heappush(heap, (self._worth(parent), id(parent), parent))

    def _is_evictable(self, node: PrefixNode) -> bool:
        return node.users == 0 and not node.children

    def _worth(self, node: PrefixNode) -> float:
        """Eviction order of a node, lowest first: when it was last used plus how much longer than usual it should stay,
        in uses of the cache.
        """
        if self._alpha is None:
            return node.last_used
        # Computing a token again costs its matrix products, and attention over what precedes it.
        costly = node.depth / (node.depth + EVEN_DEPTH)
        seen = min(_MOST_SIGHTS, math.log2(node.sights))
        return node.last_used + self._lifetime * (seen * _SIGHT + node.ends_turn * _TURN + self._alpha * costly)


def common_length(a: Ids[int], b: Ids[int]) -> int:
    """Length of the common prefix of two sequences of tokens."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
