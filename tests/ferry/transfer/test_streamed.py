"""Objects that the spool cannot hold: their parts are sent while the body still comes (docs/decisions/0057)."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import random
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from demo.images import make_image
from demo.origin import Fault as OriginFault
from demo.origin import Origin, Trouble
from demo.validators import Validators
from ferry import http
from ferry.core import memory_budget, streamed_body
from ferry.core.errors import Fatal, ObjectError
from ferry.core.memory_budget import Budget
from ferry.core.records import Confirmed, ErrorClass, Outcome, Status
from ferry.core.streamed_body import StreamedBody
from ferry.job.model import Job, OnExisting
from ferry.ratelimit import DESTINATION
from ferry.state.files import DirectoryState
from ferry.storage.access import GoogleAccess
from ferry.storage.directory import files
from ferry.transfer import chunk as chunk_module
from ferry.transfer.chunk import run_chunk
from tests.ferry.transfer.test_memory_for_bodies import Watched
from tests.ferry.transfer.test_resume import SENT
from tests.ferry.transfer.test_resume import World as Stopped
from tests.servers.odd_gcs import UNIT, OddGcs
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(180)]

MIB = 1024 * 1024
DATA = random.Random(9).randbytes(12 * MIB + 5)
OTHER = random.Random(10).randbytes(12 * MIB + 5)
PSD = b"8BPS\x00\x01"  # how a file begins of which only the length is checked
SPOOL_BYTES = 5 * MIB
PARTS = 13


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_body, "PART_BYTES", MIB)


@pytest.fixture
def odd() -> Iterator[OddS3]:
    with OddS3() as server:
        server.make_bucket("bucket")
        yield server


class World:
    """A job with one object, which is larger than the spool may be."""

    def __init__(self, odd: OddS3, folder: Path, url: str, row: dict[str, str] | None = None, **given: Any) -> None:
        self.odd, self.folder = odd, folder
        row = {"url": url, **(row or {})}
        self.list = helpers.write_list(folder / "list.csv", [list(row.values())], header=tuple(row))
        given = {"checks": "length", "spool_bytes": SPOOL_BYTES, "retries": {"attempts": 1}, **given}
        self.job: Job = helpers.make_job(manifest=str(self.list), **given)
        self.state = DirectoryState(folder / "state")
        self.run_no = 0

    def run(self, **changed: Any) -> Outcome:
        self.run_no += 1
        job = self.job.model_copy(update=changed)
        with Watched(self.state.spool_dir) as spool:
            helpers.run(job, self.state, helpers.access(self.odd), self.run_no)
        (outcome,) = helpers.latest(self.state).values()
        assert spool.most <= min(SPOOL_BYTES, job.spool_bytes)
        assert not list(self.state.spool_dir.glob("body-*"))
        assert self.odd.uploads == {}
        assert set(self.state.list("uploads")) <= {"uploads/mark"}  # that of a directory's writer
        return outcome

    def copied(self, data: bytes = DATA, key: str = "large.bin", **changed: Any) -> Outcome:
        outcome = self.run(**changed)
        assert outcome.status is Status.COPIED, outcome
        assert (outcome.size, outcome.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert outcome.md5 == hashlib.md5(data).hexdigest()
        assert self.odd.stored("bucket")[f"p/{key}"] == data
        return outcome

    def failed(self, error_class: str, words: str, **changed: Any) -> Outcome:
        outcome = self.run(**changed)
        assert (outcome.status, outcome.error_class) == (Status.FAILED, error_class), outcome
        assert words in (outcome.message or "")
        return outcome


def test_from_a_web_server(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """The object is whole and confirmed by its digest, and the spool stays below its limit."""
    world = World(odd, tmp_path, origin.add("/large.bin", DATA, "image/x-large"))
    outcome = world.copied()
    assert outcome.confirmed is Confirmed.DIGEST
    assert outcome.content_type == "image/x-large"
    assert odd.objects["bucket"]["p/large.bin"].headers["Content-Type"] == "image/x-large"
    assert (odd.requests["UploadPart"], origin.bytes_sent["/large.bin"]) == (PARTS, len(DATA))


def test_from_a_bucket(odd: OddS3, tmp_path: Path) -> None:
    odd.put("old", "a/large.bin", DATA, {"Content-Type": "image/x-large", "x-amz-meta-sku": "A 1"})
    world = World(odd, tmp_path, "s3://old/a/large.bin", source={"roots": ["s3://old/a/"]})
    assert world.copied().confirmed is Confirmed.DIGEST
    assert odd.objects["bucket"]["p/large.bin"].headers["x-amz-meta-sku"] == "A 1"


def test_from_a_directory_to_a_directory(odd: OddS3, tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    (tmp_path / "old" / "large.bin").write_bytes(DATA)
    source = {"roots": [f"file://{tmp_path}/old/"]}
    world = World(
        odd, tmp_path, f"file://{tmp_path}/old/large.bin", source=source, destination=f"file://{tmp_path}/new/"
    )
    outcome = world.run()
    assert outcome.status is Status.COPIED, outcome
    assert outcome.sha256 == hashlib.sha256(DATA).hexdigest()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["large.bin"]
    assert (tmp_path / "new" / "large.bin").read_bytes() == DATA


def test_a_file_that_changes_meanwhile(odd: OddS3, tmp_path: Path) -> None:
    """Its parts would mix two files: nothing is written."""
    (tmp_path / "old").mkdir()
    path = tmp_path / "old" / "large.bin"
    path.write_bytes(DATA)
    odd.faults.append(Fault("slow", ("CreateMultipartUpload",), delay_s=0.5))
    world = World(odd, tmp_path, f"file://{path}", source={"roots": [f"file://{tmp_path}/old/"]})
    create = odd.faults[0]

    class Changing(type(create)):  # type: ignore[misc]
        __slots__ = ()

        def strikes(self, *given: Any) -> bool:
            struck = super().strikes(*given)
            if struck:
                path.write_bytes(OTHER)
            return bool(struck)

    create.__class__ = Changing
    world.failed("truncated", "changed while it was being read")
    assert odd.stored("bucket") == {}


@pytest.mark.parametrize("etags", ["kms", "opaque", "none"])
def test_stores_whose_etags_are_not_digests(etags: Any, origin: Origin, tmp_path: Path) -> None:
    with OddS3(etags=etags) as server:
        server.make_bucket("bucket")
        world = World(server, tmp_path, origin.add("/large.bin", DATA))
        assert world.copied().confirmed is Confirmed.READ_BACK


def test_a_full_disk_would_not_hold_it(
    odd: OddS3, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `spool_bytes`, what is free on the disk decides, for objects over 200 MiB."""
    monkeypatch.setattr(streamed_body, "ONE_PUT_BYTES", MIB)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": len(DATA) - 1}))
    world = World(odd, tmp_path, origin.add("/large.bin", DATA), spool_bytes="off")
    world.copied()
    assert odd.requests["UploadPart"] == PARTS


