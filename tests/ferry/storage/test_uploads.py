"""Multipart uploads: whatever one request meets, the object arrives whole and no part stays."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest

from demo.s3 import S3Server
from ferry.core.body import Body
from ferry.core.errors import ObjectError
from ferry.core.memory_budget import MIB, PART_BYTES, PARTS_AT_ONCE, Budget
from ferry.core.records import Confirmed, ErrorClass
from ferry.core.retry import Tries
from ferry.state.files import DirectoryState
from ferry.state.open_uploads import Uploads
from ferry.storage import store as store_module
from ferry.storage.access import S3Access
from ferry.storage.confirmation import Confirmation
from ferry.storage.factory import open_store
from ferry.storage.s3 import bucket as s3_bucket
from ferry.storage.s3 import xml
from ferry.storage.store import AlreadyThere, Store
from tests.ferry.storage.test_store import KEYS
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(180)]

PART = 64 * 1024  # as if it were 8 MiB
DATA = random.Random(5).randbytes(6 * PART + 7)  # seven parts
WITHIN_S = 60.0  # far above `read_s`, far below what five tries of an hour's silence take
REQUESTS = ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
HICCUPS = [(operation, what) for operation in REQUESTS for what in ("status", "reset", "lost answer")]
HICCUPS += [("CreateMultipartUpload", "error in 200"), ("CompleteMultipartUpload", "error in 200")]
ATTRIBUTES = {"Content-Type": "image/webp", "Cache-Control": "max-age=60", "sku": "A 1"}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ONE_PUT_BYTES", PART)
    monkeypatch.setattr(s3_bucket, "PART_BYTES", PART)


class Sender:
    """Sends spooled bodies to a store at `s3://bucket/p` and keeps the log of its uploads."""

    def __init__(self, server: OddS3 | S3Server, bucket: str, folder: Path, **given: Any) -> None:
        self.folder = folder
        self.notes = Uploads(DirectoryState(folder / "state"))
        self._bucket = bucket
        self._access = S3Access(server.endpoint_url, server.region, keys=(server.access_key, server.secret_key, None))
        self._given = given

    def open(self) -> Store:
        given = {"upload_log": self.notes, **self._given}
        return open_store(f"s3://{self._bucket}/p", self._access, self.folder, **given)

    def body(self, data: bytes = DATA) -> Body:
        path = self.folder / "spooled"
        path.write_bytes(data)
        body = helpers.make_body(data, self.folder)
        body.data, body.path = None, path
        return body

    def send(self, key: str = "k.bin", *, data: bytes = DATA, create: bool = False) -> Confirmation:
        """Uploads and confirms one body as a transfer does."""

        async def go() -> Confirmation:
            store = self.open()
            try:
                body = self.body(data)
                return await store.confirm(key, body, await store.put(key, body, ATTRIBUTES, create=create))
            finally:
                await store.close()

        return asyncio.run(go())

    def left(self) -> list[str]:
        return self.notes.left(self._bucket)


@pytest.fixture
def sender(odd: OddS3, tmp_path: Path) -> Sender:
    return Sender(odd, "bucket", tmp_path, read_s=1.0, timeout_s=600.0)


@pytest.fixture
def odd() -> Any:
    with OddS3() as server:
        server.make_bucket("bucket")
        yield server


@pytest.mark.parametrize("key", KEYS)
def test_bytes_and_attributes_arrive(
    key: str, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a server that checks signatures, any key arrives with its bytes and attributes."""
    monkeypatch.setattr(s3_bucket, "PART_BYTES", PART_BYTES)  # this server takes none below 5 MiB
    data = b"\xfe" * PART_BYTES + DATA
    sender = Sender(s3, bucket, tmp_path)
    assert sender.send(key, data=data).method is Confirmed.DIGEST
    found = s3.client().get_object(Bucket=bucket, Key=f"p/{key}")
    assert found["Body"].read() == data
    assert found["ETag"].endswith('-2"')
    assert (found["ContentType"], found["CacheControl"], found["Metadata"]) == (
        "image/webp", "max-age=60", {"sku": "A 1"},
    )  # fmt: skip
    assert sender.left() == []


