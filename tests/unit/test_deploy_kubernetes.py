"""The manifests pass the schemas of Kubernetes, and agree with each other and with the drain."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

DIRECTORY = Path(__file__).parents[2] / "deploy" / "kubernetes"
CONTAINERFILE = DIRECTORY.parent / "container" / "Containerfile"
KUSTOMIZATION = DIRECTORY / "kustomization.yaml"
MANIFESTS = sorted(path for path in DIRECTORY.glob("*.yaml") if path != KUSTOMIZATION)
# What one slow Redis answer and the exit of the embedded store may take after the drain.
SLACK_SECONDS = 5

Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    """The objects of one file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifest(kind: str, name: str = "sluice") -> Manifest:
    """The one object of this kind and name."""
    (found,) = (
        document
        for path in MANIFESTS
        for document in documents(path)
        if (document["kind"], document["metadata"]["name"]) == (kind, name)
    )
    return found


def pod(kind: str = "Deployment", name: str = "sluice") -> Manifest:
    """The pod specification of a workload."""
    specification: Manifest = manifest(kind, name)["spec"]["template"]["spec"]
    return specification


def container(kind: str = "Deployment", name: str = "sluice") -> Manifest:
    """The only container of a workload."""
    (only,) = pod(kind, name)["containers"]
    specification: Manifest = only
    return specification


def configuration() -> str:
    """The sluice.yaml in the ConfigMap."""
    text: str = manifest("ConfigMap")["data"]["sluice.yaml"]
    return text


def validate(version: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """What the schemas of one Kubernetes version say of these files."""
    if find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed")
    return subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", "-k", version, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("version", ["1.30", "1.33", "1.37"])
def test_every_manifest_passes_the_strict_schemas(version: str) -> None:
    result = validate(version, *MANIFESTS)
    lines = result.stdout.splitlines()
    passed = [line for line in lines if line.startswith("INFO ") and " passed " in line]
    assert (result.returncode, len(passed)) == (
        0,
        sum(len(documents(path)) for path in MANIFESTS),
    ), result.stdout + result.stderr
    assert lines == passed


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("terminationGracePeriodSeconds: 50", "terminationGracePeriodSeconds: a while"),
        ("readOnlyRootFilesystem", "readOnlyRootFileSystem"),
        ("sleep:\n                seconds: 5", "sleep:\n                second: 5"),
    ],
)
def test_the_schemas_see_a_mistake(tmp_path: Path, good: str, bad: str) -> None:
    text = (DIRECTORY / "deployment.yaml").read_text()
    assert good in text
    broken = tmp_path / "deployment.yaml"
    broken.write_text(text.replace(good, bad))
    result = validate("1.30", broken)
    assert result.returncode != 0
    assert "ERROR" in result.stdout


def test_the_kustomization_lists_every_manifest_but_the_secret() -> None:
    (kustomization,) = documents(KUSTOMIZATION)
    listed = {DIRECTORY / name for name in kustomization["resources"]}
    assert set(MANIFESTS) - listed == {DIRECTORY / "secret.yaml"}
    assert listed <= set(MANIFESTS)


