"""Which addresses a provider may be reached at: what its URL says decides, not what a resolver answers today.

A URL that names an address, this machine or an inner name (`vllm`, `vllm.models.svc`, `gpu.internal`) means the inner
network, and is believed. A public name that resolves to an inner address is a mistake or an attack, and is refused
unless the provider is configured as `private_network`. Link-local addresses, where clouds keep their metadata and its
credentials, multicast and the unspecified address are refused always.
"""

from __future__ import annotations

import ipaddress

_INNER = (".internal", ".local", ".localhost", ".localdomain", ".svc", ".cluster.local", ".lan", ".intranet",
          ".private", ".corp", ".home.arpa", ".test")  # fmt: skip
_METADATA = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})
"""Of clouds that don't use a link-local address."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def names_inner(host: str) -> bool:
    """The URL itself says that the provider is not on the public network."""
    return _address(host) is not None or "." not in host or host.lower().rstrip(".").endswith(_INNER)


def refusal(address: str, *, inner: bool) -> str:
    """Why this address is not for us; empty: it is."""
    found = _address(address)
    if found is None:
        return f"{address!r} is not an address"
    if found.is_link_local or found.is_multicast or found.is_unspecified or found in _METADATA:
        return f"{found} is link-local, a cloud's metadata or nobody's address"
    if not inner and not found.is_global:
        return f"{found} is not a public address: set private_network = true where that is meant"
    return ""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """As it is reached: an IPv4 address in an IPv6 coat, 6to4's and NAT64's too, is the former."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv4Address):
        return found
    if found in _NAT64:
        return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found.ipv4_mapped or found.sixtofour or found
