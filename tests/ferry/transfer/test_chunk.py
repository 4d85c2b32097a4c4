"""A chunk on a real runtime, origin and store finishes or stays incomplete, and no row is lost."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Fault, Origin, Trouble
from demo.ports import free_ports
from demo.s3 import S3Server
from ferry.core.errors import ChunkIncomplete, Fatal, FerryError, UserError
from ferry.core.records import ErrorClass, Outcome, Row, Status
from ferry.job.model import Job, OnExisting
from ferry.planning import existing_objects
from ferry.ratelimit import Share
from ferry.state import lease, ledger, parquet
from ferry.state.bucket import open_state
from ferry.state.files import DirectoryState, State
from ferry.state.lease import Borrowed, steady_s
from ferry.state.plan_file import ChunkRef, Existing
from ferry.transfer import chunk as chunks
from ferry.transfer.chunk import ChunkResult, run_chunk
from ferry.transfer.runtime import Runtime
from ferry.transfer.stall import TURN, Wait, is_excused
from tests.support.helpers import (
    IMAGE,
    access,
    directory_state,
    engine,
    latest,
    make_job,
    make_outcome,
    make_row,
    plan,
    read_access,
    row_id,
    stored,
    write_list,
)

pytestmark = pytest.mark.matrix

WAIT_S = 20.0


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def job_for(bucket: str, **given: Any) -> Job:
    return make_job(destination=f"s3://{bucket}/p/", **given)


def write_chunk(state: State, rows: list[Row], existing: Existing = "head") -> ChunkRef:
    columns = {name: [getattr(row, name) for row in rows] for name in parquet.CHUNK_SCHEMA.names}
    import pyarrow as pa

    data = parquet.to_bytes(pa.Table.from_pydict(columns, schema=parquet.CHUNK_SCHEMA))
    digest = parquet.digest_of(data)
    state.write(f"chunks/{digest}.parquet", data)
    return ChunkRef(f"chunks/{digest}.parquet", digest, len(rows), 0, "base", 1, existing=existing)


def healthy(origin: Origin, count: int, first: int = 0) -> list[Row]:
    rows = []
    for n in range(first, first + count):
        rows.append(make_row(n, origin.add(f"/{n}.jpg", make_image("jpeg", n % 5))))
    return rows


def in_thread(runtime: Runtime, ref: ChunkRef) -> tuple[threading.Thread, list[ChunkResult | FerryError]]:
    ends: list[ChunkResult | FerryError] = []

    def work() -> None:
        try:
            ends.append(run_chunk(runtime, ref))
        except FerryError as error:
            ends.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, ends


def check_promise(s3: S3Server, bucket: str, state: State) -> dict[str, Outcome]:
    """Asserts that each copied or unchanged row has its object, with the ledger's digest."""
    there = stored(s3, bucket, "p/")
    outcomes = latest(state)
    for outcome in outcomes.values():
        if outcome.status in (Status.COPIED, Status.UNCHANGED) and outcome.sha256 is not None:
            assert hashlib.sha256(there[f"p/{outcome.key}"]).hexdigest() == outcome.sha256, outcome.key
    return outcomes


