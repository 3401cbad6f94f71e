"""Which trained router serves a route: promote a version, roll back to the one before, list them all.

An artefact is copied under `run_dir/routers/<route>/` by its checksum, noted in the store with who did it, and
named in the settings file, which workers follow within a second. Nothing is ever overwritten, so a roll-back is
the same step backwards.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from gateway.errors import CallerError
from gateway.journal.store import RouterVersion, Store
from gateway.settings import Settings, change_settings
from routers.registry import open_router

PROMOTIONS_READ = 10_000
"""Latest promotions, of all routes, that a roll-back looks through."""


class Versions:
    """The versions of every route's router."""

    def __init__(self, store: Store, run_dir: str | Path) -> None:
        self._store = store
        self._run_dir = Path(run_dir)

    def add(
        self, route: str, artifact: Path, *, state: str = "candidate", actor: str,
        metrics: dict[str, object] | None = None,
    ) -> RouterVersion:
        """Take an artefact in. Raises ValueError where it can't be served."""
        open_router(str(artifact.resolve()))
        checksum = sha256(artifact.read_bytes()).hexdigest()
        kept = self._run_dir / "routers" / route / f"{checksum[:16]}.safetensors"
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            draft = kept.with_suffix(".new")
            shutil.copyfile(artifact, draft)
            draft.replace(kept)
        version = RouterVersion(route, checksum[:16], time.time(), state, str(kept.resolve()), checksum, metrics)
        self._store.save_router_version(version, actor)
        return version

    def promote(self, route: str, version: str, *, actor: str) -> RouterVersion:
        """Serve this version from now on; the one before is retired, not forgotten."""
        chosen = self.find(route, version)
        live = self._mark(chosen, "live", actor)
        self._serve(route, chosen.artifact)
        return live

    def roll_back(self, route: str, *, actor: str) -> RouterVersion | None:
        """Serve the version that was live before; None: back to what the configuration names."""
        versions = self.list(route)
        live = next((one for one in versions if one.state == "live"), None)
        if live is None:
            raise CallerError(f"route '{route}' has no promoted version to roll back")
        before = [one for one in versions if one.state == "retired"]
        if before:
            back = self.promote(route, self._latest(route, before).version, actor=actor)
        else:
            back = None
            self._serve(route, "")
        self._mark(live, "rolled_back", actor)
        return back

    def list(self, route: str = "") -> list[RouterVersion]:
        return self._store.router_versions(route)

    def find(self, route: str, version: str) -> RouterVersion:
        """By version or the beginning of it. Raises CallerError."""
        found = [one for one in self.list(route) if one.version.startswith(version)]
        if len(found) != 1:
            known = ", ".join(one.version for one in self.list(route)) or "none"
            raise CallerError(f"route '{route}' has no single version '{version}'; it has: {known}")
        return found[0]

    def _latest(self, route: str, versions: Sequence[RouterVersion]) -> RouterVersion:
        """The one that was live last, which need not be the one made last."""
        log = self._store.audit_log(action="router.live", limit=PROMOTIONS_READ)
        newest_first = {target: place for place, target in enumerate(dict.fromkeys(entry["target"] for entry in log))}
        last = len(newest_first)
        return min(versions, key=lambda one: (newest_first.get(f"{route}@{one.version}", last), -one.time_s))

    def _mark(self, version: RouterVersion, state: str, actor: str) -> RouterVersion:
        marked = RouterVersion(
            version.name, version.version, version.time_s, state, version.artifact, version.checksum, version.metrics
        )
        self._store.save_router_version(marked, actor)
        return marked

    def _serve(self, route: str, artifact: str) -> None:
        """From now on with this artefact; empty: with what the configuration names."""

        def change(settings: Settings) -> Settings:
            routers = {**settings.routers, route: artifact}
            return msgspec.structs.replace(settings, routers={name: path for name, path in routers.items() if path})

        change_settings(self._run_dir, change)
