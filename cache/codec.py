"""The encoding of entries in a store that others can write to: versioned, checksummed and bound to the key.

A value is served only if its version, checksum, key and the type of every field are as they were written. Anything
else, be it truncated, of an older version, of another key or garbage, is read as None and so is a miss.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from cache.entry import Entry

MAGIC = b"hgc\x01"
_SUM_BYTES = 8
_HEAD_BYTES = len(MAGIC) + _SUM_BYTES

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[bytes, str, Entry]).decode


def pack(key: bytes, epoch: str, entry: Entry) -> bytes:
    """Write an entry down for `key`, as of its tenant's `epoch`."""
    payload = _encode((key, epoch, entry))
    return MAGIC + _sum(payload) + payload


def unpack(blob: bytes, *, key: bytes) -> tuple[str, Entry] | None:
    """Read back (epoch, entry) written for `key`; None for anything that is not exactly that."""
    if blob[: len(MAGIC)] != MAGIC:
        return None
    payload = blob[_HEAD_BYTES:]
    if blob[len(MAGIC) : _HEAD_BYTES] != _sum(payload):
        return None
    try:
        written_for, epoch, entry = _decode(payload)
    except (msgspec.MsgspecError, ValueError):
        return None
    return (epoch, entry) if written_for == key else None


def _sum(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=_SUM_BYTES, person=MAGIC).digest()
