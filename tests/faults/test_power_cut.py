"""Power cuts: whatever a file system may leave of the state, what was promised is in it, and the job goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin
from demo.s3 import S3Server
from ferry.core.records import Outcome, Status
from ferry.job.model import Job
from ferry.reconcile.finish import finish_run
from ferry.state import ledger
from ferry.state.files import DirectoryState, State
from ferry.state.plan_file import read_plan
from ferry.transfer import chunk
from ferry.transfer.chunk_rows import read_chunk
from tests.faults.amount import each
from tests.faults.disk import Disk, How
from tests.support import helpers

ROWS = 14
pytestmark = pytest.mark.slow


@pytest.fixture
def recorded(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Job, Disk]:
    """Two whole runs of a job on a recorded disk: planned, transferred in small parts, folded; one row is a 404."""
    monkeypatch.setattr(chunk, "FLUSH_ROWS", 2)
    monkeypatch.setattr(chunk, "FLUSH_S", 0.0)
    urls = [[origin.add(f"/{n}.jpg", make_image("jpeg", n, 30, 20))] for n in range(ROWS)]
    listed = helpers.write_list(tmp_path / "list.csv", [*urls[:10], [origin.url("/gone.jpg")]])
    job = helpers.make_job(
        manifest=str(listed), chunk_rows=4,
        destination={"uri": f"s3://{bucket}/p/", "endpoint_url": s3.endpoint_url},
    )  # fmt: skip
    root = tmp_path / "disk" / "state"
    root.parent.mkdir()
    disk = Disk(root)
    append = ledger.append_outcomes

    def promising(state: State, outcomes: Sequence[Outcome], *more: Any) -> str:
        name = append(state, outcomes, *more)
        disk.promise({outcome.row_id: outcome.status for outcome in outcomes})
        return name

    for module, name in helpers.bindings(append):
        monkeypatch.setattr(module, name, promising)
    with disk.recording(monkeypatch):
        state = DirectoryState(root)
        helpers.run(job, state, helpers.access(s3), 1)
        finish_run(job, state, 1)
        helpers.write_list(listed, [*urls, [origin.url("/gone.jpg")]])
        helpers.run(job, state, helpers.access(s3), 2)
        finish_run(job, state, 2)
    return job, disk


def test_every_moment_of_two_runs(
    recorded: tuple[Job, Disk], s3: S3Server, tmp_path: Path, tried: Callable[..., None]
) -> None:
    """After each step of the state's files, and of what is not synced yet nothing, all or some: no promised outcome is
    lost, nothing that is read is broken, and one more run brings every row into one state."""
    job, disk = recorded
    assert len(disk.steps) > 100
    kinds: tuple[How, ...] = ("nothing", "everything", "chance", "chance")
    cases = [(count, how, number) for count in range(len(disk.steps) + 1) for number, how in enumerate(kinds)]
    chosen = each(cases, 15)
    for count, how, number in chosen:
        where = tmp_path / "cut" / f"{count}-{number}"
        folder = disk.after_cut(count, how, where, random.Random(count * 10 + number))
        goes_on(job, DirectoryState(folder), disk.promised(count), s3, f"cut after {count} steps, {how}")
    tried("power cut between two file operations of the state", len(chosen))


def goes_on(job: Job, state: DirectoryState, promised: list[dict[str, Status]], s3: S3Server, what: str) -> None:
    """Reads the state as a new process would, and ends the job on it."""
    known = helpers.latest(state)
    for outcomes in promised:
        for row_id, status in outcomes.items():
            assert row_id in known, f"{what}: the outcome of {row_id} is gone"
            assert known[row_id].status == status, what
    run_no = ledger.last_run_no(state) + 1
    planned = helpers.plan(job, state, run_no, server=helpers.access(s3))
    held: set[str] = set()
    for ref in planned.chunks:
        table, hints = read_chunk(state, ref)
        if ref.done < ref.rows:
            held |= set(table.column("row_id").to_pylist()) - hints.done
            helpers.settle(state, ref, run_no)
    settled = {row_id for row_id, outcome in known.items() if outcome.status is not Status.PENDING}
    again = {row_id for row_id in held & settled if not known[row_id].retryable}
    assert not again, f"{what}: {len(again)} settled rows would be moved again"
    counts = finish_run(job, state, run_no)["counts"]
    assert counts["planned"] == ROWS + 1, what
    assert counts["pending"] == 0, what
    plan = read_plan(state)
    assert plan is not None
    assert plan.last_run == run_no


def test_what_a_method_has_written_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every method of the state that writes, in a folder that it had to make: once it has returned."""
    root = tmp_path / "disk" / "state"
    root.parent.mkdir()
    disk = Disk(root)
    with disk.recording(monkeypatch):
        state = DirectoryState(root)
        state.write("a/written", b"1")
        disk.promise(("a/written", b"1"))
        (root / "moved").write_bytes(b"2")
        state.write_file("b/moved", root / "moved")
        disk.promise(("b/moved", b"2"))
        assert state.create("c/created", b"3")
        disk.promise(("c/created", b"3"))
        assert state.swap("a/written", b"1", b"4")
        disk.promise(("a/written", b"4"))
    for count in range(len(disk.steps) + 1):
        left = disk.after_cut(count, "nothing", tmp_path / f"cut-{count}", random.Random(count))
        for name, data in dict(disk.promised(count)).items():
            assert (left / name).read_bytes() == data or (name, data) == ("a/written", b"1"), f"after {count} steps"


def test_damaged_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--replan` moves them: at any moment they are at one place or at both, for whoever can still read them."""
    root = tmp_path / "disk" / "state"
    root.parent.mkdir()
    disk, damaged = Disk(root), b"what is left of it"
    with disk.recording(monkeypatch):
        state = DirectoryState(root)
        name = ledger.write_outcomes(state, b"outcomes", 1, "chunk", 0)
        state.write(name, damaged)
        disk.promise(name)
        assert ledger.put_ledger_aside(state) == [name]
    assert (root / ledger.DAMAGED / Path(name).name).read_bytes() == damaged
    for count in range(len(disk.steps) + 1):
        for how in ("nothing", "everything"):
            left = disk.after_cut(count, how, tmp_path / f"cut-{count}-{how}", random.Random(count))
            if disk.promised(count):
                kept = [left / name, left / ledger.DAMAGED / Path(name).name]
                assert any(path.exists() and path.read_bytes() == damaged for path in kept), f"after {count} steps"
