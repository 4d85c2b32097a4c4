"""Planning on real files: each row to do is in exactly one chunk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demo.s3 import S3Server
from ferry.core.errors import Fatal, UserError
from ferry.core.locations import below
from ferry.core.records import ErrorClass, Reason, Row, Status
from ferry.job.model import Job
from ferry.manifest import load
from ferry.manifest.normalize import normalise
from ferry.planning import chunk_files, planner
from ferry.planning.options import Accesses, PlanOptions
from ferry.planning.rules import Mode
from ferry.state import lease, ledger, parquet
from ferry.state.bucket import open_state
from ferry.state.checksums import checked_name, decode_checked_json, encode_checked_json
from ferry.state.files import DirectoryState, State
from ferry.state.id_ranges import ROWS_AT_ONCE
from ferry.state.ledger import append_outcomes, compact_ledger
from ferry.state.plan_file import (
    LOCATION_FILE,
    PLAN_FILE,
    PLAN_SCHEMA,
    ChunkRef,
    Plan,
    PlanLocation,
    Planned,
    read_plan,
    set_plan_aside,
)
from ferry.storage.access import Access
from ferry.transfer.chunk_rows import read_chunk
from tests.support.helpers import (
    FAILED_404,
    FAILED_500,
    access,
    chunk_rows,
    directory_state,
    latest,
    make_job,
    make_outcome,
    plan,
    settle,
    urls,
    write_list,
)

pytestmark = pytest.mark.matrix


@pytest.fixture
def state(tmp_path: Path) -> DirectoryState:
    return directory_state(tmp_path)


def job_in(folder: Path, **given: Any) -> Job:
    return make_job(manifest=str(folder / "list.csv"), destination=f"file://{folder}/out/", **given)


def planned_rows(state: State, planned: Planned) -> list[Row]:
    return [row for ref in planned.chunks if ref.done < ref.rows for row in chunk_rows(state, ref)]


def keys(state: State, planned: Planned) -> list[str]:
    return [row.key for row in planned_rows(state, planned)]


def check_each_row_once(state: State, planned: Planned) -> None:
    """Asserts that no chunk is listed twice, no row is to be done twice, and the numbers add up."""
    digests = [ref.digest for ref in planned.chunks]
    assert len(set(digests)) == len(digests)
    known = latest(state)
    todo = Counter(
        row.row_id
        for row in planned_rows(state, planned)
        if row.row_id not in known or known[row.row_id].attempt < row.attempt
    )
    assert not todo or max(todo.values()) == 1
    assert planned.pending >= 0
    assert sum(planned.todo.values()) + planned.pending + planned.untouched == planned.rows


def test_the_first_plan_cuts_base_chunks(tmp_path: Path, state: DirectoryState) -> None:
    """The first plan has base chunks of chunk_rows new rows in the manifest's order."""
    write_list(tmp_path / "list.csv", urls(*range(25)))
    planned = plan(job_in(tmp_path, chunk_rows=10), state)
    assert [(ref.rows, ref.kind, ref.run_no) for ref in planned.chunks] == [
        (10, "base", 1), (10, "base", 1), (5, "base", 1),
    ]  # fmt: skip
    assert keys(state, planned) == [f"{n}.jpg" for n in range(25)]
    assert {(row.reason, row.attempt) for row in planned_rows(state, planned)} == {(Reason.NEW, 1)}
    assert (planned.todo, planned.pending, planned.untouched) == ({"new": 25}, 0, 0)
    on_disk = read_plan(state)
    assert on_disk is not None
    assert [ref.digest for ref in on_disk.chunks] == [ref.digest for ref in planned.chunks]
    assert on_disk.chunk_rows == 10
    assert {ref.existing for ref in planned.chunks} == {"head"}
    for name in state.list("chunks") + state.list("plan"):
        assert state.local(name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("span", [1, 7, 25])
def test_rows_are_cut_span_by_span(span: int, tmp_path: Path) -> None:
    """Sorting a few rows at a time gives the same chunks as sorting all."""
    lines = [*urls(*range(25)), ["no address"], *urls(*range(30, 40))]
    write_list(tmp_path / "list.csv", lines)
    job = job_in(tmp_path, chunk_rows=10)
    at_once = plan(job, directory_state(tmp_path, "at once"))
    in_spans = planner.make_plan(
        job, directory_state(tmp_path, "in spans"), Accesses(Access(), Access()), PlanOptions(1), span
    )
    assert [ref.rows for ref in at_once.chunks] == [10, 10, 10, 5]
    assert [ref.digest for ref in in_spans.chunks] == [ref.digest for ref in at_once.chunks]


def test_fewer_rows_are_sorted_than_joined_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted rows have all columns, so that as many as in a part of the other steps would take more memory."""
    write_list(tmp_path / "list.csv", urls(*range(25)))
    assert chunk_files.SORTED_ROWS < ROWS_AT_ONCE
    monkeypatch.setattr(chunk_files, "SORTED_ROWS", 10)
    released: list[object] = []
    monkeypatch.setattr(chunk_files, "release_freed", released.append)
    plan(job_in(tmp_path, chunk_rows=10), directory_state(tmp_path, "state"))
    assert len(released) == 3  # once for each span


def test_the_same_manifest_and_job_give_the_same_chunks(tmp_path: Path, state: DirectoryState) -> None:
    """The same rows give the same chunk digests in another state and on another day."""
    write_list(tmp_path / "list.csv", urls(*range(700)))
    job = job_in(tmp_path)
    other = directory_state(tmp_path, "other")
    first, second = plan(job, state), plan(job, other, run_no=9)
    assert [ref.digest for ref in first.chunks] == [ref.digest for ref in second.chunks]
    assert [ref.rows for ref in first.chunks] == [500, 200]


@pytest.mark.parametrize(
    ("earlier", "step"),
    [
        (False, "load_manifest"), (False, "find_existing"),
        (True, "load_manifest"), (True, "find_existing"), (True, "forget_returned"),
    ],
)  # fmt: skip
def test_a_lease_that_is_taken_while_a_run_plans(
    earlier: bool, step: str, tmp_path: Path, state: DirectoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planner that lost its lease does not write plan, manifest, location, counts or outcomes."""
    job = job_in(tmp_path)
    if earlier:
        write_list(tmp_path / "list.csv", urls(1, 2))
        plan(job, state)
        data = parquet.to_bytes(pa.table({"key": ["p/gone.jpg"], "lists": [1]}))
        state.write(checked_name("plan/missing-000001", data), data)
    write_list(tmp_path / "list.csv", [*urls(1, 2, 3), ["N/A"]])
    mine = lease.acquire_lease(state, "test")
    taken: list[lease.Lease] = []
    before: dict[str, bytes] = {}
    real = getattr(planner, step)

    def as_it_is(*given: Any, **named: Any) -> Any:
        """Calls the function, then releases the lease and lets another run take it."""
        result = real(*given, **named)
        mine.release()
        taken.append(lease.acquire_lease(state, "another"))
        before.update(files_of(state))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(planner, step, as_it_is)
        with pytest.raises(Fatal, match="lost its lease"):
            plan(job, state, 2, token=mine.token)
    assert files_of(state) == before
    assert plan(job, state, 2, token=taken[0].token).rows == 4
    taken[0].release()


def files_of(state: DirectoryState) -> dict[str, bytes]:
    """Returns the files that a plan writes, without those that are named by their digest and read through the plan."""
    names = [name for folder in ("plan", "outcomes") for name in state.list(folder)]
    return {name: state.read(name) for name in names if not name.startswith("plan/hints")}


def test_a_settled_plan_needs_nothing(tmp_path: Path, state: DirectoryState) -> None:
    """A plan with all rows done lists the same chunks, and adds none."""
    write_list(tmp_path / "list.csv", urls(1, 2, 3))
    job = job_in(tmp_path)
    first = plan(job, state)
    settle(state, first.chunks[0], 1)
    second = plan(job, state, 2)
    assert [(ref.digest, ref.done) for ref in second.chunks] == [(first.chunks[0].digest, 3)]
    assert (second.todo, second.pending, second.untouched) == ({}, 0, 3)


def test_half_a_chunk_is_pending(tmp_path: Path, state: DirectoryState) -> None:
    """Rows without an outcome stay pending in their chunk, and its hints name the rows that are done."""
    write_list(tmp_path / "list.csv", urls(*range(10)))
    job = job_in(tmp_path)
    settle(state, plan(job, state).chunks[0], 1, only=4)
    planned = plan(job, state, 2)
    assert (planned.todo, planned.pending, planned.untouched) == ({}, 6, 4)
    assert plan(job, state, 2, dry=True).existing == "found by a HEAD for each row"
    (ref,) = planned.chunks
    hints = parquet.read_table(state.local(ref.hints)).to_pylist()
    assert {hint["row_id"] for hint in hints if hint["done"]} == {row.row_id for row in chunk_rows(state, ref)[:4]}


def test_a_changed_manifest_adds_chunks_for_new_rows_only(tmp_path: Path, state: DirectoryState) -> None:
    """A changed manifest adds chunks of new rows; chunks stay, and removed rows do not count."""
    write_list(tmp_path / "list.csv", urls(*range(10)))
    job = job_in(tmp_path, chunk_rows=4)
    first = plan(job, state)
    settle(state, first.chunks[0], 1)
    write_list(tmp_path / "list.csv", urls(*range(20, 25), *range(2, 9)))  # 0, 1 and 9 left, in another order
    second = plan(job, state, 2)
    assert [ref.digest for ref in second.chunks[:3]] == [ref.digest for ref in first.chunks]
    assert [row.key for ref in second.chunks[3:] for row in chunk_rows(state, ref)] == [
        f"{n}.jpg" for n in range(20, 25)
    ]
    assert (second.rows, second.todo, second.pending, second.untouched) == (12, {"new": 5}, 5, 2)
    assert second.chunks[0].done == 4
    check_each_row_once(state, second)


def test_what_waits_is_moved_by_what_the_list_says_now(tmp_path: Path, state: DirectoryState) -> None:
    """A pending row is transferred as the present manifest describes it, in exactly one chunk."""
    header, address = ("url", "sha256", "size"), "https://img.example/{}.jpg"

    def listed(digest: str, size: str = "") -> None:
        write_list(tmp_path / "list.csv", [[address.format(n), digest, size] for n in range(4)], header)

    job = job_in(tmp_path)
    listed("")
    (first,) = plan(job, state).chunks
    settle(state, first, 1, only=2)
    for run_no, digest in ((2, "a" * 64), (3, ""), (4, "b" * 64), (5, "a" * 64)):
        listed(digest)
        planned = plan(job, state, run_no)
        check_waiting(state, planned, {"2.jpg": digest or None, "3.jpg": digest or None})
    listed("a" * 64, "10")
    planned = plan(job, state, 6)
    check_waiting(state, planned, {"2.jpg": "a" * 64, "3.jpg": "a" * 64})
    settle(state, planned.chunks[-1], 6)
    assert all(ref.done == ref.rows for ref in plan(job, state, 7).chunks)


def check_waiting(state: State, planned: Planned, expected: dict[str, str | None]) -> None:
    """Asserts that each row to do is in one chunk, with the digest to compare."""
    waiting = []
    for ref in planned.chunks:
        table, hints = read_chunk(state, ref)
        waiting += [row for row in parquet.rows_of(table) if row.row_id not in hints.done and ref.done < ref.rows]
    assert sorted((row.key, row.sha256) for row in waiting) == sorted(expected.items())
    assert sum(planned.todo.values()) + planned.pending == len(expected)


def test_chunk_rows_are_frozen_by_the_first_plan(tmp_path: Path, state: DirectoryState) -> None:
    """A later change of chunk_rows has no effect."""
    write_list(tmp_path / "list.csv", urls(*range(4)))
    plan(job_in(tmp_path, chunk_rows=2), state)
    write_list(tmp_path / "list.csv", urls(*range(9)))
    planned = plan(job_in(tmp_path, chunk_rows=100), state, 2)
    assert [ref.rows for ref in planned.chunks] == [2, 2, 2, 2, 1]
    assert planned.chunk_rows == 2


def test_unusable_doubled_and_colliding_rows_become_outcomes(tmp_path: Path, state: DirectoryState) -> None:
    """Unusable, duplicate and colliding rows get one outcome each, and are in no chunk."""
    rows = [[f"https://img.example/{n}.jpg?x", str(n)] for n in range(30)]
    rows += [["", "100"], ["https://img.example/%2E%2E/x", "101"], ["https://img.example/3.jpg?x", "102"]]
    rows += [["https://img.example/7.jpg?other", "103"]]
    write_list(tmp_path / "list.csv", rows, ("url", "id"))
    job = job_in(tmp_path)
    planned = plan(job, state)
    assert (planned.rows, planned.unusable, planned.duplicates, planned.collisions) == (34, 2, 1, 2)
    assert planned.todo == {"new": 29}
    said = {outcome.id: (outcome.status, outcome.error_class) for outcome in latest(state).values()}
    assert said == {
        "100": (Status.FAILED, ErrorClass.BAD_URL),
        "101": (Status.FAILED, ErrorClass.BAD_KEY),
        "102": (Status.SKIPPED, ErrorClass.DUPLICATE),
        "7": (Status.FAILED, ErrorClass.KEY_COLLISION),
        "103": (Status.FAILED, ErrorClass.KEY_COLLISION),
    }
    assert {outcome.attempt for outcome in latest(state).values()} == {0}
    assert {row.id for row in planned_rows(state, planned)} == {str(n) for n in range(30) if n != 7}
    before = state.list("outcomes")
    plan(job, state, 2)
    assert state.list("outcomes") == before


def test_many_collisions_are_an_error_of_the_key(tmp_path: Path, state: DirectoryState) -> None:
    """More than 10% of colliding rows raise UserError with the advice to set `key`."""
    rows = urls(*range(18)) + [["https://img.example/same.jpg?1"], ["https://img.example/same.jpg?2"]]
    write_list(tmp_path / "list.csv", rows)
    assert plan(job_in(tmp_path), state).collisions == 2
    write_list(tmp_path / "list.csv", rows[1:])
    with pytest.raises(UserError, match=r"2 of 19 rows have a key collision .*10% .*set `key`"):
        plan(job_in(tmp_path), directory_state(tmp_path, "other"))


def test_a_list_that_is_refused_leaves_the_old_one_in_force(tmp_path: Path, state: DirectoryState) -> None:
    """A refused manifest does not replace the one in force."""
    write_list(tmp_path / "list.csv", urls(1, 2, 3))
    job = job_in(tmp_path)
    first = plan(job, state, 1)
    write_list(tmp_path / "list.csv", [["https://img.example/1.jpg?a"], ["https://img.example/1.jpg?b"]])
    with pytest.raises(UserError, match="key collision"):
        plan(job, state, ledger.last_run_no(state) + 1)
    write_list(tmp_path / "list.csv", urls(1, 2, 3))
    planned = plan(job, state, ledger.last_run_no(state) + 1)
    assert (planned.rows, planned.pending) == (3, 3)
    assert [ref.digest for ref in planned.chunks] == [ref.digest for ref in first.chunks]


@pytest.mark.parametrize("how", ["appended", "replaced", "gone"])
def test_a_list_that_is_written_to_while_it_is_read_is_refused(
    how: str, tmp_path: Path, state: DirectoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that changes while it is read is refused, since rows may be missing."""
    path = write_list(tmp_path / "list.csv", urls(*range(5)))
    read = normalise

    def meanwhile(*args: Any, **given: Any) -> Any:
        result = read(*args, **given)
        if how == "appended":
            with path.open("a") as file:
                file.write("https://img.example/6.jpg\n")
        else:
            path.rename(tmp_path / "old.csv")
            if how == "replaced":
                path.write_bytes((tmp_path / "old.csv").read_bytes())
        return result

    with monkeypatch.context() as patched:
        patched.setattr(load, "normalise", meanwhile)
        with pytest.raises(UserError, match="was written to while it was read"):
            plan(job_in(tmp_path), state)
    assert read_plan(state) is None
    if how == "appended":
        assert plan(job_in(tmp_path), state).rows == 6


def test_a_plan_counts_as_a_run(tmp_path: Path, state: DirectoryState) -> None:
    """A run that ends before its first outcome has used its run number."""
    write_list(tmp_path / "list.csv", urls(1))
    plan(job_in(tmp_path), state, 3)
    assert ledger.last_run_no(state) >= 3


@pytest.mark.parametrize("status", [Status.COPIED, Status.UNCHANGED, Status.PENDING])
def test_a_row_that_has_a_key_keeps_it(status: Status, tmp_path: Path, state: DirectoryState) -> None:
    """A row with a copy keeps its key, and only the other row collides."""
    write_list(tmp_path / "list.csv", urls(*range(20)))
    job = job_in(tmp_path)
    (ref,) = plan(job, state).chunks
    settle(state, ref, 1, status)
    write_list(tmp_path / "list.csv", [["https://img.example/5.jpg?new"], *urls(*range(20))])
    planned = plan(job, state, 2)
    assert planned.collisions == 1
    (collided,) = [o for o in latest(state).values() if o.error_class is ErrorClass.KEY_COLLISION]
    assert "?" in collided.source
    check_each_row_once(state, planned)


@pytest.mark.parametrize(
    ("end", "again"),
    [
        ({"status": Status.COPIED}, True),
        ({"status": Status.COPIED, "sha256": "a" * 64}, False),  # the same bytes
        ({"status": Status.PENDING, "error_class": ErrorClass.MISSING, "sha256": "a" * 64, "chunk": ""}, True),
        ({"status": Status.PENDING, "error_class": ErrorClass.ALTERED, "chunk": ""}, True),
        ({"status": Status.FAILED, "error_class": ErrorClass.UPLOAD_UNCONFIRMED}, True),
        ({"status": Status.FAILED, "error_class": ErrorClass.TIMEOUT}, True),
        ({"status": Status.FAILED, "attempt": 3, **FAILED_404}, True),  # of an earlier attempt nobody knows any more
        ({"status": Status.FAILED, **FAILED_404}, False),
    ],
)
def test_a_key_that_another_row_had_since(
    end: dict[str, Any], again: bool, tmp_path: Path, state: DirectoryState
) -> None:
    """A row's earlier copy does not count if another row may have written its key since."""
    write_list(tmp_path / "list.csv", [["https://a.example/1.jpg", "k.jpg"]], ("url", "path"))
    job = job_in(tmp_path)
    settle(state, plan(job, state).chunks[0], 1, sha256="a" * 64)
    write_list(tmp_path / "list.csv", [["https://b.example/1.jpg", "k.jpg"]], ("url", "path"))
    (other,) = planned_rows(state, plan(job, state, 2))
    outcome = {"key": "k.jpg", "run_no": 2, "sha256": "b" * 64, "size": 10, **end}
    append_outcomes(state, [make_outcome(other.row_id, **outcome)], 2, "b", 0)
    write_list(tmp_path / "list.csv", [["https://a.example/1.jpg", "k.jpg"]], ("url", "path"))
    assert plan(job, state, 3).todo == ({"changed": 1} if again else {})


@pytest.mark.parametrize("damaged", [False, True])
def test_a_later_manifest_is_read_as_the_first_one(damaged: bool, tmp_path: Path, state: DirectoryState) -> None:
    """Its first rows have no paths of files, and no address without a scheme: the old rows keep their keys."""
    one, other = ["img.example/1.jpg", "k1.jpg"], ["img.example/2.jpg", "k2.jpg"]
    write_list(tmp_path / "list.csv", [one], ("url", "path"))
    job = job_in(tmp_path)
    first = plan(job, state)
    assert [(row.source, row.key) for row in planned_rows(state, first)] == [("https://img.example/1.jpg", "k1.jpg")]
    settle(state, first.chunks[0], 1)
    if damaged:
        in_force = read_plan(state)
        assert in_force is not None
        (state.root / in_force.manifest["file"]).write_bytes(b"x")
    categories = [[f"https://img.example/{n}.jpg", f"Home/Shoes {n}"] for n in range(3, 9)]
    write_list(tmp_path / "list.csv", [*categories, one, other], ("url", "path"))
    again = plan(job, state, 2)
    assert again.todo == {"new": 7}
    assert again.recognised == {"source": "url", "key": "path"}
    write_list(tmp_path / "list.csv", [one[:1]], ("url",))
    with pytest.raises(UserError, match="lacks the column `path`"):
        plan(job, state, 3)


def test_a_template_needs_no_key_column(tmp_path: Path, state: DirectoryState) -> None:
    """A column that was read as the key, and that the template does not name, may leave the manifest."""
    url = "https://img.example/1.jpg"
    write_list(tmp_path / "list.csv", [[url, "k1.jpg"]], ("url", "path"))
    job = job_in(tmp_path, key="new/{source.name}")
    assert plan(job, state).recognised == {"source": "url", "key": "path"}
    write_list(tmp_path / "list.csv", [[url]])
    assert plan(job, state, 2).recognised == {"source": "url"}


def test_a_key_that_another_row_may_have_had_since(tmp_path: Path, state: DirectoryState) -> None:
    """A row's earlier copy does not count if a killed run may have written its key for another row."""
    one, other = ["https://a.example/1.jpg", "k.jpg"], ["https://b.example/1.jpg", "k.jpg"]
    write_list(tmp_path / "list.csv", [one], ("url", "path"))
    job = job_in(tmp_path)
    settle(state, plan(job, state).chunks[0], 1)
    write_list(tmp_path / "list.csv", [other], ("url", "path"))
    assert plan(job, state, 2).todo == {"new": 1}
    write_list(tmp_path / "list.csv", [one], ("url", "path"))
    planned = plan(job, state, 3)
    assert planned.todo == {"changed": 1}
    settle(state, planned.chunks[-1], 3, Status.UNCHANGED)
    assert plan(job, state, 4).todo == {}


def test_no_row_of_a_colliding_key_moves_also_when_it_waits_in_a_chunk(tmp_path: Path, state: DirectoryState) -> None:
    """A row that is pending in an old chunk is not transferred once its key collides."""
    write_list(tmp_path / "list.csv", urls(*range(20)))
    job = job_in(tmp_path)
    plan(job, state)  # interrupted before its first row
    write_list(tmp_path / "list.csv", [*urls(*range(20)), ["https://img.example/5.jpg?new"]])
    planned = plan(job, state, 2)
    assert planned.collisions == 2
    (ref,) = planned.chunks
    done = {hint["row_id"] for hint in parquet.read_table(state.local(ref.hints)).to_pylist() if hint["done"]} if (
        ref.hints in state.list("plan")
    ) else set()  # fmt: skip
    will_move = [row.key for row in chunk_rows(state, ref) if row.row_id not in done]
    assert "5.jpg" not in will_move
    assert planned.pending == 19


@pytest.mark.parametrize(
    ("name_folding", "colliding"),
    [
        ((), set()),
        (("case",), {"x/A.jpg", "x/a.jpg"}),
        (("form",), {"x/\u00e9.jpg", "x/e\u0301.jpg"}),
        (("dots",), {"x/b.jpg", "x./b.jpg", "x /b.jpg"}),
    ],
)
def test_keys_that_a_directory_does_not_tell_apart(
    name_folding: tuple[str, ...],
    colliding: set[str],
    tmp_path: Path,
    state: DirectoryState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys that the directory treats as one name collide; for any other destination a note is added."""
    monkeypatch.setattr(planner, "name_folding_of", lambda _: frozenset(name_folding))
    names = ["x/A.jpg", "x/a.jpg", "x/\u00e9.jpg", "x/e\u0301.jpg", "x/b.jpg", "x./b.jpg", "x /b.jpg"]
    names += [f"other/{n}.jpg" for n in range(60)]
    lines = [[f"https://img.example/{n}.jpg", name] for n, name in enumerate(names)]
    write_list(tmp_path / "list.csv", lines, ("url", "name"))
    planned = plan(job_in(tmp_path, key="{name}"), state)
    assert set(names) - set(keys(state, planned)) == colliding
    assert planned.collisions == len(colliding)
    assert {(o.error_class, "is the same name as" in (o.message or "")) for o in latest(state).values()} == (
        {(ErrorClass.KEY_COLLISION, True)} if colliding else set()
    )
    assert [note for note in planned.notes if "differ only in case" in note] == planned.notes[: not name_folding]
    check_each_row_once(state, planned)


@pytest.mark.parametrize(("key", "collisions"), [("sku.{ext}", 3), ("{{sha256}}.{ext}", 3), ("{sha256}.{ext}", 0)])
def test_late_keys_that_will_meet_do_not_move(tmp_path: Path, state: DirectoryState, key: str, collisions: int) -> None:
    """Rows with one deferred key collide unless the key contains the digest."""
    write_list(tmp_path / "list.csv", urls(1, 2, 3))
    job = job_in(tmp_path, key=key)
    if collisions:
        with pytest.raises(UserError, match="3 of 3 rows have a key collision"):
            plan(job, state)
    else:
        assert plan(job, state).todo == {"new": 3}


def test_a_file_cannot_be_a_folder_too(tmp_path: Path, state: DirectoryState) -> None:
    """A key below another row's key collides in a directory, and not in a bucket."""
    rows = [["https://img.example/a"], ["https://img.example/a/b/c.jpg"], *urls(*range(20))]
    write_list(tmp_path / "list.csv", rows)
    in_bucket = plan(
        make_job(manifest=str(tmp_path / "list.csv"), destination="s3://bucket/", on_existing="overwrite"), state
    )
    assert in_bucket.collisions == 0
    in_directory = plan(job_in(tmp_path), DirectoryState(tmp_path / "other"))
    assert in_directory.collisions == 1
    assert in_directory.todo == {"new": 21}


def test_a_row_that_becomes_usable_again_is_planned(tmp_path: Path, state: DirectoryState) -> None:
    """A row whose collision is resolved is planned once."""
    rival = ["https://img.example/5.jpg?new"]
    write_list(tmp_path / "list.csv", [*urls(*range(20)), rival])
    job = job_in(tmp_path)
    first = plan(job, state)
    settle(state, first.chunks[0], 1)
    write_list(tmp_path / "list.csv", [*urls(*(n for n in range(20) if n != 5)), rival])
    planned = plan(job, state, 2)
    assert planned.todo == {"new": 1}
    assert [row.source for ref in planned.chunks[1:] for row in chunk_rows(state, ref)] == rival


def test_limit_takes_new_rows_and_leaves_the_others_for_later(tmp_path: Path, state: DirectoryState) -> None:
    """`--limit` counts pending rows first, and a later run plans the rows that it leaves."""
    write_list(tmp_path / "list.csv", urls(*range(10)))
    job = job_in(tmp_path)
    first = plan(job, state, 1, limit=4)
    assert keys(state, first) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    settle(state, first.chunks[0], 1, only=1)
    second = plan(job, state, 2, limit=5)
    assert (second.pending, second.todo) == (3, {"new": 2})
    third = plan(job, state, 3, limit=1)
    assert (third.pending, third.todo) == (5, {})
    last = plan(job, state, 4)
    assert (last.pending, last.todo) == (5, {"new": 4})
    check_each_row_once(state, last)


def test_a_dry_plan_writes_nothing(tmp_path: Path, state: DirectoryState) -> None:
    """A dry plan has a run's numbers and does not change the state."""
    write_list(tmp_path / "list.csv", [*urls(*range(10)), ["no-address"]])
    job = job_in(tmp_path)
    planned = plan(job, state, dry=True)
    assert (planned.rows, planned.todo, planned.unusable) == (11, {"new": 10}, 1)
    assert [state.list(folder) for folder in ("plan", "chunks", "outcomes", "ledger")] == [[], [], [], []]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ((), ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]),
        (("not_found",), ["0.jpg", "1.jpg"]),
        (("404",), ["0.jpg", "1.jpg"]),
        (("500",), ["2.jpg", "3.jpg"]),
        (("server_error", "404"), ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]),
        (("timeout",), []),
    ],
)
def test_retry_failed_takes_the_failed_rows_of_a_class(
    classes: tuple[str, ...], expected: list[str], tmp_path: Path, state: DirectoryState
) -> None:
    """`--retry-failed` plans failed rows of the given classes or codes, or all, as another attempt."""
    job = failures_of_both_kinds(tmp_path, state)
    planned = plan(job, state, 2, "retry", classes=classes)
    assert keys(state, planned) == expected
    assert {(row.reason, row.attempt) for row in planned_rows(state, planned)} <= {(Reason.RETRY, 2)}
    assert {ref.kind for ref in planned.chunks} <= {"retry"}


