"""A state in a bucket survives transient store errors and lost responses, and leaves no files on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ferry.core.errors import Fatal, Unreachable, UserError
from ferry.core.retry import Tries
from ferry.state import lease, patient_state
from ferry.state.bucket import open_state
from ferry.state.files import DirectoryState, State
from tests.servers.odd_s3 import Fault, OddS3, What
from tests.support.helpers import access

pytestmark = pytest.mark.matrix


def state_at(server: OddS3, folder: Path) -> State:
    return open_state("s3://state/some/job", access(server), folder / "cache")


@pytest.fixture
def odd() -> Iterator[OddS3]:
    with OddS3() as server:
        server.make_bucket("state")
        yield server


READ = ("GetObject",)
WRITE = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
EVERYTHING = (*READ, *WRITE, "DeleteObject", "DeleteObjects", "ListObjectsV2", "HeadObject")


def use_all_of_it(state: State, folder: Path) -> None:
    """Calls each operation of a state once, and checks its result."""
    state.write("plan/x", b"one")
    assert state.read("plan/x") == b"one"
    assert state.local("plan/x").read_bytes() == b"one"
    path = folder / "file"
    path.write_bytes(b"a file")
    state.write_file("ledger/l.parquet", path)
    assert state.local("ledger/l.parquet").read_bytes() == b"a file"  # the copy that stayed
    assert state.local("ledger/l.parquet", refresh=True).read_bytes() == b"a file"
    assert state.create("lease.json", b"mine") is True
    assert state.create("lease.json", b"theirs") is False
    assert state.swap("lease.json", b"mine", b"mine, later") is True
    assert state.swap("lease.json", b"mine", b"too late") is False
    assert state.drop("lease.json", b"mine, later", b"given back") is True
    assert state.list("plan") == ["plan/x"]
    state.delete(["plan/x", "plan/none"])
    assert state.list("plan") == []


FAULTS: dict[str, tuple[What, ...]] = {
    "GetObject": ("status", "reset", "lost answer", "halve"),
    "PutObject": ("status", "reset", "lost answer", "error in 200"),
    "ListObjectsV2": ("status", "reset", "lost answer", "error in 200"),
    "DeleteObjects": ("status", "reset", "lost answer", "error in 200"),
}
TIMES = {"GetObject": 7, "PutObject": 6, "ListObjectsV2": 3, "DeleteObjects": 1}  # that each is asked for below
HICCUPS = [
    (what, operation, after)
    for operation, whats in FAULTS.items()
    for what in whats
    for after in range(TIMES[operation])
]


@pytest.mark.parametrize(("what", "operation", "after"), HICCUPS)
def test_one_hiccup_ends_nothing(what: What, operation: str, after: int, odd: OddS3, tmp_path: Path) -> None:
    """An operation succeeds, once, after a 503, a reset, a lost or cut response, or an error with status 200."""
    odd.faults.append(fault := Fault(what, (operation,), after=after, times=1))
    use_all_of_it(state_at(odd, tmp_path), tmp_path)
    assert fault.struck == 1


@pytest.mark.parametrize("seed", range(4))
def test_many_hiccups_end_nothing(seed: int, tmp_path: Path) -> None:
    """Each operation succeeds although a fifth of all requests fail with a 503, a reset or a lost response."""
    faults = [Fault(what, EVERYTHING, probability=0.07) for what in ("status", "reset", "lost answer")]
    with OddS3(seed=seed, faults=faults) as server:
        server.make_bucket("state")
        use_all_of_it(state_at(server, tmp_path), tmp_path)
        assert sum(fault.struck for fault in faults) > 0


def test_a_lost_answer_to_the_lease_is_recognised(odd: OddS3, tmp_path: Path) -> None:
    """A run holds the lease that it created although the response to its PUT was lost."""
    odd.faults.append(Fault("lost answer", ("PutObject",), times=1, key="lease.json$"))
    state = state_at(odd, tmp_path)
    with lease.hold_lease(state, "a run") as held:
        assert lease.decode(state.read(lease.NAME)).token == held.token


@pytest.mark.parametrize("conditions", ["ignored", "501"])
def test_a_store_without_conditions_holds_no_state(conditions: Any, tmp_path: Path) -> None:
    """A store without conditional writes is refused before a lease is taken, with advice on what to do."""
    with OddS3(conditions=conditions) as server:
        server.make_bucket("state")
        with pytest.raises(UserError) as caught, lease.hold_lease(state_at(server, tmp_path), "a run"):
            pass
        assert server.endpoint_url in str(caught.value)
        assert "set `state` to a directory" in str(caught.value)
        assert server.stored("state") == {}


@pytest.mark.parametrize(
    ("conditions", "lacks"),
    [("no replace", "If-Match"), ("never equal", "If-Match"), ("no create", "If-None-Match")],
)
def test_one_of_the_two_conditions_is_not_enough(conditions: Any, lacks: str, tmp_path: Path) -> None:
    """A store must honour both If-None-Match and If-Match, and the error names the missing one."""
    with OddS3(conditions=conditions) as server:
        server.make_bucket("state")
        with pytest.raises(UserError, match=lacks), lease.hold_lease(state_at(server, tmp_path), "a run"):
            pass
        assert server.stored("state") == {}


@pytest.mark.parametrize("probed", [True, False])
def test_a_store_that_takes_etags_without_quotes(probed: bool, tmp_path: Path) -> None:
    """A store that refuses the right ETag in quotes (Ceph RGW 16) replaces files all the same, for every process of a
    run: also for one that took no lease and asked nothing before."""
    with OddS3(conditions="bare") as server:
        server.make_bucket("state")
        state = state_at(server, tmp_path)
        if probed:
            state.check_conditions()
        server.put("state", "some/job/limits.json", b"old")
        assert state.swap("limits.json", b"other", b"new") is False
        assert state.swap("limits.json", b"old", b"new") is True
        asked = server.requests["PutObject"]
        assert state.swap("limits.json", b"new", b"newer") is True
        assert server.requests["PutObject"] == asked + 1, "the form is known"
        assert server.stored("state") == {"some/job/limits.json": b"newer"}


def test_a_replacement_that_came_too_late_asks_nothing_more(
    odd: OddS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 412 because another client replaced the file is an answer, and is not tried again in another form."""
    state = state_at(odd, tmp_path)
    state.write("limits.json", b"old")
    put = odd._put

    def late(*given: Any) -> Any:
        odd.put("state", "some/job/limits.json", b"theirs")
        return put(*given)

    monkeypatch.setattr(odd, "_put", late)
    before = odd.requests["PutObject"]
    assert state.swap("limits.json", b"old", b"mine") is False
    assert odd.requests["PutObject"] == before + 1
    assert odd.stored("state") == {"some/job/limits.json": b"theirs"}


