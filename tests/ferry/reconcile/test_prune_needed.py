"""Copies whose rows only seem to be removed are not deleted."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin, Trouble
from demo.s3 import S3Server
from ferry.job.model import Job
from ferry.reconcile.finish import finish_run
from ferry.reconcile.prune import KEPT, WAITING, PruneResult, prune_removed, why_kept
from ferry.state import lease
from ferry.state.missing import Missing
from ferry.state.plan_file import Planned
from ferry.storage.access import S3Access
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers
from tests.support.nights import World

pytestmark = pytest.mark.slow

AT_ONCE: dict[str, Any] = {"delete_removed": True, "max_delete": "50%", "delete_after": 1}
IN_TIME: dict[str, Any] = {"delete_removed": True, "max_delete": "50%"}


@pytest.fixture
def world(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> World:
    world = World(origin, s3, bucket, tmp_path)
    for n in range(20):
        world.put(f"{n}.jpg", n)
    return world


def pruned(world: World | Listed) -> PruneResult:
    assert world.pruned is not None
    return world.pruned


def there(world: World) -> set[str]:
    return {key.removeprefix("p/") for key in helpers.stored_keys(world.s3, world.bucket)}


def results(world: World | Listed) -> dict[str, str]:
    """Returns the results in the run's pruned.csv by key."""
    text = world.state.read(pruned(world).file).decode()
    return {line["key"]: line["result"] for line in csv.DictReader(io.StringIO(text))}


def night(world: World, rows: list[list[str]], header: tuple[str, ...] = ("url", "id"), **given: Any) -> None:
    """Runs a delta run with this manifest."""
    helpers.write_list(world.folder / "list.csv", rows, header)
    world.write_list = lambda columns: None  # type: ignore[method-assign]
    world.night(**{"failure_budget": "50%", "delta": AT_ONCE, **given})


def rows_of(world: World) -> list[list[str]]:
    return [[world.origin.url(f"/{key}"), f"id-{key}"] for key in world.bodies]


@pytest.mark.parametrize("broken", ["", "N/A", "https://img.example/a.jpg https://img.example/b.jpg"])
def test_a_cell_that_an_export_broke(broken: str, world: World) -> None:
    """A copy is kept while a row with its `id` has an unusable address."""
    rows = rows_of(world)
    night(world, rows)
    night(world, [*rows[:-2], *([broken, id_] for _, id_ in rows[-2:])])
    assert (pruned(world).removed, pruned(world).deleted, pruned(world).kept) == (2, 0, 2)
    assert set(results(world).values()) == {"kept: a row of the manifest that is not at the destination has its id"}
    assert there(world) == set(world.bodies)


def test_another_address_of_a_failed_row(world: World) -> None:
    """A copy is kept while a row without an object has one of its addresses, whichever column it stands in."""
    world.job = partial(world.job, columns={"source": ["url", "cdn"]})  # type: ignore[method-assign]
    header = ("url", "cdn", "id")
    rows = [[world.origin.url(f"/{key}"), "", f"id-{key}"] for key in world.bodies]
    for n, path in ((1, "/cdn/a.jpg?v=1"), (2, "/cdn/b.jpg")):
        world.origin.add(path, make_image("jpeg", 50 + n))
        rows.append([world.origin.url(f"/gone-{n}.jpg"), world.origin.url(path), f"id-{n}"])
    night(world, rows, header)
    assert len(there(world)) == 22
    for path in ("/cdn/a.jpg?v=1", "/cdn/b.jpg"):
        world.origin.remove(path)
    changed = [
        [world.origin.url("/moved.jpg"), rows[-2][1], "other-1"],  # its second address is that of the first copy
        [rows[-1][1], "", "other-2"],  # the address that gave the second copy is its first one
    ]
    night(world, [*rows[:-2], *changed], header)
    assert (pruned(world).removed, pruned(world).deleted, pruned(world).kept) == (2, 0, 2)
    assert set(results(world).values()) == {"kept: a row of the manifest that is not at the destination has its source"}
    night(world, rows[:-2], header)
    assert pruned(world).deleted == 2


