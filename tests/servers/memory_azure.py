"""Azure Blob Storage in memory, for whole jobs: blobs, conditions, listings, and requests signed by a SAS.

Its answers are those of the REST API's pages of each operation. Uploads in blocks are Azurite's to test.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import threading
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.servers.loopback import Answer, LoopbackServer

DATE = "Tue, 01 Dec 2026 06:00:00 GMT"
SAS = "sv=2023-11-03&sp=rwdl&sig=canary-secret"


class Blob(NamedTuple):
    data: bytes
    headers: dict[str, str]
    etag: str

    @property
    def md5(self) -> str:
        return base64.b64encode(hashlib.md5(self.data).digest()).decode()


def refused(status: int, code: str) -> Answer:
    return Answer(status, {"x-ms-error-code": code}, f"<Error><Code>{code}</Code></Error>".encode())


class MemoryAzure(LoopbackServer):
    """The server of one account."""

    def __init__(self, *containers: str) -> None:
        super().__init__()
        self.account = "ferryshop"
        self.containers: dict[str, dict[str, Blob]] = {name: {} for name in containers}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.url += f"/{self.account}"

    def store(self, container: str, key: str, data: bytes) -> None:
        self.containers[container][key] = Blob(
            data, {"content-type": "image/jpeg"}, f'"0x8D{next(self._numbers):013X}"'
        )

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        _, account, container, *rest = parts.path.split("/", 3)
        key = unquote(rest[0]) if rest else ""
        if account != self.account or query.get("sig") != "canary-secret":
            return refused(403, "AuthenticationFailed")
        with self._lock:
            blobs = self.containers.get(unquote(container))
            if blobs is None:
                return refused(404, "ContainerNotFound")
            if not key:
                return self._page(blobs, query)
            if method == "PUT":
                return self._put(blobs, key, headers, body)
            if key not in blobs:
                return refused(404, "BlobNotFound")
            if method == "DELETE":
                del blobs[key]
                return Answer(202)
            return self._get(blobs[key], headers)

    def _put(self, blobs: dict[str, Blob], key: str, headers: dict[str, str], body: bytes) -> Answer:
        if headers.get("if-none-match") == "*" and key in blobs:
            return refused(409, "BlobAlreadyExists")
        if "if-match" in headers and (key not in blobs or headers["if-match"] != blobs[key].etag):
            return refused(412, "ConditionNotMet")
        if headers.get("x-ms-blob-type") != "BlockBlob":
            return refused(501, "NotImplemented")  # a copy, which the client then makes itself
        kept = {name.removeprefix("x-ms-blob-"): value for name, value in headers.items() if name.startswith("x-ms-")}
        blob = Blob(body, kept, f'"0x8D{next(self._numbers):013X}"')
        if headers.get("content-md5", blob.md5) != blob.md5:
            return refused(400, "Md5Mismatch")
        blobs[key] = blob
        return Answer(201, {"ETag": blob.etag, "Content-MD5": blob.md5, "Last-Modified": DATE})

    def _get(self, blob: Blob, headers: dict[str, str]) -> Answer:
        if headers.get("if-match", blob.etag) != blob.etag:
            return refused(412, "ConditionNotMet")
        start = int(headers.get("range", "bytes=0-")[6:-1])
        found = {"ETag": blob.etag, "Last-Modified": DATE, "x-ms-blob-content-md5": blob.md5}
        kept = ("x-ms-meta-", "content-", "cache-")
        found |= {name: value for name, value in blob.headers.items() if name.startswith(kept)}
        if start:
            found["Content-Range"] = f"bytes {start}-{len(blob.data) - 1}/{len(blob.data)}"
        return Answer(206 if start else 200, found, blob.data[start:])

    def _page(self, blobs: dict[str, Blob], query: dict[str, str]) -> Answer:
        keys = [key for key in sorted(blobs) if key.startswith(query["prefix"]) and key >= query.get("marker", "")]
        most = min(int(query.get("maxresults", "5000")), 3)  # so that a few blobs are several pages
        listed = "".join(_listed(key, blobs[key]) for key in keys[:most])
        marker = escape(keys[most]) if len(keys) > most else ""
        page = f"<EnumerationResults><Blobs>{listed}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
        return Answer(200, {"Content-Type": "application/xml"}, page.encode())


def _listed(key: str, blob: Blob) -> str:
    etag = blob.etag.strip('"')
    return (
        f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{DATE}</Last-Modified><Etag>{etag}</Etag>"
        f"<Content-Length>{len(blob.data)}</Content-Length><Content-MD5>{blob.md5}</Content-MD5></Properties></Blob>"
    )
