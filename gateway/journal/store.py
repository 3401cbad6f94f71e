"""Queries and writes of the journal's database. Every method blocks: call it off the event loop.

Every query is answered from an index or from counters, never by reading all decisions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from gateway.journal.chain import chain_query, record_of
from gateway.journal.record import (
    AuditRecord,
    DecisionRecord,
    KeyRecord,
    ResponseRecord,
    new_id,
)
from gateway.journal.schema import check_schema, migrate, open_engine, take_lock
from gateway.journal.tables import (
    audit,
    decisions,
    feedback,
    keys,
    responses,
    router_versions,
    settings,
    spend,
    stats,
)
from gateway.journal.upsert import Row, clean, put_row
from gateway.journal.write import write_audit

_KEYS_LOCK, _VERSIONS_LOCK = 0x6B657973, 0x72747273
"""PostgreSQL advisory locks, for adding keys and for changing the states of router versions."""
_decode_decision = msgspec.json.Decoder(DecisionRecord, strict=False).decode
_decode_key = msgspec.json.Decoder(KeyRecord).decode


@dataclass(frozen=True, slots=True)
class RouterVersion:
    """One trained router and its state."""

    name: str
    version: str
    time_s: float
    state: str
    """candidate | shadow | canary | live | retired"""
    artifact: str = ""
    checksum: str = ""
    metrics: dict[str, object] | None = None


class SettingConflict(Exception):
    """The latest version of the setting is not the one that the writer expected."""


class VersionConflict(Exception):
    """The live version of the router is not the one that the writer expected. Its argument is the live version, or
    empty where none is.
    """


def open_store(url: str) -> Store:
    """The store at `url`. An SQLite file is migrated here; a server must be migrated before. Raises ConfigError."""
    if url.startswith("sqlite"):
        migrate(url)
    engine = open_engine(url)
    check_schema(engine)
    return Store(engine)


class Store:
    """Reads the journal, and writes what the control plane decides: keys, settings, versions, the audit log."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    # decisions and their feedback

    def decision(self, id: str, tenant: str | None = None) -> DecisionRecord | None:
        """The decision with this decision, response or request id (of several the latest), of `tenant`, or of any where
        that is None.
        """
        cleaned = clean(id)
        if not cleaned:  # many records have no response id
            return None
        for column in (decisions.c.id, decisions.c.response_id, decisions.c.request_id):
            query = sa.select(decisions.c.payload).where(column == cleaned).order_by(decisions.c.time_s.desc())
            if tenant is not None:
                query = query.where(decisions.c.tenant == clean(tenant))
            if found := self._scalar(query.limit(1)):
                return _decode_decision(found)
        return None

    def feedback(
        self, *, decision_id: str = "", before: tuple[float, str] | None = None, limit: int = 100
    ) -> list[Row]:
        """Feedback on one decision or on all, newest first. `before`: (time_s, id) of the last one of the page before.
        """
        query = sa.select(feedback).order_by(feedback.c.time_s.desc(), feedback.c.id.desc()).limit(limit)
        if decision_id:
            query = query.where(feedback.c.decision_id == decision_id)
        if before is not None:
            query = query.where(sa.tuple_(feedback.c.time_s, feedback.c.id) < sa.tuple_(*before))
        return self._rows(query)

    def response(self, id: str, tenant: str) -> ResponseRecord | None:
        """A stored response of this tenant; its `deleted` is True where it was deleted."""
        rows = self._rows(
            sa.select(responses).where(responses.c.id == clean(id), responses.c.tenant == tenant)
        )
        return record_of(rows[0]) if rows else None

    def response_chain(self, id: str, tenant: str) -> dict[str, ResponseRecord]:
        """The response and all previous ones of its chain, of this tenant, by id, including deleted ones."""
        return {row["id"]: record_of(row) for row in self._rows(chain_query(clean(id), tenant))}

    # counters

    def spend_since(self, since_s: float) -> list[Row]:
        """Cost and requests per tenant, key and route, from the hour of `since_s` on."""
        totals = [sa.func.sum(spend.c[name]).label(name) for name in ("requests", "cost_nanousd")]
        account = (spend.c.tenant, spend.c.key_id, spend.c.route)
        query = sa.select(*account, *totals).where(spend.c.hour_s >= int(since_s) // 3600 * 3600)
        names = "tenant", "key_id", "route", "requests", "cost_nanousd"
        with self.engine.connect() as connection:
            found = connection.execute(query.group_by(*account).order_by(*account))
            return [dict(zip(names, (*row[:3], int(row[3]), int(row[4])), strict=True)) for row in found]

    def spend_by(self, name: str, since_s: float) -> dict[str, tuple[int, int]]:
        """Requests and nano-dollars by `name` (tenant, key_id or route), from the hour of `since_s` on."""
        totals = sa.func.sum(spend.c.requests), sa.func.sum(spend.c.cost_nanousd)
        query = sa.select(spend.c[name], *totals).where(spend.c.hour_s >= int(since_s) // 3600 * 3600)
        with self.engine.connect() as connection:
            found = connection.execute(query.group_by(spend.c[name])).all()
        return {account: (int(requests), int(cost_nanousd)) for account, requests, cost_nanousd in found}

    def stats(self, since_s: float, until_s: float, *, route: str = "", step_s: int = 60) -> list[Row]:
        """Counters per step, route and model, oldest first. `step_s` must be a multiple of 60."""
        start = (stats.c.minute_s - stats.c.minute_s % step_s).label("time_s")
        counters = [column for column in stats.c if not column.primary_key]
        among = [stats.c.minute_s >= int(since_s), stats.c.minute_s < int(until_s)]
        if route:
            among.append(stats.c.route == route)
        key = (start, stats.c.route, stats.c.model)
        if step_s == 60:  # one row of the table each
            return self._rows(sa.select(*key, *counters).where(*among).order_by(start))
        summed = sa.select(*key, *(sa.func.sum(column).label(column.name) for column in counters)).where(*among)
        return [_whole_numbers(row) for row in self._rows(summed.group_by(*key).order_by(start))]

    # keys

    def add_key(self, key: KeyRecord, actor: str) -> None:
        """Store a new key. Raises ValueError where a key that isn't revoked has the same name."""
        with self.engine.begin() as connection:
            take_lock(connection, _KEYS_LOCK)
            same = sa.select(keys.c.id).where(keys.c.name == key.name, keys.c.revoked_s.is_(None))
            if connection.execute(same).first() is not None:
                raise ValueError(f"a key named {key.name!r} exists")
            _put_key(connection, key)
            _note(connection, actor, "key.create", key.id, {"name": key.name, "tenant": key.tenant})

    def change_key(self, id: str, change: Callable[[KeyRecord], KeyRecord], actor: str) -> KeyRecord | None:
        """Store the key as `change` returns it (limits, models, revocation); None where there is no such key.

        Of two concurrent changes neither undoes the other: `change` is called again with the result of the first.
        """
        while True:
            found = self._scalar(sa.select(keys.c.payload).where(keys.c.id == clean(id)))
            if found is None:
                return None
            before = _decode_key(found)
            key = change(before)
            if key == before or self._swap_key(found, before, key, actor):
                return key

    def _swap_key(self, payload: str, before: KeyRecord, key: KeyRecord, actor: str) -> bool:
        """Replace the key's payload; False, and nothing is stored, where the stored payload isn't the expected one."""
        values = {
            "key_hash": key.key_hash, "revoked_s": key.revoked_s, "payload": msgspec.json.encode(key).decode(),
        }  # fmt: skip
        update = sa.update(keys).where(keys.c.id == key.id, keys.c.payload == payload)
        with self.engine.begin() as connection:
            if not connection.execute(update.values(**values)).rowcount:
                return False
            detail: dict[str, object] = {"name": key.name}
            if key.key_hash != before.key_hash:
                detail["earlier_until_s"] = key.earlier_until_s
            _note(connection, actor, _key_action(before, key), key.id, detail)
        return True

    def keys(self, *, revoked: bool = True) -> list[KeyRecord]:
        """All keys, oldest first; without revoked ones where `revoked` is False."""
        query = sa.select(keys.c.payload).order_by(keys.c.created_s, keys.c.id)
        if not revoked:
            query = query.where(keys.c.revoked_s.is_(None))
        with self.engine.connect() as connection:
            return [_decode_key(payload) for payload in connection.execute(query).scalars()]

    def key(self, id: str) -> KeyRecord | None:
        """The key of this id; None where there is none."""
        found = self._scalar(sa.select(keys.c.payload).where(keys.c.id == clean(id)))
        return _decode_key(found) if found else None

    # settings and router versions

    def save_setting(
        self, name: str, value: object, actor: str, *, expected: int | None = None,
        detail: dict[str, object] | None = None,
    ) -> int:
        """Store a new version of a setting, and return its number, from 1. Older versions are kept.

        Raises SettingConflict where `expected` is given and is not the latest version.
        """
        with self.engine.begin() as connection:
            latest = sa.select(sa.func.max(settings.c.version)).where(settings.c.name == name)
            version = (connection.execute(latest).scalar() or 0) + 1
            if expected is not None and version != expected + 1:
                raise SettingConflict(name)
            text = msgspec.json.encode(value).decode()
            row = {"name": name, "version": version, "time_s": time.time(), "actor": actor, "value": text}
            try:
                connection.execute(sa.insert(settings), row)
            except sa.exc.IntegrityError:
                raise SettingConflict(name) from None
            _note(connection, actor, "setting.save", name, {"version": version, **(detail or {})})
        return version

    def latest_settings(self) -> dict[str, Any]:
        """The latest value of every setting."""
        newest = sa.select(settings.c.name, sa.func.max(settings.c.version).label("version")).group_by(settings.c.name)
        last = newest.subquery()
        query = sa.select(settings.c.name, settings.c.value).join(
            last, sa.and_(settings.c.name == last.c.name, settings.c.version == last.c.version)
        )
        return {row["name"]: msgspec.json.decode(row["value"]) for row in self._rows(query)}

    def setting(self, name: str, version: int | None = None) -> Any:  # whatever JSON the caller stored
        """The latest value of a setting, or that of a version; None where there is none."""
        query = sa.select(settings.c.value).where(settings.c.name == name).order_by(settings.c.version.desc())
        if version is not None:
            query = query.where(settings.c.version == version)
        found = self._scalar(query.limit(1))
        return msgspec.json.decode(found) if found else None

    def setting_numbers(self, prefix: str) -> dict[str, int]:
        """The latest version of every setting whose name begins with `prefix`, including removed ones."""
        newest = sa.select(settings.c.name, sa.func.max(settings.c.version).label("version")).group_by(settings.c.name)
        rows = self._rows(newest.where(settings.c.name.startswith(prefix, autoescape=True)))
        return {row["name"]: int(row["version"]) for row in rows}

    def setting_versions(self, name: str, *, limit: int | None = None) -> list[Row]:
        """The versions of a setting, newest first."""
        query = sa.select(settings).where(settings.c.name == name).order_by(settings.c.version.desc()).limit(limit)
        return [{**row, "value": msgspec.json.decode(row["value"])} for row in self._rows(query)]

    def save_router_version(self, version: RouterVersion, actor: str, *, instead: str | None = None) -> None:
        """Add a version or change its state. A version that becomes live retires the one that was live before.

        Raises VersionConflict where `instead` is given and is not the live version (empty: none is live).
        """
        with self.engine.begin() as connection:
            take_lock(connection, _VERSIONS_LOCK)
            if instead is not None and (live := _live(connection, version.name)) != instead:
                raise VersionConflict(live)
            if version.state == "live":
                connection.execute(
                    sa.update(router_versions)
                    .where(router_versions.c.name == version.name, router_versions.c.state == "live")
                    .values(state="retired")
                )
            metrics = msgspec.json.encode(version.metrics or {}).decode()
            row = {"name": version.name, "version": version.version, "time_s": version.time_s}
            row |= {"state": version.state, "artifact": version.artifact, "checksum": version.checksum}
            put_row(connection, router_versions, {**row, "metrics": metrics})
            target = f"{version.name}@{version.version}"
            _note(connection, actor, f"router.{version.state}", target, {"artifact": version.artifact})

    def router_versions(self, name: str = "") -> list[RouterVersion]:
        """The versions of one router or of all, newest first."""
        query = sa.select(router_versions).order_by(router_versions.c.time_s.desc())
        if name:
            query = query.where(router_versions.c.name == name)
        return [
            RouterVersion(**{**row, "metrics": msgspec.json.decode(row["metrics"])})
            for row in self._rows(query)
        ]

    # audit

    def note(
        self, actor: str, action: str, target: str = "", detail: dict[str, object] | None = None
    ) -> None:
        """Add an entry to the audit log."""
        with self.engine.begin() as connection:
            _note(connection, actor, action, target, detail or {})

    def audit_log(
        self, *, before: tuple[float, str] | None = None, action: str = "", limit: int = 100
    ) -> list[Row]:
        """Entries of one action or of all, newest first. `before`: (time_s, id) of the last one of the page before."""
        query = sa.select(audit).order_by(audit.c.time_s.desc(), audit.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(sa.tuple_(audit.c.time_s, audit.c.id) < sa.tuple_(*before))
        if action:
            query = query.where(audit.c.action == action)
        return [{**row, "detail": msgspec.json.decode(row["detail"])} for row in self._rows(query)]

    def _scalar(self, query: sa.Select[Any]) -> Any:
        with self.engine.connect() as connection:
            return connection.execute(query).scalar_one_or_none()

    def _rows(self, query: sa.Select[Any]) -> list[Row]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]


def _whole_numbers(row: Row) -> Row:
    """The row with sums as int, which are Decimal in PostgreSQL."""
    return {name: value if isinstance(value, str) else int(value) for name, value in row.items()}


def _key_action(before: KeyRecord, key: KeyRecord) -> str:
    if key.revoked_s is not None and before.revoked_s is None:
        return "key.revoke"
    return "key.change" if key.key_hash == before.key_hash else "key.rotate"


def _live(connection: sa.Connection, name: str) -> str:
    """The live version of a router; empty where none is."""
    mine = router_versions.c.name == name, router_versions.c.state == "live"
    return connection.execute(sa.select(router_versions.c.version).where(*mine)).scalar() or ""


def _put_key(connection: sa.Connection, key: KeyRecord) -> None:
    row = {
        name: getattr(key, name) for name in ("id", "key_hash", "name", "tenant", "created_s", "revoked_s")
    }
    put_row(connection, keys, {**row, "payload": msgspec.json.encode(key).decode()})


def _note(connection: sa.Connection, actor: str, action: str, target: str, detail: dict[str, object]) -> None:
    entry = AuditRecord(
        id=new_id("aud"), time_s=time.time(), actor=actor, action=action, target=target, detail=detail
    )
    write_audit(connection, [entry])
