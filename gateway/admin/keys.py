"""Virtual keys: creating, listing, changing, rotating and revoking them. A key's plaintext is in one response only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import cast

import msgspec
from fastapi import APIRouter

from gateway.admin.actor import Actor
from gateway.admin.changes import Conflict, database
from gateway.admin.guard import Admin, Services, Viewer
from gateway.admin.services import AdminServices
from gateway.admin.shapes.access import Key, KeyChange, KeyLimits, KeyRotation, KeyRow, MadeKey, NewKey, Period
from gateway.admin.tenants import Spending, spent_of
from gateway.errors import CallerError, NotFound
from gateway.journal.record import KeyRecord
from gateway.key_check import faults
from gateway.keys import new_key, new_secret, revoked, rotated

router = APIRouter(prefix="/admin/keys", tags=["keys"])


def key_rows(services: AdminServices, revoked: bool = False) -> list[KeyRow]:
    """Keys created through this API, oldest first, then those of the configuration file, which this API can't change.
    """
    return key_page(services, sys.maxsize, revoked=revoked).rows


@dataclass(frozen=True, slots=True)
class KeyPage:
    """A page of the keys that a search finds, and how many it finds in all."""

    rows: list[KeyRow]
    found: int


def key_page(
    services: AdminServices, count: int, *, start: int = 0, search: str = "", revoked: bool = False
) -> KeyPage:
    """`count` keys from the index `start` on, in the order of `key_rows`, of those whose name, tenant, prefix or id
    contains `search`.
    """
    wanted = search.lower()
    with database():
        held = services.store.keys(revoked=revoked)
        made = [one for one in held if _has(wanted, one.name, one.tenant, one.prefix, one.id)]
        in_file = [place for place, one in enumerate(services.config.auth.keys) if _has(wanted, one.name, one.tenant)]
        spending = Spending(services)
        rows = [_made_row(one, spending) for one in made[start : start + count]]
        first = max(0, start - len(made))
        rows += [_file_row(services, place, spending) for place in in_file[first : first + count - len(rows)]]
    return KeyPage(rows, len(made) + len(in_file))


def key_row(services: AdminServices, id: str) -> KeyRow:
    """One key that was created through this API. Raises NotFound."""
    with database():
        return _made_row(_find(services, id), Spending(services))


def make_key(services: AdminServices, who: Actor, wanted: NewKey) -> MadeKey:
    """Create a key. Raises CallerError: 409 where a live key has this name, 422 where a field is invalid."""
    plaintext, record = new_key(wanted.name, time.time(), tenant=wanted.tenant)
    record = _changed(services, record, wanted)
    with database():
        try:
            services.store.add_key(record, who.name)
        except ValueError as fault:
            raise CallerError(str(fault), status=409, code="key_exists", param="name") from None
        services.publish_or_wait()
    return MadeKey(key=plaintext, record=_view(record))


def change_key(services: AdminServices, who: Actor, id: str, change: KeyChange) -> Key:
    """Change the fields that are given; a limit set to None is removed.

    Raises NotFound, CallerError, or Conflict where another version is in force.
    """

    def changed(record: KeyRecord) -> KeyRecord:
        if change.version and change.version != version_of(record):
            raise Conflict(f"key {record.name} was changed meanwhile: read it again before you change it")
        return _changed(services, record, change)

    return _view(_put(services, who, id, changed))


def version_of(record: KeyRecord) -> int:
    """A number that changes with any field of the record: the first 48 bits of its hash."""
    return int.from_bytes(sha256(msgspec.json.encode(record)).digest()[:6])


def rotate_key(services: AdminServices, who: Actor, id: str, wanted: KeyRotation) -> MadeKey:
    """Give a key a new secret; its budget, limits and spend stay. Raises CallerError (409) where it is revoked."""
    secret, now = new_secret(), time.time()
    record = _put(services, who, id, lambda record: rotated(record, secret, now, wanted.grace_s))
    return MadeKey(key=secret, record=_view(record))


def revoke_key(services: AdminServices, who: Actor, id: str) -> Key:
    """Revoke a key: the workers refuse it within two seconds. Its spend stays on record."""
    return _view(_put(services, who, id, revoked))


@router.get("")
def get_keys(services: Services, who: Viewer, revoked: bool = False) -> list[KeyRow]:
    """List virtual keys; revoked ones only on request."""
    return key_rows(services, revoked)


@router.post("", status_code=201)
def post_key(services: Services, who: Admin, wanted: NewKey) -> MadeKey:
    """Create a virtual key; 409 if a live key has this name."""
    return make_key(services, who, wanted)


@router.get("/{id}")
def get_key(services: Services, who: Viewer, id: str) -> Key:
    """One key, revoked or not."""
    return _view(_find(services, id))


@router.patch("/{id}")
def patch_key(services: Services, who: Admin, id: str, change: KeyChange) -> Key:
    """Change the fields that are given; null lifts a limit."""
    return change_key(services, who, id, change)


@router.post("/{id}/rotate")
def post_rotation(services: Services, who: Admin, id: str, wanted: KeyRotation) -> MadeKey:
    """Give a key a new secret. Earlier secrets stay valid until the grace period ends."""
    return rotate_key(services, who, id, wanted)


@router.delete("/{id}")
def delete_key(services: Services, who: Admin, id: str) -> Key:
    """Revoke a key: it stops working within two seconds."""
    return revoke_key(services, who, id)


def _has(search: str, *texts: str) -> bool:
    return any(search in text.lower() for text in texts)


def _find(services: AdminServices, id: str) -> KeyRecord:
    return _known(services.store.key(id), id)


def _put(services: AdminServices, who: Actor, id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
    with database():
        record = _known(services.store.change_key(id, change, who.name), id)
        services.publish_or_wait()
    return record


def _known(record: KeyRecord | None, id: str) -> KeyRecord:
    if record is None:
        raise NotFound(f"no key has the id {id!r}")
    return record


def _changed(services: AdminServices, record: KeyRecord, change: KeyLimits) -> KeyRecord:
    """The record with the given fields changed. Raises CallerError where a new value is invalid."""
    named = change.model_dump(exclude_unset=True, exclude={"name", "tenant", "version"})
    if "models" in named:
        named["models"] = tuple(named["models"] or ())
    changed = msgspec.structs.replace(record, **named)
    for field, why in faults(changed, services.current):
        if field in change.model_fields_set:
            raise CallerError(f"{field}: {why}", status=422, code="unsound", param=field)
    return changed


def _view(record: KeyRecord) -> Key:
    """The key without its hash."""
    return Key.model_validate({name: getattr(record, name) for name in Key.model_fields})


def _made_row(record: KeyRecord, spending: Spending) -> KeyRow:
    period = cast(Period, record.budget_period)
    return KeyRow(
        id=record.id, name=record.name, prefix=record.prefix, tenant=record.tenant, source="here",
        models=list(record.models), rpm=record.rpm, tpm=record.tpm, knobs=record.knobs, explore=record.explore,
        created_s=record.created_s, expires_s=record.expires_s, revoked_s=record.revoked_s,
        earlier_until_s=record.earlier_until_s,
        spent=spent_of(spending, "key_id", record.id, period, record.budget_usd), version=version_of(record),
    )  # fmt: skip


def _file_row(services: AdminServices, place: int, spending: Spending) -> KeyRow:
    key = services.config.auth.keys[place]
    id = f"file:{key.name}"
    return KeyRow(
        id=id, name=key.name, prefix="", tenant=key.tenant, source="file", models=key.models, rpm=key.rpm,
        tpm=key.tpm, knobs=key.knobs, explore=key.explore, created_s=None, expires_s=None, revoked_s=None,
        earlier_until_s=None,
        spent=spent_of(spending, "key_id", id, key.budget_period, key.budget_usd), version=0,
    )  # fmt: skip