def test_kubectl_builds_the_kustomization() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run(
        [kubectl, "kustomize", str(DIRECTORY)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    kinds = {document["kind"] for document in yaml.safe_load_all(built.stdout)}
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "ConfigMap"} <= kinds
    assert "Secret" not in kinds


def test_the_pod_outlives_its_drain() -> None:
    drain = yaml.safe_load(configuration())["server"]["drain"]
    pre_stop = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = pre_stop + drain["lame_duck"] + drain["grace"]
    assert pod()["terminationGracePeriodSeconds"] >= needed + SLACK_SECONDS


def test_the_lame_duck_outlasts_the_readiness_probe() -> None:
    probe = container()["readinessProbe"]
    lame_duck = yaml.safe_load(configuration())["server"]["drain"]["lame_duck"]
    assert probe["periodSeconds"] * probe["failureThreshold"] <= lame_duck


def secrets(real: str) -> dict[str, str]:
    """The Secret's variables, filled in."""
    secret: dict[str, str] = manifest("Secret")["stringData"]
    return {name: value.replace("REPLACE_ME", real) for name, value in secret.items()}


@pytest.mark.parametrize("left", sorted(manifest("Secret")["stringData"]))
def test_what_is_left_of_the_template_is_refused(left: str, tmp_path: Path) -> None:
    from gateway.core.errors import ConfigError
    from workers.prices import load_prices
    from workers.settings import Flags, read, verify

    file, environment = tmp_path / "sluice.yaml", secrets("9c41f07ab35de682" * 4)
    file.write_text(configuration())
    verify(read(Flags(str(file)), environment), load_prices(tmp_path))
    environment[left] = manifest("Secret")["stringData"][left]
    with pytest.raises(ConfigError) as caught:
        verify(read(Flags(str(file)), environment), load_prices(tmp_path))
    named = {"OPENAI_API_KEY": "api_key", "SLUICE_ADMIN_KEY": "admin_key"}
    assert named.get(left, left) in str(caught.value)
    assert "REPLACE" not in str(caught.value)


def test_the_gateway_accepts_the_configuration() -> None:
    from gateway.config.load import load_text

    config = load_text(configuration(), "configmap.yaml", secrets("9c41f07ab35de682" * 4))
    assert (config.server.drain.lame_duck, config.server.drain.grace) == (5, 30)


def test_three_probes_ask_the_right_questions() -> None:
    paths = {
        probe: container()[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert paths == {
        "startupProbe": "/health/ready",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }


def test_the_port_is_the_same_everywhere() -> None:
    (port,) = container()["ports"]
    (service_port,) = manifest("Service")["spec"]["ports"]
    (address,) = re.findall(r"\bSERVER_ADDRESS=(\S+)", CONTAINERFILE.read_text())
    assert "address" not in yaml.safe_load(configuration())["server"]  # the image's is above it
    annotations = manifest("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert address.rpartition(":")[2] == str(port["containerPort"])
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    assert service_port["targetPort"] == port["name"]
    assert {
        container()[probe]["httpGet"]["port"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    } == {port["name"]}


@pytest.mark.parametrize(
    ("kind", "name"), [("Deployment", "sluice"), ("StatefulSet", "sluice-redis")]
)
def test_selectors_find_the_pods(kind: str, name: str) -> None:
    labels = manifest(kind, name)["spec"]["template"]["metadata"]["labels"].items()
    assert manifest(kind, name)["spec"]["selector"]["matchLabels"].items() <= labels
    assert manifest("Service", name)["spec"]["selector"].items() <= labels


def test_the_scaler_and_the_budget_are_about_the_deployment() -> None:
    scaler = manifest("HorizontalPodAutoscaler")["spec"]
    budget = manifest("PodDisruptionBudget")["spec"]
    deployment = manifest("Deployment")
    assert scaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert scaler["minReplicas"] > 1
    assert "replicas" not in deployment["spec"]
    assert budget["selector"] == deployment["spec"]["selector"]


@pytest.mark.parametrize(
    ("kind", "name"), [("Deployment", "sluice"), ("StatefulSet", "sluice-redis")]
)
def test_no_pod_has_more_rights_than_it_uses(kind: str, name: str) -> None:
    specification, only = pod(kind, name), container(kind, name)
    assert specification["automountServiceAccountToken"] is False
    assert specification["enableServiceLinks"] is False
    assert specification["securityContext"]["runAsNonRoot"] is True
    assert specification["securityContext"]["runAsUser"] > 0
    assert specification["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} <= only["resources"].keys()


def test_the_pod_can_write_where_the_gateway_does_and_reads_what_exists() -> None:
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container()["volumeMounts"]}
    assert "emptyDir" in mounts["/var/lib/sluice"]
    assert "emptyDir" in mounts["/tmp"]
    assert mounts["/etc/sluice"]["configMap"]["name"] == manifest("ConfigMap")["metadata"]["name"]
    assert container()["args"] == ["serve", "--config", "/etc/sluice/sluice.yaml"]


def test_the_user_is_that_of_the_image() -> None:
    security = pod()["securityContext"]
    user = f"USER {security['runAsUser']}:{security['runAsGroup']}"
    assert user in CONTAINERFILE.read_text().splitlines()


def test_secrets_are_placeholders_and_name_the_redis_beside_them() -> None:
    (source,) = container()["envFrom"]
    secret = manifest("Secret", source["secretRef"]["name"])["stringData"]
    password = manifest("Secret", "sluice-redis")["stringData"]
    assert all("REPLACE_ME" in value for value in (secret | password).values())
    (port,) = manifest("Service", "sluice-redis")["spec"]["ports"]
    assert f"@sluice-redis:{port['port']}/" in secret["REDIS_URL"]
