"""Queries of a state: failures by class and code, and cells that are safe in spreadsheets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ferry.core.errors import UserError
from ferry.core.records import ErrorClass, Status
from ferry.state import ledger
from ferry.state.failures import FAILURE_COLUMNS, FailureFilter, failure_groups, select_failures
from ferry.state.files import DirectoryState
from ferry.state.queries import failure_cell, folded_ledger, spreadsheet_safe
from tests.support.helpers import chunk_rows, directory_state, make_job, make_outcome, plan
from tests.support.ten_rows import ten_rows

pytestmark = pytest.mark.matrix


@pytest.fixture
def state(tmp_path: Path) -> DirectoryState:
    """Returns a state of ten rows with the IDs of NASTY: 0-3 copied, 4-5 unchanged, 6-8 failed, 9 pending."""
    return ten_rows(tmp_path)


def failures(state: DirectoryState, *classes: str, limit: int | None = None, host: str = "") -> tuple[list[str], int]:
    wanted = FailureFilter(classes, host)
    with folded_ledger(state) as con:
        lines, groups = select_failures(con, wanted, limit), failure_groups(con, wanted)
    assert all(tuple(line) == FAILURE_COLUMNS for line in lines)
    return [line["key"] for line in lines], sum(group.rows for group in groups)


@pytest.mark.parametrize(
    ("classes", "keys"),
    [
        ((), ["6.jpg", "7.jpg", "8.jpg"]),
        (("not_found",), ["6.jpg"]),
        (("404",), ["6.jpg"]),
        (("403", "timeout"), ["7.jpg", "8.jpg"]),
        (("500",), []),
        (("gone",), []),
        (("' OR 1=1 --",), []),
    ],
)
def test_failures_of_a_class_or_code(classes: tuple[str, ...], keys: list[str], state: DirectoryState) -> None:
    """Only failed rows of the current manifest are returned, in its order, and counted."""
    assert failures(state, *classes) == (keys, len(keys))


def test_a_limit_shows_the_first_and_counts_all(state: DirectoryState) -> None:
    """The total counts all matching rows, whatever the limit."""
    assert failures(state, limit=1) == (["6.jpg"], 3)


SOURCES = [
    "https://user:***@Img.Example:8443/a.jpg", "https://img.example/b.jpg?x=1", "http://img.example:8443/c.jpg",
    "s3://bucket/d.jpg", "file:///srv/e.jpg", "https://img.example@evil.example/f.jpg",
]  # fmt: skip


def failed_state(tmp_path: Path) -> DirectoryState:
    """Returns a state of a CSV file whose rows all failed; the fourth one has a line break in a cell."""
    rows = "".join(f'{n},"https://x.example/{n}.jpg","{f"two{chr(10)}lines" if n == 3 else ""}"\n' for n in range(6))
    (tmp_path / "list.csv").write_text(f"id,url,note\n{rows}")
    state = directory_state(tmp_path)
    (ref,) = plan(make_job(manifest=str(tmp_path / "list.csv")), state).chunks
    ends = [*[(ErrorClass.NOT_FOUND, 404)] * 3, *[(ErrorClass.SERVER_ERROR, 503)] * 3]
    outcomes = [
        make_outcome(
            row.row_id, Status.FAILED, key=row.key, id=row.id, source=source, error_class=error, status_code=code,
            retryable=code == 503, message=f"because of {source}",
        )
        for row, source, (error, code) in zip(chunk_rows(state, ref), SOURCES, ends, strict=True)
    ]  # fmt: skip
    ledger.append_outcomes(state, outcomes, 1, "c", 0)
    return state


@pytest.mark.parametrize(
    ("host", "ids"),
    [
        ("img.example:8443", "02"), ("img.example", "012"), ("IMG.example", "012"), ("bucket", "3"),
        ("evil.example", "5"), ("xample", ""), ("img.example:84", ""), ("", "012345"),
    ],
)  # fmt: skip
def test_failures_of_a_host(host: str, ids: str, tmp_path: Path) -> None:
    """A host is that of the URL, in any case, with its port or all of its ports; userinfo is not part of it."""
    with folded_ledger(failed_state(tmp_path)) as con:
        found = select_failures(con, FailureFilter(host=host))
    assert "".join(row["id"] for row in found) == ids


def test_failures_have_their_line_and_are_grouped(tmp_path: Path) -> None:
    """Rows have the line of the file where they begin; groups have the first examples, most rows first."""
    with folded_ledger(failed_state(tmp_path)) as con:
        rows, groups = select_failures(con, FailureFilter()), failure_groups(con, FailureFilter())
    assert [row["line"] for row in rows] == [2, 3, 4, 5, 7, 8]
    assert [(group.error_class, group.host, group.rows, group.retryable) for group in groups] == [
        ("not_found", "img.example:8443", 2, False),
        ("not_found", "img.example", 1, False),
        ("server_error", "", 1, True),
        ("server_error", "bucket", 1, True),
        ("server_error", "evil.example", 1, True),
    ]
    assert groups[0].examples == [
        {"line": 2, "id": "0", "source": SOURCES[0]}, {"line": 4, "id": "2", "source": SOURCES[2]}
    ]  # fmt: skip
    assert groups[0].message == f"because of {SOURCES[0]}"


def test_a_manifest_of_a_version_without_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures of a state that an earlier version planned have no line."""
    state = failed_state(tmp_path)
    (name,) = [name for name in state.list("plan") if "manifest" in name]
    old = tmp_path / "old.parquet"
    pq.write_table(pq.read_table(state.root / name).drop_columns(["line_no"]), old)
    monkeypatch.setattr("ferry.state.queries.verified_path", lambda *_: old)
    with folded_ledger(state) as con:
        assert [row["line"] for row in select_failures(con, FailureFilter())] == [None] * 6


