"""The run's side of its shards, with a stand-in for Prefect: what it submits, takes itself, and makes of each end."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Crashed, Running

from ferry.core import Damaged, Fatal, FerryError
from ferry.state import ChunkRef
from ferry.state.files import DirectoryState
from tasks import prefect_api, work_pools
from tasks.shards import prefect_runs, window
from tasks.shards.files import SETTINGS, End, Kind, ShardFiles
from tasks.shards.window import Shards, sharing_out
from tasks.workers.messages import Beat, Orders, Pauses
from tests.support.helpers import make_job

QUICK = {"least_rows": 1, "per_machine": 1, "look_s": 0.02, "stop_s": 0.1}  # two machines and shards


def ref(number: int, done: int = 0) -> ChunkRef:
    return ChunkRef(f"chunks/{number}", f"{number:064d}", 20, 0, "base", 1, done=done)


class Runtime(SimpleNamespace):
    """What a run's runtime has that its shards use."""

    stopping = paused = False
    stop_reason = ""

    def request_stop(self, reason: str) -> None:
        self.stopping, self.stop_reason = True, self.stop_reason or reason

    def abort(self, error: FerryError) -> None:
        self.request_stop(str(error))


class Site:
    """A run on two machines. Prefect starts no process: the test writes what that of a shard would."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = DirectoryState(folder / "state")
        self.files = ShardFiles(self.state, 7)
        self.submitted: list[tuple[int, int]] = []  # shard and attempt, if its orders were there
        self.goes_on = threading.Event()  # a submission
        self.goes_on.set()
        self.states: dict[UUID, State[Any]] = {}  # of its flow runs
        self.job = make_job(machines=2, state="s3://states/x")
        self.limits: dict[str, Any] = {}
        self.pauses: Pauses = {}
        self.run: Any = SimpleNamespace(
            job=self.job, state=self.state, run_no=7, lease=SimpleNamespace(token="token"),
            runtime=Runtime(progress=SimpleNamespace(add_all=lambda *_: None)),
            pool=SimpleNamespace(machines=[], orders=lambda: Orders(limits=self.limits, pauses=self.pauses)),
            places={}, returned=[], cached=0, incomplete={}, task_runs={}, needs_repair=False, chunk_problems=[],
            errors=[],
        )  # fmt: skip
        self.run.number_chunks = lambda refs: self.run.places.update({one.digest: "1-of-9" for one in refs})
        monkeypatch.setattr(window, "TICK_S", 0.01)
        monkeypatch.setattr(prefect_api, "polling_client", contextlib.nullcontext)
        monkeypatch.setattr(work_pools, "look", lambda *_: None)
        monkeypatch.setattr(prefect_runs, "submit", self._submit)
        monkeypatch.setattr(prefect_runs, "end", lambda client, run, state: self.states.update({run: state}))
        monkeypatch.setattr(prefect_runs, "runs_of", self._runs_of)

    def _submit(self, deployment: UUID, parameters: dict[str, Any], name: str, key: str) -> UUID:
        attempt = parameters["number"], parameters["attempt"]
        assert self.goes_on.wait(10)
        orders = self.files.read_orders()  # as a process that begins at once would find them
        if attempt not in self.submitted and orders is not None and orders.counts(*attempt):
            self.submitted.append(attempt)
        made = uuid4()
        self.states[made] = Running()
        return made

    def _runs_of(self, client: Any, ids: Sequence[UUID]) -> dict[UUID, Any]:
        return {id_: SimpleNamespace(state=self.states[id_]) for id_ in ids}

    @contextlib.contextmanager
    def share(self, *refs: ChunkRef, **settings: Any) -> Iterator[tuple[Sequence[ChunkRef], Shards]]:
        self.state.write(SETTINGS, json.dumps({**QUICK, **settings}).encode())
        deployment: Any = SimpleNamespace(id=uuid4(), work_pool_name="pool")
        with sharing_out(self.run, refs, deployment, logging.getLogger("test")) as (own, shards):
            assert shards is not None
            yield own, shards

    def end_at_prefect(self, state: State[Any]) -> None:
        """End all flow runs that Prefect shows as running."""
        self.states.update({run: state for run, its in self.states.items() if not its.is_final()})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def soon(condition: Callable[[], object], within_s: float = 10.0) -> bool:
    """Returns whether the condition comes true; a machine that is not busy needs a few hundredths of a second."""
    until = time.monotonic() + within_s
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.005)
    return bool(found)


def test_each_chunk_has_one_place(site: Site) -> None:
    """The run begins with chunks that are done; the others are in one shard each, on another machine or with it."""
    refs = [ref(0, done=20), ref(1), ref(2)]
    with site.share(*refs) as (own, shards):
        assert own == [refs[0]]
        assert soon(lambda: site.submitted)
        assert shards.take() == [refs[2]]
        assert shards.take() == ()
        assert site.submitted == [(1, 1)]
        assert shards.is_open
    assert site.run.incomplete == {refs[1].digest: "the run has ended"}


def test_what_is_left_in_the_queue_is_pending(site: Site) -> None:
    """Also if the run stops before any process has taken it."""
    with site.share(ref(1), ref(2)):
        assert soon(lambda: site.submitted)
        site.run.runtime.request_stop("interrupted")
    assert site.run.incomplete == {ref(1).digest: "interrupted", ref(2).digest: "interrupted"}


@pytest.mark.parametrize(
    ("kind", "attempts", "error"),
    [("done", 1, ""), ("left", 4, ""), ("refused", 3, ""), ("machine", 2, "crash 2 without"), ("job", 1, "why")],
)
def test_what_follows_an_end(kind: Kind, attempts: int, error: str, site: Site) -> None:
    """The table of End: who goes on with the shard, how often, and what ends the run."""
    returned = [ref(1).digest] if kind == "done" else []
    with site.share(ref(1), ref(2), most_crashes=2, most_refusals=3):
        for attempt in range(1, 5):
            if soon(lambda attempt=attempt: (1, attempt) in site.submitted, 0.3 if attempt > attempts else 10.0):  # type: ignore[misc]
                site.files.claim(1, attempt)
                site.files.write_beat(1, attempt, 1, Beat(), End(kind, "why", returned))
        assert len([one for one, _ in site.submitted if one == 1]) == attempts
        assert error in "".join(map(str, site.run.errors))
        assert bool(error) is bool(site.run.errors) is site.run.runtime.stopping
    assert site.run.returned == returned


@pytest.mark.parametrize(("state", "is_crash"), [(Crashed(), True), (Cancelled(), False)])
def test_an_end_that_only_prefect_knows(state: State[Any], is_crash: bool, site: Site) -> None:
    """A crash counts, and a cancellation of the shard alone does not: the operator may do that often."""
    with site.share(ref(1), ref(2), most_crashes=1):
        assert soon(lambda: site.submitted)
        site.files.claim(1, 1)
        site.end_at_prefect(state)
        assert soon(lambda: site.run.errors or (1, 2) in site.submitted)
        assert bool(site.run.errors) is is_crash


def test_a_process_that_is_silent(site: Site) -> None:
    """Another one gets the shard, as another attempt, and the first one's does not count any more."""
    with site.share(ref(1), ref(2), silent_s=0.05):
        assert soon(lambda: site.submitted)
        site.files.claim(1, 1)
        assert soon(lambda: (1, 2) in site.submitted)
        orders = site.files.read_orders()
        assert orders is not None
        assert orders.counts(1, 2)
        assert not orders.counts(1, 1)