def failures_of_both_kinds(folder: Path, state: DirectoryState) -> Job:
    """Plans six rows in three chunks: two 404, two 500, one copied, one without outcome; and one unusable."""
    write_list(folder / "list.csv", [*urls(*range(6)), ["no-address"]])
    job = job_in(folder, chunk_rows=2)
    refs = plan(job, state).chunks
    settle(state, refs[0], 1, Status.FAILED, **FAILED_404)
    settle(state, refs[1], 1, Status.FAILED, **FAILED_500)
    settle(state, refs[2], 1, only=1)
    return job


def test_a_plain_run_takes_new_pending_and_retryable_rows(tmp_path: Path, state: DirectoryState) -> None:
    """A plain run does not plan permanent failures."""
    job = failures_of_both_kinds(tmp_path, state)
    planned = plan(job, state, 2)
    assert (planned.todo, planned.pending, planned.untouched) == ({"retry": 2}, 1, 4)
    (again,) = [ref for ref in planned.chunks if ref.kind == "retry"]
    assert [row.key for row in chunk_rows(state, again)] == ["2.jpg", "3.jpg"]


def test_a_second_retry_is_another_chunk(tmp_path: Path, state: DirectoryState) -> None:
    """The same rows, failed again, get a chunk with another digest, which Prefect has not cached."""
    job = failures_of_both_kinds(tmp_path, state)
    (first,) = plan(job, state, 2, "retry", classes=["404"]).chunks
    settle(state, first, 2, Status.FAILED, **FAILED_404)
    (second,) = plan(job, state, 3, "retry", classes=["404"]).chunks
    assert first.digest != second.digest
    assert {row.attempt for row in chunk_rows(state, second)} == {3}


