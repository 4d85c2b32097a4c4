"""Files of the state deleted, cut, or with one bit flipped: detected, named, and rebuilt where the rest allows it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from ferry.core.errors import Damaged, FerryError, UserError
from ferry.core.records import Status
from ferry.reconcile.finish import finish_run
from ferry.state import checksums, lease, ledger
from ferry.state.files import DirectoryState
from ferry.state.plan_file import set_plan_aside
from ferry.transfer.chunk_rows import read_chunk
from tests.faults.amount import some
from tests.support import helpers

pytestmark = pytest.mark.matrix

How = Literal["deleted", "cut", "flipped"]
ROWS = 40
SETTLED = 27  # by the first run: chunk 1 and 2 in the ledger, a part of chunk 3 in outcomes


class World:
    """A state after one run that ended and one that was killed, kept as a copy for each experiment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = helpers.write_list(folder / "list.csv", helpers.urls(*range(ROWS)))
        self.job = helpers.make_job(manifest=str(listed), destination=f"file://{folder}/out/", chunk_rows=10)
        state = DirectoryState(folder / "whole")
        planned = helpers.plan(self.job, state, 1)
        for ref in planned.chunks[:2]:
            helpers.settle(state, ref, 1)
        finish_run(self.job, state, 1)
        planned = helpers.plan(self.job, state, 2)
        helpers.settle(state, planned.chunks[2], 2, only=SETTLED - 20)
        helpers.plan(self.job, state, 3)  # which has hints for chunk 3
        self.whole = state
        self.settled = {row_id for row_id, out in helpers.latest(state).items() if out.status is Status.COPIED}
        assert len(self.settled) == SETTLED
        self._copies = 0

    def names(self, start: str) -> list[str]:
        found = [name for name in self.whole.list("") if name.startswith(start)]
        assert found, f"the state has no {start}"
        return found

    def damaged(self, name: str, how: How, rng: random.Random) -> DirectoryState:
        """A copy of the state with one file damaged."""
        self._copies += 1
        root = self.folder / f"copy-{self._copies}"
        shutil.copytree(self.whole.root, root)
        path = root / name
        data = bytearray(path.read_bytes())
        if how == "deleted":
            path.unlink()
        elif how == "cut":
            path.write_bytes(data[: rng.randrange(len(data))])
        else:
            at = rng.randrange(len(data) * 8)
            data[at // 8] ^= 1 << at % 8
            path.write_bytes(data)
        return DirectoryState(root)

    def goes_on(self, state: DirectoryState, *, again: int = 0) -> list[str]:
        """One more run: each row in one state at its end; returns the plan's notes.

        ``again``: so many settled rows are looked at again, no others are.
        """
        run_no = ledger.last_run_no(state) + 1
        planned = helpers.plan(self.job, state, run_no)
        todo: set[str] = set()
        for ref in planned.chunks:
            if ref.done < ref.rows:
                table, hints = read_chunk(state, ref)
                todo |= set(table.column("row_id").to_pylist()) - hints.done
                helpers.settle(state, ref, run_no)
        assert len(todo & self.settled) == again
        assert len(todo - self.settled) == ROWS - SETTLED
        counts = finish_run(self.job, state, run_no)["counts"]
        assert (counts["planned"], counts["copied"]) == (ROWS, ROWS)
        return planned.notes


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


HOWS: tuple[How, ...] = ("deleted", "cut", "flipped")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("start", "note"),
    [
        ("plan/plan.json", "planned again from the manifest and the ledger"),
        ("plan/manifest-", "made again from the manifest"),
        ("chunks/", "go to new chunks"),
        ("plan/location.json", None),
        ("plan/hints/", None),
        ("reports/", None),
    ],
)
def test_what_is_made_anew(how: How, start: str, note: str | None, world: World, tried: Callable[..., None]) -> None:
    """The next run says so where it matters, moves what was left, and nothing that was recorded."""
    rng = random.Random(f"{how} {start}")
    for name in world.names(start):
        for _ in range(some(1, 25) if how != "deleted" else 1):
            state = world.damaged(name, how, rng)
            notes = world.goes_on(state)
            if note is not None:
                assert any(note in line for line in notes), f"{name} {how}: {notes}"
            tried(f"state file {how}: {start.rstrip('-/')}")


