"""Estimates how much of a prompt each deployment still has in its prompt cache. Routers use it in a model's price, and
among the deployments of one model a request goes to the one that has most of it, unless that one is busy.

Only prompts that are long enough for providers to cache are looked at, and only where a model of the route charges less
for cached tokens or has several deployments; no other request pays for it. A worker knows only what it has sent itself;
a conversation's home deployment, which all workers agree on, stands for what the others sent. Conversations of
different tenants never share a prefix (cache/prefix.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from cache.prefix import Chain, PrefixMap, chain, with_home
from gateway.call import Call
from gateway.exchange import Exchange
from gateway.fleet import Deployment, Fleet
from routers.types import Candidate

LEAST_TOKENS = 1024
BYTES_PER_TOKEN = 4
_BEFORE = ("tools", "system", "instructions")
_TURNS = ("messages", "input", "prompt")
_NOTHING = msgspec.Raw(b"")
_many = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Turn(msgspec.Struct):
    role: object = ""


_role_of = msgspec.json.Decoder(_Turn).decode


class Prefixes:
    """The prefixes that one worker has sent to each deployment."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._map = PrefixMap(max_nodes=50_000)

    def warmed(self, exchange: Exchange, candidates: Sequence[Candidate], now: float) -> Sequence[Candidate]:
        """The candidates, each with the largest share of this prompt that one of its deployments has cached."""
        if exchange.call.described.input_tokens < LEAST_TOKENS or all(c.cached_price >= 1.0 for c in candidates):
            return candidates
        shares = [
            max(self.shares(exchange, self._fleet.deployments(one.model), now) or [0.0]) for one in candidates
        ]
        return [
            replace(one, cached_share=share) if share else one for one, share in zip(candidates, shares, strict=True)
        ]

    def shares(self, exchange: Exchange, deployments: Sequence[Deployment], now: float) -> Sequence[float] | None:
        """The share of this prompt, 0 to 1, that each deployment is expected to read from its cache; None for a prompt
        that is too short to be cached.
        """
        if exchange.call.described.input_tokens < LEAST_TOKENS:
            return None
        if not exchange.links:
            exchange.links, exchange.opening = links_of(exchange.call, exchange.caller.tenant)
        return [self._map.cached_share(exchange.links, one.id, now_s=now) for one in deployments]

    def affinity(self, exchange: Exchange, deployments: Sequence[Deployment], now: float) -> Sequence[float] | None:
        """As `shares`, but with the conversation's home deployment, to which other workers send it."""
        shares = self.shares(exchange, deployments, now)
        if shares is None or len(deployments) == 1:
            return shares
        weights = {one.id: one.weight or 1.0 for one in deployments}
        return with_home(shares, [one.id for one in deployments], weights, exchange.opening)

    def settled(self, exchange: Exchange, now: float) -> None:
        """Record that the deployment that answered has the whole prompt in its cache now, and, by its usage, how much
        of it was there before.
        """
        if not exchange.links or not exchange.answered_by:
            return
        last = next((one for one in reversed(exchange.attempts) if one.model == exchange.answered_by), None)
        if last is not None:
            cached = last.usage.cache_read_tokens
            self._map.record(exchange.links, last.deployment, now_s=now, cached_tokens=cached)


def links_of(call: Call, tenant: str) -> tuple[Chain, bytes]:
    """The chain of the conversation's parts as they were sent, and the hash up to the first turn of the user."""
    raw = call.raw
    pieces = [bytes(raw[name]) for name in _BEFORE if name in raw]
    opening = len(pieces)
    for name in _TURNS:
        turns = bytes(raw.get(name, _NOTHING))
        if turns.startswith(b"["):
            several = [bytes(turn) for turn in _many(turns)]
            opening += next((place for place, turn in enumerate(several) if _is_user(turn)), 0)
            pieces += several
        elif turns:
            pieces.append(turns)
    links = chain(tenant, pieces, [len(piece) // BYTES_PER_TOKEN for piece in pieces])
    return links, links[min(opening, len(links) - 1)][0] if links else b""


def _is_user(turn: bytes) -> bool:
    return turn.startswith(b"{") and _role_of(turn).role == "user"
