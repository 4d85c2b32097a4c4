"""Copies that look as if their rows had left the list, and that are needed all the same: none of them is deleted."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin, Trouble
from demo.s3 import S3Server
from ferry.job.model import Job
from ferry.reconcile.finish import finish_run
from ferry.reconcile.prune import KEPT, WAITING, PruneResult, prune_removed, why_it_stays
from ferry.state import lease
from ferry.state.missing import Missing
from ferry.state.plan_file import Planned
from ferry.storage.credentials import Access
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers
from tests.support.nights import World

AT_ONCE: dict[str, Any] = {"delete_removed": True, "max_delete": "50%", "delete_after": 1}
IN_TIME: dict[str, Any] = {"delete_removed": True, "max_delete": "50%"}


@pytest.fixture
def world(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> World:
    world = World(origin, s3, bucket, tmp_path)
    for n in range(20):
        world.put(f"{n}.jpg", n)
    return world


def swept(world: World | Listed) -> PruneResult:
    assert world.swept is not None
    return world.swept


def there(world: World) -> set[str]:
    return {key.removeprefix("p/") for key in helpers.stored(world.s3, world.bucket)}


def listed(world: World | Listed) -> dict[str, str]:
    """What the night's gone.csv says, by key."""
    text = world.state.read(swept(world).listed).decode()
    return {line["key"]: line["what"] for line in csv.DictReader(io.StringIO(text))}


def night(world: World, rows: list[list[str]], header: tuple[str, ...] = ("url", "id"), **given: Any) -> None:
    """A night with this list."""
    helpers.write_list(world.folder / "list.csv", rows, header)
    world.write_list = lambda columns: None  # type: ignore[method-assign]
    world.night(**{"failure_budget": "50%", "delta": AT_ONCE, **given})


def rows_of(world: World) -> list[list[str]]:
    return [[world.origin.url(f"/{key}"), f"id-{key}"] for key in world.bodies]


@pytest.mark.parametrize("broken", ["", "N/A", "https://img.example/a b.jpg"])
def test_a_cell_that_an_export_broke(broken: str, world: World) -> None:
    """The row is in the list, with its `id`; only its address cannot be used tonight."""
    rows = rows_of(world)
    night(world, rows)
    night(world, [*rows[:-2], *([broken, id_] for _, id_ in rows[-2:])])
    assert (swept(world).gone, swept(world).deleted, swept(world).kept) == (2, 0, 2)
    assert set(listed(world).values()) == {"stays: a row of the list that is not at the destination has its id"}
    assert there(world) == set(world.bodies)


@pytest.mark.parametrize("broken", ["N/A", "https://img.example/a b.jpg"])
def test_a_broken_cell_in_a_list_without_names(broken: str, world: World) -> None:
    """The row may be that of any copy: none goes while the list has it."""
    rows = [[url] for url, _ in rows_of(world)]
    night(world, rows, ("url",))
    night(world, [*rows[:-1], [broken]], ("url",))
    assert (swept(world).gone, swept(world).deleted, swept(world).kept) == (1, 0, 1)
    assert there(world) == set(world.bodies)
    night(world, [*rows[:-2], [broken]], ("url",))
    assert (swept(world).gone, swept(world).deleted, swept(world).kept) == (2, 0, 2)
    assert there(world) == set(world.bodies)
    night(world, rows[:-2], ("url",))
    assert (swept(world).deleted, len(there(world))) == (2, 18)


@pytest.mark.parametrize("key", ["{id}/{source.name}", "{sha256}.{ext}"])
def test_an_id_that_changes_while_the_origin_fails(key: str, world: World) -> None:
    """The old copy stays until the new one is there."""
    rows = rows_of(world)
    night(world, rows, key=key)
    before = there(world)
    for name in ("18.jpg", "19.jpg"):
        world.origin.add(f"/{name}", world.bodies[name], fault=Trouble.SERVER_ERROR)
    renamed = [*rows[:-2], *([url, f"new-{id_}"] for url, id_ in rows[-2:])]
    night(world, renamed, key=key)
    assert (swept(world).deleted, there(world)) == (0, before)
    for name in ("18.jpg", "19.jpg"):
        world.origin.mend(f"/{name}")
    night(world, renamed, key=key)
    assert len(there(world)) == 20
    assert swept(world).kept == 0


