"""HTTP client for origins, which checks the address of each redirect before it follows it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from multidict import CIMultiDict
from yarl import URL

from ferry.core import (
    Batches,
    Body,
    Budget,
    Charge,
    ErrorClass,
    Fatal,
    FerryError,
    ObjectError,
    disk_error,
    no_delay,
    to_disk,
)
from ferry.http.address_filter import AddressFilter, FilteringResolver, Resolver
from ferry.http.connection import Response
from ferry.http.errors import closed_before_response, from_origin, from_status
from ferry.http.header_hosts import OPEN_HEADERS, Recipients
from ferry.http.headers import media_type, printable_header
from ferry.http.pool import Connections
from ferry.http.read_body import Reader, stream_body
from ferry.http.request_headers import conditions, header_block, request_headers
from ferry.http.retry_after import parse_retry_after
from ferry.http.urls import Target, Targets

MAX_HOPS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NOT_MODIFIED = 304
_WHOLE = frozenset({200, 203})  # 203: a proxy changed something, but the object is complete
_DRAIN_BYTES = 64 * 1024  # of an unused body, read so that its connection can be used again


_NOT_LISTED = "; Ferry sent no secret headers, because `source.headers_for` does not list {}://{}:{}"


USER_AGENT = "ferry/0.1 (moves image libraries; the job's owner can name a contact with source.user_agent)"


@dataclass(frozen=True, slots=True)
class OriginOptions:
    """Settings for requests to origins.

    ``headers`` are the job's, with their secrets resolved. All of them go only to the site (scheme, host and port) of
    the row's URL, if ``recipients`` include it. Other sites receive only Accept, Accept-Language, Referer and
    User-Agent. After a redirect to another site, no later redirect restores the other headers.

    ``total_s`` limits the time for an object with its redirects. ``connections`` limits the connections of one process.
    """

    headers: Mapping[str, str]
    recipients: Sequence[str]
    connect_s: float
    read_s: float
    total_s: float
    max_bytes: int
    user_agent: str = USER_AGENT
    connections: int = 512


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete object with the metadata of its response. The caller discards ``body`` in the end."""

    body: Body
    status: int
    content_type: str | None
    etag: str | None
    last_modified: str | None
    requests: int
    length_known: bool  # by Content-Length or by chunks; else the body ended with its connection, wherever that was


@dataclass(frozen=True, slots=True)
class NotModified:
    """The metadata of a response without the object (304 or HEAD). ``size`` is None if unknown, as after a 304."""

    size: int | None
    etag: str | None
    last_modified: str | None
    requests: int


@dataclass(frozen=True, slots=True)
class _RequestSpec:
    """The parts of a request that do not depend on its URL."""

    method: bytes = b"GET"
    conditions: bytes = b""  # header lines; with them, 304 is a valid response


@dataclass(slots=True)
class _FetchState:
    """The start, the number of requests and the host of one fetch, redirects included."""

    started: float
    requests: int = 0
    host: str = ""  # `host:port` of the row's URL, not of a redirect
    answered: bool = False  # whether a response has come, which may be a redirect


