"""What people ask of a state: failures by class and code, and files for their spreadsheets."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ferry.core.errors import UserError
from ferry.core.records import ErrorClass, Status
from ferry.state import ledger
from ferry.state.files import DirectoryState
from ferry.state.queries import FAILURE_COLUMNS, export, failure_cell, select_failures, spreadsheet_safe, with_latest
from tests.support.helpers import chunk_rows, directory_state, make_job, make_outcome, plan, write_list

SIGNED = "https://img.example/0.jpg?Signature=topsecret"
NASTY = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "plain", "ends\x0b", 'comma, "quote"', "ä日😀", ""]


@pytest.fixture
def state(tmp_path: Path) -> DirectoryState:
    """Ten rows whose IDs are those of NASTY: 0-3 copied, 4-5 unchanged, 6 a 404, 7 a 403, 8 a timeout, 9 pending."""
    state = directory_state(tmp_path)
    frame = pd.DataFrame(
        {"url": [SIGNED, *(f"https://img.example/{n}.jpg" for n in range(1, 10))], "id": [*NASTY[:9], "last"]}
    )
    frame.to_parquet(tmp_path / "list.parquet")
    (ref,) = plan(make_job(manifest=str(tmp_path / "list.parquet")), state).chunks
    ends: list[tuple[Status, dict[str, Any]]] = [
        *[(Status.COPIED, {"size": 5, "md5": "a" * 32, "sha256": "b" * 64, "content_type": "image/jpeg"})] * 4,
        *[(Status.UNCHANGED, {"size": None})] * 2,
        (Status.FAILED, {"error_class": ErrorClass.NOT_FOUND, "status_code": 404, "message": "=cmd|' /C calc'!A0"}),
        (Status.FAILED, {"error_class": ErrorClass.FORBIDDEN, "status_code": 403, "retryable": True}),
        (Status.FAILED, {"error_class": ErrorClass.TIMEOUT, "retryable": True}),
    ]
    outcomes = [
        make_outcome(row.row_id, status, key=row.key, id=row.id, source=f"redacted/{row.key}", **given)
        for row, (status, given) in zip(chunk_rows(state, ref), ends, strict=False)
    ]
    stranger = make_outcome("0" * 64, Status.FAILED, error_class=ErrorClass.GONE)
    ledger.append_outcomes(state, [*outcomes, stranger], 1, "c", 0)
    return state


def failures(state: DirectoryState, *classes: str, limit: int | None = None) -> tuple[list[str], int]:
    lines, total = with_latest(state, lambda con, manifest: select_failures(con, manifest, classes, limit))
    assert all(tuple(line) == FAILURE_COLUMNS for line in lines)
    return [line["key"] for line in lines], total


@pytest.mark.parametrize(
    ("classes", "keys"),
    [
        ((), ["7.jpg", "6.jpg", "8.jpg"]),
        (("not_found",), ["6.jpg"]),
        (("404",), ["6.jpg"]),
        (("403", "timeout"), ["7.jpg", "8.jpg"]),
        (("500",), []),
        (("gone",), []),
        (("' OR 1=1 --",), []),
    ],
)
def test_failures_of_a_class_or_code(classes: tuple[str, ...], keys: list[str], state: DirectoryState) -> None:
    """Failed rows of the current manifest alone, sorted by class and source, with how many there are."""
    assert failures(state, *classes) == (keys, len(keys))


def test_a_limit_shows_the_first_and_counts_all(state: DirectoryState) -> None:
    """The total is of all that match."""
    assert failures(state, limit=1) == (["7.jpg"], 3)


def test_nothing_planned_is_an_error_of_the_user(tmp_path: Path) -> None:
    """And it says how to begin."""
    with pytest.raises(UserError, match="ferry run"):
        failures(directory_state(tmp_path, "empty"))


def read(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    frame = pd.read_excel(path, dtype=str, keep_default_na=False) if path.suffix == ".xlsx" else pd.read_parquet(path)
    lines: list[Any] = frame.to_dict("records")
    return lines


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_the_map(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """Old address to new key, in the manifest's order, for rows that are there; sources are redacted."""
    path = tmp_path / f"map.{ending}"
    assert export(state, "map", path, full=False) == 6
    lines = read(path)
    assert [line["key"] for line in lines] == [f"{n}.jpg" for n in range(6)]
    assert lines[0]["source"] == "redacted/0.jpg"
    assert [line["status"] for line in lines] == ["copied"] * 4 + ["unchanged"] * 2
    assert b"topsecret" not in path.read_bytes()


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_no_cell_is_a_formula(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """IDs and messages of others that start like one get a quote in front, for spreadsheets only."""
    export(state, "map", tmp_path / f"map.{ending}", full=False)
    ids = [line["id"] for line in read(tmp_path / f"map.{ending}")]
    assert ids == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\\tx", "plain"]
    export(state, "failures", tmp_path / f"failures.{ending}", full=False)
    assert read(tmp_path / f"failures.{ending}")[0]["message"] == "'=cmd|' /C calc'!A0"


def test_parquet_is_for_programs(state: DirectoryState, tmp_path: Path) -> None:
    """There values stay as they are."""
    export(state, "map", tmp_path / "map.parquet", full=False)
    assert [line["id"] for line in read(tmp_path / "map.parquet")] == NASTY[:6]


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_failures_for_people(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """All failures; a control character in an ID stops no export, and codes are whole numbers."""
    path = tmp_path / f"failures.{ending.upper() if ending == 'csv' else ending}"
    assert export(state, "failures", path, full=False) == 3
    lines = read(path.rename(path.with_suffix(f".{ending}")))
    assert [line["key"] for line in lines] == ["6.jpg", "7.jpg", "8.jpg"]
    if ending != "parquet":
        assert [line["status_code"] for line in lines] == ["404", "403", ""]


def test_sizes_are_whole_numbers(state: DirectoryState, tmp_path: Path) -> None:
    """A size that is not known must not turn the others into 5.0."""
    export(state, "map", tmp_path / "map.csv", full=False)
    assert [line["size"] for line in read(tmp_path / "map.csv")] == ["5"] * 4 + [""] * 2


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_full_gives_sources_byte_for_byte(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """Only on request: it holds signatures."""
    path = tmp_path / f"map.{ending}"
    export(state, "map", path, full=True)
    assert read(path)[0]["source"] == SIGNED


@pytest.mark.parametrize("name", ["map.txt", "map", "map.csv.gz", "map.json"])
def test_another_ending_is_an_error_of_the_user(name: str, state: DirectoryState, tmp_path: Path) -> None:
    """The ending decides the format."""
    with pytest.raises(UserError, match=r"\.csv, \.parquet or \.xlsx"):
        export(state, "map", tmp_path / name, full=False)


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_a_folder_that_is_not_there_is_an_error_of_the_user(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(UserError):
        export(state, "map", tmp_path / "none" / f"map.{ending}", full=False)


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_an_odd_path_is_written(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """Quotes and blanks in the path are the path's."""
    path = tmp_path / f'it\'s a "map".{ending}'
    assert export(state, "map", path, full=False) == 6
    assert len(read(path)) == 6


def test_an_empty_answer_is_a_file_with_a_header(tmp_path: Path) -> None:
    """No failure: the columns, and no line."""
    state = directory_state(tmp_path)
    write_list(tmp_path / "list.csv", [["https://img.example/1.jpg"]])
    plan(make_job(manifest=str(tmp_path / "list.csv")), state)
    for ending in ("csv", "xlsx", "parquet"):
        assert export(state, "failures", tmp_path / f"f.{ending}", full=False) == 0
        assert read(tmp_path / f"f.{ending}") == []
    assert (tmp_path / "f.csv").read_text().startswith("id,source,key,error_class")


@pytest.mark.parametrize(
    ("value", "safe"),
    [("=1", "'=1"), ("+1", "'+1"), ("-1", "'-1"), ("@x", "'@x"), ("\tx", "'\\tx"), ("\rx", "'\\rx"), ("\n=1", "'\\n=1"),
     ("\uff1d1", "'\uff1d1"), ("x=1", "x=1"), ("a\x1b[2J", "a\\x1b[2J"), ("a\u202eb", "a\\u202eb"),
     ("", ""), (None, None), (5, 5), (-5, -5), (True, True)],
)  # fmt: skip
def test_what_is_quoted(value: Any, safe: Any) -> None:
    """Text that starts like a formula, and nothing else. Control characters are escapes."""
    assert spreadsheet_safe(value) == safe
    assert failure_cell(value) == safe


def test_a_sheet_that_splits_at_semicolons() -> None:
    """Where lists are separated by `;` a formula may begin inside a cell: not in what strangers wrote."""
    assert failure_cell("a;=1+1|@x; -2;b|c") == "a;'=1+1|'@x;' -2;b|c"
    assert spreadsheet_safe("a;-b.jpg") == "a;-b.jpg"  # the map has keys byte for byte


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_an_export_is_for_the_owner_alone(ending: str, state: DirectoryState, tmp_path: Path) -> None:
    """Whatever the umask says: with --full it holds signatures."""
    path = tmp_path / f"map.{ending}"
    path.touch(mode=0o666)
    export(state, "map", path, full=True)
    assert path.stat().st_mode & 0o777 == 0o600