def test_an_id_that_changes_under_a_signed_address(world: World) -> None:
    """The ledger has the address without its signature: that of the copy and that of the row that failed are one."""
    rows = []
    for name, body in world.bodies.items():
        rows.append([world.origin.add(f"/{name}?Signature=s", body), f"id-{name}"])
    night(world, rows, key="{id}/{source.name}")
    before = there(world)
    world.origin.add("/19.jpg?Signature=s", world.bodies["19.jpg"], fault=Trouble.SERVER_ERROR)
    night(world, [*rows[:-1], [rows[-1][0], "new"]], key="{id}/{source.name}")
    assert (swept(world).gone, swept(world).kept, there(world)) == (1, 1, before)


def test_a_row_that_failed_under_the_same_id(world: World) -> None:
    """The image has moved to another address, which does not answer yet."""
    rows = rows_of(world)
    night(world, rows)
    night(world, [*rows[:-1], [world.origin.url("/nowhere.jpg"), "id-19.jpg"]])
    assert (swept(world).deleted, "19.jpg" in there(world)) == (0, True)


def planned_alone(world: World, rows: list[list[str]]) -> None:
    """A night that is killed after its plan, and whose deletions are asked for all the same."""
    helpers.write_list(world.folder / "list.csv", rows, ("url", "id"))
    world.run_no += 1
    job, server = world.job(failure_budget="50%", delta=AT_ONCE), helpers.access(world.s3)
    helpers.plan(job, world.state, world.run_no, server=server)
    with lease.hold_lease(world.state, "test") as held:
        world.swept = PruneResult(**prune_removed(job, world.state, server, server, world.run_no, held.token))


def test_a_row_that_has_not_been_tried(world: World) -> None:
    """The image has a new address, which was not asked yet: its old copy stays, and not for the pending row alone."""
    rows = rows_of(world)
    night(world, rows)
    planned_alone(world, [*rows[:-1], [world.origin.url("/new.jpg"), "id-19.jpg"]])
    assert (swept(world).refused, swept(world).kept, swept(world).deleted) == ("", 1, 0)
    assert there(world) == set(world.bodies)


def test_a_row_that_is_to_be_looked_at_again(world: World) -> None:
    """The ledger has it as copied, and the plan wants it looked at: until then an older copy of its `id` stays."""
    rows = rows_of(world)
    world.origin.add("/new.jpg", make_image("jpeg", 99, 30, 20))
    night(world, rows)
    moved = [*rows[:-1], [world.origin.url("/new.jpg"), "id-19.jpg"]]
    night(world, moved, delta={})
    planned_alone(world, moved)
    assert (swept(world).refused, swept(world).kept, swept(world).deleted) == ("", 1, 0)
    assert there(world) == {*world.bodies, "new.jpg"}


def test_two_rows_with_one_digest(world: World) -> None:
    """Equal bodies are one object under a key that names the digest: it stays while one of the rows does."""
    world.bodies["19.jpg"] = world.bodies["18.jpg"]
    world.origin.add("/19.jpg", world.bodies["18.jpg"])
    rows = rows_of(world)
    for left in (rows, rows[:-1], [*rows[:-2], rows[-1]]):
        night(world, left, key="{sha256}.{ext}")
        assert (swept(world).gone, len(there(world))) == (0, 19)
    night(world, rows[:-2], key="{sha256}.{ext}")
    assert (swept(world).deleted, len(there(world))) == (1, 18)


def test_two_lists_in_a_row(world: World) -> None:
    """A copy is deleted by the second list that lacks it, and not by the first one."""
    rows = rows_of(world)
    night(world, rows, delta=IN_TIME)
    night(world, rows[:-2], delta=IN_TIME)
    assert (swept(world).gone, swept(world).waiting, swept(world).deleted, swept(world).well) == (2, 2, 0, True)
    assert set(listed(world).values()) == {"waits: missing from the list once; deleted when 2 lists in a row lack it"}
    night(world, rows[:-3], delta=IN_TIME)
    assert (swept(world).gone, swept(world).waiting, swept(world).deleted) == (3, 1, 2)
    assert there(world) == {f"{n}.jpg" for n in range(18)}
    night(world, rows[:-3], delta=IN_TIME)
    assert there(world) == {f"{n}.jpg" for n in range(17)}


