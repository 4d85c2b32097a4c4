"""The commands of docs/how-to/deploy.md that make backups and put them back: Prefect's database, and a job's state.

Slow: a PostgreSQL of its own, and whole runs of the command.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Origin, Trouble
from tests.flows.project import ROOT, Cli, Prefect, Project, serve, wait_for
from tests.flows.site import needs_postgresql
from tests.support.postgres import Postgres


def lines(program: str) -> tuple[str, str]:
    """The command that makes a copy with a program and the one that puts it back, as a reader copies them."""
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
    (found,) = re.findall(rf"```sh\n({program} .*?)\n```", page, re.DOTALL)
    dump, restore = found.splitlines()
    return dump, restore


def records(database: Postgres) -> list[str]:
    """Everything in the database, without the words that pg_dump draws for each dump."""
    return [line for line in database.dump().splitlines() if not re.match(r"\\(un)?restrict ", line)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_was_lost_is_put_back(tmp_path: Path) -> None:
    """Prefect's own tables, with a record in them: all are as before, by a role that may do no more than the server."""
    needs_postgresql()
    back_up, restore = lines("pg_dump")
    with Postgres() as database:
        quiet = {**os.environ, "PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
        upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
        subprocess.run(upgrade, env={**quiet, "PREFECT_API_DATABASE_CONNECTION_URL": database.url}, check=True)
        database.query("INSERT INTO variable (name, tags, value) VALUES ('kept', '[]', '1') RETURNING name")
        before = records(database)
        assert any("kept" in line for line in before)
        where = {"PGHOST": str(database.sockets), "PGPORT": str(database.port), "PGUSER": "prefect"}
        shell = {"cwd": tmp_path, "env": {**os.environ, **where}, "check": True, "timeout": 120}
        subprocess.run(["sh", "-ec", back_up], **shell)  # type: ignore[call-overload]
        database.query("DROP TABLE variable, flow_run, events CASCADE")
        assert records(database) != before
        subprocess.run(["sh", "-ec", restore], **shell)  # type: ignore[call-overload]
        assert sorted(records(database)) == sorted(before)


class Drill:
    """A job, and copies of its state by the page's commands."""

    def __init__(self, project: Project, *, in_bucket: bool) -> None:
        self.project, self.in_bucket = project, in_bucket
        self._backups = project.folder / "backups"
        s3 = project.cli.s3
        remote = {
            "TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": s3.endpoint_url, "REGION": s3.region,
            "ACCESS_KEY_ID": s3.access_key, "SECRET_ACCESS_KEY": s3.secret_key,
        }  # fmt: skip
        self._env = {
            "PATH": os.environ["PATH"],
            **{f"RCLONE_CONFIG_STORE_{name}": value for name, value in remote.items()},
        }
        self._env |= {"RCLONE_S3_NO_CHECK_BUCKET": "true", "RCLONE_CONFIG": str(project.folder / "rclone.conf")}

    def job(self, rows: list[dict[str, str]]) -> None:
        state = f"s3://{self.project.bucket}/ferry/{self.project.name}" if self.in_bucket else None
        self.project.job(state=state, chunk_rows=8, concurrency=2)
        self.project.manifest(rows)

    def copy(self, name: str) -> None:
        self._do(0, name)

    def put_back(self, name: str) -> None:
        self._do(1, name)

    def _do(self, number: int, name: str) -> None:
        (self._backups / name).mkdir(parents=True, exist_ok=True)
        line = lines("rclone" if self.in_bucket else "tar")[number]
        for word, here in (
            ("product-images", self.project.name), ("/backup/", f"{self._backups / name}/"),
            ("store:bucket/", f"store:{self.project.bucket}/"),
        ):  # fmt: skip
            assert word in line or word.startswith("store"), line
            line = line.replace(word, here)
        subprocess.run(["sh", "-ec", line], cwd=self.project.folder, env=self._env, check=True, timeout=120)

    def lose(self) -> None:
        """Delete the state."""
        if self.in_bucket:
            client = self.project.client()
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.project.bucket, Prefix="ferry/"):
                for item in page.get("Contents", []):
                    client.delete_object(Bucket=self.project.bucket, Key=item["Key"])
        else:
            shutil.rmtree(self.project.state)

    def objects(self) -> dict[str, Any]:
        """When each object at the destination was written."""
        return {key: at for key, at in self.project.written_at().items() if not key.startswith("ferry/")}

    def run(self) -> dict[str, int]:
        """The counts of the job after another run."""
        counts = self.project.ferry("run", "job.yaml", "--json").expect(0).json["counts"]
        return {name: counts[name] for name in ("planned", "copied", "unchanged", "failed", "pending")}


@pytest.mark.slow
@pytest.mark.parametrize("in_bucket", [False, True], ids=["directory", "bucket"])
def test_a_state_that_was_put_back(in_bucket: bool, project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """After each copy, and after none, a run accounts for every row, and writes no object again."""
    if in_bucket and shutil.which("rclone") is None:
        pytest.skip("rclone is not installed; `make backups` installs it as root, or says how")
    drill = Drill(project, in_bucket=in_bucket)
    rows, bodies = serve(origin, 40)
    rows.insert(5, {"sku": "bad", "url": origin.add("/bad.jpg", b"", fault=Trouble.NOT_FOUND)})

    drill.job(rows[:10])
    first = {"planned": 10, "copied": 9, "unchanged": 0, "failed": 1, "pending": 0}
    assert drill.run() == first
    drill.copy("first")
    written, asked = drill.objects(), origin.total
    drill.lose()
    drill.put_back("first")
    assert drill.run() == first
    assert (drill.objects(), origin.total) == (written, asked)

    drill.job(rows)
    origin.latency_s = 0.3
    live = project.fork("run", "job.yaml", "--json")
    wait_for("some of the new objects", lambda: len(project.stored_keys()) >= 15 or live.poll() is not None, 60)
    drill.copy("during-a-run")
    assert live.poll() is None, "the copy was to be made during the run"
    assert Cli.end(live, ("run",)).expect(0).json["counts"]["copied"] == len(bodies)
    origin.latency_s = 0
    written = drill.objects()
    assert project.stored() == bodies
    drill.copy("last")

    for name, at_least in (("during-a-run", 9), ("first", 9), ("", 0), ("last", len(bodies))):
        drill.lose()
        if name:
            drill.put_back(name)
        counts = drill.run()
        assert counts["copied"] + counts["unchanged"] == len(bodies), name
        assert (counts["planned"], counts["failed"], counts["pending"]) == (len(rows), 1, 0), name
        assert counts["copied"] == at_least or (
            name == "during-a-run" and at_least <= counts["copied"] < len(bodies)
        ), name
        assert drill.objects() == written, name
    assert project.stored() == bodies
