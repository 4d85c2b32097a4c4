"""Chunks that later plans need not read, since the ledger has an outcome for each attempt in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ferry.core.records import Status
from ferry.job.model import Job
from ferry.planning import chunk_files
from ferry.state import Planned
from ferry.state.files import DirectoryState
from ferry.state.plan_file import ChunkRef, read_plan
from tests.support.helpers import directory_state, make_job, plan, settle, write_list

HEADER = ("url", "path", "etag")
ONE, TWO, THREE = (["https://a.example/1.jpg", "1.jpg", "e"], ["https://a.example/2.jpg", "2.jpg", "e"],
                   ["https://a.example/3.jpg", "3.jpg", "e"])  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> DirectoryState:
    return directory_state(tmp_path)


@pytest.fixture(params=[10_000, 1], ids=["at once", "in parts"])
def at_once(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def job_in(folder: Path, *rows: list[str], **settings: Any) -> Job:
    write_list(folder / "list.csv", rows, HEADER)
    return make_job(manifest=str(folder / "list.csv"), destination="s3://b/", **settings)


def chunks(state: DirectoryState) -> list[ChunkRef]:
    found = read_plan(state)
    assert found is not None
    return found.chunks


def test_a_settled_chunk_is_not_read(tmp_path: Path, state: DirectoryState, at_once: int) -> None:
    """It stays in the plan as it is, and the reasons of the next plans do not need it."""
    job = job_in(tmp_path, ONE, TWO, THREE)
    (ref,) = plan(job, state, 1, at_once=at_once).chunks
    assert not ref.settled
    settle(state, ref, 1)
    for run_no in (2, 3):
        planned = plan(job, state, run_no, at_once=at_once)
        (ref,) = planned.chunks
        assert (planned.todo, planned.pending, ref.done, ref.settled) == ({}, 0, 3, True)
        assert chunks(state) == [ref]
    assert not list(chunk_files.read_chunks(state, [ref], 100))
    planned = plan(job_in(tmp_path, ONE, TWO, [*THREE[:2], "other"]), state, 4, at_once=at_once)
    assert (planned.todo, planned.pending) == ({}, 0)  # its ETag counts in delta runs
    assert plan(job, state, 5, mode="pass", returned=(ref.digest,), at_once=at_once).todo == {}


@pytest.mark.parametrize(
    "then", [[ONE, TWO], [ONE, TWO, [*THREE[:2], "other"]], [ONE, TWO, THREE]], ids=["removed", "other", "the same"]
)
def test_a_chunk_with_an_attempt_without_an_outcome(
    then: list[list[str]], tmp_path: Path, state: DirectoryState, at_once: int
) -> None:
    """It is read by each plan, also if none of its rows is to be done by it any more."""
    job = job_in(tmp_path, ONE, TWO, THREE)
    (ref,) = plan(job, state, 1, at_once=at_once).chunks
    settle(state, ref, 1, only=2)
    job = job_in(tmp_path, *then)
    for run_no in (2, 3):
        plan(job, state, run_no, at_once=at_once)
        assert not chunks(state)[0].settled


@pytest.mark.parametrize("given", [{"attempt": 1}, {"attempt": 2}, {"status": Status.PENDING}])
def test_any_outcome_settles(given: dict[str, Any], tmp_path: Path, state: DirectoryState, at_once: int) -> None:
    """A row that `ferry verify` found missing is pending, but its attempt is over: it goes to another chunk."""
    job = job_in(tmp_path, ONE)
    (ref,) = plan(job, state, 1, at_once=at_once).chunks
    settle(state, ref, 1, **given)
    planned = plan(job, state, 2, at_once=at_once)
    assert chunks(state)[0].settled
    assert planned.todo == ({"repair": 1} if "status" in given else {})


def test_a_removed_row_that_may_have_begun(tmp_path: Path, state: DirectoryState, at_once: int) -> None:
    """Its chunk may have written the key of an earlier copy, which counts in each later plan."""
    other = ["https://b.example/1.jpg", *ONE[1:]]
    settle(state, plan(job_in(tmp_path, ONE, TWO), state, 1, at_once=at_once).chunks[0], 1)
    assert plan(job_in(tmp_path, other, TWO), state, 2, at_once=at_once).todo == {"new": 1}  # killed in the transfer
    for run_no in (3, 4):
        planned = plan(job_in(tmp_path, TWO), state, run_no, at_once=at_once)
        assert (planned.todo, planned.pending) == ({}, 0)
    assert plan(job_in(tmp_path, ONE, TWO), state, 5, at_once=at_once).todo == {"changed": 1}


def test_a_removed_row_of_a_retry_chunk(tmp_path: Path, state: DirectoryState, at_once: int) -> None:
    """The chunk stays in the plan when newer runs have added others, since its attempt has no outcome."""

    def plan_of(run_no: int, *rows: list[str]) -> Planned:
        return plan(job_in(tmp_path, *rows, mode="delta"), state, run_no, at_once=at_once)

    other = ["https://b.example/1.jpg", *ONE[1:]]
    settle(state, plan_of(1, ONE, TWO).chunks[0], 1, source_etag="e")
    assert plan_of(2, other, TWO).todo == {"new": 1}  # killed in the transfer
    settle(state, plan_of(3, TWO, THREE).chunks[-1], 3, source_etag="e")
    assert plan_of(4, TWO, THREE).todo == {}
    assert plan_of(5, ONE, TWO, THREE).todo == {"changed": 1}
