"""Copies whose key had several rows, whose row returns, or whose deletion was interrupted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Origin
from demo.s3 import S3Server
from ferry.core.errors import Fatal, ObjectError
from ferry.core.records import ErrorClass, Outcome, Reason, Status
from ferry.reconcile import prune
from ferry.reconcile.finish import finish_run
from ferry.state import lease, ledger
from ferry.state.plan_file import PLAN_FILE, set_plan_aside
from ferry.storage.store import Store
from ferry.transfer.chunk import run_chunk
from tests.support import helpers
from tests.support.nights import World

pytestmark = pytest.mark.slow

GO: dict[str, Any] = {
    "delta": {"delete_removed": True, "delete_after": 1, "max_delete": "100%", "accept_shorter_manifest": True}
}


class Folder(World):
    """A world whose destination is a directory."""

    @property
    def new(self) -> Path:
        return self.folder / "new"

    def night(self, columns: dict[str, list[str]] | None = None, **given: Any) -> Any:
        return super().night(columns, **{"destination": f"file://{self.new}/", **GO, **given})

    def there(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.new)): path.read_bytes() for path in self.new.rglob("*") if path.is_file()}

    def is_true(self) -> None:
        assert self.there() == self.bodies


@pytest.fixture
def world(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> Folder:
    world = Folder(origin, s3, bucket, tmp_path)
    for n in range(5):
        world.put(f"{n}.jpg", n)
    return world


def test_a_key_that_two_rows_had(world: Folder) -> None:
    """Two removed rows with one key are one copy, and a row that returns is copied."""
    world.put("a/x.jpg", 10)
    world.night(key="{source.name}")
    first = world.bodies.pop("a/x.jpg")
    world.put("b/x.jpg", 11)
    world.night(key="{source.name}")
    del world.bodies["b/x.jpg"]
    world.night(key="{source.name}")
    assert world.pruned is not None
    assert (world.pruned.removed, world.pruned.deleted) == (1, 1)
    world.is_true()
    world.night(key="{source.name}")
    assert world.pruned.removed == 0
    world.bodies["a/x.jpg"] = first
    world.night(key="{source.name}")
    assert world.there()["x.jpg"] == first


def test_copies_are_objects_and_not_rows(world: Folder) -> None:
    """max_delete counts objects, however many rows have had them."""
    delta = {"delete_removed": True, "delete_after": 1, "max_delete": "20%", "accept_shorter_manifest": True}
    for name in "ab":
        world.night({"id": [f"{name}{n}" for n in range(5)]}, delta=delta)
    for n in range(2):
        del world.bodies[f"{n}.jpg"]
        world.night({"id": [f"b{n}" for n in range(n + 1, 5)]}, delta=delta if not n else {**delta, "max_delete": 1})
        assert world.pruned is not None
        assert (world.pruned.deleted, world.pruned.refused) == (1, "")
    world.is_true()
    for key in ("2.jpg", "3.jpg"):
        del world.bodies[key]
    world.night({"id": ["b4"]}, delta={**delta, "max_delete": "50%"})
    assert world.pruned is not None
    assert "2 of 3 copies" in world.pruned.refused


def test_a_deletion_that_was_broken_off(world: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash between deletions, returning rows are copied again and the other copies deleted."""
    world.night()
    whole = dict(world.bodies)
    for n in range(1, 5):
        del world.bodies[f"{n}.jpg"]
    delete_one = prune._delete_one

    async def dies(store: Store, outcome: Outcome) -> str:
        if len(world.there()) == 3:
            raise KeyboardInterrupt
        return await delete_one(store, outcome)

    with monkeypatch.context() as patch:
        patch.setattr(prune, "AT_ONCE", 1)
        patch.setattr(prune, "_delete_one", dies)
        with pytest.raises(KeyboardInterrupt):
            world.night()
    left = next(key for key in world.there() if key != "0.jpg")
    world.bodies = {key: body for key, body in whole.items() if key != left}
    outcomes = world.night()
    world.is_true()
    reasons = {key: outcome.reason for key, outcome in outcomes.items() if outcome.status is Status.COPIED}
    assert reasons == dict.fromkeys(set(world.bodies) - {"0.jpg"}, Reason.REPAIR)
    world.night()
    assert world.pruned is not None
    assert world.pruned.removed == 0