def test_a_retry_that_was_interrupted_twice_is_planned_once(tmp_path: Path, state: DirectoryState) -> None:
    """Rows of two interrupted retries are pending once, in the later chunk."""
    job = failures_of_both_kinds(tmp_path, state)
    (first,) = plan(job, state, 2, "retry").chunks[:1]
    (second,) = plan(job, state, 3, "retry").chunks[:1]
    assert first.digest != second.digest  # or Prefect's result of the first would do for the second
    on_disk = read_plan(state)
    assert on_disk is not None
    assert len({ref.digest for ref in on_disk.chunks}) == len(on_disk.chunks)
    settle(state, second, 3, only=1)
    planned = plan(job, state, 4)
    check_each_row_once(state, planned)
    (again,) = [ref for ref in planned.chunks if ref.digest == second.digest]
    assert (again.done, again.rows) == (1, 2)


def test_a_change_of_how_plans_failed_and_skipped_rows_anew(tmp_path: Path, state: DirectoryState) -> None:
    """Changed settings plan failed and skipped rows as `changed`, and copied rows stay."""
    write_list(tmp_path / "list.csv", [*urls(*range(4)), *urls(0)])
    job = job_in(tmp_path, chunk_rows=1)
    refs = plan(job, state).chunks
    settle(state, refs[0], 1)
    settle(state, refs[1], 1, Status.FAILED, **FAILED_404)
    settle(state, refs[2], 1, Status.SKIPPED, error_class=ErrorClass.EXISTS)
    settle(state, refs[3], 1, Status.UNCHANGED)
    assert plan(job, state, 2).todo == {}
    planned = plan(job_in(tmp_path, chunk_rows=1, checks="length"), state, 3)
    assert planned.todo == {"changed": 2}
    rows = [row for row in planned_rows(state, planned) if row.reason is Reason.CHANGED]
    assert [(row.key, row.attempt) for row in rows] == [("1.jpg", 2), ("2.jpg", 2)]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"key": "{source.name}.x"}, "key"),
        ({"columns": {"id": "url"}}, "columns"),
        ({"destination": "file:///elsewhere/"}, "destination.uri"),
        ({"source": {"url": "https://img.example/{id}"}}, "source.url"),
    ],
)
def test_a_change_of_where_is_refused(change: dict[str, Any], name: str, tmp_path: Path, state: DirectoryState) -> None:
    """A changed location raises UserError with the setting's name and what to do."""
    write_list(tmp_path / "list.csv", urls(1))
    job = job_in(tmp_path)
    plan(job, state)
    changed = Job.model_validate({**job.model_dump(), **change})
    with pytest.raises(UserError, match=rf"`{name}` changed .*--replan"):
        plan(changed, state, 2)