def test_a_settled_chunk_returns_counts(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A finished chunk's counts, outcomes and objects agree."""
    state = directory_state(tmp_path)
    rows = healthy(origin, 30)
    rows.append(make_row(100, origin.add("/100.jpg", b"", fault=Trouble.NOT_FOUND)))
    rows.append(make_row(101, origin.add("/101.jpg", make_image("jpeg", 1), fault=Trouble.HTML_200)))
    ref = write_chunk(state, rows)
    with engine(job_for(bucket), state, access(s3)) as runtime:
        result = run_chunk(runtime, ref)
    assert result.counts == {"copied": 30, "failed": 2}
    assert result.chunk == ref.digest
    assert result.bytes == sum(len(make_image("jpeg", n % 5)) for n in range(30))
    assert state.list("outcomes") == [result.outcomes]  # one file, its parts are gone
    outcomes = check_promise(s3, bucket, state)
    assert set(outcomes) == {row.row_id for row in rows}
    assert outcomes[row_id(100)].error_class is ErrorClass.NOT_FOUND
    assert outcomes[row_id(101)].error_class is ErrorClass.NOT_IMAGE
    assert stored(s3, bucket) == {f"p/{n}.jpg": make_image("jpeg", n % 5) for n in range(30)}
    assert not list(state.spool_dir.glob("body-*"))


def test_a_scheme_in_capitals(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Schemes are case-insensitive (RFC 3986 section 3.1)."""
    state = directory_state(tmp_path)
    rows = [
        row._replace(source=row.source.replace("http:", name))
        for row, name in zip(healthy(origin, 2), ("HTTP:", "Http:"), strict=True)
    ]
    ref = write_chunk(state, rows)
    with engine(job_for(bucket), state, access(s3)) as runtime:
        assert run_chunk(runtime, ref).counts == {"copied": 2}


def test_a_second_run_of_a_settled_chunk_moves_nothing(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """A chunk whose rows are all done finishes without a request."""
    state = directory_state(tmp_path)
    ref = write_chunk(state, healthy(origin, 5))
    with engine(job_for(bucket), state, access(s3), 2) as runtime:
        result = run_chunk(runtime, replace(ref, done=5))
    assert (result.counts, result.outcomes, origin.total) == ({}, "", 0)


def test_an_object_that_is_there_is_unchanged(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A chunk that is run again without a ledger finds its objects and uploads none."""
    state = directory_state(tmp_path)
    ref = write_chunk(state, healthy(origin, 5))
    for run_no, status in ((1, Status.COPIED), (2, Status.UNCHANGED)):
        with engine(job_for(bucket), state, access(s3), run_no) as runtime:
            assert run_chunk(runtime, ref).counts == {status: 5}
    check_promise(s3, bucket, state)


def test_an_open_circuit_leaves_rows_pending_and_the_next_attempt_takes_those_alone(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Rows of a host with an open circuit stay pending, and the next attempt does only these."""
    state = directory_state(tmp_path)
    rows = [make_row(n, origin.add(f"/{n}.jpg", make_image("jpeg", 1), fault=Trouble.FORBIDDEN)) for n in range(90)]
    ref = write_chunk(state, rows)
    with engine(job_for(bucket, concurrency=10), state, access(s3)) as runtime:
        with pytest.raises(ChunkIncomplete, match="refused 50 requests in a row") as caught:
            run_chunk(runtime, ref)
        settled = latest(state)
        assert caught.value.pending == 90 - len(settled)
        assert 40 <= len(settled) <= 60
        assert origin.total <= 60
        before = dict(origin.requests)
        for n in range(90):
            origin.mend(f"/{n}.jpg")
        runtime.dispatcher._circuits.clear()  # 30 s later
        result = run_chunk(runtime, ref)
    assert result.counts == {"failed": len(settled), "copied": 90 - len(settled)}
    for row in rows:
        path = row.source.removeprefix(origin.base_url)
        again = origin.requests[path] - before.get(path, 0)
        assert again == (0 if row.row_id in settled else 1)
    assert set(check_promise(s3, bucket, state)) == {row.row_id for row in rows}


@pytest.mark.parametrize("alone", [True, False])
def test_a_host_that_never_answers_makes_a_chunk_hopeless(
    alone: bool, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows stay pending. No other attempt follows, unless rows of a host that answers are pending, too."""
    monkeypatch.setattr("ferry.ratelimit.circuit_breaker.SILENT_S", 0.3)
    state = directory_state(tmp_path)
    dead = free_ports(1)[0]
    rows = [make_row(n, f"http://127.0.0.1:{dead}/{n}.jpg") for n in range(60)]
    if not alone:
        rows += [make_row(n, url) for n, url in enumerate(refusing(origin, 90), 100)]
    ref = write_chunk(state, rows)
    retries = {"attempts": 9, "backoff_s": 0.05, "max_backoff_s": 0.1}
    with engine(job_for(bucket, concurrency=10, retries=retries), state, access(s3)) as runtime:
        with pytest.raises(ChunkIncomplete) as caught:
            run_chunk(runtime, ref)
        assert runtime.dispatcher.silent == {f"127.0.0.1:{dead}": "refuses connections"}
    assert caught.value.hopeless is alone
    if alone:
        assert f"127.0.0.1:{dead} refuses connections, and has not answered any request for" in caught.value.why
        assert caught.value.pending + len(latest(state)) == 60
        assert caught.value.pending > 0


def refusing(origin: Origin, count: int) -> list[str]:
    return [origin.add(f"/refused/{n}.jpg", make_image("jpeg", 1), fault=Trouble.FORBIDDEN) for n in range(count)]


def test_a_host_that_answers_only_5xx_does_not_fail_its_rows(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Rows of a host that only answers 5xx stay pending instead of failing."""
    state = directory_state(tmp_path)
    rows = [make_row(n, origin.add(f"/{n}.jpg", b"", fault=Trouble.SERVER_ERROR)) for n in range(120)]
    job = job_for(bucket, concurrency=10)
    with engine(job, state, access(s3)) as runtime, pytest.raises(ChunkIncomplete, match="server error"):
        run_chunk(runtime, write_chunk(state, rows))
    assert latest(state) == {}


def test_outcomes_are_on_disk_while_the_chunk_runs(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes can be read before the chunk ends."""
    monkeypatch.setattr(chunks, "FLUSH_S", 0.05)
    state = directory_state(tmp_path)
    rows = healthy(origin, 10)
    rows.append(make_row(99, origin.add("/99.jpg", make_image("jpeg", 1), fault=Fault(Trouble.SLOW, seconds=3))))
    ref = write_chunk(state, rows)
    with engine(job_for(bucket), state, access(s3)) as runtime:
        thread, ends = in_thread(runtime, ref)
        wait_for(lambda: len(latest(state)) == 10)
        assert thread.is_alive()
        thread.join()
    assert isinstance(ends[0], ChunkResult)
    assert ends[0].counts == {"copied": 11}
    assert state.list("outcomes") == [ends[0].outcomes]
    assert len(latest(state)) == 11


def test_a_stop_leaves_rows_pending_and_loses_none(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop each row is done, with its object, or pending for the next run."""
    monkeypatch.setattr(chunks, "GRACE_S", 0.3)
    state = directory_state(tmp_path)
    rows = healthy(origin, 200)
    rows.insert(3, make_row(999, origin.add("/999.jpg", make_image("jpeg", 1), fault=Trouble.STALL)))
    origin.latency_s = 0.05
    ref = write_chunk(state, rows)
    with engine(job_for(bucket, concurrency=4), state, access(s3)) as runtime:
        thread, ends = in_thread(runtime, ref)
        wait_for(lambda: runtime.progress.snapshot().done >= 10)
        runtime.request_stop("interrupted (test)")
        thread.join(5)
        assert not thread.is_alive()
    assert isinstance(ends[0], ChunkIncomplete)
    assert ends[0].why == "interrupted (test)"
    settled = check_promise(s3, bucket, state)
    assert 10 <= len(settled) < 201
    assert ends[0].pending == 201 - len(settled)
    assert row_id(999) not in settled
    assert not list(state.spool_dir.glob("body-*"))
    origin.latency_s = 0
    origin.mend("/999.jpg")
    with engine(job_for(bucket), state, access(s3), 2) as runtime:
        assert sum(run_chunk(runtime, ref).counts.values()) == 201
    assert len(check_promise(s3, bucket, state)) == 201


def test_a_limit_leaves_the_other_rows_pending(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """`--limit 7` starts seven rows over all chunks, whatever their results."""
    state = directory_state(tmp_path)
    first, second = write_chunk(state, healthy(origin, 5)), write_chunk(state, healthy(origin, 5, first=10))
    with engine(job_for(bucket), state, access(s3), limit=7) as runtime:
        assert run_chunk(runtime, first).counts == {"copied": 5}
        with pytest.raises(ChunkIncomplete, match="--limit") as caught:
            run_chunk(runtime, second)
        assert runtime.limit_reached
    assert (caught.value.pending, origin.total, len(latest(state))) == (3, 7, 7)


def test_credentials_that_do_not_write_are_fatal(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Credentials without the right to write end the run at the first upload, and no row fails."""
    state = directory_state(tmp_path)
    ref = write_chunk(state, healthy(origin, 100))
    origin.latency_s = 0.02
    with engine(job_for(bucket, concurrency=4), state, read_access(s3)) as runtime:
        with pytest.raises(Fatal, match="credentials"):
            run_chunk(runtime, ref)
        assert runtime.stopping
    assert latest(state) == {}
    assert origin.total < 20


@pytest.mark.slow
def test_credentials_that_are_revoked_midway_are_fatal(origin: Origin, tmp_path: Path) -> None:
    """After credentials are revoked, earlier rows are done and all others pending."""
    state = directory_state(tmp_path)
    ref = write_chunk(state, healthy(origin, 100))
    origin.latency_s = 0.05
    job = job_for("mine", concurrency=4, retries={"attempts": 20, "backoff_s": 0.2, "max_backoff_s": 0.3})
    with S3Server(tmp_path / "own") as server:
        server.make_bucket("mine")
        with engine(job, state, access(server)) as runtime:
            thread, ends = in_thread(runtime, ref)
            wait_for(lambda: runtime.progress.snapshot().done >= 5)
            server.stop(within_s=0)
            old, server.secret_key = server.secret_key, "another"
            server.start()
            thread.join(WAIT_S)
        assert isinstance(ends[0], Fatal)
        assert old != server.secret_key
    outcomes = latest(state).values()
    assert {outcome.status for outcome in outcomes} <= {Status.COPIED, Status.UNCHANGED}
    assert 5 <= len(outcomes) < 100


@pytest.mark.parametrize("place", ["directory", "bucket"])
@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_damaged_chunk_file_is_an_error_of_the_user(
    place: str, damage: str, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """A missing or damaged chunk file raises an error that says what to do."""
    state: State = directory_state(tmp_path)
    if place == "bucket":
        state = open_state(f"s3://{bucket}/state", access(s3), tmp_path / "cache")
    ref = write_chunk(state, healthy(origin, 3))
    if damage == "gone":
        state.delete([ref.uri])
    else:
        raw = state.read(ref.uri)
        state.write(ref.uri, raw[:-9] if damage == "cut" else raw[:60] + b"x" + raw[61:])
    with engine(job_for(bucket), state, access(s3)) as runtime, pytest.raises(UserError, match="Run the job again"):
        run_chunk(runtime, ref)
    assert origin.total == 0


def test_a_lost_lease_writes_nothing(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A run that lost its lease writes neither outcomes nor objects."""
    state = directory_state(tmp_path)
    ref = write_chunk(state, healthy(origin, 3))
    with engine(job_for(bucket), state, access(s3)) as runtime:
        runtime._lease._lost = True  # type: ignore[union-attr]
        with pytest.raises(Fatal, match="lost its lease"):
            run_chunk(runtime, ref)
    assert state.list("outcomes") == []
    assert stored(s3, bucket) == {}


def test_a_lease_that_is_taken_in_the_middle(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes that are in the buffer when the lease is lost are not written."""
    for module, name, value in (
        (lease, "LENGTH_S", 1.0), (lease, "RENEW_S", 3600.0), (lease, "WATCH_S", 0.2), (lease, "WAIT_S", 0.05),
        (chunks, "FLUSH_S", 3600.0),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    state = directory_state(tmp_path)
    rows = healthy(origin, 10)
    rows.append(make_row(99, origin.add("/99.jpg", make_image("jpeg", 1), fault=Trouble.STALL)))
    with engine(job_for(bucket), state, access(s3)) as runtime:
        thread, ends = in_thread(runtime, write_chunk(state, rows))
        wait_for(lambda: runtime.progress.snapshot().done >= 10)
        monkeypatch.setattr(chunks, "GRACE_S", 0.1)
        with lease.hold_lease(state, "another", wait=True) as other:
            assert other.took_over is not None
            assert other.took_over.run == "test"
            runtime.request_stop("enough")
            thread.join(WAIT_S)
            assert not thread.is_alive()
            assert lease.decode(state.read(lease.NAME)).run == "another"
    assert [str(end) for end in ends] == [
        "this run lost its lease on the state to another run and writes nothing more. Run the job again later"
    ]
    assert state.list("outcomes") == []


def test_a_turn_at_a_slow_destination_is_no_standstill(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait for `bytes_per_s` is not a stall, however long it is."""
    monkeypatch.setattr(chunks, "GRACE_S", 0.1)
    state = directory_state(tmp_path)
    job = job_for(bucket, limits={"destination": {"bytes_per_s": 1000}}, checks="none")
    row = make_row(1, origin.add("/1.jpg", bytes(900_000)))
    with engine(job, state, access(s3)) as runtime:
        thread, _ = in_thread(runtime, write_chunk(state, [row]))
        wait_for(lambda: any(wait.what == TURN for wait in runtime.waits()))
        waits = [wait for wait in runtime.waits() if wait.rows]
        assert waits == [Wait(TURN, 1, True)]
        assert is_excused(False, waits)
        runtime.request_stop("enough")
        thread.join(WAIT_S)


def test_a_process_that_hears_nothing_writes_nothing(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker process without a current lease writes nothing."""
    monkeypatch.setattr(Borrowed, "PATIENCE_S", 0.1)
    state = directory_state(tmp_path)
    ref = write_chunk(state, healthy(origin, 3))
    for until, written in ((0.0, False), (steady_s() - 1, False), (steady_s() + 60, True)):
        borrowed = Borrowed()
        borrowed.until = until
        runtime = Runtime(
            job_for(bucket), state, borrowed, 1,
            source_access=access(s3), destination_access=access(s3), headers={}, share=Share(2, 2),
        )  # fmt: skip
        try:
            if written:
                run_chunk(runtime, ref)
            else:
                with pytest.raises(Fatal, match="lost its lease"):
                    run_chunk(runtime, ref)
        finally:
            runtime.close()
        assert bool(state.list("outcomes")) is written
        assert not state.list("reports")  # hosts.json is the first process's


def test_another_machine_goes_on_in_the_middle_of_a_chunk(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Rows that this run has recorded elsewhere are not asked for again; those of an earlier run are."""
    state = open_state(f"s3://{bucket}/state", access(s3), tmp_path)
    ref = write_chunk(state, healthy(origin, 5))
    done = [make_outcome(row_id(0)), make_outcome(row_id(1), Status.FAILED, error_class=ErrorClass.NOT_FOUND)]
    ledger.append_outcomes(state, done[:1], 2, ref.digest, 0)
    ledger.append_outcomes(state, done[1:], 2, ref.digest, 1)
    ledger.append_outcomes(state, [make_outcome(row_id(2), run_no=1)], 1, ref.digest, 0)
    job = job_for(bucket, state=f"s3://{bucket}/state", machines=2)
    with engine(job, state, access(s3), run_no=2) as runtime:
        result = run_chunk(runtime, ref)
    assert result.counts == {"copied": 4, "failed": 1}
    assert sorted(origin.requests) == ["/2.jpg", "/3.jpg", "/4.jpg"]
    assert len(latest(state)) == 5


@pytest.mark.parametrize(
    "fault",
    [
        Fault(Trouble.FLAKY, times=1),
        Fault(Trouble.RESET, times=1),
        Fault(Trouble.TRUNCATED_LENGTH, times=1),
        Fault(Trouble.TRUNCATED_CHUNKED, times=1),
        Fault(Trouble.RATE_LIMITED, seconds=1),
    ],
    ids=lambda fault: str(fault.kind),
)
def test_a_passing_fault_costs_a_retry_and_no_row(
    fault: Fault, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """A row that fails once is copied by its next try, and its outcome counts both requests."""
    state = directory_state(tmp_path)
    body = make_image("jpeg", 1)
    ref = write_chunk(state, [make_row(1, origin.add("/1.jpg", body, fault=fault))])
    job = job_for(bucket, retries={"attempts": 3, "backoff_s": 0.01, "max_backoff_s": 5})
    with engine(job, state, access(s3)) as runtime:
        assert run_chunk(runtime, ref).counts == {"copied": 1}
    (outcome,) = check_promise(s3, bucket, state).values()
    assert (outcome.requests, origin.requests["/1.jpg"]) == (2, 2)


def test_last_tries_come_at_the_end(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A last try comes after all other rows, and may succeed."""
    state = directory_state(tmp_path)
    bad = make_row(999, origin.add("/bad.jpg", make_image("jpeg", 1), fault=Fault(Trouble.FLAKY, times=3)))
    dead = make_row(998, origin.add("/dead.jpg", b"", fault=Trouble.SERVER_ERROR))
    rows = [bad, dead, *healthy(origin, 40)]
    job = job_for(bucket, concurrency=2, retries={"attempts": 3, "backoff_s": 0.01, "max_backoff_s": 1})
    with engine(job, state, access(s3)) as runtime:
        assert run_chunk(runtime, write_chunk(state, rows)).counts == {"copied": 41, "failed": 1}
    outcomes = check_promise(s3, bucket, state)
    others = [outcomes[row_id(n)] for n in range(40)]
    for late in (outcomes[row_id(999)], outcomes[row_id(998)]):
        assert late.requests == 4
        assert late.recorded_at >= max(other.recorded_at for other in others)
    assert outcomes[row_id(998)].retryable


def test_last_tries_run_side_by_side(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Last tries run as concurrently as first tries."""
    state = directory_state(tmp_path)
    origin.latency_s = 0.2
    rows = [make_row(n, origin.add(f"/{n}.jpg", b"", fault=Trouble.SERVER_ERROR)) for n in range(20)]
    rows.append(make_row(99, origin.add("/99.jpg", make_image("jpeg", 1), fault=Fault(Trouble.SLOW, seconds=0.8))))
    with engine(job_for(bucket), state, access(s3)) as runtime:
        thread, ends = in_thread(runtime, write_chunk(state, rows))
        wait_for(lambda: origin.total == 21)
        origin.most_at_once = 0  # the last tries begin when the slow row is through
        thread.join(WAIT_S)
    assert isinstance(ends[0], ChunkResult)
    assert ends[0].counts == {"copied": 1, "failed": 20}
    assert origin.total == 41
    assert origin.most_at_once >= 10


def test_late_keys_by_digest_share_an_object(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Rows with equal bytes and a key by digest share one object."""
    state = directory_state(tmp_path)
    body = make_image("jpeg", 1)
    rows = [make_row(n, origin.add(f"/{n}.jpg", body), key="{sha256}.{ext}", deferred_key=True) for n in (1, 2)]
    with engine(job_for(bucket, concurrency=1), state, access(s3)) as runtime:
        assert run_chunk(runtime, write_chunk(state, rows)).counts == {"copied": 1, "unchanged": 1}
    key = f"{hashlib.sha256(body).hexdigest()}.jpg"
    assert stored(s3, bucket) == {f"p/{key}": body}
    assert {outcome.key for outcome in latest(state).values()} == {key}


@pytest.mark.parametrize("policy", ["skip-same", "skip", "fail"])
@pytest.mark.parametrize("existing", ["head", "listed"])
def test_an_equal_object_is_unchanged_under_every_policy(
    policy: str, existing: Existing, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """An existing equal object is `unchanged` under every policy, even if the plan did not know it."""
    state = directory_state(tmp_path)
    body = make_image("jpeg", 1)
    s3.client().put_object(Bucket=bucket, Key="p/1.jpg", Body=body)
    row = make_row(1, origin.add("/1.jpg", body), md5=hashlib.md5(body).hexdigest())
    ref = write_chunk(state, [row], existing)
    with engine(job_for(bucket, on_existing=policy), state, access(s3)) as runtime:
        run_chunk(runtime, ref)
    (outcome,) = check_promise(s3, bucket, state).values()
    if policy == "skip-same" and existing == "listed":
        assert outcome.status in (Status.UNCHANGED, Status.COPIED)
    else:
        assert (outcome.status, outcome.error_class) == (Status.UNCHANGED, None)


@pytest.mark.parametrize(
    ("policy", "status", "error", "kept"),
    [
        ("skip-same", Status.COPIED, None, False),
        ("overwrite", Status.COPIED, None, False),
        ("skip", Status.SKIPPED, ErrorClass.EXISTS, True),
        ("fail", Status.FAILED, ErrorClass.EXISTS, True),
    ],
)
@pytest.mark.parametrize("existing", ["head", "listed"])
def test_another_object_under_the_key(
    policy: str,
    status: Status,
    error: ErrorClass | None,
    kept: bool,
    existing: Existing,
    origin: Origin,
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
) -> None:
    """An existing object with other bytes is handled by the policy, whether the plan knew it or not."""
    state = directory_state(tmp_path)
    body = make_image("jpeg", 1)
    other = body[:-1] + bytes([body[-1] ^ 1])
    s3.client().put_object(Bucket=bucket, Key="p/1.jpg", Body=other)
    ref = write_chunk(state, [make_row(1, origin.add("/1.jpg", body), size=len(body))], existing)
    with engine(job_for(bucket, on_existing=policy), state, access(s3)) as runtime:
        run_chunk(runtime, ref)
    (outcome,) = latest(state).values()
    assert (outcome.status, outcome.error_class) == (status, error)
    assert stored(s3, bucket) == {"p/1.jpg": other if kept else body}


@pytest.mark.parametrize(
    ("policy", "since", "status"),
    [
        (OnExisting.SKIP_SAME, b"", Status.COPIED),
        (OnExisting.FAIL, b"", Status.COPIED),
        (OnExisting.SKIP_SAME, b"longer" * len(IMAGE), Status.COPIED),
        (OnExisting.FAIL, b"longer" * len(IMAGE), Status.FAILED),
    ],
)
def test_what_was_listed_and_is_another_or_gone(
    policy: OnExisting, since: bytes, status: Status, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An existing object that was replaced or deleted since the listing does not end the run."""
    monkeypatch.setattr(existing_objects, "MAX_HEADS", 0)
    listed = write_list(tmp_path / "list.csv", [[origin.add("/a.jpg", IMAGE)]])
    job = make_job(manifest=str(listed), destination=f"s3://{bucket}/p/", on_existing=policy)
    state = directory_state(tmp_path)
    s3.client().put_object(Bucket=bucket, Key="p/a.jpg", Body=b"x" * len(IMAGE))
    (ref,) = plan(job, state, server=access(s3)).chunks
    assert ref.existing == "listed"
    s3.client().delete_object(Bucket=bucket, Key="p/a.jpg")
    if since:
        s3.client().put_object(Bucket=bucket, Key="p/a.jpg", Body=since)
    with engine(job, state, access(s3)) as runtime:
        run_chunk(runtime, ref)
    (outcome,) = latest(state).values()
    assert outcome.status is status
    assert outcome.error_class is (ErrorClass.EXISTS if status is Status.FAILED else None)
    assert stored(s3, bucket)["p/a.jpg"] == (IMAGE if status is Status.COPIED else since)


@pytest.mark.parametrize("wrong", [{"md5": "0" * 32}, {"sha256": "0" * 64}])
def test_a_wrong_digest_is_never_uploaded(
    wrong: dict[str, str], origin: Origin, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """An object with a wrong digest is fetched once more, then fails, and is not uploaded."""
    state = directory_state(tmp_path)
    ref = write_chunk(state, [make_row(1, origin.add("/1.jpg", make_image("jpeg", 1)), **wrong)])
    with engine(job_for(bucket), state, access(s3)) as runtime:
        assert run_chunk(runtime, ref).counts == {"failed": 1}
    (outcome,) = latest(state).values()
    assert (outcome.error_class, outcome.requests, outcome.retryable) == (ErrorClass.DIGEST_MISMATCH, 2, False)
    assert stored(s3, bucket) == {}


def test_keys_that_a_directory_cannot_hold_together_fail_alone(origin: Origin, s3: S3Server, tmp_path: Path) -> None:
    """Of the keys `a` and `a/b` in a directory one fails, and the run continues."""
    state = directory_state(tmp_path)
    rows = [
        make_row(1, origin.add("/1", make_image("jpeg", 1)), key="a"),
        make_row(2, origin.add("/2", make_image("jpeg", 2)), key="a/b"),
        make_row(3, origin.add("/3", make_image("jpeg", 3)), key="c"),
    ]
    job = make_job(destination=f"file://{tmp_path}/out/", concurrency=1)
    with engine(job, state, access(s3)) as runtime:
        result = run_chunk(runtime, write_chunk(state, rows))
    assert result.counts == {"copied": 2, "failed": 1}
    assert (tmp_path / "out/a").read_bytes() == make_image("jpeg", 1)
    assert (tmp_path / "out/c").read_bytes() == make_image("jpeg", 3)


def test_two_chunks_at_once_share_a_process(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Two chunks that run at once do each of their rows once."""
    state = directory_state(tmp_path)
    refs = [write_chunk(state, healthy(origin, 40, first=100 * n)) for n in range(4)]
    with engine(job_for(bucket), state, access(s3)) as runtime:
        running = [in_thread(runtime, ref) for ref in refs]
        for thread, _ in running:
            thread.join(WAIT_S)
        assert runtime.chunks_waiting() == 0
    assert [end.counts for _, (end,) in running if isinstance(end, ChunkResult)] == [{"copied": 40}] * 4
    assert len(check_promise(s3, bucket, state)) == 160
    assert max(origin.requests.values()) == 1
    assert ledger.last_run_no(state) == 1


def test_outcomes_hold_no_query(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Outcomes have a digest instead of a source's query."""
    state: DirectoryState = directory_state(tmp_path)
    path = "/1.jpg?Signature=topsecret"
    ref = write_chunk(state, [make_row(1, origin.add(path, b"", fault=Trouble.NOT_FOUND))])
    with engine(job_for(bucket), state, access(s3)) as runtime:
        result = run_chunk(runtime, ref)
    assert result.counts == {"failed": 1}
    (outcome,) = latest(state).values()
    assert outcome.source == f"{origin.base_url}/1.jpg?{hashlib.sha256(b'Signature=topsecret').hexdigest()[:8]}"
    assert "topsecret" not in repr(parquet.read_table(state.local(result.outcomes)).to_pylist())
