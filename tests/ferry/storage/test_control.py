"""Control requests to a bucket: what each sends, what its response means, and what it leaves there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from demo.s3 import S3Server
from ferry.core.errors import Fatal, ObjectError
from ferry.core.records import ErrorClass
from ferry.core.retry import Tries
from ferry.storage import endpoint
from ferry.storage.access import S3Access
from ferry.storage.control import Control
from ferry.storage.factory import open_control
from ferry.storage.s3 import bucket as s3_bucket
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers

MIB = 1 << 20
QUICK = Tries(sleep=lambda _: None)


def control(server: OddS3, bucket: str = "b") -> Control:
    there = open_control(f"s3://{bucket}", helpers.access(server))
    there._tries = QUICK
    return there


@pytest.fixture
def odd() -> Iterator[OddS3]:
    with OddS3() as server:
        server.make_bucket("b")
        yield server


def test_each_request_is_signed(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A server that checks signatures accepts requests with and without body and query."""
    (tmp_path / "file").write_bytes(b"a file")
    there = open_control(f"s3://{bucket}", helpers.access(s3))
    assert there.refusal("p", writing=True) is None
    there.write("a b/é?.txt", b"one")
    there.upload("file", tmp_path / "file")
    assert there.read("a b/é?.txt") is not None
    assert [found.key for page in there.pages("") for found in page] == ["a b/é?.txt", "file"]
    there.delete(["a b/é?.txt", "file", "none"])
    assert list(there.pages("")) == []


# --- the bucket


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_refusal_of_the_bucket_is_an_answer(status: int, odd: OddS3) -> None:
    """A refusal is returned after one request; a server error is raised after five attempts."""
    odd.faults = [Fault("status", ("HeadBucket", "CreateMultipartUpload"), status=status, code="No")]
    assert f"HTTP {status}" in (control(odd).refusal("p", writing=False) or "") or status == 404
    odd.faults[0].operations = ("CreateMultipartUpload",)
    assert control(odd).refusal("p", writing=True) is not None
    assert (odd.requests["HeadBucket"], odd.requests["CreateMultipartUpload"]) == (2, 1)
    odd.faults[0].status = 500
    with pytest.raises(ObjectError):
        control(odd).refusal("p", writing=True)
    assert odd.requests["CreateMultipartUpload"] == 6


def test_the_right_to_write_is_tried_and_nothing_stays(odd: OddS3) -> None:
    """The check of write permission aborts its upload; a store that refuses the abort still passes."""
    assert control(odd).refusal("p", writing=True) is None
    assert (odd.requests["CreateMultipartUpload"], odd.uploads, odd.stored("b")) == (1, {}, {})
    odd.faults = [Fault("status", ("AbortMultipartUpload",), status=403, code="AccessDenied")]
    assert control(odd).refusal("p", writing=True) is None
    assert len(odd.uploads) == 1


def begin(odd: OddS3, *keys: str) -> None:
    for key in keys:
        control(odd)._ask(lambda there, key=key: there.begin(key, {}, 1, md5=None, create=False))  # type: ignore[misc]


def begun(odd: OddS3) -> list[str]:
    return sorted(upload.key for upload in odd.uploads.values())


def test_uploads_below_a_prefix_are_aborted_and_no_others(odd: OddS3) -> None:
    """One that has ended meanwhile is not an error."""
    begin(odd, "p/a", "p/a", "p/ab", "q/a")
    odd.faults = [Fault("status", ("AbortMultipartUpload",), times=1, status=404, code="NoSuchUpload")]
    control(odd).abort("p/a")
    control(odd).abort("p/a")
    assert begun(odd) == ["q/a"]


