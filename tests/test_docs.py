"""The documentation says what the code does: keys, columns, classes, queries, examples."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import itertools
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from ferry.core.records import AGAIN, Again, ErrorClass
from ferry.job.model import Job
from ferry.reconcile.finish import FIGURES
from ferry.reconcile.prune import PruneResult
from ferry.state import ledger
from ferry.state.counts import Counts
from ferry.state.files import DirectoryState
from ferry.state.parquet import OUTCOME_SCHEMA
from flows.cli.job_file.draft import draft
from tasks.job_file import load_job
from tests.stores.test_contract import SERVERS
from tests.support.helpers import make_outcome

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CODE = ("benchmarks", "demo", "deployments", "docs", "ferry", "flows", "tasks", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in CODE for page in (ROOT / folder).rglob("*.md"))])


def _generator(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_what_their_generators_write() -> None:
    """docs/reference/job.md is what the model says today, and stores.md what the capability table does."""
    assert _page("reference/job.md") == _generator("make_job_md").render(), "run: .venv/bin/python docs/make_job_md.py"
    stores = _generator("make_stores_md")
    assert _page("reference/stores.md") == stores.render(stores.measured()), "run: python docs/make_stores_md.py"


def test_the_table_of_stores_has_every_server() -> None:
    """Each server of the contract suite has its column."""
    header = _generator("make_stores_md").measured().splitlines()[0]
    assert header.strip("| ").split(" | ") == [each.name for each in SERVERS]


def test_every_yaml_job_in_the_docs_loads(tmp_path: Path) -> None:
    """Each YAML block that is a whole job is a valid one, in the README, in docs/ and in `ferry init`."""
    found = 0
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
            data = yaml.safe_load(block)
            if {"name", "manifest", "destination"} <= set(data):
                Job.model_validate(data)
                found += 1
    assert found >= 3
    job_file = tmp_path / "job.yaml"
    job_file.write_text(draft(Path("x.yaml")))
    assert load_job(job_file).name == "x"


def test_what_init_comments_out_is_valid_too(tmp_path: Path) -> None:
    """The commented settings of `ferry init` load when somebody takes the `#` away."""
    text = draft(Path("x.yaml"))
    names = "source|key|public_url|checks|on_existing|failure_budget|limits|state|  "
    opened = re.sub(rf"^# (?=({names}))", "", text, flags=re.MULTILINE)
    kept = [line for line in opened.splitlines() if not re.match(r"  destination:|    (uri|endpoint|cred)", line)]
    job_file = tmp_path / "job.yaml"
    job_file.write_text("\n".join(kept))
    job = load_job(job_file)
    assert job.source.url == "https://img.old.example/{id}.jpg"
    assert job.key == "{sku}/{source.name}"
    assert job.public_url == "https://img.new.example/{key}"


def test_state_md_lists_every_column() -> None:
    """docs/reference/state.md has a line for each column of the ledger, and for no other."""
    section = _page("reference/state.md").partition("## Outcome columns")[2].partition("## Queries")[0]
    listed = [
        name for line in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", line)
    ]
    assert listed == OUTCOME_SCHEMA.names


def test_state_md_lists_the_keys_of_reports() -> None:
    """docs/reference/state.md names each figure of a run's report."""
    section = _page("reference/state.md").partition("## Reports")[2].partition("\n## ")[0]
    lines = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    figures = {"counts": Counts, "pruned": PruneResult}
    names = {key: {field.name for field in fields(made)} for key, made in figures.items()} | {"delta": set(FIGURES)}
    for key, wanted in names.items():
        assert wanted <= set(re.findall(r"`(\w+)`", lines[key])), key


def test_state_md_lists_every_error_class() -> None:
    """docs/reference/state.md has a line for each error class, and says of each whether it is tried again."""
    section = _page("reference/state.md").partition("## Error classes")[2]
    words = {Again.NOW: "yes", Again.NEXT_RUN: "by the next run", Again.NEVER: "no"}
    listed = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", section, re.MULTILINE))
    assert listed == {name.value: words[AGAIN[name]] for name in ErrorClass}


@pytest.mark.parametrize("moment", ["in the first run", "finished", "in a later run"])
def test_the_three_queries_run(moment: str, tmp_path: Path) -> None:
    """The queries of docs/reference/state.md, as they stand there, answer from a state's files at any time."""
    state = DirectoryState(tmp_path)
    ledger.append_outcomes(state, [make_outcome("a"), make_outcome("b"), make_outcome("c")], 1, "c" * 64, 0)
    if moment != "in the first run":
        ledger.compact_ledger(state, 1)
    if moment == "in a later run":
        ledger.append_outcomes(state, [make_outcome("c", run_no=2)], 2, "d" * 64, 0)
    for other in ("chunks", "plan"):  # these are no outcomes
        (tmp_path / other).mkdir()
        (tmp_path / other / "x.parquet").write_bytes(b"no Parquet")
    queries = re.findall(r"```sql\n(.*?)```", _page("reference/state.md"), re.DOTALL)
    assert len(queries) == 3
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        with duckdb.connect() as con:
            answers = [con.execute(query).fetchall() for query in queries]
    finally:
        os.chdir(before)
    assert sum(line[2] for line in answers[0]) == 3
    assert len(answers[2]) == 3


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/reference/guarantees.md"])
def test_tests_that_are_named_exist(page: str) -> None:
    """What is promised has the test that is named beside it."""
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / page).read_text()))
    assert len(named) > 10
    for path, name in sorted(named):
        assert (ROOT / path).is_file(), path
        assert not name or re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