@pytest.mark.parametrize("change", [{"key": "new/{source.name}"}, {"destination": "elsewhere"}])
def test_replan_moves_everything_to_the_new_place(
    change: dict[str, str], tmp_path: Path, state: DirectoryState
) -> None:
    """After a --replan for another key or destination, all rows are to be copied again."""
    write_list(tmp_path / "list.csv", urls(1, 2, 3))
    job = job_in(tmp_path)
    settle(state, plan(job, state).chunks[0], 1)
    set_plan_aside(state)
    if "destination" in change:
        change = {"destination": f"file://{tmp_path}/elsewhere/"}
    planned = plan(Job.model_validate({**job.model_dump(), **change}), state, 2)
    assert sum(planned.todo.values()) == 3


def test_replan_of_the_same_job_keeps_what_is_copied(tmp_path: Path, state: DirectoryState) -> None:
    """A --replan of an unchanged job keeps all outcomes."""
    write_list(tmp_path / "list.csv", urls(1, 2, 3))
    job = job_in(tmp_path)
    settle(state, plan(job, state).chunks[0], 1, only=2)
    set_plan_aside(state)
    assert plan(job, state, 2).todo == {"new": 1}


def test_replan_is_the_way_out_of_a_damaged_plan(tmp_path: Path, state: DirectoryState) -> None:
    """After --replan a job can be planned although plan and location are damaged."""
    write_list(tmp_path / "list.csv", urls(1, 2, 3))
    job = job_in(tmp_path)
    settle(state, plan(job, state).chunks[0], 1)
    state.write(PLAN_FILE, b'{"ferry_schema": 1, "cut')
    place = state.read(LOCATION_FILE)
    state.write(LOCATION_FILE, PlanLocation({"destination.uri": "another"}, 0).encode())
    with pytest.raises(UserError, match="--replan"):
        plan(job, state, 2)
    set_plan_aside(state)
    state.write(LOCATION_FILE, place)
    assert plan(job, state, 2).untouched == 3


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b'{"ferry_schema": 1}', b'{"ferry_schema": "x"}', b"\xff\xfe"])
def test_a_damaged_plan_is_an_error_of_the_user(raw: bytes, tmp_path: Path, state: DirectoryState) -> None:
    """Any damage of plan.json raises UserError."""
    write_list(tmp_path / "list.csv", urls(1))
    state.write(PLAN_FILE, raw)
    with pytest.raises(UserError, match="damaged"):
        plan(job_in(tmp_path), state)


