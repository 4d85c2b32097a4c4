"""A destination that does not respond is waited for, and ends the run after two minutes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from demo.origin import Origin
from demo.ports import free_ports
from demo.s3 import S3Server
from ferry.core.errors import Fatal, ObjectError
from ferry.core.records import ErrorClass, Status
from ferry.ratelimit import DESTINATION
from ferry.storage.access import S3Access
from ferry.transfer import destination_outage
from ferry.transfer.chunk import run_chunk
from ferry.transfer.destination_outage import Outage, is_silence, verdict
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers


@pytest.mark.parametrize(
    ("silent_s", "keys", "expected"),
    [
        (0.0, 1, "fine"),
        (3600.0, 4, "fine"),
        (0.0, 5, "away"),
        (119.9, 5, "away"),
        (120.0, 5, "over"),
        (120.0, 9, "over"),
    ],
)
def test_verdict(silent_s: float, keys: int, expected: str) -> None:
    """The table of verdict() holds."""
    assert verdict(silent_s, keys) == expected


@pytest.mark.parametrize(
    ("error_class", "status", "silence"),
    [
        (ErrorClass.STORE_ERROR, None, True),
        (ErrorClass.TIMEOUT, None, True),
        (ErrorClass.STORE_ERROR, 500, False),
        (ErrorClass.RATE_LIMITED, 503, False),
        (ErrorClass.EXISTS, None, False),
        (ErrorClass.UPLOAD_UNCONFIRMED, None, False),
        (ErrorClass.INTERNAL, None, False),
    ],
)
def test_what_is_silence(error_class: ErrorClass, status: int | None, silence: bool) -> None:
    """An error with a status is a response, also a 503."""
    assert is_silence(ObjectError(error_class, "it failed", status_code=status)) is silence


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


REFUSED = ObjectError(ErrorClass.STORE_ERROR, "the connection to the destination failed (ECONNREFUSED)")


def test_silent_for_two_minutes() -> None:
    """The first failure after two minutes without a response raises Fatal with advice."""
    clock = Clock()
    watched = Outage(clock)
    for number in range(24):
        assert watched.failed(f"{number % 7}.jpg", REFUSED, "write") is (number >= 4)
        clock.now += 5
    with pytest.raises(Fatal, match=r"not responded to any write request for 120 s .*ECONNREFUSED.*"):
        watched.failed("0.jpg", REFUSED, "write")


@pytest.mark.parametrize("answer", [None, ObjectError(ErrorClass.RATE_LIMITED, "busy", status_code=503)])
def test_any_answer_begins_it_anew(answer: ObjectError | None) -> None:
    """A success, and any error with a status, starts the two minutes again."""
    clock = Clock()
    watched = Outage(clock)
    for number in range(100):
        watched.failed(f"{number}.jpg", REFUSED, "write")
        clock.now += 5
        if number % 20 == 19:
            if answer is None:
                watched.answered("write")
            else:
                assert not watched.failed("x", answer, "write"), "it answers, and so is not away"


def test_answers_to_one_kind_of_request_hide_no_silence_to_the_other() -> None:
    """Responses to HEAD do not reset the time without a response to PUT."""
    clock = Clock()
    watched = Outage(clock)
    for number in range(24):
        watched.failed(f"{number}.jpg", REFUSED, "write")
        watched.answered("read")
        clock.now += 5
    with pytest.raises(Fatal, match="not responded to any write request for 120 s"):
        watched.failed("24.jpg", REFUSED, "write")


def test_one_object_that_breaks_every_connection() -> None:
    """One object that always breaks the connection does not end the run."""
    clock = Clock()
    watched = Outage(clock)
    for _ in range(100):
        assert not watched.failed("bad.jpg", REFUSED, "write")
        clock.now += 5


def test_a_destination_that_refuses_every_put(origin: Origin, tmp_path: Path) -> None:
    """A 400 is an answer: each row fails with the store's code, and the store is not taken for one that is down."""
    rows = 60
    with OddS3(faults=[Fault("status", ("PutObject",), status=400, code="InvalidRequest")]) as odd:
        odd.make_bucket("bucket")
        listed = [[origin.add(f"/{n}.jpg", helpers.IMAGE)] for n in range(rows)]
        job = helpers.make_job(manifest=str(helpers.write_list(tmp_path / "list.csv", listed)))
        state, access = helpers.directory_state(tmp_path), helpers.access(odd)
        (ref,) = helpers.plan(job, state, server=access).chunks
        with helpers.engine(job, state, access) as runtime:
            run_chunk(runtime, ref)
            limit = runtime.limiter.snapshot()[DESTINATION]
        assert "paused" not in limit.why
        assert "reduced" not in limit.why
        found = helpers.latest(state).values()
        expected = (ErrorClass.STORE_ERROR, 400, "the destination answered HTTP 400 (InvalidRequest)")
        assert [(out.error_class, out.status_code, out.message) for out in found] == [expected] * rows


@pytest.mark.slow
def test_a_destination_that_nobody_listens_at(
    origin: Origin, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an unreachable destination the run ends soon, and most rows stay pending."""
    monkeypatch.setattr(destination_outage, "ENDS_S", 1.0)
    rows = 200
    listed = [[origin.add(f"/{n}.jpg", helpers.IMAGE)] for n in range(rows)]
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    job = helpers.make_job(
        manifest=str(helpers.write_list(tmp_path / "list.csv", listed)), on_existing="overwrite",
        retries={"attempts": 3, "backoff_s": 0.1, "max_backoff_s": 5},
        destination={"uri": "s3://bucket/p/", "endpoint_url": nowhere},
    )  # fmt: skip
    state = helpers.directory_state(tmp_path)
    access = S3Access(nowhere, s3.region, keys=(s3.access_key, s3.secret_key, None))
    (ref,) = helpers.plan(job, state, server=access).chunks
    with (
        helpers.engine(job, state, access) as runtime,
        pytest.raises(Fatal, match="the destination has not responded to any"),
    ):
        run_chunk(runtime, ref)
    assert all(outcome.retryable for outcome in helpers.latest(state).values())
    assert len(helpers.latest(state)) < rows / 2


@pytest.mark.slow
def test_a_destination_that_comes_back(origin: Origin, tmp_path: Path) -> None:
    """During a short outage rows wait, and the same chunk then copies all of them."""
    rows = 80
    listed = [[origin.add(f"/{n}.jpg", helpers.IMAGE)] for n in range(rows)]
    with S3Server(tmp_path / "s3") as server:
        server.make_bucket("bucket")
        job = helpers.make_job(
            manifest=str(helpers.write_list(tmp_path / "list.csv", listed)), concurrency=8,
            retries={"attempts": 1, "backoff_s": 0.01, "max_backoff_s": 10},
            destination={"uri": "s3://bucket/p/", "endpoint_url": server.endpoint_url},
        )  # fmt: skip
        state, access = helpers.directory_state(tmp_path), helpers.access(server)
        (ref,) = helpers.plan(job, state, server=access).chunks
        origin.latency_s = 0.02
        with helpers.engine(job, state, access) as runtime:
            away = threading.Thread(target=interrupt, args=(server, runtime.progress))
            away.start()
            run_chunk(runtime, ref)
            away.join()
        assert [outcome.status for outcome in helpers.latest(state).values()] == [Status.COPIED] * rows
        assert len(helpers.stored(server, "bucket")) == rows


def interrupt(server: S3Server, progress: object) -> None:
    """Stops the destination after a few rows."""
    while progress.snapshot().done < 20:  # type: ignore[attr-defined]
        time.sleep(0.01)
    server.stop(within_s=0)
    time.sleep(1.5)
    server.start()