@pytest.mark.parametrize("broken", ["N/A", "https://img.example/a.jpg https://img.example/b.jpg"])
def test_a_broken_cell_in_a_list_without_names(broken: str, world: World) -> None:
    """Every copy is kept while a row has neither an `id` nor a usable address."""
    rows = [[url] for url, _ in rows_of(world)]
    night(world, rows, ("url",))
    night(world, [*rows[:-1], [broken]], ("url",))
    assert (pruned(world).removed, pruned(world).deleted, pruned(world).kept) == (1, 0, 1)
    assert there(world) == set(world.bodies)
    night(world, [*rows[:-2], [broken]], ("url",))
    assert (pruned(world).removed, pruned(world).deleted, pruned(world).kept) == (2, 0, 2)
    assert there(world) == set(world.bodies)
    night(world, rows[:-2], ("url",))
    assert (pruned(world).deleted, len(there(world))) == (2, 18)


@pytest.mark.parametrize("key", ["{id}/{source.name}", "{sha256}.{ext}"])
def test_an_id_that_changes_while_the_origin_fails(key: str, world: World) -> None:
    """A copy is kept while a row with its source has failed."""
    rows = rows_of(world)
    night(world, rows, key=key)
    before = there(world)
    for name in ("18.jpg", "19.jpg"):
        world.origin.add(f"/{name}", world.bodies[name], fault=Trouble.SERVER_ERROR)
    renamed = [*rows[:-2], *([url, f"new-{id_}"] for url, id_ in rows[-2:])]
    night(world, renamed, key=key)
    assert (pruned(world).deleted, there(world)) == (0, before)
    for name in ("18.jpg", "19.jpg"):
        world.origin.mend(f"/{name}")
    night(world, renamed, key=key)
    assert len(there(world)) == 20
    assert pruned(world).kept == 0


def test_an_id_that_changes_under_a_signed_address(world: World) -> None:
    """A failed row has a copy's source if their addresses are equal without the signature."""
    rows = []
    for name, body in world.bodies.items():
        rows.append([world.origin.add(f"/{name}?Signature=s", body), f"id-{name}"])
    night(world, rows, key="{id}/{source.name}")
    before = there(world)
    world.origin.add("/19.jpg?Signature=s", world.bodies["19.jpg"], fault=Trouble.SERVER_ERROR)
    night(world, [*rows[:-1], [rows[-1][0], "new"]], key="{id}/{source.name}")
    assert (pruned(world).removed, pruned(world).kept, there(world)) == (1, 1, before)


def test_a_row_that_failed_under_the_same_id(world: World) -> None:
    """A copy is kept while a row with its `id` has failed."""
    rows = rows_of(world)
    night(world, rows)
    night(world, [*rows[:-1], [world.origin.url("/nowhere.jpg"), "id-19.jpg"]])
    assert (pruned(world).deleted, "19.jpg" in there(world)) == (0, True)


def planned_alone(world: World, rows: list[list[str]]) -> None:
    """Plans a run, prunes without transferring, and stores the result."""
    helpers.write_list(world.folder / "list.csv", rows, ("url", "id"))
    world.run_no += 1
    job, server = world.job(failure_budget="50%", delta=AT_ONCE), helpers.access(world.s3)
    helpers.plan(job, world.state, world.run_no, server=server)
    with lease.hold_lease(world.state, "test") as held:
        world.pruned = PruneResult(**prune_removed(job, world.state, server, server, world.run_no, held.token))


def test_a_row_that_has_not_been_tried(world: World) -> None:
    """A copy is kept while a row with its `id` is pending."""
    rows = rows_of(world)
    night(world, rows)
    planned_alone(world, [*rows[:-1], [world.origin.url("/new.jpg"), "id-19.jpg"]])
    assert (pruned(world).refused, pruned(world).kept, pruned(world).deleted) == ("", 1, 0)
    assert there(world) == set(world.bodies)


def test_a_row_that_is_to_be_looked_at_again(world: World) -> None:
    """A copy is kept while a row with its `id` waits for a recheck."""
    rows = rows_of(world)
    world.origin.add("/new.jpg", make_image("jpeg", 99, 30, 20))
    night(world, rows)
    moved = [*rows[:-1], [world.origin.url("/new.jpg"), "id-19.jpg"]]
    night(world, moved, delta={})
    planned_alone(world, moved)
    assert (pruned(world).refused, pruned(world).kept, pruned(world).deleted) == ("", 1, 0)
    assert there(world) == {*world.bodies, "new.jpg"}


def test_two_rows_with_one_digest(world: World) -> None:
    """An object with several rows is deleted once all of them are removed."""
    world.bodies["19.jpg"] = world.bodies["18.jpg"]
    world.origin.add("/19.jpg", world.bodies["18.jpg"])
    rows = rows_of(world)
    for left in (rows, rows[:-1], [*rows[:-2], rows[-1]]):
        night(world, left, key="{sha256}.{ext}")
        assert (pruned(world).removed, len(there(world))) == (0, 19)
    night(world, rows[:-2], key="{sha256}.{ext}")
    assert (pruned(world).deleted, len(there(world))) == (1, 18)


def test_two_lists_in_a_row(world: World) -> None:
    """A copy is deleted by the second manifest in a row that lacks it."""
    rows = rows_of(world)
    night(world, rows, delta=IN_TIME)
    night(world, rows[:-2], delta=IN_TIME)
    assert (pruned(world).removed, pruned(world).waiting, pruned(world).deleted, pruned(world).succeeded) == (
        2,
        2,
        0,
        True,
    )
    assert set(results(world).values()) == {
        "waiting: missing from the manifest once; deleted when 2 manifests in a row lack it"
    }
    night(world, rows[:-3], delta=IN_TIME)
    assert (pruned(world).removed, pruned(world).waiting, pruned(world).deleted) == (3, 1, 2)
    assert there(world) == {f"{n}.jpg" for n in range(18)}
    night(world, rows[:-3], delta=IN_TIME)
    assert there(world) == {f"{n}.jpg" for n in range(17)}


def test_a_list_counts_once_however_often_its_night_is_begun(world: World) -> None:
    """A manifest counts once if its run is killed or interrupted and run again."""
    rows = rows_of(world)
    night(world, rows, delta=IN_TIME)
    for _ in range(2):  # killed after it counted, and interrupted, which ends with a report
        helpers.write_list(world.folder / "list.csv", rows[:-1], ("url", "id"))
        world.run_no += 1
        job, server = world.job(failure_budget="50%", delta=IN_TIME), helpers.access(world.s3)
        helpers.run(job, world.state, server, world.run_no)
        with lease.hold_lease(world.state, "test") as held:
            world.pruned = PruneResult(**prune_removed(job, world.state, server, server, world.run_no, held.token))
        finish_run(job, world.state, world.run_no)
        assert (pruned(world).waiting, pruned(world).deleted) == (1, 0)
    night(world, rows[:-1], delta=IN_TIME)
    assert (pruned(world).waiting, pruned(world).deleted) == (1, 0)
    night(world, rows[:-1], delta=IN_TIME)
    assert (pruned(world).waiting, pruned(world).deleted) == (0, 1)


def test_a_list_counts_once_for_one_of_prefects_runs(world: World) -> None:
    """A manifest counts once per flow run of Prefect."""
    rows = rows_of(world)
    night(world, rows, delta=IN_TIME)
    helpers.write_list(world.folder / "list.csv", rows[:-1], ("url", "id"))
    for flow_run, deleted in (("one", 0), ("one", 0), ("another", 1)):
        world.run_no += 1
        job, server = world.job(failure_budget="50%", delta=IN_TIME), helpers.access(world.s3)
        helpers.run(job, world.state, server, world.run_no)
        with lease.hold_lease(world.state, "test", flow_run=flow_run) as held:
            world.pruned = PruneResult(**prune_removed(job, world.state, server, server, world.run_no, held.token))
        finish_run(job, world.state, world.run_no, pruned=True)
        assert (pruned(world).removed, pruned(world).deleted) == (1, deleted)


@pytest.mark.slow
@pytest.mark.parametrize("between", ["a night", "a plain run", "a limit", "no fold"])
def test_a_copy_that_came_back_between(between: str, world: World) -> None:
    """A manifest that has the copy again resets its count, whatever kind of run reads it."""
    rows = rows_of(world)
    night(world, rows, delta=IN_TIME)
    night(world, rows[:-1], delta=IN_TIME)
    if between in ("a night", "a plain run"):
        night(world, rows, **({"delta": IN_TIME} if between == "a night" else {"mode": "full"}))
    else:
        helpers.write_list(world.folder / "list.csv", rows, ("url", "id"))
        world.run_no += 1
        limit = 1 if between == "a limit" else None
        job = world.job(failure_budget="50%", delta=IN_TIME)
        helpers.plan(job, world.state, world.run_no, server=helpers.access(world.s3), limit=limit)
    night(world, rows[:-1], delta=IN_TIME)
    assert (pruned(world).waiting, pruned(world).deleted) == (1, 0)
    night(world, rows[:-1], delta=IN_TIME)
    assert pruned(world).deleted == 1


def test_what_does_not_count_as_a_list(world: World) -> None:
    """A plain run and a truncated manifest do not change the count."""
    rows = rows_of(world)
    night(world, rows, delta=IN_TIME)
    night(world, rows[:-1], delta=IN_TIME)
    night(world, rows[:-1], mode="full", delta={})
    night(world, rows[:5], delta=IN_TIME)
    assert "truncated" in pruned(world).refused
    assert len(there(world)) == 20
    night(world, [*rows[:-2], rows[-2]], delta=IN_TIME)
    assert pruned(world).deleted == 1
    assert there(world) == {f"{n}.jpg" for n in range(19)}


def test_rows_that_cannot_be_used_are_no_rows(world: World) -> None:
    """Unusable rows and duplicates do not count when a manifest is checked for truncation."""
    rows = rows_of(world)
    night(world, rows)
    night(world, [*rows[:15], ["N/A", "x"], ["N/A", "y"], *rows[:3]])
    assert "the manifest has 15 rows, 20 were expected" in pruned(world).refused
    assert there(world) == set(world.bodies)


@pytest.mark.parametrize("mode", ["full", "delta"])
def test_a_list_that_is_shorter_says_so_first(mode: str, world: World) -> None:
    """A run warns before it begins if the manifest has over a tenth fewer usable rows."""
    rows = rows_of(world)
    night(world, rows, mode=mode, delta={})
    night(world, [*rows[:18], ["N/A", "x"], rows[0]], mode=mode, delta={})
    assert planned(world).shorter == ""
    night(world, [*rows[:15], ["N/A", "x"], *rows[:4]], mode=mode, delta={})
    assert planned(world).shorter == (
        "The manifest has 15 usable rows, and the last one had 18. If it is truncated, stop this run and complete the "
        "manifest."
    )


def planned(world: World) -> Planned:
    assert world.planned is not None
    return world.planned


class Listed:
    """A bucket whose listing is the manifest, and its copy, in a store that can misbehave."""

    def __init__(self, server: OddS3, folder: Path) -> None:
        self.server, self.state, self.run_no = server, helpers.directory_state(folder), 0
        self.pruned: PruneResult | None = None
        for bucket in ("old", "new"):
            server.make_bucket(bucket)
        self.keys = [f"a/{n:03}.jpg" for n in range(60)]
        for n, key in enumerate(self.keys):
            self.put(key, n)

    def put(self, key: str, seed: int) -> None:
        self.server.put("old", key, make_image("jpeg", seed, 30, 20))

    def job(self, **given: Any) -> Job:
        source = {"endpoint_url": self.server.endpoint_url}
        uri = {"uri": "s3://new/p/", "endpoint_url": self.server.endpoint_url}
        given = {"mode": "delta", "delta": AT_ONCE, **given}
        return helpers.make_job(manifest="s3://old/", source=source, destination=uri, **given)

    def night(self, **given: Any) -> None:
        self.run_no += 1
        server = self.server
        job, access = self.job(**given), S3Access(server.endpoint_url, "us-east-1", keys=("odd", "odd-secret", None))
        helpers.run(job, self.state, access, self.run_no)
        with lease.hold_lease(self.state, "test") as held:
            self.pruned = PruneResult(**prune_removed(job, self.state, access, access, self.run_no, held.token))
        finish_run(job, self.state, self.run_no, pruned=True)

    def there(self) -> set[str]:
        return {key.removeprefix("p/") for key in self.server.objects["new"]}


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Listed]:
    with OddS3() as server:
        yield Listed(server, tmp_path)


@pytest.mark.parametrize("delete_after", [1, 2])
def test_a_listing_that_is_out_of_date(delete_after: int, odd: Listed) -> None:
    """Objects that a listing lacks, but the source has, are kept in every run."""
    delta = {**AT_ONCE, "delete_after": delete_after}
    odd.night(delta=delta)
    odd.server.hidden = {"a/007.jpg", "a/011.jpg", "a/059.jpg"}
    for _ in range(3):
        odd.night(delta=delta)
    assert (pruned(odd).removed, pruned(odd).deleted, pruned(odd).kept) == (3, 0, 3)
    assert set(results(odd).values()) == {"kept: its source still has it, although the listing lacks it"}
    assert odd.there() == set(odd.keys)


def test_a_listing_whose_objects_are_gone(odd: Listed) -> None:
    """Objects for which the source answers 404, or that the job excludes, are deleted."""
    odd.night()
    for key in ("a/007.jpg", "a/011.jpg"):
        del odd.server.objects["old"][key]
    odd.night(exclude=["a/012.*"])
    assert set(odd.keys) - odd.there() == {"a/007.jpg", "a/011.jpg", "a/012.jpg"}


def test_a_store_without_etags(odd: Listed) -> None:
    """A copy in a store without ETags is not deleted, and the result says why."""
    odd.server.etags = "none"
    odd.night()
    del odd.server.objects["old"]["a/007.jpg"]
    odd.night()
    assert (pruned(odd).deleted, pruned(odd).untracked, odd.there()) == (0, 1, set(odd.keys))
    assert results(odd)["a/007.jpg"].startswith("not deleted: the destination gave no ETag")


@pytest.mark.parametrize("status", [403, 503])
def test_a_source_that_does_not_answer_for_its_object(status: int, odd: Listed) -> None:
    """Any answer of the source but 404 keeps the copy, and the result says so."""
    odd.night()
    del odd.server.objects["old"]["a/007.jpg"]
    odd.server.faults = [Fault("status", ("HeadObject",), status=status, code="No", key="a/007")]
    odd.night()
    assert (pruned(odd).deleted, pruned(odd).kept) == (0, 1)
    assert results(odd)["a/007.jpg"].startswith("kept: its source could not be checked for it (")
    odd.server.faults = []
    odd.night()
    assert pruned(odd).deleted == 1


@pytest.mark.parametrize("key", [None, "{sha256}.{ext}", "x/{key}"])
def test_names_that_the_ledger_shortens(key: str | None, odd: Listed) -> None:
    """A copy whose source's exact key is not known is kept."""
    names = ["a/q.jpg?x=1", "a/h.jpg#2"] if key is None else ["a/q.jpg?x=1"]
    for n, name in enumerate(names):
        odd.put(name, 100 + n)
    given = {} if key is None else {"key": key}
    odd.night(**given)
    before = odd.there()
    odd.server.hidden = set(names)
    odd.night(**given)
    assert (pruned(odd).removed, pruned(odd).deleted, odd.there()) == (len(names), 0, before)


@pytest.mark.parametrize(
    ("lists", "shares", "unidentified", "begins"),
    [
        (1, "", False, WAITING),
        (1, "id", True, WAITING),
        (2, "id", False, KEPT),
        (2, "source", False, KEPT),
        (3, "", True, KEPT),
        (2, "", False, ""),
        (3, "", False, ""),
    ],
)
def test_why_a_copy_stays(lists: int, shares: str, unidentified: bool, begins: str) -> None:
    """The table of why_kept() holds."""
    why = why_kept(Missing(lists, shares, unidentified), 2)
    assert why.startswith(begins)
    assert bool(why) is bool(begins)
