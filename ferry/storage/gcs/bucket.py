"""One bucket of Google Cloud Storage as a Provider (ferry/storage/provider.py), through the JSON API."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from urllib.parse import quote
from uuid import uuid4

from yarl import URL

from ferry.core import (
    KMS_KEY,
    PART_BYTES,
    TIER,
    Body,
    Digests,
    ErrorClass,
    Fatal,
    ObjectError,
    UserError,
    part_bytes,
)
from ferry.http import Network, Response, Upload
from ferry.storage import capabilities
from ferry.storage.endpoint import COPY_BYTES_PER_S, Endpoint, delete_each
from ferry.storage.gcs.client import Client
from ferry.storage.gcs.errors import parse_error, refusal
from ferry.storage.gcs.resources import (
    ATTRIBUTES,
    INFO,
    SENT,
    Related,
    Resource,
    attributes_of,
    check_key,
    etag_of,
    info_of,
    md5_of,
    page_of,
    resource_of,
    sent_of,
)
from ferry.storage.gcs.resumable import Sessions, conditions, upload_of
from ferry.storage.gcs.tokens import Anonymous, Tokens
from ferry.storage.object_info import ObjectInfo, Sent, last_modified
from ferry.storage.provider import TRIAL, BucketSettings, CannotCopy, Got, Page, Part, TooLargeAtOnce

MAX_BYTES = capabilities.GOOGLE.max_bytes
LOOPBACK = ("127.0.0.1", "::1", "localhost")  # emulators have no certificates
_STORED = {"accept-encoding": "gzip"}  # otherwise objects with `Content-Encoding: gzip` arrive decoded
_NOT_CACHED = {"Content-Type": "application/octet-stream", "Cache-Control": "no-store"}  # in a public bucket, too


class Gcs:
    """Client for one bucket. Create it inside the event loop that uses it, and close it at the end."""

    in_byte_order = True  # JSON API, Objects: list
    cuts_listings = False
    parts_at_once = 1

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        tokens: Tokens,
        *,
        timeout_s: float,
        read_s: float,
        connections: int = 512,
        network: Network = Network(),
        side: str = "destination",
    ) -> None:
        """``timeout_s`` and ``read_s`` are those of ferry/storage/endpoint.py; ``side`` names what is written.

        Raises UserError for tokens that would go to another machine without encryption.
        """
        if endpoint.startswith("http:") and URL(endpoint).host not in LOOPBACK and not isinstance(tokens, Anonymous):
            raise UserError("credentials: Google takes tokens over https alone. Correct `endpoint_url`")
        self.endpoint = endpoint
        self._side = side
        self._endpoint = Endpoint(
            endpoint, timeout_s=timeout_s, read_s=read_s, connections=connections, network=network
        )
        self._tokens = tokens
        self._client = Client(self._endpoint, bucket, tokens)
        self._sessions = Sessions(self._client, side)
        # Random, so that no object can contain it on purpose.
        boundary = secrets.token_hex(16)
        self._related = {"content-type": f"multipart/related; boundary={boundary}"}
        self._before = f"--{boundary}\r\ncontent-type: application/json\r\n\r\n".encode()
        self._between = f"\r\n--{boundary}\r\ncontent-type: ".encode()
        self._after = f"\r\n--{boundary}--\r\n".encode()
        self._insert = f"{self._client.uploads}?uploadType=multipart&prettyPrint=false&fields={SENT}"

    async def close(self) -> None:
        await self._endpoint.close()

    @property
    def connections_opened(self) -> int:
        return self._endpoint.connections_opened

    async def put(
        self, key: str, data: bytes | Upload, digests: Digests, attributes: Mapping[str, str], *, create: bool
    ) -> Sent:
        """Writes an object with its attributes and its MD5 in one request (JSON API, Objects: insert).

        Google compares the MD5. Raises TooLargeAtOnce for a spooled body that a proxy refuses.
        """
        response, lost = await self._write(key, data, digests.md5, attributes, "0" if create else None, self._side)
        if create and response.status == 412:
            await self._client.read(response, self._side)
            return Sent(None, exists=True, sent_twice=response.sent_twice)
        if response.status == 413 and not isinstance(data, bytes):
            response.close()
            raise TooLargeAtOnce
        return sent_of(await self._client.resource(response, self._side), lost=lost)

    async def _write(
        self,
        key: str,
        data: bytes | Upload,
        md5: str | None,
        attributes: Mapping[str, str],
        generation: str | None,
        side: str,
    ) -> tuple[Response, tuple[str, ...]]:
        resource, content_type, lost = resource_of(key, attributes, md5)
        kind = (content_type or "application/octet-stream").encode()
        before = b"".join((self._before, resource, self._between, kind, b"\r\n\r\n"))
        body: bytes | Upload
        if isinstance(data, bytes):
            body = b"".join((before, data, self._after))
        else:
            body = Related(before, data, self._after)
        target = self._insert + conditions(attributes, generation)
        return await self._client.send("POST", target, side, self._related, body), lost

    async def head(self, key: str, side: str) -> ObjectInfo | None:
        """Returns the object's information, or None if it does not exist (JSON API, Objects: get)."""
        found = await self._resource(key, side, INFO)
        return None if found is None else info_of(found, side)

    async def _resource(self, key: str, side: str, fields: str) -> Resource | None:
        response = await self._client.send("GET", f"{self._client.object(key)}?prettyPrint=false&fields={fields}", side)
        if response.status == 404:
            await self._client.check_missing(response, side)
            return None
        return await self._client.resource(response, side)

    async def get(self, key: str, side: str, *, start: int = 0, if_version: str = "") -> Got:
        """Returns the bytes as they are stored, and the object's attributes.

        A response with the bytes has no metadata (JSON API), or none outside ASCII (XML API). So there are two
        requests; the second one names the generation of the first. With ``if_version`` there is only the second, and no
        attributes: the caller has them.
        """
        if if_version:
            response = await self._media(key, side, start, if_version)
            return Got(response, _info_of_media(key, start, response), {})
        resource = await self._resource(key, side, f"{INFO},{ATTRIBUTES}")
        if resource is None:
            raise _no_object(side)
        info = info_of(resource, side)
        response = await self._media(key, side, start, info.version or "")
        if not _is_stored(response, info.size - start, resource.get("contentEncoding", "")):
            response.close()
            raise ObjectError(ErrorClass.STORE_ERROR, f"the {side} sent other bytes than those that are stored")
        return Got(response, info, attributes_of(resource))

    async def _media(self, key: str, side: str, start: int, version: str) -> Response:
        """Returns the response with the bytes of one generation. Raises ObjectError if the object is another one."""
        condition = f"&ifGenerationMatch={quote(version, safe='')}" if version else ""
        headers = {**_STORED, "range": f"bytes={start}-"} if start else _STORED
        response = await self._client.send("GET", f"{self._client.object(key)}?alt=media{condition}", side, headers)
        if response.status == 404:
            await self._client.check_missing(response, side)
            raise _no_object(side)
        other = response.headers.get("X-Goog-Generation", version) != version if version else False
        if response.status in (412, 416) or other:
            response.close()
            raise ObjectError(ErrorClass.STORE_ERROR, f"the {side}'s object was replaced while it was read")
        if response.status != (206 if start else 200):
            raise await self._client.error(response, side)
        return response

    async def tags(self, key: str, side: str) -> str:
        """Returns "": the service has no tags."""
        return ""

    async def copy(self, key: str, bucket: str, source: ObjectInfo, attributes: Mapping[str, str] = {}) -> Sent:
        """Has Google copy an object of ``bucket`` if it has not changed (JSON API, Objects: rewrite).

        The generation is the condition; without one, the object is looked up by its ETag. The digests of the copy must
        be those of the source, and its class the given one: a request that names a class would replace all attributes.
        Raises CannotCopy.
        """
        check_key(key)
        if KMS_KEY in attributes:
            raise CannotCopy
        there = Client(self._endpoint, bucket, self._tokens)
        if source.version is None:
            source = await _listed(there, source)
        path = f"{there.object(source.key)}/rewriteTo/b/{self._client.bucket}/o/{quote(key, safe='')}"
        path += f"?ifSourceGenerationMatch={quote(source.version or '', safe='')}"
        fields = f"done,rewriteToken,totalBytesRewritten,resource({SENT},crc32c,storageClass)"
        token, written = "", -1
        while True:
            target = f"{path}&fields={fields}{token}"
            extra_read_s = source.size / COPY_BYTES_PER_S
            response = await self._client.send("POST", target, self._side, {}, b"", extra_read_s=extra_read_s)
            if response.status == 429 or response.status >= 500:
                raise await self._client.error(response, self._side)
            if response.status != 200:
                await self._client.read(response, self._side)
                raise CannotCopy
            answer = await self._client.resource(response, self._side)
            if answer.get("done"):
                copied = answer.get("resource") or {}
                if attributes.get(TIER) not in (None, copied.get("storageClass")):
                    raise CannotCopy
                return _copied(copied, source)
            before, written = written, int(answer.get("totalBytesRewritten") or 0)
            if not answer.get("rewriteToken") or written <= before:
                raise CannotCopy
            token = f"&rewriteToken={quote(str(answer['rewriteToken']), safe='')}"

    async def delete(self, keys: Sequence[str], side: str) -> None:
        """Deletes objects. A missing one is not an error (JSON API, Objects: delete)."""

        async def one(key: str) -> None:
            response = await self._client.send("DELETE", self._client.object(key), side)
            if response.status == 404:
                await self._client.check_missing(response, side)
            elif response.status not in (200, 204):
                raise await self._client.error(response, side)
            else:
                await self._client.read(response, side)

        await delete_each(one, keys)

    async def page(self, prefix: str, side: str, *, after: str | None = None, token: str | None = None) -> Page:
        """Returns a page of the objects whose keys begin with ``prefix`` (JSON API, Objects: list)."""
        query = f"prettyPrint=false&prefix={quote(prefix, safe='')}&fields=items({INFO}),nextPageToken"
        if token is not None:
            query += f"&pageToken={quote(token, safe='')}"
        if after is not None:
            query += f"&startOffset={quote(after, safe='')}"
        response = await self._client.send("GET", f"{self._client.objects}?{query}", side)
        return page_of(await self._client.resource(response, side), side, after)

    # --- uploads in parts

    def part_bytes(self, size: int) -> int:
        """Returns the part size that all providers have. Google has no limit of the number of parts."""
        if size > MAX_BYTES:
            text = f"the object has {size:,} bytes; Google Cloud Storage holds at most {MAX_BYTES:,}"
            raise ObjectError(ErrorClass.TOO_LARGE, text)
        return part_bytes(size, PART_BYTES)

    async def begin(
        self, key: str, attributes: Mapping[str, str], size: int, *, md5: str | None, create: bool
    ) -> str | None:
        return await self._sessions.begin(key, attributes, size, md5=md5, create=create)

    async def put_part(self, key: str, upload: str, part: int, data: Upload, digests: Digests, offset: int) -> Part:
        """Sends a part, or what Google does not have of it. The parts come in order."""
        await self._sessions.put(upload, data, offset, digests.whole_md5)
        return Part(part, len(data), "", digests.md5)

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
        sent = await self._sessions.complete(key, upload, body.size, body.md5, create=create)
        return replace(sent, lost=resource_of(key, attributes, None)[2])

    async def parts(self, key: str, upload: str) -> list[Part] | None:
        known = await self._sessions.known(upload)
        if known is None:
            return None
        size = known if isinstance(known, int) else int(upload.partition(":")[0])
        return [Part(1, size, "")] if size else []

    async def abort(self, key: str, upload: str) -> None:
        await self._sessions.abort(upload)

    async def uploads(self, prefix: str) -> AsyncIterator[tuple[str, str]]:
        """Yields nothing: Google does not list sessions. One that is left alone ends after a week and costs nothing."""
        unlisted: list[tuple[str, str]] = []
        for each in unlisted:
            yield each

    # --- files of a state

    async def read(self, key: str) -> tuple[bytes, str] | None:
        """Returns a small object and its generation, or None."""
        info = await self.head(key, "state")
        if info is None:
            return None
        response = await self._media(key, "state", 0, info.version or "")
        return await self._client.read(response, "state"), info.version or ""

    async def write_if(self, key: str, data: bytes, version: str | None) -> bool:
        """Writes a small object if it has this generation, or with None if it does not exist. Returns whether."""
        response, _ = await self._write(key, data, None, _NOT_CACHED, version or "0", "state")
        if response.status == 412:
            await self._client.read(response, "state")
            return False
        await self._client.resource(response, "state")
        return True

    # --- preflight

    async def refusal(self, prefix: str, *, writing: bool, attributes: Mapping[str, str] = {}) -> str | None:
        """Returns why the bucket cannot be used, as the end of a sentence, or None. Leaves no object.

        Writing is tried by an upload session, which is ended at once; reading by a listing. The permission that is
        missing is named. testIamPermissions would not do: it does not see conditions on the names of objects.
        """
        below = f"{prefix}/" if prefix else ""
        if writing:
            response = await self._sessions.open(f"{below}{TRIAL}{uuid4().hex}", attributes, 0, None, None)
        else:
            target = f"{self._client.objects}?maxResults=1&fields=nextPageToken&prefix={quote(below, safe='')}"
            response = await self._client.send("GET", target, self._side)
        body = await self._client.read(response, self._side)
        if response.status in (200, 201) and writing:
            with contextlib.suppress(ObjectError, Fatal):  # it ends by itself
                await self._sessions.abort(upload_of(response, 0))
        return refusal(response.status, parse_error(body), "writing" if writing else "listing")

    async def settings(self, key: str, data: bytes) -> BucketSettings:
        """Returns what the bucket says of itself (JSON API, Buckets: get), also by writing ``data`` with a wrong MD5.

        Reading a bucket's resource needs a right that writing objects does not.
        """
        response, _ = await self._write(key, data, "0" * 32, {}, None, self._side)
        await self._client.read(response, self._side)
        checksums = {200: False, 400: True}.get(response.status)
        target = f"{self._client.objects.removesuffix('/o')}?fields=versioning,encryption,retentionPolicy"
        response = await self._client.send("GET", target, self._side)
        if response.status != 200:
            await self._client.read(response, self._side)
            return BucketSettings(checksums)
        found = await self._client.resource(response, self._side)
        return BucketSettings(
            checksums,
            "on" if (found.get("versioning") or {}).get("enabled") else "off",
            (found.get("encryption") or {}).get("defaultKmsKeyName") or "Google's own keys",
            "retentionPolicy" in found,
        )


