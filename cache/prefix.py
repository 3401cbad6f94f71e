"""Which deployment still has the beginning of a conversation in its prefix cache, and how much of it.

Providers and local servers keep the keys and values of recent prompts for some minutes; a prompt that begins like one
of them is cheaper and faster there. A conversation is a chain of pieces (tools, system prompt, turns), each known by
the hash of all pieces up to it; the chains form a radix tree, and each of its nodes remembers who answered it when. The
share reported is an expectation: how much of the prompt the deployment saw, times how often what it saw was really read
from its cache. It is a reason among others for the router, never a rule; so it is among the deployments of one model,
which are weighed by what each has taken recently too. There every conversation has a home, which workers that
know nothing of each other agree on.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class Warmth:
    """What a deployment keeps in its prefix cache, and for how long."""

    ttl_s: float = 300.0
    least_tokens: int = 1024
    """Shorter prefixes are not kept at all."""
    step_tokens: int = 128
    """Prefixes count in whole steps."""


@dataclass(slots=True)
class _Trust:
    """Sums of expected and reported cached tokens; their ratio tells how often an expected prefix was really cached."""

    expected: float = 200.0
    cached: float = 180.0


@dataclass(slots=True)
class _Node:
    tokens: int
    """From the beginning of the conversation to the end of this piece."""
    seen_s: dict[str, float] = field(default_factory=dict)


Chain = Sequence[tuple[bytes, int]]
"""(hash of the conversation up to here, tokens up to here), from its beginning on."""


def chain(tenant: str, pieces: Sequence[bytes], tokens: Sequence[int]) -> list[tuple[bytes, int]]:
    """Hash a conversation piece by piece; the tenant is in every hash, as caches are not shared."""
    links, digest, total = [], blake2b(tenant.encode(), digest_size=12).digest(), 0
    for piece, count in zip(pieces, tokens, strict=True):
        digest = blake2b(piece, digest_size=12, key=digest).digest()
        total += count
        links.append((digest, total))
    return links


class PrefixMap:
    """The recent conversations of every deployment, bounded by `max_nodes`."""

    def __init__(self, *, max_nodes: int = 200_000, warmths: Mapping[str, Warmth] | None = None) -> None:
        if max_nodes < 1:
            raise ValueError(f"max_nodes must be positive, not {max_nodes}")
        self._max_nodes = max_nodes
        self._warmths = dict(warmths or {})
        self._nodes: OrderedDict[bytes, _Node] = OrderedDict()
        self._trust: dict[str, _Trust] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def cached_share(self, links: Chain, deployment: str, *, now_s: float) -> float:
        """The share of the prompt's tokens expected to be read from the deployment's cache, 0..1."""
        total = links[-1][1] if links else 0
        if not total:
            return 0.0
        seen = self._seen_tokens(links, deployment, now_s)
        trust = self._trust.get(deployment, _Trust())
        return seen / total * trust.cached / trust.expected

    def record(self, links: Chain, deployment: str, *, now_s: float, cached_tokens: int | None = None) -> None:
        """Remember that a deployment has answered; `cached_tokens`: what its usage says it had."""
        if cached_tokens is not None:
            self._learn(deployment, self._seen_tokens(links, deployment, now_s), cached_tokens)
        for digest, tokens in links:
            node = self._nodes.get(digest)
            if node is None:
                node = self._nodes[digest] = _Node(tokens)
            node.seen_s[deployment] = now_s
        for digest, _ in reversed(links):  # so that ends are given up before the beginnings they hang on
            self._nodes.move_to_end(digest)
        while len(self._nodes) > self._max_nodes:
            self._nodes.popitem(last=False)

    def forget(self, deployment: str) -> None:
        """A deployment has restarted: it has nothing any more."""
        for node in self._nodes.values():
            node.seen_s.pop(deployment, None)

    def _seen_tokens(self, links: Chain, deployment: str, now_s: float) -> int:
        """Tokens of the longest prefix the deployment answered within its time, in whole steps."""
        warmth = self._warmths.get(deployment, Warmth())
        for digest, _ in reversed(links):
            node = self._nodes.get(digest)
            if node is not None and now_s - node.seen_s.get(deployment, -math.inf) < warmth.ttl_s:
                whole = node.tokens // warmth.step_tokens * warmth.step_tokens
                return whole if node.tokens >= warmth.least_tokens else 0
        return 0

    def _learn(self, deployment: str, expected: int, cached: int) -> None:
        if expected <= 0:
            return
        trust = self._trust.setdefault(deployment, _Trust())
        scale = 1000.0 / expected
        trust.expected = 0.98 * trust.expected + expected * scale
        trust.cached = 0.98 * trust.cached + min(cached, expected) * scale


class RecentTokens:
    """Prompt tokens that a deployment took recently: what it took a half-life ago counts half."""

    HALF_LIFE_S = 7.0
    __slots__ = ("_at_s", "_tokens")

    def __init__(self) -> None:
        self._tokens = self._at_s = 0.0

    def add(self, tokens: float, now_s: float) -> None:
        self._tokens, self._at_s = self.at(now_s) + tokens, now_s

    def at(self, now_s: float) -> float:
        return self._tokens * math.exp2(-max(now_s - self._at_s, 0.0) / self.HALF_LIFE_S)


AT_HOME = 0.95
"""Share of a prompt that a conversation's home is taken to have at least: other workers have sent it there."""


def home(opening: bytes, weights: Mapping[str, float]) -> str:
    """The deployment where a conversation that begins so belongs, by weighted rendezvous hashing (Thaler and
    Ravishankar 1998; Schindelhauer and Schomaker 2005): each has its share by weight, and one that comes or goes moves
    no conversation but its own.
    """
    def score(name: str) -> float:
        lot = int.from_bytes(blake2b(name.encode(), digest_size=8, key=opening).digest()) + 1
        return math.log2(lot / 2**64) / weights[name]

    return max(weights, key=score)


def with_home(
    shares: Sequence[float], names: Sequence[str], weights: Mapping[str, float], opening: bytes
) -> list[float]:
    """The share of a prompt that each deployment has cached, but at least `AT_HOME` for the conversation's home.
    `names` belong to `shares` by place; `weights` has each of them.
    """
    home_name = home(opening, weights)
    return [max(share, AT_HOME) if name == home_name else share for name, share in zip(names, shares, strict=True)]


def warmest(
    shares: Sequence[float], loads: Sequence[float], tokens: float, *, load_price: float = 0.9, slack: float = 4.0
) -> list[int]:
    """Soft affinity: the places of the deployments, more than one where they are equal, with most of a prompt, less
    the price of their overload. `shares` of the prompt that each has cached; `loads` in tokens, as are the prompt's.

    A load that is higher by the mean costs `load_price` of the prompt: a conversation stays where it is warm unless
    that is far out of balance, a new one goes where there is least to do. The mean counts as `slack` such prompts more
    than it is, so that what has next to nothing to do isn't taken for overloaded.
    """
    mean = sum(loads) / len(loads) + slack * tokens or 1.0
    scores = [share - load_price * load / mean for share, load in zip(shares, loads, strict=True)]
    best = max(scores)
    return [place for place, score in enumerate(scores) if score == best]
