"""Manifests and destinations that change between runs: each copied row has its own bytes at its key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Fault, Origin, Trouble
from ferry.core.errors import UserError
from ferry.core.records import ErrorClass, Status
from ferry.job.model import Job
from ferry.ratelimit.host import HostLimit
from ferry.ratelimit.limiter import Limiter
from ferry.ratelimit.permit import PausedTooLong
from ferry.state import ledger
from ferry.state.plan_file import LOCATION_FILE, PLAN_FILE, read_plan, set_plan_aside
from ferry.storage.access import Access
from tests.support.helpers import counts_of, directory_state, later, latest, make_job, make_outcome, plan, run

pytestmark = pytest.mark.slow


class World:
    """A folder with sources, a manifest, a state and destinations; whole runs without Prefect."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.run_no = folder, directory_state(folder), 0
        (folder / "src").mkdir()

    def source(self, name: str) -> str:
        (self.folder / "src" / name).write_text(name * 5)
        return f"file://{self.folder}/src/{name}"

    def job(self, to: str = "out", **settings: Any) -> Job:
        return make_job(
            manifest=str(self.folder / "list.csv"), destination=f"file://{self.folder}/{to}/", checks="none",
            source={"roots": [f"file://{self.folder}/src/"]}, **settings,
        )  # fmt: skip

    def list(self, header: str, *rows: Sequence[str]) -> None:
        (self.folder / "list.csv").write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")

    def run(self, job: Job, *, replan: bool = False) -> dict[str, int]:
        """Runs the job and returns the counts of its present manifest."""
        if replan:
            set_plan_aside(self.state)
        self.run_no += 1
        run(job, self.state, Access(), self.run_no)
        return self.counts()

    def counts(self) -> dict[str, int]:
        counts = counts_of(self.state).as_dict()
        return {name: counts[name] for name in ("copied", "unchanged", "failed", "pending") if counts[name]}

    def there(self, to: str = "out") -> dict[str, str]:
        root = self.folder / to
        return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_key_from_another_column_that_changed(world: World) -> None:
    """After its key changes, a row goes to the new key, and a row with the old key gets that."""
    a, b, c = (world.source(name) for name in "abc")
    job = world.job(key="{brand}/x.bin")
    world.list("url,brand", (a, "one"), (b, "two"))
    world.run(job)
    world.list("url,brand", (a, "three"), (b, "two"), (c, "one"))
    assert world.run(job) == {"copied": 3}
    assert world.there() == {"one/x.bin": "ccccc", "two/x.bin": "bbbbb", "three/x.bin": "aaaaa"}
    world.list("url,brand", (a, "two"), (b, "three"), (c, "one"))
    assert world.run(job) == {"copied": 3}
    assert world.there() == {"one/x.bin": "ccccc", "two/x.bin": "aaaaa", "three/x.bin": "bbbbb"}


def test_a_key_that_another_row_took(world: World) -> None:
    """After a key changes hands twice, it has the object of the row in the present manifest."""
    a, b = world.source("a"), world.source("b")
    others = [(world.source(f"o{n}"), f"o{n}.bin") for n in range(20)]
    for rows in ([a], [b], [a]):
        world.list("url,key", *[(row, "k.bin") for row in rows], *others)
        assert world.run(world.job()) == {"copied": 21}
        assert world.there()["k.bin"] == rows[0][-1] * 5
    # Both at once: the one whose object stands there keeps the key.
    world.list("url,key", (b, "k.bin"), (a, "k.bin"), *others)
    assert world.run(world.job()) == {"copied": 21, "failed": 1}
    assert world.there()["k.bin"] == "aaaaa"
    assert world.run(world.job()) == {"copied": 21, "failed": 1}


def test_a_row_that_comes_back_to_the_same_bytes(world: World) -> None:
    """A row that is in the manifest again has nothing to do if its key has the same bytes."""
    (world.folder / "src/a").write_text("same")
    (world.folder / "src/b").write_text("same")
    for name in "aba":
        world.list("url,key", (f"file://{world.folder}/src/{name}", "k.bin"))
        world.run(world.job())
    assert plan(world.job(), world.state, 9).todo == {}


def test_there_and_back_many_times(world: World) -> None:
    """Each --replan between two destinations copies all rows to the current one."""
    world.list("url,key", (world.source("a"), "a.bin"), (world.source("b"), "b.bin"))
    for number, to in enumerate(("out", "other", "out", "other", "out")):
        counts = world.run(world.job(to), replan=number > 0)
        assert sum(counts.get(name, 0) for name in ("copied", "unchanged")) == 2
        assert world.there(to) == {"a.bin": "aaaaa", "b.bin": "bbbbb"}


