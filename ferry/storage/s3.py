"""Single objects of a bucket over HTTP in the loop's own thread: the short way for what every row does.

obstore's client lives in threads of its own, and each call is handed over and back (docs/decisions/0009). Whatever is
not plain here is obstore's.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from yarl import URL

from ferry.core import PART_BYTES, Fatal, ObjectError
from ferry.http import Connections, Response, SystemResolver, Upload, closed_before_response, parse_retry_after
from ferry.storage.errors import credentials_error, from_store_http, redirected, s3_code, store_status
from ferry.storage.object_info import Sent, checksum_of, sha256_of
from ferry.storage.sigv4 import EMPTY_SHA256, Keys, Signer, encoded

# Keys and values that every client writes alike. (obstore refuses empty parts, `.`, `..` and control characters.)
_PLAIN_KEY = re.compile(r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~=@,()!$'-]+(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~=@,()!$'-]+)*")
# Keys that a request's path can hold: the others, stores and what stands before them read in different ways.
_KEY = re.compile(r"(?!\.{1,2}(?:/|\Z))[^/\x00-\x1f\x7f]+(?:/(?!\.{1,2}(?:/|\Z))[^/\x00-\x1f\x7f]+)*")
_PLAIN_VALUE = re.compile(r"[!-~]+(?: [!-~]+)*")
_ETAG = re.compile(r'"[!#-~]+"|[!#-~]+')  # RFC 9110 section 8.8.3; a list's column may hold anything
_PLAIN_NAME = re.compile(r"[a-z0-9-]+")
_HEADERS = {
    name.lower(): name
    for name in ("Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type")
}
_META = "x-amz-meta-"
_CHECKSUM = "x-amz-checksum-sha256"
_COPIED = re.compile(rb"<CopyObjectResult.*?<ETag>(?:&quot;|&#34;|\")?([^<&\"]+)", re.DOTALL)
_ANSWER_BYTES = 64 * 1024
CONNECT_S = 15.0
COPIED_BYTES_PER_S = 16 * 1024**2  # by a store that copies an object and says nothing meanwhile


class AnyAddress(SystemResolver):
    """Names without a filter: endpoints are the user's own."""

    def open_socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        return socket.socket(family=addr_info[0], type=addr_info[1], proto=addr_info[2])

    async def check_connection(self, sock: socket.socket) -> None:
        pass


class Credentials(Protocol):
    """Where the keys come from; they may change while a run is on."""

    async def current(self) -> Keys | None:
        """The keys to sign with, or None to ask unsigned."""
        ...


