"""The certificates that the configuration names: TLS on both ports, faults in certificates, and their expiry.

The standard library gives the dates of a certificate only by private functions or after a handshake, so they are read
here from the certificate's DER encoding (RFC 5280, section 4.1).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import os
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

from gateway.config.types import Config, Server

if TYPE_CHECKING:
    from gateway.serve.server import HttpServer

SOON_S = 14 * 86_400.0
"""Expiry is warned of this long before, which leaves time to renew by hand."""
LOOK_EVERY_S = 5.0
WARN_EVERY_S = 86_400.0
_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END", re.DOTALL)
_CLIENT_CERTIFICATES = ("storage.redis_url?ssl_certfile", "storage.url?sslcert")
"""Settings of client certificates. One that doesn't fit its key is warned of; the server's own is refused."""
_VERSION, _GENERALIZED_TIME = 0xA0, 0x18

log = logging.getLogger("headgate.tls")


class Dates(NamedTuple):
    """Unix times between which a certificate is valid."""

    begins_s: float
    ends_s: float


@dataclass(frozen=True, slots=True)
class Named:
    """A file of certificates and the setting that names it."""

    setting: str
    file: str
    key: str = ""
    """File of its private key; empty for certificates of authorities, which others are verified by."""


def tls_options(server: Server) -> dict[str, Any]:
    """The TLS options of uvicorn; empty where the server speaks plain HTTP."""
    if not server.tls_certificate:
        return {}
    options: dict[str, Any] = {"ssl_certfile": server.tls_certificate, "ssl_keyfile": server.tls_key}
    if server.tls_client_ca:
        options |= {"ssl_ca_certs": server.tls_client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


def tls_problems(server: Server) -> list[tuple[str, str]]:
    """Each setting that can't be used, with its fault."""
    if not server.tls_certificate and not server.tls_key:
        return [("server.tls_client_ca", "is read with server.tls_certificate only")] if server.tls_client_ca else []
    if not server.tls_certificate or not server.tls_key:
        return [("server.tls_certificate", "and server.tls_key go together")]
    if misfit := _misfit(Named("server.tls_certificate", server.tls_certificate, server.tls_key)):
        return [("server.tls_certificate", f"with server.tls_key: {misfit}")]
    try:
        _context(server)
    except (OSError, ssl.SSLError) as fault:
        return [("server.tls_client_ca", str(fault.strerror or fault))]
    return []


def _context(server: Server) -> ssl.SSLContext:
    """The TLS context of the ports, as uvicorn makes it from `tls_options`. Raises OSError or SSLError."""
    from uvicorn.config import SSL_PROTOCOL_VERSION, create_ssl_context  # the supervisor needs no uvicorn

    return create_ssl_context(
        server.tls_certificate, server.tls_key, None, SSL_PROTOCOL_VERSION,
        ssl.CERT_REQUIRED if server.tls_client_ca else ssl.CERT_NONE, server.tls_client_ca or None, None,
    )  # fmt: skip


def tls_warnings(config: Config, now_s: float) -> list[str]:
    """Certificates that expire soon, are not valid, or don't fit their keys, each with its setting."""
    return [f"{one.setting}: {fault}" for one in named(config) for fault in _faults(one, now_s)]


def named(config: Config) -> list[Named]:
    """Every file of certificates that the configuration names."""
    server, redis, database = config.server, _query(config.storage.redis_url), _query(config.storage.url)
    roots = database.get("sslrootcert", "")
    files = [
        Named("server.tls_certificate", server.tls_certificate, server.tls_key),
        Named("server.tls_client_ca", server.tls_client_ca),
        Named("storage.redis_url?ssl_ca_certs", redis.get("ssl_ca_certs", "")),
        Named("storage.redis_url?ssl_certfile", redis.get("ssl_certfile", ""), redis.get("ssl_keyfile", "")),
        Named("storage.url?sslrootcert", "" if roots == "system" else roots),
        Named("storage.url?sslcert", database.get("sslcert", ""), database.get("sslkey", "")),
    ]
    return [one for one in files if one.file]


def ends(named: list[Named]) -> dict[str, float]:
    """By setting, the Unix time at which the first certificate of its file expires; unreadable files are left out."""
    ends_s = {}
    for one in named:
        with suppress(OSError, ValueError):
            ends_s[one.setting] = min(dates.ends_s for dates in dates_of(one.file))
    return ends_s


