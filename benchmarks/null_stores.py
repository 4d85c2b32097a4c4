"""A server that takes any object and answers as S3, Google Cloud Storage and Azure Blob Storage do:
`python -m benchmarks.null_stores` prints its port. It keeps nothing, so that only the client's work is measured.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import cast

import uvloop

from ferry.core.body import Body, small_body
from ferry.storage.object_info import in_base64

DATA = bytes(range(256)) * 156  # 39,936 bytes: the object that is sent
PAGE_KEYS = {"bucket": 1_000, "storage": 1_000, "account": 5_000}  # the largest pages of the three
DATE = "Tue, 01 Dec 2026 06:00:00 GMT"

Answers = dict[tuple[bytes, bytes], bytes]  # by method and first segment of the path


class Null(asyncio.Protocol):
    """Answers each request with a fixed response once its body has arrived."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._head = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._head, headers = b"", head.lower()
            self._left = int(headers.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0] or 0)
            method, target = head.split(b" ", 2)[:2]
            self._asked = method, target.partition(b"?")[0].split(b"/")[1]
            if b"\r\nexpect: 100-continue" in headers:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._left -= len(data)
        if not self._left:
            self._transport.write(self._answers[self._asked])


def answers() -> Answers:
    """Returns what the providers answer to an upload of DATA and to a request for a listing.

    S3 is below /bucket, Google Cloud Storage below /upload and /storage, Azure Blob Storage below /account.
    """
    body = small_body(DATA)
    return {
        (b"PUT", b"bucket"): _s3_put(body),
        (b"POST", b"upload"): _gcs_put(body),
        (b"PUT", b"account"): _azure_put(body),
        (b"GET", b"bucket"): _response("200 OK", _s3_page(), "Content-Type: application/xml"),
        (b"GET", b"storage"): _response("200 OK", _gcs_page(), "Content-Type: application/json; charset=UTF-8"),
        (b"GET", b"account"): _response("200 OK", _azure_page(), "Content-Type: application/xml"),
    }


def _response(status: str, body: str, *headers: str) -> bytes:
    data = body.encode()
    lines = "\r\n".join([f"HTTP/1.1 {status}", f"Date: {DATE}", f"Content-Length: {len(data)}", *headers])
    return f"{lines}\r\n\r\n".encode() + data


def _s3_put(body: Body) -> bytes:
    return _response(
        "200 OK", "", f"x-amz-id-2: {'a' * 76}", "x-amz-request-id: 0A49CE4060975EAC", f'ETag: "{body.md5}"',
        "x-amz-server-side-encryption: AES256", f"x-amz-checksum-sha256: {in_base64(body.sha256)}",
        "x-amz-checksum-type: FULL_OBJECT", "Server: AmazonS3",
    )  # fmt: skip


def _gcs_put(body: Body) -> bytes:
    resource = {"md5Hash": in_base64(body.md5), "etag": "CJ+0ru7e8ZEDEAE=", "generation": "1764547200000000"}
    return _response(
        "200 OK", json.dumps(resource), f"X-GUploader-UploadID: {'a' * 110}", "ETag: CJ+0ru7e8ZEDEAE=",
        "Content-Type: application/json; charset=UTF-8", "Vary: Origin", "Pragma: no-cache", "Server: UploadServer",
        "Cache-Control: no-cache, no-store, max-age=0, must-revalidate", "Expires: Mon, 01 Jan 1990 00:00:00 GMT",
    )  # fmt: skip


def _azure_put(body: Body) -> bytes:
    return _response(
        "201 Created", "", f"Content-MD5: {in_base64(body.md5)}", 'ETag: "0x8DE30B5F1A2B3C4"',
        f"Last-Modified: {DATE}", "Server: Windows-Azure-Blob/1.0 Microsoft-HTTPAPI/2.0", "x-ms-version: 2023-11-03",
        "x-ms-request-id: 5c1bb5a1-c01e-0042-7d5a-62d7a5000000", "x-ms-content-crc64: 77uWZTolTHU=",
        "x-ms-request-server-encrypted: true",
    )  # fmt: skip


def _objects(provider: str) -> Iterator[tuple[str, str, datetime]]:
    """Yields the objects of a page: key, MD5 in hex digits, and date, which differs so that no client can keep it."""
    for number in range(PAGE_KEYS[provider]):
        key = f"images/catalogue/2026/11/{number:07d} front.jpg"
        at = datetime(2026, 12, 1, 6, tzinfo=UTC) + timedelta(seconds=7 * number)
        yield key, hashlib.md5(key.encode(), usedforsecurity=False).hexdigest(), at


def _s3_page() -> str:
    """A page with `encoding-type=url`, as Ferry and boto3 ask for it (S3 API: ListObjectsV2)."""
    objects = "".join(
        f"<Contents><Key>{key.replace(' ', '+')}</Key><LastModified>{at:%Y-%m-%dT%H:%M:%S}.000Z</LastModified>"
        f"<ETag>&quot;{md5}&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
        "<ChecksumType>FULL_OBJECT</ChecksumType><Size>40000</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for key, md5, at in _objects("bucket")
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        "<Name>bucket</Name><Prefix>images/</Prefix><KeyCount>1000</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"
    )


def _gcs_page() -> str:
    """A page with the fields that Ferry asks for (JSON API, Objects: list). Without `fields` it is twice as long."""
    items = [
        {
            "name": key, "generation": "1764547200000000", "storageClass": "STANDARD", "size": "40000",
            "md5Hash": in_base64(md5), "crc32c": "yZRlqg==", "etag": "CJ+0ru7e8ZEDEAE=",
            "updated": f"{at:%Y-%m-%dT%H:%M:%S}.000Z",
        }
        for key, md5, at in _objects("storage")
    ]  # fmt: skip
    return json.dumps({"items": items}, separators=(",", ":"))


def _azure_page() -> str:
    """A page with a byte order mark, as the service sends it (REST API: List Blobs)."""
    blobs = "".join(
        f"<Blob><Name>{key}</Name><Properties><Creation-Time>{DATE}</Creation-Time>"
        f"<Last-Modified>{at:%a, %d %b %Y %H:%M:%S} GMT</Last-Modified><Etag>0x8DE30B5F1A2B3C4</Etag>"
        "<Content-Length>40000</Content-Length><Content-Type>image/jpeg</Content-Type><Content-Encoding />"
        "<Content-Language /><Content-CRC64 />"
        f"<Content-MD5>{in_base64(md5)}</Content-MD5><Cache-Control /><Content-Disposition />"
        "<BlobType>BlockBlob</BlobType><AccessTier>Hot</AccessTier><AccessTierInferred>true</AccessTierInferred>"
        "<LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState><ServerEncrypted>true</ServerEncrypted>"
        "</Properties><OrMetadata /></Blob>"
        for key, md5, at in _objects("account")
    )
    return (
        '\ufeff<?xml version="1.0" encoding="utf-8"?><EnumerationResults '
        'ServiceEndpoint="https://account.blob.core.windows.net/" ContainerName="box"><Prefix>images/</Prefix>'
        f"<Blobs>{blobs}</Blobs><NextMarker /></EnumerationResults>"
    )


async def serve() -> None:
    said = answers()
    server = await asyncio.get_running_loop().create_server(lambda: Null(said), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