def test_a_state_that_does_not_answer_the_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run cannot judge others by a silence that is its own: none of them counts as dead when it hears again."""
    with site.share(ref(1), ref(2), silent_s=0.2):
        assert soon(lambda: site.submitted)
        site.files.claim(1, 1)
        assert soon(lambda: [one for one in site.run.pool.machines if one.is_claimed])
        (handle,) = site.run.pool.machines
        names, answers = ShardFiles.names, iter(range(1000))

        def seldom(files: ShardFiles) -> set[str]:
            if next(answers) % 3:
                raise Fatal("the state does not answer")
            return names(files)

        monkeypatch.setattr(ShardFiles, "names", seldom)
        assert not soon(lambda: (1, 2) in site.submitted, 0.5)
        assert handle in site.run.pool.machines


def test_a_shard_that_no_process_begins(site: Site) -> None:
    """The run takes it by its claim, so that a worker that comes late does not; one that came first keeps it."""
    with site.share(ref(1), ref(2), unclaimed_s=0.05, silent_s=60.0) as (_, shards):
        assert soon(lambda: site.submitted)
        assert shards.take() == [ref(2)]
        time.sleep(0.05)
        assert shards.take() == [ref(1)]
        assert not site.files.claim(1, 1)
        assert shards.take() == ()
        assert soon(lambda: [one for one in site.states.values() if one.is_cancelled()])
    assert site.run.incomplete == {}


@pytest.mark.parametrize("hint", ["the work pool `pool` has no online worker", None])
def test_why_no_worker_had_begun_a_shard(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hint: str | None
) -> None:
    """It is said, once, also if the run took the shard before a look was due to say it, and ended at once."""
    monkeypatch.setattr(work_pools, "look", lambda *_: hint)
    with site.share(ref(1), ref(2), unclaimed_s=0.0, look_s=60.0, hint_s=60.0) as (_, shards):
        assert soon(lambda: site.submitted)
        assert soon(lambda: shards.take() == [ref(2)])
        assert soon(lambda: shards.take() == [ref(1)])
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ([f"shard 1 waited, and the run transfers it itself: {hint}"] if hint else [])


def test_a_worker_that_comes_just_before_the_run(site: Site) -> None:
    """The run asks the state, not only its last look."""
    with site.share(ref(1), ref(2), unclaimed_s=0.0, look_s=5.0) as (_, shards):
        assert soon(lambda: site.submitted)
        assert shards.take() == [ref(2)]
        assert site.files.claim(1, 1)
        assert shards.take() == ()


def test_the_run_waits_for_the_look_of_the_process_before(site: Site) -> None:
    """A process that only seems dead stops at its next look; until then no other process may have its rows."""
    with site.share(ref(1), ref(2), look_s=0.3) as (_, shards):
        assert soon(lambda: site.submitted)
        assert shards.take() == [ref(2)]
        site.files.claim(1, 1)
        handles = site.run.pool.machines
        assert soon(lambda: [one for one in handles if one.is_claimed])
        site.run.job = site.job.model_copy(update={"machines": 1})  # so that no other machine takes it
        site.end_at_prefect(Crashed())
        (handle,) = handles
        assert soon(lambda: handle.has_died)
        died = time.monotonic()
        assert soon(shards.take)
        assert time.monotonic() - died > 0.1


@pytest.mark.parametrize(("limits", "shards"), [({}, 2), ({"concurrency": 2}, 1), ({"concurrency": 1}, 0)])
def test_each_machine_needs_a_permit(limits: dict[str, Any], shards: int, site: Site) -> None:
    """No more machines than the lowest limit of concurrency has permits; this run's own machine is one of them."""
    site.run.job, site.limits = site.job.model_copy(update={"machines": 3}), limits
    with site.share(*(ref(number) for number in range(6))):
        assert soon(lambda: len(site.submitted) >= shards)
        soon(lambda: len(site.submitted) > shards, 0.2)
        assert len(site.submitted) == shards


