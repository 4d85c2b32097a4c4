"""The S3 server that misbehaves speaks S3 as boto3 does, and each of its switches does what it says."""

from __future__ import annotations

import hashlib
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from tests.servers.odd_s3 import Fault, OddS3

DATA = b"an image, for all that a store knows"


def client(server: OddS3, read_s: float = 5.0) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(retries={"total_max_attempts": 1}, read_timeout=read_s, s3={"addressing_style": "path"}),
    )


def code(error: ClientError) -> Any:
    return error.response["Error"]["Code"]


def test_it_is_an_s3() -> None:
    """Without a switch: put, get, head, copy, list in pages, upload in parts, delete; odd keys too."""
    keys = ["a/b c.jpg", "grün%25+.jpg", "x&y<z>.jpg"]
    with OddS3(page_keys=2) as server:
        s3 = client(server)
        s3.create_bucket(Bucket="b")
        for key in keys:
            put = s3.put_object(Bucket="b", Key=key, Body=DATA, ContentType="image/jpeg", Metadata={"sku": "1"})
            assert put["ETag"].strip('"') == hashlib.md5(DATA).hexdigest()
        found = s3.get_object(Bucket="b", Key=keys[0])
        assert (found["Body"].read(), found["ContentType"], found["Metadata"]) == (DATA, "image/jpeg", {"sku": "1"})
        pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket="b"))
        assert [item["Key"] for page in pages for item in page["Contents"]] == sorted(keys)
        assert len(pages) == 2
        s3.copy_object(Bucket="b", Key="copy", CopySource={"Bucket": "b", "Key": keys[1]})
        upload = s3.create_multipart_upload(Bucket="b", Key="parts")["UploadId"]
        parts = [
            {
                "PartNumber": n,
                "ETag": s3.upload_part(Bucket="b", Key="parts", UploadId=upload, PartNumber=n, Body=DATA)["ETag"],
            }
            for n in (1, 2)
        ]
        done = s3.complete_multipart_upload(Bucket="b", Key="parts", UploadId=upload, MultipartUpload={"Parts": parts})
        assert done["ETag"].endswith('-2"')
        assert server.stored("b", "parts") == {"parts": DATA * 2}
        s3.delete_objects(Bucket="b", Delete={"Objects": [{"Key": key} for key in keys]})
        s3.delete_object(Bucket="b", Key="copy")
        assert set(server.objects["b"]) == {"parts"}


@pytest.mark.parametrize(("etags", "expected"), [("upper", 32), ("kms", 32), ("opaque", None), ("none", 0)])
def test_etags(etags: Any, expected: int | None) -> None:
    """Each kind is what its name says, and none is the MD5 but the upper-case one."""
    with OddS3(etags=etags) as server:
        server.put("b", "k", DATA)
        etag = server.objects["b"]["k"].etag
        assert (etag.lower() == hashlib.md5(DATA).hexdigest()) is (etags == "upper")
        assert expected is None or len(etag) == expected
        assert ("ETag" in client(server).head_object(Bucket="b", Key="k")) is (etags != "none")


def test_checksums_are_of_what_is_stored() -> None:
    """A body that the store alters has another checksum in the answer."""
    with OddS3(checksums=True, faults=[Fault("alter", ("PutObject",), after=1)]) as server:
        server.make_bucket("b")
        put = client(server).put_object
        first, second = (put(Bucket="b", Key=key, Body=DATA, ChecksumAlgorithm="SHA256") for key in "12")
        assert first["ChecksumSHA256"] != second["ChecksumSHA256"]
        assert server.stored("b")["2"] != DATA == server.stored("b")["1"]


@pytest.mark.parametrize(
    ("conditions", "outcome"), [("kept", "PreconditionFailed"), ("ignored", None), ("501", "NotImplemented")]
)
def test_conditions(conditions: Any, outcome: str | None) -> None:
    """If-None-Match is kept, ignored or refused."""
    with OddS3(conditions=conditions) as server:
        server.put("b", "k", b"old")
        try:
            client(server).put_object(Bucket="b", Key="k", Body=b"new", IfNoneMatch="*")
        except ClientError as error:
            assert code(error) == outcome
        else:
            assert outcome is None
        assert server.stored("b") == {"k": b"new" if outcome is None else b"old"}


@pytest.mark.parametrize(("listings", "keys"), [("whole", 5), ("no token", 2), ("ends early", 2)])
def test_listings(listings: Any, keys: int) -> None:
    """A listing that is cut shows its first page; start-after still finds what follows."""
    with OddS3(listings=listings, page_keys=2) as server:
        for n in range(5):
            server.put("b", str(n), DATA)
        server.hidden.add("9")
        s3 = client(server)
        page = s3.list_objects_v2(Bucket="b")
        found = [item["Key"] for item in page["Contents"]]
        while page.get("NextContinuationToken"):
            page = s3.list_objects_v2(Bucket="b", ContinuationToken=page["NextContinuationToken"])
            found += [item["Key"] for item in page["Contents"]]
        assert len(found) == keys
        assert s3.list_objects_v2(Bucket="b", StartAfter=found[-1])["KeyCount"] == min(2, 5 - keys)


def test_what_is_hidden_is_in_no_listing() -> None:
    """A stale listing: GET finds the object."""
    with OddS3() as server:
        server.put("b", "k", DATA)
        server.hidden.add("k")
        assert client(server).list_objects_v2(Bucket="b")["KeyCount"] == 0
        assert client(server).get_object(Bucket="b", Key="k")["Body"].read() == DATA


def test_single_requests_fail() -> None:
    """Each fault strikes the requests that it names, and those alone."""
    faults = [
        Fault("status", ("PutObject",), times=1),
        Fault("lost answer", ("PutObject",), times=1),
        Fault("reset", ("HeadObject",)),
        Fault("silence", ("GetObject",), key="quiet"),
        Fault("halve", ("GetObject",), key="half"),
        Fault("error in 200", ("CopyObject",)),
    ]
    with OddS3(faults=faults) as server:
        server.make_bucket("b")
        s3 = client(server, read_s=0.5)
        with pytest.raises(ClientError) as caught:
            s3.put_object(Bucket="b", Key="k", Body=DATA)
        assert code(caught.value) == "SlowDown"
        with pytest.raises(ConnectionClosedError):
            s3.put_object(Bucket="b", Key="k", Body=DATA)
        assert server.stored("b") == {"k": DATA}  # and yet it was carried out
        with pytest.raises(ConnectionClosedError):
            s3.head_object(Bucket="b", Key="k")
        for key in ("quiet", "half"):
            server.put("b", key, DATA)
        with pytest.raises(ReadTimeoutError):
            s3.get_object(Bucket="b", Key="quiet")
        with pytest.raises(Exception, match=r"IncompleteRead|Connection broken"):
            s3.get_object(Bucket="b", Key="half")["Body"].read()
        with pytest.raises(ClientError):
            s3.copy_object(Bucket="b", Key="c", CopySource={"Bucket": "b", "Key": "k"})
        assert "c" not in server.objects["b"]


def test_the_same_seed_fails_the_same_requests() -> None:
    """Probabilities are drawn from the seed."""

    def struck(seed: int) -> list[int]:
        with OddS3(seed=seed, faults=[Fault("status", ("HeadBucket",), probability=0.5, status=500)]) as server:
            server.make_bucket("b")
            s3 = client(server)
            for _ in range(20):
                try:
                    s3.head_bucket(Bucket="b")
                except ClientError:
                    continue
            return [status for _, _, status in server.log]

    assert struck(1) == struck(1) != struck(2)