def test_a_list_counts_once_however_often_its_night_is_begun(world: World) -> None:
    """A night that is killed while it deletes, or is interrupted, continues with the same list, which does not
    count as a second one."""
    rows = rows_of(world)
    night(world, rows, delta=IN_TIME)
    for _ in range(2):  # killed after it counted, and interrupted, which ends with a report
        helpers.write_list(world.folder / "list.csv", rows[:-1], ("url", "id"))
        world.run_no += 1
        job, server = world.job(failure_budget="50%", delta=IN_TIME), helpers.access(world.s3)
        helpers.run(job, world.state, server, world.run_no)
        with lease.hold_lease(world.state, "test") as held:
            world.swept = PruneResult(**prune_removed(job, world.state, server, server, world.run_no, held.token))
        finish_run(job, world.state, world.run_no)
        assert (swept(world).waiting, swept(world).deleted) == (1, 0)
    night(world, rows[:-1], delta=IN_TIME)
    assert (swept(world).waiting, swept(world).deleted) == (1, 0)
    night(world, rows[:-1], delta=IN_TIME)
    assert (swept(world).waiting, swept(world).deleted) == (0, 1)


def test_a_list_counts_once_for_one_of_prefects_runs(world: World) -> None:
    """A run that is continued after its night had ended has the same list."""
    rows = rows_of(world)
    night(world, rows, delta=IN_TIME)
    helpers.write_list(world.folder / "list.csv", rows[:-1], ("url", "id"))
    for flow_run, deleted in (("one", 0), ("one", 0), ("another", 1)):
        world.run_no += 1
        job, server = world.job(failure_budget="50%", delta=IN_TIME), helpers.access(world.s3)
        helpers.run(job, world.state, server, world.run_no)
        with lease.hold_lease(world.state, "test", flow_run=flow_run) as held:
            world.swept = PruneResult(**prune_removed(job, world.state, server, server, world.run_no, held.token))
        finish_run(job, world.state, world.run_no, swept=True)
        assert (swept(world).gone, swept(world).deleted) == (1, deleted)


@pytest.mark.parametrize("between", ["a night", "a plain run", "a limit", "no fold"])
def test_a_copy_that_came_back_between(between: str, world: World) -> None:
    """Two lists in a row: any list that has it, also of a run that deletes nothing, begins the count again."""
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
    assert (swept(world).waiting, swept(world).deleted) == (1, 0)
    night(world, rows[:-1], delta=IN_TIME)
    assert swept(world).deleted == 1


def test_what_does_not_count_as_a_list(world: World) -> None:
    """Neither plain runs nor a list that looks cut off bring a copy nearer to its deletion, or further from it."""
    rows = rows_of(world)
    night(world, rows, delta=IN_TIME)
    night(world, rows[:-1], delta=IN_TIME)
    night(world, rows[:-1], mode="full", delta={})
    night(world, rows[:5], delta=IN_TIME)
    assert "cut off" in swept(world).refused
    assert len(there(world)) == 20
    night(world, [*rows[:-2], rows[-2]], delta=IN_TIME)
    assert swept(world).deleted == 1
    assert there(world) == {f"{n}.jpg" for n in range(19)}


def test_rows_that_cannot_be_used_are_no_rows(world: World) -> None:
    """A list whose lines are there, but a fifth of them broken or the same again, looks cut off."""
    rows = rows_of(world)
    night(world, rows)
    night(world, [*rows[:15], ["N/A", "x"], ["N/A", "y"], *rows[:3]])
    assert "the list has 15 rows where it had 20" in swept(world).refused
    assert there(world) == set(world.bodies)


@pytest.mark.parametrize("mode", ["full", "delta"])
def test_a_list_that_is_shorter_says_so_first(mode: str, world: World) -> None:
    """In any run, and before anything moves: 15 rows that can be used, where the last plan had 20."""
    rows = rows_of(world)
    night(world, rows, mode=mode, delta={})
    night(world, [*rows[:18], ["N/A", "x"], rows[0]], mode=mode, delta={})
    assert planned(world).shorter == ""
    night(world, [*rows[:15], ["N/A", "x"], *rows[:4]], mode=mode, delta={})
    assert planned(world).shorter == (
        "The list has 15 rows that can be used, where the last one had 18. If it is cut off, stop this run."
    )


def planned(world: World) -> Planned:
    assert world.planned is not None
    return world.planned