def dates_of(file: str) -> list[Dates]:
    """The dates of every certificate in a PEM file, in its order. Raises OSError, and ValueError where there is no
    certificate or one can't be read.
    """
    blocks = _PEM.findall(Path(file).read_bytes())
    if not blocks:
        raise ValueError("holds no certificate")
    try:
        return [_dates(base64.b64decode(block)) for block in blocks]
    except (IndexError, StopIteration, ValueError):
        raise ValueError("holds a certificate that can't be read") from None


class KeptTls:
    """The certificates that a process serves with. Renewed files are loaded without a reload of the configuration."""

    def __init__(self, config: Config, server: HttpServer) -> None:
        self._config, self._server = config, server
        self._named = named(config)
        self._ends = ends(self._named)
        self._seen = self._stamp()
        self._warned_at = -math.inf

    def left(self) -> dict[tuple[str, ...], float]:
        """By (setting,), the seconds until the first certificate in force expires; below 0 since it has."""
        return {(setting,): end_s - time.time() for setting, end_s in self._ends.items()}

    async def watch(self, *, tells: bool = False) -> None:
        """Load renewed files until cancelled. `tells` makes it also log `tls_warnings` once a day, which one process of
        a gateway does.
        """
        while self._named:
            if tells and time.monotonic() - self._warned_at >= WARN_EVERY_S:
                self._warned_at = time.monotonic()
                for warning in tls_warnings(self._config, time.time()):
                    log.warning("%s", warning)
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Load renewed files into a new TLS context, because an existing one can't forget authorities. Files that can't
        be used are logged, and the old certificates serve on.
        """
        # Storage clients read their files at each connect, so these are in force at once.
        self._ends |= ends([one for one in self._named if one.setting.startswith("storage.")])
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen, ours = stamp, self._ours()
        if problems := tls_problems(self._config.server):
            for setting, fault in problems:
                log.warning("%s: changed, but can't be used: %s; what was before serves on", setting, fault)
            return
        await self._server.renew(_context(self._config.server))
        self._ends |= (renewed := ends(ours))
        log.info("renewed: %s", ", ".join(f"{name} {_expiry(end_s, time.time())}" for name, end_s in renewed.items()))

    def _ours(self) -> list[Named]:
        return [one for one in self._named if one.setting.startswith("server.")]

    def _stamp(self) -> tuple[int, ...]:
        """Changes whenever one of the server's own files does; empty while one is missing."""
        try:
            stats = [os.stat(file) for one in self._ours() for file in (one.file, one.key) if file]
        except OSError:
            return ()
        return tuple(number for one in stats for number in (one.st_ino, one.st_mtime_ns, one.st_size))


def _misfit(pair: Named) -> str:
    """Why the certificate and its key can't be used together; empty where they can."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pair.file, pair.key or None)
    except (OSError, ssl.SSLError) as fault:
        return str(fault.strerror or fault)
    return ""


def _faults(one: Named, now_s: float) -> Iterator[str]:
    try:
        certificates = dates_of(one.file)
    except (OSError, ValueError) as fault:
        yield f"{one.file}: {getattr(fault, 'strerror', None) or fault}"
        return
    for number, dates in enumerate(certificates, 1):
        place = f"certificate {number} of {len(certificates)}: " if len(certificates) > 1 else ""
        if now_s < dates.begins_s:
            yield f"{place}is not valid before {_day(dates.begins_s)}"
        elif dates.ends_s - now_s < SOON_S:
            yield place + _expiry(dates.ends_s, now_s)
    if one.setting in _CLIENT_CERTIFICATES and (misfit := _misfit(one)):
        yield f"with its key: {misfit}"


def _expiry(end_s: float, now_s: float) -> str:
    return f"{'expired' if end_s <= now_s else 'expires'} on {_day(end_s)}"


def _day(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"


def _query(url: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(url.partition("?")[2]).items()}


# DER


def _dates(certificate: bytes) -> Dates:
    _, whole = next(_values(certificate))
    _, signed = next(_values(whole))
    fields = [content for tag, content in _values(signed) if tag != _VERSION]
    begins, ends = _values(fields[3])  # after serial number, signature and issuer
    return Dates(_time(*begins), _time(*ends))


def _values(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each of several consecutive values."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            after = at + (length & 0x7F)
            length, at = int.from_bytes(data[at:after], "big"), after
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag != _GENERALIZED_TIME:  # UTCTime: years 1950 to 2049
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
