"""A large ledger: a whole fold and a file of the rows that changed since, which are merged range by range."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from demo.s3 import S3Server
from ferry.core.errors import Damaged
from ferry.core.records import Outcome, Status
from ferry.state import ledger
from ferry.state.bucket import BucketState, open_state
from ferry.state.checksums import checked_name, encode_checked_json
from ferry.state.files import DirectoryState
from ferry.state.id_ranges import row_ranges
from ferry.state.ledger import append_outcomes, buckets, compact_ledger, ledger_files, merge, reader, sources
from ferry.state.parquet import encode_outcomes, read_table
from tests.support.helpers import access, directory_state, later, latest, make_outcome, row_id

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _few_rows_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SMALL_LEDGER", 10)
    monkeypatch.setattr(merge, "LINES_AT_ONCE", 8)
    monkeypatch.setattr(buckets, "ROWS_AT_ONCE", 16)


@pytest.fixture
def state(tmp_path: Path) -> DirectoryState:
    return directory_state(tmp_path)


def copies(rows: Any, run_no: int = 1, **given: Any) -> list[Outcome]:
    return [make_outcome(n, run_no=run_no, **given) for n in rows]


def two_files(state: Any) -> tuple[str, str]:
    """A whole fold of 100 rows, and 5 that run 2 changed."""
    append_outcomes(state, copies(range(100)), 1, "c", 0)
    compact_ledger(state, 1)
    append_outcomes(state, copies(range(5), 2), 2, "c", 0)
    whole, changes = compact_ledger(state, 2)
    return whole, changes


def test_each_range_begins_with_freed_memory(state: DirectoryState, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold gives back what the range before has left, and so does a reader of one range after the other."""
    released: list[Any] = []
    for module in (merge, reader):
        monkeypatch.setattr(module, "release_freed", released.append)
    append_outcomes(state, copies(range(100)), 1, "c", 0)
    compact_ledger(state, 1)
    assert len(released) == len(row_ranges(100, 8)) > 1
    with ledger.connect(state.spool_dir) as con, ledger.open_ledger(con, state) as opened:
        released.clear()
        for part in row_ranges(100, 50):
            opened.create_latest(part)
    assert released == [con, con]


def rank(outcome: Outcome) -> tuple[Any, ...]:
    """The order of a row's outcomes, in Python."""
    failed = outcome.status in (Status.FAILED, Status.SKIPPED)
    return outcome.run_no, outcome.attempt, not failed, outcome.recorded_at


class Killed(BaseException):
    """The process was killed."""


class Outcomes:
    """Random outcomes of 200 rows. Those that come one after the other are as a job's runs write them, and have a
    history; others are in any order, as of processes that were taken for dead."""

    def __init__(self, seed: int, *, in_order: bool) -> None:
        self._rng, self._in_order, self.all = random.Random(seed), in_order, list[Outcome]()
        self._last: dict[str, Outcome] = {}

    def more(self, number: int, run_no: int) -> list[Outcome]:
        made = [self._one(run_no) for _ in range(number)]
        self.all += made
        return made

    def _one(self, run_no: int) -> Outcome:
        rng, row = self._rng, self._rng.randrange(200)
        status, body = rng.choice((Status.COPIED, Status.COPIED, Status.FAILED)), rng.choice("ab")
        if not self._in_order:
            return make_outcome(
                row, status, run_no=rng.randrange(1, run_no + 1), attempt=rng.randrange(1, 3),
                message=str(rng.random()), recorded_at=later(rng.randrange(10**9)),
            )  # fmt: skip
        last = self._last.get(row_id(row))
        copy: dict[str, Any] = {"sha256": body * 64, "dest_etag": body}
        if status is Status.FAILED:  # the copy of before stays
            copy = {"sha256": last and last.sha256, "dest_etag": last and last.dest_etag}
        self._last[row_id(row)] = made = make_outcome(
            row, status, run_no=run_no, attempt=last.attempt + 1 if last else 1, recorded_at=later(len(self.all)),
            **copy,
        )  # fmt: skip
        return made

    def latest(self) -> dict[str, Outcome]:
        found: dict[str, Outcome] = {}
        for each in self.all:
            if each.row_id not in found or rank(each) > rank(found[each.row_id]):
                found[each.row_id] = each
        return found

    def replaced(self) -> set[tuple[Any, ...]]:
        last, found = dict[str, Outcome](), set()
        for each in self.all:
            if each.dest_etag is None:
                continue
            before = last.get(each.row_id)
            if before and each.status is Status.COPIED and each.sha256 != before.sha256:
                found.add((before.row_id, before.run_no, before.recorded_at, each.run_no))
            last[each.row_id] = each
        return found