@pytest.mark.parametrize(("operation", "what"), HICCUPS)
def test_hiccups_of_a_request_end_nothing(operation: str, what: Any, odd: OddS3, sender: Sender) -> None:
    """After failed requests of each kind the object arrives, and no upload stays."""
    odd.faults.append(fault := Fault(what, (operation,), times=2))
    assert sender.send().method is Confirmed.DIGEST
    assert fault.struck == 2
    assert odd.stored("bucket") == {"p/k.bin": DATA}
    assert odd.objects["bucket"]["p/k.bin"].headers["x-amz-meta-sku"] == "A 1"
    assert odd.uploads == {}
    assert sender.left() == []


@pytest.mark.parametrize("operation", REQUESTS)
def test_silence_ends_after_read_s(operation: str, odd: OddS3, sender: Sender) -> None:
    """A request without a response ends after `read_s` and is not retried, so that the run learns of it."""
    odd.faults.append(Fault("silence", (operation,)))
    began = time.monotonic()
    with pytest.raises(ObjectError) as caught:
        sender.send()
    assert caught.value.error_class is ErrorClass.TIMEOUT
    assert time.monotonic() - began < WITHIN_S
    assert odd.requests[operation] <= PARTS_AT_ONCE


def test_a_store_that_is_silent_for_good_holds_nothing_up(odd: OddS3, sender: Sender) -> None:
    """An abort without a response also ends after `read_s`; the next run aborts the upload."""
    everything = (*REQUESTS[1:], "AbortMultipartUpload", "ListMultipartUploads")
    odd.faults.append(fault := Fault("silence", everything))
    began = time.monotonic()
    with pytest.raises(ObjectError):
        sender.send()
    assert time.monotonic() - began < WITHIN_S
    assert sender.left() == ["p/k.bin"]
    odd.faults.remove(fault)
    asyncio.run(sender.open().clean())
    assert (odd.uploads, sender.left()) == ({}, [])


def test_what_could_not_be_aborted_goes_with_the_next_upload(odd: OddS3, sender: Sender) -> None:
    """An upload that could not be aborted is aborted with the next one to its key."""
    odd.faults += [
        Fault("status", ("UploadPart",), times=1, status=400, code="BadDigest"),
        Fault("status", ("ListMultipartUploads",), times=1),
    ]

    async def go() -> None:
        store = sender.open()
        with pytest.raises(ObjectError):
            await store.put("k.bin", sender.body(), {})
        assert len(odd.uploads) == 1
        await store.put("k.bin", sender.body(), {})
        await store.close()

    asyncio.run(go())
    assert (odd.uploads, sender.left()) == ({}, [])


@pytest.mark.parametrize("etags", ["md5", "kms", "opaque", "none"])
def test_an_altered_part_is_found(etags: Any, tmp_path: Path) -> None:
    """An altered part is found by the ETag or by reading back."""
    with OddS3(etags=etags, faults=[Fault("alter", ("UploadPart",), after=3, times=1)]) as server:
        server.make_bucket("bucket")
        with pytest.raises(ObjectError, match="bytes differ") as caught:
            Sender(server, "bucket", tmp_path).send()
        assert caught.value.error_class is ErrorClass.UPLOAD_UNCONFIRMED


def test_a_cancelled_upload_leaves_its_note(odd: OddS3, sender: Sender) -> None:
    """A cancelled upload stays in the log, and the next run aborts it."""
    odd.faults.append(Fault("silence", ("UploadPart",), after=2))

    async def go() -> None:
        store = sender.open()
        task = asyncio.create_task(store.put("k.bin", sender.body(), {}))
        while odd.requests["UploadPart"] < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await store.close()

    asyncio.run(go())
    assert sender.left() == ["p/k.bin"]
    assert len(odd.uploads) == 1
    asyncio.run(sender.open().clean())
    assert (odd.uploads, sender.left(), odd.stored("bucket")) == ({}, [], {})


def test_an_upload_that_the_store_forgot_is_the_objects_failure(odd: OddS3, sender: Sender) -> None:
    """NoSuchUpload for a part fails the object and is not Fatal."""
    odd.faults.append(Fault("status", ("UploadPart",), status=404, code="NoSuchUpload"))
    with pytest.raises(ObjectError, match="NoSuchUpload") as caught:
        sender.send()
    assert caught.value.error_class is ErrorClass.STORE_ERROR


