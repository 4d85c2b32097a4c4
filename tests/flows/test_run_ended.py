"""Each run ends with the event `ferry.run.ended`, and the automation of docs/how-to/alerts.md hears it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings

from demo.origin import Origin
from flows.server.local import LocalServer
from tests.flows.project import ROOT, Prefect, Project, serve, wait_for
from tests.flows.receivers import WAIT_S, a_webhook, save

pytestmark = pytest.mark.slow  # a Prefect server, and four runs of the command


@pytest.fixture
def client(prefect_local: LocalServer) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: f"{prefect_local.url}/api"}), get_client(sync_client=True) as client:
        yield client


def ended(prefect_api: Prefect, run: str) -> dict[str, Any]:
    """Returns the event of a run's end."""
    asked = {"filter": {"event": {"name": ["ferry.run.ended"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}}
    found: dict[str, Any] = wait_for(
        "the event of the run's end", lambda: next(iter(prefect_api.post("events/filter", asked)["events"]), None)
    )
    return found


def test_the_counts_of_each_end(
    project: Project, origin: Origin, prefect_api: Prefect, client: SyncPrefectClient
) -> None:
    """Completed, Failed and refused runs, and a verification, end with an event and labels; an automation hears it."""
    example = json.loads(re.search(r"```json\n(.*?)```", (ROOT / "docs/how-to/alerts.md").read_text(), re.DOTALL)[1])  # type: ignore[index]
    with a_webhook() as receiver:
        save(receiver.block(), project.name)
        block = client.read_block_document_by_name(project.name, "custom-webhook", include_secrets=False).id
        example["actions"][0]["block_document_id"] = str(block)
        made = client.create_automation(AutomationCore.model_validate(example))
        try:
            rows, _ = serve(origin, 5)
            rows.append({"sku": "none", "url": f"{origin.base_url}/none.jpg"})
            project.manifest(rows)
            project.ferry("run", "job.yaml").expect(0)
            project.job(failure_budget=0)
            project.ferry("run", "job.yaml", "--retry-failed").expect(1)
            project.ferry("verify", "job.yaml").expect(0)
            (project.folder / "products.csv").write_text("a\n")
            project.ferry("run", "job.yaml").expect(2)
            first, second, third = prefect_api.runs(project.name)
            (check,) = prefect_api.runs(project.name, "verify")
            of_all = {"planned": 6, "copied": 5, "unchanged": 0, "skipped": 0, "failed": 1, "pending": 0}
            found = {name: ended(prefect_api, run["id"]) for name, run in (
                ("first", first), ("second", second), ("third", third), ("check", check),
            )}  # fmt: skip
            payload = found["first"]["payload"]
            assert {name: payload[name] for name in of_all} == of_all
            assert (payload["job"], payload["run_no"], payload["verdict"], payload["exit_code"]) == (
                project.name, 1, "Completed", 0,
            )  # fmt: skip
            assert payload["bytes"] > 0
            assert payload["this_run"] == {"copied": 5, "failed": 1}
            payload = found["second"]["payload"]
            assert {name: payload[name] for name in of_all} == of_all
            assert (payload["verdict"], payload["exit_code"], payload["run_no"]) == ("Failed", 1, 2)
            payload = found["third"]["payload"]
            assert (payload["verdict"], payload["exit_code"], payload["planned"]) == ("Failed", 2, None)
            payload = found["check"]["payload"]
            assert (payload["flow"], payload["planned"], payload["failed"], payload["verdict"]) == (
                "verify", 5, 0, "Completed",
            )  # fmt: skip
            assert {one["prefect.resource.role"] for one in found["first"]["related"]} >= {"flow"}
            labels = client.read_flow_run(first["id"]).labels
            assert (labels["ferry.end.failed"], labels["ferry.end.verdict"]) == (1, "Completed")
            wait_for("the automation of the example", lambda: len(receiver.got) >= 2, WAIT_S)
            assert {message["subject"] for message in receiver.got} == {f"Ferry: {project.name} has failed rows"}
            assert "1 of 6 rows failed" in receiver.got[0]["body"]
        finally:
            client.delete_automation(made)
