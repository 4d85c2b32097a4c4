"""Whole runs of a list from an API, whose token ends while list and objects are read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flows.project import Ended, Prefect, Project
from tests.servers.list_api import CLIENT, IMAGE, SECRET, Answer, ListApi

pytestmark = pytest.mark.slow


def lay(project: Project, api: ListApi, **settings: Any) -> None:
    auth = {
        "type": "oauth2_client_credentials", "access_token_url": f"{api.url}/token", "client_id": CLIENT,
        "client_secret": "env:PIM_SECRET",
    }  # fmt: skip
    project.job(
        manifest={
            "url": f"{api.url}/link",
            "paginator": {"type": "header_link"},
            "explode": "images",
            "fields": {"url": "_.href", "sku": "sku", "n": "_n"},
        },
        source={"allow_private_addresses": ["127.0.0.1"], "auth": auth},
        key="{sku}/{n}.{source.ext}",
        **settings,
    )


def ferry(project: Project, *arguments: str, code: int = 0) -> Ended:
    return project.ferry(*arguments, env={"PIM_SECRET": SECRET}).expect(code)


def test_a_token_that_ends_during_the_run(project: Project, prefect_api: Prefect) -> None:
    """All objects arrive though the token ends in the list and among the objects, and no file has a secret."""
    with ListApi() as api:
        api.protected, api.uses = True, 9
        lay(project, api, concurrency=2, processes=2, chunk_rows=10)
        assert ferry(project, "plan", "job.yaml", "--json").json["rows"] == 40
        run = ferry(project, "run", "job.yaml")
        assert project.stored() == {f"S{n}/{image}.jpg": IMAGE for n in range(25) if n % 5 for image in (1, 2)}
        assert api.issued >= 5
        everything = run.text.encode() + b"".join(project.files().values()) + prefect_api.database()
        assert b"s3cret" not in everything
        assert b"canarytoken" not in everything


def test_a_list_that_breaks_off_deletes_nothing(project: Project) -> None:
    """Delta runs with deletion: nothing is deleted after half of a list, and after a whole one what was removed is."""
    with ListApi() as api:
        delta = {"delete_removed": True, "delete_after": 1, "max_delete": "100%"}
        lay(project, api, mode="delta", delta={**delta, "accept_shorter_manifest": True})
        ferry(project, "run", "job.yaml")
        before = project.stored()
        assert len(before) == 40
        api.faults["/link?page=2"] = [Answer(status=500)] * 5
        ended = ferry(project, "run", "job.yaml", code=2)
        assert "page 2 cannot be read" in ended.text
        assert "Nothing was planned" in ended.text
        assert project.stored() == before
        api.size = 20
        ferry(project, "run", "job.yaml")
        assert len(project.stored()) == 32
