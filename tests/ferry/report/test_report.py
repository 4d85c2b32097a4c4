"""The report: right for every state of a job, whatever a list holds, and complete in one file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from docs.browser import INSTALL, NAMES, Browser
from ferry.core import ErrorClass, Outcome, Row, Status, UserError
from ferry.job import Job
from ferry.reconcile import finish_run
from ferry.report import REPORT, make_report, report_name, write_report
from ferry.report.figures import (
    FORMATS,
    SAMPLES,
    WIDTHS_S,
    by_host,
    create_rows,
    formats,
    samples,
    sizes,
    timeline,
    width_for,
)
from ferry.report.page import _list_name
from ferry.report.runs import read_runs
from ferry.report.verdict import judge
from ferry.state import (
    Counts,
    Predicted,
    RunEnd,
    append_outcomes,
    folded_ledger,
    hold_lease,
    write_end,
    write_predicted,
)
from ferry.state.checksums import checked_name, encode_checked_json
from ferry.state.files import DirectoryState
from ferry.state.ledger import ledger_files
from tests.support.helpers import FAILED_404, chunk_rows, directory_state, make_job, make_outcome, plan, write_list
from tests.support.page_parser import Page

START = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
Given = Callable[[int, Row], dict[str, Any]]


class Migration:
    """A job in a folder, with runs whose outcomes a test invents."""

    def __init__(
        self, folder: Path, lines: Sequence[Sequence[str]], header: Sequence[str] = ("url",), **job: Any
    ) -> None:
        self.folder, self.run_no = folder, 0
        write_list(folder / "list.csv", lines, header)
        values = {
            "manifest": str(folder / "list.csv"),
            "destination": f"file://{folder}/new/",
            "failure_budget": 0,
            **job,
        }
        self.job: Job = make_job(**values)
        self.state: DirectoryState = directory_state(folder)

    def start(self, outcome: Given | None) -> None:
        """Plans, and writes outcomes; ``outcome`` returns what is special of a row's."""
        self.run_no += 1
        for ref in plan(self.job, self.state, self.run_no).chunks:
            if ref.done == ref.rows:
                continue
            rows = chunk_rows(self.state, ref)
            if outcome is not None:
                made = [self._outcome(row, ref.digest, outcome(n, row)) for n, row in enumerate(rows)]
                append_outcomes(self.state, made, self.run_no, ref.digest, 0)

    def _outcome(self, row: Row, chunk: str, given: dict[str, Any]) -> Outcome:
        status = given.pop("status", Status.FAILED if "error_class" in given else Status.COPIED)
        at = given.pop("at", START)
        return make_outcome(
            row.row_id, status,
            **{"source": row.source, "key": row.key, "id": row.id, "attempt": row.attempt, "reason": row.reason,
               "run_no": self.run_no, "chunk": chunk, "started_at": at - timedelta(seconds=1.5), "recorded_at": at,
               "content_type": "image/jpeg", "settings_digest": self.job.settings_digest(), **given},
        )  # fmt: skip

    def end(self, message: str = "Completed. This run: done", **progress: Any) -> None:
        finish_run(self.job, self.state, self.run_no, progress=progress, whole=True)
        write_end(self.state, self.run_no, message)

    def page(self, **options: Any) -> Page:
        return Page(make_report(self.job, self.state, **options))


def copied(n: int, row: Row) -> dict[str, Any]:
    return {"at": START + timedelta(seconds=n), "size": 1000 + n}


def urls(count: int, hosts: int = 1) -> list[list[str]]:
    return [[f"https://img{n % hosts}.example/{n}.jpg"] for n in range(count)]


def drawn(page: Page) -> list[str]:
    """The titles of the graphs."""
    return re.findall(r"\n((?:Rows per|Bytes per|Seconds per|Failed rows|Objects by|New, ch)[^\n]*)", page.text)


# --- what it says


