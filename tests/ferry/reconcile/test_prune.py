"""Copies of removed rows are counted, and deleted only if that is configured and safe."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Origin
from demo.s3 import S3Server
from ferry.core.errors import Fatal
from ferry.core.records import Reason, Status
from ferry.job.delta import Delta
from ferry.planning.rules import expected_rows
from ferry.reconcile.prune import ABSENT, ANOTHER, DELETED, PruneResult, prune_removed, refusal
from ferry.state import lease
from ferry.storage.access import S3Access
from tests.support import helpers
from tests.support.nights import World

pytestmark = pytest.mark.matrix

GO: dict[str, Any] = {"delta": {"delete_removed": True, "max_delete": "50%", "delete_after": 1}}
ALL: dict[str, Any] = {"delta": {"delete_removed": True, "max_delete": "100%", "delete_after": 1}}


@pytest.fixture
def world(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> World:
    world = World(origin, s3, bucket, tmp_path)
    for n in range(20):
        world.put(f"{n}.jpg", n)
    return world


def pruned(world: World) -> PruneResult:
    assert world.pruned is not None
    return world.pruned


def results(world: World) -> dict[str, str]:
    """Returns the results in the last run's file by key."""
    lines = csv.DictReader(io.StringIO(world.state.read(pruned(world).file).decode()))
    return {line["key"]: line["result"] for line in lines}


def there(world: World) -> set[str]:
    return {key.removeprefix("p/") for key in helpers.stored_keys(world.s3, world.bucket)}


def test_they_stay_unless_asked_for(world: World) -> None:
    """Without `delete_removed` each run counts a copy of a removed row and keeps it."""
    world.night()
    del world.bodies["3.jpg"]
    for _ in range(2):
        world.night()
        assert world.figures is not None
        assert (world.figures["removed"], world.figures["deleted"]) == (1, 0)
    assert "3.jpg" in there(world)


@pytest.mark.slow
def test_they_go_and_may_come_back(world: World) -> None:
    """A copy of a removed row is deleted once and listed, and its row is new if it returns."""
    world.night(**GO)
    body = world.bodies.pop("3.jpg")
    world.night(**GO)
    world.is_true()
    assert results(world) == {"3.jpg": DELETED}
    assert world.figures is not None
    assert (world.figures["removed"], world.figures["deleted"], world.figures["new"]) == (0, 1, 0)
    (outcome,) = [outcome for outcome in helpers.latest(world.state).values() if outcome.key == "3.jpg"]
    assert (outcome.status, outcome.run_no, outcome.message) == (Status.REMOVED, 2, DELETED)
    world.night(**GO)
    assert (pruned(world).removed, pruned(world).deleted, pruned(world).file) == (0, 0, "")
    world.bodies["3.jpg"] = body
    again = world.night(**GO)["3.jpg"]
    assert (again.status, again.reason) == (Status.COPIED, Reason.NEW)
    world.is_true()


@pytest.mark.slow
def test_what_was_deleted_and_came_back_another_is_in_the_history(world: World) -> None:
    """The history has the digest of a deleted copy whose key is written again."""
    import pyarrow.parquet as pq

    first = world.night(**GO)["3.jpg"]
    del world.bodies["3.jpg"]
    world.night(**GO)
    world.put("3.jpg", 99)
    world.night(**GO)
    (name,) = world.state.list("history")
    (version,) = pq.read_table(world.state.local(name)).to_pylist()
    assert (version["key"], version["sha256"], version["replaced_by"]) == ("3.jpg", first.sha256, 3)


def test_never_more_than_max_delete(world: World) -> None:
    """No copy is deleted if more than max_delete are due; new rows are copied."""
    job: dict[str, Any] = {"delta": {"delete_removed": True, "max_delete": "5%", "delete_after": 1}}
    world.night(**job)
    removed = {"3.jpg", "4.jpg"}
    for key in removed:
        del world.bodies[key]
    world.put("new.jpg", 77)
    world.night(**job)
    assert there(world) == {*world.bodies, *removed}
    assert (pruned(world).deleted, pruned(world).removed, pruned(world).succeeded) == (0, 2, False)
    assert "2 of 21 copies" in pruned(world).refused
    assert "allows 1 deletions per run" in pruned(world).refused
    world.night(delta={"delete_removed": True, "max_delete": 2, "delete_after": 1})
    world.is_true()


@pytest.mark.slow
def test_a_list_that_is_cut_off(world: World) -> None:
    """A manifest that looks truncated deletes nothing, until it is complete or accepted as it is."""
    world.night(**ALL)
    whole = dict(world.bodies)
    for n in range(10, 20):
        del world.bodies[f"{n}.jpg"]
    for _ in range(2):
        world.night(**ALL)
        assert there(world) == set(whole)
        assert "10 rows, 20 were expected" in pruned(world).refused
    short, world.bodies = world.bodies, whole
    world.night(**ALL)
    assert pruned(world).succeeded
    world.is_true()
    world.bodies = short
    world.night(delta={**ALL["delta"], "accept_shorter_manifest": True})
    world.is_true()
    world.night(**ALL)
    assert pruned(world).succeeded


