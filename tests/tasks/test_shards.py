"""Shards without Prefect: how a plan is cut, the files of the protocol, and what a shard's process obeys."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect.client.schemas.objects import State as PrefectState
from prefect.states import Completed, Running

from ferry.core.errors import Fatal, MachineFatal, Stopped, UserError, disk_error
from ferry.core.progress import Progress
from ferry.state import ChunkRef, encode_checked_json, lease
from ferry.state.bucket import open_state
from ferry.state.files import DirectoryState, State
from flows.cli.local_run import refuse_unreachable_server
from tasks import prefect_api
from tasks.shards import files as shard_files
from tasks.shards import prefect_runs
from tasks.shards.cut import cut
from tasks.shards.files import End, Settings, ShardFiles, ShardPlan, SharedOrders, code_digest, read_settings
from tasks.shards.handle import Shard, ShardHandle
from tasks.shards.member import OVER, Member
from tasks.shards.prefect_runs import check_clock, choose
from tasks.workers.messages import Beat, Orders, describe_error, error_of
from tests.servers.odd_s3 import Fault, OddS3
from tests.support.helpers import access, make_job


def ref(number: int, rows: int = 20, done: int = 0) -> ChunkRef:
    return ChunkRef(f"chunks/{number}", f"{number:064d}", rows, 0, "base", 1, done=done)


@pytest.mark.parametrize(
    ("chunks", "machines", "least", "sizes"),
    [
        (10, 1, 1, [10]),
        (10, 3, 200, [10]),  # 200 rows are one shard
        (10, 3, 100, [5, 5]),
        (10, 3, 40, [2, 2, 2, 2, 2]),
        (100, 2, 1, [13, 12, 13, 12, 13, 12, 13, 12]),  # four for each machine
        (3, 10, 1, [1, 1, 1]),  # a chunk is never cut
        (0, 3, 1, []),
    ],
)
def test_how_a_plan_is_cut(chunks: int, machines: int, least: int, sizes: list[int]) -> None:
    """The table of the function; each chunk has 20 rows to do."""
    parts = cut([ref(number) for number in range(chunks)], machines, least, 4)
    assert sorted(map(len, parts)) == sorted(sizes)
    assert [one for part in parts for one in part] == [ref(number) for number in range(chunks)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), max_size=40),
    machines=st.integers(1, 9),
    least=st.integers(1, 100),
)
def test_a_cut_loses_no_chunk(rows: list[tuple[int, int]], machines: int, least: int) -> None:
    """All chunks with rows to do, in their order, none twice, and no empty part."""
    refs = [ref(number, size, min(size, done)) for number, (size, done) in enumerate(rows)]
    parts = cut(refs, machines, least, 4)
    assert [one for part in parts for one in part] == [one for one in refs if one.done < one.rows]
    assert all(parts)
    assert len(parts) <= max(1, machines * 4)


@pytest.fixture(params=["directory", "bucket with opaque ETags"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    if request.param == "directory":
        yield DirectoryState(tmp_path / "state")
        return
    with OddS3(etags="opaque") as server:
        server.make_bucket("state")
        yield open_state("s3://state/some/job", access(server), tmp_path / "cache")


@pytest.fixture
def files(state: State) -> ShardFiles:
    return ShardFiles(state, 7)


def test_one_process_has_an_attempt(files: ShardFiles) -> None:
    """The one that creates the claim first. The next attempt is another one."""
    assert files.claim(1, 1)
    assert not files.claim(1, 1)
    assert files.claim(1, 2)
    assert files.names() == {"1-1.claim", "1-2.claim"}


def test_a_claim_whose_answer_was_lost(tmp_path: Path) -> None:
    """It is repeated, and counts: the file is this process's own. Another process still does not get it."""
    with OddS3() as server:
        server.make_bucket("state")
        mine, theirs = (
            ShardFiles(open_state("s3://state/some/job", access(server), tmp_path / name), 7) for name in ("a", "b")
        )
        server.faults.append(Fault("lost answer", ("PutObject",), times=1))
        assert mine.claim(1, 1)
        assert not theirs.claim(1, 1)


def test_a_store_without_conditions_holds_no_shards(tmp_path: Path) -> None:
    """Two processes could have one attempt. Such a store holds no state at all."""
    with OddS3(conditions="ignored") as server:
        server.make_bucket("state")
        state = open_state("s3://state/some/job", access(server), tmp_path)
        with pytest.raises(UserError, match="cannot hold a state"), lease.hold_lease(state, "run"):
            raise AssertionError


