"""Certificates that expire, don't fit their keys or are renewed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway.config.types import Config, Secret, Server, Storage
from gateway.redis_wire import RedisAway, RedisWire
from gateway.serve.tls import dates_of, ends, named, tls_warnings
from tests.command import headgate
from tests.gateway.serve.test_serve import eventually, write_config
from tests.live import served
from tests.ports import free_port
from tests.until import PATIENCE_S, until

DAY_S = 86_400.0
LOOK_S = 0.05


def certificate(folder: Path, name: str, days: float, *, begins: float = -1.0, ca: bool = False) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, valid between these numbers of days from now."""
    made = folder / f"of-{name}"
    made.mkdir(exist_ok=True)
    (made / "index").write_text("")
    (made / "ca.cnf").write_text(
        f"[ca]\ndefault_ca=c\n[c]\ndatabase={made}/index\nnew_certs_dir={made}\ndefault_md=sha256\npolicy=p\n"
        f"rand_serial=yes\n[p]\ncommonName=supplied\n[v3]\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n"
        f"basicConstraints=CA:{str(ca).upper()}\n"
    )
    key, cert, asked = folder / f"{name}.key", folder / f"{name}.pem", made / "csr"
    times = [f"{datetime.now(UTC) + timedelta(days=at):%Y%m%d%H%M%SZ}" for at in (begins, days)]
    for words in (
        ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
         "-keyout", str(key), "-out", str(asked)],
        ["ca", "-batch", "-config", str(made / "ca.cnf"), "-selfsign", "-keyfile", str(key), "-in", str(asked),
         "-notext", "-startdate", times[0], "-enddate", times[1], "-extensions", "v3", "-out", str(cert)],
    ):  # fmt: skip
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    return cert, key


def config_of(cert: Path | str = "", key: Path | str = "", ca: Path | str = "", **storage: str) -> Config:
    server = Server(tls_certificate=str(cert), tls_key=str(key), tls_client_ca=str(ca))
    secrets: dict[str, Any] = {name: Secret(url) for name, url in storage.items()}
    return Config(server=server, storage=Storage(**secrets))