def test_files_are_deleted_one_by_one_where_the_store_knows_no_other_way(tmp_path: Path) -> None:
    """After a 501 to DeleteObjects, as from GCS, each file is deleted by a request of its own."""
    with OddS3(delete_many=False) as server:
        server.make_bucket("state")
        state = state_at(server, tmp_path)
        for name in ("a/1", "a/2", "a/3"):
            state.write(name, b"x")
        state.delete(["a/1", "a/3", "a/none"])
        state.delete(["a/2"])
        assert server.stored("state") == {}
        assert server.requests["DeleteObjects"] == 1, "asked once, then known"


def test_a_refusal_is_not_tried_again(odd: OddS3, tmp_path: Path) -> None:
    """A 403 raises Fatal after one request."""
    odd.faults.append(Fault("status", EVERYTHING, status=403, code="InvalidAccessKeyId"))
    state = state_at(odd, tmp_path)
    works: list[Callable[[], object]] = [
        lambda: state.write("a", b"x"), lambda: state.read("a"), lambda: state.list("a"), lambda: state.delete(["a"])
    ]  # fmt: skip
    for count, work in enumerate(works, 1):
        with pytest.raises(Fatal, match="credentials"):
            work()
        assert odd.requests.total() == count


@pytest.mark.slow
def test_a_page_of_the_state_s_list_that_never_comes_is_an_error(tmp_path: Path) -> None:
    """A listing without its last page raises Fatal, since a shorter list would hide outcomes."""
    with OddS3(listings="error page", page_keys=2) as server:
        server.make_bucket("state")
        state = state_at(server, tmp_path)
        for n in range(5):
            state.write(f"outcomes/{n}", b"x")
        with pytest.raises(Fatal, match="InternalError"):
            state.list("outcomes")