def test_a_shard_that_is_being_submitted(site: Site) -> None:
    """The run does not end before it, although the shard is neither in the queue nor at a process."""
    site.goes_on.clear()
    with site.share(ref(1), ref(2)) as (_, shards):
        assert soon(lambda: site.files.read_orders())
        assert shards.take() == [ref(2)]
        assert shards.is_open
        site.goes_on.set()


def test_the_orders_say_whom_they_count(site: Site) -> None:
    """A process waits for its part of the limits until the run has counted it, so that is news, too."""
    with site.share(ref(1), ref(2)):
        assert soon(lambda: site.submitted)
        site.files.claim(1, 1)
        site.files.write_beat(1, 1, 1, Beat(processes=2))
        assert soon(lambda: (found := site.files.read_orders()) and found.counted == {"1": 2})


def test_the_orders_say_each_pause_once(site: Site) -> None:
    """The seconds that are left change all the time; another pause of the same host is news."""

    def pauses() -> dict[str, Any]:
        orders = site.files.read_orders()
        return dict(orders.orders.pauses) if orders is not None else {}

    with site.share(ref(1), ref(2)):
        site.pauses = {"a.example": (5.0, "why", "9f", 1.0)}
        assert soon(lambda: pauses() == {"a.example": [5.0, "why", "9f", 1.0]})
        site.pauses = {"a.example": (4.0, "why", "9f", 1.0)}
        site.files.write_beat(1, 1, 1, Beat())
        assert not soon(lambda: pauses()["a.example"][0] != 5.0, 0.3)
        site.pauses = {"a.example": (4.0, "why", "9f", 2.0)}
        assert soon(lambda: pauses() == {"a.example": [4.0, "why", "9f", 2.0]})


@pytest.mark.parametrize("began", [False, True])
def test_the_answer_to_a_submission_is_lost(began: bool, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect may have the shard: the run takes it only if no worker has begun it, and no worker begins it then."""
    asked: list[dict[str, Any]] = []

    def submit(deployment: UUID, parameters: dict[str, Any], name: str, key: str) -> UUID:
        if began and not asked:
            assert site.files.claim(1, 1)
        asked.append(parameters)
        raise httpx.ReadTimeout("no answer")

    monkeypatch.setattr(prefect_runs, "submit", submit)
    with site.share(ref(1), ref(2), look_s=5.0) as (_, shards):
        assert soon(lambda: asked)
        taken = iter(lambda: list(shards.take()), None)
        assert next(filter(None, taken)) == [ref(2) if began else ref(1)]
        assert not site.files.claim(1, 1)


def test_a_submission_that_is_repeated(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a lost answer the run asks again for the same attempt, and follows the worker that has begun it."""
    answers = iter([httpx.ReadTimeout("no answer")])

    def submit(*given: Any) -> UUID:
        for error in answers:
            assert site.files.claim(1, 1)
            raise error
        return site._submit(*given)

    monkeypatch.setattr(prefect_runs, "submit", submit)
    with site.share(ref(1), ref(2)) as (_, shards):
        assert soon(lambda: [one for one in site.run.pool.machines if one.is_claimed])
        assert (site.submitted, shards.take()) == ([(1, 1)], [ref(2)])


def test_outcomes_that_cannot_be_read(site: Site) -> None:
    """A damaged file with outcomes of a shard that crashed ends the run, which would wait for it in vain."""
    site.state.write(f"outcomes/000007-{ref(1).digest[:32]}-1.parquet", b"damaged")
    with site.share(ref(1), ref(2)):
        assert soon(lambda: site.submitted)
        site.files.claim(1, 1)
        assert soon(lambda: [one for one in site.run.pool.machines if one.is_claimed])
        site.end_at_prefect(Crashed(message="killed"))
        assert soon(lambda: site.run.errors)
    assert isinstance(site.run.errors[0], Damaged)