def test_dates_are_those_that_openssl_reads(tmp_path: Path) -> None:
    """Dates are read in both time formats, of every certificate in a file; a file without one raises an error."""
    near, _ = certificate(tmp_path, "near", 30, ca=True)
    far, _ = certificate(tmp_path, "far", 40_000, begins=-3, ca=True)
    both = tmp_path / "both.pem"
    both.write_bytes(b"what is written between is no certificate\n" + near.read_bytes() + far.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(both)
    told = [(str(one["notBefore"]), str(one["notAfter"])) for one in context.get_ca_certs()]
    assert {tuple(map(ssl.cert_time_to_seconds, one)) for one in told} == set(map(tuple, dates_of(str(both))))
    assert len(dates_of(str(both))) == 2
    for spoilt in (b"", near.read_bytes()[:200] + b"\n-----END CERTIFICATE-----\n", b"\xff" * 99):
        both.write_bytes(spoilt)
        with pytest.raises(ValueError, match="certificate"):
            dates_of(str(both))


def test_what_ends_soon_has_ended_or_has_not_begun_is_a_warning(tmp_path: Path) -> None:
    """Each file is named by its setting, and a certificate by its number where a file holds several; "soon" is 14 days.
    """
    sound, soon = certificate(tmp_path, "sound", 15), certificate(tmp_path, "soon", 13)
    ended, early = certificate(tmp_path, "ended", -0.1), certificate(tmp_path, "early", 90, begins=2)

    def warned(*files: Path | str, **storage: str) -> list[str]:
        return [re.sub(r"\d{4}-.*UTC", "DAY", one) for one in tls_warnings(config_of(*files, **storage), time.time())]

    assert warned() == warned(*sound) == []
    assert warned(*soon) == ["server.tls_certificate: expires on DAY"]
    assert warned(*ended) == ["server.tls_certificate: expired on DAY"]
    assert warned(*early) == ["server.tls_certificate: is not valid before DAY"]
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(sound[0].read_bytes() + ended[0].read_bytes())
    assert warned(*sound, bundle) == ["server.tls_client_ca: certificate 2 of 2: expired on DAY"]


def test_certificates_for_redis_and_postgresql_are_looked_at_too(tmp_path: Path) -> None:
    """Authorities and client certificates in their URLs are checked; the latter must fit their keys."""
    (sound, key), (soon, _) = certificate(tmp_path, "sound", 90), certificate(tmp_path, "soon", 1)
    urls = {
        "redis_url": f"rediss://h:1/0?ssl_ca_certs={soon}&ssl_certfile={sound}&ssl_keyfile={key}",
        "url": f"postgresql://h/d?sslmode=verify-full&sslrootcert={tmp_path}/gone&sslcert={soon}&sslkey={key}",
    }
    said = tls_warnings(config_of(**urls), time.time())
    assert [one.partition(": ")[0] for one in said] == [
        "storage.redis_url?ssl_ca_certs", "storage.url?sslrootcert", "storage.url?sslcert", "storage.url?sslcert",
    ]  # fmt: skip
    assert "No such file" in said[1] and "with its key" in said[3]
    config = config_of(**{**urls, "url": "postgresql://h/d?sslrootcert=system"})
    assert sorted(ends(named(config))) == ["storage.redis_url?ssl_ca_certs", "storage.redis_url?ssl_certfile"]


def test_check_config_warns(tmp_path: Path) -> None:
    """Expiry is only warned of; a key that doesn't fit its certificate is refused."""
    path, _, _ = write_config(tmp_path)
    (cert, key), (_, foreign) = certificate(tmp_path, "soon", 3), certificate(tmp_path, "other", 90)
    plain = path.read_text()
    path.write_text(plain.replace("[server]", f'[server]\ntls_certificate = "{cert}"\ntls_key = "{key}"'))
    ended = headgate("check-config", path)
    assert ended.code == 0 and "warning: server.tls_certificate: expires on " in ended.err
    told = msgspec.json.decode(headgate("check-config", path, "--json").out)
    assert told["ok"] and any(one.startswith("server.tls_certificate: expires on") for one in told["warnings"])
    path.write_text(path.read_text().replace(str(key), str(foreign)))
    assert headgate("check-config", path).code == 2


def looking_often(folder: Path) -> str:
    """A PYTHONPATH with which processes look for renewed certificates every LOOK_S seconds instead of every five."""
    (folder / "sitecustomize.py").write_text(f"import gateway.serve.tls\ngateway.serve.tls.LOOK_EVERY_S = {LOOK_S}\n")
    return os.pathsep.join([str(folder), *filter(None, sys.path)])


def shown(port: int) -> float:
    """The expiry of the certificate that a new connection is given."""
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(pem)
        file.flush()
        return dates_of(file.name)[0].ends_s


def left_s(admin_port: int) -> float:
    text = httpx.get(f"https://127.0.0.1:{admin_port}/metrics", verify=False).text
    (figure,) = re.findall(r'^headgate_certificate_expiry_seconds{setting="server.tls_certificate"} (\S+)$', text, re.M)
    return float(figure)


async def test_a_renewed_certificate_is_taken_up_without_a_reload(tmp_path: Path) -> None:
    """Both ports use it, the metric shows it, and connections stay. One that doesn't fit its key changes nothing."""
    path, port, admin_port = write_config(tmp_path)
    cert, key = certificate(tmp_path, "server", 3)
    fresh, its_key = certificate(tmp_path, "fresh", 60)
    stated = f'[server]\ntls_certificate = "{cert}"\ntls_key = "{key}"'
    path.write_text(path.read_text().replace("[server]", stated))
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    async with (
        served(path, PYTHONPATH=looking_often(tmp_path)),
        httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trusting) as client,
    ):
        await eventually(client, {"authorization": "Bearer hg-master"}, 200)
        assert 2.9 * DAY_S < left_s(admin_port) < 3 * DAY_S
        shutil.copy(fresh, cert)
        await asyncio.sleep(20 * LOOK_S)
        assert shown(port) == shown(admin_port) < time.time() + 3 * DAY_S  # its key is not there yet
        assert left_s(admin_port) < 3 * DAY_S
        shutil.copy(its_key, key)
        await until(lambda: shown(port) == shown(admin_port) == dates_of(str(fresh))[0].ends_s)
        await until(lambda: left_s(admin_port) > 59 * DAY_S)
        assert (await client.get("/healthz")).status_code == 200