def test_a_plan_of_a_newer_schema_is_refused(tmp_path: Path, state: DirectoryState) -> None:
    """A plan of a newer schema raises UserError and is not overwritten."""
    write_list(tmp_path / "list.csv", urls(1))
    job = job_in(tmp_path)
    plan(job, state)
    raw = encode_checked_json(
        decode_checked_json(state.read(PLAN_FILE)) | {"ferry_schema": PLAN_SCHEMA + 1, "unheard_of": 1}
    )
    state.write(PLAN_FILE, raw)
    with pytest.raises(UserError, match="newer version of Ferry"):
        plan(job, state, 2)
    with pytest.raises(UserError, match="newer version of Ferry"):
        set_plan_aside(state)
    assert state.read(PLAN_FILE) == raw


@pytest.mark.parametrize("place", ["directory", "bucket"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "text"])
def test_a_damaged_chunk_is_cut_anew(place: str, damage: str, tmp_path: Path, s3: S3Server, bucket: str) -> None:
    """Rows of a missing or damaged chunk file that are not done go to a new chunk, with a note."""
    state: State = directory_state(tmp_path)
    if place == "bucket":
        state = open_state(f"s3://{bucket}/state", access(s3), tmp_path / "cache")
    write_list(tmp_path / "list.csv", urls(1))
    job = job_in(tmp_path)
    (ref,) = plan(job, state).chunks
    if place == "bucket":
        state = open_state(f"s3://{bucket}/state", access(s3), tmp_path / "another machine")
    raw = state.read(ref.uri)
    if damage == "gone":
        state.delete([ref.uri])
    else:
        state.write(ref.uri, {"cut": raw[:-20], "empty": b"", "text": b"hello " * 30}[damage])
    planned = plan(job, state, 2)
    assert planned.todo == {"new": 1}
    assert any(ref.uri in note for note in planned.notes)
    assert keys(state, planned) == ["1.jpg"]