class NotPlain(Exception):
    """This request is none for the short way."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A store's answer with its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent_twice: bool = False  # its request was sent before, on a connection that died without an answer


class BucketHttp:
    """One bucket. Made inside the loop that uses it; closed at the end. Raises ObjectError, Fatal and NotPlain."""

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        region: str,
        credentials: Credentials,
        *,
        timeout_s: float,
        read_s: float,
        connections: int,
    ) -> None:
        """``timeout_s`` bounds a request, longer for a large body; ``read_s`` the time in which nothing of a request is
        taken and nothing of an answer comes."""
        base = URL(endpoint)
        self._base = f"{base.scheme}://{base.raw_authority}"
        self._bucket = bucket
        self._root = f"{base.raw_path.rstrip('/')}/{bucket}/"
        port = "" if base.port in (None, {"http": 80, "https": 443}.get(base.scheme)) else f":{base.port}"
        self._signer = Signer(f"{base.raw_host}{port}", region)
        self._credentials = credentials
        self._site = (base.scheme, base.raw_host or "", base.port or 443)
        self._host = f"{base.raw_host}{port}"
        self._timeout_s = timeout_s
        self._takes_checksums: bool | None = None  # None: not known yet
        self._read_s = read_s
        self._loop = asyncio.get_running_loop()
        self._connections = Connections(AnyAddress(), limit=connections, connect_s=CONNECT_S, read_s=read_s)

    async def close(self) -> None:
        await self._connections.close()

    @property
    def connections_opened(self) -> int:
        """Connections opened so far."""
        return self._connections.connections_opened

    async def put(
        self, key: str, data: bytes | Upload, sha256: str, attributes: Mapping[str, str], create: bool
    ) -> Sent:
        """Writes one object of one part. Its SHA-256 is signed, and sent to be kept: S3 refuses a body with another
        one, and answers with what it keeps.

        A store may refuse what it does not know (400, 501): then this bucket is asked without it, from now on.
        Raises NotPlain where one request may not be so large: a proxy before the store may have a limit of its own.
        """
        headers = plain_headers(attributes)
        if create:
            headers["if-none-match"] = "*"
        asked = headers | {_CHECKSUM: checksum_of(sha256)} if self._takes_checksums is not False else headers
        response = await self._ask("PUT", key, asked, sha256, data, "destination")
        if response.status in (400, 501) and asked is not headers and self._takes_checksums is None:
            response.close()
            response = await self._ask("PUT", key, headers, sha256, data, "destination")
            if response.status == 200:
                self._takes_checksums = False
        elif response.status == 200 and asked is not headers:
            self._takes_checksums = True
        status = response.status
        if status == 200 or (create and status == 412):
            code = s3_code(await self._rest(response, "destination"))
            if status == 200 and code:
                raise store_status(200, code, "destination")
            if status == 412:
                return Sent(None, exists=True, sent_twice=response.sent_twice)
            return Sent(response.headers.get("ETag") or None, sha256_of(response.headers.get(_CHECKSUM)))
        if status == 413 and not isinstance(data, bytes):
            response.close()
            raise NotPlain
        raise await self._refused(response, "destination")

    async def get(self, key: str, side: str) -> Response:
        """The answer with the object, its body not read yet; whoever takes it reads or closes it."""
        response = await self._ask("GET", key, {}, EMPTY_SHA256, None, side)
        if response.status == 200:
            return response
        raise await self._refused(response, side)

    async def copy(self, key: str, source: str, etag: str, size: int = 0) -> str:
        """Has the server copy an object as it is, if it still has this ETag; returns the new one (CopyObject).

        ``source`` is the bucket and the key, joined by a slash. Raises NotPlain where the server does not do it:
        whoever reads and writes the bytes instead learns on which side the trouble is.
        """
        if not _PLAIN_KEY.fullmatch(source) or not _ETAG.fullmatch(etag):
            raise NotPlain
        quoted = etag if etag.startswith('"') else f'"{etag}"'
        headers = {"x-amz-copy-source": "/" + encoded(source), "x-amz-copy-source-if-match": quoted}
        patience_s = self._read_s + size / COPIED_BYTES_PER_S
        response = await self._ask("PUT", key, headers, EMPTY_SHA256, b"", "destination", patience_s)
        if response.status in (429, 503):
            raise await self._refused(response, "destination")
        answer = await self._rest(response, "destination")
        found = _COPIED.search(answer)  # a 200 may be an error that came up on the way
        if response.status != 200 or found is None:
            raise NotPlain
        return found[1].decode()

    async def delete(self, key: str) -> None:
        """Removes one object (DeleteObject); nothing there is fine."""
        response = await self._send("DELETE", self._root + encoded(key), {}, EMPTY_SHA256, None, "destination")
        if response.status not in (200, 204, 404):
            raise await self._refused(response, "destination")
        await self._rest(response, "destination")

    async def call(self, method: str, key: str = "", query: str = "") -> tuple[int, bytes]:
        """A request without a body, about the bucket or any key: status and answer. ``query`` is in canonical form."""
        path = self._root + encoded(key)
        response = await self._send(method, path, {}, EMPTY_SHA256, None, "destination", query)
        return response.status, await self._rest(response, "destination")

    async def control(
        self,
        method: str,
        key: str,
        query: str = "",
        headers: Mapping[str, str] = {},
        data: bytes | Upload = b"",
        sha256: str = EMPTY_SHA256,
        *,
        ok: Container[int] = (200,),
        more_s: float = 0.0,
    ) -> Reply:
        """A request of an upload in parts, for any key that a path can hold. ``query`` is in canonical form, ``more_s``
        is patience beyond ``read_s``. Raises for an answer whose status is not among ``ok``."""
        if not _KEY.fullmatch(key):
            raise NotPlain
        body = None if method == "HEAD" else data
        path, patience_s = self._root + encoded(key), self._read_s + more_s
        response = await self._send(method, path, dict(headers), sha256, body, "destination", query, patience_s)
        if response.status not in ok:
            raise await self._refused(response, "destination")
        answer = await self._rest(response, "destination")
        return Reply(response.status, response.headers, answer, response.sent_twice)

    async def _ask(
        self,
        method: str,
        key: str,
        headers: dict[str, str],
        sha256: str,
        data: bytes | Upload | None,
        side: str,
        patience_s: float | None = None,
    ) -> Response:
        if not _PLAIN_KEY.fullmatch(key):
            raise NotPlain
        return await self._send(method, self._root + encoded(key), headers, sha256, data, side, patience_s=patience_s)

    async def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        sha256: str,
        data: bytes | Upload | None,
        side: str,
        query: str = "",
        patience_s: float | None = None,
    ) -> Response:
        keys = await self._credentials.current()
        if keys is not None:
            headers = self._signer.headers(method, path, headers, sha256, keys, datetime.now(UTC), query)
        length = f"content-length: {len(data)}\r\n" if data is not None else ""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        target = f"{path}?{query}" if query else path
        head = f"{method} {target} HTTP/1.1\r\nhost: {self._host}\r\n{length}{lines}\r\n".encode()
        # A large body has as long as its parts would have together, one after the other.
        deadline = self._loop.time() + self._timeout_s * (1 + len(data or b"") // PART_BYTES)
        given: dict[str, Any] = {"deadline": deadline, "is_head": method == "HEAD", "read_s": patience_s}
        try:
            try:
                return await self._connections.request(self._site, head, data, **given)
            except Exception as exc:
                if not closed_before_response(exc):
                    raise
            # An idle connection that the store had ended. A PUT of the same bytes may be sent again (RFC 9110, 9.2.2).
            answer = await self._connections.request(self._site, head, data, fresh=True, **given)
            answer.sent_twice = True
            return answer
        except Exception as exc:  # noqa: BLE001 - errors.py knows them
            raise from_store_http(exc, side) from None

    async def _rest(self, response: Response, side: str) -> bytes:
        """The body of an answer that is no object, as far as anybody reads it."""
        taken = b""
        try:
            while len(taken) < _ANSWER_BYTES and (piece := await response.read_chunk()):
                taken += piece
        except Exception as exc:  # noqa: BLE001 - errors.py knows them
            raise from_store_http(exc, side) from None
        finally:
            response.close()
        return taken

    async def _refused(self, response: Response, side: str) -> ObjectError | Fatal | NotPlain:
        body = await self._rest(response, side)
        if response.status < 400:
            location, region = response.headers.get("Location"), response.headers.get("x-amz-bucket-region")
            return redirected(response.status, location, region, self._bucket, side)
        retry_after_s = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
        return store_status(response.status, s3_code(body), side, retry_after_s)


def plain_headers(attributes: Mapping[str, str]) -> dict[str, str]:
    """An object's attributes as request headers: what S3 knows under its name, all else as user metadata.

    Raises NotPlain for what clients write in different ways.
    """
    headers = {}
    for name, value in attributes.items():
        lower = name.lower()
        if not _PLAIN_NAME.fullmatch(lower) or not _PLAIN_VALUE.fullmatch(value):
            raise NotPlain
        headers[lower if lower in _HEADERS else _META + lower] = value
    return headers


def attributes_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The attributes that an answer's headers tell of, named as obstore names them."""
    found = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in _HEADERS:
            found[_HEADERS[lower]] = value
        elif lower.startswith(_META):
            found[lower[len(_META) :]] = value
    return found


def last_modified(headers: Mapping[str, str]) -> datetime | None:
    try:
        return parsedate_to_datetime(headers["Last-Modified"])
    except (KeyError, ValueError, TypeError):
        return None


class Fixed:
    """Keys that do not change, or none."""

    def __init__(self, keys: Keys | None) -> None:
        self._keys = keys

    async def current(self) -> Keys | None:
        return self._keys


class Boto3:
    """Keys of boto3's chain. Those that expire are renewed in a thread: that may ask a metadata service."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials
        self._frozen: Any = None
        self._keys: Keys | None = None
        self._lock: asyncio.Lock | None = None

    async def current(self) -> Keys | None:
        needed = getattr(self._credentials, "refresh_needed", None)
        if self._keys is not None and (needed is None or not needed()):
            return self._keys
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            try:
                frozen = await asyncio.to_thread(self._credentials.get_frozen_credentials)
            except Exception as exc:  # noqa: BLE001 - botocore's, and those of what it asks
                raise credentials_error(exc) from None
            if frozen != self._frozen:
                self._frozen = frozen
                self._keys = Keys(frozen.access_key, frozen.secret_key, frozen.token)
        return self._keys