async def test_renewed_authorities_of_clients_are_taken_up_without_a_reload(tmp_path: Path) -> None:
    """On both ports, clients of a removed authority can neither connect nor resume a session. Open connections go on,
    and a file that can't be read changes nothing.
    """
    path, port, admin_port = write_config(tmp_path)
    cert, key = certificate(tmp_path, "server", 60)
    old, new = certificate(tmp_path, "old", 60, ca=True), certificate(tmp_path, "new", 60, ca=True)
    trusted = tmp_path / "trusted.pem"
    shutil.copy(old[0], trusted)
    stated = f'[server]\ntls_certificate = "{cert}"\ntls_key = "{key}"\ntls_client_ca = "{trusted}"'
    path.write_text(path.read_text().replace("[server]", stated))

    def client(pair: tuple[Path, Path]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # where a refusal is the handshake's own
        context.load_cert_chain(*pair)
        return context

    of_old, of_new = client(old), client(new)

    def admitting(context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> int:
        """How many of the two ports answer this client; the session is resumed on the data port."""
        answers = 0
        for place in (port, admin_port):
            resumed = session if place == port else None
            with (
                suppress(ssl.SSLError, ConnectionError),
                socket.create_connection(("127.0.0.1", place)) as sock,
                context.wrap_socket(sock, session=resumed) as wrapped,
            ):
                wrapped.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                answers += wrapped.recv(15) == b"HTTP/1.1 200 OK"
        return answers

    stays, url = httpx.Limits(keepalive_expiry=None), f"https://127.0.0.1:{port}"
    async with (
        served(path, PYTHONPATH=looking_often(tmp_path)),
        httpx.AsyncClient(base_url=url, verify=of_old, limits=stays) as open_one,
    ):
        await eventually(open_one, {"authorization": "Bearer hg-master"}, 200)
        with socket.create_connection(("127.0.0.1", port)) as sock, of_old.wrap_socket(sock) as wrapped:
            session = wrapped.session
        assert session is not None and admitting(of_old, session) == 2 and admitting(of_new) == 0
        trusted.write_text("rubbish")
        await asyncio.sleep(20 * LOOK_S)
        assert admitting(of_old) == 2 and admitting(of_new) == 0
        trusted.write_bytes(old[0].read_bytes() + new[0].read_bytes())
        await until(lambda: admitting(of_new) == 2)
        assert admitting(of_old) == 2
        shutil.copy(new[0], trusted)
        await until(lambda: admitting(of_old) == 0)
        assert admitting(of_new) == 2 and admitting(of_old, session) == 0
        assert (await open_one.get("/healthz")).status_code == 200


async def test_redis_is_shown_our_certificate(tmp_path: Path) -> None:
    """A Redis that requires a client certificate gets the one that `ssl_certfile` in its URL names."""
    cert, key = certificate(tmp_path, "both", 9, ca=True)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        "redis-server", "--port", "0", "--tls-port", str(port), "--tls-cert-file", str(cert),
        "--tls-key-file", str(key), "--tls-ca-cert-file", str(cert), "--bind", "127.0.0.1", "--save", "",
        "--dir", str(tmp_path), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        while b"Ready to accept" not in (line := await process.stdout.readline()):
            if not line:
                pytest.skip("this redis-server has no TLS")
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={cert}"
        for words, lets_in in ((f"&ssl_certfile={cert}&ssl_keyfile={key}", True), ("", False)):
            wire = RedisWire(url + words, timeout_s=PATIENCE_S)
            try:
                if lets_in:
                    assert await wire.ask("SET", "k", "v") == b"OK"
                else:
                    with pytest.raises(RedisAway):
                        await wire.ask("PING")
            finally:
                await wire.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