class Origin:
    """Fetches objects over HTTP. Create it inside the running event loop, one for each process; close it at the end.

    ``now`` is the clock for dates in Retry-After. Raises UserError for headers that cannot be sent.
    """

    def __init__(
        self,
        options: OriginOptions,
        address_filter: AddressFilter,
        spool_dir: Path,
        *,
        budget: Budget | None = None,
        pool: Executor | None = None,
        context: ssl.SSLContext | None = None,
        resolver: Resolver | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._targets = Targets(address_filter)
        self._pool = pool
        self._reader = Reader(spool_dir, budget or Budget(), pool, options.max_bytes)
        self._total_s = options.total_s
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._headers = request_headers(options.headers, options.user_agent)
        self._recipients = Recipients(options.recipients)
        self._block = header_block(self._headers)
        self._open_headers = CIMultiDict(
            (name, value) for name, value in self._headers.items() if name.lower() in OPEN_HEADERS | {"accept-encoding"}
        )
        self._open_block = header_block(self._open_headers)
        self._withholds = len(self._open_headers) < len(self._headers)
        self._resolver = FilteringResolver(address_filter, resolver, options.connect_s)
        self._connections = Connections(
            self._resolver,
            limit=options.connections,
            connect_s=options.connect_s,
            read_s=options.read_s,
            context=context,
        )

    async def get(self, url: str, charge: Charge = no_delay) -> Fetched:
        """Return the object at ``url``. The bytes of the URL are sent unchanged.

        ``charge`` takes the number of bytes read and returns the seconds to wait. Only 200 and 203 are objects.
        Content-Encoding is decoded. Raises ObjectError with the number of HTTP requests, or Fatal for a failing spool
        disk; nothing else but CancelledError.
        """
        fetched = await self._get(url, charge, _RequestSpec())
        assert isinstance(fetched, Fetched)
        return fetched

    async def get_if(
        self, url: str, etag: str | None, last_modified: str | None, charge: Charge = no_delay
    ) -> Fetched | NotModified:
        """Return the object as :meth:`get` does, or the metadata of a 304 if these validators still match it.

        Malformed validators are not sent (RFC 9110 section 13).
        """
        return await self._get(url, charge, _RequestSpec(conditions=conditions(etag, last_modified)))

    async def head(self, url: str) -> NotModified:
        """Return the metadata of the object. Raises as :meth:`get` does, also if the server does not support HEAD."""
        state = _FetchState(self._loop.time())
        try:
            response = await self._open(url, state, _RequestSpec(b"HEAD"))
            headers = response.headers
            length = "" if "Content-Encoding" in headers else headers.get("Content-Length", "")
            await _drain(response)
        except Exception as exc:
            raise _mapped(exc, state) from None
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
        return NotModified(
            size, printable_header(headers.get("ETag")), printable_header(headers.get("Last-Modified")), state.requests
        )

    async def sends_ranges(self, url: str) -> bool:
        """Return whether the server sends a part of the object (RFC 9110 section 14). Raises as :meth:`get` does."""
        state = _FetchState(self._loop.time())
        try:
            response = await self._open(url, state, _RequestSpec(conditions=b"Range: bytes=0-0\r\n"))
        except Exception as exc:
            error = _mapped(exc, state)
            if isinstance(error, ObjectError) and error.status_code == 206:
                return True
            raise error from None
        response.close()
        return False

    async def _get(self, url: str, charge: Charge, spec: _RequestSpec) -> Fetched | NotModified:
        state = _FetchState(self._loop.time())
        try:
            response = await self._open(url, state, spec)
            headers = response.headers
            if response.status == _NOT_MODIFIED:
                await _drain(response)
                return NotModified(
                    None,
                    printable_header(headers.get("ETag")),
                    printable_header(headers.get("Last-Modified")),
                    state.requests,
                )
            try:
                body = await self._reader.body(response, charge, state.host)
            except BaseException:
                response.close()
                raise
        except Exception as exc:
            raise _mapped(exc, state) from None
        return Fetched(
            body,
            response.status,
            media_type(headers.get("Content-Type")),
            printable_header(headers.get("ETag")),
            printable_header(headers.get("Last-Modified")),
            state.requests,
            response.length is not None or response.chunked,
        )

    async def download(self, url: str, path: Path, max_bytes: int) -> str:
        """Write the content at ``url`` to ``path``; return its Content-Type, or "" without one.

        For manifests, with the same address filter, redirects, decoding and errors as :meth:`get`. A file in a
        compressed format stays compressed. ``path`` is removed after any error.
        """
        state = _FetchState(self._loop.time())
        try:
            response = await self._open(url, state, _RequestSpec())
            try:
                await self._save(response, path, max_bytes)  # without a memory budget: no transfer is running yet
            except BaseException:
                response.close()
                raise
        except Exception as exc:
            raise _mapped(exc, state) from None
        return media_type(response.headers.get("Content-Type")) or ""

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()

    @property
    def connections_opened(self) -> int:
        """The number of connections opened so far."""
        return self._connections.connections_opened

    async def _open(self, url: str, state: _FetchState, spec: _RequestSpec) -> Response:
        """Follow redirects and return the final response, with its body unread."""
        target = self._targets.read(url)
        site = target.site
        state.host = f"{site[1]}:{site[2]}"
        known = self._recipients.include(*site)
        block = self._block if known else self._open_block
        if target.authorization is not None:
            own = (self._headers if known else self._open_headers).copy()
            own["Authorization"] = target.authorization
            block = header_block(own)
        deadline = state.started + self._total_s
        seen: set[URL] = set()
        while True:
            response = await self._send(target, spec, block, deadline, state)
            status = response.status
            if status in _WHOLE or (status == _NOT_MODIFIED and spec.conditions):
                return response
            if status not in _REDIRECTS:
                error = await self._status_error(response)
                if not known and target.site == site and self._withholds and error.error_class is ErrorClass.FORBIDDEN:
                    error.message += _NOT_LISTED.format(*site)
                raise error
            location = response.headers.get("Location")
            await _drain(response)
            if not location:
                raise ObjectError(
                    ErrorClass.CLIENT_ERROR,
                    f"the origin redirects without a Location header (HTTP {status})",
                    status_code=status,
                )
            seen.add(target.url)
            target = self._targets.redirected(target.url, location, status)
            if target.site != site:
                block = self._open_block
            if target.url in seen or len(seen) > MAX_HOPS:
                raise ObjectError(
                    ErrorClass.REDIRECT_LOOP,
                    f"the origin redirects in a loop, or more than {MAX_HOPS} times",
                    status_code=status,
                )
            if self._loop.time() >= deadline:
                raise TimeoutError

    async def _send(
        self, target: Target, spec: _RequestSpec, block: bytes, deadline: float, state: _FetchState
    ) -> Response:
        """Send one request, and send it again at once if its connection ended before the response."""
        url = target.url
        head = b"%s %s HTTP/1.1\r\nHost: %s\r\n%s%s" % (
            spec.method, url.raw_path_qs.encode(), _authority(url).encode(), spec.conditions, block,
        )  # fmt: skip
        is_head = spec.method == b"HEAD"
        state.requests += 1
        request = partial(self._connections.request, target.site, head, deadline=deadline, is_head=is_head)
        try:
            response = await request()
        except Exception as exc:
            if not closed_before_response(exc):
                raise
            state.requests += 1
            response = await request(fresh=True)
        state.answered = True
        return response

    async def _status_error(self, response: Response) -> ObjectError:
        """Return the error for a response that is neither an object nor a redirect."""
        status = response.status
        if status < 300:
            await _drain(response)
            return ObjectError(
                ErrorClass.CLIENT_ERROR,
                f"the origin did not send the complete object (HTTP {status})",
                status_code=status,
            )
        retry_after = response.headers.get("Retry-After")
        await _drain(response)
        retry_after_s = parse_retry_after(retry_after, self._now()) if retry_after else None
        return from_status(status, retry_after_s=retry_after_s)

    async def _save(self, response: Response, path: Path, max_bytes: int) -> None:
        what = f"the downloaded file {path}"
        try:
            file = path.open("wb")
        except OSError as exc:
            raise disk_error(exc, what) from exc
        try:
            await stream_body(response, Batches(to_disk(file.write, what), self._pool), max_bytes, no_delay)
            try:
                file.close()
            except OSError as exc:
                raise disk_error(exc, what) from exc
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            path.unlink(missing_ok=True)
            raise


def _authority(url: URL) -> str:
    """Return the value of Host, without a trailing dot of the name, which many servers do not recognise."""
    return url.raw_authority.rstrip(".").replace(".:", ":")


def _mapped(exc: Exception, state: _FetchState) -> ObjectError | Fatal:
    """Return the error for an exception, with the number of requests."""
    error = from_origin(exc)
    if isinstance(error, ObjectError):
        error.requests = state.requests
        error.no_response = not state.answered
    return error


async def _drain(response: Response) -> None:
    """Finish an unused response: read a short rest, so that the connection can be used again, else close it."""
    left = _DRAIN_BYTES
    with contextlib.suppress(FerryError, OSError):
        while left > 0 and (piece := await response.read_chunk()):
            left -= len(piece)
    response.close()
