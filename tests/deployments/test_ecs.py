"""ECS: what Prefect's worker makes of the work pool's template, by botocore's model of AWS's API. Started nowhere."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import botocore.session
import pytest
from botocore.stub import Stubber
from prefect.client.schemas.objects import FlowRun
from prefect_aws.workers.ecs_worker import ECSJobConfiguration, ECSVariables, ECSWorker

from tests.flows.site import UNITS

POOL: dict[str, Any] = json.loads((UNITS.parent / "ecs" / "work-pool.json").read_text())
NOBODY: Any = object()  # a template without blocks asks no server
RUN = FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="products")


@pytest.fixture
def requests() -> tuple[dict[str, Any], dict[str, Any]]:
    """What the worker would ask of AWS for a run: RegisterTaskDefinition, RunTask."""
    configuration: Any = asyncio.run(
        ECSJobConfiguration.from_template_and_values(POOL, {"env": {"A": "b"}}, client=NOBODY)
    )
    configuration.prepare_for_flow_run(RUN)
    worker = ECSWorker(work_pool_name="ferry")
    definition = worker._prepare_task_definition(configuration, "eu-central-1", RUN)
    arn = "arn:aws:ecs:r:1:task-definition/ferry:1"
    started = worker._prepare_task_run_request(configuration, definition, arn, new_task_definition_registered=True)
    return definition, started


def test_aws_would_take_them(requests: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Both requests are valid by the model of the API that boto3 ships; nothing is sent."""
    client: Any = botocore.session.get_session().create_client(
        "ecs", region_name="eu-central-1", aws_access_key_id="none", aws_secret_access_key="none"
    )
    with Stubber(client) as stub:
        stub.add_response("register_task_definition", {})
        stub.add_response("run_task", {})
        client.register_task_definition(**requests[0])
        client.run_task(**requests[1])
        stub.assert_no_pending_responses()


def test_roles_and_no_keys(requests: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """A run has a role; the one secret, the API's, is named and fetched by ECS; no key stands anywhere."""
    definition, started = requests
    (container,) = definition["containerDefinitions"]
    assert definition["taskRoleArn"].endswith(":role/ferry-task")
    assert [secret["name"] for secret in container["secrets"]] == ["PREFECT_API_AUTH_STRING"]
    assert "AWS_ACCESS_KEY_ID" not in json.dumps([definition, started])
    assert "PREFECT_API_AUTH_STRING" not in json.dumps(started)


def test_spot(requests: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """On Spot, with the two minutes that AWS gives, and SIGTERM for the process that moves."""
    definition, started = requests
    (container,) = definition["containerDefinitions"]
    assert started["capacityProviderStrategy"] == [{"capacityProvider": "FARGATE_SPOT", "weight": 1}]
    assert "launchType" not in started
    assert container["stopTimeout"] == 120
    (override,) = started["overrides"]["containerOverrides"]
    assert override["command"] == ["python", "-m", "prefect.engine"]
    assert {"name": "PREFECT__FLOW_RUN_ID", "value": str(RUN.id)} in override["environment"]


def test_the_template_is_one_of_prefect_s() -> None:
    """Each key of the job is one that Prefect's worker knows, and each variable is used."""
    known = set(ECSJobConfiguration.model_fields)
    assert set(POOL["job_configuration"]) <= known
    text = json.dumps(POOL["job_configuration"])
    assert [name for name in POOL["variables"]["properties"] if f"{{{{ {name} }}}}" not in text] == []
    shared = set(POOL["variables"]["properties"]) & set(ECSVariables.model_fields)
    assert {"image", "cluster", "task_role_arn", "execution_role_arn"} <= shared
