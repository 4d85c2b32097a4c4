"""The work pools' templates, as a Prefect server takes them; a real server, no cluster."""

from __future__ import annotations

import json
import secrets

import pytest

from tests.flows.project import Prefect
from tests.flows.site import UNITS


@pytest.mark.parametrize(("kind", "folder"), [("kubernetes", "kubernetes"), ("ecs", "ecs")])
def test_the_server_takes_them(kind: str, folder: str, prefect_api: Prefect) -> None:
    """A pool is made of the template, and a deployment with some of its variables; a wrong one is refused, and what is
    a process pool's alone does no harm."""
    template = json.loads((UNITS.parent / folder / "work-pool.json").read_text())
    name = f"{kind}-{secrets.token_hex(4)}"
    prefect_api.post("work_pools/", {"name": name, "type": kind, "base_job_template": template})
    flow = prefect_api.post("flows/", {"name": name})["id"]
    asked = {"name": "prod", "flow_id": flow, "work_pool_name": name, "entrypoint": "flows/migrate.py:migrate"}
    made = prefect_api.post("deployments/", {**asked, "job_variables": {"image": "ferry@sha256:0", "env": {"A": "b"}}})
    assert made["work_pool_name"] == name
    with pytest.raises(OSError, match="HTTP Error 4"):
        prefect_api.post("deployments/", {**asked, "name": "wrong", "job_variables": {"image": 5}})
    prefect_api.post("deployments/", {**asked, "name": "process", "job_variables": {"working_dir": "."}})
