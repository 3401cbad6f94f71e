"""API keys: callers are found by digest, and no key is ever shown."""

from __future__ import annotations

import dataclasses
import logging

import msgspec
import pytest

from gateway.config.types import Auth, KeyConfig, Secret, TenantConfig
from gateway.errors import CallerError, PolicyError, Unauthorized
from gateway.journal.record import KeyRecord
from gateway.keys import ANYONE, MASTER, Caller, Keyring, hash_key, new_key, rotated
from gateway.money.ledger import Account
from gateway.money.limits import Limit

NOW = 1_700_000_000.0
FILE_KEY = KeyConfig(
    name="search", key=Secret("hg-file-key"), tenant="t", models=["auto"], rpm=5, budget_usd=2.0, knobs=False,
    budget_period="day", explore=False,
)  # fmt: skip
AUTH = Auth(master_key=Secret("hg-master"), keys=[FILE_KEY], tenants=[TenantConfig(name="t", budget_usd=9.0)])


def who(keyring: Keyring, key: str, now: float = NOW) -> Caller:
    return keyring.identify(b"Bearer " + key.encode(), None, "10.0.0.9", now)


def test_a_file_key_brings_its_rights_budgets_and_limits() -> None:
    """A key of the file has everything that the request path needs of a caller."""
    caller = who(Keyring(AUTH), "hg-file-key")
    assert caller == Caller(
        "file:search", "search", "t", models=frozenset({"auto"}), knobs=False, explore=False,
        accounts=(Account("key:file:search", 2_000_000_000, "day"), Account("tenant:t", 9_000_000_000, "month")),
        limits=(Limit("key:file:search", 5, None),),
    )  # fmt: skip
    assert caller.may_use("auto") and not caller.may_use("small")


def test_a_stored_key_brings_its_own() -> None:
    """A key of the database has the same, and its expiry."""
    key, record = new_key("batch", NOW, tenant="t")
    told = {"models": ("auto",), "knobs": False, "explore": False, "budget_usd": 2.0, "budget_period": "week", "tpm": 9}
    record = msgspec.structs.replace(record, expires_s=NOW + 10, **told)
    assert who(Keyring(AUTH, lambda: [record]), key) == Caller(
        record.id, "batch", "t", models=frozenset({"auto"}), knobs=False, explore=False,
        accounts=(Account(f"key:{record.id}", 2_000_000_000, "week"), Account("tenant:t", 9_000_000_000, "month")),
        limits=(Limit(f"key:{record.id}", None, 9),), expires_s=NOW + 10,
    )  # fmt: skip


@pytest.mark.parametrize("header", [b"Bearer hg-master", b"bearer  hg-master ", b"BEARER hg-master"])
def test_the_master_key_may_do_everything(header: bytes) -> None:
    """The master key identifies an admin, in any letter case of the scheme."""
    assert Keyring(AUTH).identify(header, None, "10.0.0.9", NOW) is MASTER
    assert MASTER.may_use("anything")


def test_a_key_may_come_in_a_header_of_its_own() -> None:
    """A key in a header of its own is read, as Anthropic's and Azure's clients send it."""
    keyring = Keyring(AUTH)
    assert keyring.identify(None, b"hg-master", "10.0.0.9", NOW) is MASTER
    assert keyring.identify(b"Basic eDp5", b"hg-file-key", "10.0.0.9", NOW).name == "search"


@pytest.mark.parametrize(
    ("header", "why"),
    [(b"", "provide"), (b"Bearer", "provide"), (b"Bearer ", "provide"), (b"hg-master", "provide"),
     (b"Bearer hg-Master", "Incorrect"), (b"Bearer \xff", "Incorrect"), (None, "provide")],
)  # fmt: skip
def test_anything_else_is_refused(header: bytes | None, why: str) -> None:
    """An unknown key, half a header or a letter in another case is refused, with and without a master key."""
    for auth in (AUTH, Auth(keys=[FILE_KEY])):
        with pytest.raises(Unauthorized, match=why):
            Keyring(auth).identify(header, None, "127.0.0.1", NOW)


def test_without_any_key_this_machine_may_call_and_no_other() -> None:
    """A gateway without keys answers this machine whatever key the client sends, since SDKs insist on sending one."""
    keyring = Keyring(Auth())
    assert keyring.is_open
    assert keyring.identify(None, None, "127.0.0.1", NOW) is ANYONE
    assert keyring.identify(b"Bearer anything", None, "::1", NOW) is ANYONE
    for host in ("10.0.0.9", "", "localhost.evil.example", "0.0.0.0"):
        with pytest.raises(Unauthorized):
            keyring.identify(b"Bearer anything", None, host, NOW)