def test_the_files_are_read_as_they_were_written(files: ShardFiles, state: State) -> None:
    """And those of earlier runs are deleted, but not the settings."""
    plan = ShardPlan([ref(1), ref(2)], 3, 9, "code")
    files.write_plan(1, plan)
    assert files.read_plan(1, "code") == plan
    shared = SharedOrders(Orders(3, "stop", True, {}, {"a": (1.5, "why", "9f", 7.5)}), {"1": 2}, {"1": 1})
    files.write_orders(shared)
    found = files.read_orders()
    assert found is not None
    assert found.orders.share == 3
    assert found.counts(1, 2)
    assert not found.counts(1, 1)
    assert not found.counts(2, 1)
    end = End("done", "", ["a"], 1, {"b": "why"}, {"a": "id"}, True, [["a", "b", "c", "d"]])
    files.write_beat(1, 2, 4, Beat({"copied": 3}), end)
    assert files.read_beat(1, 2) == (4, Beat({"copied": 3}), end)
    state.write(shard_files.SETTINGS, b'{"look_s": 0.5}')
    ShardFiles(state, 8).delete_earlier()
    assert state.list("shards") == ["shards/settings.json"]
    assert files.read_orders() is None
    assert read_settings(state) == Settings(look_s=0.5)


def test_a_dead_shard_is_silent_before_its_process_may_write_again() -> None:
    """So that a shard that is only cut off has stopped by itself when another process takes its rows."""
    assert Settings().look_s < Settings().fresh_s < Settings().silent_s


def test_crashes_with_new_rows_in_between_do_not_add_up() -> None:
    """Spot machines may take a shard's process away many times; one that gets nowhere ends the run."""
    shard = Shard(1, [ref(1)])
    counted = []
    for recorded in (0, 5, 5, 9, 9, 9):
        shard.count_crash(recorded)
        counted.append(shard.crashes)
    assert counted == [1, 1, 2, 1, 2, 3]


def handle(state: State, files: ShardFiles) -> tuple[ShardHandle, Progress]:
    runtime: Any = SimpleNamespace(progress=Progress())
    return ShardHandle(runtime, Shard(1, [ref(1)]), None), runtime.progress  # type: ignore[arg-type]


