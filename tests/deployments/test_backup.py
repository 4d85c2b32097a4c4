"""The commands of docs/how-to/deploy.md that back up Prefect's database and put it back, on a PostgreSQL of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.project import ROOT
from tests.flows.site import needs_postgresql
from tests.support.postgres import Postgres


def lines() -> tuple[str, str]:
    """The two commands, as a reader copies them."""
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
    (found,) = re.findall(r"```sh\n(pg_dump .*?)\n```", page, re.DOTALL)
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
    back_up, restore = lines()
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
