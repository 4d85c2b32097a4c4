"""HTTP client for single objects of a bucket, which runs in the event loop's own thread (docs/decisions/0009)."""

from __future__ import annotations

import asyncio
import hashlib
import re
from base64 import b64encode
from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from yarl import URL

from ferry.core import PART_BYTES, Fatal, ObjectError
from ferry.http import AnyAddress, Connections, Network, Response, Upload, closed_before_response, parse_retry_after
from ferry.storage.errors import credentials_error, from_store_http, redirected, s3_code, store_status
from ferry.storage.object_info import Sent, checksum_of, sha256_of
from ferry.storage.sigv4 import EMPTY_SHA256, Keys, Signer, encoded

_ASCII = re.compile(r"[ -~]*")
_ETAG = re.compile(r'"[!#-~]+"|[!#-~]+')  # RFC 9110 section 8.8.3; a manifest's column may hold any text
_HEADERS = {
    name.lower(): name
    for name in ("Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type")
}
_META = "x-amz-meta-"
_CHECKSUM = "x-amz-checksum-sha256"
_COPY_ETAG = re.compile(rb"<CopyObjectResult.*?<ETag>(?:&quot;|&#34;|\")?([^<&\"]+)", re.DOTALL)
_MAX_BODY_BYTES = 64 * 1024
CONNECT_S = 15.0
COPY_BYTES_PER_S = 16 * 1024**2  # assumed speed of a store that copies an object and sends nothing meanwhile


class Credentials(Protocol):
    """Source of the keys, which may change during a run."""

    async def current(self) -> Keys | None:
        """Returns the keys to sign with, or None for an unsigned request."""
        ...


class CannotCopy(Exception):
    """Raised if the server does not copy an object. The caller reads and writes the bytes."""


