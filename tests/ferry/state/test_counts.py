"""Each row of the manifest is in exactly one state, and the sum is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferry.core.errors import FerryError, UserError
from ferry.core.records import ErrorClass, Status
from ferry.job.model import OnExisting
from ferry.reconcile.finish import finish_run
from ferry.state import ledger
from ferry.state.counts import Counts, count
from tasks.reporting.text import Report
from tests.support.helpers import (
    FAILED_404,
    FAILED_500,
    counts_of,
    directory_state,
    make_job,
    plan,
    settle,
    urls,
    write_list,
)


def test_counts_that_add_up_pass() -> None:
    """Counts pass when planned = copied + unchanged + skipped + failed + pending."""
    Counts().check()
    Counts(planned=15, copied=1, unchanged=2, skipped=3, failed=4, pending=5).check()


@pytest.mark.parametrize("name", ["copied", "unchanged", "skipped", "failed", "pending", "planned"])
@pytest.mark.parametrize("by", [-1, 1])
def test_a_row_too_many_or_too_few_raises(name: str, by: int) -> None:
    """A row in two states or in none raises an error with the numbers."""
    values: dict[str, Any] = {"planned": 15, "copied": 1, "unchanged": 2, "skipped": 3, "failed": 4, "pending": 5}
    values[name] += by
    with pytest.raises(FerryError, match="do not add up"):
        Counts(**values).check()


def test_counts_of_a_state(tmp_path: Path) -> None:
    """Each row is counted by its state; rows of an earlier manifest are not counted."""
    state = directory_state(tmp_path)
    lines = [*([f"https://img.example/{n}.jpg", str(n)] for n in range(12)), ["https://img.example/0.jpg", "twice"]]
    write_list(tmp_path / "list.csv", lines, ("url", "id"))
    job = make_job(manifest=str(tmp_path / "list.csv"), chunk_rows=1)
    with pytest.raises(UserError, match="nothing is planned"):
        counts_of(state)
    refs = plan(job, state).chunks
    settle(state, refs[0], 1, size=7, lost_attributes=["Expires", "tags"])
    settle(state, refs[1], 1, size=9, message="only its length was checked")
    settle(state, refs[2], 1, Status.UNCHANGED, message="only its length was checked", lost_attributes=["tags"])
    settle(state, refs[3], 1, Status.SKIPPED, error_class=ErrorClass.EXISTS)
    settle(state, refs[4], 1, Status.FAILED, **FAILED_404)
    settle(state, refs[5], 1, Status.FAILED, **FAILED_500)
    settle(state, refs[6], 1)
    missing: dict[str, Any] = {"error_class": ErrorClass.MISSING, "retryable": True, "lost_attributes": ["tags"]}
    settle(state, refs[6], 2, Status.PENDING, **missing)
    counts = counts_of(state)
    counts.check()
    assert counts == Counts(
        planned=13, copied=2, unchanged=1, skipped=2, failed=2, pending=6, bytes=16, duplicates=1, retryable=1,
        lesser_checks=2, lost_attributes={"tags": 2, "Expires": 1},
        classes={"exists": 1, "duplicate": 1, "not_found": 1, "server_error": 1, "missing": 1},
    )  # fmt: skip
    write_list(tmp_path / "list.csv", lines[4:6], ("url", "id"))
    plan(job, state, 3)
    counts = counts_of(state)
    assert (counts.planned, counts.failed, counts.copied, counts.pending) == (2, 2, 0, 0)


def test_rows_are_told_apart_by_their_whole_id() -> None:
    """The counts match rows by a key that is made of both halves of an ID."""
    a, b, c = "a" * 32, "b" * 32, "c" * 32
    with duckdb.connect() as con:
        con.execute("CREATE TABLE waiting (row_id VARCHAR); CREATE TABLE manifest (row_id VARCHAR)")
        con.executemany("INSERT INTO manifest VALUES (?)", [[a + b], [a + c], [c + b]])
        con.execute(
            "CREATE TABLE latest (row_id VARCHAR, status VARCHAR, error_class VARCHAR, size BIGINT, retryable BOOLEAN, "
            "confirmed VARCHAR, message VARCHAR, copy_of VARCHAR, requests BIGINT, lost_attributes VARCHAR[])"
        )
        con.execute("INSERT INTO latest (row_id, status, size) VALUES (?, 'copied', 7)", [a + b])
        counts = count(con)
    counts.check()
    assert (counts.copied, counts.bytes, counts.pending) == (1, 7, 2)


def test_many_names_of_lost_attributes(tmp_path: Path) -> None:
    """Metadata may have any number of names: the most frequent are named, and the others counted."""
    state = directory_state(tmp_path)
    lines = [[f"https://img.example/{n}.jpg"] for n in range(2)]
    job = make_job(manifest=str(write_list(tmp_path / "list.csv", lines, ("url",))), chunk_rows=1)
    refs = plan(job, state).chunks
    settle(state, refs[0], 1, lost_attributes=[f"metadata.a{n:02}" for n in range(25)])
    settle(state, refs[1], 1, lost_attributes=["metadata.a24"])
    counts = counts_of(state)
    assert (len(counts.lost_attributes), counts.lost_attributes["metadata.a24"], counts.lost_more) == (20, 2, 5)


def test_what_is_to_be_moved_once_more_is_pending(tmp_path: Path) -> None:
    """A row whose key another row wrote since, or that changed settings no longer skip, is pending until redone."""
    state = directory_state(tmp_path)
    header, other = ("url", "path"), ["https://b.example/0.jpg", "0.jpg"]
    lines = [[f"https://a.example/{n}.jpg", f"{n}.jpg"] for n in range(4)]
    job = make_job(manifest=str(write_list(tmp_path / "list.csv", lines, header)), chunk_rows=1)
    refs = plan(job, state).chunks
    for ref in refs[:2]:
        settle(state, ref, 1, sha256="a" * 64)
    settle(state, refs[2], 1, Status.SKIPPED, error_class=ErrorClass.EXISTS)
    settle(state, refs[3], 1, Status.FAILED, **FAILED_404)
    write_list(tmp_path / "list.csv", [other, *lines[1:]], header)
    settle(state, next(ref for ref in plan(job, state, 2).chunks if ref.done < ref.rows), 2, sha256="b" * 64)
    write_list(tmp_path / "list.csv", lines, header)
    again = job.model_copy(update={"on_existing": OnExisting.OVERWRITE})
    planned = plan(again, state, 3)
    assert planned.todo == {"changed": 3}
    counts = finish_run(again, state, 3)["counts"]
    assert {name: counts[name] for name in ("copied", "skipped", "failed", "pending")} == {
        "copied": 1, "skipped": 0, "failed": 1, "pending": 2,
    }  # fmt: skip
    for ref in planned.chunks:
        if ref.done < ref.rows:
            settle(state, ref, 4)
    counts = finish_run(again, state, 4)["counts"]
    assert (counts["copied"], counts["pending"]) == (4, 0)


@settings(max_examples=5, deadline=None)
@given(ends=st.lists(st.sampled_from([None, *Status]), min_size=1, max_size=12), twice=st.booleans())
def test_the_identity_holds_for_any_ledger(
    ends: list[Status | None], twice: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The counts add up for any outcomes, even if each one is in the ledger twice."""
    folder = tmp_path_factory.mktemp("sum")
    state = directory_state(folder)
    write_list(folder / "list.csv", urls(*range(len(ends))))
    job = make_job(manifest=str(folder / "list.csv"), chunk_rows=1)
    for end, ref in zip(ends, plan(job, state).chunks, strict=True):
        given: dict[str, Any] = FAILED_500 if end is Status.FAILED else {}
        if end is not None:
            settle(state, ref, 1, end, **given)
            if twice:
                settle(state, ref, 2, end, **given)
    answer = finish_run(job, state, 2 if twice else 1)
    counts = Counts(**answer["counts"])
    counts.check()
    assert counts.planned == len(ends)
    for status in (Status.COPIED, Status.UNCHANGED, Status.SKIPPED, Status.FAILED):
        assert getattr(counts, status) == ends.count(status)
    assert counts.pending == sum(ends.count(end) for end in (None, Status.PENDING, Status.REMOVED))
    assert sum(answer["this_run"].values()) == sum(end is not None for end in ends)
    assert counts_of(state) == counts
    assert len(ledger.ledger_files(state)) == 1


