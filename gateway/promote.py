"""The trained routers of routes: promote a version, roll back to the one before, list all.

An artefact is copied to `run_dir/routers/<route>/` under its checksum, recorded in the store together with the actor,
and named in the settings file, which workers follow within a second. Nothing is ever overwritten, so a roll-back is a
promotion of the former version.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
import sqlalchemy as sa

from gateway.config.settings import Settings, change_settings
from gateway.errors import CallerError
from gateway.journal.store import RouterVersion, Store, VersionConflict
from gateway.journal.tables import artifacts
from routers.artifact import load_artifact, write_whole
from routers.registry import open_router

LEAST_PREFIX = 4
"""Fewest characters of a version that may stand for the whole."""
PROMOTIONS_READ = 10_000
"""Number of latest promotions, of all routes, that a roll-back looks through."""


class Versions:
    """The versions of every route's router."""

    def __init__(self, store: Store, run_dir: str | Path) -> None:
        self._store = store
        self._run_dir = Path(run_dir)

    def add(
        self, route: str, artifact: Path, *, state: str = "candidate", actor: str,
        metrics: dict[str, object] | None = None,
    ) -> RouterVersion:
        """Copy an artefact into the run folder and record it as a version. Raises ValueError where it can't be served.
        """
        open_router(str(artifact.resolve()))
        content = artifact.read_bytes()
        checksum = sha256(content).hexdigest()
        path = self._path(route, checksum[:16])
        _write(path, content)
        if metrics is None:
            metrics = _training_metrics(artifact)
        version = RouterVersion(route, checksum[:16], time.time(), state, str(path.resolve()), checksum, metrics)
        self._store.save_router_version(version, actor)
        return version

    def promote(self, route: str, version: str, *, actor: str, instead: str | None = None) -> RouterVersion:
        """Serve this version from now on, and retire the live one.

        `instead` is the version that the caller believes is live, empty where it believes that none is; None means the
        one that is live now. Raises CallerError where the version can't be served, and where another version than
        `instead` is live: of several concurrent promotions, on any replica, only one succeeds.
        """
        before = self.live(route) if instead is None else instead
        chosen = self.find(route, version)
        if fault := self.fault(chosen):
            raise CallerError(f"{chosen.version} can't be served: {fault}", status=422)
        live = self._mark(chosen, "live", actor, instead=before)
        self._serve(route, self.artifact(chosen), actor)
        return live

    def roll_back(self, route: str, *, actor: str, instead: str | None = None) -> RouterVersion | None:
        """Serve the version that was live before, among those that can still be opened; return None where there is none
        and the configuration's router serves. `instead` is as for `promote`. Raises CallerError.
        """
        live = next((one for one in self.list(route) if one.state == "live"), None)
        if live is None:
            raise CallerError(f"route '{route}' has no promoted version to roll back")
        before = live.version if instead is None else instead
        former = self.former(route)
        if former is not None:
            former = self.promote(route, former.version, actor=actor, instead=before)
            self._mark(live, "rolled_back", actor)
        else:
            self._mark(live, "rolled_back", actor, instead=before)
            self._serve(route, "", actor)
        return former

    def live(self, route: str) -> str:
        """The version that serves; empty where the configuration's router does."""
        return next((one.version for one in self.list(route) if one.state == "live"), "")

    def former(self, route: str) -> RouterVersion | None:
        """The version that a roll-back would serve; None where that is the configuration's router."""
        retired = [one for one in self.list(route) if one.state == "retired"]
        return next((one for one in self._latest_first(route, retired) if not self.fault(one)), None)

    def fault(self, version: RouterVersion) -> str:
        """Why the version can't be served; empty where it can."""
        try:
            open_router(self.artifact(version))
        except (ValueError, OSError) as error:
            return str(error)
        return ""

    def artifact(self, version: RouterVersion) -> str:
        """Path of the version's file; where it isn't on this machine, it is first read from the database that replicas
        share, if that has it.
        """
        if Path(version.artifact).exists():
            return version.artifact
        path, query = self._path(version.name, version.version), sa.select(artifacts.c.bytes)
        with self._store.engine.connect() as connection:
            content = connection.execute(query.where(artifacts.c.checksum == version.checksum)).scalar()
        if content is None:
            return version.artifact
        _write(path, content)
        return str(path.resolve())

    def list(self, route: str = "") -> list[RouterVersion]:
        return self._store.router_versions(route)

    def find(self, route: str, version: str) -> RouterVersion:
        """The version of this name, or whose name begins so, by at least `LEAST_PREFIX` characters: "3" is rather meant
        as a third version than as the beginning of a checksum. Raises CallerError where there is no such version, or
        more than one.
        """
        found = self.called(route, version)
        if found is None:
            known = ", ".join(one.version for one in self.list(route)) or "none"
            raise CallerError(f"route '{route}' has no single version '{version}'; its versions are: {known}")
        return found

    def called(self, route: str, version: str) -> RouterVersion | None:
        """As `find`, but None where there is no such version, or more than one."""
        known = self.list(route)
        exact = [one for one in known if one.version == version]
        by_prefix = [one for one in known if len(version) >= LEAST_PREFIX and one.version.startswith(version)]
        found = exact or by_prefix
        return found[0] if len(found) == 1 else None

    def _latest_first(self, route: str, versions: Sequence[RouterVersion]) -> Sequence[RouterVersion]:
        """The versions by when each was last promoted, which need not be the order they were made in."""
        log = self._store.audit_log(action="router.live", limit=PROMOTIONS_READ)
        newest_first = {target: place for place, target in enumerate(dict.fromkeys(entry["target"] for entry in log))}
        last = len(newest_first)
        return sorted(versions, key=lambda one: (newest_first.get(f"{route}@{one.version}", last), -one.time_s))

    def _path(self, route: str, version: str) -> Path:
        return self._run_dir / "routers" / route / f"{version}.safetensors"

    def _mark(self, version: RouterVersion, state: str, actor: str, *, instead: str | None = None) -> RouterVersion:
        marked = RouterVersion(
            version.name, version.version, version.time_s, state, version.artifact, version.checksum, version.metrics
        )
        try:
            self._store.save_router_version(marked, actor, instead=instead)
        except VersionConflict as other:
            now = f"{other} serves '{version.name}'" if str(other) else f"no version serves '{version.name}' any more"
            raise CallerError(f"{now}: it was changed meanwhile, look again", status=409, code="conflict") from None
        return marked

    def _serve(self, route: str, artifact: str, actor: str) -> None:
        """Serve all requests with this artefact from now on; empty means the configuration's router. A canary of the
        route ends, because it was compared with what served before.
        """

        def change(settings: Settings) -> Settings:
            routers = {name: path for name, path in {**settings.routers, route: artifact}.items() if path}
            canaries = {name: one for name, one in settings.canaries.items() if name != route}
            return msgspec.structs.replace(settings, routers=routers, canaries=canaries)

        change_settings(self._run_dir, change)
        for one in self.list(route):
            if one.state == "canary":
                self._mark(one, "candidate", actor)


def _training_metrics(artifact: Path) -> dict[str, object] | None:
    """Number of rows and checksum of the data that the artefact was trained on; None where it doesn't state them."""
    card, _ = load_artifact(artifact)
    rows = card.metrics.get("rows")
    return {"rows": int(rows), "data_checksum": card.data_checksum} if rows else None


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