def test_less_than_one_part(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    world = World(odd, tmp_path, origin.add("/large.bin", DATA), spool_bytes=MIB - 1)
    world.failed("too_large", "`spool_bytes` (1,048,575 bytes for each process)")


@pytest.mark.parametrize("spool_bytes", [MIB, 2 * MIB])
def test_room_for_few_parts(spool_bytes: int, odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """As many parts are read at once as the spool can hold."""
    World(odd, tmp_path, origin.add("/large.bin", DATA), spool_bytes=spool_bytes).copied()


def test_a_body_without_a_length(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """How many parts it will have is not known."""
    url = origin.add("/large.bin", DATA, fault=OriginFault(Trouble.CHUNKED))
    World(odd, tmp_path, url).failed("too_large", "`spool_bytes`")


def test_a_key_with_the_digest(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    world = World(odd, tmp_path, origin.add("/large.bin", DATA), key="{sha256}.{ext}")
    world.failed("too_large", "`spool_bytes`")
    assert odd.requests["CreateMultipartUpload"] == 0


def test_a_key_with_the_type(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """The first part shows it."""
    data = b"8BPS\x00\x01" + DATA
    world = World(odd, tmp_path, origin.add("/large", data), {"name": "large"}, key="{name}.{ext}", checks="image")
    outcome = world.copied(data, "large.psd")
    assert "only its length was checked" in (outcome.message or "")


def test_a_type_whose_check_needs_the_whole(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """The message says how to store it."""
    data = make_image("png", 3) + DATA
    world = World(odd, tmp_path, origin.add("/large.bin", data), checks="image")
    world.failed("too_large", "`checks: image` needs all of a PNG at once")
    assert odd.requests["CreateMultipartUpload"] == 0
    (tmp_path / "again").mkdir()
    World(odd, tmp_path / "again", origin.add("/large.bin", data)).copied(data)


def test_a_page_in_place_of_an_image(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    data = b"<!DOCTYPE html><html><body>" + b"x" * len(DATA)
    world = World(odd, tmp_path, origin.add("/large.bin", data, "image/jpeg"), checks="image")
    world.failed("not_image", "HTML")
    assert odd.requests["CreateMultipartUpload"] == 0


@pytest.mark.parametrize("name", ["md5", "sha256"])
def test_a_digest_of_the_list(name: str, odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """It is compared before the last part is sent, so no object is made of other bytes."""
    url = origin.add("/large.bin", DATA)
    world = World(odd, tmp_path, url, {name: hashlib.new(name, OTHER).hexdigest()})
    world.failed("digest_mismatch", f"the bytes have the {name}")
    assert odd.stored("bucket") == {}
    assert 0 < odd.requests["UploadPart"] <= (PARTS - 1) * odd.requests["CreateMultipartUpload"]
    (tmp_path / "right").mkdir()
    World(odd, tmp_path / "right", url, {name: hashlib.new(name, DATA).hexdigest()}).copied()


def test_a_size_of_the_list(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    world = World(odd, tmp_path, origin.add("/large.bin", DATA), {"size": str(len(DATA) + 1)})
    world.failed("truncated", "the manifest has")
    assert odd.requests["CreateMultipartUpload"] == 0


def test_a_source_that_breaks_off(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """It is the source's failure, and the row is tried again."""
    world = World(odd, tmp_path, origin.add("/large.bin", DATA, fault=OriginFault(Trouble.TRUNCATED_LENGTH)))
    world.failed("truncated", "the body ended before it was complete")
    assert odd.stored("bucket") == {}
    once = OriginFault(Trouble.TRUNCATED_LENGTH, times=1)
    (tmp_path / "again").mkdir()
    World(odd, tmp_path / "again", origin.add("/large.bin", DATA, fault=once)).copied()


@pytest.mark.slow
def test_a_source_that_falls_silent(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """It is the source's failure, and not the destination's, although that waits for the bytes."""
    urls = [origin.add(f"/{number}.bin", DATA, fault=OriginFault(Trouble.STALL)) for number in range(6)]
    world = World(odd, tmp_path, urls[0], timeouts={"read_s": 0.3})
    helpers.write_list(world.list, [[url] for url in urls])
    planned = helpers.plan(world.job, world.state, server=helpers.access(odd))
    with helpers.engine(world.job, world.state, helpers.access(odd)) as runtime:
        run_chunk(runtime, planned.chunks[0])
        source, store = (runtime.limiter.host(name) for name in (urls[0].split("/")[2], DESTINATION))
        assert source._broken > 0
        assert store._broken == 0
    assert {outcome.error_class for outcome in helpers.latest(world.state).values()} == {"timeout"}


def test_a_store_that_fails(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """Parts are sent again from the spool; an upload that ends has its row read again."""
    odd.faults.append(Fault("status", ("UploadPart",), after=3, times=2))
    url = origin.add("/large.bin", DATA)
    World(odd, tmp_path, url).copied()
    assert origin.bytes_sent["/large.bin"] == len(DATA)
    odd.faults = [Fault("lost answer", ("UploadPart",), after=5, times=1)]
    (tmp_path / "again").mkdir()
    World(odd, tmp_path / "again", url, destination="s3://bucket/p/again").copied(key="again/large.bin")
    odd.faults = [Fault("status", ("UploadPart",), after=8, status=400, code="EntityTooSmall")]
    (tmp_path / "refused").mkdir()
    world = World(odd, tmp_path / "refused", url, destination="s3://bucket/q")
    world.failed("store_error", "EntityTooSmall")


def test_a_store_that_refuses_tags_at_the_end(odd: OddS3, tmp_path: Path) -> None:
    """The parts cannot be sent again without them, as Azure asks for: the row is read once more."""
    odd.put("old", "a/large.bin", DATA, {"Content-Type": "image/x-large", "x-amz-tagging": "sku=1"})
    odd.faults.append(Fault("status", ("CompleteMultipartUpload",), times=1, status=403, code="AccessDenied"))
    world = World(odd, tmp_path, "s3://old/a/large.bin", source={"roots": ["s3://old/a/"]}, retries={"attempts": 2})
    assert world.copied().lost_attributes == ["tags"]
    assert "x-amz-tagging" not in odd.objects["bucket"]["p/large.bin"].headers


@pytest.mark.parametrize("kind", [Validators.BOTH, Validators.WEAK_NO_CONDITIONS])
@pytest.mark.parametrize("data", [DATA, OTHER, OTHER + b"more"])
def test_the_next_night(data: bytes, kind: Validators, odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """An object that has not changed is not sent; one that has is."""
    world = World(odd, tmp_path, origin.add("/large.bin", DATA, kind=kind), mode="delta")
    world.copied()
    origin.add("/large.bin", data, kind=kind)
    odd.requests.clear()
    if data is DATA:
        assert world.run().status is Status.UNCHANGED
        assert odd.requests["UploadPart"] == 0
    else:
        world.copied(data)
        assert odd.requests["UploadPart"] == PARTS
        assert list(odd.stored("bucket")) == ["p/large.bin"]


@pytest.mark.parametrize("policy", OnExisting)
@pytest.mark.parametrize("there", [DATA, OTHER, OTHER + b"more"])
def test_a_key_that_is_taken(there: bytes, policy: OnExisting, odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """As `on_existing` says. A body that was read to be compared is fetched again if it is to be written."""
    odd.put("bucket", "p/large.bin", there)
    world = World(odd, tmp_path, origin.add("/large.bin", DATA), on_existing=policy)
    outcome = world.run()
    same = there is DATA
    expected = {
        OnExisting.OVERWRITE: Status.COPIED,
        OnExisting.SKIP: Status.SKIPPED,
        OnExisting.SKIP_SAME: Status.UNCHANGED if same else Status.COPIED,
        OnExisting.FAIL: Status.UNCHANGED if same else Status.FAILED,
    }[policy]
    assert outcome.status is expected, outcome
    assert odd.stored("bucket") == {"p/large.bin": DATA if expected is Status.COPIED else there}
    if outcome.status is Status.COPIED:
        assert outcome.sha256 == hashlib.sha256(DATA).hexdigest()


def test_a_key_that_is_taken_meanwhile(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """`on_existing: fail` writes by a condition: what came since stays."""
    world = World(odd, tmp_path, origin.add("/large.bin", DATA), on_existing="fail")
    helpers.plan(world.job, world.state, server=helpers.access(odd))
    odd.put("bucket", "p/large.bin", OTHER)
    outcome = world.run()
    assert outcome.status is Status.FAILED
    assert outcome.error_class == "exists"
    assert odd.stored("bucket") == {"p/large.bin": OTHER}


@pytest.fixture
def stopped(odd: OddS3, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stopped:
    """A run that was stopped once SENT parts had arrived."""
    monkeypatch.setattr(memory_budget, "PARTS_AT_ONCE", 1)
    monkeypatch.setattr(chunk_module, "GRACE_S", 0.1)
    world = Stopped(odd, origin, tmp_path, spool_bytes=SPOOL_BYTES, checks="length")
    world.stop_half_way()
    assert len(world.upload.parts) == SENT
    return world


def test_a_stopped_upload_resumes(stopped: Stopped) -> None:
    """All of the body is read again, since no digest of it is known. The store gets the parts that it lacks."""
    outcome = stopped.run()
    assert (stopped.sent, stopped.fetched) == (PARTS - SENT, len(DATA))
    assert stopped.odd.requests["CreateMultipartUpload"] == 0
    assert (outcome.confirmed, outcome.content_type) == (Confirmed.DIGEST, "image/jpeg")


def test_a_stopped_upload_of_another_source(stopped: Stopped) -> None:
    stopped.origin.add("/large.bin", OTHER)
    stopped.run(OTHER)
    assert stopped.sent == PARTS
    assert stopped.odd.requests["CreateMultipartUpload"] == 1, "no part of another object is looked for"


def test_a_source_that_changed_under_its_etag(stopped: Stopped) -> None:
    """Each part is compared with what the store has: those that differ are sent again."""
    data = DATA[: 2 * MIB] + OTHER[2 * MIB :]
    stopped.origin._objects["/large.bin"].body = data
    stopped.run(data)
    assert stopped.sent == PARTS - 2


def test_a_part_that_the_store_altered(stopped: Stopped) -> None:
    stopped.upload.parts[3] = bytes([stopped.upload.parts[3][0] ^ 1]) + stopped.upload.parts[3][1:]
    assert stopped.run().confirmed is Confirmed.DIGEST
    assert stopped.sent == PARTS - SENT + 1


def test_a_stopped_upload_that_the_spool_can_hold_now(stopped: Stopped) -> None:
    """`spool_bytes` was raised: the row starts afresh, and the old upload is aborted."""
    stopped.run(spool_bytes=100 * MIB)
    assert stopped.sent in (0, PARTS)


def test_a_stopped_upload_whose_list_has_a_digest(stopped: Stopped) -> None:
    url = stopped.list.read_text().split()[1]
    helpers.write_list(stopped.list, [[url, hashlib.md5(DATA).hexdigest()]], header=("url", "md5"))
    stopped.run()
    assert stopped.fetched == len(DATA)


@pytest.mark.parametrize("etags", ["kms", "opaque", "none"])
def test_a_stopped_upload_without_digests(
    etags: Any, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store does not show which bytes its parts have, so all are sent again."""
    monkeypatch.setattr(memory_budget, "PARTS_AT_ONCE", 1)
    monkeypatch.setattr(chunk_module, "GRACE_S", 0.1)
    with OddS3(etags=etags) as server:
        server.make_bucket("bucket")
        world = Stopped(server, origin, tmp_path, spool_bytes=SPOOL_BYTES, checks="length")
        world.stop_half_way()
        world.run()
        assert world.sent == PARTS


@pytest.fixture
def late(odd: OddS3, origin: Origin, tmp_path: Path) -> World:
    """A job whose keys have the type that the first part shows."""
    url = origin.add("/large", PSD + DATA, kind=Validators.BOTH)
    return World(odd, tmp_path, url, {"name": "large"}, key="{name}.{ext}", mode="delta")


def test_a_late_key_that_is_taken(late: World) -> None:
    """The body is compared once; the second time it is written."""
    late.odd.put("bucket", "p/large.psd", PSD + OTHER)
    late.copied(PSD + DATA, "large.psd")


@pytest.mark.parametrize("there", [PSD + DATA, PSD + DATA + b"more"])
def test_a_late_key_on_the_next_night(there: bytes, late: World, origin: Origin) -> None:
    """What Ferry wrote is replaced; so is what another program wrote over it with the new size."""
    origin.add("/large", there, kind=Validators.BOTH)
    late.copied(there, "large.psd")
    late.odd.put("bucket", "p/large.psd", PSD + DATA)
    origin.add("/large", PSD + OTHER, kind=Validators.BOTH)
    late.copied(PSD + OTHER, "large.psd")


@pytest.mark.parametrize("policy", [OnExisting.SKIP_SAME, OnExisting.FAIL])
def test_a_key_that_is_deleted_while_it_is_compared(
    policy: OnExisting, odd: OddS3, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body has been read to its end by then: nothing of it can be written."""
    new, written = tmp_path / "new" / "large.bin", []
    new.parent.mkdir()
    new.write_bytes(OTHER)
    read, finish = StreamedBody.read_to_end, files._finish

    async def read_to_end(self: StreamedBody) -> None:
        await read(self)
        new.unlink()

    def finished(file: BinaryIO) -> str:
        written.append(file.tell())
        return finish(file)

    monkeypatch.setattr(StreamedBody, "read_to_end", read_to_end)
    monkeypatch.setattr(files, "_finish", finished)
    url = origin.add("/large.bin", DATA)
    world = World(odd, tmp_path, url, destination=f"file://{new.parent}/", on_existing=policy)
    assert world.run().status is Status.COPIED
    assert new.read_bytes() == DATA
    assert written == [len(DATA)], "a file without the parts that were read was written"


def test_a_directory_that_is_full(odd: OddS3, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that it did not take is deleted from the spool."""
    (tmp_path / "new").mkdir()

    def full(path: Path, file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_append", full)
    world = World(odd, tmp_path, origin.add("/large.bin", DATA), destination=f"file://{tmp_path}/new/")
    with pytest.raises(Fatal, match="destination: no space left"):
        world.run()
    assert not list(world.state.spool_dir.glob("body-*"))
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("data", [DATA + b"more", OTHER])
def test_a_file_that_is_replaced_while_the_spool_is_full(
    data: bytes, odd: OddS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is tried again: its size is not the failure."""
    path = tmp_path / "old" / "large.bin"
    path.parent.mkdir()
    path.write_bytes(DATA)
    take = Budget.take_parts

    async def take_late(self: Budget, *given: Any) -> Any:
        (tmp_path / "other").write_bytes(data)
        (tmp_path / "other").replace(path)
        return await take(self, *given)

    monkeypatch.setattr(Budget, "take_parts", take_late)
    world = World(odd, tmp_path, f"file://{path}", source={"roots": [f"file://{path.parent}/"]})
    world.failed("truncated", "changed while it was being read")


def test_a_key_that_may_not_be_written(odd: OddS3, tmp_path: Path) -> None:
    """That its tags were refused says nothing about other objects: they keep theirs."""
    for name, data in (("large", DATA), ("small", b"small")):
        odd.put("old", f"a/{name}.bin", data, {"Content-Type": "image/x-large", "x-amz-tagging": "sku=1"})
    odd.faults = [
        Fault("status", ("CompleteMultipartUpload",), status=403, code="AccessDenied"),
        Fault("slow", ("GetObject",), key="small", delay_s=2.0),  # it is written after the refusal
    ]
    world = World(odd, tmp_path, "s3://old/a/large.bin", source={"roots": ["s3://old/a/"]}, retries={"attempts": 2})
    helpers.write_list(world.list, [["s3://old/a/large.bin"], ["s3://old/a/small.bin"]])
    helpers.run(world.job, world.state, helpers.access(odd), 1)
    large, small = (helpers.by_key(world.state)[f"{name}.bin"] for name in ("large", "small"))
    assert (large.error_class, small.lost_attributes) == ("forbidden", None)
    assert odd.requests["CreateMultipartUpload"] >= 2
    assert odd.objects["bucket"]["p/small.bin"].headers["x-amz-tagging"] == "sku=1"


def test_a_stopped_upload_with_other_attributes(stopped: Stopped) -> None:
    """A store takes them when an upload begins: another one begins."""
    stopped.origin.add("/large.bin", DATA, "image/x-other")
    stopped.run()
    assert stopped.sent == PARTS
    assert stopped.odd.objects["bucket"]["p/large.bin"].headers["Content-Type"] == "image/x-other"


def test_google_gets_the_parts_in_order(origin: Origin, tmp_path: Path) -> None:
    """It keeps less of each than was sent, so the next one waits."""
    with OddGcs(takes=3 * UNIT) as server:
        server.objects["bucket"] = {}
        url = origin.add("/large.bin", DATA)
        rows = helpers.write_list(tmp_path / "list.csv", [[url]])
        job = helpers.make_job(
            manifest=str(rows), destination="gs://bucket/p/", checks="length", spool_bytes=SPOOL_BYTES
        )
        state = DirectoryState(tmp_path / "state")
        helpers.run(job, state, GoogleAccess(server.url, anonymous=True), 1)
        (outcome,) = helpers.latest(state).values()
        assert (outcome.status, outcome.confirmed) == (Status.COPIED, Confirmed.DIGEST), outcome
        assert outcome.sha256 == hashlib.sha256(DATA).hexdigest()
        assert server.objects["bucket"]["p/large.bin"].data == DATA
        assert (server.count("begin"), origin.bytes_sent["/large.bin"]) == (1, len(DATA))
        parts = [asked for asked in server.asked if asked.operation == "part"]
        assert all(asked.body for asked in parts), "a part came out of turn: Google was asked what it has"
        assert parts[-1].headers.get("x-goog-hash") == "md5=" + base64.b64encode(hashlib.md5(DATA).digest()).decode()


def test_a_connection_that_has_another_request(origin: Origin, tmp_path: Path) -> None:
    """It is free once the body was read to its end. The end of the upload does not close it."""
    large, slow = origin.add("/large.bin", DATA), origin.add("/slow", b"x" * 100, fault=OriginFault(Trouble.SLOW))
    options = http.OriginOptions({}, [], connect_s=5, read_s=5, total_s=20, max_bytes=100 * MIB)

    async def scenario() -> int:
        client = http.Origin(
            options, http.AddressFilter(["127.0.0.1"]), tmp_path, budget=Budget(spool_bytes=SPOOL_BYTES)
        )
        try:
            body = (await client.get(large, may_stream=True)).body
            assert isinstance(body, StreamedBody)
            await body.read_to_end()
            other = asyncio.create_task(client.get(slow))
            await asyncio.sleep(0.3)
            body.discard()
            assert (await other).body.size == 100
            return client.connections_opened
        finally:
            await client.close()

    assert asyncio.run(scenario()) == 1


def test_a_limit_of_bytes_holds_for_a_directory(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """`limits.destination.bytes_per_s` counts the parts of a streamed file."""
    (tmp_path / "new").mkdir()
    limits = {"destination": {"bytes_per_s": 6 * MIB}}
    world = World(odd, tmp_path, origin.add("/large.bin", DATA), limits=limits, destination=f"file://{tmp_path}/new/")
    started = time.monotonic()
    assert world.run().status is Status.COPIED
    assert time.monotonic() - started > 1.0


def test_a_streamed_object_counts_at_its_source_until_its_end(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """With a concurrency of 1 the source is asked for one object at a time, however slow the store is."""
    odd.faults.append(Fault("slow", ("UploadPart",), delay_s=0.15))
    rows = helpers.write_list(tmp_path / "list.csv", [[origin.add(f"/{n}.bin", DATA)] for n in range(2)])
    limits = {"hosts": {"127.0.0.1": {"concurrency": 1}}}
    job = helpers.make_job(manifest=str(rows), checks="length", spool_bytes=2 * SPOOL_BYTES, limits=limits)
    helpers.run(job, DirectoryState(tmp_path / "state"), helpers.access(odd))
    assert odd.stored("bucket") == {f"p/{n}.bin": DATA for n in range(2)}
    first, second = origin.times
    assert second - first > 3 * 0.15, "13 parts, five of them at once at most"


def test_the_error_of_a_body_stays(tmp_path: Path) -> None:
    """Each later request for a part raises the same error."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield bytes(MIB)
        raise ObjectError(ErrorClass.TRUNCATED, "cut")

    async def scenario() -> None:
        body = await streamed_body.begin_stream(
            pieces(), lambda: None, 3 * MIB, Budget(spool_bytes=2 * MIB), tmp_path, None, "host"
        )
        index, first = await body.part() or (None, None)
        assert (index, first and first.size) == (0, MIB)
        for _ in range(2):
            with pytest.raises(ObjectError, match="cut") as raised:
                await body.part()
            assert raised.value is body.error
        if first is not None:
            first.discard()
        body.discard()

    asyncio.run(scenario())
    assert not list(tmp_path.iterdir())