def test_what_is_not_ours_any_more_is_left(world: World) -> None:
    """An object that another program wrote or deleted is left alone and not counted again."""
    for n in range(20, 30):
        world.put(f"{n}.jpg", n)
    world.night(**GO)
    client = world.s3.client()
    client.put_object(Bucket=world.bucket, Key="p/3.jpg", Body=b"somebody's own")
    client.delete_object(Bucket=world.bucket, Key="p/4.jpg")
    for key in ("3.jpg", "4.jpg", "5.jpg"):
        del world.bodies[key]
    world.night(**GO)
    assert results(world) == {"3.jpg": ANOTHER, "4.jpg": ABSENT, "5.jpg": DELETED}
    assert there(world) == {*world.bodies, "3.jpg"}
    world.night(**GO)
    assert pruned(world).removed == 0


def test_a_key_that_another_row_has_now(world: World) -> None:
    """A copy whose key belongs to another row of the manifest is not removed."""
    world.night(key="{source.name}", **GO)
    world.origin.add("/moved/3.jpg", world.bodies["3.jpg"])
    rows = [[world.origin.url(f"/{'moved/' if key == '3.jpg' else ''}{key}")] for key in world.bodies]
    helpers.write_list(world.folder / "list.csv", rows)
    job, server = world.job(key="{source.name}", **GO), helpers.access(world.s3)
    helpers.run(job, world.state, server, 2)
    with lease.hold_lease(world.state, "test") as held:
        assert prune_removed(job, world.state, server, server, 2, held.token)["removed"] == 0
    world.is_true()


@pytest.mark.slow
def test_a_late_key_leaves_no_copy_behind(world: World) -> None:
    """A changed object with a deferred key leaves a copy under its old key, which is deleted."""
    job: dict[str, Any] = {"key": "{sha256}.{ext}", **GO}
    world.night(**job)
    keys = there(world)
    first = dict(world.bodies)
    world.put("3.jpg", 99)
    world.night(key=job["key"])
    assert world.figures is not None
    assert (world.figures["changed"], world.figures["removed"]) == (1, 1)
    assert there(world) > keys
    world.night(**job)
    assert (pruned(world).deleted, len(there(world))) == (1, 20)
    world.bodies["3.jpg"] = first["3.jpg"]
    world.origin.add("/3.jpg", first["3.jpg"])
    for _ in range(2):
        world.night(**job)
        assert there(world) == keys


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["failed", "pending"])
def test_not_after_a_night_that_did_not_end_well(trouble: str, world: World) -> None:
    """No copy is deleted while rows are pending, or too many have failed."""
    job: dict[str, Any] = {"failure_budget": 0, **GO}
    world.night(**job)
    del world.bodies["3.jpg"]
    world.bodies["nowhere.jpg"] = b""
    if trouble == "failed":
        world.night(**job)
        assert "1 rows failed" in pruned(world).refused
    else:
        world.write_list({})
        server = helpers.access(world.s3)
        helpers.plan(world.job(**job), world.state, 2, server=server)
        with lease.hold_lease(world.state, "test") as held:
            answer = prune_removed(world.job(**job), world.state, server, server, 2, held.token)
        assert "pending" in answer["refused"]
    assert "3.jpg" in there(world)
    del world.bodies["nowhere.jpg"]
    world.run_no = 2
    world.night(**job)
    world.is_true()


def test_in_a_directory(world: World, tmp_path: Path) -> None:
    """In a directory files are deleted, but neither links nor names that may be another row's file."""
    new = tmp_path / "new"
    for n in range(20, 30):
        world.put(f"{n}.jpg", n)
    job: dict[str, Any] = {"destination": f"file://{new}/", **GO}
    world.put("a/Big.jpg", 50)
    world.night(**job)
    for key in ("3.jpg", "4.jpg", "a/Big.jpg"):
        del world.bodies[key]
    world.put("a/big.jpg", 51)
    (new / "elsewhere").write_bytes((new / "4.jpg").read_bytes())
    (new / "4.jpg").unlink()
    (new / "4.jpg").symlink_to("elsewhere")
    world.night(**job)
    assert results(world) == {"3.jpg": DELETED, "4.jpg": ANOTHER}
    assert not (new / "3.jpg").exists()
    assert (new / "4.jpg").is_symlink()
    assert (new / "a" / "Big.jpg").exists()
    assert (new / "a" / "big.jpg").read_bytes() == world.bodies["a/big.jpg"]


