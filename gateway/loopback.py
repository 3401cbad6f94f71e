"""Tells clients of this machine from all others, for a gateway without a key: it answers loopback addresses only, and
no web page that a browser on this machine might have loaded from elsewhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from gateway.errors import PolicyError
from gateway.upstream.reach import names_inner


def is_loopback(host: str) -> bool:
    """Whether it is a loopback address. Names are not resolved, so "localhost" is none."""
    if host in ("127.0.0.1", "::1"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def names_loopback(host: str) -> bool:
    """Whether it is `localhost` or a loopback address."""
    return host == "localhost" or is_loopback(host)


def refuse_pages(host: bytes, origin: bytes, allowed: Sequence[str]) -> None:
    """Raise PolicyError for requests of web pages of other sites, which a browser on this machine may send to a gateway
    without a key: under a public name that resolves to this machine (DNS rebinding), or from a foreign origin.
    """
    if _is_public(host):
        raise PolicyError("This gateway has no key set, so it answers local names only: use localhost, or make a key.")
    if origin and origin.decode("latin-1") not in allowed and _is_foreign(origin):
        raise PolicyError("This gateway has no key set, so it answers no pages but those of server.cors_origins.")


def _is_foreign(origin: bytes) -> bool:
    """Whether it is the origin of a web page elsewhere, or hidden (`null`). Desktop applications have other schemes."""
    scheme, _, authority = origin.partition(b"://")
    host = _host_of(authority)
    return scheme in (b"http", b"https", b"null") and not names_loopback(host)


@lru_cache(64)
def _is_public(authority: bytes) -> bool:
    return not names_inner(_host_of(authority))


def _host_of(authority: bytes) -> str:
    """The host without its port; where it can't be read ".", which counts as a public name."""
    try:
        return (urlsplit(b"//" + authority).hostname or b"").decode("latin-1")
    except ValueError:
        return "."
