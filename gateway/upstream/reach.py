"""Which addresses a provider may be reached at. Its URL decides, not what a resolver answers today.

A URL that names an IP address, this machine or an internal name (`vllm`, `vllm.models.svc`, `gpu.internal`) is meant
for the private network, and allowed. A public name that resolves to a private address is a mistake or an attack, and is
refused unless the provider is configured as `private_network`. Link-local addresses, where clouds serve their metadata
and its credentials, multicast and the unspecified address are always refused.
"""

from __future__ import annotations

import ipaddress

_INNER = (".internal", ".local", ".localhost", ".localdomain", ".svc", ".cluster.local", ".lan", ".intranet",
          ".private", ".corp", ".home.arpa", ".test")  # fmt: skip
_METADATA = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})
"""Metadata addresses of clouds that don't use a link-local one."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def names_inner(host: str) -> bool:
    """Whether a URL with this host is meant for the private network: an IP address or an internal name."""
    return _address(host) is not None or "." not in host or host.lower().rstrip(".").endswith(_INNER)


def refusal(address: str, *, inner: bool) -> str:
    """Why a provider may not be reached at this address; empty where it may. With `inner`, private addresses may."""
    ip = _address(address)
    if ip is None:
        return f"{address!r} is not an address"
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in _METADATA:
        return f"{ip} is link-local, multicast, unspecified or a cloud's metadata address"
    if not inner and not ip.is_global:
        return f"{ip} is not a public address: set private_network = true if that is intended"
    return ""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that packets go to: the IPv4 one inside IPv4-mapped, 6to4 and NAT64 addresses. None: no address."""
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip
