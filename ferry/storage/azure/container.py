"""One container of Azure Blob Storage through Ferry's HTTP client (docs/decisions/0052).

Source: Azure Storage REST API, "Blob Storage API"; each method names its operation.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from email.utils import formatdate
from urllib.parse import quote

from ferry.core import PART_BYTES, TIER, Body, Digests, ErrorClass, Fatal, ObjectError, UserError, part_bytes
from ferry.http import Network, Response, Upload, printable_header
from ferry.storage import capabilities
from ferry.storage.azure.attributes import attribute_headers, attributes_of
from ferry.storage.azure.documents import Block, blob_info, block_list, md5_of, parse_blocks, parse_page, parse_tags
from ferry.storage.azure.errors import azure_error, code_of, condition_failed, not_authenticated
from ferry.storage.azure.keys import Authority
from ferry.storage.azure.preflight import Headers, container_settings, lasting_refusal, probes, refusal
from ferry.storage.endpoint import COPY_BYTES_PER_S, Endpoint, delete_each, encoded
from ferry.storage.object_info import ObjectInfo, Sent, in_base64
from ferry.storage.provider import BucketSettings, CannotCopy, Got, Page, Part, TooLargeAtOnce

VERSION = "2023-11-03"
MAX_BLOCKS, MAX_BLOCK_BYTES = capabilities.AZURE.max_parts, capabilities.AZURE.max_part_bytes
MAX_COPY_BYTES = capabilities.AZURE.copies_up_to
PAGE_KEYS = 5_000  # the most that the service lists at once
_WORD = re.compile(r"[!-~]+")  # what a header can hold; a list may hold any text


class AzureContainer:
    """A Provider for one container. Raises ObjectError and Fatal.

    Create it inside the event loop that uses it, and close it at the end.
    """

    # The service lists in alphabetical order; its documents do not say how names outside ASCII are compared.
    in_byte_order = False
    cuts_listings = False
    parts_at_once = MAX_BLOCKS

    def __init__(
        self,
        account: str,
        container: str,
        authority: Authority,
        *,
        endpoint_url: str | None = None,
        timeout_s: float = 600.0,
        read_s: float = 30.0,
        connections: int = 512,
        network: Network = Network(),
        side: str = "destination",
    ) -> None:
        """``endpoint_url`` has the account in its path or in its host; ``side`` names what is written.

        Raises UserError for tokens over http.
        """
        url = endpoint_url or f"https://{account}.blob.core.windows.net"
        if authority.https_only and not url.startswith("https:"):
            raise UserError("credentials: Azure takes tokens over https alone. Correct `endpoint_url`")
        self._http = Endpoint(url, timeout_s=timeout_s, read_s=read_s, connections=connections, network=network)
        self._side = side
        self.endpoint = url
        self._container = container
        self._root = f"{self._http.path}/{container}"
        self._authority = authority
        self._date = (0, "")

    async def close(self) -> None:
        await self._http.close()

    @property
    def connections_opened(self) -> int:
        return self._http.connections_opened

    # --- objects

    async def put(
        self, key: str, data: bytes | Upload, digests: Digests, attributes: Mapping[str, str], *, create: bool
    ) -> Sent:
        """Writes a blob in one request (Put Blob).

        Azure compares the Content-MD5 of the request, keeps it, and returns that of the bytes which it received.
        Raises TooLargeAtOnce for a spooled body that is refused with 413.
        """
        headers, lost = attribute_headers(attributes)
        headers["x-ms-blob-type"] = "BlockBlob"
        headers["content-md5"] = in_base64(digests.md5)
        if create:
            headers["if-none-match"] = "*"
        response = await self._send("PUT", key, {}, headers, data, self._side)
        if response.status == 413 and not isinstance(data, bytes):
            response.close()
            raise TooLargeAtOnce
        return await self._written(response, create=create, lost=lost, md5=md5_of(response.headers.get("Content-MD5")))

    async def head(self, key: str, side: str) -> ObjectInfo | None:
        """Returns a blob's information, or None for a missing one (Get Blob Properties)."""
        response = await self._send("HEAD", key, {}, {}, None, side)
        if response.status == 200:
            return blob_info(key, response.headers)
        if response.status == 404 and code_of(response.headers) == "BlobNotFound":
            return None
        raise await self._error(response, side)

    async def get(self, key: str, side: str, *, start: int = 0, if_version: str = "") -> Got:
        """Returns a blob as it is stored; Azure decodes nothing (Get Blob).

        Raises ObjectError (TRUNCATED) if the blob has another version by now.
        """
        headers = {"range": f"bytes={start}-"} if start else {}
        if if_version:
            headers["if-match"] = if_version
        response = await self._send("GET", key, {}, headers, None, side)
        if response.status == (206 if start else 200):
            tagged = response.headers.get("x-ms-tag-count", "0") != "0"
            return Got(response, blob_info(key, response.headers), attributes_of(response.headers), tagged=tagged)
        if response.status == 412 and if_version:
            response.close()
            raise ObjectError(ErrorClass.TRUNCATED, f"the {side}'s object changed while it was read")
        raise await self._error(response, side)

    async def tags(self, key: str, side: str) -> str:
        """Returns a blob's tags (Get Blob Tags)."""
        return parse_tags(await self._ask("GET", key, {"comp": "tags"}, {}, None, side), side)

    async def copy(self, key: str, bucket: str, source: ObjectInfo, attributes: Mapping[str, str] = {}) -> Sent:
        """Has Azure copy a blob of this account with its attributes and tags (Copy Blob From URL).

        Azure compares the source's ETag and its MD5, if it has one. Raises CannotCopy also for more than 256 MiB. The
        caller then reads and writes the bytes, which shows on which side the error is.
        """
        if source.md5 is None:  # a row of a plan has its ETag alone
            source = await self._listed(bucket, source)
        tier = attributes.get(TIER) or source.tier
        if source.size > MAX_COPY_BYTES or not all(map(_WORD.fullmatch, (source.etag or "", tier or "-"))):
            raise CannotCopy
        blob = f"{bucket}/{source.key}"
        headers = {"x-ms-requires-sync": "true", "x-ms-source-if-match": source.etag or ""}
        headers["x-ms-copy-source-tag-option"] = "COPY"
        if source.md5 is not None:
            headers["x-ms-source-content-md5"] = in_base64(source.md5)
        if tier is not None:
            headers["x-ms-access-tier"] = tier
        query = await self._authority.authorize_source(blob, headers)
        url = f"{self._http.origin}{self._http.path}/{encoded(blob)}"
        headers["x-ms-copy-source"] = f"{url}?{query}" if query else url
        wait_s = source.size / COPY_BYTES_PER_S
        response = await self._send("PUT", key, {}, headers, b"", self._side, extra_read_s=wait_s)
        if response.status in (429, 503):
            raise await self._error(response, self._side)
        await self._http.read(response, self._side)
        md5, etag = md5_of(response.headers.get("Content-MD5")), printable_header(response.headers.get("ETag"))
        copied = response.status == 202 and response.headers.get("x-ms-copy-status") == "success"
        if not copied or (source.md5 is not None and md5 not in (None, source.md5)):
            raise CannotCopy
        return Sent(etag, md5=md5 if source.md5 is not None else None, version=etag)

    async def _listed(self, container: str, source: ObjectInfo) -> ObjectInfo:
        """Returns a blob of a container as it is now, if it has the listed ETag. Raises CannotCopy."""
        there = copy.copy(self)
        there._root = f"{self._http.path}/{container}"
        try:
            found = await there.head(source.key, "source")
        except (ObjectError, Fatal) as error:
            if isinstance(error, ObjectError) and error.error_class is ErrorClass.RATE_LIMITED:
                raise
            raise CannotCopy from None
        if found is None or found.etag != source.etag:
            raise CannotCopy
        return found

    async def delete(self, keys: Sequence[str], side: str) -> None:
        """Deletes blobs, each by its own request (Delete Blob). One with snapshots is refused."""

        async def one(key: str) -> None:
            response = await self._send("DELETE", key, {}, {}, None, side)
            missing = response.status == 404 and code_of(response.headers) == "BlobNotFound"
            if response.status != 202 and not missing:
                raise await self._error(response, side)
            await self._http.read(response, side)

        await delete_each(one, keys)

    async def page(self, prefix: str, side: str, *, after: str | None = None, token: str | None = None) -> Page:
        """Returns up to 5,000 blobs (List Blobs). The service has no key to start after: earlier ones are left out."""
        query = {"restype": "container", "comp": "list", "prefix": prefix, "maxresults": str(PAGE_KEYS)}
        if token is not None:
            query["marker"] = token
        page = parse_page(await self._ask("GET", "", query, {}, None, side), side)
        if page.token is not None and page.token == token:
            text = f"the {side}'s listing does not advance: its marker repeats. Check `endpoint_url`"
            raise ObjectError(ErrorClass.STORE_ERROR, text)
        return page if after is None else Page([each for each in page.objects if each.key > after], page.token)

    # --- uploads in parts: uncommitted blocks, which Azure keeps for a week

    def part_bytes(self, size: int) -> int:
        """Returns 8 MiB, or as much as 10,000 parts need, 4,000 MiB at most. Raises ObjectError above 190 TiB."""
        if size > MAX_BLOCKS * MAX_BLOCK_BYTES:
            text = f"the destination holds at most {MAX_BLOCKS:,} blocks of {MAX_BLOCK_BYTES:,} bytes"
            raise ObjectError(ErrorClass.TOO_LARGE, text)
        return min(part_bytes(size, PART_BYTES), MAX_BLOCK_BYTES)

    async def begin(
        self, key: str, attributes: Mapping[str, str], size: int, *, md5: str | None, create: bool
    ) -> str | None:
        """Returns a new ID. It begins the IDs of this upload's blocks; Azure itself has no uploads."""
        return secrets.token_hex(8)

    async def put_part(
        self, key: str, upload: str, part: int, data: bytes | Upload, digests: Digests, offset: int
    ) -> Part:
        """Sends a block (Put Block).

        Azure refuses other bytes than those of the Content-MD5. So a block that it holds has the MD5 in its ID.
        """
        block = Block(upload, part, digests.md5).id
        headers = {"content-md5": in_base64(digests.md5)}
        response = await self._send("PUT", key, {"comp": "block", "blockid": block}, headers, data, self._side)
        if response.status != 201:
            raise await self._error(response, self._side)
        await self._http.read(response, self._side)
        if md5_of(response.headers.get("Content-MD5")) not in (None, digests.md5):
            text = f"the destination received other bytes for part {part} than those sent"
            raise ObjectError(ErrorClass.UPLOAD_UNCONFIRMED, text)
        return Part(part, len(data), block, digests.md5)

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
        """Makes the blocks a blob (Put Block List).

        Azure keeps the MD5 of the body as it is given here, without computing it. What it compared are the MD5s of the
        blocks, so the caller must have read them from the body whose MD5 that is. A request that is repeated finds the
        blocks that the first one committed.
        """
        if [part.number for part in parts] != list(range(1, len(parts) + 1)) or body.size != sum(
            part.size for part in parts
        ):
            raise ObjectError(ErrorClass.UPLOAD_UNCONFIRMED, "the parts that were sent are not the whole body")
        document = block_list(part.etag for part in parts)
        headers, lost = attribute_headers(attributes)
        headers["content-md5"] = base64.b64encode(hashlib.md5(document, usedforsecurity=False).digest()).decode()
        headers["x-ms-blob-content-md5"] = in_base64(body.md5)
        if create:
            headers["if-none-match"] = "*"
        response = await self._send("PUT", key, {"comp": "blocklist"}, headers, document, self._side)
        md5 = body.md5 if all(part.md5 is not None for part in parts) else None
        return await self._written(response, create=create, lost=lost, md5=md5, in_parts=True)

    async def parts(self, key: str, upload: str) -> list[Part] | None:
        """Returns the uncommitted blocks of an upload, or None if there are none (Get Block List)."""
        query = {"comp": "blocklist", "blocklisttype": "uncommitted"}
        response = await self._send("GET", key, query, {}, None, self._side)
        if response.status == 404 and code_of(response.headers) == "BlobNotFound":
            response.close()
            return None
        if response.status != 200:
            raise await self._error(response, self._side)
        return parse_blocks(await self._http.read(response, self._side), upload, self._side) or None

    async def abort(self, key: str, upload: str) -> None:
        """Does nothing. Azure deletes uncommitted blocks after a week, or when the key is written again."""

    async def uploads(self, prefix: str) -> AsyncIterator[tuple[str, str]]:
        """Yields nothing: there is nothing to abort."""
        return
        yield

    # --- files of a state

    async def read(self, key: str) -> tuple[bytes, str] | None:
        response = await self._send("GET", key, {}, {}, None, "state")
        if response.status == 404 and code_of(response.headers) == "BlobNotFound":
            response.close()
            return None
        if response.status != 200:
            raise await self._error(response, "state")
        return await self._http.read(response, "state"), response.headers.get("ETag", "")

    async def write_if(self, key: str, data: bytes, version: str | None) -> bool:
        headers = {"if-none-match": "*"} if version is None else {"if-match": version}
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        headers |= {"x-ms-blob-type": "BlockBlob", "content-md5": base64.b64encode(md5).decode()}
        response = await self._send("PUT", key, {}, headers, data, "state")
        if response.status == 201 or condition_failed(response.status, response.headers):
            await self._http.read(response, "state")
            if not response.sent_twice:
                return response.status == 201
            found = await self.read(key)  # the first request, whose response was lost, may have written it
            return found is not None and found[0] == data
        raise await self._error(response, "state")

    # --- preflight

    async def refusal(self, prefix: str, *, writing: bool, attributes: Mapping[str, str] = {}) -> str | None:
        """Returns why the container cannot be used, as the end of a sentence, or None.

        The rights to list, read and write, and to write ``attributes``, are tried one after the other, and nothing is
        written (azure/preflight.py).
        Raises ObjectError if Azure does not answer or is busy.
        """
        requests = list(probes(prefix, writing=writing, attributes=attributes))
        if text := lasting_refusal(self._authority, [each.right for each in requests]):
            return text
        for right, method, key, query, headers, data, given in requests:
            response = await self._send(method, key, query, headers, data, self._side)
            if response.status == 429 or response.status >= 500:
                raise await self._error(response, self._side)
            await self._http.read(response, self._side)
            if text := refusal(response.status, code_of(response.headers), right, given):
                return text
        return None

    async def settings(self, key: str, data: bytes) -> BucketSettings:
        """Returns what the container says of itself (azure/preflight.py), also by writing ``data``."""

        async def answer(method: str, key: str, query: Headers, headers: Headers, data: bytes | None) -> Response:
            response = await self._send(method, key, query, headers, data, self._side)
            await self._http.read(response, self._side)
            return response

        return await container_settings(answer, key, data)

    # --- one request

    async def _send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        data: bytes | Upload | None,
        side: str,
        *,
        extra_read_s: float = 0.0,
    ) -> Response:
        """Sends a request and returns its response. One that did not authenticate may be sent once more."""
        path = f"{self._root}/{encoded(key)}" if key else self._root
        asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        while True:
            sent = {**headers, "x-ms-date": self._now(), "x-ms-version": VERSION}
            extra = await self._authority.authorize(method, path, query, sent, len(data or b""))
            target = "?".join(filter(None, (path, "&".join(filter(None, (asked, extra))))))
            response = await self._http.request(method, target, sent, data, side, extra_read_s=extra_read_s)
            if response.status < 400 or not not_authenticated(response.status, response.headers):
                self._authority.accepted(sent)
                return response
            if not self._authority.refused(sent):
                return response
            response.close()

    async def _ask(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], data: bytes | None, side: str
    ) -> bytes:
        response = await self._send(method, key, query, headers, data, side)
        if response.status != 200:
            raise await self._error(response, side)
        return await self._http.read(response, side)

    async def _written(
        self, response: Response, *, create: bool, lost: tuple[str, ...], md5: str | None, in_parts: bool = False
    ) -> Sent:
        """Returns what a write was answered with. Raises its error."""
        exists = create and condition_failed(response.status, response.headers)
        if response.status != 201 and not exists:
            raise await self._error(response, self._side)
        await self._http.read(response, self._side)
        if exists:
            return Sent(None, exists=True, sent_twice=response.sent_twice)
        etag = printable_header(response.headers.get("ETag"))
        return Sent(etag, in_parts=in_parts, md5=md5, version=etag, lost=lost)

    async def _error(self, response: Response, side: str) -> ObjectError | Fatal:
        await self._http.read(response, side)
        return azure_error(response.status, response.headers, side, self._authority.ends_at)

    def _now(self) -> str:
        """Returns the time for a request, computed once a second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, formatdate(now, usegmt=True))
        return self._date[1]
