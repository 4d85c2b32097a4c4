"""The latest outcome of each row counts, whichever files contain it, also during a fold."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.s3 import S3Server
from ferry.core.errors import Damaged, Fatal, UserError
from ferry.core.records import ErrorClass, Outcome, Reason, Status
from ferry.state import ledger
from ferry.state.bucket import open_state
from ferry.state.checksums import checked_name, encode_checked_json
from ferry.state.files import DirectoryState
from ferry.state.ledger import append_outcomes, compact_ledger, last_run_no, ledger_files
from ferry.state.parquet import encode_outcomes, outcomes_of, read_table
from ferry.state.recorded import recorded_of
from tests.support.helpers import access, directory_state, later, latest, make_outcome, row_id
from tests.support.memory import resident_bytes

FULL = make_outcome(
    1, Status.FAILED, id="x", error_class=ErrorClass.NOT_FOUND, status_code=404, message="ä, \"quoted\"\n",
    retryable=False, reason=Reason.RETRY, attempt=3, requests=4, size=None, md5="a" * 32, sha256="b" * 64,
    content_type="image/png", source_etag='"e"', source_last_modified="yesterday", dest_etag='"f"', chunk="c" * 64,
)  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> DirectoryState:
    return directory_state(tmp_path)


def test_an_outcome_survives_its_file(state: DirectoryState) -> None:
    """Each field of an outcome is the same after reading it, before and after a compaction."""
    append_outcomes(state, [FULL, make_outcome(2)], 1, "c", 0)
    assert latest(state) == {row_id(1): FULL, row_id(2): make_outcome(2)}
    compact_ledger(state, 1)
    assert latest(state) == {row_id(1): FULL, row_id(2): make_outcome(2)}


def test_nothing_is_no_outcome(state: DirectoryState) -> None:
    """An empty ledger folds to nothing."""
    assert latest(state) == {}
    compact_ledger(state, 1)
    assert latest(state) == {}


def test_the_latest_run_wins_then_the_latest_time(state: DirectoryState) -> None:
    """A later run's outcome counts before a later time, since machines' clocks differ."""
    append_outcomes(state, [make_outcome(1, run_no=2, message="run 2", recorded_at=later(0))], 2, "c", 0)
    append_outcomes(state, [make_outcome(1, run_no=1, message="run 1", recorded_at=later(99))], 1, "c", 0)
    append_outcomes(state, [make_outcome(2, message="early", recorded_at=later(0))], 1, "c", 1)
    append_outcomes(state, [make_outcome(2, message="late", recorded_at=later(1))], 1, "c", 2)
    assert {o.message for o in latest(state).values()} == {"run 2", "late"}


def test_a_late_failure_does_not_hide_a_copy(state: DirectoryState) -> None:
    """Two processes may have worked on one attempt. A later run or attempt counts, whatever it found."""
    first = [make_outcome(row, recorded_at=later(0)) for row in range(4)]
    unchanged = [make_outcome(4, Status.UNCHANGED, recorded_at=later(0))]
    append_outcomes(state, first + unchanged, 1, "c", 0)
    late = {"recorded_at": later(99), "error_class": ErrorClass.TIMEOUT, "retryable": True}
    failed = [make_outcome(row, Status.FAILED, **late) for row in (0, 4)]
    again = [
        make_outcome(1, Status.FAILED, attempt=2, **late),
        make_outcome(3, Status.REMOVED, recorded_at=later(9)),
    ]
    append_outcomes(state, failed + again, 1, "c", 1)
    append_outcomes(state, [make_outcome(2, Status.FAILED, run_no=2, **late)], 2, "c", 0)
    expected = ["copied", "failed", "failed", "removed", "unchanged"]
    for _ in range(2):
        assert [latest(state)[row_id(row)].status for row in range(5)] == expected
        compact_ledger(state, 2)


def test_what_a_run_has_recorded_of_a_chunk(state: DirectoryState) -> None:
    """Of this run and chunk alone, also in several files; a copy beats a failure in any of them."""
    failed = {"error_class": ErrorClass.TIMEOUT, "retryable": True}
    append_outcomes(state, [make_outcome(1, Status.FAILED, **failed), make_outcome(2)], 3, "c" * 64, 0)
    append_outcomes(state, [make_outcome(1), make_outcome(2, Status.FAILED, **failed)], 3, "c" * 64, 1)
    append_outcomes(state, [make_outcome(3)], 3, "d" * 64, 0)
    append_outcomes(state, [make_outcome(4)], 2, "c" * 64, 0)
    assert recorded_of(state, 3, "c" * 64) == {row_id(1): ("copied", None), row_id(2): ("copied", None)}


@settings(max_examples=8, deadline=None)
@given(
    lines=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 5)), unique=True, max_size=25),
    folds=st.sets(st.integers(0, 24), max_size=3),
)
def test_folding_often_or_never_comes_to_the_same(
    lines: list[tuple[int, int, int]], folds: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The latest outcome does not depend on when the ledger was compacted."""
    state = directory_state(tmp_path_factory.mktemp("ledger"))
    for part, (row, run_no, second) in enumerate(lines):
        append_outcomes(state, [make_outcome(row, run_no=run_no, recorded_at=later(second))], run_no, "c", part)
        if part in folds:
            compact_ledger(state, run_no)
    expected: dict[str, tuple[int, int]] = {}
    for row, run_no, second in lines:
        expected[row_id(row)] = max(expected.get(row_id(row), (0, 0)), (run_no, second))
    found = {id_: (o.run_no, int((o.recorded_at - later(0)).total_seconds())) for id_, o in latest(state).items()}
    assert found == expected