def test_a_repair_is_no_earlier_runs_chunk(world: World) -> None:
    """The same rows for the same reason make different chunks in two runs, so no cached result is reused."""
    world.list("url,key", (world.source("a"), "a.bin"))
    digests = set()
    for run_no in (1, 3):
        base = plan(world.job(), world.state, run_no).chunks
        again = plan(world.job(), world.state, run_no, "repair", returned=[chunk.digest for chunk in base]).chunks
        digests |= {chunk.digest for chunk in again}
        world.state.delete(list(world.state.list("outcomes")))
    assert len(digests) == 2


@pytest.mark.parametrize("damage", ["plan", "plan and place"])
def test_back_to_the_old_place_with_a_damaged_plan(world: World, damage: str) -> None:
    """Copies at another destination do not count, even if the plan that said so is damaged."""
    a = world.source("a")
    world.list("url,key", (a, "a.bin"), (f"file://{world.folder}/src/b", "b.bin"))
    assert world.run(world.job("out")) == {"copied": 1, "failed": 1}
    world.source("b")
    assert world.run(world.job("other"), replan=True) == {"copied": 2}
    world.state.write(PLAN_FILE, b"{")
    if "place" in damage:
        world.state.write(LOCATION_FILE, b"{")
    with pytest.raises(UserError, match="damaged"):
        read_plan(world.state)
    assert world.run(world.job("out"), replan=True) == {"copied": 1, "unchanged": 1}
    assert world.there("out") == {"a.bin": "aaaaa", "b.bin": "bbbbb"}


def test_a_file_and_then_a_folder_of_its_name(world: World) -> None:
    """In a directory the earlier of a file and a folder keeps the name, and the other one collides."""
    others = [(world.source(f"o{n}"), f"o{n}.bin") for n in range(20)]
    x, y = world.source("x"), world.source("y")
    for first, second in ((("x", x), ("x/y", y)), (("z/y", y), ("z", x))):
        world.list("key,url", first, *[(key, url) for url, key in others])
        world.run(world.job())
        world.list("key,url", first, second, *[(key, url) for url, key in others])
        assert world.run(world.job()) == {"copied": 21, "failed": 1}
        assert world.there()[first[0]] == first[1][-1] * 5
        (lost,) = [o for o in latest(world.state).values() if o.key == second[0]]
        assert lost.error_class is ErrorClass.KEY_COLLISION


def test_a_clock_that_steps_back(tmp_path: Path) -> None:
    """A later attempt counts whatever its time is, also after a fold."""
    state = directory_state(tmp_path)
    first = make_outcome(1, Status.FAILED, attempt=1, recorded_at=later(10), error_class=ErrorClass.TIMEOUT)
    second = make_outcome(1, attempt=2, recorded_at=later(10) - timedelta(seconds=5))
    ledger.append_outcomes(state, [first], 1, "a" * 64, 0)
    ledger.append_outcomes(state, [second], 1, "b" * 64, 0)
    assert [o.status for o in latest(state).values()] == [Status.COPIED]
    ledger.compact_ledger(state, 1)
    assert [o.status for o in latest(state).values()] == [Status.COPIED]


def test_waiters_do_not_outwait_a_long_pause() -> None:
    """A pause beyond the patience ends all waits at once, and a shorter one is waited for."""

    async def ask(host: HostLimit) -> None:
        async with host.slot():
            pass

    async def scene() -> None:
        host = Limiter(1, 1, asyncio.get_running_loop().time, max_pause_s=60).host("img.example")
        async with host.slot() as slot:
            queued = asyncio.create_task(ask(host))
            await asyncio.sleep(0)
            slot.overloaded(100_000, "429")
            with pytest.raises(PausedTooLong, match=r"img\.example is paused for another 100,000 s"):
                await queued
        with pytest.raises(PausedTooLong):
            await ask(host)
        other = Limiter(1, 1, asyncio.get_running_loop().time, max_pause_s=60).host("img.example")
        async with other.slot() as slot:
            slot.overloaded(0.01, "429")
        await ask(other)

    asyncio.run(scene())


def test_a_host_that_asks_for_a_day(tmp_path: Path, origin: Origin) -> None:
    """A Retry-After of a day leaves the host's rows pending with the reason, and the run ends."""
    state = directory_state(tmp_path)
    day = Fault(Trouble.RATE_LIMITED, times=1000, seconds=86_400)
    urls = [origin.add(f"/i/{n}.bin", b"%d" % n, fault=day if n == 7 else None) for n in range(20)]
    (tmp_path / "list.csv").write_text("url\n" + "\n".join(urls) + "\n")
    job = make_job(
        manifest=str(tmp_path / "list.csv"), destination=f"file://{tmp_path}/out/", checks="none", concurrency=1,
        source={"allow_private_addresses": ["127.0.0.1"]},
    )  # fmt: skip
    run(job, state, Access(), 1)
    counts = counts_of(state).as_dict()
    assert counts["failed"] == 0
    assert counts["pending"] == 20 - counts["copied"] >= 1
    assert origin.total <= 20
