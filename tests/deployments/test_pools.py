"""The work pools' templates, as a Prefect server takes them and `ferry deploy` uses them; a real server, no cluster."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path

import pytest

from tests.flows.deployed import Deployed
from tests.flows.project import Cli, Prefect
from tests.flows.site import UNITS

pytestmark = pytest.mark.matrix

KINDS = ["kubernetes", "ecs"]


def make(prefect_api: Prefect, name: str, kind: str) -> None:
    """A work pool of the shipped template."""
    template = json.loads((UNITS.parent / kind / "work-pool.json").read_text())
    prefect_api.post("work_pools/", {"name": name, "type": kind, "base_job_template": template})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_server_takes_them(kind: str, prefect_api: Prefect) -> None:
    """A pool is made of the template, and a deployment with some of its variables; a wrong one is refused."""
    name = f"{kind}-{secrets.token_hex(4)}"
    make(prefect_api, name, kind)
    flow = prefect_api.post("flows/", {"name": name})["id"]
    asked = {"name": "prod", "flow_id": flow, "work_pool_name": name, "entrypoint": "flows/migrate.py:migrate"}
    made = prefect_api.post("deployments/", {**asked, "job_variables": {"image": "ferry@sha256:0", "env": {"A": "b"}}})
    assert made["work_pool_name"] == name
    with pytest.raises(OSError, match="HTTP Error 4"):
        prefect_api.post("deployments/", {**asked, "name": "wrong", "job_variables": {"image": 5}})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ferry_deploy_works_with_them(kind: str, cli: Cli, prefect_api: Prefect, tmp_path: Path) -> None:
    """`ferry deploy` of the shipped prefect.yaml makes its deployments in such a pool, says once that `working_dir` is
    left out there, and finds nothing to change when it runs again."""
    deployed = Deployed(tmp_path, cli)
    make(prefect_api, deployed.pool, kind)
    for one in deployed.content["deployments"]:
        one["work_pool"]["job_variables"] = {**one["work_pool"]["job_variables"], "image": "ferry@sha256:0"}
    deployed.write()
    would = deployed.changes("--dry-run")
    said = deployed.deploy().expect(0).text
    assert said.count("working_dir") == 1
    assert f"of the type {kind}" in said
    found = prefect_api.post("deployments/filter", {"deployments": {"name": {"like_": deployed.mark}}})
    assert sorted(f"deployment {one['name'].removesuffix(f'-{deployed.mark}')}" for one in found) == sorted(
        re.sub("(migrate|shard|verify)/", "", name) for name in would if name.startswith("deployment ")
    )
    assert [one["job_variables"] for one in found] == [{"image": "ferry@sha256:0"}] * 4
    assert set(deployed.changes().values()) == {"unchanged"}


@pytest.mark.slow
def test_a_variable_that_the_pool_lacks(cli: Cli, prefect_api: Prefect, tmp_path: Path) -> None:
    """Any variable but `working_dir` that a pool's template lacks is refused, and nothing is made."""
    deployed = Deployed(tmp_path, cli)
    make(prefect_api, deployed.pool, "ecs")
    deployed.entry("prod")["work_pool"]["job_variables"] = {"working_dir": ".", "memory_limit": "2Gi"}
    deployed.write()
    said = deployed.deploy().expect(2).stderr
    assert f"migrate/prod-{deployed.mark}: the work pool `{deployed.pool}` is of the type ecs" in said
    assert "knows no job variable `memory_limit`" in said
    assert "`working_dir`" not in said
    found = prefect_api.post("deployments/filter", {"deployments": {"name": {"like_": deployed.mark}}})
    assert found == []