def test_limits_are_what_the_code_says() -> None:
    """SECURITY.md's table of limits has the numbers that manifests are read with."""
    from ferry.manifest import api_pages, columns, excel_process, http_list, load, typed
    from ferry.manifest import csv as manifest_csv
    from ferry.manifest import text as manifest_text
    from tasks import job_file

    table = (ROOT / "SECURITY.md").read_text().partition("## Limits on manifests")[2].partition("\n## ")[0]
    for shown in (
        f"{manifest_text.MAX_LINE_BYTES >> 20} MiB, {columns.MAX_CELL_CHARS:,} characters",
        f"{columns.MAX_COLUMNS:,} |",
        f"{manifest_text.MAX_UNPACKED_BYTES >> 20} MiB and {manifest_text.MAX_RATIO} times",
        f"{manifest_csv.MAX_REREAD_CHARS >> 20} million characters",
        f"{typed.MAX_BATCH_BYTES >> 30} GiB |",
        f"{excel_process.MAX_BYTES >> 30} GiB of memory and {excel_process.MAX_CPU_S // 60} minutes",
        f"{load.MAX_MANIFEST_BYTES >> 30} GiB",
        f"{http_list.MAX_PAGE_BYTES >> 20} MiB, {api_pages.MAX_PAGES:,} pages",
        f"{job_file.MOST_CHARACTERS:,} characters",
    ):
        assert shown in table, shown


def commands_of(page: Path) -> Iterator[list[str]]:
    """The `ferry` and `prefect` commands in a page's blocks of shell lines, without their comments."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            with contextlib.suppress(ValueError):  # one line of a text in quotes
                words = shlex.split(line, comments=True)
                for end, command in itertools.groupby(words, key=lambda word: word in ("&&", "&", ";")):
                    if not end and (found := list(command))[0] in ("ferry", "prefect"):
                        yield found


HELPS = """
import json, sys
from prefect.cli import app

for words in json.loads(sys.argv[1]):
    print("\\f", flush=True)
    sys.argv = ["prefect", *words, "--help"]
    try:
        app()
    except SystemExit as end:
        assert not end.code, words
"""  # one process, since Prefect takes seconds to load


def test_the_commands_of_the_pages_exist() -> None:
    """Each is one that the two programs take, options included."""
    from flows.cli import commands, main

    found = {tuple(command) for page in PAGES for command in commands_of(page)}
    assert len(found) > 40
    for name, *arguments in sorted(found):
        if name == "ferry":
            given = main.bare_retry_failed(list(arguments))
            if given != ["--version"]:
                commands.app.parse_args(given, exit_on_error=False, print_error=False)
    helps: dict[tuple[str, ...], set[str]] = {}
    for name, *arguments in sorted(found):
        if name == "prefect":
            plain = tuple(itertools.takewhile(lambda word: re.fullmatch(r"[a-z-]+", word), arguments))[:2]
            helps.setdefault(plain, set()).update(word for word in arguments if word.startswith("--"))
    asked = [sys.executable, "-c", HELPS, json.dumps(list(helps))]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    for (plain, options), shown in zip(helps.items(), done.stdout.split("\f")[1:], strict=True):
        assert not [option for option in options if option not in shown], plain


def test_cli_md_lists_every_command_and_option() -> None:
    """docs/reference/cli.md has a section for each command, with each of its options, and for no other."""
    from flows.cli.commands import app

    sections = dict(
        re.findall(r"^## `ferry (\w+)`\n(.*?)(?=^## )", _page("reference/cli.md"), re.DOTALL | re.MULTILINE)
    )
    assert sorted(sections) == sorted(name for name in app if not name.startswith("-"))
    for name, section in sections.items():
        below = [part for part in app[name] if not part.startswith("-")]  # of `ferry server`
        assert set(below) <= set(re.findall(rf"ferry {name} (\w+)", section)), name
        commands = [app[name][part] for part in below] or [app[name]]
        options = {
            option
            for found in commands
            for argument in found.assemble_argument_collection()
            for option in argument.names
        }
        told = set(re.findall(r"--[a-z][a-z-]*", section))
        elsewhere = {
            "--json",
            "--job-file",
            "JOB_FILE",
            "JOB_FILES",
            "ACCESS_LOG",
            "--destination",
            "--out",
            "--path",
            "--what",
            "--names",
            "--empty-names",
        }
        assert options - elsewhere <= told, name
        assert told <= options | {"--help", "--retry-failed"}, name


def test_observing_md_lists_every_metric() -> None:
    """docs/how-to/observe.md has a line for each metric, with its type, and for no other."""
    from ferry.core.progress import Progress
    from ferry.ratelimit.host_snapshot import HostSnapshot
    from tasks.reporting.last_run import LastRun, RunVerdict
    from tasks.reporting.metrics import RunCollector
    from tasks.reporting.run_view import RunView

    host = HostSnapshot("img.example", 1, 1, 0, 0.0, "why", requests=1)
    view = RunView("job", "full", Progress(), hosts=lambda: ([host], 0))
    last = LastRun(view, logging.getLogger())
    last.end(RunVerdict.COMPLETED)
    families = [*RunCollector(view).collect(), *last.families(), *last.success()]
    kinds = {"info": ("_info", "gauge"), "counter": ("_total", "counter"), "gauge": ("", "gauge")}
    told = [(family.name + kinds[family.type][0], kinds[family.type][1]) for family in families]
    assert re.findall(r"^\| `(ferry_\w+)` \| (\w+) \|", _page("how-to/observe.md"), re.MULTILINE) == told


def test_observing_md_shows_lines_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's log lines are what the formatters make of such records."""
    from tasks.reporting import log_format

    blocks = re.findall(r"<!-- lines.*?```\w*\n(.*?)```", _page("how-to/observe.md"), re.DOTALL)
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