@pytest.mark.parametrize("there", [True, False])
def test_another_object_does_not_end_an_upload(there: bool, odd: OddS3, sender: Sender) -> None:
    """After NoSuchUpload at completion, a missing or different object fails the upload."""
    if there:
        odd.put("bucket", "p/k.bin", bytes(len(DATA)))
        odd.objects["bucket"]["p/k.bin"].etag = "0" * 32 + "-7"
    odd.faults.append(Fault("status", ("CompleteMultipartUpload",), status=404, code="NoSuchUpload"))
    with pytest.raises(ObjectError, match="NoSuchUpload"):
        sender.send()


def test_a_body_that_one_request_may_not_carry_goes_up_in_parts(
    odd: OddS3, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spooled body that a PUT refuses with 413 is sent as a multipart upload."""
    monkeypatch.setattr(store_module, "ONE_PUT_BYTES", 100 * PART)
    odd.faults.append(Fault("status", ("PutObject",), status=413, code="EntityTooLarge"))
    assert sender.send().method is Confirmed.DIGEST
    assert (odd.requests["PutObject"], odd.requests["UploadPart"]) == (1, 7)


def test_an_object_that_appears_meanwhile_stays(odd: OddS3, sender: Sender) -> None:
    """With create, an object that appears during the upload keeps its bytes."""

    async def go() -> None:
        store = sender.open()
        odd.faults.append(Fault("slow", ("CompleteMultipartUpload",), delay_s=0.5))
        task = asyncio.create_task(store.put("k.bin", sender.body(), {}, create=True))
        while odd.requests["CompleteMultipartUpload"] < 1:
            await asyncio.sleep(0.01)
        odd.put("bucket", "p/k.bin", b"theirs")
        with pytest.raises(AlreadyThere) as caught:
            await task
        assert caught.value.error_class is ErrorClass.EXISTS
        assert not caught.value.maybe_ours, "one request, and an answer to it"
        await store.close()

    asyncio.run(go())
    assert odd.stored("bucket") == {"p/k.bin": b"theirs"}
    assert (odd.uploads, sender.left()) == ({}, [])


def test_an_end_that_is_answered_is_believed(odd: OddS3, sender: Sender) -> None:
    """A completed upload is confirmed by its ETag with no further request, but for one that looks for its headers."""
    assert sender.send().method is Confirmed.DIGEST
    assert odd.requests["ListMultipartUploads"] == 0
    assert (odd.requests["CompleteMultipartUpload"], odd.requests["HeadObject"], odd.requests["GetObject"]) == (1, 0, 1)


@pytest.mark.parametrize("what", ["reset", "lost answer"])
def test_a_lost_end_with_a_condition(what: Any, odd: OddS3, sender: Sender) -> None:
    """If the response to a conditional completion is lost, the object counts as this upload."""
    odd.faults.append(Fault(what, ("CompleteMultipartUpload",), times=2))
    assert sender.send(create=True).method is Confirmed.DIGEST
    assert (odd.stored("bucket"), odd.uploads) == ({"p/k.bin": DATA}, {})


def test_an_end_that_was_lost_may_have_put_what_stands_there(
    odd: OddS3, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that appears between two completion requests may be of this upload."""

    def meanwhile(*_: Any) -> float:
        odd.put("bucket", "p/k.bin", b"theirs, or a version of ours")
        return 0.0

    async def go() -> None:
        store = sender.open()
        with pytest.raises(AlreadyThere) as caught:
            await store.put("k.bin", sender.body(), {}, create=True)
        assert caught.value.maybe_ours
        await store.close()

    monkeypatch.setattr(Tries, "_pause_s", meanwhile)
    odd.faults.append(Fault("status", ("CompleteMultipartUpload",), times=1))
    asyncio.run(go())


def test_a_store_without_conditions_ends_an_upload_all_the_same(tmp_path: Path) -> None:
    """If the store does not support the condition (501), the upload is completed without it."""
    with OddS3(conditions="501") as server:
        server.make_bucket("bucket")
        assert Sender(server, "bucket", tmp_path).send(create=True).method is Confirmed.DIGEST
        assert server.stored("bucket") == {"p/k.bin": DATA}


@pytest.mark.parametrize(("memory", "most"), [(1 << 40, PARTS_AT_ONCE), (1 * MIB, 1)])
def test_as_many_parts_at_once_as_there_is_memory_for(memory: int, most: int, tmp_path: Path) -> None:
    """As many parts are sent at once as the memory budget allows."""
    with OddS3(faults=[Fault("slow", ("UploadPart",), delay_s=0.5)]) as server:
        server.make_bucket("bucket")
        Sender(server, "bucket", tmp_path, budget=Budget(memory)).send()
        assert server.at_once["UploadPart"] == most


def test_white_space_before_a_document() -> None:
    """White space before a document is ignored; AWS sends it to keep the connection open."""
    assert xml.text(xml.parse_document(b" \n <?xml version='1.0'?><R><ETag>e</ETag></R>\n", "store"), "ETag") == "e"


def test_what_is_sent_is_movement(sender: Sender) -> None:
    """Each part that is sent counts as progress."""
    pieces: list[int] = []

    async def go() -> None:
        store, body = sender.open(), sender.body()
        body.on_progress = lambda: pieces.append(1)
        await store.put("k.bin", body, {})
        await store.close()

    asyncio.run(go())
    assert len(pieces) >= 7


@pytest.mark.parametrize(
    ("size", "bytes_of_a_part"),
    [
        (1, PART_BYTES),
        (10_000 * PART_BYTES, PART_BYTES),
        (10_000 * PART_BYTES + 1, PART_BYTES + MIB),
        (5 << 40, 525 * MIB),
        (10_000 * (5 << 30), 5 << 30),
    ],
)
def test_no_upload_has_more_than_10000_parts(size: int, bytes_of_a_part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts have 8 MiB, or more whole MiB if there would be over 10,000 parts, up to S3's 5 GiB."""
    monkeypatch.setattr(s3_bucket, "PART_BYTES", PART_BYTES)
    assert s3_bucket.S3.part_bytes(None, size) == bytes_of_a_part  # type: ignore[arg-type]


def test_a_rest_without_its_start_is_not_sent(odd: OddS3, sender: Sender) -> None:
    """The rest of a body whose upload is not there any more begins no upload of its own."""

    async def go() -> None:
        store, body = sender.open(), sender.body()
        body.start = PART
        with pytest.raises(ObjectError, match="read again") as caught:
            await store.put("k.bin", body, {})
        assert caught.value.error_class is ErrorClass.STORE_ERROR
        await store.close()

    asyncio.run(go())
    assert (odd.requests["CreateMultipartUpload"], odd.requests["UploadPart"], sender.left()) == (0, 0, [])


def test_a_bug_leaves_no_upload(odd: OddS3, sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any exception ends the upload, not only those that are expected."""

    async def fails(*_: Any, **__: Any) -> Any:
        raise IndexError

    monkeypatch.setattr(s3_bucket.S3, "complete", fails)
    with pytest.raises(IndexError):
        sender.send()
    assert odd.requests["CreateMultipartUpload"] == 1
    assert (odd.uploads, sender.left()) == ({}, [])


def test_a_row_whose_upload_has_ended_is_not_resumed(sender: Sender) -> None:
    """Rows may share a key: the second one finds no upload any more."""

    async def go() -> None:
        store = sender.open()
        assert await store.uploads.unfinished("another") is None
        await store.close()

    asyncio.run(go())


def test_an_upload_whose_id_would_be_overwritten_is_aborted(odd: OddS3, sender: Sender) -> None:
    """A key that starts afresh ends the upload that its note names, before the note has another one."""

    async def go() -> None:
        store, body = sender.open(), sender.body()
        odd.faults.append(silence := Fault("silence", ("UploadPart",), after=1))
        body.about = {"row_id": "r"}
        task = asyncio.create_task(store.put("k.bin", body, {}))
        while odd.requests["UploadPart"] < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        odd.faults.remove(silence)
        odd.faults.append(Fault("status", ("ListMultipartUploads",), status=403, code="AccessDenied"))
        assert len(odd.uploads) == 1
        await store.uploads.find()
        await store.put("k.bin", sender.body(), {})
        await store.close()

    asyncio.run(go())
    assert odd.uploads == {}
