"""Tiers for keys and values that were evicted from the pool: memory beside it, then a file, each of bounded size.

A conversation that pauses loses its blocks to others, and its next turn would compute everything again. So an evicted
block is kept here under a name derived from all tokens up to its end, and a prompt that begins with them gets it back
by a copy (Pensieve's tiers). The least recently used block moves from memory to the file, and from the file is dropped.

Pensieve drops a conversation's first chunks before its later ones and computes the gap again. Here only unbroken
beginnings are given back, so a block is touched whenever a later one of its conversation is: what goes first is always
the end. The other way round nothing more is found (`python -m local_models.bench --only prefix`).

The file is unlinked while it is open, so that it disappears with the process. No asyncio, no clock.
"""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Ids
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from local_models.attention import KVCache


def name_of(before: bytes, tokens: Ids[int]) -> bytes:
    """The name of a block after the block named `before`; a root's is its salt."""
    return hashlib.blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


class Tiers:
    """Blocks by name: `memory_blocks` in memory and `disk_blocks` in an unnamed file of `folder`."""

    def __init__(self, memory_blocks: int, disk_blocks: int = 0, folder: Path | None = None) -> None:
        self.saved = 0
        self.restored = 0
        self._memory_blocks = memory_blocks
        self._disk_blocks = disk_blocks
        self._folder = folder
        self._memory: OrderedDict[bytes, Tensor] = OrderedDict()
        self._disk: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(disk_blocks))
        self._file: np.memmap[tuple[int, int], np.dtype[np.uint8]] | None = None
        self._like: Tensor | None = None

    @property
    def in_memory(self) -> int:
        return len(self._memory)

    @property
    def on_disk(self) -> int:
        return len(self._disk)

    def keep(self, name: bytes, block: Tensor) -> None:
        """Keep a copy of a block's keys and values."""
        if name in self._memory or name in self._disk:
            self._touch(name)
            return
        self.saved += 1
        self._memory[name] = block.clone(memory_format=torch.contiguous_format)
        while len(self._memory) > self._memory_blocks:
            oldest, tensor = self._memory.popitem(last=False)
            if self._disk_blocks:
                self._write(oldest, tensor)

    def fetch(self, names: Ids[bytes]) -> list[Tensor]:
        """The blocks of the longest beginning of `names` that is here, and they stay."""
        found = []
        for name in names:
            if name in self._memory:
                found.append(self._memory[name])
            elif name in self._disk:
                found.append(self._read(name))
            else:
                break
        # The first last: of one conversation the end is to be forgotten before the beginning.
        for name in reversed(names[: len(found)]):
            self._touch(name)
        self.restored += len(found)
        return found

    def _touch(self, name: bytes) -> None:
        for tier in (self._memory, self._disk):
            if name in tier:
                tier.move_to_end(name)

    def _write(self, name: bytes, block: Tensor) -> None:
        if not self._free:
            _, place = self._disk.popitem(last=False)
            self._free.append(place)
        place = self._free.pop()
        self._mapped(block)[place] = block.view(torch.uint8).flatten().numpy()
        self._disk[name] = place

    def _read(self, name: bytes) -> Tensor:
        assert self._file is not None and self._like is not None
        held = torch.from_numpy(np.array(self._file[self._disk[name]]))
        return held.view(self._like.dtype).view(self._like.shape)

    def _mapped(self, block: Tensor) -> np.memmap[tuple[int, int], np.dtype[np.uint8]]:
        """The file, made when the first block goes there; it takes what is used of it."""
        if self._file is None:
            size = block.numel() * block.element_size()
            with tempfile.TemporaryFile(dir=self._folder) as file:
                self._file = np.memmap(file, np.uint8, "w+", shape=(self._disk_blocks, size))
            self._like = block
        return self._file


class TieredStore:
    """Evicted blocks of one pool, kept in tiers (`local_models.blocks.OffloadStore`)."""

    def __init__(self, pool: KVCache, tiers: Tiers) -> None:
        self._slots = pool.tensor
        self._size = pool.block_tokens
        self.tiers = tiers

    def name(self, before: bytes, tokens: Ids[int]) -> bytes:
        return name_of(before, tokens)

    def put(self, name: bytes, block: int) -> None:
        at = block * self._size
        self.tiers.keep(name, self._slots[:, :, :, at : at + self._size].cpu())

    def get(self, names: Ids[bytes]) -> list[Tensor]:
        return self.tiers.fetch(names)


def offload_for(pool: KVCache, blocks: int, memory_mb: int, disk_mb: int, folder: str | None) -> TieredStore | None:
    """Tiers of so many megabytes for a pool of `blocks`; None where neither is wanted."""
    block_bytes = pool.bytes // max(1, blocks)
    in_memory, on_disk = (mb * 2**20 // max(1, block_bytes) for mb in (memory_mb, disk_mb))
    if not in_memory and not on_disk:
        return None
    return TieredStore(pool, Tiers(in_memory, on_disk, Path(folder) if folder else None))
