"""The one HTTP client of the data path: aiohttp behind the address filter, redirects followed by hand."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver
from multidict import CIMultiDict
from yarl import URL

from tasks.engine.address import AddressFilter, FilteringResolver
from tasks.engine.body import Batches, Body
from tasks.engine.budget import Budget
from tasks.engine.errors import Fatal, ObjectError, UserError, died_unanswered, disk_error, from_origin, from_status
from tasks.engine.incoming import Charge, Reader, for_nothing, pour, to_disk
from tasks.engine.job import Timeouts
from tasks.engine.job_rules import OPEN_HEADERS
from tasks.engine.objects import ErrorClass
from tasks.engine.retry import parse_retry_after
from tasks.engine.targets import Targets

MAX_HOPS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WHOLE = frozenset({200, 203})  # 203: a proxy on the way changed something, and the object is whole
_DRAIN_BYTES = 64 * 1024  # of an answer nobody wants, read so that its connection can be used again
_HEADER_BYTES = 16 * 1024  # one line of an answer's header, or the value of one field
_DNS_CACHE_S = 60


# They would change what a GET means, or how the connection is used.
_NOT_FOR_JOBS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "if-range",
        "keep-alive",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole object and what its origin said of it. Whoever takes it discards ``body`` in the end."""

    body: Body
    status: int
    content_type: str | None
    etag: str | None
    last_modified: str | None
    requests: int


@dataclass(slots=True)
class _Trip:
    """What one object has cost so far."""

    started: float
    requests: int = 0


