"""Where a provider listens (TCP, TLS or a unix socket), parsed once from its base URL.

Every scheme but http, https and unix is refused, and so is everything in a URL that could change the requests written
from it: credentials, a query, a fragment, white space and control characters.
"""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

_VISIBLE = re.compile(r"[!-~]+\Z")
_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`scheme` is http, https or unix; `uds` is the path of the unix socket, and empty for TCP."""

    scheme: str
    host: str
    port: int
    uds: str
    base_path: str
    """Empty, or a path that starts with a slash and doesn't end with one."""
    tls: ssl.SSLContext | None = None
    inner: bool = True
    """Whether it may be reached at an address of a private network."""

    @classmethod
    def parse(cls, base_url: str, *, verify_tls: bool = True, tls: ssl.SSLContext | None = None) -> Endpoint:
        """Parse `http://host:port/path`, `https://...`, `unix:/socket` or `unix:/socket:/path`; else ValueError. All
        but visible ASCII characters must be percent-encoded, and so must `:` and `%` in a socket's path.
        """
        if base_url.startswith("unix:") and _VISIBLE.match(base_url):
            return cls._unix(base_url[len("unix:") :])
        parts = parts_of(base_url)
        if parts.scheme == "https" and tls is None:
            tls = client_context(verify=verify_tls)
        return cls(
            scheme=parts.scheme,
            host=parts.hostname or "",
            port=parts.port or _DEFAULT_PORT[parts.scheme],
            uds="",
            base_path=parts.path.rstrip("/"),
            tls=tls if parts.scheme == "https" else None,
        )

    @classmethod
    def _unix(cls, rest: str) -> Endpoint:
        rest = rest.removeprefix("//")
        socket_path, _, base_path = rest.partition(":")
        if not socket_path.startswith("/"):
            raise ValueError("a unix base URL must name an absolute path: unix:/x.sock or unix:/x.sock:/v1")
        if base_path and not base_path.startswith("/"):
            raise ValueError("the path behind a unix socket must start with a slash")
        return cls("unix", "localhost", 0, os.fsdecode(unquote_to_bytes(socket_path)), base_path.rstrip("/"))

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.uds or self.port == _DEFAULT_PORT[self.scheme]:
            return host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        if self.uds:
            return f"unix:{self.uds}"
        return f"{self.scheme}://{self.authority}"


def unix_url(socket: Path | str, base_path: str = "") -> str:
    """The base URL of a server on this unix socket, whose path may hold any characters."""
    return f"unix:{quote(os.fsencode(socket))}:{base_path}"


def client_context(*, verify: bool = True) -> ssl.SSLContext:
    """A TLS context for HTTP/1.1. With `verify=False` it accepts any certificate."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def parts_of(base_url: str) -> SplitResult:
    """Split an http or https base URL. Raises ValueError that says what is wrong with it."""
    if not _VISIBLE.match(base_url):
        raise ValueError("a base URL may hold visible ASCII characters only")
    parts = urlsplit(base_url)
    if parts.scheme not in _DEFAULT_PORT:
        raise ValueError(f"scheme {parts.scheme!r} is not http, https or unix")
    if not parts.hostname:
        raise ValueError("the base URL names no host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("credentials belong in api_key, not in the base URL")
    if parts.query or parts.fragment:
        raise ValueError("a base URL must have no query and no fragment")
    return parts
