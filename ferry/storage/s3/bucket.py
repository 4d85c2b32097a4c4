"""One bucket of an S3 store as a Provider (ferry/storage/provider.py), which runs in the event loop's own thread
(docs/decisions/0009).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from uuid import uuid4
from xml.sax.saxutils import escape

from ferry.core import (
    PART_BYTES,
    PERMANENT_STATUSES,
    RETRYABLE_STATUSES,
    Body,
    Digests,
    ErrorClass,
    Fatal,
    ObjectError,
    part_bytes,
)
from ferry.http import Network, Response, Upload, printable_header
from ferry.storage import capabilities
from ferry.storage.endpoint import COPY_BYTES_PER_S, delete_each, encoded
from ferry.storage.object_info import (
    ObjectInfo,
    Sent,
    composite_etag,
    composite_of,
    in_base64,
    last_modified,
    sha256_of,
)
from ferry.storage.provider import (
    TRIAL,
    BucketSettings,
    CannotCopy,
    Got,
    Page,
    Part,
    TooLargeAtOnce,
)
from ferry.storage.s3 import xml
from ferry.storage.s3.attributes import attribute_headers, attributes_of
from ferry.storage.s3.client import Client, Reply
from ferry.storage.s3.credentials import Credentials
from ferry.storage.s3.errors import s3_code, store_status
from ferry.storage.s3.preflight import bucket_settings, refusal

MAX_PARTS, MAX_BYTES = capabilities.S3.max_parts, capabilities.S3.max_bytes
KEYS_PER_DELETE = 1000  # S3 API, DeleteObjects
_ETAG = re.compile(r'"[!#-~]+"|[!#-~]+')  # RFC 9110 section 8.8.3; a manifest's column may hold any text
_CHECKSUM = "x-amz-checksum-sha256"
_COPY_ETAG = re.compile(rb"<CopyObjectResult.*?<ETag>(?:&quot;|&#34;|\")?([^<&\"]+)", re.DOTALL)
# Statuses that another attempt would not change.
_FINAL_STATUSES = (
    frozenset(range(200, 300)) | frozenset(range(400, 500)) | PERMANENT_STATUSES
) - RETRYABLE_STATUSES | {200, 404}


class S3:
    """Client for one bucket. Create it inside the event loop that uses it, and close it at the end."""

    cuts_listings = True
    parts_at_once = MAX_PARTS

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        region: str,
        credentials: Credentials,
        *,
        timeout_s: float,
        read_s: float,
        connections: int = 512,
        network: Network = Network(),
        side: str = "destination",
    ) -> None:
        """``timeout_s`` and ``read_s`` are those of ferry/storage/endpoint.py; ``side`` names what is written."""
        self.endpoint = endpoint
        # Amazon documents the order (ListObjectsV2); other stores may sort differently.
        self.in_byte_order = ".amazonaws.com" in endpoint
        self._side = side
        self._client = Client(
            endpoint, bucket, region, credentials, timeout_s=timeout_s, read_s=read_s, connections=connections,
            network=network,
        )  # fmt: skip
        self._accepts_checksums: bool | None = None  # None: not known yet
        self._deletes_many = True
        self._bare_etags: bool | None = None  # whether If-Match takes ETags without quotes only; None: not known yet

    async def close(self) -> None:
        await self._client.close()

    @property
    def connections_opened(self) -> int:
        return self._client.connections_opened

    # --- objects

    async def put(
        self, key: str, data: bytes | Upload, digests: Digests, attributes: Mapping[str, str], *, create: bool
    ) -> Sent:
        """Writes an object in one request (S3 API: PutObject).

        The request signs the SHA-256 and also sends it as `x-amz-checksum-sha256`. S3 compares it, keeps it and returns
        it. If the store refuses that header (400, 501), this client omits it from then on. Raises TooLargeAtOnce for
        a spooled body.
        """
        headers, sha256 = attribute_headers(attributes), digests.sha256
        if create:
            headers["if-none-match"] = "*"
        checked = headers | {_CHECKSUM: in_base64(sha256)} if self._accepts_checksums is not False else headers
        response = await self._client.send("PUT", key, self._side, checked, data, sha256)
        if response.status in (400, 501) and checked is not headers and self._accepts_checksums is None:
            response.close()
            response = await self._client.send("PUT", key, self._side, headers, data, sha256)
            if response.status == 200:
                self._accepts_checksums = False
        elif response.status == 200 and checked is not headers:
            self._accepts_checksums = True
        status = response.status
        if status == 200 or (create and status == 412):
            code = s3_code(await self._client.read(response, self._side))
            if status == 200 and code:
                raise store_status(200, code, self._side)
            if status == 412:
                return Sent(None, exists=True, sent_twice=response.sent_twice)
            return Sent(response.headers.get("ETag") or None, sha256_of(response.headers.get(_CHECKSUM)))
        if status == 413 and not isinstance(data, bytes):
            response.close()
            raise TooLargeAtOnce
        raise await self._client.error(response, self._side)

    async def head(self, key: str, side: str) -> ObjectInfo | None:
        """Returns an object's information, or None for a missing one (S3 API: HeadObject)."""
        response = await self._client.send("HEAD", key, side)
        if response.status == 404:
            response.close()
            return None
        if response.status != 200:
            raise await self._client.error(response, side)
        if response.length is None:
            raise ObjectError(ErrorClass.STORE_ERROR, f"the {side} does not say how long the object is")
        return _info(key, response)

    async def get(self, key: str, side: str, *, start: int = 0, if_version: str = "") -> Got:
        """Returns an object, its bytes unread (S3 API: GetObject)."""
        headers = {"range": f"bytes={start}-"} if start else {}
        if if_version:
            headers["if-match"] = if_version
        response = await self._client.send("GET", key, side, headers)
        if response.status == 412 and if_version:
            response.close()
            raise ObjectError(ErrorClass.TRUNCATED, f"the {side}'s object changed while it was read")
        if response.status != (206 if start else 200):
            raise await self._client.error(response, side)
        info = _info(key, response)
        first = response.headers.get("Content-Range", "").partition("-")[0]
        if start and (first != f"bytes {start}" or if_version not in ("", info.version)):
            response.close()
            raise ObjectError(ErrorClass.STORE_ERROR, f"the {side} sends another part than was asked for")
        tagged = response.headers.get("x-amz-tagging-count", "0") != "0"
        return Got(response, info, attributes_of(response.headers), tagged=tagged)

    async def tags(self, key: str, side: str) -> str:
        """Returns an object's tags (S3 API: GetObjectTagging)."""
        return xml.parse_tags((await self._client.ask("GET", key, side, query={"tagging": ""})).body, side)

    async def copy(self, key: str, bucket: str, source: ObjectInfo, attributes: Mapping[str, str] = {}) -> Sent:
        """Copies an object on the server if it still has this ETag (S3 API: CopyObject).

        Raises CannotCopy. The caller then reads and writes the bytes, which shows on which side the error is.
        """
        etag = source.etag or ""
        if not _ETAG.fullmatch(etag):
            raise CannotCopy
        quoted = etag if etag.startswith('"') else f'"{etag}"'
        headers = attribute_headers(attributes)
        headers |= {"x-amz-copy-source": f"/{encoded(f'{bucket}/{source.key}')}", "x-amz-copy-source-if-match": quoted}
        extra_read_s = source.size / COPY_BYTES_PER_S
        response = await self._client.send("PUT", key, self._side, headers, b"", extra_read_s=extra_read_s)
        if response.status in (429, 503):
            raise await self._client.error(response, self._side)
        answer = await self._client.read(response, self._side)
        found = _COPY_ETAG.search(answer)  # S3 may send an error under 200
        if response.status != 200 or found is None:
            raise CannotCopy
        return Sent(found[1].decode())

    async def delete(self, keys: Sequence[str], side: str) -> None:
        """Deletes up to 1,000 objects. A missing one is not an error (S3 API: DeleteObjects, DeleteObject).

        If the store does not support DeleteObjects, each object has a request of its own.
        """
        if len(keys) > 1 and self._deletes_many:
            try:
                await self._delete_many(keys, side)
                return
            except ObjectError as error:
                if error.status_code not in (400, 405, 501):
                    raise
                self._deletes_many = False

        async def one(key: str) -> None:
            await self._client.ask("DELETE", key, side, ok=(200, 204, 404))

        await delete_each(one, keys)

    async def _delete_many(self, keys: Sequence[str], side: str) -> None:
        named = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in keys)
        body = f"<Delete><Quiet>true</Quiet>{named}</Delete>".encode()
        md5 = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        reply = await self._client.ask("POST", "", side, {"content-md5": md5}, body, query={"delete": ""})
        for error in xml.children(xml.parse_document(reply.body, side), "Error"):
            raise store_status(500, xml.text(error, "Code") or "", side)

    async def page(self, prefix: str, side: str, *, after: str | None = None, token: str | None = None) -> Page:
        """Returns a page of the objects whose keys begin with ``prefix`` (S3 API: ListObjectsV2)."""
        query = {"encoding-type": "url", "list-type": "2", "prefix": prefix}
        if token is not None:
            query["continuation-token"] = token
        elif after is not None:
            query["start-after"] = after
        return xml.parse_page((await self._client.ask("GET", "", side, query=query)).body, side)

    # --- uploads in parts

    def part_bytes(self, size: int) -> int:
        """Returns 8 MiB, or more whole MiB if there would be more than 10,000 parts."""
        if size > MAX_BYTES:
            text = f"the object has {size:,} bytes; S3 holds at most {MAX_BYTES:,}"
            raise ObjectError(ErrorClass.TOO_LARGE, text)
        return part_bytes(size, PART_BYTES)

    async def begin(
        self, key: str, attributes: Mapping[str, str], size: int, *, md5: str | None, create: bool
    ) -> str | None:
        """Returns the ID of a new upload (S3 API: CreateMultipartUpload).

        It is not sent again on its own: of an upload whose response is lost nothing is known.
        """
        headers = attribute_headers(attributes)
        reply = await self._client.ask("POST", key, self._side, headers, query={"uploads": ""}, again=False)
        return xml.upload_id(reply.body, self._side)

    async def put_part(self, key: str, upload: str, part: int, data: Upload, digests: Digests, offset: int) -> Part:
        """Sends a part, with its SHA-256 in the signature (S3 API: UploadPart)."""
        query = {"partNumber": str(part), "uploadId": upload}
        reply = await self._client.ask("PUT", key, self._side, {}, data, digests.sha256, query=query, ok=(200, 404))
        if reply.status == 404:
            raise xml.upload_missing(reply.body, self._side)
        return Part(part, len(data), reply.headers.get("ETag", ""), digests.md5)

    async def complete(
        self,
        key: str,
        upload: str,
        parts: Sequence[Part],
        body: Body,
        attributes: Mapping[str, str],
        *,
        create: bool,
    ) -> Sent:
        """Completes an upload (S3 API: CompleteMultipartUpload). If the store has no condition (501), it is omitted.

        After a lost response the store has no such upload any more. Then the object's size and ETag decide.
        """
        etags = [part.etag for part in parts]
        expected = composite_of([part.md5 or part.etag for part in parts])
        condition, ok = ({"if-none-match": "*"}, (200, 404, 412, 501)) if create else ({}, (200, 404))
        reply = await self._client.ask(
            "POST", key, self._side, condition, xml.complete_document(etags), query={"uploadId": upload}, ok=ok,
            extra_read_s=body.size / COPY_BYTES_PER_S,  # some stores join the parts and send nothing meanwhile
        )  # fmt: skip
        match reply.status:
            case 200:
                etag = xml.text(xml.parse_document(reply.body, self._side), "ETag")
                return Sent(etag or None, in_parts=True, parts_etag=expected)
            case 412:
                return Sent(None, exists=True, sent_twice=reply.sent_twice)
            case 501:
                return await self.complete(key, upload, parts, body, attributes, create=False)
        head = await self.head(key, self._side)
        known, actual = composite_of(etags), composite_etag(head.etag if head else None)
        if head is None or head.size != body.size or (known is not None and actual not in (None, known)):
            raise xml.upload_missing(reply.body, self._side)
        return Sent(head.etag, in_parts=True, parts_etag=expected)

    async def parts(self, key: str, upload: str) -> list[Part] | None:
        """Returns the parts of an upload, or None if the store does not know it (S3 API: ListParts)."""
        found: list[Part] = []
        while True:
            query = {"part-number-marker": str(found[-1].number if found else 0), "uploadId": upload}
            reply = await self._client.ask("GET", key, self._side, query=query, ok=(200, 404))
            if reply.status == 404:
                return None
            more, truncated = xml.parse_parts(reply.body, self._side)
            more = [part for part in more if not found or part.number > found[-1].number]
            found += more
            if not (truncated and more):
                return found

    async def abort(self, key: str, upload: str) -> None:
        """Aborts an upload. One that has ended is not an error (S3 API: AbortMultipartUpload)."""
        await self._client.ask("DELETE", key, self._side, query={"uploadId": upload}, ok=(200, 204, 404))

    async def uploads(self, prefix: str) -> AsyncIterator[tuple[str, str]]:
        """Yields key and ID of each unfinished upload below a prefix (S3 API: ListMultipartUploads)."""
        query, seen = {"prefix": prefix, "uploads": ""}, set[tuple[str, str]]()
        while True:
            root = xml.parse_document((await self._client.ask("GET", "", self._side, query=query)).body, self._side)
            page = [
                (xml.text(each, "Key") or "", xml.text(each, "UploadId") or "") for each in xml.children(root, "Upload")
            ]
            new = [each for each in page if each not in seen]
            for key, upload in new:
                if upload and key.startswith(prefix):
                    yield key, upload
            seen.update(new)
            if xml.text(root, "IsTruncated") != "true" or not new:
                return
            query |= {"key-marker": page[-1][0], "upload-id-marker": page[-1][1]}

    # --- files of a state

    async def read(self, key: str) -> tuple[bytes, str] | None:
        """Returns a small object and its ETag, or None if it does not exist.

        Raises ObjectError for a 404 that does not name the object: a proxy may send it while the store restarts.
        """
        reply = await self._client.ask("GET", key, "state", ok=(200, 404))
        if reply.status == 200:
            return reply.body, reply.headers.get("ETag", "")
        if (code := s3_code(reply.body)) != "NoSuchKey":
            raise store_status(404, code, "state")
        return None

    async def write_if(self, key: str, data: bytes, version: str | None) -> bool:
        """Writes a small object if it has this ETag, or with None if it does not exist. Returns whether.

        Ceph RGW 16 refuses the right ETag in quotes and takes it without (RFC 9110 section 13.1.1 has quotes), so the
        bare one is tried if an object that has not changed is refused.
        """
        if version is None:
            return await self._put_if(key, data, {"if-none-match": "*"})
        if not self._bare_etags:
            if await self._put_if(key, data, {"if-match": version}):
                self._bare_etags = False
                return True
            if self._bare_etags is False or (await self._current(key)) != version:
                return False
        written = await self._put_if(key, data, {"if-match": version.strip('"')})
        self._bare_etags = self._bare_etags or written or None
        return written

    async def _put_if(self, key: str, data: bytes, condition: Mapping[str, str]) -> bool:
        """Returns whether a conditional write was done. Raises ConditionUnsupported for a store without conditions."""
        reply = await self._client.ask("PUT", key, "state", condition, data, ok=(200, 404, 412))
        return reply.status == 200

    async def _current(self, key: str) -> str | None:
        found = await self.head(key, "state")
        return found.etag if found else None

    # --- preflight

    async def refusal(self, prefix: str, *, writing: bool, attributes: Mapping[str, str] = {}) -> str | None:
        """Returns why the bucket cannot be used, as the end of a sentence, or None.

        A bucket is checked by HeadBucket, and to write by creating and aborting a multipart upload, which never leaves
        an object; with ``attributes`` by a second one that has them.
        """
        reply = await self._client.ask("HEAD", "", self._side, ok=_FINAL_STATUSES)
        if reply.status >= 300 or not writing:
            return refusal(reply.status, reply.body, "access")
        for given in ({}, attributes) if attributes else ({},):
            key, headers = f"{prefix}/{TRIAL}{uuid4().hex}".lstrip("/"), attribute_headers(given)
            reply = await self._client.ask("POST", key, self._side, headers, query={"uploads": ""}, ok=_FINAL_STATUSES)
            if reply.status != 200:
                return refusal(reply.status, reply.body, "writing", given)
            await self._try_abort(key, reply)
        return None

    async def _try_abort(self, key: str, created: Reply) -> None:
        """Aborts an upload and ignores errors, since some policies allow writing but not aborting."""
        with contextlib.suppress(ObjectError, Fatal):
            await self.abort(key, xml.upload_id(created.body, self._side))

    async def settings(self, key: str, data: bytes) -> BucketSettings:
        """Returns what the bucket says of itself. Writes ``key`` (ferry/storage/s3/preflight.py)."""
        return await bucket_settings(self._client, key, data)


def _info(key: str, response: Response) -> ObjectInfo:
    """Returns what a response's header says about the object. That of a part of it has the whole one's size."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    etag = printable_header(response.headers.get("ETag"))
    size = int(total) if total.isdigit() else response.length or 0
    return ObjectInfo(key, size, etag, last_modified(response.headers), version=etag)
