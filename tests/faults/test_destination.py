"""The destination goes away, fills up, turns read-only, revokes the key, is overrun, or loses what it accepted.

For each: what the user is told and what the ledger says while it lasts. After it one plain run ends the job, byte for
byte, and moves nothing again that was recorded.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin
from demo.s3 import S3Server
from ferry.core.errors import FerryError
from ferry.core.progress import Progress
from ferry.core.records import ErrorClass, Status
from ferry.reconcile import verify
from ferry.reconcile.finish import finish_run
from ferry.state import ledger
from ferry.state.files import DirectoryState
from ferry.storage.access import Access, S3Access
from ferry.storage.factory import open_store
from tests.faults.amount import LONG, each, some
from tests.faults.proxy import Bad, Proxy, Refusal
from tests.faults.test_state_disk import UNSHARE
from tests.flows.project import Project, serve
from tests.support import helpers

E = ErrorClass
ROOT = Path(__file__).parents[2]
ROWS = some(30, 60)
RETRIES = {"attempts": 3, "backoff_s": 0.05, "max_backoff_s": 0.5}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class World:
    """An origin with images, and a job that moves them to a bucket."""

    def __init__(
        self, origin: Origin, access: Access, bucket: str, folder: Path, bodies: dict[str, bytes], **job: Any
    ) -> None:
        self.origin, self.access, self.bodies, self.bucket = origin, access, bodies, bucket
        rows = [[origin.add(f"/{key}", body)] for key, body in bodies.items()]
        self.job = helpers.make_job(
            manifest=str(helpers.write_list(folder / "list.csv", rows)),
            **{"chunk_rows": 20, "concurrency": 4, "retries": RETRIES, **job},
            destination={"uri": f"s3://{bucket}/p/", "endpoint_url": access.endpoint_url},
        )
        self.state = DirectoryState(folder / "state")

    def run(self) -> tuple[str, dict[str, Any]]:
        """One plain run: what the user is told where it ends early, and the counts."""
        run_no, said = ledger.last_run_no(self.state) + 1, ""
        try:
            helpers.run(self.job, self.state, self.access, run_no)
        except FerryError as error:
            said = f"{type(error).__name__}: {error}"
        return said, finish_run(self.job, self.state, run_no)["counts"]

    def classes(self) -> set[ErrorClass | None]:
        """The error classes of the rows that failed."""
        return {
            outcome.error_class for outcome in helpers.latest(self.state).values() if outcome.status is Status.FAILED
        }

    def recorded(self) -> set[str]:
        return {outcome.key for outcome in helpers.latest(self.state).values() if outcome.status is Status.COPIED}

    def check_recorded(self, s3: S3Server) -> None:
        """While the trouble lasts: what the ledger calls copied is there, whole."""
        there = helpers.stored(s3, self.bucket, "p/")
        wrong = [key for key in self.recorded() if there.get(f"p/{key}") != self.bodies[key]]
        assert not wrong, f"recorded as copied, and not there as it should be: {wrong}"

    def end(self, s3: S3Server) -> None:
        """The cause is gone: one plain run."""
        recorded, before = self.recorded(), dict(self.origin.requests)
        said, counts = self.run()
        assert not said
        assert counts["failed"] == counts["pending"] == 0, counts
        assert counts["planned"] == len(self.bodies)
        assert helpers.stored(s3, self.bucket, "p/") == {f"p/{key}": body for key, body in self.bodies.items()}
        again = [key for key in recorded if self.origin.requests[f"/{key}"] != before[f"/{key}"]]
        assert not again, f"recorded rows were fetched again: {again}"


def images(count: int = ROWS) -> dict[str, bytes]:
    return {f"i/{n}.jpg": make_image("jpeg", n, 30, 20) for n in range(count)}


def when(test: Callable[[], bool], act: Callable[[], None], within_s: float = 60.0) -> threading.Thread:
    """Acts, in a thread, once the test is true."""

    def watch() -> None:
        deadline = time.monotonic() + within_s
        while not test() and time.monotonic() < deadline:
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A store that may be stopped, and whose keys may change."""
    with S3Server(tmp_path_factory.mktemp("own")) as server:
        yield server


@pytest.fixture
def own_bucket(own: S3Server) -> str:
    name = f"own-{os.urandom(6).hex()}"
    own.make_bucket(name)
    return name


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    with Proxy(s3.endpoint_url) as front:
        yield front


def through(proxy: Proxy, s3: S3Server) -> Access:
    return dataclasses.replace(helpers.access(s3), endpoint_url=proxy.endpoint_url)