def test_a_rotated_key_opens_by_its_earlier_secret_until_the_grace_has_passed() -> None:
    """The earlier secret identifies the same key, so budgets, limits and usage go on; a shorter grace shortens one
    granted before.
    """
    first, record = new_key("app", NOW)
    record = msgspec.structs.replace(record, budget_usd=2.0, rpm=5)
    once = rotated(record, "hg-second", NOW, 100.0)
    keyring = Keyring(AUTH, lambda: [once])
    assert dataclasses.replace(who(keyring, "hg-second"), expires_s=NOW + 100) == who(keyring, first, NOW + 99)
    with pytest.raises(PolicyError, match="has expired"):
        who(keyring, first, NOW + 100)
    assert who(keyring, "hg-second", NOW + 1e9).key_id == record.id
    assert [one.expires_s for one in keyring.callers if one.key_id == record.id] == [None, NOW + 100]
    twice = rotated(once, "hg-third", NOW + 10, 20.0)
    assert [one.until_s for one in twice.earlier] == [NOW + 30, NOW + 30]
    assert [one.until_s for one in rotated(twice, "hg-fourth", NOW + 40, 0.0).earlier] == [NOW + 40]


def test_a_rotation_outlives_neither_the_key_nor_its_revocation() -> None:
    """An earlier secret doesn't work once its key has expired or is revoked."""
    first, record = new_key("app", NOW)
    short = rotated(msgspec.structs.replace(record, expires_s=NOW + 5), "hg-second", NOW, 100.0)
    gone = msgspec.structs.replace(rotated(record, "hg-second", NOW, 100.0), revoked_s=NOW)
    for held, later in ((short, NOW + 6), (gone, NOW + 1)):
        for secret in (first, "hg-second"):
            with pytest.raises(PolicyError):
                who(Keyring(AUTH, lambda: [held]), secret, later)
    with pytest.raises(CallerError, match="revoked"):
        rotated(gone, "hg-third", NOW, 100.0)
    long = rotated(msgspec.structs.replace(record, expires_s=NOW + 500), "hg-second", NOW, 100.0)
    keyring = Keyring(AUTH, lambda: [long])
    assert who(keyring, first, NOW + 99).name == who(keyring, "hg-second", NOW + 499).name == "app"
    with pytest.raises(PolicyError, match="has expired"):
        who(keyring, first, NOW + 100)


def test_one_key_closes_an_open_gateway_even_once_revoked() -> None:
    """Revoking the only key must not make the gateway open again."""
    _, record = new_key("k", NOW)
    for stored in (record, msgspec.structs.replace(record, revoked_s=NOW)):
        keyring = Keyring(Auth(), lambda: [stored])
        assert not keyring.is_open
        with pytest.raises(Unauthorized):
            keyring.identify(None, None, "127.0.0.1", NOW)


def test_a_reload_sees_new_keys_and_revoked_ones() -> None:
    """A reload applies new and revoked keys; when loading fails, the keys stay as they were."""
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
    """A key is refused from the moment of its expiry on."""
    key, record = new_key("k", NOW)
    keyring = Keyring(Auth(), lambda: [msgspec.structs.replace(record, expires_s=NOW + 10)])
    assert who(keyring, key, NOW + 9).name == "k"
    with pytest.raises(PolicyError, match="expired"):
        who(keyring, key, NOW + 10)


def test_a_new_key_is_stored_by_digest_only() -> None:
    """Two new keys differ, have the same prefix, and are nowhere in their records."""
    (one, record), (two, _) = new_key("a", NOW), new_key("a", NOW)
    assert one != two and one.startswith("hg-") and len(one) >= 32
    assert record.key_hash == hash_key(one) and one not in repr(record)
    assert one.startswith(record.prefix) and len(record.prefix) < 10


def test_no_repr_and_no_log_shows_a_key(caplog: pytest.LogCaptureFixture) -> None:
    """No `repr` and no refusal contains a key."""
    keyring = Keyring(AUTH)
    with caplog.at_level(logging.DEBUG), pytest.raises(Unauthorized) as refused:
        who(keyring, "hg-wrong-key")
    shown = [repr(keyring), repr(AUTH), repr(who(keyring, "hg-file-key")), repr(refused.value), caplog.text]
    shown += [repr(value) for value in vars(keyring).values()]
    assert not any(key in text for text in shown for key in ("hg-file-key", "hg-master", "hg-wrong-key"))