def test_an_empty_list_is_an_error_of_the_user(tmp_path: Path, state: DirectoryState) -> None:
    """A manifest without rows raises UserError."""
    write_list(tmp_path / "list.csv", [])
    with pytest.raises(UserError):
        plan(job_in(tmp_path), state)


def test_an_unchanged_manifest_is_not_normalised_again(tmp_path: Path, state: DirectoryState) -> None:
    """The normalised manifest stays the same file while manifest and settings do not change."""
    write_list(tmp_path / "list.csv", urls(1, 2))
    job = job_in(tmp_path)
    plan(job, state)
    before = {name: state.local(name).stat().st_mtime_ns for name in state.list("plan") if "manifest" in name}
    plan(job, state, 2)
    after = {name: state.local(name).stat().st_mtime_ns for name in state.list("plan") if "manifest" in name}
    assert (len(before), after) == (1, before)
    write_list(tmp_path / "list.csv", urls(1, 2, 3))
    assert plan(job, state, 3).rows == 3
    assert len([name for name in state.list("plan") if "manifest" in name]) == 1


def test_a_pass_takes_what_failed_in_this_run_and_may_pass(tmp_path: Path, state: DirectoryState) -> None:
    """A further pass plans the retryable failures of this run, and no others."""
    write_list(tmp_path / "list.csv", urls(*range(5)))
    job = job_in(tmp_path, chunk_rows=1)
    refs = plan(job, state).chunks
    settle(state, refs[0], 1, Status.FAILED, **FAILED_500)
    planned = plan(job, state, 2)
    settle(state, refs[1], 2, Status.FAILED, **FAILED_500)
    settle(state, refs[2], 2, Status.FAILED, **FAILED_404)
    settle(state, refs[3], 2, Status.FAILED, error_class=ErrorClass.FORBIDDEN, status_code=403, retryable=True)
    settle(state, refs[4], 2)
    returned = [ref.digest for ref in planned.chunks if ref.kind == "base"]
    passed = plan(job, state, 2, "pass", returned=returned)
    assert [(row.key, row.reason, row.attempt) for row in planned_rows(state, passed)] == [("1.jpg", Reason.RETRY, 2)]
    settle(state, passed.chunks[0], 2, Status.FAILED, **FAILED_500)
    further = plan(job, state, 2, "pass", returned=returned)
    assert [(row.key, row.attempt) for row in planned_rows(state, further)] == [("1.jpg", 3)]