async def _listed(client: Client, source: ObjectInfo) -> ObjectInfo:
    """Returns an object as it is now, if it has the listed ETag. Raises CannotCopy."""
    response = await client.send("GET", f"{client.object(source.key)}?fields={INFO}", "source")
    if response.status != 200:
        await client.read(response, "source")
        raise CannotCopy
    found = info_of(await client.resource(response, "source"), "source")
    if found.etag is None or found.etag != source.etag:
        raise CannotCopy
    return found


def _is_stored(response: Response, size: int, encoding: str) -> bool:
    """Returns whether a response has the stored bytes: ``size`` of them, neither unpacked nor packed on the way."""
    sent = response.headers.get("Content-Encoding", "")
    if response.length is None:  # so it is when Google unpacks
        return sent == encoding
    return response.length == size and sent in ("", encoding)


def _info_of_media(key: str, start: int, response: Response) -> ObjectInfo:
    """Returns what the header of a response with an object's bytes says."""
    headers = response.headers
    hashes = [each.strip() for value in headers.getall("X-Goog-Hash", []) for each in value.split(",")]
    md5 = next((each[4:] for each in hashes if each.startswith("md5=")), None)
    return ObjectInfo(
        key,
        (response.length or 0) + start,
        etag_of(md5_of(md5), headers.get("ETag", "").strip('"')),
        last_modified(headers),
        md5=md5_of(md5),
        version=headers.get("X-Goog-Generation"),
        tier=headers.get("X-Goog-Storage-Class"),
    )


def _copied(copy: Resource, source: ObjectInfo) -> Sent:
    """Returns the response to a copy with the digests of its source. Raises CannotCopy if one differs."""
    sent, crc32c = sent_of(copy), copy.get("crc32c")
    if None not in (sent.md5, source.md5) and sent.md5 != source.md5:
        raise CannotCopy
    if None not in (crc32c, source.crc32c) and crc32c != source.crc32c:
        raise CannotCopy
    return sent if source.md5 is not None else replace(sent, md5=None)


def _no_object(side: str) -> ObjectError:
    return ObjectError(ErrorClass.NOT_FOUND, f"the {side} has no such object", status_code=404)
