"""The gateway's dependencies: pinned, hashed, listed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from deploy.sbom import Pin, bill, problems, read_lock

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_package_is_pinned_and_hashed() -> None:
    """The lock has versions, SHA-256 hashes, only the configured index, and permissive licences."""
    pins, strange = read_lock(LOCK)
    found = [line for line in problems(pins, strange) if "is installed, the lock says" not in line]
    assert found == []
    assert len(pins) > 50


def test_all_dependencies_are_in_the_lock() -> None:
    """These are the dependencies, and the extras that the image installs."""
    locked = {pin.name for pin in read_lock(LOCK)[0]}
    asked = [*PROJECT["dependencies"]]
    for extra in ("postgres", "otel"):
        asked += PROJECT["optional-dependencies"][extra]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;! ]", line)[0]).lower() for line in asked}
    assert names <= locked, names - locked


def test_an_unsafe_lock_is_reported() -> None:
    """A package has no hash, is listed twice, comes from a URL, or is known to be malicious."""
    text = f"a==1.0 \\\n    --hash=sha256:{'0' * 64}\nb==2.0\na==1.0 \\\n    --hash=sha256:{'0' * 64}\n"
    text += "c @ https://example.com/c.whl\nlitellm==1.82.7 \\\n    --hash=sha256:" + "1" * 64
    found = problems(*read_lock(text))
    for part in ("b: no hash", "a: twice", "c @ https", "known to be hostile"):
        assert any(part in line for line in found), part
    assert problems([Pin("zz-not-installed", "1", hashes=["0" * 64])], []) == []


def test_the_bill_of_materials_names_every_package() -> None:
    """It is CycloneDX 1.6, each package has version, address and hashes, and the same lock gives the same file."""
    pins, _ = read_lock(LOCK)
    told = bill(pins, PROJECT)
    assert told == bill(pins, PROJECT)
    assert (told["bomFormat"], told["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", told["serialNumber"])
    references = [one["bom-ref"] for one in told["components"]]
    assert len(set(references)) == len(references) == len(pins)
    assert told["dependencies"][0]["dependsOn"] == references
    for one, pin in zip(told["components"], sorted(pins, key=lambda pin: (pin.name, pin.version)), strict=True):
        assert one["purl"] == f"pkg:pypi/{pin.name}@{pin.version}"
        hashes = [item["value"] for item in one["properties"] if item["name"] == "headgate:artifact:sha256"]
        assert hashes == pin.hashes


def test_the_command_prints_it() -> None:
    """It is run as `make sbom` does."""
    command = [sys.executable, str(ROOT / "deploy" / "sbom.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout)["metadata"]["component"]["name"] == "headgate"


def test_the_threat_model_names_tests_that_exist() -> None:
    """Each row of the threat model needs a test that exists."""
    text = (ROOT / "deploy" / "THREATS.md").read_text().partition("## Threats and answers")[2]
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.count("|") == 4 and "---" not in line]
    assert len(rows) > 15
    for row in rows[1:]:
        named = re.findall(r"(?:[a-z_]+/)+(?:test_[a-z_]+\.py)?", row.split("|")[3])
        assert named, row
        for name in named:
            assert (ROOT / "tests" / name).exists(), name
