"""A newer Ferry continues the state of an older one, and an older one refuses a newer state."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo.origin import Origin
from demo.s3 import S3Server
from tests.flows import old_state
from tests.flows.project import Cli, Ended, Prefect, fold

pytestmark = pytest.mark.slow

# `ferry` as it will be some day: only its version is another.
LATER = """
import sys
import ferry
ferry.__version__ = "99.0.0"
from flows.__main__ import main
sys.argv[0] = "ferry"
main()
"""


class Updated:
    """The state of an older Ferry, the destination as it left it, and today's Ferry."""

    def __init__(self, made: old_state.Place, cli: Cli) -> None:
        self.made, self.cli = made, cli
        self.state = made.folder / ".ferry" / old_state.NAME
        self.state.parent.mkdir()
        with tarfile.open(old_state.ARCHIVE) as archive:
            archive.extractall(self.state.parent, filter="data")
        for key, body in made.bodies.items():
            made.s3.client().put_object(Bucket=old_state.BUCKET, Key=f"p/{key}", Body=body)

    def ferry(self, *arguments: str) -> Ended:
        return self.cli.run(arguments, self.made.folder, self.made.environment)

    def later(self, *arguments: str) -> Any:
        environment = {**self.cli.environment, **self.made.environment}
        command = [sys.executable, "-c", LATER, *arguments]
        done = subprocess.run(
            command, cwd=self.made.folder, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return json.loads(done.stdout)

    @property
    def stored(self) -> dict[str, tuple[Any, bytes]]:
        """Returns the time and the bytes of each object."""
        client, found = self.made.s3.client(), {}
        for item in client.list_objects_v2(Bucket=old_state.BUCKET).get("Contents", []):
            body = client.get_object(Bucket=old_state.BUCKET, Key=item["Key"])["Body"].read()
            found[item["Key"].removeprefix("p/")] = (item["LastModified"], body)
        return found

    def asked(self) -> Counter[str]:
        """Returns the requests to the origin since the last call."""
        asked = self.made.origin.requests
        self.made.origin.requests, self.made.origin.bodies = Counter(), Counter()
        return asked


def test_nights_go_on_after_an_update(cli: Cli, s3: S3Server, prefect_api: Prefect, tmp_path: Path) -> None:
    """An old state is read without a request for rows that are done, and a delta run rechecks them."""
    with old_state.place(tmp_path, s3) as made:
        nights_go_on(Updated(made, cli), prefect_api)


def nights_go_on(updated: Updated, prefect_api: Prefect) -> None:
    kinds = {pq.read_metadata(path).metadata[b"ferry_schema"] for path in (updated.state / "ledger").glob("*.parquet")}
    assert kinds == {b"1"}
    before = updated.stored
    said = updated.ferry("status", "job.yaml", "--json").expect(0).json
    assert (said["copied"], said["failed"], said["pending"]) == (20, 2, 0)
    report = updated.later("run", "job.yaml", "--json")
    assert (report["this_run"], report["cached"], report["counts"]["copied"]) == ({}, 0, 20)
    assert set(prefect_api.chunk_states(prefect_api.runs(old_state.NAME)[-1])) == {"Completed"}
    assert not updated.asked()
    assert updated.stored == before

    made = updated.made
    made.put("03.bin", b"another object")
    made.put("new.bin", b"an object of the day after")
    made.job(mode="delta")
    made.list(*made.bodies, *(f"gone-{number}.bin" for number in range(old_state.MISSING)))
    report = updated.ferry("run", "job.yaml", "--json").expect(0).json
    assert report["this_run"] == {"copied": 2, "unchanged": 19, "failed": 2}
    assert report["delta"]["bytes_saved"] > 0
    assert +made.origin.bodies == {"/03.bin": 1, "/new.bin": 1}
    assert {key: body for key, (_, body) in updated.stored.items()} == made.bodies
    kept = {key: at for key, at in updated.stored.items() if key not in ("03.bin", "new.bin")}
    assert kept == {key: at for key, at in before.items() if key != "03.bin"}
    updated.ferry("verify", "job.yaml").expect(0)
    assert {line["status"] for line in fold(updated.state).values()} == {"copied", "unchanged", "failed", "skipped"}
    assert len(fold(updated.state)) == 24


def test_an_older_ferry_refuses_a_newer_state(cli: Cli, s3: S3Server, origin: Origin, tmp_path: Path) -> None:
    """A state of a newer schema exits 2 with what to do, and does not change."""
    updated = Updated(old_state.Place(tmp_path, origin, s3, {}), cli)
    updated.made.job()
    plan = updated.state / "plan" / "plan.json"
    data = json.loads(plan.read_text())
    data.pop("sha256")
    plan.write_text(json.dumps({**data, "ferry_schema": 99}))
    before = {path: path.read_bytes() for path in updated.state.rglob("*") if path.is_file()}
    for command in ("run", "status", "failures"):
        refused = updated.ferry(command, "job.yaml").expect(2)
        assert "was written by a newer version of Ferry (schema 99" in refused.text
        assert "Update Ferry here, or use another `state`" in refused.text.replace("\n", " ")
    assert {path: path.read_bytes() for path in updated.state.rglob("*") if path.is_file()} == before
    assert not updated.asked()
