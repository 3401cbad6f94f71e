"""Keys: who calls, found by digest, never shown."""

from __future__ import annotations

import logging

import msgspec
import pytest

from gateway.config import Auth, KeyConfig, Secret, TenantConfig
from gateway.errors import PolicyError, Unauthorized
from gateway.journal.record import KeyRecord
from gateway.keys import ANYONE, MASTER, Caller, Keyring, hash_key, is_loopback, new_key
from gateway.ledger import Account
from gateway.limits import Limit

NOW = 1_700_000_000.0
FILE_KEY = KeyConfig(
    name="search", key=Secret("hg-file-key"), tenant="t", models=["auto"], rpm=5, budget_usd=2.0, knobs=False,
    budget_period="day",
)  # fmt: skip
AUTH = Auth(master_key=Secret("hg-master"), keys=[FILE_KEY], tenants=[TenantConfig(name="t", budget_usd=9.0)])


def who(keyring: Keyring, key: str, now: float = NOW) -> Caller:
    return keyring.identify(b"Bearer " + key.encode(), None, "10.0.0.9", now)


def test_a_file_key_brings_its_rights_budgets_and_limits() -> None:
    """All that the request path asks of a caller, made once at start."""
    caller = who(Keyring(AUTH), "hg-file-key")
    assert (caller.key_id, caller.tenant, caller.knobs, caller.admin) == ("file:search", "t", False, False)
    assert caller.may_use("auto") and not caller.may_use("small")
    assert caller.accounts == (
        Account("key:file:search", 2_000_000_000, "day"),
        Account("tenant:t", 9_000_000_000, "month"),
    )
    assert caller.limits == (Limit("key:file:search", 5, None),)


@pytest.mark.parametrize("header", [b"Bearer hg-master", b"bearer  hg-master ", b"BEARER hg-master"])
def test_the_master_key_may_do_everything(header: bytes) -> None:
    """However its scheme is written."""
    assert Keyring(AUTH).identify(header, None, "10.0.0.9", NOW) is MASTER
    assert MASTER.may_use("anything")


def test_a_key_may_come_in_a_header_of_its_own() -> None:
    """As Anthropic's and Azure's clients send it."""
    keyring = Keyring(AUTH)
    assert keyring.identify(None, b"hg-master", "10.0.0.9", NOW) is MASTER
    assert keyring.identify(b"Basic eDp5", b"hg-file-key", "10.0.0.9", NOW).name == "search"


@pytest.mark.parametrize(
    "header", [b"", b"Bearer", b"Bearer ", b"hg-master", b"Bearer hg-Master", b"Bearer \xff"]
)
def test_anything_else_is_refused(header: bytes) -> None:
    """An unknown key, half a header, another case of a letter."""
    with pytest.raises(Unauthorized):
        Keyring(AUTH).identify(header, None, "127.0.0.1", NOW)
    with pytest.raises(Unauthorized):
        Keyring(AUTH).identify(None, None, "127.0.0.1", NOW)


def test_without_any_key_this_machine_may_call_and_no_other() -> None:
    """Whatever key its client sends, since SDKs insist on sending one."""
    keyring = Keyring(Auth())
    assert keyring.is_open
    assert keyring.identify(None, None, "127.0.0.1", NOW) is ANYONE
    assert keyring.identify(b"Bearer anything", None, "::1", NOW) is ANYONE
    for host in ("10.0.0.9", "", "localhost.evil.example", "0.0.0.0"):
        with pytest.raises(Unauthorized):
            keyring.identify(b"Bearer anything", None, host, NOW)


def test_one_key_closes_an_open_gateway_even_once_revoked() -> None:
    """Making a key means asking for keys; revoking the only one must not open the door again."""
    _, record = new_key("k", NOW)
    for stored in (record, msgspec.structs.replace(record, revoked_s=NOW)):
        keyring = Keyring(Auth(), lambda stored=stored: [stored])
        assert not keyring.is_open
        with pytest.raises(Unauthorized):
            keyring.identify(None, None, "127.0.0.1", NOW)


def test_a_reload_sees_new_keys_and_revoked_ones() -> None:
    """Without a restart; a loader that fails leaves the keys as they were."""
    stored: list[KeyRecord] = []
    keyring = Keyring(AUTH, lambda: list(stored))
    key, record = new_key("batch", NOW, tenant="t")
    with pytest.raises(Unauthorized):
        who(keyring, key)
    stored.append(msgspec.structs.replace(record, tpm=100))
    keyring.reload()
    assert who(keyring, key).tenant == "t"
    assert who(keyring, key).limits == (Limit(f"key:{record.id}", None, 100),)
    stored[0] = msgspec.structs.replace(record, revoked_s=NOW)
    keyring.reload()
    with pytest.raises(PolicyError, match="disabled") as refused:
        who(keyring, key)
    assert refused.value.status == 401
    stored[0] = None  # type: ignore[call-overload]
    with pytest.raises(AttributeError):
        keyring.reload()
    assert who(keyring, "hg-file-key").name == "search"


def test_a_key_expires() -> None:
    """From its last moment on."""
    key, record = new_key("k", NOW)
    keyring = Keyring(Auth(), lambda: [msgspec.structs.replace(record, expires_s=NOW + 10)])
    assert who(keyring, key, NOW + 9).name == "k"
    with pytest.raises(PolicyError, match="expired"):
        who(keyring, key, NOW + 10)


def test_a_new_key_is_stored_by_digest_only() -> None:
    """Two keys differ, begin alike, and are nowhere in their records."""
    (one, record), (two, _) = new_key("a", NOW), new_key("a", NOW)
    assert one != two and one.startswith("hg-") and len(one) >= 32
    assert record.key_hash == hash_key(one) and one not in repr(record)
    assert one.startswith(record.prefix) and len(record.prefix) < 10


def test_no_repr_and_no_log_shows_a_key(caplog: pytest.LogCaptureFixture) -> None:
    """Of whatever holds keys, and of what a refusal says."""
    keyring = Keyring(AUTH)
    with caplog.at_level(logging.DEBUG), pytest.raises(Unauthorized) as refused:
        who(keyring, "hg-wrong-key")
    shown = [repr(keyring), repr(AUTH), repr(who(keyring, "hg-file-key")), repr(refused.value), caplog.text]
    shown += [repr(value) for value in vars(keyring).values()]
    assert not any(key in text for text in shown for key in ("hg-file-key", "hg-master", "hg-wrong-key"))


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True),
     ("::ffff:10.0.0.1", False), ("192.168.0.1", False), ("localhost", False), ("", False)],
)  # fmt: skip
def test_loopback_is_told_from_other_addresses(host: str, is_ours: bool) -> None:
    """By address; names aren't looked up."""
    assert is_loopback(host) is is_ours