def test_the_run_counts_what_a_shard_says(state: State, files: ShardFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats add up; a process without a new beat is silent from when its claim was seen."""
    now = 100.0
    monkeypatch.setattr("tasks.shards.handle.time.monotonic", lambda: now)
    made, progress = handle(state, files)
    progress.start(50)
    assert made.look(files, files.names()) == 0.0
    assert not made.is_claimed
    files.claim(1, 1)
    made.look(files, files.names())
    assert made.is_claimed
    assert made.processes == 0
    files.write_beat(1, 1, 1, Beat({"copied": 3}, bytes=30, processes=2))
    for number, at in enumerate((101.0, 104.0, 107.0, 110.0)):
        now = at
        assert made.look(files, files.names()) == 3.0 * number
    assert made.processes == 2
    files.write_beat(1, 1, 2, Beat({"copied": 4, "failed": 1}, {"timeout": 1}, 40))
    assert made.look(files, files.names()) == 0.0
    assert progress.snapshot().statuses == {"copied": 4, "failed": 1}
    assert progress.snapshot().bytes == 40
    assert progress.retryable == 1
    made.count_again({"a": ("copied", None), "b": ("failed", "not_found")})
    shown = progress.snapshot()
    assert (shown.done, shown.failed, progress.retryable) == (2, 1, 0)


def test_what_two_lost_processes_have_recorded_counts_once(state: State, files: ShardFiles) -> None:
    """The second one goes on after the rows of the first, so that its own count has none of these."""
    one, progress = handle(state, files)
    progress.start(50)
    one.take(Beat({"copied": 9}))
    one.count_again({"a": ("copied", None), "b": ("failed", "timeout")})
    other = ShardHandle(one._runtime, one.shard, None)  # type: ignore[arg-type]
    other.take(Beat({"copied": 5}))
    other.count_again({"a": ("copied", None), "b": ("copied", None), "c": ("failed", "not_found")})
    shown = progress.snapshot()
    assert (shown.done, shown.failed, progress.retryable, shown.classes["not_found"]) == (3, 1, 0, 1)


def join(state: State, token: str, attempt: int = 1) -> Member:
    return Member(make_job(), state, 7, token, 1, attempt)


def order(files: ShardFiles, **orders: Any) -> None:
    files.write_orders(SharedOrders(Orders(**orders), {"1": 1}, {}))


@pytest.mark.parametrize(
    "change",
    [
        lambda state, files: None,  # no orders: a later run has tidied up
        lambda state, files: order(files, stop="interrupted"),
        lambda state, files: files.write_orders(SharedOrders(Orders(), {"1": 2}, {})),
        lambda state, files: files.write_orders(SharedOrders(Orders(), {}, {})),
    ],
)
def test_an_attempt_that_does_not_count(change: Callable[[Any, Any], None], state: State, files: ShardFiles) -> None:
    """Its process begins nothing."""
    with lease.hold_lease(state, "run") as held:
        change(state, files)
        with pytest.raises(Stopped):
            join(state, held.token)


def test_a_shard_of_a_run_that_is_over(state: State, files: ShardFiles) -> None:
    """Another run holds the lease, or none does."""
    with lease.hold_lease(state, "run") as held:
        order(files)
        assert join(state, held.token).seen.held
        with pytest.raises(Stopped):
            join(state, "another token")
    with pytest.raises(Stopped):
        join(state, held.token)


def test_what_counts_as_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that differs, has another name or is missing, in each of the packages that decide about a row."""
    monkeypatch.setattr(shard_files, "ROOT", tmp_path)
    names = [f"{top}/{name}.py" for top in ("ferry", "flows", "tasks") for name in ("a", "deep/b")]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    digest = code_digest.__wrapped__
    found = {digest()}
    for path in map(tmp_path.joinpath, names):
        path.write_text("2")
        found.add(digest())
        path.rename(path.with_suffix(".other.py"))
        found.add(digest())
        path.with_suffix(".other.py").unlink()
        found.add(digest())
        path.write_text("1")
    assert len(found) == 1 + 3 * len(names)
    path = tmp_path / "docs" / "c.py"
    path.parent.mkdir()
    path.write_text("1")
    assert digest() in found


def test_other_code_is_refused(state: State, files: ShardFiles) -> None:
    """Before the claim, so that another process may take the shard."""
    with lease.hold_lease(state, "run") as held:
        order(files)
        files.write_plan(1, ShardPlan([ref(1)], 1, 1, "0.0.1 0123456789abcdef"))
        with pytest.raises(UserError, match=r"0\.0\.1 0123456789abcdef. Install the same version"):
            join(state, held.token).claim()
        assert not files.names() & {"1-1.claim"}
        later = {"refs": [{"field": "of a later version"}], "first": 1, "total": 1, "code": "0.2.0 0", "more": 1}
        state.write(f"{files.folder}/1.json", encode_checked_json(later))
        with pytest.raises(UserError, match=r"0\.2\.0 0. Install the same version"):
            join(state, held.token).claim()
        files.write_plan(1, ShardPlan([ref(1)], 1, 1, code_digest()))
        assert join(state, held.token).claim().refs == [ref(1)]
        with pytest.raises(Stopped):
            join(state, held.token).claim()


def test_limits_and_processes_are_those_of_the_orders(state: State, files: ShardFiles) -> None:
    """A shard divides by all processes of the run; its own are counted once, before and after the run knows them."""
    with lease.hold_lease(state, "run") as held:
        limits = make_job(limits={"requests_per_s": 5}).limits.model_dump(mode="json")
        order(files, share=3, limits=limits)
        member = join(state, held.token)
        assert member.elsewhere() == 3
        files.write_orders(SharedOrders(Orders(5, limits=limits), {"1": 1}, {"1": 2}))
        member.seen.look()
        assert member.elsewhere() == 3
        assert member.limits.requests_per_s is None
        assert member.update() == []
        assert member.limits.requests_per_s == 5


def test_errors_of_a_machine() -> None:
    """They are told apart from errors of the job, also through a pipe."""
    full = disk_error(OSError(28, "full"), "spool")
    assert isinstance(full, MachineFatal)
    for error, kind in ((full, MachineFatal), (Fatal("no bucket"), Fatal)):
        found = error_of(json.loads(json.dumps(describe_error(error))), "c")
        assert type(found) is kind
        assert str(found) == str(error)


@pytest.mark.parametrize(
    ("known", "pool", "chosen"),
    [
        ([("job", "a"), ("other", "b")], "b", "job"),
        ([("x", "a"), ("y", "b")], "b", "y"),
        ([("x", "a")], None, "x"),
        ([], None, "has no deployment of the flow `shard`. `ferry deploy` creates"),
        ([("x", "a")], "b", "has no deployment of the flow `shard` in the work pool `b`."),
        ([("x", "b"), ("y", "b")], "b", "`b`: shard/x, shard/y. Name one of them like the job, `job`"),
    ],
)
def test_which_deployment(known: list[tuple[str, str]], pool: str | None, chosen: str) -> None:
    """The table of the function."""
    given = [(name, name, work_pool) for name, work_pool in known]
    if chosen in dict(known):
        assert choose(given, "job", pool) == chosen
    else:
        with pytest.raises(UserError) as error:
            choose(given, "job", pool)
        assert chosen in str(error.value)


def test_the_local_server_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other machines do not reach it; a job on one machine, and any other server, is good."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    several = make_job(machines=3, state="s3://b/ferry", destination="s3://b/p/")
    refuse_unreachable_server(make_job())
    with pytest.raises(UserError, match="machines: 3 needs a Prefect server that the other machines reach"):
        refuse_unreachable_server(several)
    monkeypatch.setenv("PREFECT_API_URL", "http://server:4200/api")
    refuse_unreachable_server(several)


def prefect_at(*headers: tuple[str, str], status: int = 200) -> Any:
    """A client of a Prefect server whose answers have these headers."""

    def request(method: str, path: str) -> httpx.Response:
        answer = httpx.Response(status, headers=headers, request=httpx.Request(method, f"http://127.0.0.1{path}"))
        return answer.raise_for_status()

    return SimpleNamespace(request=request)


@pytest.mark.parametrize(("ahead_min", "words"), [(6, "6 minutes ahead of"), (-90, "90 minutes behind")])
@pytest.mark.parametrize("status", [200, 404])
def test_a_clock_that_is_far_off(ahead_min: int, words: str, status: int) -> None:
    """It is refused before anything moves: workers begin shards by their own clocks."""
    date = format_datetime(datetime.now(UTC) - timedelta(minutes=ahead_min), usegmt=True)
    with pytest.raises(UserError, match=f"{words} that of the Prefect server"):
        check_clock(prefect_at(("Date", date), status=status))


def test_clocks_that_are_near_enough() -> None:
    """Four minutes are allowed, and so is an answer without a date."""
    check_clock(prefect_at(("Date", format_datetime(datetime.now(UTC) - timedelta(minutes=4), usegmt=True))))
    check_clock(prefect_at())
    check_clock(prefect_at(("Date", "soon")))


def a_run(errors: list[Any] | None = None) -> Any:
    """What a member uses of the run in its process; it has `stopped` and `waits`."""
    made: Any = SimpleNamespace(
        errors=errors or [], returned=["a"], cached=0, incomplete={}, task_runs={}, needs_repair=False,
        chunk_problems=[], stopped=[], waits=[], pool=SimpleNamespace(workers=[], elsewhere=lambda: 0),
    )  # fmt: skip
    made.stop = made.stopped.append
    made.runtime = SimpleNamespace(request_stop=made.stopped.append, pause=made.waits.append)
    return made


def test_an_attempt_that_is_over_stops_its_run(
    state: State, files: ShardFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its next look, once the orders name another attempt; it says nothing more, since another process may now."""
    monkeypatch.setattr(Beat, "of", lambda *_: Beat())
    with lease.hold_lease(state, "run") as held:
        order(files)
        member, run = join(state, held.token), a_run()
        with member.serving(lambda: ""):
            while "1-1.beat" not in files.names():  # the next one comes after seconds
                time.sleep(0.01)
            member.attach(run)
            assert run.stopped == []
            files.write_orders(SharedOrders(Orders(), {"1": 2}, {}))
            member.seen.look()
            member.attach(run)
        assert run.stopped == [OVER]
        assert files.read_beat(1, 1)[0] == 1


@pytest.mark.parametrize(
    ("limits", "counted", "waits"),
    [({}, {}, False), ({"requests_per_s": 5}, {}, True), ({"requests_per_s": 5}, {"1": 1}, False)],
)
def test_a_shard_waits_for_its_part(
    limits: dict[str, Any], counted: dict[str, int], waits: bool, state: State, files: ShardFiles
) -> None:
    """Until the run has counted its process, the others use the limits whole; without limits it begins at once."""
    with lease.hold_lease(state, "run") as held:
        given = make_job(limits=limits).limits.model_dump(mode="json")
        files.write_orders(SharedOrders(Orders(2, limits=given), {"1": 1}, counted))
        run = a_run()
        join(state, held.token).attach(run)
        assert run.waits == [waits]


@pytest.mark.parametrize(
    ("errors", "raised", "left", "stop", "kind"),
    [
        ([], None, "", "", "done"),
        ([], None, "was to leave", "", "left"),
        ([], None, "was to leave", "interrupted", "done"),  # the run is to end, not this process alone
        ([Fatal("no bucket")], None, "", "", "job"),
        ([MachineFatal("disk full")], None, "", "", "machine"),
        ([], OSError("a bug"), "", "", "machine"),
    ],
)
def test_how_an_attempt_says_that_it_ended(
    errors: list[Any], raised: Exception | None, left: str, stop: str, kind: str, files: ShardFiles, state: State,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The table of End: what the run makes of it depends on the kind."""
    monkeypatch.setattr(Beat, "of", lambda *_: Beat())
    with lease.hold_lease(state, "run") as held:
        order(files)
        member = join(state, held.token)
        with contextlib.suppress(OSError), member.serving(lambda: left):
            member.attach(a_run(errors))
            order(files, stop=stop)
            member.seen.look()
            if raised:
                raise raised
        end = files.read_beat(1, 1)[2]
        assert end is not None
        assert (end.kind, end.returned) == (kind, ["a"])


@pytest.mark.parametrize(("raised", "kind"), [(UserError("no credentials"), "refused"), (Fatal("disk"), "machine")])
def test_a_machine_that_cannot_open_a_shard(raised: Exception, kind: str, state: State, files: ShardFiles) -> None:
    """What the user can mend on that machine does not count as its crash."""
    with lease.hold_lease(state, "run") as held:
        order(files)
        with contextlib.suppress(UserError, Fatal), join(state, held.token).serving(lambda: ""):
            raise raised
        end = files.read_beat(1, 1)[2]
        assert end is not None
        assert (end.kind, end.message) == (kind, str(raised))


def test_damaged_beats_are_silence(state: State, files: ShardFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on, and gives the shard to another process if no good beat comes; what has ended runs nothing."""
    now = 100.0
    monkeypatch.setattr("tasks.shards.handle.time.monotonic", lambda: now)
    made, progress = handle(state, files)
    progress.start(50)
    files.claim(1, 1)
    state.write("shards/000007/1-1.beat", b"{")
    made.look(files, files.names())
    now = 103.0
    assert made.look(files, files.names()) == 3.0
    files.write_beat(1, 1, 1, Beat(processes=2), End("done"))
    made.look(files, files.names())
    assert made.processes == 0


def test_a_run_keeps_its_own_files(files: ShardFiles) -> None:
    """Tidying up after earlier runs leaves the claims of this one: without them a second process had an attempt."""
    files.claim(1, 1)
    files.delete_earlier()
    assert not files.claim(1, 1)


def test_a_shard_is_due_at_once_for_a_clock_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """By as much as check_clock allows; and the key makes a repeated submission the same flow run."""
    asked: dict[str, Any] = {}
    made = uuid4()

    def run_deployment(deployment: UUID, **given: Any) -> Any:
        asked.update(given)
        return SimpleNamespace(id=made)

    monkeypatch.setattr(prefect_runs, "run_deployment", run_deployment)
    assert prefect_runs.submit(uuid4(), {}, "shop #7 shard 1", "token-1-1") == made
    assert datetime.now(UTC) - asked["scheduled_time"] >= prefect_runs.CLOCKS_APART
    assert (asked["idempotency_key"], asked["timeout"]) == ("token-1-1", 0)


@pytest.mark.parametrize(
    ("starts", "holder", "parents"), [(1, False, []), (2, False, ["own"]), (1, True, ["other"]), (2, True, ["both"])]
)
def test_shards_of_a_run_that_died(
    starts: int, holder: bool, parents: list[str], state: State, files: ShardFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that live are ended at Prefect, and a run that took a lease over waits for them to look at it."""
    own, other, ended, slept = uuid4(), uuid4(), [], []  # type: ignore[var-annotated]
    monkeypatch.setattr("tasks.shards.prefect_runs.time.sleep", slept.append)
    monkeypatch.setattr(prefect_runs, "end", lambda client, run, state: ended.append(run))
    states: list[PrefectState[Any]] = [Running(), Completed()]
    live, over = (SimpleNamespace(id=uuid4(), state=one) for one in states)
    asked: set[UUID] = set()

    def read(flow_run_filter: Any) -> list[Any]:
        asked.update(flow_run_filter.parent_flow_run_id.any_)
        return [live, over]

    client = SimpleNamespace(read_flow_runs=read)
    monkeypatch.setattr(prefect_api, "best_effort", lambda *_: contextlib.nullcontext(client))
    files.claim(1, 1)
    took_over: Any = SimpleNamespace(flow_run=str(other)) if holder else None
    prefect_runs.end_orphans(own, starts, took_over, state, lambda _: None)
    known = {"own": {own}, "other": {other}, "both": {own, other}}
    assert asked == set().union(*(known[name] for name in parents))
    assert ended == [live.id] * len(asked)
    assert slept == ([Settings().look_s + 1.0] if holder else [])
