"""A server on a real socket that speaks Redis 8's commands, for the tests of vector sets."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.ports import free_port


@pytest.fixture(scope="module")
def redis8() -> Iterator[str]:
    """The server's URL; skipped where fakeredis with its extras lua and vectorset isn't installed."""
    fakeredis = pytest.importorskip("fakeredis")
    pytest.importorskip("jsonpath_ng")
    pytest.importorskip("lupa")
    port = free_port()
    server = fakeredis.TcpFakeServer(("127.0.0.1", port), server_type="redis", server_version=(8, 0))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{port}/0"
    server.shutdown()
    server.server_close()