@pytest.mark.slow  # a few seconds of processor time each
@pytest.mark.parametrize(("seed", "in_order"), [(1, True), (2, True), (3, False), (4, False)])
def test_any_order_of_outcomes_folds_and_crashes(
    seed: int, in_order: bool, state: DirectoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latest outcomes and history are those of a plain model, whatever was folded when, and wherever it crashed."""
    rng, outcomes, kinds = random.Random(seed), Outcomes(seed, in_order=in_order), set()
    for run_no in range(1, 9):
        for part in range(rng.randrange(1, 4)):
            append_outcomes(state, outcomes.more(rng.choice((2, 4, 60)), run_no), run_no, "c", part)
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            kill_at(state, rng.randrange(1, 6), patch)
            compact_ledger(state, run_no)
        assert latest(state) == outcomes.latest()
        if rng.random() < 0.7:
            names = compact_ledger(state, run_no)
            kinds.add(len(names))
            assert ledger_files(state) == names
            assert latest(state) == outcomes.latest()
            assert ranges(state) == sorted(outcomes.latest())
    compact_ledger(state, 9)
    assert latest(state) == outcomes.latest()
    if in_order:
        assert history(state) == outcomes.replaced()
    assert kinds == {1, 2}
    assert not list(state.spool_dir.glob("*"))


def kill_at(state: DirectoryState, change: int, patch: pytest.MonkeyPatch) -> None:
    """The process is killed before one of the next changes of the state."""
    left = [change]

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def changes(*given: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return method(*given)

        return changes

    delete_one = counted(state.delete)
    patch.setattr(state, "write", counted(state.write))
    patch.setattr(state, "write_file", counted(state.write_file))
    patch.setattr(state, "delete", lambda names: [delete_one([name]) for name in names])


def ranges(state: DirectoryState) -> list[str]:
    found = []
    with ledger.connect(state.spool_dir) as con, ledger.open_ledger(con, state) as opened:
        for rows in row_ranges(opened.rows, 50):
            opened.create_latest(rows)
            found += [id_ for (id_,) in con.execute("SELECT row_id FROM latest ORDER BY 1").fetchall()]
    return found


def history(state: DirectoryState) -> set[tuple[Any, ...]]:
    lines = [line for name in state.list("history") for line in read_table(state.local(name)).to_pylist()]
    return {(line["row_id"], line["run_no"], line["recorded_at"], line["replaced_by"]) for line in lines}


def test_a_small_change_leaves_the_large_file(state: DirectoryState) -> None:
    """A fold of few changes writes these alone; with more of them, all are folded into one file."""
    whole, changes = two_files(state)
    assert ledger_files(state) == [whole, changes]
    assert re.fullmatch(rf"ledger/000002-\d{{19}}-over-{whole[-24:-8]}-[0-9a-f]{{16}}\.parquet", changes)
    assert [read_table(state.local(name)).num_rows for name in (whole, changes)] == [100, 5]
    append_outcomes(state, copies(range(4, 8), 3), 3, "c", 0)
    assert compact_ledger(state, 3)[0] == whole
    (_, changes) = ledger_files(state)
    assert read_table(state.local(changes)).num_rows == 8  # the earlier changes too
    append_outcomes(state, copies(range(50, 60), 4), 4, "c", 0)
    (name,) = compact_ledger(state, 4)
    table = read_table(state.local(name))
    assert table["row_id"].to_pylist() == sorted(map(row_id, range(100)))
    assert {o.run_no for o in latest(state).values()} == {1, 2, 3, 4}


def test_of_one_attempt_a_copy_beats_a_failure(state: DirectoryState) -> None:
    """A process that was taken for dead fails where its successor has copied: the copy counts, however it is folded."""
    for n, (first, second) in enumerate([(Status.COPIED, Status.FAILED), (Status.UNCHANGED, Status.SKIPPED)]):
        append_outcomes(state, [make_outcome(n, first)], 1, "c", n)
        append_outcomes(state, [make_outcome(n, second, recorded_at=later(9))], 1, "d", n)
        append_outcomes(state, [make_outcome(10 + n, second, attempt=2), make_outcome(10 + n, first)], 1, "e", n)
    expected = {0: "copied", 1: "unchanged", 10: "failed", 11: "skipped"}
    for fold in (False, True):
        if fold:
            append_outcomes(state, copies(range(100, 200)), 1, "c", 9)
            compact_ledger(state, 1)
        found = latest(state)
        assert {n: found[row_id(n)].status for n in expected} == expected
    late = [make_outcome(n, Status.FAILED, recorded_at=later(99)) for n in (0, 100)]
    append_outcomes(state, late, 1, "c", 10)
    compact_ledger(state, 1)
    found = latest(state)
    assert {found[row_id(n)].status for n in (0, 100)} == {"copied"}


def test_readers_keep_what_they_opened(state: DirectoryState) -> None:
    """The view of a large and a small file outlives a fold that deletes both."""
    two_files(state)
    with ledger.connect(state.spool_dir) as con, ledger.open_ledger(con, state) as opened:
        opened.create_latest()
        append_outcomes(state, copies(range(90), 3), 3, "c", 0)
        assert len(compact_ledger(state, 3)) == 1
        assert con.execute("SELECT run_no, count(*) FROM latest GROUP BY 1 ORDER BY 1").fetchall() == [(1, 95), (2, 5)]


def test_a_range_is_read_by_itself(state: DirectoryState) -> None:
    """DuckDB reads only the row groups of a range: row groups are sorted, and have the least and greatest row ID."""
    whole, _ = two_files(state)
    with ledger.connect(state.spool_dir) as con:
        groups = con.execute(
            "SELECT stats_min_value, stats_max_value FROM parquet_metadata(?) WHERE path_in_schema = 'row_id' "
            "ORDER BY row_group_id",
            [str(state.local(whole))],
        ).fetchall()
        assert len(groups) == 16
        ends = [end for group in groups for end in group]
        assert ends == sorted(ends)


def test_ranges_beside_a_large_file_are_half_as_long(state: DirectoryState) -> None:
    """Their history holds the large file's lines as well."""
    append_outcomes(state, copies(range(100)), 1, "c", 0)
    compact_ledger(state, 1)
    append_outcomes(state, copies(range(12), 2), 2, "c", 0)  # in four ranges, of which one stays empty
    _, changes = compact_ledger(state, 2)
    assert pq.ParquetFile(state.local(changes)).metadata.num_row_groups == 3


def test_only_the_changes_of_earlier_runs_are_left_out(state: DirectoryState) -> None:
    """Outcomes since a run count in both files."""
    two_files(state)
    with ledger.connect(state.spool_dir) as con, ledger.open_ledger(con, state, since_run=2) as opened:
        opened.create_latest()
        assert con.execute("SELECT count(*) FROM latest").fetchall() == [(5,)]


def test_a_lost_file_is_named(state: DirectoryState) -> None:
    """Each of the two files is missed, also the large one while a newer small one is there."""
    whole, changes = two_files(state)
    state.write("reports/run-000002/summary.json", encode_checked_json({"ledger": [whole, changes]}))
    ledger.refuse_lost_ledger(state)
    for name in (whole, changes):
        raw = state.read(name)
        state.delete([name])
        with pytest.raises(Damaged, match=name):
            ledger.refuse_lost_ledger(state)
        state.write(name, raw)
    raw = state.read(whole)
    state.delete([whole])
    # a later file of changes does not have the outcomes of the whole fold
    later_changes = checked_name(f"ledger/000003-1-over-{whole[-24:-8]}", state.read(changes))
    state.write(later_changes, state.read(changes))
    state.delete([changes])
    with pytest.raises(Damaged, match=whole):
        ledger.refuse_lost_ledger(state)
    later_fold = checked_name("ledger/000004-1", raw)
    state.write(later_fold, raw)  # a later whole fold does
    ledger.refuse_lost_ledger(state)


def test_a_lost_file_is_named_without_a_report(state: DirectoryState) -> None:
    """A file of changes names its whole fold, so that this is missed after a run that was killed before its report."""
    whole, changes = two_files(state)
    state.delete([whole])
    with pytest.raises(Damaged, match=whole[-24:]):
        ledger.refuse_lost_ledger(state)
    (lost,) = ledger.put_ledger_aside(state)
    assert lost[-24:] == whole[-24:]
    ledger.refuse_lost_ledger(state)
    assert ledger.put_ledger_aside(state) == []
    assert set(latest(state)) == set(map(row_id, range(5)))
    append_outcomes(state, copies(range(3, 9), 3), 3, "c", 0)
    assert len(compact_ledger(state, 3)) == 1
    assert set(latest(state)) == set(map(row_id, range(9)))
    assert changes not in ledger_files(state)


@pytest.mark.parametrize("bad", [0, 1])
def test_a_damaged_file_is_put_aside(bad: int, state: DirectoryState) -> None:
    """`--replan` moves the damaged one of the two files, and the rows of the other one count."""
    names = two_files(state)
    state.write("reports/run-000002/summary.json", encode_checked_json({"ledger": list(names)}))
    state.write(names[bad], state.read(names[bad])[:-30])
    with pytest.raises(Damaged, match=names[bad]):
        latest(state)
    assert ledger.put_ledger_aside(state) == [names[bad]]
    ledger.refuse_lost_ledger(state)
    assert len(latest(state)) == (5, 100)[bad]
    compact_ledger(state, 3)
    assert len(latest(state)) == (5, 100)[bad]


def test_a_file_of_an_earlier_version_is_sorted_once(state: DirectoryState) -> None:
    """A fold that is not sorted, or has no digest in its name, is folded again with the next outcomes."""
    raw = encode_outcomes(copies(reversed(range(100))))
    for name in (checked_name("ledger/000001-1", raw), "ledger/000001-1.parquet"):
        state.write(name, raw)
        assert ranges(state) == sorted(map(row_id, range(100)))
        append_outcomes(state, copies([3], 2), 2, "c", 0)
        assert ranges(state) == sorted(map(row_id, range(100)))
        (folded,) = compact_ledger(state, 2)
        append_outcomes(state, copies([4], 3), 3, "c", 0)
        assert compact_ledger(state, 3)[0] == folded
        state.delete(ledger_files(state))


def test_the_queries_of_the_docs_hold(state: DirectoryState) -> None:
    """The queries in docs/reference/state.md give one line for each row while the ledger is two files."""
    two_files(state)
    append_outcomes(state, copies([1], 3), 3, "c", 0)
    (query, *_) = re.findall(r"```sql\n(WITH latest.*?)```", (ROOT / "docs/reference/state.md").read_text(), re.DOTALL)
    con = duckdb.connect(config={"file_search_path": str(state.root)})
    assert con.execute(query).fetchall() == [("copied", None, 100, 100 * (make_outcome(1).size or 0))]


def test_a_small_fold_downloads_no_large_file(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a state in a bucket, a machine downloads the large file once, and never what it has written itself."""
    downloads: list[str] = []
    state, other = (open_state(f"s3://{bucket}/state", access(s3), tmp_path / name) for name in ("one", "other"))
    assert isinstance(other, BucketState)
    assert isinstance(state, BucketState)
    for each in (state, other):
        download = each._bucket.download

        def counted(key: str, write: Any, download: Any = download) -> bool:
            downloads.append(key)
            return bool(download(key, write))

        monkeypatch.setattr(each._bucket, "download", counted)
    whole, _ = two_files(state)
    latest(state)
    assert not [key for key in downloads if "/ledger/" in key]
    latest(other)
    append_outcomes(state, copies([6], 3), 3, "c", 0)
    assert compact_ledger(state, 3)[0] == whole
    assert len(latest(other)) == 100
    assert sum(key.endswith(whole) for key in downloads) == 1
    assert sum("/ledger/" in key for key in downloads) == 3
