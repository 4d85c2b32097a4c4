"""The documentation says what the code does: keys, columns, classes, queries, examples."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import duckdb
import pytest
import yaml

from ferry.core.records import AGAIN, Again, ErrorClass
from ferry.job.model import Job
from ferry.state import ledger
from ferry.state.files import DirectoryState
from ferry.state.parquet import OUTCOME_SCHEMA
from tasks.job_file import TEMPLATE, load_job
from tests.support.helpers import make_outcome

ROOT = Path(__file__).parents[1]


def test_job_md_is_what_the_model_says() -> None:
    """docs/job.md is what docs/make_job_md.py writes from the model today."""
    spec = importlib.util.spec_from_file_location("make_job_md", ROOT / "docs" / "make_job_md.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "job.md").read_text() == module.render(), "run: .venv/bin/python docs/make_job_md.py"


def test_every_yaml_job_in_the_docs_loads(tmp_path: Path) -> None:
    """Each YAML block that is a whole job is a valid one, in the README, in docs/ and in `ferry init`."""
    found = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
            data = yaml.safe_load(block)
            if {"name", "manifest", "destination"} <= set(data):
                Job.model_validate(data)
                found += 1
    assert found >= 3
    job_file = tmp_path / "job.yaml"
    job_file.write_text(TEMPLATE.format(file="job.yaml", name="x"))
    assert load_job(job_file).name == "x"


def test_what_init_comments_out_is_valid_too(tmp_path: Path) -> None:
    """The commented settings of `ferry init` load when somebody takes the `#` away."""
    text = TEMPLATE.format(file="job.yaml", name="x")
    opened = re.sub(r"^# (?=(source|key|checks|on_existing|failure_budget|state|  ))", "", text, flags=re.MULTILINE)
    kept = [line for line in opened.splitlines() if not re.match(r"  destination:|    (uri|endpoint|cred)", line)]
    job_file = tmp_path / "job.yaml"
    job_file.write_text("\n".join(kept))
    job = load_job(job_file)
    assert job.source.url == "https://img.old.example/{id}.jpg"
    assert job.key == "{sku}/{source.name}"


def test_state_md_lists_every_column() -> None:
    """docs/state.md has a line for each column of the ledger, and for no other."""
    section = (ROOT / "docs" / "state.md").read_text().partition("## Outcomes")[2].partition("## The three")[0]
    listed = [
        name for line in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", line)
    ]
    assert listed == OUTCOME_SCHEMA.names


def test_state_md_lists_every_error_class() -> None:
    """docs/state.md has a line for each error class, and says of each whether it is tried again."""
    section = (ROOT / "docs" / "state.md").read_text().partition("## Error classes")[2]
    words = {Again.NOW: "yes", Again.NEXT_RUN: "by the next run", Again.NEVER: "no"}
    listed = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", section, re.MULTILINE))
    assert listed == {name.value: words[AGAIN[name]] for name in ErrorClass}


@pytest.mark.parametrize("moment", ["in the first run", "finished", "in a later run"])
def test_the_three_queries_run(moment: str, tmp_path: Path) -> None:
    """The queries of docs/state.md, as they stand there, answer from a state's files at any time."""
    state = DirectoryState(tmp_path)
    ledger.append_outcomes(state, [make_outcome("a"), make_outcome("b"), make_outcome("c")], 1, "c" * 64, 0)
    if moment != "in the first run":
        ledger.compact_ledger(state, 1)
    if moment == "in a later run":
        ledger.append_outcomes(state, [make_outcome("c", run_no=2)], 2, "d" * 64, 0)
    for other in ("chunks", "plan"):  # these are no outcomes
        (tmp_path / other).mkdir()
        (tmp_path / other / "x.parquet").write_bytes(b"no Parquet")
    queries = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "state.md").read_text(), re.DOTALL)
    assert len(queries) == 3
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        answers = [duckdb.connect().execute(query).fetchall() for query in queries]
    finally:
        os.chdir(before)
    assert sum(line[2] for line in answers[0]) == 3
    assert len(answers[2]) == 3


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/guarantees.md"])
def test_tests_that_are_named_exist(page: str) -> None:
    """What is promised has the test that is named beside it."""
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / page).read_text()))
    assert len(named) > 10
    for path, name in sorted(named):
        assert (ROOT / path).is_file(), path
        assert not name or re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