def test_a_destination_that_lets_nothing_be_deleted(world: World) -> None:
    """Without the right to delete, the result names that right, and ledger and copies stay."""
    world.night()
    for n in range(12):
        del world.bodies[f"{n}.jpg"]
    world.night()
    before = there(world)
    job = world.job(delta={**ALL["delta"], "accept_shorter_manifest": True})
    helpers.run(job, world.state, helpers.access(world.s3), 3)
    with lease.hold_lease(world.state, "test") as held:
        answer = prune_removed(job, world.state, helpers.access(world.s3), helpers.read_access(world.s3), 3, held.token)
    assert (answer["deleted"], answer["failed"]) == (0, 12)
    assert "s3:DeleteObject" in answer["stop_reason"]
    assert there(world) == before
    assert not [outcome for outcome in helpers.latest(world.state).values() if outcome.status is Status.REMOVED]


def test_only_under_the_lease(world: World) -> None:
    """A run that lost its lease deletes nothing."""
    world.night()
    del world.bodies["3.jpg"]
    world.write_list({})
    helpers.run(world.job(**GO), world.state, helpers.access(world.s3), 2)
    with lease.hold_lease(world.state, "another"), pytest.raises(Fatal, match="lost its lease"):
        prune_removed(world.job(**GO), world.state, helpers.access(world.s3), helpers.access(world.s3), 2, "not ours")
    assert "3.jpg" in there(world)


@pytest.mark.slow
def test_one_that_fails_is_tried_the_next_night(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion that fails is reported, and the next run tries again."""
    monkeypatch.setattr("ferry.reconcile.prune.BETWEEN_TRIES_S", 0.01)
    world.night(**GO)
    del world.bodies["3.jpg"]
    world.write_list({})
    helpers.run(world.job(**GO), world.state, helpers.access(world.s3), 2)
    unknown = S3Access("http://127.0.0.1:9", "us-east-1", keys=("id", "secret", None))
    with lease.hold_lease(world.state, "test") as held:
        answer = prune_removed(world.job(**GO), world.state, unknown, unknown, 2, held.token)
    assert (answer["deleted"], answer["failed"]) == (0, 1)
    assert "3.jpg" in answer["first_failure"]
    world.run_no = 2
    world.night(**GO)
    world.is_true()


@pytest.mark.parametrize(
    ("pruned", "succeeded"),
    [
        (PruneResult(0, 2), True),
        (PruneResult(5, 2, deleted=5), True),
        (PruneResult(5, 2, waiting=5, kept=1, untracked=1), True),
        (PruneResult(5, 2, refused="the manifest looks truncated"), False),
        (PruneResult(5, 2, deleted=4, failed=1), False),
        (PruneResult(5, 2, refused="the manifest looks truncated", failed=1), False),
    ],
)
def test_whether_it_succeeded(pruned: PruneResult, succeeded: bool) -> None:
    """A refusal or a failed deletion is not a success; kept and waiting copies are no failure."""
    assert pruned.succeeded is succeeded


@pytest.mark.parametrize(
    ("removed", "due", "rows", "expected", "not_done", "may"),
    [
        (0, 0, 5, 1000, "1 row is pending", True),
        (10, 10, 900, 900, "", True),
        (10, 10, 900, 1000, "", False),
        (10, 0, 900, 1000, "", False),
        (10, 0, 1000, 1000, "1 row is pending", True),
        (10, 10, 1000, 1000, "1 row is pending", False),
        (11, 11, 1000, 1000, "", False),
        (11, 10, 1000, 1000, "", True),
        (10, 10, 1000, 0, "", True),
    ],
)
def test_whether_they_may_be_deleted(
    removed: int, due: int, rows: int, expected: int, not_done: str, may: bool
) -> None:
    """The table of refusal() holds."""
    delta = Delta(delete_removed=True)
    answer = refusal(
        removed=removed, due=due, copies=1000, rows=rows, expected=expected, not_done=not_done, delta=delta
    )
    assert (answer == "") is may


@pytest.mark.parametrize(
    ("rows", "before", "shorter", "expected"),
    [
        (900, 1000, False, 900),
        (899, 1000, False, 1000),
        (899, 1000, True, 899),
        (1200, 1000, False, 1200),
        (5, 0, False, 5),
    ],
)
def test_how_many_rows_are_expected(rows: int, before: int, shorter: bool, expected: int) -> None:
    """The table of expected_rows() holds."""
    assert expected_rows(rows, before, accept_shorter_manifest=shorter) == expected


@pytest.mark.parametrize(
    ("given", "copies", "most"),
    [("1%", 99, 0), ("1%", 100, 1), ("1%", 1_000_000, 10_000), (25, 10, 25), (0, 50, 0), ("100%", 7, 7)],
)
def test_how_many_may_be_deleted(given: Any, copies: int, most: int) -> None:
    """A share of the copies is rounded down."""
    assert Delta(max_delete=given).max_deletions(copies) == most