def test_a_complete_migration(tmp_path: Path) -> None:
    """Verdict, counts, bytes, confirmation, course, hosts, sizes, formats: all from the state."""
    move = Migration(tmp_path, urls(30, hosts=2), public_url="https://new.example/{key}")
    move.start(copied)
    move.end(seconds=30.4, bytes=30_435, rate=1.0)
    page = move.page()
    for said in (
        "Complete: 30 of 30 rows are stored", "Run 1: Completed. This run: done", "30.4 kB", "img0.example",
        "img1.example", "image/jpeg", "1.50 s", "1.0 kB to 2.0 kB", "No row failed.",
        "30 copied, 30.4 kB in 0:30, 1.0 rows/s",
    ):  # fmt: skip
        assert said in page.text, said
    assert "verdict good" in page.values("class")
    assert len([link for link in page.values("href") if link.startswith("https://new.example/")]) == SAMPLES
    assert len(drawn(page)) >= 4


def test_failures_have_examples_and_a_remedy(tmp_path: Path) -> None:
    """Three rows of each group; the groups that are left out are counted."""
    move = Migration(tmp_path, urls(40, hosts=8))
    move.start(lambda n, row: {**copied(n, row), **FAILED_404, "message": "404 Not Found", "size": None})
    move.end("Failed: 40 rows failed")
    text = move.page().text
    assert "Not complete: 40 rows of 40 failed, more than the 0 allowed" in text
    assert "40 × not found (404)" in text
    assert text.count("404 Not Found") == 5
    assert len(re.findall(r"line \d+: https://img", text)) == 15
    assert "15 more at 3 other hosts" in text
    assert "open one address; correct the manifest" in text
    assert "Failed rows by host" in drawn(move.page())


def test_it_counts_what_the_ledger_has_forgotten(tmp_path: Path) -> None:
    """The fold keeps the latest outcome of a row, so the course of an earlier run has holes: the page says how many."""
    move = Migration(tmp_path, urls(20))
    move.start(
        lambda n, row: {**copied(n, row), **({"error_class": ErrorClass.TIMEOUT, "retryable": True} if n < 3 else {})}
    )
    move.end("Failed", seconds=20.0, bytes=1, rate=1.0)
    assert "lack" not in move.page().text
    move.start(lambda n, row: {**copied(n, row), "at": START + timedelta(days=1, seconds=n)})
    move.end(seconds=3.0, bytes=1, rate=1.0)
    text = move.page().text
    assert "The figures below lack 3 of the 20 outcomes of this run" in text
    assert "Run 1, from 2026-03-01" in text
    assert "Run 2, from 2026-03-02" in text


def test_deltas_and_predictions(tmp_path: Path) -> None:
    """The figures of delta runs in a table and a graph; what `ferry check` predicted beside what a run took."""
    move = Migration(tmp_path, urls(12), mode="delta")
    write_predicted(move.state, Predicted(12, 10.0, 20.0))
    move.start(copied)
    move.end(seconds=25.0, bytes=1, rate=1.0)
    for _ in range(2):
        move.start(lambda n, row: {**copied(n, row), "status": Status.UNCHANGED, "checked_by": "condition"})
        move.end(seconds=15.0, bytes=1, rate=1.0)
    page = move.page()
    assert "0:10 to 0:20" in page.text
    assert "slower" in page.text
    assert "as predicted" in page.text
    assert "rechecked, unchanged" in page.text
    assert "New, changed and failed rows of each delta run" in drawn(page)
    assert "The course of run 1, the largest one (12 outcomes), cannot be drawn" in page.text
    assert [run.delta is not None for run in read_runs(move.state)[0]] == [True, True, True]


@pytest.mark.parametrize("lost", ["predicted", "seconds", "bytes", "rate", "ended_at", "delta"])
def test_a_summary_of_an_earlier_version(tmp_path: Path, lost: str) -> None:
    """What it lacks is not shown; the page is made all the same."""
    move = Migration(tmp_path, urls(3))
    move.start(copied)
    move.end(seconds=2.0, bytes=5, rate=1.0)
    name = "reports/run-000001/summary.json"
    summary = json.loads(move.state.read(name))
    move.state.write(name, encode_checked_json({k: v for k, v in summary.items() if k not in (lost, "sha256")}))
    assert "3 copied" in move.page().text
    move.state.write(name, b"{")
    page = move.page()
    assert "No run has ended." in page.text


# --- states of a job


def test_nothing_planned(tmp_path: Path) -> None:
    move = Migration(tmp_path, urls(1))
    with pytest.raises(UserError, match="nothing is planned yet"):
        move.page()
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize("rows", [1, 2])
def test_tiny_lists(tmp_path: Path, rows: int) -> None:
    """Also one row, whose course is a point."""
    move = Migration(tmp_path, urls(rows))
    move.start(copied)
    move.end()
    page = move.page()
    assert f"{rows} of {rows}" in page.text
    assert page.loaded() == []


