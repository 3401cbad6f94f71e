"""This machine's own clients are told from all others."""

from __future__ import annotations

import pytest

from gateway.loopback import is_loopback, names_loopback


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True),
     ("::ffff:10.0.0.1", False), ("192.168.0.1", False), ("localhost", False), ("", False)],
)  # fmt: skip
def test_loopback_is_told_from_other_addresses(host: str, is_ours: bool) -> None:
    """Loopback addresses are recognised; of names, which are not resolved, only `localhost` is."""
    assert is_loopback(host) is is_ours
    assert names_loopback(host) is (is_ours or host == "localhost")