def test_performance_md_begins_with_figures_of_its_tables() -> None:
    """The ten lines for users name only figures that the last `make bench` wrote below them."""
    lines, _, written = _page("explanation/performance.md").partition("<!-- from here on written by `make bench` -->")
    lines = lines.partition("\n## ")[0]
    figures = re.findall(r"[\d,.]*\d(?=x| objects/s| MB/s| s )", lines)
    assert len(figures) > 9
    assert not [figure for figure in figures if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d])", written)]


def _texts() -> set[str]:
    """Every text in the code of Ferry, on one line, with … for what is filled in."""

    def text(node: ast.AST) -> str | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) or "…" for part in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
            left, right = text(node.left), text(node.right)
            return (left or "…") + (right or "…") if left or right else None
        return None

    paths = [path for folder in ("ferry", "flows", "tasks") for path in (ROOT / folder).rglob("*.py")]
    found = (text(node) for path in paths for node in ast.walk(ast.parse(path.read_text())))
    return {" ".join(re.sub(r"%[sdr]", "…", one).split()) for one in found if one}


def test_troubleshooting_quotes_messages_as_they_are() -> None:
    """Each code span in the first column of troubleshooting.md is part of a text in the code."""
    texts, missing = _texts(), {}
    cells = re.findall(r"^\| ([^\n]*?)(?: \| |$)", _page("how-to/troubleshooting.md"), re.MULTILINE)
    quotes = [span for cell in cells for _, span in re.findall(r"(?<!`)(``+)(?!`)(.+?)(?<!`)\1(?!`)", cell)]
    assert len(quotes) > 100
    for quote in (quote.strip() for quote in quotes):
        if not any(quote in text for text in texts):
            missing[quote] = get_close_matches(quote, texts, n=1, cutoff=0.3)
    assert not missing, "change the quotes to what the code says:\n" + json.dumps(missing, indent=1, ensure_ascii=False)


def test_every_picture_of_the_docs_is_there() -> None:
    """Pages show and link only pictures that are there, small ones, and none lies about that no page shows."""
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    shown = {name for page in pages for name in re.findall(r"images/([\w-]+\.png)", page.read_text())}
    there = {path.name: path.stat().st_size for path in (DOCS / "images").iterdir()}
    assert shown == set(there)
    assert max(there.values()) < 150_000


def _page(name: str) -> str:
    return (DOCS / name).read_text()


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        base = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = next(n for n in range(1000) if (f"{base}-{n}" if n else base) not in anchors)
        anchors.add(f"{base}-{number}" if number else base)
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """Each relative link of a page names a file or folder that is there, and each anchor a heading of its page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`(?!\])", "", text)
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in _anchors(there), f"{target}: {sorted(_anchors(there))}"


def test_every_page_that_is_named_exists() -> None:
    """Code, messages, settings and pages name only files and folders of docs/ that are there."""
    endings = {".py", ".md", ".yaml", ".toml", ".sh", ".service", ".conf", ".example", ".json", ""}
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*") if path.suffix in endings]
    files += [path for path in ROOT.iterdir() if path.suffix in endings]
    named = {
        (name.rstrip(".-/"), str(path.relative_to(ROOT)))
        for path in files
        if path.is_file()
        for name in re.findall(r"(?<![\w./-])docs/[\w./-]+", path.read_text(errors="replace"))
    }
    assert len(named) > 50
    missing = {
        (name, file) for name, file in named if not (ROOT / name).exists() and not list(ROOT.glob(f"{name}-*.md"))
    }
    assert not missing


def test_decisions_are_numbered() -> None:
    """Each decision has a number of its own and a title."""
    pages = sorted((DOCS / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{n:04d}" for n in range(1, len(pages) + 1)]
    assert all(page.read_text().startswith("# ") for page in pages)