def test_during_a_run_and_after_a_crash(tmp_path: Path) -> None:
    """A run without an end was lost, unless it holds its lease."""
    move = Migration(tmp_path, urls(4))
    move.start(None)
    with hold_lease(move.state, "products #1"):
        assert "Not finished: the run products #1 is going on. So far 0 of 4 rows are stored" in move.page().text
    text = move.page().text
    assert "Not complete: 0 of 4 rows are stored, 4 pending" in text
    assert "No row was transferred." in text
    assert "No run has ended." in text


def test_three_hundred_hosts(tmp_path: Path) -> None:
    """The busiest have lines of their own, the others one together; all rows are in the sum."""
    move = Migration(tmp_path, urls(900, hosts=300))
    move.start(copied)
    move.end()
    page = move.page()
    assert "275 other hosts" in page.text
    at = page.texts.index("275 other hosts")
    assert "825" in page.texts[at : at + 4]


def test_rows_without_times_sizes_or_types(tmp_path: Path) -> None:
    """Outcomes of objects that were there already, or of planning."""
    nothing = {"started_at": None, "recorded_at": None, "size": None, "content_type": None, "requests": 0}
    move = Migration(tmp_path, urls(5))
    move.start(lambda n, row: {"status": Status.UNCHANGED, **nothing})
    move.end()
    page = move.page()
    assert "not recorded" in page.text
    assert "No row was transferred." in page.text
    assert drawn(page) == []


def test_a_ledger_of_an_earlier_schema(tmp_path: Path) -> None:
    """Schema 5 has none of the columns of attributes and copies."""
    move = Migration(tmp_path, urls(5))
    move.start(copied)
    move.end()
    (name,) = ledger_files(move.state)
    table = pq.read_table(move.state.local(name)).drop_columns(["copy_of", "attributes_sha256", "lost_attributes"])
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"ferry_schema": "5"}), sink)
    data = sink.getvalue().to_pybytes()
    move.state.delete([name])
    move.state.write(checked_name(f"ledger/000001-{10**18 * 9:019d}", data), data)
    assert "Complete: 5 of 5 rows are stored" in move.page().text


def test_a_run_writes_it_beside_its_summary(tmp_path: Path) -> None:
    """Short runs without graphs, which take a second; the lease that the run still holds does not count."""
    move = Migration(tmp_path, urls(3))
    move.start(copied)
    with hold_lease(move.state, "products #1"):
        move.end()
        assert write_report(move.job, move.state, 1) == report_name(1) == "reports/run-000001/report.html"
    page = Page(move.state.read(report_name(1)).decode())
    assert "Complete: 3 of 3" in page.text
    assert "svg" not in page.tags
    assert "ferry report JOB.yaml" in page.text
    assert REPORT not in move.state.list("reports")


def test_no_secret_of_the_list(tmp_path: Path) -> None:
    """The page leaves the house: a signed address of the list is shown without signature and password."""
    move = Migration(tmp_path, urls(1))
    move.start(copied)
    move.end()
    address = "https://user:pass-word@lists.example/a.csv?X-Amz-Signature=hidden"
    html = make_report(move.job.model_copy(update={"manifest": address}), move.state)
    assert re.search(r"https://lists\.example/a\.csv\?[0-9a-f]{8}<", html)
    assert not re.search("pass-word|=hidden", html)


def test_outcomes_that_no_transfer_made(tmp_path: Path) -> None:
    """Planning settles rows that repeat another one: the course is without them, and no later run replaced them."""
    move = Migration(tmp_path, urls(5) + urls(3))
    move.start(copied)
    move.end()
    text = move.page().text
    assert "Complete: 5 of 8 rows are stored, 3 repeat another one" in text
    assert "5 copied, 3 skipped" in text
    assert "lack" not in text
    assert "cannot be drawn" not in text


def test_a_run_of_planning_alone(tmp_path: Path) -> None:
    """Its outcomes have no course, which no later run took."""
    move = Migration(tmp_path, urls(5))
    move.start(lambda n, row: {**copied(n, row), "chunk": ""})
    move.end()
    text = move.page().text
    assert "No row was transferred." in text
    assert "cannot be drawn" not in text