class Origin:
    """Fetches objects over HTTP. Make it inside the running loop, one for a process; close it at the end.

    ``headers`` are the job's, with their secrets resolved. They go to the site (scheme, host and port)
    that a row names; after a redirect to another site only Accept, Accept-Language, Referer and
    User-Agent still go, and no later redirect brings the others back. ``timeouts.total_s`` covers an
    object with its redirects. ``now`` is asked for dates in Retry-After. Raises UserError for headers
    that cannot be sent.
    """

    def __init__(
        self,
        *,
        headers: Mapping[str, str],
        user_agent: str,
        address_filter: AddressFilter,
        timeouts: Timeouts,
        max_bytes: int,
        spool_dir: Path,
        budget: Budget | None = None,
        pool: Executor | None = None,
        connections: int = 512,
        resolver: AbstractResolver | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._targets = Targets(address_filter)
        self._pool = pool
        self._reader = Reader(spool_dir, budget, pool, max_bytes)
        self._total_s = timeouts.total_s
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._headers = _request_headers(headers, user_agent)
        self._open_headers = CIMultiDict(
            (name, value) for name, value in self._headers.items() if name.lower() in OPEN_HEADERS | {"accept-encoding"}
        )
        self._resolver = FilteringResolver(address_filter, resolver, timeouts.connect_s)
        self._timeout = aiohttp.ClientTimeout(
            total=timeouts.total_s, sock_connect=timeouts.connect_s, sock_read=timeouts.read_s
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections,
                resolver=self._resolver,
                socket_factory=self._resolver.open_socket,
                ttl_dns_cache=_DNS_CACHE_S,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=False,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )
        self._session._retry_connection = False  # aiohttp's own retry cannot be counted; _send has it

    async def get(self, url: str, charge: Charge = for_nothing) -> Fetched:
        """The object at ``url``, which is sent byte for byte. ``charge`` says how long to wait after so many bytes.

        Only 200 and 203 are objects. Content-Encoding is undone. Raises ObjectError, with the number of
        HTTP requests made, or Fatal for a failing spool disk; nothing else but CancelledError.
        """
        trip = _Trip(self._loop.time())
        try:
            response = await self._open(url, trip)
            try:
                body = await self._reader.body(response, charge)
            except BaseException:
                response.close()
                raise
        except Exception as exc:
            raise _mapped(exc, trip) from None  # aiohttp's texts quote addresses with their signatures
        headers = response.headers
        return Fetched(
            body,
            response.status,
            headers.get("Content-Type"),
            headers.get("ETag"),
            headers.get("Last-Modified"),
            trip.requests,
        )

    async def download(self, url: str, path: Path, max_bytes: int) -> str:
        """Writes what is at ``url`` to ``path`` and returns its Content-Type ("" if it has none).

        For manifests: same filter, redirects, encodings and errors as :meth:`get`. ``path`` is removed
        on any error. A file that is itself compressed stays so.
        """
        trip = _Trip(self._loop.time())
        try:
            response = await self._open(url, trip)
            try:
                await self._save(response, path, max_bytes)  # no budget: nothing else is on yet
            except BaseException:
                response.close()
                raise
        except Exception as exc:
            raise _mapped(exc, trip) from None
        return response.headers.get("Content-Type", "")

    async def close(self) -> None:
        await self._session.close()
        await self._resolver.close()

    async def _open(self, url: str, trip: _Trip) -> aiohttp.ClientResponse:
        """The answer with the object, its body not read yet, at the end of the redirects."""
        target = self._targets.read(url)
        site = target.site
        headers = self._headers
        if target.authorization is not None:
            headers = headers.copy()
            headers["Authorization"] = target.authorization
        timeout = self._timeout
        seen: set[URL] = set()
        while True:
            response = await self._send(target.url, headers, timeout, trip)
            status = response.status
            if status in _WHOLE:
                return response
            if status not in _REDIRECTS:
                raise await self._refused(response)
            location = response.headers.get("Location")
            await _drain(response)
            if not location:
                raise ObjectError(
                    ErrorClass.CLIENT_ERROR,
                    f"the origin redirects without saying where to (HTTP {status})",
                    status_code=status,
                )
            seen.add(target.url)
            target = self._targets.redirected(target.url, location, status)
            if target.site != site:
                headers = self._open_headers
            if target.url in seen or len(seen) > MAX_HOPS:
                raise ObjectError(ErrorClass.REDIRECT_LOOP, "the redirects do not end", status_code=status)
            left_s = self._total_s - (self._loop.time() - trip.started)
            if left_s <= 0:
                raise TimeoutError
            timeout = aiohttp.ClientTimeout(
                total=left_s, sock_connect=self._timeout.sock_connect, sock_read=self._timeout.sock_read
            )

    async def _send(
        self, url: URL, headers: CIMultiDict[str], timeout: aiohttp.ClientTimeout, trip: _Trip
    ) -> aiohttp.ClientResponse:
        """One request; a second at once when its connection turns out to be dead."""
        trip.requests += 1
        try:
            return await self._session.get(url, headers=headers, allow_redirects=False, timeout=timeout)
        except Exception as exc:
            if not died_unanswered(exc):
                raise
        trip.requests += 1
        return await self._session.get(url, headers=headers, allow_redirects=False, timeout=timeout)

    async def _refused(self, response: aiohttp.ClientResponse) -> ObjectError:
        """The error for an answer that is no object and no redirect."""
        status = response.status
        if status < 300:
            await _drain(response)
            return ObjectError(
                ErrorClass.CLIENT_ERROR,
                f"the origin's answer is not the whole object (HTTP {status})",
                status_code=status,
            )
        retry_after = response.headers.get("Retry-After")
        await _drain(response)
        retry_after_s = parse_retry_after(retry_after, self._now()) if retry_after else None
        return from_status(status, retry_after_s=retry_after_s)

    async def _save(self, response: aiohttp.ClientResponse, path: Path, max_bytes: int) -> None:
        what = f"the downloaded file {path}"
        try:
            file = path.open("wb")
        except OSError as exc:
            raise disk_error(exc, what) from exc
        try:
            await pour(response, Batches(to_disk(file.write, what), self._pool), max_bytes, for_nothing)
            try:
                file.close()
            except OSError as exc:
                raise disk_error(exc, what) from exc
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            path.unlink(missing_ok=True)
            raise


def _request_headers(headers: Mapping[str, str], user_agent: str) -> CIMultiDict[str]:
    """What a request carries. The job's own User-Agent header wins; Accept-Encoding is always ours."""
    made: CIMultiDict[str] = CIMultiDict({"User-Agent": user_agent, "Accept": "*/*"})
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise UserError(
                f"source.headers: `{name}` cannot be sent: its name or value holds characters that HTTP does not allow"
            )
        if name.lower() in _NOT_FOR_JOBS:
            raise UserError(f"source.headers: `{name}` cannot be set: it changes what a request means. Leave it out")
        made[name] = value
    made["Accept-Encoding"] = "identity"
    return made


def _mapped(exc: Exception, trip: _Trip) -> ObjectError | Fatal:
    error = from_origin(exc)
    if isinstance(error, ObjectError):
        error.requests = trip.requests
    return error


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Be done with an answer: a short rest is read, so that the connection is used again, else it is closed."""
    left = _DRAIN_BYTES
    with contextlib.suppress(aiohttp.ClientError, OSError):
        while left > 0 and not response.content.at_eof():
            left -= len(await response.content.readany())
    if response.content.at_eof():
        response.release()
    else:
        response.close()