class TooLargeAtOnce(Exception):
    """Raised if a body is refused with HTTP 413, since a proxy may have a limit of its own. Parts may be accepted."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A store's response with its complete body."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent_twice: bool = False  # the first request got no response before its connection closed


class BucketHttp:
    """Client for one bucket. Raises ObjectError and Fatal.

    Create it inside the event loop that uses it, and close it at the end.
    """

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
        network: Network = Network(),
    ) -> None:
        """Creates the client.

        ``timeout_s`` limits a request; each PART_BYTES of its body add as much again. ``read_s`` limits the time in
        which the store neither takes a byte of the request nor sends one of the response.
        """
        base = URL(endpoint)
        self._base = f"{base.scheme}://{base.raw_authority}"
        self._bucket = bucket
        self._root = f"{base.raw_path.rstrip('/')}/{bucket}/"
        port = "" if base.port in (None, {"http": 80, "https": 443}.get(base.scheme)) else f":{base.port}"
        self._signer = Signer(f"{base.host_subcomponent}{port}", region)
        self._credentials = credentials
        self._site = (base.scheme, base.raw_host or "", base.port or 443)
        self._host = f"{base.host_subcomponent}{port}"  # an IPv6 address in brackets
        self._timeout_s = timeout_s
        self._accepts_checksums: bool | None = None  # None: not known yet
        self._read_s = read_s
        self._loop = asyncio.get_running_loop()
        self._connections = Connections(
            AnyAddress(), limit=connections, connect_s=CONNECT_S, read_s=read_s, network=network,
            keeps_after_head=True,
        )  # fmt: skip

    async def close(self) -> None:
        await self._connections.close()

    @property
    def in_this_loop(self) -> bool:
        """Whether the client belongs to the running event loop."""
        return asyncio.get_running_loop() is self._loop

    @property
    def connections_opened(self) -> int:
        """Returns the number of connections opened so far."""
        return self._connections.connections_opened

    async def put(
        self, key: str, data: bytes | Upload, sha256: str, attributes: Mapping[str, str], create: bool
    ) -> Sent:
        """Writes an object in one request (S3 API: PutObject).

        The request signs the SHA-256 and also sends it as `x-amz-checksum-sha256`. S3 compares it, keeps it and returns
        it. If the store refuses that header (400, 501), this client omits it from then on. Raises TooLargeAtOnce for
        a spooled body.
        """
        headers = attribute_headers(attributes)
        if create:
            headers["if-none-match"] = "*"
        checked_headers = (
            headers | {_CHECKSUM: checksum_of(sha256)} if self._accepts_checksums is not False else headers
        )
        response = await self._send_key("PUT", key, checked_headers, sha256, data, "destination")
        if response.status in (400, 501) and checked_headers is not headers and self._accepts_checksums is None:
            response.close()
            response = await self._send_key("PUT", key, headers, sha256, data, "destination")
            if response.status == 200:
                self._accepts_checksums = False
        elif response.status == 200 and checked_headers is not headers:
            self._accepts_checksums = True
        status = response.status
        if status == 200 or (create and status == 412):
            code = s3_code(await self._read_body(response, "destination"))
            if status == 200 and code:
                raise store_status(200, code, "destination")
            if status == 412:
                return Sent(None, exists=True, sent_twice=response.sent_twice)
            return Sent(response.headers.get("ETag") or None, sha256_of(response.headers.get(_CHECKSUM)))
        if status == 413 and not isinstance(data, bytes):
            response.close()
            raise TooLargeAtOnce
        raise await self._error_from(response, "destination")

    async def head(self, key: str, side: str) -> Response | None:
        """Returns the response, or None for a missing object (S3 API: HeadObject)."""
        response = await self._send_key("HEAD", key, {}, EMPTY_SHA256, None, side)
        if response.status == 404:
            response.close()
            return None
        if response.status == 200:
            return response
        raise await self._error_from(response, side)

    async def get(self, key: str, side: str) -> Response:
        """Returns the response with the object, its body unread. The caller reads or closes it (S3 API: GetObject)."""
        response = await self._send_key("GET", key, {}, EMPTY_SHA256, None, side)
        if response.status == 200:
            return response
        raise await self._error_from(response, side)

    async def copy(self, key: str, source: str, etag: str, size: int = 0) -> str:
        """Copies an object on the server if it still has this ETag, and returns the copy's ETag (S3 API: CopyObject).

        ``source`` is the bucket and the key, joined by a slash. Raises CannotCopy. The caller then reads and writes the
        bytes, which shows on which side the error is.
        """
        if not _ETAG.fullmatch(etag):
            raise CannotCopy
        quoted = etag if etag.startswith('"') else f'"{etag}"'
        headers = {"x-amz-copy-source": "/" + encoded(source), "x-amz-copy-source-if-match": quoted}
        read_s = self._read_s + size / COPY_BYTES_PER_S
        response = await self._send_key("PUT", key, headers, EMPTY_SHA256, b"", "destination", read_s)
        if response.status in (429, 503):
            raise await self._error_from(response, "destination")
        answer = await self._read_body(response, "destination")
        found = _COPY_ETAG.search(answer)  # S3 may send an error under 200
        if response.status != 200 or found is None:
            raise CannotCopy
        return found[1].decode()

    async def delete(self, key: str) -> None:
        """Deletes an object. A missing object is not an error (S3 API: DeleteObject)."""
        response = await self._send("DELETE", self._root + encoded(key), {}, EMPTY_SHA256, None, "destination")
        if response.status not in (200, 204, 404):
            raise await self._error_from(response, "destination")
        await self._read_body(response, "destination")

    async def send(
        self, method: str, key: str, query: str, headers: Mapping[str, str], data: bytes | None, side: str
    ) -> Response:
        """Sends a request and returns its response, the body unread. ``query`` is in canonical form."""
        sha256 = hashlib.sha256(data).hexdigest() if data is not None else EMPTY_SHA256
        return await self._send(method, self._root + encoded(key), dict(headers), sha256, data, side, query)

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
        extra_read_s: float = 0.0,
    ) -> Reply:
        """Sends a request of a multipart upload.

        ``query`` is in canonical form. ``extra_read_s`` is added to ``read_s``. Raises ObjectError or Fatal for a
        status that is not in ``ok``.
        """
        body = None if method == "HEAD" else data
        path, read_s = self._root + encoded(key), self._read_s + extra_read_s
        response = await self._send(method, path, dict(headers), sha256, body, "destination", query, read_s)
        if response.status not in ok:
            raise await self._error_from(response, "destination")
        answer = await self._read_body(response, "destination")
        return Reply(response.status, response.headers, answer, response.sent_twice)

    async def _send_key(
        self,
        method: str,
        key: str,
        headers: dict[str, str],
        sha256: str,
        data: bytes | Upload | None,
        side: str,
        read_s: float | None = None,
    ) -> Response:
        return await self._send(method, self._root + encoded(key), headers, sha256, data, side, read_s=read_s)

    async def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        sha256: str,
        data: bytes | Upload | None,
        side: str,
        query: str = "",
        read_s: float | None = None,
    ) -> Response:
        keys = await self._credentials.current()
        if keys is not None:
            headers = self._signer.headers(method, path, headers, sha256, keys, datetime.now(UTC), query)
        length = f"content-length: {len(data or b'')}\r\n" if data is not None or method == "POST" else ""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        target = f"{path}?{query}" if query else path
        head = f"{method} {target} HTTP/1.1\r\nhost: {self._host}\r\n{length}{lines}\r\n".encode()
        # A large body has as much time as its parts would have one after the other.
        deadline = self._loop.time() + self._timeout_s * (1 + len(data or b"") // PART_BYTES)
        options: dict[str, Any] = {"deadline": deadline, "is_head": method == "HEAD", "read_s": read_s}
        try:
            try:
                return await self._connections.request(self._site, head, data, **options)
            except Exception as exc:
                if not closed_before_response(exc):
                    raise
            # The store had closed the idle connection. A PUT of the same bytes may be sent again (RFC 9110, 9.2.2).
            answer = await self._connections.request(self._site, head, data, fresh=True, **options)
            answer.sent_twice = True
            return answer
        except Exception as exc:  # noqa: BLE001 - errors.py knows them
            raise from_store_http(exc, side) from None

    async def _read_body(self, response: Response, side: str) -> bytes:
        """Returns the body of a response that is not an object, cut after about 64 KiB."""
        body = b""
        try:
            while len(body) < _MAX_BODY_BYTES and (piece := await response.read_chunk()):
                body += piece
        except Exception as exc:  # noqa: BLE001 - errors.py knows them
            raise from_store_http(exc, side) from None
        finally:
            response.close()
        return body

    async def _error_from(self, response: Response, side: str) -> ObjectError | Fatal:
        body = await self._read_body(response, side)
        if response.status < 400:
            location, region = response.headers.get("Location"), response.headers.get("x-amz-bucket-region")
            return redirected(response.status, location, region, self._bucket, side)
        retry_after_s = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
        return store_status(response.status, s3_code(body), side, retry_after_s)


def attribute_headers(attributes: Mapping[str, str]) -> dict[str, str]:
    """Returns an object's attributes as request headers: S3's own headers by name, all others as user metadata.

    Metadata is US-ASCII: other values are sent as a word of RFC 2047, as S3 itself returns them (S3 user guide,
    "Working with object metadata"). The standard headers are sent as UTF-8.
    """
    headers = {}
    for name, value in attributes.items():
        lower, text = name.lower(), _text(value)
        if lower in _HEADERS:
            headers[lower] = text
        else:
            headers[_META + lower] = text if _ASCII.fullmatch(text) else _word(text)
    return headers


def _text(value: str) -> str:
    """Returns a value without blanks around it, which are not part of it (RFC 9110 section 5.5), and without line ends.

    Bytes of a source that are not UTF-8 are read as Latin-1.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        value = value.encode("utf-8", "surrogateescape").decode("latin-1")
    return re.sub(r"[\r\n\0]+", " ", value).strip(" \t")


def _word(value: str) -> str:
    return f"=?utf-8?b?{b64encode(value.encode()).decode()}?="


def attributes_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Returns the object attributes in a response's headers, under their own names."""
    found = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in _HEADERS:
            found[_HEADERS[lower]] = value
        elif lower.startswith(_META):
            found[lower[len(_META) :]] = value
    return found


def last_modified(headers: Mapping[str, str]) -> datetime | None:
    """Returns the Last-Modified date, or None if it is missing or invalid."""
    try:
        return parsedate_to_datetime(headers["Last-Modified"])
    except (KeyError, ValueError, TypeError):
        return None


class StaticCredentials:
    """Keys that do not change; None for unsigned requests."""

    def __init__(self, keys: Keys | None) -> None:
        self._keys = keys

    async def current(self) -> Keys | None:
        return self._keys


class Boto3Credentials:
    """Keys of a boto3 session. Expiring keys are renewed in a thread, since that may call a metadata service."""

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
            except Exception as exc:  # noqa: BLE001 - errors of botocore and of the services it calls
                raise credentials_error(exc) from None
            if frozen != self._frozen:
                self._frozen = frozen
                self._keys = Keys(frozen.access_key, frozen.secret_key, frozen.token)
        return self._keys