def test_rows_that_left_the_list(tmp_path: Path) -> None:
    """A course lacks them; no later run need have replaced their outcomes."""
    move = Migration(tmp_path, urls(5))
    move.start(copied)
    move.end()
    write_list(tmp_path / "list.csv", urls(3), ("url",))
    move.start(None)
    text = move.page().text
    assert "The figures below lack 2 of the 5 outcomes of this run. A later run\nreplaced them, or their rows" in text


def test_a_local_list_is_called_by_its_name(tmp_path: Path) -> None:
    """A path of the machine that ran says nothing to those who get the page; a listing has its address."""
    move = Migration(tmp_path, urls(1))
    move.start(copied)
    move.end()
    assert "list.csv" in move.page().text
    assert str(tmp_path / "list.csv") not in move.page().text
    assert _list_name("s3://old/images/") == "s3://old/images/"


def test_the_end_of_an_earlier_run_is_not_that_of_a_lost_one(tmp_path: Path) -> None:
    """As in `ferry status`: a run that was killed, or that is live, has no end yet."""
    move = Migration(tmp_path, urls(3))
    move.start(lambda n, row: {**copied(n, row), **FAILED_404, "error_class": ErrorClass.TIMEOUT, "retryable": True})
    move.end("Failed: 3 rows failed")
    move.start(None)
    with hold_lease(move.state, "products #2"):
        assert "Run 1: Failed" not in move.page().text
    text = move.page().text
    assert "Run 1: Failed" not in text
    assert "Run 2 recorded no end: it was killed, or its machine was lost." in text


DELTA_NAMES = ("new", "changed", "unchanged", "failed", "requests", "bytes_saved", "removed", "deleted")


@pytest.mark.parametrize("name", DELTA_NAMES)
def test_a_delta_of_an_earlier_version(tmp_path: Path, name: str) -> None:
    """Its run is listed, without the figures of which one is lacking."""
    move = Migration(tmp_path, urls(2), mode="delta")
    move.start(copied)
    move.end()
    file = "reports/run-000001/summary.json"
    summary = json.loads(move.state.read(file))
    del summary["sha256"], summary["delta"][name]
    move.state.write(file, encode_checked_json(summary))
    text = move.page().text
    assert "Delta runs" not in text
    assert "2 copied" in text