def test_bounds_are_what_the_code_says() -> None:
    """SECURITY.md's table of bounds has the numbers that lists are read with."""
    from ferry.manifest import columns, excel_process, load, typed
    from ferry.manifest import csv as manifest_csv
    from ferry.manifest import text as manifest_text
    from tasks import job_file

    table = (ROOT / "SECURITY.md").read_text().partition("## Bounds on lists")[2].partition("\n## ")[0]
    for shown in (
        f"{manifest_text.MAX_LINE_BYTES >> 20} MiB, {columns.MAX_CELL:,} characters",
        f"{columns.MAX_COLUMNS:,} |",
        f"{manifest_text.MAX_UNPACKED_BYTES >> 20} MiB and {manifest_text.MAX_RATIO} times",
        f"{manifest_csv.MAX_AGAIN >> 20} million characters",
        f"{typed.MOST_BYTES >> 30} GiB |",
        f"{excel_process.MOST_BYTES >> 30} GiB of memory and {excel_process.MOST_SECONDS // 60} minutes",
        f"{load.LIST_AT_MOST_BYTES >> 30} GiB",
        f"{job_file.MOST_CHARACTERS:,} characters, {job_file.MOST_KEYS:,} keys",
    ):
        assert shown in table, shown


def commands_of(page: str) -> list[list[str]]:
    """The `ferry` and `prefect` commands in a page's blocks of shell lines, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and line[0] in ("ferry", "prefect")]


def test_the_commands_of_deploying_md_exist() -> None:
    """Each is one that the two programs take, options included."""
    from flows.cli.commands import app as ferry

    commands = commands_of("docs/deploying.md")
    assert len(commands) > 6
    for name, *arguments in commands:
        if name == "ferry":
            ferry.parse_args(arguments, exit_on_error=False, print_error=False)
        else:
            done = subprocess.run(
                [sys.executable, "-m", "prefect", *arguments, "--help"], capture_output=True, text=True, check=True
            )
            for option in (argument for argument in arguments if argument.startswith("--")):
                assert option in done.stdout, arguments


def test_observing_md_lists_every_metric() -> None:
    """docs/observing.md has a line for each metric, with its type, and for no other."""
    from ferry.core.progress import Progress
    from ferry.ratelimit.host_snapshot import HostSnapshot
    from tasks.reporting.metrics import RunCollector
    from tasks.reporting.run_view import RunView

    host = HostSnapshot("img.example", 1, 1, 0, 0.0, "why", requests=1)
    families = RunCollector(RunView("job", "full", Progress(), hosts=lambda: ([host], 0))).collect()
    kinds = {"info": ("_info", "gauge"), "counter": ("_total", "counter"), "gauge": ("", "gauge")}
    told = [(family.name + kinds[family.type][0], kinds[family.type][1]) for family in families]
    assert re.findall(r"^\| `(ferry_\w+)` \| (\w+) \|", _page("observing.md"), re.MULTILINE) == told


def test_observing_md_shows_lines_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's log lines are what the formatters make of such records."""
    from tasks.reporting import log_format

    blocks = re.findall(r"<!-- lines.*?```\w*\n(.*?)```", _page("observing.md"), re.DOTALL)
    text, as_json = (block.splitlines() for block in blocks)
    shown = json.loads(as_json[0])
    run = {name: shown[name] for name in ("flow_run_id", "flow_run_name")}
    monkeypatch.setattr(log_format, "run_fields", {**run, "job": shown["job"], "run_no": shown["run_no"]})
    when = datetime.fromisoformat(shown["time"])

    def record(name: str, message: str, **more: str) -> logging.LogRecord:
        made = logging.LogRecord(name, logging.INFO, "x.py", 1, message, (), None)
        made.__dict__.update(run, created=when.timestamp(), msecs=812.0, **more)
        return made

    assert log_format.JsonLines().format(record(shown["logger"], shown["message"])) == as_json[0]
    monkeypatch.setattr(log_format.TextLines, "converter", staticmethod(time.gmtime))
    assert log_format.TextLines().format(record(shown["logger"], shown["message"])) == text[0]
    name, message = re.search(r"Task run '(.*?)' .*? - (.*)", text[1]).groups()  # type: ignore[union-attr]
    line = log_format.TextLines().format(record("prefect.task_runs", message, task_run_name=name))
    assert line.partition(" | ")[2] == text[1].partition(" | ")[2]


def test_every_picture_of_the_docs_is_there() -> None:
    """Pages show and link only pictures that are there, small ones, and none lies about that no page shows."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {name for page in pages for name in re.findall(r"images/([\w-]+\.png)", page.read_text())}
    there = {path.name: path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()}
    assert shown == set(there)
    assert max(there.values()) < 150_000


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def test_decisions_are_numbered() -> None:
    """Each decision has a number of its own and a title."""
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{n:04d}" for n in range(1, len(pages) + 1)]
    assert all(page.read_text().startswith("# ") for page in pages)
