"""The Kubernetes manifests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config.load import check
from tests.deploy.test_image import DEPLOY, ENVIRONMENT

FOLDER = DEPLOY / "kubernetes"
GATEWAY = {"app.kubernetes.io/name": "headgate", "app.kubernetes.io/component": "gateway"}


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], dict[str, Any]]:
    """All objects by kind and name, from every file that the kustomization names."""
    named = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert sorted(named) == sorted(
        path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml"
    )
    found = [one for name in named for one in yaml.safe_load_all((FOLDER / name).read_text())]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def pods(objects: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """The pods that any object creates."""
    return [one["spec"]["template"]["spec"] for (kind, _), one in objects.items() if kind in ("StatefulSet", "Job")]


def gateway_of(objects: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = objects["StatefulSet", "headgate"]["spec"]
    return found


def test_pods_are_restricted(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    """They don't run as root, have no token or capability, a read-only root, the runtime's seccomp profile, and limited
    memory.
    """
    assert objects["Namespace", "headgate"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(objects):
        assert pod["automountServiceAccountToken"] is False
        security = pod["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == 10001
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]
            assert "cpu" not in container["resources"]["limits"]  # a limit on CPU would throttle, which adds latency
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert writable <= {"/tmp", "/var/lib/headgate"}


def test_the_grace_period_covers_the_drain(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    """preStop and the gateway's own drain fit into it; liveness depends on nothing else, and readiness does."""
    pod = gateway_of(objects)["template"]["spec"]
    (container,) = pod["containers"]
    config, _ = check(str(FOLDER / "headgate.toml"), ENVIRONMENT)
    assert config is not None
    sleep, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + config.server.drain_timeout_s + 30
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/readyz"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"data": config.server.port, "admin": config.server.admin_port}
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert config.server.run_dir in mounts and "/etc/headgate" in mounts
    assert config.server.host == "0.0.0.0"


def test_data_and_admin_are_two_services(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Each leads to one port of the pods that it selects, and neither is reachable from outside by itself."""
    template = gateway_of(objects)["template"]["metadata"]["labels"]
    for name, port in (("headgate", "data"), ("headgate-admin", "admin")):
        spec = objects["Service", name]["spec"]
        assert spec["type"] == "ClusterIP" and [one["targetPort"] for one in spec["ports"]] == [port]
        assert spec["selector"].items() <= template.items()
    assert gateway_of(objects)["serviceName"] == "headgate-pods"


def test_it_stays_available(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    """At most one replica is unavailable at a time, there are always two, and their number rises with load and falls
    slowly.
    """
    budget = objects["PodDisruptionBudget", "headgate"]["spec"]
    scaler = objects["HorizontalPodAutoscaler", "headgate"]["spec"]
    assert budget["maxUnavailable"] == 1 and budget["selector"]["matchLabels"] == GATEWAY
    assert scaler["minReplicas"] >= 2 and scaler["scaleTargetRef"]["kind"] == "StatefulSet"
    pod = gateway_of(objects)["template"]["spec"]
    down = scaler["behavior"]["scaleDown"]["policies"]
    assert down == [{"type": "Pods", "value": 1, "periodSeconds": 360}]
    assert down[0]["periodSeconds"] > pod["terminationGracePeriodSeconds"]
    assert gateway_of(objects)["volumeClaimTemplates"][0]["metadata"]["name"] == "state"


def test_the_network_is_closed_except_for_what_is_needed(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    """The admin port is open to named pods only; outgoing connections go to DNS, the databases and public HTTPS, never
    to metadata or internal networks.
    """
    policy = objects["NetworkPolicy", "headgate"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    for rule in policy["ingress"]:
        ports = [one["port"] for one in rule["ports"]]
        assert ports == ["data"] or (ports == ["admin"] and len(rule["from"]) == 2)
    (block,) = [to["ipBlock"] for rule in policy["egress"] for to in rule["to"] if "ipBlock" in to]
    assert {"169.254.0.0/16", "10.0.0.0/8", "192.168.0.0/16", "172.16.0.0/12"} <= set(block["except"])
    assert all(rule["to"] and rule["ports"] for rule in policy["egress"])


def test_secrets_come_from_outside() -> None:
    """No manifest has one; the example has each that the configuration reads, and the real file isn't committed."""
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert kustomization["secretGenerator"] == [{"name": "headgate-secrets", "envs": ["secrets.env"]}]
    example = dict(line.split("=", 1) for line in (FOLDER / "secrets.example.env").read_text().split())
    assert set(example) == set(ENVIRONMENT)
    assert "kubernetes/secrets.env" in (DEPLOY / ".gitignore").read_text().split()
    assert (FOLDER / "headgate.toml").read_text() == (DEPLOY / "headgate.cluster.toml").read_text()


def test_manifests_follow_their_schemas() -> None:
    """The schemas are Kubernetes's own, strictly, if kubernetes-validate is installed."""
    program = shutil.which("kubernetes-validate")
    if program is None:
        pytest.skip("kubernetes-validate is not installed")
    files = [str(path) for path in sorted(FOLDER.glob("*.yaml")) if path.name != "kustomization.yaml"]
    done = subprocess.run([program, "--strict", *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_api_versions_are_stable() -> None:
    stable = {"v1", "apps/v1", "batch/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1"}
    for path in Path(FOLDER).glob("*.yaml"):
        for one in yaml.safe_load_all(path.read_text()):
            assert one["apiVersion"] in stable or one["kind"] == "Kustomization"