def test_copies_go_with_their_files(odd: OddS3, tmp_path: Path) -> None:
    """A file that the bucket no longer has is deleted from the local cache, even if another machine deleted it."""
    here, there = state_at(odd, tmp_path), open_state("s3://state/some/job", access(odd), tmp_path / "elsewhere")
    for name in ("chunks/a.parquet", "chunks/b.parquet", "ledger/l.parquet", "outcomes/o.parquet"):
        here.write(name, b"x")
        assert here.local(name).exists()
    here.delete(["chunks/a.parquet", "outcomes/o.parquet"])
    there.delete(["ledger/l.parquet"])
    here.delete_stale_copies()
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["b.parquet"]


LARGE_BYTES = 200 << 20

PEAK = """
import sys
from pathlib import Path
from ferry.storage.access import S3Access
from ferry.state.bucket import open_state
from tests.support.memory import forget_peak, peak_bytes
url, folder, work = sys.argv[1:]
state = open_state("s3://state/some/job", S3Access(url, anonymous=True), Path(folder) / "cache")
state.write("plan/small", b"x")
state.read("plan/small")
before = forget_peak()
if work == "read":
    assert state.local("ledger/large").stat().st_size == 200 << 20
else:
    state.write_file("ledger/written", Path(folder) / "large")
print((peak_bytes() - before) >> 20)
"""


@pytest.mark.parametrize("work", ["read", "write"])
def test_a_large_file_is_never_in_memory(work: str, odd: OddS3, tmp_path: Path) -> None:
    """Reading or writing a 200 MB ledger raises the process's peak memory by less than 64 MB."""
    odd.put("state", "some/job/ledger/large", bytes(LARGE_BYTES))
    (tmp_path / "large").write_bytes(bytes(LARGE_BYTES))
    arguments = [sys.executable, "-c", PEAK, odd.endpoint_url, str(tmp_path), work]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64, f"{done.stdout} MB more at its peak"
    if work == "write":
        assert len(odd.objects["state"]["some/job/ledger/written"].data) == LARGE_BYTES


def test_a_download_that_breaks_goes_on_where_it_ended(odd: OddS3, tmp_path: Path) -> None:
    """A download resumes after cut responses, and the copy is complete."""
    data = bytes(range(256)) * 40_000
    odd.put("state", "some/job/ledger/l", data)
    odd.faults.append(Fault("halve", ("GetObject",), times=3))
    assert state_at(odd, tmp_path).local("ledger/l").read_bytes() == data


