"""The image, compose and systemd files: what can't run here is checked against rules, and against its schema if
available.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from deploy.sbom import read_lock
from gateway.config.load import check
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ENVIRONMENT = dict.fromkeys(
    ("HEADGATE_MASTER_KEY", "POSTGRES_PASSWORD", "POSTGRES_HOST", "REDIS_PASSWORD", "REDIS_HOST", "ACME_KEY"), "x"
)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments; continued lines are joined."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text()).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def test_the_image_is_built_in_stages_and_runs_unprivileged() -> None:
    """The last stage has a user that isn't root, a health check, a signal to drain on, and runs no package manager."""
    build, run = stages()
    words = dict(run)
    assert words["USER"] == "10001:10001" and words["STOPSIGNAL"] == "SIGTERM"
    assert "/readyz" in words["HEALTHCHECK"] and "--start-period" in words["HEALTHCHECK"]
    assert words["ENTRYPOINT"].startswith("[") and words["CMD"].startswith("[")
    after_user = run[[word for word, _ in run].index("USER") :]
    assert not any(word in ("RUN", "COPY") for word, _ in after_user)
    assert not any(re.search(r"\b(pip|apt-get|curl|wget)\b", rest) for word, rest in run if word == "RUN")
    assert ("COPY", "--from=build /opt/headgate /opt/headgate") in run
    assert len(build) > len(run) - 5


def test_the_image_is_pinned_and_has_no_secret() -> None:
    """Its base has a full version, there is no `latest`, no ADD and no secret argument, and every package is checked by
    its hash.
    """
    bases = [rest for word, rest in instructions() if word == "ARG"]
    assert bases == ["PYTHON=3.11.13-slim-bookworm"]
    text = (DEPLOY / "Dockerfile").read_text()
    assert not re.search(r"(?m)^ADD |:latest|\bsudo\b|(?i:password|secret|token)\s*=", text)
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip" in rest]
    assert "--require-hashes" in installs[0]
    assert all("--no-index" in rest for rest in installs[1:])