def test_a_pass_repairs_rows_whose_chunk_came_back_without_them(tmp_path: Path, state: DirectoryState) -> None:
    """A further pass plans rows of a returned chunk that have no outcome, and of no other chunk."""
    write_list(tmp_path / "list.csv", urls(*range(4)))
    job = job_in(tmp_path, chunk_rows=2)
    first, second = plan(job, state).chunks
    passed = plan(job, state, 1, "pass", returned=[first.digest])
    assert [(row.key, row.reason) for row in planned_rows(state, passed)] == [
        ("0.jpg", Reason.REPAIR), ("1.jpg", Reason.REPAIR),
    ]  # fmt: skip
    assert passed.chunks[0].digest not in (first.digest, second.digest)


@pytest.mark.parametrize("mode", ["pass", "repair"])
def test_a_pass_repairs_rows_whose_retry_came_back_without_them(
    mode: Mode, tmp_path: Path, state: DirectoryState
) -> None:
    """A further pass plans rows of a returned retry chunk whose new outcomes are missing."""
    write_list(tmp_path / "list.csv", urls(*range(3)))
    job = job_in(tmp_path)
    (base,) = plan(job, state).chunks
    settle(state, base, 1, Status.FAILED, **FAILED_500)
    compact_ledger(state, 1)
    (again,) = [ref for ref in plan(job, state, 2).chunks if ref.kind == "retry"]
    assert plan(job, state, 3).pending == 3
    passed = plan(job, state, 3, mode, returned=[base.digest, again.digest])
    assert passed.todo == {"retry": 3}
    assert all(row.attempt == 2 for row in planned_rows(state, passed))


def test_a_repair_that_was_interrupted_is_not_listed_twice(tmp_path: Path, state: DirectoryState) -> None:
    """Two passes over the same missing outcomes list one chunk, and each row counts once."""
    write_list(tmp_path / "list.csv", urls(*range(4)))
    job = job_in(tmp_path)
    (base,) = plan(job, state).chunks
    plan(job, state, 1, "pass", returned=[base.digest])
    plan(job, state, 2)
    plan(job, state, 2, "pass", returned=[base.digest])
    planned = plan(job, state, 3)
    check_each_row_once(state, planned)


@pytest.mark.slow
def test_a_row_whose_collision_came_and_went_can_be_retried(tmp_path: Path, state: DirectoryState) -> None:
    """A row's attempts continue after a collision, so that no cached chunk of an earlier run is reused."""
    rival = ["https://img.example/5.jpg?new"]
    everyone = urls(*range(20))
    job = job_in(tmp_path)
    cache: set[str] = set()

    def tries(run_no: int) -> list[str]:
        """Runs the job with a result cache, lets 5.jpg fail, and returns the keys that were tried."""
        tried: list[str] = []
        planned = plan(job, state, run_no)
        for _ in range(2):
            for ref in planned.chunks:
                if ref.done < ref.rows and ref.digest not in cache:
                    rows = chunk_rows(state, ref)
                    ends: list[dict[str, Any] | None] = [
                        {"status": Status.FAILED, **FAILED_500} if row.key == "5.jpg" else {"status": Status.COPIED}
                        for row in rows
                    ]
                    settle_some(state, ref, rows, ends, run_no, len(tried))
                    tried += [row.key for row in rows]
                cache.add(ref.digest)
            planned = plan(job, state, run_no, "repair", returned=[ref.digest for ref in planned.chunks])
        return tried

    write_list(tmp_path / "list.csv", everyone)
    assert len(tries(1)) == 20
    assert tries(2) == ["5.jpg"]
    write_list(tmp_path / "list.csv", [*everyone, rival])
    assert tries(3) == []
    write_list(tmp_path / "list.csv", everyone)
    assert tries(4) == ["5.jpg"]
    assert tries(5) == ["5.jpg"]
    assert tries(6) == ["5.jpg"]


def test_a_ledger_row_of_another_manifest_is_ignored(tmp_path: Path, state: DirectoryState) -> None:
    """Rows that are not in the manifest count neither as untouched nor as pending."""
    write_list(tmp_path / "list.csv", urls(1, 2))
    job = job_in(tmp_path)
    plan(job, state)
    write_list(tmp_path / "list.csv", urls(2))
    planned = plan(job, state, 2)
    assert (planned.rows, planned.pending, planned.untouched, planned.todo) == (1, 1, 0, {})


def test_existing_objects_are_listed_for_many_rows(tmp_path: Path, state: DirectoryState) -> None:
    """For more than 500 rows the destination is listed once, and the hints have the sizes."""
    write_list(tmp_path / "list.csv", urls(*range(600)))
    (tmp_path / "out").mkdir()
    for n in (3, 599):
        (tmp_path / f"out/{n}.jpg").write_bytes(b"12345")
    (tmp_path / "out/other.jpg").write_bytes(b"x")
    planned = plan(job_in(tmp_path, chunk_rows=500), state)
    assert {ref.existing for ref in planned.chunks} == {"listed"}
    assert "2 of the keys to do exist" in planned.existing
    found = {}
    for ref in planned.chunks:
        names = {row.row_id: row.key for row in chunk_rows(state, ref)}
        for hint in parquet.read_table(state.local(ref.hints)).to_pylist():
            found[names[hint["row_id"]]] = hint["dest_size"]
    assert found == {"3.jpg": 5, "599.jpg": 5}


def test_plan_and_planned_survive_their_json() -> None:
    """A plan and a planning result are decoded as they were encoded."""
    ref = ChunkRef("chunks/a.parquet", "a" * 64, 3, 0, "base", 1, 2, "listed")
    planned = Planned(
        1, 3, 0, 0, 0, {"new": 3}, 0, 0, 0, 0, "by", 500, [ref], {"source": "url"}, {"source": "x"}, ["note"]
    )
    assert Planned.decode(planned.encode()) == planned
    kept = Plan({"key": "d"}, 500, 3, {"digest": None}, 1, [ref])
    assert Plan.decode(kept.encode()) == kept


_FACTS: list[dict[str, Any] | None] = [
    None,
    {"status": Status.COPIED},
    {"status": Status.UNCHANGED},
    {"status": Status.SKIPPED, "error_class": ErrorClass.EXISTS},
    {"status": Status.FAILED, **FAILED_404},
    {"status": Status.FAILED, **FAILED_500},
    {"status": Status.FAILED, "error_class": ErrorClass.FORBIDDEN, "status_code": 403},
    {"status": Status.PENDING, "error_class": ErrorClass.MISSING},
]


