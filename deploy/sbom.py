"""A software bill of materials (CycloneDX 1.6) of what requirements.lock pins; standard library only.

    python deploy/sbom.py [--check] > sbom.cdx.json

`--check` writes nothing and ends with 1 where the lock is unsound: a package without a hash or a version, twice, from
anywhere but the index, or, where it is installed here, in another version or under a licence that is not permissive.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
import uuid
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PERMISSIVE = re.compile(
    r"apache|\bmit\b|bsd|isc|\bpsf\b|python software foundation|mozilla|mpl|lgpl|unlicense|zlib|cc0|0bsd|hpnd|mulanpsl",
    re.IGNORECASE,
)
REFUSED = {("litellm", "1.82.7"), ("litellm", "1.82.8")}
"""Releases known to be hostile."""
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)\s*(?:;\s*(?P<marker>[^\\]+?))?\s*\\?$")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(slots=True)
class Pin:
    """One package of the lock."""

    name: str
    version: str
    marker: str = ""
    hashes: list[str] = field(default_factory=list)

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


def read_lock(text: str) -> tuple[list[Pin], list[str]]:
    """Its packages, and the lines that are no package of an index."""
    pins: list[Pin] = []
    strange: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if found := _HASH.match(stripped):
            pins[-1].hashes.append(found[1])
        elif found := _PIN.match(stripped):
            name = re.sub(r"[-_.]+", "-", found["name"]).lower()
            pins.append(Pin(name, found["version"], (found["marker"] or "").strip()))
        else:
            strange.append(stripped)
    return pins, strange


def licence_of(name: str) -> str:
    """As the installed package states it; empty: it isn't installed, or says nothing."""
    try:
        told: Any = metadata.metadata(name)  # whose protocol lacks `get`
    except metadata.PackageNotFoundError:
        return ""
    classifiers = [one.rsplit("::", 1)[-1].strip() for one in told.get_all("Classifier") or () if "License ::" in one]
    stated = told.get("License-Expression") or "; ".join(classifiers) or (told.get("License") or "").split("\n")[0]
    return stated.strip()


def problems(pins: list[Pin], strange: list[str]) -> list[str]:
    """What is unsound."""
    found = [f"not a pinned package of an index: {line}" for line in strange]
    seen: set[tuple[str, str]] = set()
    for pin in pins:
        if not pin.hashes:
            found.append(f"{pin.name}: no hash")
        if (pin.name, pin.marker) in seen:
            found.append(f"{pin.name}: twice")
        seen.add((pin.name, pin.marker))
        if (pin.name, pin.version) in REFUSED:
            found.append(f"{pin.name}=={pin.version}: known to be hostile")
        licence = licence_of(pin.name)
        if licence and not PERMISSIVE.search(licence):
            found.append(f"{pin.name}: its licence is {licence!r}")
    return found + _drift(pins)


def _drift(pins: list[Pin]) -> list[str]:
    """Packages installed here in another version than the lock's."""
    wanted: dict[str, set[str]] = {}
    for pin in pins:
        wanted.setdefault(pin.name, set()).add(pin.version)
    found = []
    for name, versions in wanted.items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if here not in versions:
            found.append(f"{name}: {here} is installed, the lock says {' or '.join(sorted(versions))}")
    return found


def bill(pins: list[Pin], project: dict[str, Any]) -> dict[str, Any]:
    """The document. Its serial number is drawn from its content, so the same lock gives the same bill."""
    components = [_component(pin) for pin in sorted(pins, key=lambda pin: (pin.name, pin.version))]
    own = f"pkg:pypi/{project['name']}@{project['version']}"
    digest = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([own, components], sort_keys=True))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{digest}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": project["name"],
                "version": project["version"],
                "purl": own,
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": components,
        "dependencies": [{"ref": own, "dependsOn": [one["bom-ref"] for one in components]}],
    }


def _component(pin: Pin) -> dict[str, Any]:
    reference = pin.purl + (f"?marker={uuid.uuid5(uuid.NAMESPACE_URL, pin.marker).hex[:8]}" if pin.marker else "")
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": pin.name,
        "version": pin.version,
        "purl": pin.purl,
        "properties": [{"name": "headgate:artifact:sha256", "value": one} for one in pin.hashes],
    }
    if licence := licence_of(pin.name):
        found["licenses"] = [{"license": {"name": licence}}]
    if pin.marker:
        found["properties"].append({"name": "headgate:marker", "value": pin.marker})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="A bill of materials of requirements.lock.")
    parser.add_argument("--check", action="store_true", help="say what is unsound and write nothing")
    checks = parser.parse_args().check
    pins, strange = read_lock((ROOT / "requirements.lock").read_text())
    if checks:
        found = problems(pins, strange)
        print("\n".join(found) or f"{len(pins)} packages, each pinned and hashed")
        return 1 if found else 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    json.dump(bill(pins, project), sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