class Listed:
    """A bucket whose listing is the list, and a copy of it at the same odd store."""

    def __init__(self, server: OddS3, folder: Path) -> None:
        self.server, self.state, self.run_no = server, helpers.directory_state(folder), 0
        self.swept: PruneResult | None = None
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
        job, access = self.job(**given), Access(server.endpoint_url, "us-east-1", keys=("odd", "odd-secret", None))
        helpers.run(job, self.state, access, self.run_no)
        with lease.hold_lease(self.state, "test") as held:
            self.swept = PruneResult(**prune_removed(job, self.state, access, access, self.run_no, held.token))
        finish_run(job, self.state, self.run_no, swept=True)

    def there(self) -> set[str]:
        return {key.removeprefix("p/") for key in self.server.objects["new"]}


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Listed]:
    with OddS3() as server:
        yield Listed(server, tmp_path)


@pytest.mark.parametrize("delete_after", [1, 2])
def test_a_listing_that_is_out_of_date(delete_after: int, odd: Listed) -> None:
    """It hides live objects, night after night. The source is asked for each, and has them."""
    delta = {**AT_ONCE, "delete_after": delete_after}
    odd.night(delta=delta)
    odd.server.hidden = {"a/007.jpg", "a/011.jpg", "a/059.jpg"}
    for _ in range(3):
        odd.night(delta=delta)
    assert (swept(odd).gone, swept(odd).deleted, swept(odd).kept) == (3, 0, 3)
    assert set(listed(odd).values()) == {"stays: its source still has it, although the listing lacks it"}
    assert odd.there() == set(odd.keys)


def test_a_listing_whose_objects_are_gone(odd: Listed) -> None:
    """The source answers 404 for them: they go. One that the job leaves out by `exclude` goes as well."""
    odd.night()
    for key in ("a/007.jpg", "a/011.jpg"):
        del odd.server.objects["old"][key]
    odd.night(exclude=["a/012.*"])
    assert set(odd.keys) - odd.there() == {"a/007.jpg", "a/011.jpg", "a/012.jpg"}


def test_a_store_without_etags(odd: Listed) -> None:
    """What stands there may be anybody's: it stays, and Ferry does not say that it is another object."""
    odd.server.etags = "none"
    odd.night()
    del odd.server.objects["old"]["a/007.jpg"]
    odd.night()
    assert (swept(odd).deleted, swept(odd).left, odd.there()) == (0, 1, set(odd.keys))
    assert listed(odd)["a/007.jpg"].startswith("left: the destination gave no ETag")


@pytest.mark.parametrize("status", [403, 503])
def test_a_source_that_does_not_answer_for_its_object(status: int, odd: Listed) -> None:
    """Any answer but 404 keeps the copy, and says so."""
    odd.night()
    del odd.server.objects["old"]["a/007.jpg"]
    odd.server.faults = [Fault("status", ("HeadObject",), status=status, code="No", key="a/007")]
    odd.night()
    assert (swept(odd).deleted, swept(odd).kept) == (0, 1)
    assert listed(odd)["a/007.jpg"].startswith("stays: its source could not be asked for it (")
    odd.server.faults = []
    odd.night()
    assert swept(odd).deleted == 1


@pytest.mark.parametrize("key", [None, "{sha256}.{ext}", "x/{key}"])
def test_names_that_the_ledger_shortens(key: str | None, odd: Listed) -> None:
    """The ledger has no query and no fragment of an address: what is asked for is the object itself, or nothing is."""
    names = ["a/q.jpg?x=1", "a/h.jpg#2"] if key is None else ["a/q.jpg?x=1"]
    for n, name in enumerate(names):
        odd.put(name, 100 + n)
    given = {} if key is None else {"key": key}
    odd.night(**given)
    before = odd.there()
    odd.server.hidden = set(names)
    odd.night(**given)
    assert (swept(odd).gone, swept(odd).deleted, odd.there()) == (len(names), 0, before)


@pytest.mark.parametrize(
    ("lists", "shares", "nameless", "begins"),
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
def test_why_a_copy_stays(lists: int, shares: str, nameless: bool, begins: str) -> None:
    """swept.why_it_stays: its table."""
    why = why_it_stays(Missing(lists, shares, nameless), 2)
    assert why.startswith(begins)
    assert bool(why) is bool(begins)