def test_nothing_planned_is_an_error_of_the_user(tmp_path: Path) -> None:
    """A query before the first plan raises UserError with the command to begin with."""
    with pytest.raises(UserError, match="ferry run"):
        failures(directory_state(tmp_path, "empty"))


def rows_in(con: Any) -> list[int]:
    """Returns the row counts of the three relations."""
    return [con.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in ("latest", "manifest", "waiting")]


@pytest.mark.parametrize("folded_before", [False, True])
def test_a_reader_does_not_notice_a_compaction_or_a_plan(
    folded_before: bool, state: DirectoryState, tmp_path: Path
) -> None:
    """Queries give the same results after a compaction and a plan have deleted the files that they read."""
    if folded_before:
        ledger.compact_ledger(state, 1)
    with folded_ledger(state) as con:
        before = rows_in(con)
        listed = ledger.ledger_files(state) + [name for name in state.list("plan") if "manifest" in name]
        ledger.append_outcomes(state, [make_outcome(99, run_no=2)], 2, "c", 0)
        ledger.compact_ledger(state, 2)
        (tmp_path / "list.csv").write_text("url\nhttps://img.example/only.jpg\n")
        plan(make_job(manifest=str(tmp_path / "list.csv")), state, 3)
        assert not [name for name in listed if (state.root / name).exists()]
        assert rows_in(con) == before == [10, 10, 0]
    with folded_ledger(state) as con:
        assert rows_in(con) == [11, 1, 0]


def test_files_that_are_deleted_before_they_are_open_are_listed_again(
    state: DirectoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are deleted before they are open are listed again, and the block runs once."""
    monkeypatch.setattr("ferry.state.ledger.connection.time.sleep", lambda _: None)
    listings: list[str] = []

    def list_and_compact(folder: str) -> list[str]:
        names = DirectoryState.list(state, folder)
        listings.append(folder)
        if listings.count("ledger") == 1 and folder == "ledger":
            ledger.compact_ledger(DirectoryState(state.root), 1)
        return names

    monkeypatch.setattr(state, "list", list_and_compact)
    blocks = 0
    with folded_ledger(state) as con:
        blocks += 1
        assert rows_in(con) == [10, 10, 0]
    assert blocks == 1
    assert listings.count("ledger") > 1


def test_an_error_of_the_block_is_not_retried(state: DirectoryState) -> None:
    """An error that the block raises reaches the caller without a retry."""
    entered: list[Any] = []

    def read_a_missing_file() -> None:
        with folded_ledger(state) as con:
            entered.append(con)
            state.read("plan/none.json")

    with pytest.raises(FileNotFoundError):
        read_a_missing_file()
    assert len(entered) == 1


@pytest.mark.parametrize(
    ("value", "safe"),
    [("=1", "'=1"), ("+1", "'+1"), ("-1", "'-1"), ("@x", "'@x"), ("\tx", "'\\tx"), ("\rx", "'\\rx"), ("\n=1", "'\\n=1"),
     ("\uff1d1", "'\uff1d1"), ("x=1", "x=1"), ("a\x1b[2J", "a\\x1b[2J"), ("a\u202eb", "a\\u202eb"),
     ("", ""), (None, None), (5, 5), (-5, -5), (True, True)],
)  # fmt: skip
def test_what_is_quoted(value: Any, safe: Any) -> None:
    """Only text that begins like a formula is quoted, and control characters are escaped."""
    assert spreadsheet_safe(value) == safe
    assert failure_cell(value) == safe


def test_a_sheet_that_splits_at_semicolons() -> None:
    """Formulas inside a cell are quoted in text from outside, and not in keys."""
    assert failure_cell("a;=1+1|@x; -2;b|c") == "a;'=1+1|'@x;' -2;b|c"
    assert spreadsheet_safe("a;-b.jpg") == "a;-b.jpg"  # the map has keys byte for byte
