"""The certificates that the configuration names: TLS of both ports, what is wrong with them, how long they last.

The standard library tells the dates of a certificate by private functions, or of one that a handshake has just found
valid. So they are read here from its DER (RFC 5280, section 4.1).
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

from gateway.config import Config, Server

if TYPE_CHECKING:
    from gateway.server import HttpServer

SOON_S = 14 * 86_400.0
"""Who renews by hand wants to be told so long before."""
LOOK_EVERY_S = 5.0
TOLD_EVERY_S = 86_400.0
_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END", re.DOTALL)
_ASKING = ("storage.redis_url?ssl_certfile", "storage.url?sslcert")
"""Of clients; the server's own is refused where it doesn't fit its key."""
_VERSION, _GENERALIZED_TIME = 0xA0, 0x18

log = logging.getLogger("headgate.tls")


class Dates(NamedTuple):
    """Unix times between which a certificate is valid."""

    begins_s: float
    ends_s: float


@dataclass(frozen=True, slots=True)
class Named:
    """A file of certificates, by the setting that names it."""

    setting: str
    file: str
    key: str = ""
    """File of its key; empty: of a certificate that others are checked by."""


def tls_options(server: Server) -> dict[str, Any]:
    """For uvicorn; none where the server speaks plain HTTP."""
    if not server.tls_certificate:
        return {}
    options: dict[str, Any] = {"ssl_certfile": server.tls_certificate, "ssl_keyfile": server.tls_key}
    if server.tls_client_ca:
        options |= {"ssl_ca_certs": server.tls_client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


def tls_problems(server: Server) -> list[tuple[str, str]]:
    """Setting and fault of what can't be used."""
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
    """By which its ports speak TLS, as uvicorn makes it of `tls_options`. Raises OSError or SSLError."""
    from uvicorn.config import SSL_PROTOCOL_VERSION, create_ssl_context  # not paid for by who only supervises

    return create_ssl_context(
        server.tls_certificate, server.tls_key, None, SSL_PROTOCOL_VERSION,
        ssl.CERT_REQUIRED if server.tls_client_ca else ssl.CERT_NONE, server.tls_client_ca or None, None,
    )  # fmt: skip


def tls_warnings(config: Config, now_s: float) -> list[str]:
    """What will soon not be valid, isn't, or could not be used where a server asks for it."""
    return [f"{one.setting}: {fault}" for one in named(config) for fault in _faults(one, now_s)]


def named(config: Config) -> list[Named]:
    """Every file of certificates that the configuration names."""
    server, redis, database = config.server, _query(config.storage.redis_url), _query(config.storage.url)
    roots = database.get("sslrootcert", "")
    found = [
        Named("server.tls_certificate", server.tls_certificate, server.tls_key),
        Named("server.tls_client_ca", server.tls_client_ca),
        Named("storage.redis_url?ssl_ca_certs", redis.get("ssl_ca_certs", "")),
        Named("storage.redis_url?ssl_certfile", redis.get("ssl_certfile", ""), redis.get("ssl_keyfile", "")),
        Named("storage.url?sslrootcert", "" if roots == "system" else roots),
        Named("storage.url?sslcert", database.get("sslcert", ""), database.get("sslkey", "")),
    ]
    return [one for one in found if one.file]


def ends(named: list[Named]) -> dict[str, float]:
    """By setting, when (Unix time) the first certificate of its file ends; a file that can't be read has none."""
    found = {}
    for one in named:
        with suppress(OSError, ValueError):
            found[one.setting] = min(dates.ends_s for dates in dates_of(one.file))
    return found


def dates_of(file: str) -> list[Dates]:
    """Of every certificate in a PEM file, in its order. Raises OSError, or ValueError where there is none."""
    blocks = _PEM.findall(Path(file).read_bytes())
    if not blocks:
        raise ValueError("holds no certificate")
    try:
        return [_dates(base64.b64decode(block)) for block in blocks]
    except (IndexError, StopIteration, ValueError):
        raise ValueError("holds a certificate that can't be read") from None


class KeptTls:
    """The certificates by which a process serves, from its start on: what is renewed is taken up without a reload."""

    def __init__(self, config: Config, server: HttpServer) -> None:
        self._config, self._server = config, server
        self._named = named(config)
        self._ends = ends(self._named)
        self._seen = self._stamp()
        self._told_at = -math.inf

    def left(self) -> dict[tuple[str, ...], float]:
        """By setting, seconds until the first certificate in force ends; below 0: since it has."""
        return {(setting,): end_s - time.time() for setting, end_s in self._ends.items()}

    async def watch(self, *, tells: bool = False) -> None:
        """Until cancelled. `tells`: once a day what is amiss; one process of a gateway does."""
        while self._named:
            if tells and time.monotonic() - self._told_at >= TOLD_EVERY_S:
                self._told_at = time.monotonic()
                for said in tls_warnings(self._config, time.time()):
                    log.warning("%s", said)
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Take up what was renewed; what can't be used is told, and what was before serves on. A context only ever
        learns further authorities, so new connections get another one.
        """
        self._ends |= ends([one for one in self._named if one.setting.startswith("storage.")])  # read at each connect
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen, ours = stamp, self._ours()
        if problems := tls_problems(self._config.server):
            for setting, fault in problems:
                log.warning("%s: changed, but can't be used: %s; what was before serves on", setting, fault)
            return
        await self._server.renew(_context(self._config.server))
        self._ends |= (found := ends(ours))
        log.info("renewed: %s", ", ".join(f"{name} {_said(end_s, time.time())}" for name, end_s in found.items()))

    def _ours(self) -> list[Named]:
        return [one for one in self._named if one.setting.startswith("server.")]

    def _stamp(self) -> tuple[int, ...]:
        """Of the server's own files, what changes with them; empty: one is not there just now."""
        try:
            found = [os.stat(file) for one in self._ours() for file in (one.file, one.key) if file]
        except OSError:
            return ()
        return tuple(number for one in found for number in (one.st_ino, one.st_mtime_ns, one.st_size))


def _misfit(pair: Named) -> str:
    """Why nobody can serve, or ask, by this certificate and its key; empty: one can."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pair.file, pair.key or None)
    except (OSError, ssl.SSLError) as fault:
        return str(fault.strerror or fault)
    return ""


def _faults(one: Named, now_s: float) -> Iterator[str]:
    try:
        found = dates_of(one.file)
    except (OSError, ValueError) as fault:
        yield f"{one.file}: {getattr(fault, 'strerror', None) or fault}"
        return
    for number, dates in enumerate(found, 1):
        place = f"certificate {number} of {len(found)}: " if len(found) > 1 else ""
        if now_s < dates.begins_s:
            yield f"{place}is not valid before {_day(dates.begins_s)}"
        elif dates.ends_s - now_s < SOON_S:
            yield place + _said(dates.ends_s, now_s)
    if one.setting in _ASKING and (misfit := _misfit(one)):
        yield f"with its key: {misfit}"


def _said(end_s: float, now_s: float) -> str:
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
    begins, until = _values(fields[3])  # behind serial number, signature and issuer
    return Dates(_time(*begins), _time(*until))


def _values(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each value in a row."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            behind = at + (length & 0x7F)
            length, at = int.from_bytes(data[at:behind], "big"), behind
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag != _GENERALIZED_TIME:  # UTCTime: years 1950 to 2049
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
