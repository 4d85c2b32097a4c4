"""Single failed requests: none ends a run, and an error that a setting must fix is reported once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Fault as Trouble
from demo.origin import Origin
from demo.origin import Trouble as Kind
from ferry.core.errors import ChunkIncomplete, Fatal, UserError
from ferry.core.records import Status
from ferry.state import lease
from ferry.state.bucket import open_state
from ferry.storage.factory import open_control
from ferry.storage.preflight import run_preflight
from ferry.transfer.chunk import run_chunk
from tests.servers.odd_s3 import Fault, OddS3
from tests.support.helpers import access, directory_state, engine, latest, make_job, plan, run

pytestmark = pytest.mark.matrix


@pytest.fixture
def odd() -> Iterator[OddS3]:
    with OddS3() as server:
        server.make_bucket("b")
        server.make_bucket("state")
        yield server


@pytest.mark.parametrize("what", ["status", "reset", "lost answer", "error in 200"])
@pytest.mark.parametrize("operation", ["HeadBucket", "CreateMultipartUpload", "AbortMultipartUpload"])
def test_the_preflight_outlives_one(operation: str, what: Any, odd: OddS3) -> None:
    """The preflight retries each of its requests, and none of its uploads stays after cleaning."""
    if what == "error in 200" and operation != "CreateMultipartUpload":
        what = "status"
    odd.faults.append(fault := Fault(what, (operation,), times=1))
    run_preflight("s3://b/p/", access(odd))
    assert fault.struck == 1
    open_control("s3://b", access(odd)).abort("p/.ferry-preflight-")
    assert odd.uploads == {}


@pytest.mark.parametrize(
    ("operation", "status", "code", "said"),
    [
        ("HeadBucket", 404, "", "does not exist"),
        ("HeadBucket", 403, "", "refuses access .*They need s3:ListBucket"),
        ("HeadBucket", 400, "", "Check `region`"),
        ("CreateMultipartUpload", 403, "AccessDenied", "refuses writing .*AccessDenied.*s3:PutObject"),
        ("CreateMultipartUpload", 501, "NotImplemented", "HTTP 501 NotImplemented to the check of writing"),
        ("CreateMultipartUpload", 503, "SlowDown", "HTTP 503"),
    ],
)
def test_what_the_preflight_says(operation: str, status: int, code: str, said: str, odd: OddS3) -> None:
    """The preflight reports a refusal at once, and a server error after five attempts."""
    odd.faults.append(Fault("status", (operation,), status=status, code=code))
    with pytest.raises(UserError, match=said):
        run_preflight("s3://b/p/", access(odd))
    assert odd.requests[operation] == (5 if status == 503 else 1)


@pytest.mark.parametrize("kind", [Kind.FLAKY, Kind.RATE_LIMITED, Kind.TRUNCATED_LENGTH, Kind.RESET])
def test_a_list_at_an_address_is_fetched_again(kind: Kind, origin: Origin, tmp_path: Path) -> None:
    """A manifest at a URL is downloaded again after 503, 429, a truncated body or a reset."""
    body = b"url\n" + b"".join(b"https://img.example/%d.jpg\n" % n for n in range(50))
    origin.add("/list.csv", body, "text/csv", fault=Trouble(kind, times=1, seconds=0.01))
    job = make_job(manifest=origin.url("/list.csv"), destination=f"file://{tmp_path}/out/")
    assert plan(job, directory_state(tmp_path)).rows == 50


def test_a_list_that_is_not_there_is_asked_for_once(origin: Origin, tmp_path: Path) -> None:
    """A manifest URL with 404 is requested once and is a UserError."""
    job = make_job(manifest=origin.url("/none.csv"), destination=f"file://{tmp_path}/out/")
    with pytest.raises(UserError, match="no such object"):
        plan(job, directory_state(tmp_path))
    assert origin.total == 1


@pytest.mark.parametrize("what", ["status", "reset", "halve"])
def test_a_list_in_a_bucket_is_fetched_again(what: Any, odd: OddS3, tmp_path: Path) -> None:
    """A manifest in a bucket is downloaded again after one failed GET."""
    odd.put("b", "list.csv", b"url\n" + b"".join(b"https://img.example/%d.jpg\n" % n for n in range(50)))
    odd.faults.append(fault := Fault(what, ("GetObject",), times=1))
    job = make_job(manifest="s3://b/list.csv", destination=f"file://{tmp_path}/out/")
    assert plan(job, directory_state(tmp_path), server=access(odd)).rows == 50
    assert fault.struck == 1


def moving(folder: Path, count: int, **given: Any) -> Any:
    """Returns a job of so many small files of a directory."""
    (folder / "src").mkdir(exist_ok=True)
    for n in range(count):
        (folder / f"src/{n} {n}.bin").write_bytes(b"%d" % n)
    values = {"manifest": f"file://{folder}/src/", "destination": "s3://b/p/", "checks": "none", **given}
    return make_job(source={}, **values)


FROM_A_PROXY: dict[str, Any] = {"status": 404, "code": ""}


@pytest.mark.parametrize("operation", ["GetObject", "PutObject", "ListObjectsV2", "DeleteObject"])
def test_a_404_that_is_not_the_stores(operation: str, odd: OddS3, tmp_path: Path) -> None:
    """A 404 of a proxy does not count as a missing state file, and the run keeps its lease."""
    state = open_state("s3://state/job", access(odd), tmp_path)
    with lease.hold_lease(state, "test") as held:
        odd.faults.append(fault := Fault("status", (operation,), times=1, **FROM_A_PROXY))
        lease.check_lease(state, held.token)
        state.write("plan/a", b"a")
        assert state.local("plan/a").read_bytes() == b"a"
        assert state.list("plan") == ["plan/a"]
        state.delete(["plan/a"])
    assert fault.struck == 1


@pytest.mark.slow
def test_a_file_that_is_not_there(odd: OddS3, tmp_path: Path) -> None:
    """NoSuchKey is requested once; a 404 without a code counts after five attempts."""
    state = open_state("s3://state/job", access(odd), tmp_path)
    for asked, fault in ((1, []), (5, [Fault("status", ("GetObject",), **FROM_A_PROXY)])):
        odd.faults = fault
        for read in (state.read, state.local):
            odd.requests.clear()
            with pytest.raises(FileNotFoundError):
                read("ledger/a")
            assert odd.requests["GetObject"] == asked


@pytest.mark.parametrize("operation", ["PutObject", "GetObject", "HeadObject"])
def test_a_404_of_a_proxy_ends_no_run(operation: str, odd: OddS3, tmp_path: Path) -> None:
    """A 404 of a proxy for an object is retried and fails neither row nor run."""
    odd.etags = "kms"
    odd.faults.append(fault := Fault("status", (operation,), after=3, times=1, **FROM_A_PROXY))
    state = directory_state(tmp_path)
    run(moving(tmp_path, 20, retries={"attempts": 2, "backoff_s": 0.01}), state, access(odd))
    assert {str(outcome.status) for outcome in latest(state).values()} == {"copied"}
    assert fault.struck == 1


@pytest.mark.parametrize("code", ["", "NoSuchKey", "NoSuchBucket"])
def test_a_404_for_one_key(code: str, odd: OddS3, tmp_path: Path) -> None:
    """A PUT that is answered with 404 fails its row (moto, for a newline), and ends the run only if the bucket is
    missing."""
    odd.faults.append(Fault("status", ("PutObject",), status=404, code=code, key="7 7"))
    state = directory_state(tmp_path)
    ended = pytest.raises(Fatal, match="does not exist") if code == "NoSuchBucket" else contextlib.nullcontext()
    with ended:
        run(moving(tmp_path, 20), state, access(odd))
    if code != "NoSuchBucket":
        failed = [outcome.key for outcome in latest(state).values() if outcome.status is Status.FAILED]
        assert (failed, len(latest(state))) == (["7 7.bin"], 20)


@pytest.mark.parametrize("operation", ["HeadObject", "GetObject"])
def test_an_object_that_may_not_be_read(operation: str, odd: OddS3, tmp_path: Path) -> None:
    """A 403 for one key fails its row; a 403 for every key ends the run."""
    odd.etags = "kms"
    odd.put("b", "p/7 7.bin", b"8")
    odd.faults.append(Fault("status", (operation,), status=403, code="AccessDenied", key="p/7 7"))
    state = directory_state(tmp_path)
    job = moving(tmp_path, 120)
    run(job, state, access(odd))
    failed = [outcome for outcome in latest(state).values() if outcome.status == "failed"]
    assert [(o.key, str(o.error_class), o.retryable) for o in failed] == [("7 7.bin", "forbidden", True)]
    assert "refuses to read this key" in str(failed[0].message)
    odd.faults = [Fault("status", (operation,), status=403, code="AccessDenied")]
    odd.objects["b"].clear()
    state = directory_state(tmp_path, "other")
    planned = plan(job, state, server=access(odd))
    odd.requests.clear()
    with engine(job, state, access(odd)) as runtime, pytest.raises(Fatal, match="refuses the credentials"):
        run_chunk(runtime, planned.chunks[0])
    assert odd.requests[operation] < 120  # not one for each row


@pytest.mark.parametrize("side", ["preflight", "PutObject"])
def test_a_redirect_is_told_once(side: str, odd: OddS3, tmp_path: Path) -> None:
    """A redirect ends the run at once, names the setting, and gets no signed request."""
    odd.faults.append(
        Fault("redirect", ("HeadBucket" if side == "preflight" else side,), location="http://b.localhost:9")
    )
    said = "endpoint_url"
    if side == "preflight":
        with pytest.raises(UserError, match=r"names http://localhost:9: set `endpoint_url` to that"):
            run_preflight("s3://b/p/", access(odd))
        assert odd.requests.total() == 1
        return
    state = directory_state(tmp_path)
    job = moving(tmp_path, 200, retries={"attempts": 4, "backoff_s": 0.01}, concurrency=4)
    planned = plan(job, state, server=access(odd))
    with engine(job, state, access(odd)) as runtime, pytest.raises(Fatal, match=said):
        run_chunk(runtime, planned.chunks[0])
    assert latest(state) == {}
    assert odd.requests[side] < 60, "not twelve for each of two hundred rows"


@pytest.mark.parametrize("policy", ["skip", "fail"])
@pytest.mark.parametrize("odd_keys", [True, False])
def test_a_condition_that_a_store_does_not_know_is_told_once(policy: str, odd_keys: bool, tmp_path: Path) -> None:
    """A 501 to If-None-Match ends the run at its first row and names the setting."""
    state = directory_state(tmp_path)
    job = moving(tmp_path, 200, on_existing=policy, concurrency=4)
    if not odd_keys:
        for path in (tmp_path / "src").iterdir():
            path.rename(path.with_name(path.name.replace(" ", "-")))
    with OddS3(conditions="501") as server:
        server.make_bucket("b")
        planned = plan(job, state, server=access(server))
        with engine(job, state, access(server)) as runtime, pytest.raises(Fatal, match="Set `on_existing: skip-same`"):
            run_chunk(runtime, planned.chunks[0])
        assert latest(state) == {}
        assert server.requests["PutObject"] < 60, "those that were on their way, and no more"
        again = moving(tmp_path, 0, on_existing="skip-same", concurrency=4)
        run(again, state, access(server), 2)
        assert len(server.stored("b", "p/")) == 200


@pytest.mark.slow
def test_nothing_grows_over_nights(odd: OddS3, tmp_path: Path) -> None:
    """Over six delta runs the local cache does not grow, and holds only files that the bucket has."""
    counts = []
    for night in range(1, 7):
        job = moving(tmp_path, 20 + night, destination="s3://b/p/", mode="delta")
        state = open_state("s3://state/job", access(odd), tmp_path / "cache")
        with contextlib.suppress(ChunkIncomplete):
            run(job, state, access(odd), night)
        there = {key.removeprefix("job/") for key in odd.stored("state")}
        (cache,) = (tmp_path / "cache").iterdir()
        here = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
        here = {name for name in here if not name.startswith("spool/")}
        counts.append((len(here), len({name for name in there if name.startswith("ledger/")})))
        assert here <= there, here - there
    assert counts[-1][0] <= counts[1][0] + 5, counts
    assert counts[-1][1] == 1
