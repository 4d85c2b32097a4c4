"""Control requests to a bucket: what each sends, what its response means, and what it leaves there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from demo.s3 import S3Server
from ferry.core.errors import Fatal, ObjectError
from ferry.core.records import ErrorClass
from ferry.core.retry import Tries
from ferry.storage import s3_control
from ferry.storage.credentials import Access
from ferry.storage.s3_control import BucketControl
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers

MIB = 1 << 20
QUICK = Tries(sleep=lambda _: None)


def control(server: OddS3, bucket: str = "b") -> BucketControl:
    return BucketControl(bucket, helpers.access(server), tries=QUICK)


@pytest.fixture
def odd() -> Iterator[OddS3]:
    with OddS3() as server:
        server.make_bucket("b")
        yield server


def test_each_request_is_signed(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A server that checks signatures accepts requests with and without body and query."""
    (tmp_path / "file").write_bytes(b"a file")
    there = BucketControl(bucket, helpers.access(s3))
    assert there.head_bucket().status == 200
    there.put("a b/é?.txt", b"one", {"content-type": "text/plain"})
    there.upload("file", tmp_path / "file")
    assert there.read("a b/é?.txt") is not None
    assert [found.key for page in there.pages("") for found in page] == ["a b/é?.txt", "file"]
    assert there.may_write("p/").status == 200
    there.delete(["a b/é?.txt", "file", "none"])
    assert list(there.pages("")) == []


# --- the bucket


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_refusal_of_the_bucket_is_an_answer(status: int, odd: OddS3) -> None:
    """A refusal is returned after one request; a server error is raised after five attempts."""
    odd.faults = [Fault("status", ("HeadBucket", "CreateMultipartUpload"), status=status, code="No")]
    assert control(odd).head_bucket().status == control(odd).may_write("p/").status == status
    assert (odd.requests["HeadBucket"], odd.requests["CreateMultipartUpload"]) == (1, 1)
    odd.faults[0].status = 500
    with pytest.raises(ObjectError):
        control(odd).head_bucket()
    assert odd.requests["HeadBucket"] == 6


def test_the_right_to_write_is_tried_and_nothing_stays(odd: OddS3) -> None:
    """The check of write permission aborts its upload; a store that refuses the abort still passes."""
    assert control(odd).may_write("p/").status == 200
    assert (odd.requests["CreateMultipartUpload"], odd.uploads, odd.stored("b")) == (1, {}, {})
    odd.faults = [Fault("status", ("AbortMultipartUpload",), status=403, code="AccessDenied")]
    assert control(odd).may_write("p/").status == 200
    assert len(odd.uploads) == 1


def begin(odd: OddS3, *keys: str) -> None:
    for key in keys:
        control(odd).ask("POST", key, {"uploads": ""})


def begun(odd: OddS3) -> list[str]:
    return sorted(upload.key for upload in odd.uploads.values())


def test_uploads_to_a_key_are_aborted_and_no_others(odd: OddS3) -> None:
    """abort() ends uploads to exactly the key, or to all keys below it, and no others."""
    begin(odd, "p/a", "p/a", "p/ab", "q/a")
    assert control(odd).abort("p/a") is True
    assert begun(odd) == ["p/ab", "q/a"]
    odd.faults = [Fault("status", ("AbortMultipartUpload",), times=1, status=404, code="NoSuchUpload")]
    assert control(odd).abort("p/a", below=True) is True
    assert control(odd).abort("p/a", below=True) is True
    assert begun(odd) == ["q/a"]