def test_the_image_contains_only_what_it_needs() -> None:
    """Everything that is copied passes .dockerignore, and nothing else does."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copies = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    copied = {name for names in copies for name in names}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def needs(name: str, extras: tuple[str, ...]) -> Iterator[str]:
    """Packages that an installed one requires with these extras."""
    for text in metadata.requires(name) or ():
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            yield one.name


def test_the_lock_contains_all_that_the_image_installs() -> None:
    """`headgate[postgres,otel]` and all its dependencies are in the lock, so nothing is resolved while building."""
    locked = {pin.name for pin in read_lock((ROOT / "requirements.lock").read_text())[0]}
    todo, seen = list(needs("headgate", ("postgres", "otel"))), set[str]()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name not in seen:
            seen.add(name)
            todo += needs(name, ()) if name in locked else []
    assert seen <= locked, seen - locked


# Compose


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file with its merges resolved."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def test_services_are_hardened(compose: dict[str, Any]) -> None:
    """There are no new privileges, only named capabilities, pinned images, and a read-only root for the gateway."""
    for name, service in compose["services"].items():
        assert service["security_opt"] == ["no-new-privileges:true"] and service["cap_drop"] == ["ALL"], name
        assert re.search(r":v?\d+\.\d+", service["image"]), name
        assert name == "postgres" or service["read_only"] is True, name
        assert "privileged" not in service and service.get("network_mode") != "host"


def test_databases_are_unreachable_from_outside(compose: dict[str, Any]) -> None:
    """Redis and PostgreSQL publish no port and are in a network without a gateway; the admin port is for this machine.
    """
    services = compose["services"]
    for name in ("redis", "postgres"):
        assert "ports" not in services[name] and services[name]["networks"] == ["back"]
    assert compose["networks"]["back"] == {"internal": True}
    assert services["gateway-1"]["ports"] == ["127.0.0.1:8081:8081"] and "ports" not in services["gateway-2"]


def test_compose_needs_its_secrets_and_finds_its_files(compose: dict[str, Any]) -> None:
    """Each secret is named in env.example and has no default, and every mounted file exists."""
    text = (DEPLOY / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?", text))
    assert asked == {line.split("=")[0] for line in (DEPLOY / "env.example").read_text().splitlines() if "=" in line}
    assert not re.search(r"\$\{\w+(?::?-|\})", text.replace("$$", ""))
    files = [one["file"] for one in compose["configs"].values()]
    files += [volume.split(":")[0] for volume in compose["services"]["grafana"]["volumes"] if volume[0] == "."]
    assert all((DEPLOY / file).exists() for file in files)
    used = {volume.split(":")[0] for one in compose["services"].values() for volume in one.get("volumes", ())}
    assert {name for name in used if name[0] != "."} == set(compose["volumes"])


def test_redis_loses_no_budget(compose: dict[str, Any]) -> None:
    """It evicts nothing and persists to a file."""
    command = " ".join(compose["services"]["redis"]["command"])
    assert "--maxmemory-policy noeviction" in command and "--appendonly yes" in command


def test_compose_follows_its_schema() -> None:
    """The schema is the Compose Specification's, as shipped with check-jsonschema."""
    program = str(Path(sys.executable).with_name("check-jsonschema"))
    command = [program, "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["headgate.cluster.toml", "kubernetes/headgate.toml"])
def test_the_shipped_configurations_load(name: str) -> None:
    """Every key is known and every reference resolved, with the variables that compose and Kubernetes set."""
    config, problems = check(str(DEPLOY / name), ENVIRONMENT)
    assert problems == [] and config is not None
    assert config.storage.redis_url and config.storage.url.startswith("postgresql://")
    assert config.server.run_dir == "/var/lib/headgate" and config.server.workers > 1


def test_the_shipped_nginx_configuration_is_valid(tmp_path: Path) -> None:
    """nginx accepts it; answers are not buffered, no request is repeated, and metrics stay internal."""
    text = (DEPLOY / "nginx.conf").read_text()
    for setting in ("proxy_buffering off;", "proxy_next_upstream error timeout;", "deny all;", "access_log off;"):
        assert setting in text
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    (tmp_path / "run").mkdir()
    here = re.sub(r"gateway-(\d):8080", r"127.0.0.1:1808\1", text).replace("listen 80 ", f"listen {free_port()} ")
    folders = (f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (tmp_path / "nginx.conf").write_text(here.replace("http {", f"http {{ {' '.join(folders)}", 1))
    command = [program, "-t", "-q", "-p", str(tmp_path), "-c", "nginx.conf"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# systemd


def test_the_unit_is_hardened() -> None:
    """It drops whatever systemd can drop; a reload checks the file first; its stop timeout is longer than the gateway's
    drain.
    """
    lines = (DEPLOY / "systemd" / "headgate.service").read_text().splitlines()
    pairs = [line.partition("=")[::2] for line in lines if "=" in line and not line.startswith("#")]
    unit = dict(pairs)
    for name in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "ProtectKernelTunables",
                 "ProtectKernelModules", "ProtectControlGroups", "RestrictNamespaces", "RestrictSUIDSGID",
                 "LockPersonality", "DynamicUser", "RemoveIPC"):  # fmt: skip
        assert unit[name] == "yes", name
    assert unit["ProtectSystem"] == "strict" and unit["CapabilityBoundingSet"] == "" and unit["Type"] == "notify"
    assert unit["UMask"] == "0077" and unit["StateDirectoryMode"] == "0700"
    reloads = [value for name, value in pairs if name == "ExecReload"]
    assert "check-config" in reloads[0] and reloads[1] == "/bin/kill -HUP $MAINPID"
    config, _ = check(str(DEPLOY / "headgate.cluster.toml"), ENVIRONMENT)
    assert config is not None and int(unit["TimeoutStopSec"]) > config.server.drain_timeout_s


def test_systemd_rates_the_units_exposure_low() -> None:
    """Its own assessment is below 2 of 10, if systemd-analyze is available."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not installed")
    unit = DEPLOY / "systemd" / "headgate.service"
    done = subprocess.run([program, "security", "--offline=true", str(unit)], capture_output=True, text=True)
    found = re.search(r"Overall exposure level for headgate.service: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"systemd-analyze can't say: {done.stderr[:200]}")
    assert float(found[1]) < 2.0