@pytest.mark.parametrize(
    ("budget", "rows", "allowed"),
    [("1%", 0, 1), ("1%", 1, 1), ("1%", 100, 1), ("1%", 101, 2), ("0%", 1000, 0), (0, 1000, 0), (25, 10, 25),
     (0.5, 9, 5), ("100%", 7, 7), (1.0, 7, 7), ("10%", 30, 3), ("0.1", 30, 3)],
)  # fmt: skip
def test_the_budget(budget: int | float | str, rows: int, allowed: int) -> None:
    """The budget is a share of the rows without duplicates, rounded up to at least one, or a number of rows."""
    assert make_job(failure_budget=budget).budget(rows) == allowed


REFUSED = "the destination refuses the credentials"
OVER = "rows failed, more than the 2 (10%) that failure_budget allows"


@pytest.mark.parametrize(
    ("stopped", "pending", "failed", "limited", "code", "verdict"),
    [
        ("", 0, 0, False, 0, "Completed"),
        ("", 0, 2, False, 0, "Completed"),
        ("", 0, 3, False, 1, f"Failed: 3 {OVER}"),
        ("", 5, 0, False, 1, "Failed: 5 rows are pending (the origin is away)"),
        ("", 1, 3, False, 1, f"Failed: 3 {OVER}; 1 row is pending (the origin is away)"),
        ("", 5, 0, True, 0, "Completed: 5 rows are left, since --limit was reached"),
        ("", 5, 3, True, 1, f"Failed: 3 {OVER}"),
        (REFUSED, 5, 0, True, 1, f"Failed: {REFUSED}"),
        (REFUSED, 0, 2, False, 1, f"Failed: {REFUSED}"),  # those two were to be tried again
        ("interrupted by SIGINT", 5, 3, False, 1, f"Cancelled: interrupted by SIGINT; 3 {OVER}"),
    ],
)
def test_the_exit_code(stopped: str, pending: int, failed: int, limited: bool, code: int, verdict: str) -> None:
    """The exit code is 0 if all rows to do were tried and the failures are within the budget; the verdict says why."""
    counts = {
        "pending": pending,
        "failed": failed,
        "copied": 10,
        "unchanged": 0,
        "planned": 10 + pending + failed,
        "by_size": {},
    }
    away = "the origin is away"
    report = Report(1, counts, {}, 2, [], 1, 0, limited, 1.0, 1, 1.0, stopped, away, budget_setting="10%")
    assert report.exit_code == code
    assert report.verdict == verdict
    assert report.message.startswith(f"{verdict}. This run: ")


@pytest.mark.parametrize(
    ("limited", "pending", "copied", "rate", "words"),
    [
        (True, 600, 30, 20.0, "The other 600 rows would take about 0:30 at this rate, and be about 60.0 MB"),
        (True, 1, 30, 0.0, "The other row would be about 100.0 kB"),
        (True, 0, 30, 20.0, ""),
        (True, 600, 0, 20.0, ""),  # nothing copied: no size is known
        (False, 600, 30, 20.0, ""),  # pending for another reason
    ],
)
def test_what_the_other_rows_would_take(limited: bool, pending: int, copied: int, rate: float, words: str) -> None:
    """A run with --limit ends with the time and the bytes of the rows that it left, where it knows them."""
    counts = {"pending": pending, "failed": 0, "copied": copied, "unchanged": 0, "planned": 700, "by_size": {}}
    report = Report(1, counts, {"copied": copied}, 2, [], 1, 0, limited, 1.0, 3_000_000, rate, "", "")
    assert report.others.startswith(words)
    assert bool(report.others) is bool(words)
    assert (words and report.others in report.details) or not words
