"""Kubernetes: manifests and the jobs of the work pool, by Kubernetes' own schemas. They are started nowhere here."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import kubernetes_validate
import yaml
from prefect.workers.base import BaseJobConfiguration

from ferry.http.address_ranges import METADATA
from tests.flows.site import UNITS

FOLDER = UNITS.parent / "kubernetes"
VERSIONS = ("1.30", "1.37")  # the oldest and the newest that is asked
POOL: dict[str, Any] = json.loads((FOLDER / "work-pool.json").read_text())
NOBODY: Any = object()  # a template without blocks asks no server
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((FOLDER / "ferry.yaml").read_text()))


class KubernetesJob(BaseJobConfiguration):
    """What the worker fills in of the pool's template; it has the manifest beside Prefect's own keys."""

    job_manifest: dict[str, Any]


def job(**values: Any) -> dict[str, Any]:
    """The Job that a run gets, with Prefect's own way to fill in the template."""
    made: Any = asyncio.run(KubernetesJob.from_template_and_values(POOL, {"name": "products", **values}, client=NOBODY))
    manifest: dict[str, Any] = made.job_manifest
    # What the worker does with a command and an environment, before it sends the manifest.
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    container["args"] = container["args"].split()
    return manifest


def pods() -> dict[str, dict[str, Any]]:
    """The pod of each thing that has one."""
    found = {m["metadata"]["name"]: m["spec"]["template"]["spec"] for m in MANIFESTS if m["kind"] == "Deployment"}
    return {**found, "run": job()["spec"]["template"]["spec"]}


def test_the_schemas() -> None:
    """Each manifest, and the job of a run, is valid by Kubernetes' schemas, with no key that they do not know."""
    for version in VERSIONS:
        for manifest in [*MANIFESTS, job(), job(memory_limit="8Gi", image="registry.example/ferry@sha256:" + "0" * 64)]:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_restricted_namespace_takes_the_pods() -> None:
    """What the Pod Security Standard `restricted` asks of each pod, and requests and limits for each container."""
    for name, pod in pods().items():
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"}), name
        assert {kind for volume in pod["volumes"] for kind in volume} == {"name", "emptyDir"}, name
        for container in pod["containers"]:
            own = container["securityContext"]
            assert (own["allowPrivilegeEscalation"], own["capabilities"]) == (False, {"drop": ["ALL"]}), name
            assert own["readOnlyRootFilesystem"], name
            for bound in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][bound]), name


def test_secrets_are_named_and_not_written_down() -> None:
    """Every variable whose name is a secret's comes from a Secret."""
    found = 0
    for name, pod in pods().items():
        for variable in pod["containers"][0]["env"]:
            words = set(variable["name"].split("_"))
            if words & {"AUTH", "KEY", "TOKEN", "URL"} and not variable["name"].endswith(("API_URL", "UI_URL")):
                if "SECRET_NAME" in variable["name"] or "SECRET_KEY" in variable["name"]:
                    continue  # where the secret lies
                assert "secretKeyRef" in variable["valueFrom"], (name, variable)
                found += 1
    assert found >= 6


def test_only_the_worker_has_rights_in_the_cluster() -> None:
    """One Role in one namespace, for the worker, which starts jobs and reads no Secret; nobody else has a token."""
    assert not [m for m in MANIFESTS if m["kind"].startswith("Cluster")]
    (role,) = [m for m in MANIFESTS if m["kind"] == "Role"]
    (binding,) = [m for m in MANIFESTS if m["kind"] == "RoleBinding"]
    assert [subject["name"] for subject in binding["subjects"]] == ["ferry-worker"]
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {"jobs", "pods", "pods/log"}
    tokens = {pod["serviceAccountName"]: pod["automountServiceAccountToken"] for pod in pods().values()}
    assert tokens == {"ferry-server": False, "ferry-worker": True, "ferry-run": False}


def test_a_run_is_told_of_its_end_itself() -> None:
    """SIGTERM reaches the process that moves: Prefect's usual parent would not pass it on (docs/decisions/0026)."""
    manifest = job()
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["python", "-m", "prefect.engine"]
    assert manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    assert manifest["spec"]["backoffLimit"] == 0  # the next run goes on, and not the same one twice


def test_an_autoscaler_leaves_a_run_alone() -> None:
    """Neither of the two usual autoscalers evicts the pod of a run, which may take days, to save a node."""
    annotations = job()["spec"]["template"]["metadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"


OPEN = {
    "169.254.170.2", "169.254.170.23", "fd00:ec2::23",  # a task's or a pod's own credentials
    "168.63.129.16",  # names, on Azure
    "fe80::a9fe:a9fe",  # of one link: no route leads there
}  # fmt: skip


def test_the_network_closes_metadata_addresses_too() -> None:
    """Of the pods of runs: each address that Ferry refuses, except those that a run needs for itself."""
    (policy,) = [one for one in MANIFESTS if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "ferry-run"]
    labels = job()["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    (rule,) = policy["spec"]["egress"]
    closed = {address.partition("/")[0] for to in rule["to"] for address in to["ipBlock"]["except"]}
    assert closed == {str(address) for address in METADATA} - OPEN