# --- the store itself


@pytest.mark.parametrize("seconds", [60.0, 5.0, 0.0] if LONG else [1.0])
def test_it_goes_away_for_a_while(
    seconds: float, own: S3Server, own_bucket: str, origin: Origin, tmp_path: Path, tried: Callable[..., None]
) -> None:
    """The run waits, trying now and then. At worst the few rows that it tried with are failed, to be tried again."""
    origin.latency_s = 0.01
    world = World(origin, helpers.access(own), own_bucket, tmp_path, images())

    def outage() -> None:
        own.stop(within_s=0)
        time.sleep(seconds)
        own.start()

    away = when(lambda: origin.total >= ROWS // 3, outage)
    said, counts = world.run()
    away.join(seconds + 60)
    assert not said
    assert world.classes() <= {E.STORE_ERROR, E.TIMEOUT, E.UPLOAD_UNCONFIRMED}
    assert counts["pending"] == 0
    assert counts["failed"] == counts["retryable"] < ROWS
    world.check_recorded(own)
    world.end(own)
    tried(f"destination away for {seconds:.0f} s in the middle of a run")


def identities(store: S3Server, access_key: str, actions: list[str]) -> None:
    """Changes what the run's key is and may do, while the server runs (SeaweedFS reads its file anew at SIGHUP)."""
    path = store.folder / "s3.json"
    config = json.loads(path.read_text())
    config["identities"][0]["credentials"][0]["accessKey"] = access_key
    config["identities"][0]["actions"] = actions
    path.write_text(json.dumps(config))
    assert store.pid is not None
    os.kill(store.pid, signal.SIGHUP)


def answers(store: S3Server, bucket: str, well: bool, key: str) -> bool:
    """Does a write of the run's key go well now, or not, as wanted?"""
    with_key = store.access_key
    store.access_key = key
    try:
        store.client().put_object(Bucket=bucket, Key="asked", Body=b"x")
        done = True
    except Exception:  # whatever boto3 raises
        done = False
    finally:
        store.access_key = with_key
    return done is well


ALL = ["Admin", "Read", "Write", "List", "Tagging"]


@pytest.mark.parametrize("fault", each(["read-only", "revoked"], 1))
def test_it_takes_no_more_from_us(
    fault: str, own: S3Server, own_bucket: str, origin: Origin, tmp_path: Path, tried: Callable[..., None]
) -> None:
    """The run ends at once and says what to look at; no row is failed for it."""
    origin.latency_s = 0.02
    world = World(origin, helpers.access(own), own_bucket, tmp_path, images())

    def close() -> None:
        identities(own, *((own.access_key, ["Read", "List"]) if fault == "read-only" else ("AANOTHER", ALL)))

    try:
        closed = when(lambda: origin.total >= ROWS // 3, close)
        said, counts = world.run()
        closed.join(60)
    finally:
        identities(own, own.access_key, ALL)
    code = "AccessDenied" if fault == "read-only" else "InvalidAccessKeyId"
    assert re.fullmatch(
        rf"(Refused|Fatal): the destination refuses the credentials \(HTTP 403 {code}\). "
        "Check `credentials` and the bucket's policy", said,
    )  # fmt: skip
    assert (counts["failed"], counts["copied"] + counts["pending"]) == (0, ROWS)
    assert 0 < counts["copied"] < ROWS
    world.check_recorded(own)
    world.end(own)
    tried(f"destination {fault}")


@pytest.mark.skipif(not LONG, reason="takes a while: `make faults`")
@pytest.mark.skipif(
    subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False).returncode
    != 0,
    reason="needs a mount namespace of its own",
)
def test_it_is_full(origin: Origin, tmp_path: Path, tried: Callable[..., None]) -> None:
    """SeaweedFS on a small disk answers 500 then, as to any trouble: rows fail to be tried again, and none is lost."""
    (tmp_path / "s3").mkdir()
    process = subprocess.Popen(
        [*UNSHARE, sys.executable, "-m", "tests.faults.small_store", str(tmp_path / "s3")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        known = json.loads(process.stdout.readline())
        store = S3Server.__new__(S3Server)  # as a client alone: the server is the other process's
        store.endpoint_url, store.access_key, store.secret_key = (
            known["endpoint_url"],
            known["keys"][0],
            known["keys"][1],
        )
        rng = random.Random(8)
        bodies = {f"i/{n}.bin": rng.randbytes(700_000) for n in range(70)}  # 49 MB; the disk has 40
        access = S3Access(store.endpoint_url, "us-east-1", keys=(store.access_key, store.secret_key, None))
        world = World(
            origin, access, "small", tmp_path, bodies, checks="none",
            retries={"attempts": 1, "backoff_s": 0.01, "max_backoff_s": 0.05},
        )  # fmt: skip
        said, counts = world.run()
        assert counts["copied"] > 10
        assert counts["failed"] + counts["pending"] > 5
        assert counts["failed"] == counts["retryable"]
        assert world.classes() <= {E.STORE_ERROR}
        assert said or "HTTP 500" in next(iter(o.message or "" for o in failures(world)))
        world.check_recorded(store)
        process.stdin.write("grow\n")
        process.stdin.flush()
        assert process.stdout.readline() == "grown\n"
        world.end(store)
    finally:
        process.communicate("end\n", timeout=30)
    tried("destination's disk full")


def failures(world: World) -> Iterator[Any]:
    return (outcome for outcome in helpers.latest(world.state).values() if outcome.status is Status.FAILED)


# --- answers of other stores, through a proxy before the real one

REFUSALS = {
    "full": (Refusal(507, "XMinioStorageFull"), "is full: no space left, or its quota is used up"),
    "quota": (Refusal(403, "QuotaExceeded"), "is full: no space left, or its quota is used up"),
    "expired": (Refusal(400, "ExpiredToken"), "the credentials have expired"),
    "clock": (Refusal(403, "RequestTimeTooSkewed"), "this machine's clock is wrong"),
    "bucket": (Refusal(404, "NoSuchBucket"), "destination bucket does not exist"),
    "denied": (Refusal(403, "AccessDenied"), "refuses the credentials"),
}


@pytest.mark.parametrize("what", each(list(REFUSALS), 1))
def test_it_answers_no_to_all(
    what: str, proxy: Proxy, s3: S3Server, bucket: str, origin: Origin, tmp_path: Path, tried: Callable[..., None]
) -> None:
    """The run ends with a sentence that says what to do; no row is failed, and few are asked for in vain."""
    refusal, words = REFUSALS[what]
    origin.latency_s = 0.005
    world = World(origin, through(proxy, s3), bucket, tmp_path, images())
    proxy.on_put = lambda number: proxy.refuse(refusal) if number == ROWS // 3 else None
    said, counts = world.run()
    assert said.startswith(("Fatal: the destination", "Refused: the destination"))
    assert words in said
    assert (counts["failed"], counts["copied"] + counts["pending"]) == (0, ROWS)
    assert counts["copied"] >= ROWS // 3
    assert proxy.met[f"{refusal.status} {refusal.code}"] < 30
    world.check_recorded(s3)
    proxy.behave()
    world.end(s3)
    tried("destination answers that it is full, closed or unknown")


@pytest.mark.parametrize("retry_after", each([None, "1", "30"], 1))
def test_it_asks_to_slow_down_for_a_while(
    retry_after: str | None,
    proxy: Proxy, s3: S3Server, bucket: str, origin: Origin, tmp_path: Path, tried: Callable[..., None],
) -> None:  # fmt: skip
    """503 SlowDown to every write, and then to none. A Retry-After is heard: a long one leaves rows pending, and says
    so; nobody hammers."""
    world = World(
        origin, through(proxy, s3), bucket, tmp_path, images(), retries={**RETRIES, "attempts": 5, "max_backoff_s": 3},
    )  # fmt: skip
    headers = {"Retry-After": retry_after} if retry_after else {}

    def slow_down(number: int) -> None:
        if number == ROWS // 3:
            proxy.refuse(Refusal(503, "SlowDown", headers))
            threading.Timer(1.0, proxy.behave).start()

    proxy.on_put = slow_down
    said, counts = world.run()
    assert not said
    assert counts["copied"] + counts["pending"] + counts["failed"] == ROWS
    assert world.classes() <= {E.RATE_LIMITED}
    if retry_after != "30":
        assert counts["pending"] == 0
    assert 0 < proxy.met["503 SlowDown"] < 100
    world.check_recorded(s3)
    proxy.behave()
    world.end(s3)
    tried("destination answers 503 SlowDown for a while")


@pytest.mark.skipif(not LONG, reason="takes a while: `make faults`")
def test_what_the_user_sees(project: Project, origin: Origin, tried: Callable[..., None]) -> None:
    """`ferry run` ends with exit code 1 and the sentence; its accounts add up. The next one ends the job."""
    rows, bodies = serve(origin, 30)
    project.manifest(rows)
    with Proxy(project.cli.s3.endpoint_url) as proxy:
        project.job(destination=project.destination(endpoint_url=proxy.endpoint_url), chunk_rows=10, concurrency=2)
        proxy.on_put = lambda number: proxy.refuse(Refusal(400, "ExpiredToken")) if number == 12 else None
        report = project.ferry("run", "job.yaml", "--json").expect(1).json
        assert "the credentials have expired (HTTP 400 ExpiredToken). Renew them" in report["message"]
        counts = report["counts"]
        assert (counts["failed"], counts["copied"] + counts["pending"]) == (0, 30)
        assert counts["copied"] >= 12
        before = dict(origin.requests)
        recorded = {line["key"] for line in project.ledger().values() if line["status"] == "copied"}
        proxy.behave()
        proxy.on_put = lambda _: None
        project.ferry("run", "job.yaml", "--json").expect(0)
    assert project.stored() == bodies
    again = [key for key in recorded if origin.requests[f"/{key}"] != before.get(f"/{key}", 0)]
    assert not again
    tried("destination says that the credentials have expired, in `ferry run`")


LOSSES = (Bad.LOST, Bad.CUT, Bad.ALTERED, Bad.RESET, Bad.ANSWER_LOST, Bad.INTERNAL, Bad.SLOW_DOWN)


@pytest.mark.parametrize("on_existing", each(["skip", "skip-same", "fail", "overwrite"], 1))
@pytest.mark.parametrize("seed", range(21, 21 + some(1, 12)))
def test_what_it_accepts_and_loses(
    seed: int, on_existing: str, s3: S3Server, bucket: str, origin: Origin, tmp_path: Path, tried: Callable[..., None]
) -> None:
    """A third of all uploads is lost, cut, altered or broken off on its way. What is called copied is there, byte for
    byte, whatever the policy: what arrived of an upload of our own is never taken for an object that was there."""
    with Proxy(s3.endpoint_url, seed) as proxy:
        world = World(origin, through(proxy, s3), bucket, tmp_path, images(), on_existing=on_existing)
        proxy.misbehave(*LOSSES, share=0.4)
        said, counts = world.run()
        assert not said
        assert world.classes() <= {E.UPLOAD_UNCONFIRMED, E.STORE_ERROR, E.RATE_LIMITED}
        # An upload whose answer was lost stands there whole: `skip` leaves it alone, without a look at its bytes.
        assert counts["skipped"] <= (proxy.met[Bad.ANSWER_LOST] if on_existing == "skip" else 0)
        assert counts["failed"] == counts["retryable"]
        assert sum(proxy.met[bad] for bad in (Bad.LOST, Bad.CUT, Bad.ALTERED)) >= 5
        world.check_recorded(s3)
        proxy.behave()
        world.end(s3)
        tried("uploads that are lost, cut or altered on their way", sum(proxy.met.values()))


@pytest.mark.parametrize("on_existing", each(["skip", "fail"], 1))
def test_an_altered_object_that_a_run_left_is_replaced_by_the_next(
    on_existing: str, s3: S3Server, bucket: str, origin: Origin, tmp_path: Path
) -> None:
    """No try went well: other bytes than the source's stand under the keys. The next run does not take them for objects
    of somebody else."""
    with Proxy(s3.endpoint_url) as proxy:
        world = World(origin, through(proxy, s3), bucket, tmp_path, images(6), on_existing=on_existing)
        proxy.misbehave(Bad.ALTERED)
        said, counts = world.run()
        assert not said
        assert (counts["failed"], world.classes()) == (6, {E.UPLOAD_UNCONFIRMED})
        assert "bytes differ" in next(failures(world)).message
        proxy.behave()
        world.end(s3)


def test_what_it_loses_without_a_word(
    proxy: Proxy, s3: S3Server, bucket: str, origin: Origin, tmp_path: Path, tried: Callable[..., None]
) -> None:
    """The right ETag, and nothing behind it: no client can tell. `ferry verify` can, and the next run repairs it."""
    world = World(origin, through(proxy, s3), bucket, tmp_path, images())
    proxy.misbehave(Bad.LOST_QUIETLY, share=0.2)
    _, counts = world.run()
    assert counts["copied"] == ROWS
    proxy.behave()
    store = open_store(world.job.destination.uri, world.access, tmp_path)
    lost = proxy.met[Bad.LOST_QUIETLY]
    listed = {found.key: found for page in store.list() for found in page}
    found = verify.compare_with_listing(helpers.expected_objects(world.state), listed, 1, Progress())
    assert found.missing == lost > 0
    verify.note_verified(world.state, found, 1, 0)
    world.end(s3)
    tried("uploads lost with the right answer, found by verify", lost)
