"""Virtual keys: made, listed, changed, revoked. The plaintext is in one answer and nowhere else."""

from __future__ import annotations

import time

import msgspec
from fastapi import APIRouter, Request

from gateway.admin.desk import Desk
from gateway.admin.guard import Actor
from gateway.admin.views import Key, KeyChange, MadeKey, NewKey, key_view
from gateway.errors import CallerError, NotFound
from gateway.journal.record import KeyRecord
from gateway.keys import new_key

router = APIRouter(prefix="/admin/keys")


@router.get("")
def list_keys(request: Request, actor: Actor, revoked: bool = False) -> list[Key]:
    """In the order they were made; revoked ones only when asked for."""
    return [key_view(record) for record in _desk(request).store.keys(revoked=revoked)]


@router.post("", status_code=201)
def make_key(request: Request, actor: Actor, wanted: NewKey) -> MadeKey:
    """409 where a live key has this name."""
    desk = _desk(request)
    plaintext, record = new_key(wanted.name, time.time(), tenant=wanted.tenant)
    record = _changed(record, wanted)
    try:
        desk.store.add_key(record, actor)
    except ValueError as fault:
        raise CallerError(str(fault), status=409, code="key_exists", param="name") from None
    desk.publish_keys()
    return MadeKey(key=plaintext, record=key_view(record))


@router.get("/{id}")
def get_key(request: Request, actor: Actor, id: str) -> Key:
    """One key, revoked or not."""
    return key_view(_find(_desk(request), id))


@router.patch("/{id}")
def change_key(request: Request, actor: Actor, id: str, change: KeyChange) -> Key:
    """Changes what is named; a limit set to null is lifted."""
    desk = _desk(request)
    record = _changed(_find(desk, id), change)
    desk.store.replace_key(record, actor)
    desk.publish_keys()
    return key_view(record)


@router.delete("/{id}")
def revoke_key(request: Request, actor: Actor, id: str) -> Key:
    """The workers refuse it within a second. Its spend stays on record."""
    desk = _desk(request)
    record = _find(desk, id)
    if record.revoked_s is None:
        record = msgspec.structs.replace(record, revoked_s=time.time())
        desk.store.replace_key(record, actor)
        desk.publish_keys()
    return key_view(record)


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _find(desk: Desk, id: str) -> KeyRecord:
    record = desk.store.key(id)
    if record is None:
        raise NotFound(f"no key has the id {id!r}")
    return record


def _changed(record: KeyRecord, change: KeyChange) -> KeyRecord:
    named = change.model_dump(exclude_unset=True, exclude={"name", "tenant"})
    if "models" in named:
        named["models"] = tuple(named["models"] or ())
    return msgspec.structs.replace(record, **named)