@pytest.mark.parametrize("how", HOWS)
def test_a_chunk_that_is_damaged_after_the_plan(how: How, world: World) -> None:
    """A run that meets it moves none of its rows by guess: it names the file, and the next run cuts it anew."""
    planned = helpers.plan(world.job, world.whole, 4)
    ref = planned.chunks[3]
    state = world.damaged(ref.uri, how, random.Random(how))
    with pytest.raises(Damaged, match=ref.uri):
        read_chunk(state, ref)
    world.goes_on(state)


@pytest.mark.parametrize("how", ["cut", "flipped"])
@pytest.mark.parametrize("folder", ["ledger", "outcomes"])
def test_what_only_the_ledger_knows_is_refused(how: How, folder: str, world: World, tried: Callable[..., None]) -> None:
    """Every reader names the file and what to do. With --replan the rows that it alone knew are looked at again, those
    of other files are not."""
    rng = random.Random(f"{how} {folder}")
    lost = {"ledger": 20, "outcomes": SETTLED - 20}[folder]
    for name in world.names(f"{folder}/"):
        for _ in range(some(2, 60)):
            state = world.damaged(name, how, rng)
            for look in (lambda s: helpers.plan(world.job, s, 4), helpers.counts_of, helpers.latest):
                with pytest.raises(Damaged, match=rf"{name} is damaged.*--replan"):
                    look(state)
            set_plan_aside(state)
            assert ledger.put_ledger_aside(state) == [name]
            world.goes_on(state, again=lost)
            assert state.list("damaged") == [f"damaged/{Path(name).name}"]
            tried(f"state file {how}: {folder}")


def test_a_lost_ledger_is_noticed(world: World, tried: Callable[..., None]) -> None:
    """The last report names the folded ledger: when that is gone nothing is planned as if it had never been done."""
    (name,) = world.names("ledger/")
    state = world.damaged(name, "deleted", random.Random(1))
    for look in (lambda s: helpers.plan(world.job, s, 4), helpers.counts_of):
        with pytest.raises(Damaged, match=rf"{name} is missing.*--replan"):
            look(state)
    set_plan_aside(state)
    assert ledger.put_ledger_aside(state) == [name]
    world.goes_on(state, again=20)
    tried("state file deleted: ledger")


def test_an_outcomes_file_that_is_gone(world: World, tried: Callable[..., None]) -> None:
    """Nothing names it: its rows are looked at again, which costs time, and loses nothing."""
    for name in world.names("outcomes/"):
        world.goes_on(world.damaged(name, "deleted", random.Random(1)), again=SETTLED - 20)
        tried("state file deleted: outcomes")


def test_plan_and_place_both_gone(world: World) -> None:
    """Nobody knows where the objects went: refused, and with --replan everything is looked at again."""
    state = world.damaged("plan/plan.json", "deleted", random.Random(1))
    state.delete(["plan/location.json"])
    with pytest.raises(UserError, match="--replan"):
        helpers.plan(world.job, state, 4)
    set_plan_aside(state)
    world.goes_on(state, again=SETTLED)


def test_every_bit_of_the_lease(tmp_path: Path) -> None:
    """A flipped bit in lease.json is another holder or an error of Ferry's own kind, never a traceback."""
    raw = lease.this_process("nightly", 1.0).encode()
    for at in range(len(raw) * 8):
        data = bytearray(raw)
        data[at // 8] ^= 1 << at % 8
        try:
            lease.decode(bytes(data))
        except FerryError:
            continue


def test_a_part_that_is_damaged_while_its_chunk_runs(world: World) -> None:
    """Before parts are merged, and so deleted, each is read by its digest."""
    state = world.damaged(world.names("outcomes/")[0], "flipped", random.Random(3))
    with pytest.raises(Damaged):
        checksums.verified_path(state, world.names("outcomes/")[0], ledger.DAMAGE_ADVICE)