def test_a_destination_that_goes_away_meanwhile(world: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fatal error ends the deletions with a complete report, and the next run deletes the rest."""
    world.night()
    for n in range(1, 5):
        del world.bodies[f"{n}.jpg"]
    delete_one = prune._delete_one

    async def fails(store: Store, outcome: Outcome) -> str:
        if len(world.there()) == 3:
            raise Fatal("the credentials have expired")
        return await delete_one(store, outcome)

    with monkeypatch.context() as patch:
        patch.setattr(prune, "AT_ONCE", 1)
        patch.setattr(prune, "BATCH", 3)
        patch.setattr(prune, "_delete_one", fails)
        world.night()
    assert world.pruned is not None
    assert world.figures is not None
    assert (world.pruned.deleted, world.pruned.failed, world.pruned.stop_reason) == (
        2,
        2,
        "the credentials have expired",
    )
    assert (world.figures["deleted"], world.figures["removed"]) == (2, 2)
    listed = world.state.read(world.pruned.file).decode()
    assert (listed.count("not deleted: the credentials have expired"), listed.count("\ndeleted,")) == (2, 2)
    world.night()
    world.is_true()


def test_the_lease_is_looked_at_between_deletions(world: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that loses its lease between deletions deletes nothing more."""
    world.night()
    for n in range(1, 5):
        del world.bodies[f"{n}.jpg"]
    delete_one = prune._delete_one

    async def suspended(store: Store, outcome: Outcome) -> str:
        what = await delete_one(store, outcome)
        world.state.delete([lease.NAME])
        return what

    monkeypatch.setattr(prune, "AT_ONCE", 1)
    monkeypatch.setattr(prune, "LEASE_CHECK_S", -1.0)
    monkeypatch.setattr(prune, "_delete_one", suspended)
    with pytest.raises(Fatal, match="lost its lease"):
        world.night()
    assert len(world.there()) == 4


def test_a_late_key_that_another_row_has_already(world: Folder) -> None:
    """A row whose object now equals another one is not written, and its old object is deleted."""
    world.night(key="{sha256}.{ext}")
    world.bodies["1.jpg"] = world.bodies["2.jpg"]
    world.origin.add("/1.jpg", world.bodies["2.jpg"])
    for _ in range(2):
        world.night(key="{sha256}.{ext}")
    assert sorted(world.there().values()) == sorted(set(world.bodies.values()))


def test_figures_after_a_killed_night(world: Folder) -> None:
    """What a killed run replaced does not count as changed, and a row that returns counts as new."""
    world.night()
    del world.bodies["4.jpg"]
    world.night()
    for n in (1, 2):
        world.put(f"{n}.jpg", 10 + n)
    world.put("4.jpg", 14)
    world.put("new.jpg", 20)
    job = {"destination": f"file://{world.new}/", **GO}
    world.write_list({})
    planned = helpers.plan(world.job(**job), world.state, 3)
    with helpers.engine(world.job(**job), world.state, helpers.access(world.s3), 3) as runtime:
        for ref in planned.chunks[-1:]:  # new rows are in the one before
            run_chunk(runtime, ref)
    world.put("3.jpg", 13)
    world.run_no = 3
    world.night(**job)
    assert world.figures is not None
    assert (world.figures["new"], world.figures["changed"]) == (2, 1)
    world.is_true()


def test_a_row_whose_first_one_left_is_pending(world: Folder) -> None:
    """A duplicate whose first row was removed is pending until it is copied itself."""
    lines = [[world.origin.url("/0.jpg"), "a"], *([world.origin.url(f"/{key}"), f"b{key}"] for key in world.bodies)]
    job = world.job(destination=f"file://{world.new}/", **GO)
    helpers.write_list(world.folder / "list.csv", lines, ("url", "id"))
    helpers.run(job, world.state, helpers.access(world.s3), 1)
    helpers.write_list(world.folder / "list.csv", lines[1:], ("url", "id"))
    helpers.plan(job, world.state, 2)
    assert finish_run(job, world.state, 2)["counts"]["pending"] == len(world.bodies)


def test_without_quotes(world: Folder) -> None:
    """ETags are compared without quotes."""
    uri = {"uri": f"s3://{world.bucket}/p/", "endpoint_url": world.s3.endpoint_url}
    first = world.night(destination=uri)["1.jpg"]
    assert first.dest_etag is not None
    ledger.append_outcomes(world.state, [first._replace(dest_etag=first.dest_etag.strip('"'), attempt=2)], 1, "x", 0)
    del world.bodies["1.jpg"]
    world.night(destination=uri)
    assert world.pruned is not None
    assert (world.pruned.deleted, world.pruned.untracked) == (1, 0)


def test_files_that_were_there_before(world: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An equal object from before the first run is a copy: it is rechecked, and deleted with its row."""
    monkeypatch.setattr("ferry.planning.existing_objects.MAX_HEADS", 0)
    world.new.mkdir()
    for key, body in world.bodies.items():
        (world.new / key).write_bytes(body)
    outcomes = world.night().values()
    assert {outcome.status for outcome in outcomes} == {Status.UNCHANGED}
    world.put("1.jpg", 11)
    del world.bodies["2.jpg"]
    world.night()
    world.is_true()


def test_a_copy_without_an_etag(world: Folder) -> None:
    """A copy without an ETag in the ledger is rechecked, and is not deleted."""
    first = world.night()["1.jpg"]
    second = next(outcome for outcome in helpers.latest(world.state).values() if outcome.key == "2.jpg")
    ledger.append_outcomes(world.state, [old._replace(dest_etag=None, attempt=2) for old in (first, second)], 1, "x", 0)
    world.put("1.jpg", 11)
    del world.bodies["2.jpg"]
    world.night()
    assert world.pruned is not None
    assert world.pruned.untracked == 1
    assert world.there().pop("1.jpg") == world.bodies["1.jpg"]


@pytest.mark.parametrize("replan", [True, False])
def test_a_list_that_is_cut_off_and_a_plan_that_is_made_anew(replan: bool, world: Folder) -> None:
    """A truncated manifest is recognised without the earlier plan."""
    delta = {"delete_removed": True, "delete_after": 1, "max_delete": "100%"}
    world.night(delta=delta)
    for n in range(1, 5):
        del world.bodies[f"{n}.jpg"]
    for _ in range(2):
        if replan:
            set_plan_aside(world.state)
        else:
            world.state.delete([PLAN_FILE])
        world.night(delta=delta)
        assert world.pruned is not None
        assert "1 rows, 5 were expected" in world.pruned.refused
    assert len(world.there()) == 5


def test_a_store_that_asks_for_too_long_a_wait() -> None:
    """A Retry-After of an hour ends the tries for a copy at once."""
    tries = []

    class Busy:
        kind = "s3"

        async def head(self, key: str) -> None:
            tries.append(key)
            raise ObjectError(ErrorClass.RATE_LIMITED, "slow down", retry_after_s=3600)

    busy: Any = Busy()
    with pytest.raises(ObjectError):
        asyncio.run(asyncio.wait_for(prune._delete_one(busy, helpers.make_outcome(1)), 10))
    assert tries == ["1.jpg"]