@pytest.mark.parametrize(
    "wrong",
    [{"predicted": [1]}, {"predicted": [None, 2]}, {"seconds": "x"}, {"rate": "x"}, {"this_run": {"copied": "x"}}],
    ids=str,
)
def test_a_summary_of_another_form(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """It is not listed; the page is made all the same."""
    move = Migration(tmp_path, urls(2))
    move.start(copied)
    move.end()
    file = "reports/run-000001/summary.json"
    summary = json.loads(move.state.read(file))
    del summary["sha256"]
    move.state.write(file, encode_checked_json(summary | wrong))
    assert "No run has ended." in move.page().text


def test_labels_say_what_the_ledger_says(tmp_path: Path) -> None:
    """A host that looks like an attribute keeps its name, and a share is not rounded to all."""
    move = Migration(tmp_path, urls(2001))
    move.start(
        lambda n, row: {
            **copied(n, row),
            "source": f'https://id="b.example/{n}',
            **(FAILED_404 if row.key != "0.jpg" else {}),
        }
    )
    move.end()
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", make_report(move.job, move.state))
    assert labels.count('id="b.example') == 2
    assert "2,000 (99.9%)" in labels


def test_many_types(tmp_path: Path) -> None:
    """The most frequent have lines of their own, the others one together."""
    move = Migration(tmp_path, urls(40))
    move.start(lambda n, row: {"size": n, "content_type": f"x/{min(n, 19):02}"})
    move.end()
    with folded_ledger(move.state) as con:
        create_rows(con)
        found = formats(con)
    assert found[0] == ("x/19", 21, sum(range(19, 40)))
    assert found[1] == ("x/00", 1, 0)
    assert found[-1] == ("8 other types", 8, sum(range(11, 19)))
    assert len(found) == FORMATS + 1


def test_times_that_say_nothing(tmp_path: Path) -> None:
    """A clock that stepped back, and an outcome without a request, count for no host's seconds."""
    move = Migration(tmp_path, urls(3))
    odd: dict[str, dict[str, Any]] = {
        "0.jpg": {"started_at": START + timedelta(hours=1)}, "1.jpg": {"requests": 0, "started_at": START},
    }  # fmt: skip
    move.start(lambda n, row: {"at": START + timedelta(hours=0 if row.key == "0.jpg" else 5), **odd.get(row.key, {})})
    move.end()
    with folded_ledger(move.state) as con:
        create_rows(con)
        ((line,), *_) = by_host(con)
    assert (line.rows, line.median_s, line.most_s) == (3, 1.5, 1.5)


def test_samples_are_rows_of_the_list(tmp_path: Path) -> None:
    """No object of a row that has left the list is offered for the sign-off."""
    move = Migration(tmp_path, urls(4))
    move.start(copied)
    move.end()
    write_list(tmp_path / "list.csv", urls(2), ("url",))
    move.start(None)
    with folded_ledger(move.state) as con:
        assert {found.key for found in samples(con, move.job)} == {"0.jpg", "1.jpg"}


# --- what a list may hold

HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)", "]]><!--", "$\\frac$b",
    "\x01\x1b[31m\x07", "exe\u202egpj.\u2066\u200b", "{{ 7*7 }}", "&lt;b&gt;", "x" * 5000, "\u56fe\u50cf",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_text(tmp_path: Path, name: str) -> None:
    """In ids, keys, sources, hosts, messages, types, attributes and the job's page as a whole, graphs included."""

    def outcome(n: int, row: Row) -> dict[str, Any]:
        given = {
            **copied(n, row), "id": name, "key": f"{name}-{n}", "source": f"https://{name}{n}.example/{name}",
            "address": f"https://{name}{n}.example/{name}", "content_type": name, "message": name,
            "lost_attributes": [name],
        }  # fmt: skip
        return given | (FAILED_404 if n % 2 else {})

    move = Migration(tmp_path, urls(8), public_url="https://new.example/{key}?id={id}")
    move.start(lambda n, row: outcome(n, row))
    move.end(f"Failed: {name}")
    html = make_report(move.job, move.state)
    page = Page(html)
    assert {"script", "img"}.isdisjoint(page.tags)
    assert {name for _, name, _ in page.attributes if name.startswith("on")} == set()
    assert not [c for c in html if not c.isprintable() and c != "\n"]
    assert all(link.startswith(("https://", "data:", "#")) for link in page.values("href"))
    assert page.loaded() == []
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    assert page.text.count(shown[:200]) >= 8
    assert len(html) < 600_000


def test_a_page_needs_no_other_file(tmp_path: Path) -> None:
    """No address but namespaces and links that a person clicks; each id once, and references to ids that exist."""
    move = Migration(tmp_path, urls(300, hosts=3), mode="delta")
    for _ in range(2):
        move.start(lambda n, row: copied(n, row) | (FAILED_404 if n % 9 == 0 else {}))
        move.end(seconds=3.0, bytes=1, rate=1.0)
    html = make_report(move.job, move.state)
    page = Page(html)
    assert page.loaded() == []
    links = {value for tag, name, value in page.attributes if tag == "a" and name == "href"}
    rest = html
    for link in links:
        rest = rest.replace(f'href="{link}"', "")
    in_attributes = re.findall(r'([\w:-]+)="https?:[^"]*"', rest)
    assert set(in_attributes) == {"xmlns"}
    assert "<?xml" not in html
    assert "<!DOCTYPE svg" not in html
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    used = {value[1:] for value in page.values("href") if value.startswith("#")} | set(
        re.findall(r"url\(#([^)]+)\)", html)
    )
    assert used
    assert used <= set(ids)
    colours = set(re.findall(r"#[0-9a-f]{6}\b", html.split("</style>", 1)[1]))
    assert colours == set(), "a colour that dark mode cannot change"