def test_compaction_leaves_one_file(state: DirectoryState) -> None:
    """A compaction leaves one file with one line per row, which the next compaction keeps if nothing is new."""
    for part in range(5):
        append_outcomes(state, [make_outcome(n, recorded_at=later(part)) for n in range(3)], 1, "c", part)
    compact_ledger(state, 2)
    (name,) = ledger_files(state)
    compact_ledger(state, 3)
    assert ledger_files(state) == [name]
    assert name.startswith("ledger/000002-")
    assert read_table(state.local(name)).num_rows == 3
    assert state.local(name).stat().st_mode & 0o777 == 0o600


def test_a_crash_between_write_and_delete_counts_nothing_twice(
    state: DirectoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old and folded files together give the same outcomes, and the next compaction deletes the old ones."""
    append_outcomes(state, [make_outcome(n) for n in range(4)], 1, "c", 0)
    append_outcomes(state, [make_outcome(n, Status.FAILED, run_no=2) for n in range(2)], 2, "c", 0)
    before = latest(state)

    def killed(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        compact_ledger(state, 2)
    monkeypatch.undo()
    assert len(ledger_files(state)) == 3
    assert latest(state) == before
    append_outcomes(state, [make_outcome(9, run_no=3)], 3, "c", 0)
    compact_ledger(state, 3)
    assert len(ledger_files(state)) == 1
    assert latest(state) == {**before, row_id(9): make_outcome(9, run_no=3)}


def test_a_crash_before_the_write_changes_nothing(state: DirectoryState, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that fails to write its file leaves the ledger as it was."""
    append_outcomes(state, [make_outcome(1)], 1, "c", 0)
    before = ledger_files(state)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "write_file", killed)
    with pytest.raises(KeyboardInterrupt):
        compact_ledger(state, 1)
    assert ledger_files(state) == before
    assert set(latest(state)) == {row_id(1)}


@pytest.mark.slow
def test_readers_meet_compactions_and_miss_no_row(state: DirectoryState) -> None:
    """During appends and folds each reader sees at least the outcomes that existed when it began."""
    append_outcomes(state, [make_outcome(n) for n in range(50)], 1, "c", 0)
    stop = threading.Event()
    wrong: list[Any] = []

    def read() -> None:
        while not stop.is_set():
            try:
                rows = ledger.with_retries(lambda: latest(state))
                if len(rows) < 50:
                    wrong.append(len(rows))
            except Exception as exc:
                wrong.append(exc)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(25):
        append_outcomes(state, [make_outcome(100 + n)], 1, "c", n + 1)
        compact_ledger(state, 1)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert len(latest(state)) == 75


