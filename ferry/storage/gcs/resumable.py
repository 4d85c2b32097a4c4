"""Resumable uploads: bodies in parts, in order, which a later run can continue (JSON API: "Resumable uploads")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, urlsplit

from ferry.core import KMS_KEY, ErrorClass, ObjectError
from ferry.http import Response, Upload
from ferry.storage.gcs.client import Client
from ferry.storage.gcs.resources import INFO, SENT, Resource, Rest, info_of, resource_of, sent_of
from ferry.storage.object_info import Sent, in_base64

_RANGE = re.compile(r"bytes=0-([0-9]+)")
_TARGET = re.compile(r"/[!-~]+\?[!-~]+")
_UPLOAD = re.compile(r"[0-9]{1,20}:(/[!-~]+?)\?([!-~]+)")
_ENDED = "does not know the upload any more: it has ended, or is over a week old"
_GONE = (404, 410)  # the session does not exist: it has ended, or is over a week old


class Sessions:
    """Upload sessions of one bucket.

    The ID of an upload is its size and the session's path and query. Requests go to the endpoint alone, whatever host
    the Location names. The path lets its owner write this one object without a token, so it belongs into no log.
    An ID of an earlier run is read from the state. So one that is not of a session of this bucket is sent nowhere.
    """

    def __init__(self, client: Client, side: str) -> None:
        self._client = client
        self._side = side
        # What the last response of a session said: bytes that Google has, or the resource of the complete object. It is
        # forgotten while a request is under way: after a lost response the session is asked.
        self._known: dict[str, int | Resource] = {}
        self._taken: set[str] = set()  # sessions that ended in a 412: the key is taken

    async def begin(
        self, key: str, attributes: Mapping[str, str], size: int, *, md5: str | None, create: bool
    ) -> str | None:
        """Returns the ID of a new upload, or None if ``create`` is set and the key is taken."""
        response = await self.open(key, attributes, size, md5, "0" if create else None)
        if create and response.status == 412:
            await self._client.read(response, self._side)
            return None
        if response.status not in (200, 201):
            raise await self._client.error(response, self._side)
        await self._client.read(response, self._side)
        upload = upload_of(response, size)
        self._known[upload] = 0
        return upload

    async def open(
        self, key: str, attributes: Mapping[str, str], size: int, md5: str | None, generation: str | None
    ) -> Response:
        """Returns the response to the request for a session."""
        resource, content_type, _ = resource_of(key, attributes, md5)
        target = f"{self._client.uploads}?uploadType=resumable&prettyPrint=false&fields={SENT}"
        headers = {"content-type": "application/json", "x-upload-content-length": str(size)}
        if content_type:
            headers["x-upload-content-type"] = content_type
        return await self._client.send(
            "POST", target + conditions(attributes, generation), self._side, headers, resource
        )

    async def put(self, upload: str, data: Upload, offset: int, whole_md5: str | None) -> None:
        """Sends the bytes from ``offset`` on that Google does not have yet.

        With the last ones the MD5 of the whole body, if it was not known at the beginning: Google makes no object of
        other bytes then (JSON API: x-goog-hash in the last request of a resumable upload).
        """
        end = offset + len(data)
        known = self._known.pop(upload, None)
        if known != offset:
            known = await self.known(upload)
        while isinstance(known, int) and known < end:
            if known < offset:
                raise self._error(f"has {known:,} bytes of the upload where {offset:,} were sent")
            size, _ = _parsed(upload)
            more = {"x-goog-hash": f"md5={in_base64(whole_md5)}"} if whole_md5 else {}
            response = await self._ask(upload, f"bytes {known}-{end - 1}/{size}", Rest(data, known - offset), more)
            if response.status == 412:
                await self._client.read(response, self._side)
                self._taken.add(upload)
                return
            before, known = known, await self._state(response)
            if isinstance(known, int) and known <= before:
                raise self._error(f"kept none of {end - before:,} bytes of the upload")
        if known is None:
            raise self._error(_ENDED)
        self._known[upload] = known

    async def known(self, upload: str) -> int | Resource | None:
        """Returns how many bytes Google has, the resource of the complete object, or None without a session."""
        if upload in self._known:
            return self._known[upload]
        if not self._is_session(upload):
            return None
        size, _ = _parsed(upload)
        return await self._state(await self._ask(upload, f"bytes */{size}", b""))

    async def complete(self, key: str, upload: str, size: int, md5: str, *, create: bool) -> Sent:
        """Returns the response to the last part. If it was lost and the session has ended, the object decides."""
        known = self._known.pop(upload, None)
        if upload in self._taken:
            self._taken.discard(upload)
            return self._exists(create)
        if known is None:
            known = await self.known(upload)
        if isinstance(known, int):
            raise self._error(f"has {known:,} of {size:,} bytes of the upload")
        if known is not None and "generation" in known:
            return sent_of(known, in_parts=True)
        response = await self._client.send("GET", f"{self._client.object(key)}?fields={INFO}", self._side)
        if response.status == 404:
            await self._client.check_missing(response, self._side)
            raise self._error(_ENDED)
        resource = await self._client.resource(response, self._side)
        found = info_of(resource, self._side)
        if (found.size, found.md5) != (size, md5):
            return self._exists(create)
        return sent_of(resource, in_parts=True)

    def _exists(self, create: bool) -> Sent:
        """Returns the response for a key that another object has. Without ``create`` that is an error."""
        if create:
            return Sent(None, exists=True)
        raise self._error(_ENDED)

    def _error(self, what: str) -> ObjectError:
        return ObjectError(ErrorClass.STORE_ERROR, f"the {self._side} {what}")

    async def abort(self, upload: str) -> None:
        """Ends a session. One that has ended is not an error. Google answers 499."""
        self._known.pop(upload, None)
        self._taken.discard(upload)
        if not self._is_session(upload):
            return
        _, target = _parsed(upload)
        response = await self._client.send("DELETE", target, self._side, {}, b"")
        if response.status not in (200, 204, 499, *_GONE):
            raise await self._client.error(response, self._side)
        await self._client.read(response, self._side)

    def _is_session(self, upload: str) -> bool:
        found = _UPLOAD.fullmatch(upload)
        if found is None or found[1] != self._client.uploads:
            return False
        query = parse_qs(found[2], keep_blank_values=True)
        return query.get("uploadType") == ["resumable"] and len(query.get("upload_id", [])) == 1

    async def _ask(
        self, upload: str, content_range: str, data: bytes | Upload, more: Mapping[str, str] = {}
    ) -> Response:
        _, target = _parsed(upload)
        headers = {"content-range": content_range, **more}
        return await self._client.send("PUT", target, self._side, headers, data, again=False)

    async def _state(self, response: Response) -> int | Resource | None:
        if response.status == 308:
            await self._client.read(response, self._side)
            found = _RANGE.fullmatch(response.headers.get("Range", ""))
            return int(found[1]) + 1 if found else 0
        if response.status in _GONE:
            await self._client.read(response, self._side)
            return None
        return await self._client.resource(response, self._side)


def conditions(attributes: Mapping[str, str], generation: str | None) -> str:
    """Returns the parameters of a write: its encryption key, and the generation that it replaces (0: none)."""
    key = attributes.get(KMS_KEY)
    found = f"&kmsKeyName={quote(key, safe='')}" if key else ""
    return found if generation is None else f"{found}&ifGenerationMatch={quote(generation, safe='')}"


def upload_of(response: Response, size: int) -> str:
    """Returns the ID of the session that a response has opened."""
    session = urlsplit(response.headers.get("Location", ""))
    target = f"{session.path}?{session.query}"
    if not _TARGET.fullmatch(target):
        raise ObjectError(ErrorClass.STORE_ERROR, "Google Cloud Storage began an upload but returned no address for it")
    return f"{size}:{target}"


def _parsed(upload: str) -> tuple[int, str]:
    size, _, target = upload.partition(":")
    return int(size), target
