"""Changing a setting: it is checked as configuration, stored as a new version, audited, and published to the workers.

Every change names the version that its author saw. Where another version is in force by now, nothing is changed, and
the error says who made that version. A change is stored before it is published, and is published atomically.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from gateway.admin.actor import Actor
from gateway.admin.services import AdminServices, overlay_of
from gateway.admin.shapes.common import Applied, SettingVersion
from gateway.config.overlay import overlaid, read_secrets
from gateway.errors import CallerError, HeadgateError, NotFound
from gateway.journal.store import SettingConflict

Value = dict[str, Any]


class Conflict(HeadgateError):
    """The version that a change was based on is not the one in force."""

    status = 409
    kind = "conflict"
    code = "conflict"

    def __init__(self, message: str, current: SettingVersion | None = None) -> None:
        super().__init__(message)
        self.current = current
        """The version in force."""


class DatabaseAway(HeadgateError):
    """The database can't be reached."""

    status = 503
    code = "journal_unavailable"

    def __init__(self, message: str = "the database is away, so nothing was changed; try again in a moment") -> None:
        super().__init__(message, retry_after_s=1.0)


@contextmanager
def database() -> Iterator[None]:
    """Turn errors of the database into DatabaseAway, except those about values that it can't store."""
    try:
        yield
    except sa.exc.DataError:
        raise
    except sa.exc.SQLAlchemyError as fault:
        raise DatabaseAway() from fault


def setting(services: AdminServices, name: str) -> SettingVersion:
    """The version in force; version 0 where the setting was never set."""
    rows = services.store.setting_versions(name, limit=1)
    return SettingVersion(**rows[0]) if rows else SettingVersion(
        name=name, version=0, time_s=0.0, actor="", value=None
    )  # fmt: skip


def history(services: AdminServices, name: str) -> list[SettingVersion]:
    """The fifty latest versions of a setting, newest first."""
    return [SettingVersion(**row) for row in services.store.setting_versions(name, limit=50)]


def change(
    services: AdminServices, who: Actor, name: str, value: Value | None, version: int, *, why: str = "",
    checked: bool = True
) -> Applied:
    """Put a value into force; with None, what the configuration file says is in force again.

    `version` is the version that the author saw. Raises Conflict, CallerError or DatabaseAway.
    """
    with database():
        current = setting(services, name)
        if current.version != version:
            raise _conflict(current)
        if checked:
            refuse_unsound(services, name, value)
        detail: dict[str, Any] = {"before": _audited(current.value), "after": _audited(value)}
        if why:
            detail["why"] = why
        try:
            number = services.store.save_setting(name, value, who.name, expected=version, detail=detail)
        except SettingConflict:
            raise _conflict(setting(services, name)) from None
        services.publish_or_wait()
    workers, confirmed = services.confirm()
    stored = SettingVersion(name=name, version=number, time_s=time.time(), actor=who.name, value=value)
    return Applied(setting=stored, workers=workers, confirmed=confirmed)


def remove(services: AdminServices, who: Actor, name: str, version: int) -> Applied:
    """Put what the configuration file says into force again. Raises NotFound where nothing was changed here."""
    with database():
        if services.store.setting(name) is None:
            raise NotFound(f"{name} was not added or changed here, so there is nothing to remove")
    return change(services, who, name, None, version)


def undo(services: AdminServices, who: Actor, name: str, version: int) -> Applied:
    """Put the value before the one in force, which must be `version`, into force again, as a new version."""
    with database():
        rows = services.store.setting_versions(name, limit=2)
    if not rows:
        raise CallerError(f"{name} was never changed", code="nothing_to_undo", status=409)
    before = rows[1]["value"] if len(rows) > 1 else None
    return change(services, who, name, before, version, why=f"undo of version {rows[0]['version']}")


def refuse_unsound(services: AdminServices, name: str, value: Value | None) -> None:
    """Raises CallerError with every problem that the configuration would have with this value."""
    values = {**services.store.latest_settings(), name: value}
    _, problems = overlaid(services.config, overlay_of(values), read_secrets(services.run_dir))
    if problems:
        raise CallerError("; ".join(problems), code="unsound", status=422, param=problems[0].partition(":")[0])


def _audited(value: Value | None) -> Value | None:
    """A setting's value for the audit log: without the prediction that is stored with it."""
    return value and {name: one for name, one in value.items() if name != "foretold"}


def _conflict(current: SettingVersion) -> Conflict:
    if not current.version:
        return Conflict(f"{current.name} was never changed: look at it again before you change it", current)
    ago_s = max(0, round(time.time() - current.time_s))
    return Conflict(
        f"{current.actor} changed {current.name} {ago_s} s ago (version {current.version}): "
        "look at it again before you change it",
        current,
    )