@pytest.mark.parametrize("advances", [True, False])
def test_a_list_of_uploads_in_pages(advances: bool, odd: OddS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is asked for; a store that always gives the first one is asked until nothing is left."""
    begin(odd, *(f"p/{n}" for n in range(5)))
    multipart = OddS3._multipart

    def cut(self: OddS3, operation: str, *given: Any) -> object:
        response = multipart(self, operation, *given)
        if operation == "ListMultipartUploads":
            assert response.text is not None
            head, *uploads = response.text.replace("</ListMultipartUploadsResult>", "").split("<Upload>")
            after = given[3].get("key-marker", "") if advances else ""
            left = [each for each in uploads if each.partition("<Key>")[2].partition("<")[0] > after]
            head = head.replace("<IsTruncated>false", f"<IsTruncated>{str(len(left) > 2 or not advances).lower()}")
            response.text = "<Upload>".join([head, *left[:2]]) + "</ListMultipartUploadsResult>"
        return response

    monkeypatch.setattr(OddS3, "_multipart", cut)
    control(odd).abort("p/")
    assert begun(odd) == []


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


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ferry.storage.control.PART_BYTES", 2)
    monkeypatch.setattr(s3_bucket, "PART_BYTES", 4)


def test_a_file_goes_up_in_parts(odd: OddS3, tmp_path: Path, small_parts: None) -> None:
    """A file of two parts' size is one request."""
    path = tmp_path / "file"
    for size, parts in ((4, 0), (5, 2), (8, 2), (12, 3), (13, 4)):
        path.write_bytes(data := bytes(range(size)))
        before = odd.requests["UploadPart"]
        control(odd).upload("file", path)
        assert odd.requests["UploadPart"] - before == parts, size
        assert odd.stored("b") == {"file": data}
        assert odd.uploads == {}


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_an_upload_that_fails_leaves_no_parts(operation: str, odd: OddS3, tmp_path: Path, small_parts: None) -> None:
    """A failed upload is aborted, and its error is raised."""
    (tmp_path / "file").write_bytes(b"0123456789")
    begin(odd, "file", "file2")
    odd.faults = [Fault("status", (operation,), status=403, code="AccessDenied")]
    with pytest.raises((ObjectError, Fatal), match="403"):
        control(odd).upload("file", tmp_path / "file")
    assert (begun(odd), odd.stored("b")) == (["file", "file2"], {}), "those of others stay"


def test_a_part_that_times_out_is_sent_again(
    odd: OddS3, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state's file is not given up for one silence of its store."""
    monkeypatch.setattr(Tries, "_pause_s", lambda *_: 0.01)
    (tmp_path / "file").write_bytes(b"0123456789")
    odd.faults = [fault := Fault("silence", ("UploadPart",), times=1)]
    open_control("s3://b", helpers.access(odd), read_s=0.3).upload("file", tmp_path / "file")
    assert (fault.struck, odd.stored("b")) == (1, {"file": b"0123456789"})


@pytest.mark.parametrize("etags", ["md5", "upper", "opaque", "none"])
@pytest.mark.parametrize("older", [None, b"of another size", b"0123456xyz"])
def test_the_object_decides_where_the_answer_to_its_end_was_lost(
    etags: str, older: bytes | None, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a lost completion, the object's size and composite ETag decide."""
    monkeypatch.setattr(Tries, "_pause_s", lambda *_: 0.01)
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


def test_each_object_has_tries_of_its_own(odd: OddS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each object is deleted by a request of its own, single errors do not add up."""
    monkeypatch.setattr(Tries, "_pause_s", lambda *_: 0.001)
    for number in range(200):
        odd.put("b", str(number), b"x")
    odd.faults = [
        Fault("status", ("DeleteObjects",), status=501, code="NotImplemented"),
        Fault("status", ("DeleteObject",), probability=0.2, status=503),
    ]
    control(odd).delete(map(str, range(200)))
    assert odd.stored("b") == {}


@pytest.mark.parametrize(("status", "one_by_one"), [(400, True), (405, True), (501, True), (403, False)])
def test_a_store_that_does_not_know_how_to_delete_many(status: int, one_by_one: bool, odd: OddS3) -> None:
    """If a store does not support DeleteObjects, each object is deleted alone; a refusal is raised."""
    for key in ("a", "b"):
        odd.put("b", key, b"x")
    odd.faults = [Fault("status", ("DeleteObjects",), status=status, code="No")]
    there = control(odd)
    if not one_by_one:
        with pytest.raises((ObjectError, Fatal)):
            there.delete(["a", "b"])
        assert odd.stored("b") == {"a": b"x", "b": b"x"}
        return
    there.delete(["a", "none"])
    there.delete(["b", "none"])
    assert odd.stored("b") == {}
    assert (odd.requests["DeleteObjects"], odd.requests["DeleteObject"]) == (1, 4)


def test_a_file_that_was_not_deleted_is_an_error(odd: OddS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """An <Error> for one key in a DeleteObjects response is raised."""

    def refuse(self: OddS3, objects: object, body: bytes) -> object:
        text = "<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code></Error></DeleteResult>"
        return web.Response(text=text)

    monkeypatch.setattr(OddS3, "_delete_many", refuse)
    with pytest.raises((ObjectError, Fatal), match="AccessDenied"):
        control(odd).delete(["a", "b"])


# --- one request


def test_an_answer_without_end_is_an_error(odd: OddS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response above the limit is an error and is not read further."""
    odd.put("b", "a", b"x" * 100)
    monkeypatch.setattr(endpoint, "MAX_RESPONSE_BYTES", 100)
    assert control(odd).read("a") is not None
    monkeypatch.setattr(endpoint, "MAX_RESPONSE_BYTES", 99)
    with pytest.raises(ObjectError, match="exceeds 99 bytes") as caught:
        control(odd).read("a")
    assert caught.value.error_class is ErrorClass.INTERNAL


def test_a_path_of_the_endpoint_is_kept(odd: OddS3) -> None:
    """A path in `endpoint_url` is kept in front of the bucket."""
    odd.make_bucket("store")
    access = S3Access(f"{odd.endpoint_url}/store/", odd.region, keys=("odd", "odd-secret", None))
    open_control("s3://b", access).write("a", b"x")
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
    there = control(odd)
    there._tries = Tries(base_s=0.001, sleep=waits.append)
    there.write("a", b"x")
    assert waits == [7.0]