@pytest.mark.parametrize("after", [1, 2])
def test_a_fold_between_two_listings_hides_nothing(
    after: int, state: DirectoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that lists the folders while the first fold moves all outcomes misses none."""
    append_outcomes(state, [make_outcome(1)], 1, "c", 0)
    append_outcomes(state, [make_outcome(2)], 1, "c", 1)
    listed: list[str] = []

    def listing(folder: str) -> list[str]:
        names = DirectoryState.list(state, folder)
        listed.append(folder)
        if len(listed) == after:
            compact_ledger(DirectoryState(state.root), 1)
        return names

    monkeypatch.setattr(state, "list", listing)
    assert set(ledger.with_retries(lambda: latest(state))) == {row_id(1), row_id(2)}


def test_duckdb_and_pandas_read_the_files(state: DirectoryState) -> None:
    """DuckDB and pandas read outcomes and ledger without Ferry, with times in UTC."""
    append_outcomes(state, [make_outcome(n) for n in range(3)], 1, "c", 0)
    folder = state.root
    sql = f"SELECT count(*), min(status) FROM '{folder}/outcomes/*.parquet'"
    assert duckdb.connect().execute(sql).fetchall() == [(3, "copied")]
    compact_ledger(state, 1)
    frame = pd.read_parquet(folder / "ledger")
    assert list(frame["status"]) == ["copied"] * 3
    assert str(frame["recorded_at"].dt.tz) == "UTC"
    assert frame["recorded_at"][0] == pd.Timestamp(later(0))


def test_the_last_run_is_the_highest_that_left_anything(state: DirectoryState) -> None:
    """The last run number comes from outcomes, ledger and reports."""
    assert last_run_no(state) == 0
    append_outcomes(state, [make_outcome(1)], 3, "plan", 0)
    assert last_run_no(state) == 3
    compact_ledger(state, 4)
    assert last_run_no(state) == 4
    state.write("reports/run-000012/summary.md", b"x")
    assert last_run_no(state) == 12


def test_a_damaged_outcome_file_is_an_error_of_the_user(state: DirectoryState) -> None:
    """A damaged outcomes file raises UserError, and is not left out."""
    name = append_outcomes(state, [make_outcome(1)], 1, "c", 0)
    raw = state.read(name)
    for data in (raw[:-30], b"", b"hello" * 50):
        state.write(name, data)
        with pytest.raises(UserError, match="damaged"):
            ledger.with_retries(lambda: latest(state), tries=2)


def test_a_file_of_a_newer_schema_is_refused(state: DirectoryState) -> None:
    """A file of a newer schema raises UserError."""
    import pyarrow.parquet as pq

    first = append_outcomes(state, [make_outcome(1)], 1, "c", 0)
    newer = pa.BufferOutputStream()
    pq.write_table(pq.read_table(state.local(first)).replace_schema_metadata({b"ferry_schema": b"99"}), newer)
    state.delete([first])
    name = checked_name("outcomes/000001-c-00000", newer.getvalue().to_pybytes())
    state.write(name, newer.getvalue().to_pybytes())
    with pytest.raises(UserError, match="newer version of Ferry"):
        read_table(state.local(name))
    with pytest.raises(UserError, match="newer version of Ferry"):
        ledger.with_retries(lambda: latest(state), tries=2)


def test_a_ledger_in_a_bucket(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A ledger in a bucket folds and compacts as one in a directory, also for a second reader."""
    state = open_state(f"s3://{bucket}/state", access(s3), tmp_path / "cache")
    for part in range(3):
        append_outcomes(state, [make_outcome(n, recorded_at=later(part)) for n in range(4)], 1, "c", part)
    other = open_state(f"s3://{bucket}/state", access(s3), tmp_path / "other")
    assert len(latest(other)) == 4
    compact_ledger(state, 1)
    assert latest(state) == latest(other) == {row_id(n): make_outcome(n, recorded_at=later(2)) for n in range(4)}
    assert len(ledger_files(other)) == 1


def test_no_outcomes_are_a_file_all_the_same(tmp_path: Path) -> None:
    """An outcomes file without lines can be read."""
    path = tmp_path / "x.parquet"
    path.write_bytes(encode_outcomes([]))
    none: list[Outcome] = list(outcomes_of(read_table(path)))
    assert none == []


@pytest.mark.parametrize("cores", [1, 2, 4, 16, 64])
def test_duckdb_takes_four_threads_at_most(cores: int, state: DirectoryState, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB uses at most four threads, whose buffers fit into the memory limit."""
    monkeypatch.setattr(duckdb, "connect", partial(duckdb.connect, config={"threads": cores}))
    with ledger.connect(state.spool_dir) as con:
        assert con.execute("SELECT current_setting('threads')").fetchall() == [(min(cores, 4),)]


def test_duckdb_stays_within_its_memory_and_reads_times_alike_everywhere(state: DirectoryState) -> None:
    """DuckDB has a memory limit, reads times as UTC, and installs no extensions."""
    with ledger.connect(state.spool_dir) as con:
        settings = ("memory_limit", "TimeZone", "preserve_insertion_order", "autoinstall_known_extensions")
        found = [con.execute(f"SELECT current_setting('{name}')").fetchall()[0][0] for name in settings]
    assert found == ["381.4 MiB", "UTC", False, False]


def test_freed_memory_is_given_back(state: DirectoryState, tmp_path: Path) -> None:
    """Rows that were read in order leave hundreds of MB with DuckDB's allocator; then its limit holds as before."""
    with ledger.connect(state.spool_dir) as con:
        con.execute(f"""
            COPY (SELECT range AS n, md5(range::VARCHAR) AS id, md5(n || 'x') AS etag FROM range(500_000))
            TO '{tmp_path}/rows.parquet';
            CREATE TABLE chosen AS SELECT n FROM '{tmp_path}/rows.parquet'
        """)
        for _ in con.sql(f"FROM '{tmp_path}/rows.parquet' JOIN chosen USING (n) ORDER BY n").to_arrow_reader(5000):
            pass
        before = resident_bytes()
        ledger.release_freed(con)
        assert before - resident_bytes() > 40e6
        assert con.execute("SELECT current_setting('memory_limit')").fetchall() == [("381.4 MiB",)]


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("kept_open", [False, True])
def test_runs_of_another_place_are_left_out(folds: bool, kept_open: bool, state: DirectoryState) -> None:
    """Only outcomes since the given run count, in a folded ledger and in any other."""
    for run_no in (1, 2, 3):
        append_outcomes(state, [make_outcome(run_no, run_no=run_no)], run_no, "c", 0)
    if folds:
        compact_ledger(state, 3)
    with contextlib.ExitStack() as open_files, ledger.connect(state.spool_dir) as con:
        ledger.create_latest(con, state, 2, open_files=open_files if kept_open else None)
        assert con.execute("SELECT run_no FROM latest ORDER BY 1").fetchall() == [(2,), (3,)]


@pytest.mark.parametrize(
    ("name", "run_no"),
    [
        ("outcomes/000012-c-00000-ab.parquet", 12),
        ("ledger/000003-1-ab.parquet", 3),
        ("reports/run-000004/summary.json", 4),
        ("reports/notes.txt", 0),
        ("000005", 0),
    ],
)
def test_which_run_a_file_is_of(name: str, run_no: int) -> None:
    """The run number comes from the file's name, and is 0 without one."""
    assert ledger.run_of(name) == run_no


def test_a_reader_lists_again_where_files_went_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader is retried for missing files up to the limit, and not for damaged ones."""
    monkeypatch.setattr("ferry.state.ledger.connection.time.sleep", lambda _: None)
    ends: list[Exception | int] = []

    def read() -> int:
        end = ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    ends[:] = [duckdb.IOException("gone"), FileNotFoundError("gone"), 7]
    assert ledger.with_retries(read, tries=3) == 7
    ends[:] = [FileNotFoundError("gone")] * 3 + [7]
    with pytest.raises(FileNotFoundError):
        ledger.with_retries(read, tries=3)
    assert ends == [7]
    ends[:] = [duckdb.InvalidInputException("no Parquet"), 7]
    with pytest.raises(UserError, match="damaged: no Parquet"):
        ledger.with_retries(read, tries=3)
    assert ends == [7]


def test_a_query_that_does_not_fit(tmp_path: Path) -> None:
    """Neither into the memory nor onto the disk where DuckDB spills: a sentence that says what to do."""
    con = ledger.connect(tmp_path)
    con.execute("SET memory_limit = '30MB'; SET max_temp_directory_size = '1MB'")
    with pytest.raises(Fatal, match=r"more than the free disk space .* Free some space"), ledger.refuse_damage():
        con.execute("CREATE TABLE t AS SELECT n, md5(n::VARCHAR) AS m FROM range(3000000) r(n) ORDER BY m")


def test_a_full_disk_under_a_query() -> None:
    """DuckDB's words for ENOSPC become those of every full disk; another failure of a file stays what it is."""
    full = 'Could not write file "x": No space left on device'
    with pytest.raises(Fatal, match="a temporary file of DuckDB: no space left on the disk"), ledger.refuse_damage():
        raise duckdb.IOException(full)
    with pytest.raises(duckdb.IOException, match="gone"), ledger.refuse_damage():
        raise duckdb.IOException("gone")


def test_an_object_that_its_row_has_left_keeps_a_line(state: DirectoryState) -> None:
    """A copy under a row's earlier key is in the history, and keeps a line in the ledger."""
    first = make_outcome(1, key="a.jpg", sha256="a" * 64, dest_etag="e")
    append_outcomes(state, [first], 1, "c", 0)
    compact_ledger(state, 1)
    assert state.list("history") == []
    again = make_outcome(1, key="b.jpg", sha256="b" * 64, dest_etag="f", run_no=2, attempt=2, recorded_at=later(1))
    append_outcomes(state, [again], 2, "c", 0)
    compact_ledger(state, 2)
    assert len(state.list("history")) == 1
    assert {(o.key, o.status) for o in latest(state).values()} == {("a.jpg", Status.COPIED), ("b.jpg", Status.COPIED)}
    assert len(ledger_files(state)) == 1


def test_a_damaged_file_is_put_aside(state: DirectoryState) -> None:
    """A damaged file is moved out of the ledger and kept, and the others count."""
    bad, good = (append_outcomes(state, [make_outcome(n)], n, "c", 0) for n in (1, 2))
    raw = state.read(bad)[:-30]
    state.write(bad, raw)
    assert ledger.put_ledger_aside(state) == [bad]
    assert (ledger_files(state), set(latest(state))) == ([good], {row_id(2)})
    assert state.read(f"damaged/{Path(bad).name}") == raw
    assert ledger.put_ledger_aside(state) == []


def test_a_ledger_that_is_gone_is_refused_until_it_is_booked_as_lost(state: DirectoryState) -> None:
    """A missing ledger file is refused until a later fold replaces it or it is recorded as lost."""
    append_outcomes(state, [make_outcome(1)], 1, "c", 0)
    ledger.refuse_lost_ledger(state)
    (name,) = compact_ledger(state, 1)
    state.write("reports/run-000001/summary.json", encode_checked_json({"ledger": name}))
    ledger.refuse_lost_ledger(state)
    raw = state.read(name)
    state.delete([name])
    with pytest.raises(Damaged, match=name):
        ledger.refuse_lost_ledger(state)
    for newer in ("ledger/000002-1", "ledger/000001-9999999999999999999"):  # of a later run, or of the same one
        later_fold = checked_name(newer, raw)
        state.write(later_fold, raw)
        ledger.refuse_lost_ledger(state)
        state.delete([later_fold])
    earlier_fold = checked_name("ledger/000001-0000000000000000001", raw)
    state.write(earlier_fold, raw)
    with pytest.raises(Damaged, match=name):
        ledger.refuse_lost_ledger(state)
    state.delete([earlier_fold])
    assert ledger.put_ledger_aside(state) == [name]
    ledger.refuse_lost_ledger(state)
    assert ledger.put_ledger_aside(state) == []
    assert last_run_no(state) == 1
    state.write("reports/run-000002/summary.json", b"of an earlier Ferry")
    ledger.refuse_lost_ledger(state)
