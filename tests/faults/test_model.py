"""The recovery logic against a model of it: plans, outcomes, folds and crashes between any two writes, in any order.

The real planner, ledger and finish run on a state that dies at the write that hypothesis chooses, before or after it.
The model knows of each row what was promised last. Whatever happened, that is what the state says, and a plain plan
takes exactly the rows that are not settled.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ferry.core.records import Outcome, Status
from ferry.reconcile.finish import finish_run
from ferry.reconcile.verify import Verified, note_verified
from ferry.state import ledger
from ferry.state.plan_file import Planned, set_plan_aside
from ferry.transfer.chunk_rows import read_chunk
from tests.faults.amount import book, some
from tests.support import helpers

ROWS = 9
CHUNK_ROWS = 3


class Crash(Exception):
    """The process ends here."""


class DyingState:
    """A state in memory whose writes are atomic, and which dies at one of them."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)
        self.spool_dir = folder / "spool"
        self.spool_dir.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, bytes] = {}
        self._folder = folder
        self._left: int | None = None

    @contextmanager
    def dying(self, writes: int | None) -> Iterator[None]:
        """Dies at the write after ``writes`` halves of one: an odd number dies when it is done."""
        self._left = writes
        try:
            yield
        finally:
            self._left = None

    def _step(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Crash

    def read(self, name: str) -> bytes:
        if name not in self._files:
            raise FileNotFoundError(name)
        return self._files[name]

    def write(self, name: str, data: bytes) -> None:
        self._step()
        self._files[name] = data
        self._step()

    def write_file(self, name: str, path: Path) -> None:
        self.write(name, path.read_bytes())
        path.unlink()

    def create(self, name: str, data: bytes) -> bool:
        if name in self._files:
            return False
        self.write(name, data)
        return True

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        if self._files.get(name) != old:
            return False
        self.write(name, new)
        return True

    def drop(self, name: str, old: bytes, instead: bytes) -> bool:
        return self._files.get(name) == old and self._files.pop(name) is not None

    def list(self, folder: str) -> list[str]:
        return sorted(name for name in self._files if name.startswith(f"{folder}/"))

    def delete(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            self._step()
            self._files.pop(name, None)

    def delete_stale_copies(self) -> None:
        """It keeps none."""

    def local(self, name: str) -> Path:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.read(name))
        return path


@dataclass(frozen=True, slots=True)
class Known:
    """What was promised of a row."""

    status: Status
    retryable: bool = False


COPIED, GONE, BUSY = Known(Status.COPIED), Known(Status.FAILED), Known(Status.FAILED, True)
MISSING = Known(Status.PENDING)
KINDS: dict[Known, dict[str, Any]] = {COPIED: {}, GONE: helpers.FAILED_404, BUSY: helpers.FAILED_500}
TAKEN = (None, BUSY, MISSING)  # by a plain run
DEATHS = st.one_of(st.none(), st.integers(0, 14))


class Recovery(RuleBasedStateMachine):
    """One job's life."""

    lives: ClassVar[int] = 0
    deaths: ClassVar[int] = 0

    @initialize()
    def begin(self) -> None:
        Recovery.lives += 1
        self.folder = Path(tempfile.mkdtemp(prefix="ferry-model-"))
        self.state: Any = DyingState(self.folder / "state")
        self.listed = set(range(ROWS - 2))
        self.stayed = set(self.listed)  # in the list now, and ever since a plan stood last
        self.asked: set[str] = set()  # lasting failures that a run was to try again, perhaps, and did not
        self._write_list()
        self.known: dict[str, Known] = {}
        self.ids: dict[int, str] = {}
        self.planned: Planned | None = None
        self.run_no = 0
        self.parts = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def _write_list(self) -> None:
        listed = helpers.write_list(self.folder / "list.csv", helpers.urls(*sorted(self.listed)))
        self.job = helpers.make_job(
            manifest=str(listed), destination=f"file://{self.folder}/out/", chunk_rows=CHUNK_ROWS
        )

    def _survives(self, work: Callable[[], Any], death: int | None) -> Any:
        """The answer of a piece of a run, or None when the process died in it: then the run is over."""
        try:
            with self.state.dying(death):
                return work()
        except Crash:
            Recovery.deaths += 1
            self.planned = None
            return None

    def _todo(self, planned: Planned) -> dict[str, Any]:
        """Rows that the plan's chunks would move, with their chunk."""
        todo: dict[str, Any] = {}
        for ref in planned.chunks:
            if ref.done < ref.rows:
                table, hints = read_chunk(self.state, ref)
                for row_id, source in zip(
                    table.column("row_id").to_pylist(), table.column("source").to_pylist(), strict=True
                ):
                    self.ids[int(source.rpartition("/")[2].removesuffix(".jpg"))] = row_id
                    if row_id not in hints.done:
                        assert row_id not in todo, "a row in two chunks that would both move it"
                        todo[row_id] = ref
        return todo

    # --- a run

    @rule(mode=st.sampled_from(["plain", "plain", "retry"]), death=DEATHS)
    def plan(self, mode: Any, death: int | None) -> None:
        """A run begins; a plan that stands takes what it should, and nothing else."""
        self.run_no = ledger.last_run_no(self.state) + 1
        self.parts = 0
        if mode == "retry":
            self.asked |= {row_id for row_id, known in self.known.items() if known == GONE}
        self.planned = self._survives(lambda: helpers.plan(self.job, self.state, self.run_no, mode), death)
        if self.planned is None:
            return
        todo = self._todo(self.planned)
        listed = {self.ids[n] for n in self.listed if n in self.ids}
        stayed = {self.ids[n] for n in self.stayed if n in self.ids}
        if mode == "plain":
            unsettled = {row_id for row_id in listed if self.known.get(row_id) in TAKEN}
            assert unsettled <= set(todo) & listed <= unsettled | self.asked
            assert len(listed) == len(self.listed), "a row that no plan has ever shown"
            self.stayed = set(self.listed)
        else:  # of the list that the state has, and of another one only where it has none
            failed = {row_id for row_id, known in self.known.items() if known in (GONE, BUSY)}
            assert stayed & failed <= set(todo) <= failed

    @precondition(lambda self: self.planned is not None)
    @rule(death=DEATHS)
    def one_more_pass(self, death: int | None) -> None:
        """After the chunks: retryable failures of this run, and rows whose chunk returned without them: of a run that
        takes lasting failures again these as well."""
        assert self.planned is not None
        returned = [ref.digest for ref in self.planned.chunks]
        done_now = {out.row_id for out in helpers.latest(self.state).values() if out.run_no == self.run_no}
        asked = set(self._todo(self.planned)) - done_now
        again = self._survives(
            lambda: helpers.plan(self.job, self.state, self.run_no, "pass", returned=returned), death
        )
        if again is not None:
            todo = set(self._todo(again))
            assert not {row for row in todo if self.known.get(row) == COPIED}
            assert {row for row in todo if self.known.get(row) == GONE} <= asked
            self.planned = again

    @precondition(lambda self: self.planned is not None and self.planned.chunks)
    @rule(data=st.data(), kinds=st.lists(st.sampled_from([COPIED, COPIED, GONE, BUSY]), min_size=1, max_size=4),
          death=DEATHS)  # fmt: skip
    def settle(self, data: st.DataObject, kinds: list[Known], death: int | None) -> None:
        """Some rows of the plan come to an end; what was appended is promised."""
        assert self.planned is not None
        todo = self._todo(self.planned)
        done_now = {out.row_id for out in helpers.latest(self.state).values() if out.run_no == self.run_no}
        open_rows = sorted(row for row in todo if row not in done_now or self.known.get(row) == BUSY)
        if not open_rows:
            return
        chosen = data.draw(st.lists(st.sampled_from(open_rows), min_size=1, max_size=len(kinds), unique=True))
        ref = todo[chosen[0]]
        rows = {row.row_id: row for row in helpers.chunk_rows(self.state, ref) if row.row_id in chosen}
        outcomes = [
            helpers.make_outcome(
                row_id, kind.status, key=row.key, attempt=row.attempt, reason=row.reason, run_no=self.run_no,
                chunk=ref.digest, recorded_at=helpers.later(ledger_time()),
                settings_digest=self.job.settings_digest(), **KINDS[kind],
            )
            for (row_id, row), kind in zip(rows.items(), kinds, strict=False)
        ]  # fmt: skip
        self.parts += 1
        name = self._survives(
            lambda: ledger.append_outcomes(self.state, outcomes, self.run_no, ref.digest, self.parts), death
        )
        self.asked -= {outcome.row_id for outcome in (outcomes if name else self._learn(outcomes))}
        if name:
            self.known |= {outcome.row_id: _known(outcome) for outcome in outcomes}

    def _learn(self, outcomes: list[Outcome]) -> list[Outcome]:
        """An append that died may have happened: all of it or nothing. Those that it left."""
        found = helpers.latest(self.state)
        there = [out for out in outcomes if found.get(out.row_id) == out]
        assert len(there) in (0, len(outcomes)), "an append that happened in part"
        self.known |= {out.row_id: _known(out) for out in there}
        return there

    @precondition(lambda self: self.run_no > 0)
    @rule(death=DEATHS)
    def fold(self, death: int | None) -> None:
        self._survives(lambda: ledger.compact_ledger(self.state, self.run_no), death)

    @precondition(lambda self: self.planned is not None)
    @rule(death=DEATHS)
    def end(self, death: int | None) -> None:
        """The run ends; its accounts are the model's."""
        answer = self._survives(lambda: finish_run(self.job, self.state, self.run_no), death)
        self.planned = None
        if answer is None:
            return
        states = [self.known.get(self.ids[n]) for n in self.listed if n in self.ids]
        counts = answer["counts"]
        if len(states) == counts["planned"]:  # the list may have changed since the plan
            for status in (Status.COPIED, Status.FAILED):
                assert counts[status] == sum(known is not None and known.status is status for known in states)

    # --- what happens between runs

    @precondition(lambda self: self.known and self.planned is None)
    @rule(data=st.data(), death=DEATHS)
    def verify(self, data: st.DataObject, death: int | None) -> None:
        """`ferry verify` finds an object gone."""
        copied = sorted(row for row, known in self.known.items() if known == COPIED)
        if not copied:
            return
        row_id = data.draw(st.sampled_from(copied))
        run_no = ledger.last_run_no(self.state) + 1
        before = helpers.latest(self.state)[row_id]
        gone = before._replace(
            status=Status.PENDING, run_no=run_no, chunk="", retryable=True, recorded_at=helpers.later(ledger_time())
        )
        self._survives(partial(note_verified, self.state, Verified(1, 0, 1, 0, [gone]), run_no, 0), death)
        if helpers.latest(self.state)[row_id].status is Status.PENDING:
            self.known[row_id] = MISSING

    @precondition(lambda self: self.planned is None)
    @rule(n=st.integers(0, ROWS - 1))
    def change_list(self, n: int) -> None:
        """A row comes or goes; one always stays."""
        self.listed = (self.listed ^ {n}) or {n}
        self.stayed &= self.listed
        self._write_list()

    @precondition(lambda self: self.planned is None)
    @rule(death=DEATHS)
    def replan(self, death: int | None) -> None:
        self._survives(partial(set_plan_aside, self.state), death)

    # --- what always holds

    @invariant()
    def the_state_says_what_was_promised(self) -> None:
        if not hasattr(self, "state"):
            return
        found = helpers.latest(self.state)
        told = {
            row_id: Known(out.status, out.retryable and out.status is Status.FAILED) for row_id, out in found.items()
        }
        assert told == self.known


def _known(outcome: Outcome) -> Known:
    return Known(outcome.status, outcome.retryable and outcome.status is Status.FAILED)


_clock = 0


def ledger_time() -> float:
    """Seconds, one more each time."""
    global _clock
    _clock += 1
    return float(_clock)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it takes as long as the machine gives it
def test_any_order_of_work_and_crashes() -> None:
    """Rules in any order, deaths at any write: the invariant and the rules' own claims hold."""
    Recovery.lives = Recovery.deaths = 0
    lives = some(5, 150)
    Recovery.TestCase.settings = settings(
        max_examples=lives, stateful_step_count=some(12, 25), deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    Recovery.TestCase().runTest()
    assert Recovery.deaths > lives / 4
    book("crash between any two writes, in a model of the recovery (lives of a job)", Recovery.lives)
    book("crash between any two writes, in a model of the recovery (deaths)", Recovery.deaths)