def test_a_download_of_a_file_that_changes_meanwhile(
    odd: OddS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed download never combines parts of two versions of a file."""
    old, new = bytes(3 << 20), bytes([1]) * (3 << 20)
    odd.put("state", "some/job/outcomes/o", old)
    odd.faults.append(Fault("halve", ("GetObject",), times=1))
    carry_out = odd._carry_out

    def changes(*given: Any) -> Any:
        answer = carry_out(*given)
        odd.put("state", "some/job/outcomes/o", new)
        return answer

    monkeypatch.setattr(odd, "_carry_out", changes)
    with pytest.raises(Fatal):
        state_at(odd, tmp_path).local("outcomes/o")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_a_store_that_knows_no_ranges(odd: OddS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full body in response to a range request is not used as the rest of a file."""
    data = bytes(range(256)) * 8000
    odd.put("state", "some/job/outcomes/o", data)
    odd.faults.append(Fault("halve", ("GetObject",), times=1))
    get = odd._get

    def without_range(objects: Any, key: str, headers: Any, *, head: bool) -> Any:
        return get(objects, key, {}, head=head)

    monkeypatch.setattr(odd, "_get", without_range)
    with pytest.raises(Fatal):
        state_at(odd, tmp_path).local("outcomes/o")


def test_a_copy_of_a_store_without_etags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut download resumes from a store without ETags, without an empty If-Match header."""
    with OddS3(etags="none", faults=[Fault("halve", ("GetObject",), times=1)]) as server:
        server.put("state", "some/job/ledger/l", data := bytes(range(256)) * (8 << 10))
        get, sent = server._get, []

        def heard(objects: Any, key: str, headers: Any, *, head: bool) -> Any:
            sent.append((headers.get("Range"), headers.get("If-Match")))
            return get(objects, key, headers, head=head)

        monkeypatch.setattr(server, "_get", heard)
        assert state_at(server, tmp_path).local("ledger/l").read_bytes() == data
    assert [condition for _, condition in sent] == [None, None]
    assert [bool(ranged) for ranged, _ in sent] == [False, True]


PARTS = ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")


@pytest.mark.parametrize("operation", PARTS)
@pytest.mark.parametrize("what", ["status", "reset", "lost answer", "error in 200"])
def test_a_large_file_is_written_all_the_same(what: What, operation: str, odd: OddS3, tmp_path: Path) -> None:
    """A multipart upload succeeds after one error of any of its requests, even if the last response is lost."""
    odd.faults.append(fault := Fault(what, (operation,), times=1))
    path = tmp_path / "large"
    path.write_bytes(data := bytes(range(256)) * (40 << 12))
    state = state_at(odd, tmp_path)
    state.write_file("ledger/large", path)
    assert fault.struck == 1
    assert odd.stored("state") == {"some/job/ledger/large": data}
    assert odd.requests["UploadPart"] - (operation == "UploadPart") == 5


@pytest.mark.slow
@pytest.mark.parametrize("older", [b"an older one", bytes([1]) * (40 << 20)])
def test_an_upload_that_is_not_there_in_the_end_is_an_error(older: bytes, odd: OddS3, tmp_path: Path) -> None:
    """NoSuchUpload for the last request raises Fatal when the key has another object, even one of the same size."""
    parts = [older[at : at + (8 << 20)] for at in range(0, len(older), 8 << 20)]
    odd.put("state", "some/job/ledger/large", older)
    odd.objects["state"]["some/job/ledger/large"].etag = odd._etag_of_parts(parts)
    odd.faults.append(Fault("status", ("CompleteMultipartUpload",), status=404, code="NoSuchUpload"))
    path = tmp_path / "large"
    path.write_bytes(bytes(40 << 20))
    with pytest.raises(Fatal, match="ledger/large: the state answered HTTP 404 NoSuchUpload"):
        state_at(odd, tmp_path).write_file("ledger/large", path)
    assert path.exists()


def test_a_patient_state_waits_for_its_store(odd: OddS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation is repeated while the store answers 503, and ends with its error once the caller gives up."""
    monkeypatch.setattr(patient_state, "PAUSE_S", 0.0)
    state = state_at(odd, tmp_path)
    monkeypatch.setattr(vars(state)["_bucket"], "_tries", Tries(sleep=lambda _: None))
    use_all_of_it(patient_state.patient(state, lambda _: True), tmp_path)
    odd.faults.append(fault := Fault("status", EVERYTHING, times=12))
    patient = patient_state.patient(state, lambda _: True)
    patient.write("plan/y", b"two")
    assert fault.struck == 12
    odd.faults.append(Fault("status", EVERYTHING))
    with pytest.raises(Unreachable):
        patient_state.patient(state, lambda _: False).read("plan/y")


def test_a_directory_is_not_waited_for(tmp_path: Path) -> None:
    """A full disk ends a run at once."""
    state = DirectoryState(tmp_path)
    assert patient_state.patient(state, lambda _: True) is state


def test_names_that_begin_with(odd: OddS3, tmp_path: Path) -> None:
    """In a bucket and in a directory."""
    for state in (state_at(odd, tmp_path), DirectoryState(tmp_path / "state")):
        for name in ("outcomes/000001-ab-1", "outcomes/000001-ab-2", "outcomes/000001-cd-1", "outcomes/000002-ab-1"):
            state.write(name, b"x")
        assert state.list("outcomes", "000001-ab-") == ["outcomes/000001-ab-1", "outcomes/000001-ab-2"]
        assert len(state.list("outcomes")) == 4