def test_a_list_of_uploads_that_goes_on_is_said(odd: OddS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """abort() returns False if the store has more uploads than one response lists."""
    begin(odd, "p/a")
    multipart = OddS3._multipart

    def cut(self: OddS3, operation: str, *given: object) -> object:
        response = multipart(self, operation, *given)  # type: ignore[arg-type]
        if operation == "ListMultipartUploads":
            assert response.text is not None
            response.text = response.text.replace("<IsTruncated>false", "<IsTruncated>true")
        return response

    monkeypatch.setattr(OddS3, "_multipart", cut)
    assert control(odd).abort("p/a") is False
    assert begun(odd) == []


def test_trials_that_were_left_are_forgotten(odd: OddS3) -> None:
    """Only preflight uploads below the prefix are aborted; uploads of objects stay."""
    odd.faults = [Fault("status", ("AbortMultipartUpload",), times=2, status=403, code="AccessDenied")]
    control(odd).may_write("p")
    control(odd).may_write("other")
    begin(odd, "p/a")
    control(odd).abort_preflight_uploads("p")
    assert len(begun(odd)) == 2
    assert "p/a" in begun(odd)
    control(odd).abort_preflight_uploads("other")
    assert begun(odd) == ["p/a"]


# --- files


def test_what_is_not_there(odd: OddS3) -> None:
    """A missing object is not an error; a missing bucket is Fatal."""
    pieces: list[bytes] = []
    assert control(odd).read("none") is None
    assert control(odd).download("none", pieces.append) is False
    with pytest.raises(Fatal, match="bucket"):
        control(odd, "nowhere").read("none")
    with pytest.raises(Fatal, match="bucket"):
        control(odd, "nowhere").download("none", pieces.append)
    assert pieces == []


def test_a_download_comes_in_pieces(odd: OddS3) -> None:
    """A download is passed on as it arrives."""
    data = bytes(range(256)) * 12_000
    odd.put("b", "large", data)
    pieces: list[bytes] = []
    assert control(odd).download("large", pieces.append) is True
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= MIB


@pytest.mark.parametrize(("etags", "whole"), [("md5", True), ("none", False)])
def test_a_download_is_continued_where_its_version_is_known(etags: str, whole: bool) -> None:
    """An interrupted download resumes if it has an ETag, and each byte received resets the attempts."""
    data = bytes(range(256)) * 50_000
    with OddS3(etags=etags, faults=[fault := Fault("halve", ("GetObject",), times=7)]) as odd:  # type: ignore[arg-type]
        odd.put("b", "large", data)
        pieces: list[bytes] = []
        if whole:
            assert control(odd).download("large", pieces.append) is True
            assert b"".join(pieces) == data
            assert fault.struck == 7
        else:
            with pytest.raises(ObjectError):
                control(odd).download("large", pieces.append)


def test_a_file_goes_up_in_as_many_parts_as_are_allowed(
    odd: OddS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file up to the part size is one request; larger ones have at most MAX_PARTS parts."""
    assert (s3_control.PART_BYTES, s3_control.MAX_PARTS) == (16 * MIB, 10_000)
    monkeypatch.setattr(s3_control, "PART_BYTES", 4)
    monkeypatch.setattr(s3_control, "MAX_PARTS", 3)
    path = tmp_path / "file"
    for size, parts in ((4, 0), (5, 2), (8, 2), (12, 3), (13, 3), (15, 3), (16, 3)):
        path.write_bytes(data := bytes(range(size)))
        before = odd.requests["UploadPart"]
        control(odd).upload("file", path)
        assert odd.requests["UploadPart"] - before == parts, size
        assert odd.stored("b") == {"file": data}
        assert odd.uploads == {}


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_an_upload_that_fails_leaves_no_parts(
    operation: str, odd: OddS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed upload is aborted, and its error is raised."""
    monkeypatch.setattr(s3_control, "PART_BYTES", 4)
    (tmp_path / "file").write_bytes(b"0123456789")
    odd.faults = [Fault("status", (operation,), status=403, code="AccessDenied")]
    with pytest.raises((ObjectError, Fatal), match="403"):
        control(odd).upload("file", tmp_path / "file")
    assert (odd.uploads, odd.stored("b")) == ({}, {})


@pytest.mark.parametrize("etags", ["md5", "upper", "opaque", "none"])
@pytest.mark.parametrize("older", [None, b"of another size", b"0123456xyz"])
def test_the_object_decides_where_the_answer_to_its_end_was_lost(
    etags: str, older: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a lost completion, the object's size and composite ETag decide."""
    monkeypatch.setattr(s3_control, "PART_BYTES", 4)
    (tmp_path / "file").write_bytes(b"0123456789")
    with OddS3(etags=etags) as odd:  # type: ignore[arg-type]
        odd.make_bucket("b")
        odd.faults = [Fault("lost answer", ("CompleteMultipartUpload",), times=1)]
        control(odd).upload("new", tmp_path / "file")
        assert odd.stored("b") == {"new": b"0123456789"}
        odd.faults = [Fault("status", ("CompleteMultipartUpload",), status=404, code="NoSuchUpload")]
        if older is not None:
            parts = [older[at : at + 4] for at in range(0, len(older), 4)]
            odd.put("b", "old", older)
            odd.objects["b"]["old"].etag = odd._etag_of_parts(parts)
        if older == b"0123456xyz" and etags in ("opaque", "none"):
            control(odd).upload("old", tmp_path / "file")  # neither size nor ETag differs
            return
        with pytest.raises((ObjectError, Fatal)):
            control(odd).upload("old", tmp_path / "file")


def test_many_files_are_deleted_a_thousand_at_a_time(odd: OddS3) -> None:
    """Objects are deleted 1,000 a request, whatever their names, and no others."""
    keys = [f"{n}&<é>" for n in range(2001)]
    for key in [*keys, "stays"]:
        odd.put("b", key, b"x")
    control(odd).delete([*keys, "none"])
    assert odd.stored("b") == {"stays": b"x"}
    assert odd.requests["DeleteObjects"] == 3
    assert odd.requests["DeleteObject"] == 0


@pytest.mark.parametrize(("status", "one_by_one"), [(400, True), (405, True), (501, True), (403, False)])
def test_a_store_that_does_not_know_how_to_delete_many(status: int, one_by_one: bool, odd: OddS3) -> None:
    """If a store does not support DeleteObjects, each object is deleted alone; a refusal is raised."""
    odd.put("b", "a", b"x")
    odd.faults = [Fault("status", ("DeleteObjects",), status=status, code="No")]
    there = control(odd)
    if not one_by_one:
        with pytest.raises((ObjectError, Fatal)):
            there.delete(["a"])
        assert odd.stored("b") == {"a": b"x"}
        return
    there.delete(["a", "none"])
    there.delete(["none"])
    assert odd.stored("b") == {}
    assert (odd.requests["DeleteObjects"], odd.requests["DeleteObject"]) == (1, 3)


def test_a_file_that_was_not_deleted_is_an_error(odd: OddS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """An <Error> for one key in a DeleteObjects response is raised."""

    def refuse(self: OddS3, objects: object, body: bytes) -> object:
        text = "<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code></Error></DeleteResult>"
        return web.Response(text=text)

    monkeypatch.setattr(OddS3, "_delete_many", refuse)
    with pytest.raises((ObjectError, Fatal), match="AccessDenied"):
        control(odd).delete(["a"])


# --- one request


def test_an_answer_without_end_is_an_error(odd: OddS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response above the limit is an error and is not read further."""
    odd.put("b", "a", b"x" * 100)
    monkeypatch.setattr(s3_control, "_MAX_RESPONSE_BYTES", 100)
    assert control(odd).read("a") is not None
    monkeypatch.setattr(s3_control, "_MAX_RESPONSE_BYTES", 99)
    with pytest.raises(ObjectError, match="exceeds 99 bytes") as caught:
        control(odd).read("a")
    assert caught.value.error_class is ErrorClass.INTERNAL


def test_a_path_of_the_endpoint_is_kept(odd: OddS3) -> None:
    """A path in `endpoint_url` is kept in front of the bucket."""
    odd.make_bucket("store")
    access = Access(f"{odd.endpoint_url}/store/", odd.region, keys=("odd", "odd-secret", None))
    BucketControl("b", access, tries=QUICK).put("a", b"x")
    assert odd.stored("store") == {"b/a": b"x"}


def test_retry_after_is_heard(odd: OddS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt waits as long as Retry-After says."""
    waits: list[float] = []
    carry_out = OddS3._carry_out

    def busy(self: OddS3, *given: object) -> object:
        if waits:
            return carry_out(self, *given)  # type: ignore[arg-type]
        return web.Response(status=503, headers={"Retry-After": "7"})

    monkeypatch.setattr(OddS3, "_carry_out", busy)
    BucketControl("b", helpers.access(odd), tries=Tries(base_s=0.001, sleep=waits.append)).put("a", b"x")
    assert waits == [7.0]