@pytest.mark.slow
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_over_many_runs_each_row_is_held_planned_or_settled(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After any sequence of runs, retries and passes each row to do is planned exactly once."""
    folder = tmp_path_factory.mktemp("runs")
    state = directory_state(folder)
    job = job_in(folder, chunk_rows=3)
    for run_no in range(1, 5):
        numbers = data.draw(st.lists(st.integers(0, 9), min_size=2, max_size=10, unique=True))
        write_list(folder / "list.csv", urls(*numbers))
        mode: Mode = data.draw(st.sampled_from(["plain", "plain", "retry"])) if run_no > 1 else "plain"
        planned = plan(job, state, run_no, mode)
        returned: list[str] = []
        for part in range(2):
            if part:
                planned = plan(job, state, run_no, "pass", returned=returned)
            for ref in planned.chunks:
                known = latest(state)
                rows = [
                    row for row in chunk_rows(state, ref)
                    if row.row_id not in known or known[row.row_id].attempt < row.attempt
                ]  # fmt: skip
                ends = data.draw(st.lists(st.sampled_from(_FACTS[:-1]), min_size=len(rows), max_size=len(rows)))
                settle_some(state, ref, rows, ends, run_no, part)
                if None not in ends:
                    returned.append(ref.digest)
        if data.draw(st.booleans()):
            compact_ledger(state, run_no)
    write_list(folder / "list.csv", urls(*range(10)))
    planned = plan(job, state, 9)
    check_each_row_once(state, planned)
    known = latest(state)
    to_do = {
        row.key
        for row in planned_rows(state, planned)
        if row.row_id not in known or known[row.row_id].attempt < row.attempt
    }
    done = {o.key for o in known.values() if o.status in (Status.COPIED, Status.UNCHANGED, Status.SKIPPED)}
    terminal = {o.key for o in known.values() if o.error_class is ErrorClass.NOT_FOUND}
    # an interrupted --retry-failed may hold a terminal failure too
    assert to_do | done | terminal == {f"{n}.jpg" for n in range(10)}
    assert not to_do & done


def settle_some(
    state: State, ref: ChunkRef, rows: list[Row], ends: list[dict[str, Any] | None], run_no: int, part: int
) -> None:
    from tests.support.helpers import NOW, later, make_outcome

    outcomes = [
        make_outcome(row.row_id, **{"key": row.key, "attempt": row.attempt, "run_no": run_no, "chunk": ref.digest,
                                    "recorded_at": later(run_no * 10 + part), "started_at": NOW, **end})
        for row, end in zip(rows, ends, strict=True) if end is not None
    ]  # fmt: skip
    if outcomes:
        append_outcomes(state, outcomes, run_no, ref.digest, part)


def test_a_template_that_no_listing_can_fill(tmp_path: Path, state: DirectoryState) -> None:
    """A template with a field that a listing lacks raises UserError with the fields that there are."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.jpg").write_bytes(b"x")
    listed = {"manifest": f"file://{tmp_path}/old/"}
    job = Job.model_validate({**job_in(tmp_path, key="{skuu}.jpg").model_dump(), **listed})
    with pytest.raises(UserError, match=r"names \{skuu\}; a listed manifest has .*\{source\.name\}"):
        plan(job, state)
    assert plan(Job.model_validate({**job.model_dump(), "key": "new/{key}"}), state).rows == 1


@pytest.mark.parametrize(
    ("destination", "place", "inside"),
    [
        ("out", "out/.ferry/x", True),
        ("out", "out", True),
        ("out", "link/x", True),
        ("out", "output/.ferry/x", False),
        ("out", ".ferry/x", False),
        ("state/out", "state", True),
    ],
)
def test_no_row_writes_into_the_state(destination: str, place: str, inside: bool, tmp_path: Path) -> None:
    """A state in the destination, and a destination in the state, are refused."""
    (tmp_path / "out").mkdir()
    (tmp_path / destination).mkdir(parents=True, exist_ok=True)
    (tmp_path / "link").symlink_to(tmp_path / "out", target_is_directory=True)
    write_list(tmp_path / "list.csv", [["https://img.example/1.jpg", f"{PLAN_FILE}"]], ("url", "key"))
    job = make_job(manifest=str(tmp_path / "list.csv"), destination=f"file://{tmp_path}/{destination}/")
    state = DirectoryState(tmp_path / place)
    for dry in (True, False):
        if inside:
            with pytest.raises(UserError, match=r"is in the (destination|state)"):
                plan(job, state, dry=dry)
        else:
            plan(job, state, dry=dry)


def test_no_row_writes_into_a_state_in_the_same_bucket(tmp_path: Path) -> None:
    """A location contains a state only if it ends at a slash of the state's URI."""
    for uri, place, inside in (
        ("s3://b/new/", "s3://b/new/.ferry/x", True),
        ("s3://b", "s3://b/state", True),
        ("s3://b/new", "s3://b/newer/x", False),
        ("s3://b/new", "s3://other/new/x", False),
        ("s3://b/new", str(tmp_path), False),
        (f"file://{tmp_path}/", "s3://b/new", False),
    ):
        assert (below(uri, place) is not None) is inside


@pytest.mark.parametrize(
    ("to", "globs", "grows"),
    [
        ("images/new", {}, True),
        ("images/new", {"include": ["*.jpg"]}, True),
        ("images/new", {"include": ["new*"]}, True),
        ("images/new", {"include": ["a*", "n[e]w/*"]}, True),
        ("images/new", {"include": ["a*"]}, False),
        ("images/new", {"exclude": ["*.png"]}, True),
        ("images/new", {"exclude": ["new/*"]}, False),
        ("images-new", {}, False),
    ],
)
def test_what_was_moved_is_not_moved_again(to: str, globs: dict[str, Any], grows: bool, tmp_path: Path) -> None:
    """A destination in the listed source is refused unless it is excluded."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    job = make_job(manifest=f"file://{tmp_path}/images/", destination=f"file://{tmp_path}/{to}/", source={}, **globs)
    if grows:
        with pytest.raises(UserError, match=r"exclude: \['new/\*'\]"):
            plan(job, directory_state(tmp_path))
    else:
        assert plan(job, directory_state(tmp_path)).rows == 1


@pytest.mark.parametrize(
    ("place", "globs", "moved"),
    [
        ("images/.ferry/x", {}, True),
        ("images/.ferry/x", {"include": ["*.jpg"]}, False),
        ("images/.ferry/x", {"exclude": [".ferry/x/*"]}, True),  # and the database beside it?
        ("images/.ferry/x", {"exclude": [".ferry/*"]}, False),
        ("images", {}, True),
        ("images/deep/state", {"exclude": ["deep/*"]}, False),
        (".ferry/x", {}, False),
    ],
)
def test_the_state_is_not_moved(place: str, globs: dict[str, Any], moved: bool, tmp_path: Path) -> None:
    """A state in the listed source is refused unless it and Prefect's database are excluded."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    job = make_job(
        manifest=f"file://{tmp_path}/images/", destination=f"file://{tmp_path}/out/", checks="none", source={}, **globs
    )
    state = DirectoryState(tmp_path / place)
    if moved:
        with pytest.raises(UserError, match="is in the listed source"):
            plan(job, state)
    else:
        assert keys(state, plan(job, state)) == ["a.jpg"]