@pytest.mark.slow
def test_a_browser_asks_no_server(tmp_path: Path) -> None:
    """In a real Chromium, over HTTP from this machine: one request, for the page itself; no error of its policy."""
    pytest.importorskip("websockets")
    if not any(map(shutil.which, NAMES)):
        pytest.skip(f"needs Chromium; as root: {INSTALL}")
    move = Migration(
        tmp_path, [[f"https://127.0.0.1:9/{HOSTILE[1]}{n}"] for n in range(20)], public_url="http://127.0.0.1:9/{key}"
    )
    move.start(lambda n, row: {**copied(n, row), "content_type": HOSTILE[0], "message": HOSTILE[2]})
    move.end(HOSTILE[1])
    page = make_report(move.job, move.state).encode()
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, Browser() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for width in (1280, 390):
            browser.open(f"http://127.0.0.1:{server.server_port}/report", "Report of a migration", width=width)
            loaded = browser.evaluate("performance.getEntriesByType('resource').length")
            assert loaded == 0
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
            assert browser.evaluate("document.querySelectorAll('script, img, iframe, object').length") == 0
            assert browser.evaluate("document.querySelectorAll('svg').length") >= 4
        server.shutdown()
    assert asked == ["/report", "/report"]


# --- how it is made


def test_it_leaves_no_trace(tmp_path: Path) -> None:
    """A home that cannot be written, a folder with a matplotlibrc of the user's: neither is used, no file stays."""
    move = Migration(tmp_path, urls(50))
    move.start(copied)
    move.end()
    (tmp_path / "job.json").write_text(move.job.model_dump_json())
    (tmp_path / "matplotlibrc").write_text("svg.fonttype: path\nfont.size: 99\n")
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    script = (
        "from ferry.job import Job; from ferry.report import make_report; from ferry.state import open_state\n"
        "from ferry.storage import Access; from pathlib import Path; import sys\n"
        "job = Job.model_validate_json(Path('job.json').read_text())\n"
        f"print(make_report(job, open_state({str(move.state.uri)!r}, Access(), Path('cache'))))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    before = set(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"),
             "PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "<text" in done.stdout
    assert "99px" not in done.stdout
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("span", [0, 1, 59, 199.9, 200, 3600, 86400, 10**6, 10**9])
def test_the_width_of_a_bucket(span: float) -> None:
    """200 points at most, and enough of them: the first that fits."""
    width = width_for(span)
    assert span // width < 200
    assert span < 80 or span / width >= 70 or width == WIDTHS_S[0]


def test_times_and_sizes_add_up(tmp_path: Path) -> None:
    """Each outcome is in one bucket, each object in one bin."""
    move = Migration(tmp_path, urls(100))
    move.start(lambda n, row: {"at": START + timedelta(seconds=37.7 * n), "size": max(1, n**3)})
    move.end()
    with folded_ledger(move.state) as con:
        create_rows(con)
        line = timeline(con, 1)
        bins = sizes(con)
    assert (line.total, sum(line.bytes)) == (100, sum(max(1, n**3) for n in range(100)))
    assert sum(objects for *_, objects in bins) == 100
    assert all(low < high for low, high, _ in bins)
    assert [high for _, high, _ in bins[:-1]] == [low for low, _, _ in bins[1:]]


@pytest.mark.parametrize(
    ("given", "budget", "more", "kind", "begins"),
    [
        ({"copied": 9, "pending": 1}, 0, {"live": "p #1"}, "warn", "Not finished"),
        ({"copied": 9, "pending": 1}, 5, {}, "bad", "Not complete: 9 of 10 rows are stored, 1 pending"),
        ({"copied": 9, "failed": 1}, 0, {}, "bad", "Not complete: 1 row of 10 failed"),
        ({"copied": 9, "failed": 1}, 1, {"lost_run": 3}, "bad", "Not complete: run 3 was ended"),
        ({"copied": 10}, 0, {"end": RunEnd(1, "", "Failed: x")}, "bad", "Not complete"),
        ({"copied": 9, "failed": 1}, 1, {}, "warn", "Complete, with failures"),
        ({"copied": 9, "skipped": 1}, 0, {}, "warn", "Complete, with skipped rows"),
        ({"copied": 9, "skipped": 1, "duplicates": 1}, 0, {}, "good", "Complete: 9 of 10 rows are stored, 1 repeat"),
        ({"copied": 4, "unchanged": 6}, 0, {"end": RunEnd(1, "", "Completed")}, "good", "Complete: 10 of 10"),
    ],
)  # fmt: skip
def test_the_verdict(given: dict[str, Any], budget: int, more: dict[str, Any], kind: str, begins: str) -> None:
    """The table of :func:`judge`."""
    found = judge(Counts(planned=10, **given), budget, **more)
    assert (found.kind, found.text[: len(begins)]) == (kind, begins)
