"""The HTTP client of origins: behind the address filter, redirects followed by hand."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
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
    UserError,
    disk_error,
    for_nothing,
    to_disk,
)
from ferry.http.address_filter import AddressFilter, FilteringResolver, Resolver
from ferry.http.connection import Response, media_type, printable_header
from ferry.http.errors import died_unanswered, from_origin, from_status
from ferry.http.header_hosts import OPEN_HEADERS, Recipients
from ferry.http.pool import Connections
from ferry.http.read_body import Reader, pour
from ferry.http.retry_after import parse_retry_after
from ferry.http.urls import Target, Targets

MAX_HOPS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NOT_MODIFIED = 304
_ETAG = re.compile(r'(?:W/)?"[!#-~]*"')
_DATE = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
_WHOLE = frozenset({200, 203})  # 203: a proxy on the way changed something, and the object is whole
_DRAIN_BYTES = 64 * 1024  # of an answer nobody wants, read so that its connection can be used again


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
_NOT_NAMED = "; it was asked without the job's secrets: `source.headers_for` does not name {}://{}:{}"


USER_AGENT = "ferry/0.1 (moves image libraries; the job's owner can name a contact with source.user_agent)"


@dataclass(frozen=True, slots=True)
class OriginOptions:
    """How origins are asked.

    ``headers`` are the job's, with their secrets resolved. They go to the site (scheme, host and port) that a row
    names, where that is one of ``recipients``; to other sites, and after a redirect to another one, only Accept,
    Accept-Language, Referer and User-Agent go, and no later redirect brings the others back. ``total_s`` covers an
    object with its redirects. ``connections`` limits those of one process.
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
    """A whole object and what its origin said of it. Whoever takes it discards ``body`` in the end."""

    body: Body
    status: int
    content_type: str | None
    etag: str | None
    last_modified: str | None
    requests: int
    length_known: bool  # by Content-Length or by chunks; else the body ended with its connection, wherever that was


@dataclass(frozen=True, slots=True)
class NotModified:
    """What an origin said of an object without sending it. ``size``: None after a 304, and where it did not say."""

    size: int | None
    etag: str | None
    last_modified: str | None
    requests: int


@dataclass(frozen=True, slots=True)
class _Question:
    """A request but for its address."""

    method: bytes = b"GET"
    conditions: bytes = b""  # header lines; 304 is an answer to them


@dataclass(slots=True)
class _Trip:
    """What one object has cost so far."""

    started: float
    requests: int = 0
    host: str = ""  # of its address, whatever that redirects to


class Origin:
    """Fetches objects over HTTP. Make it inside the running loop, one for a process; close it at the end.

    ``now`` is asked for dates in Retry-After. Raises UserError for headers that cannot be sent.
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
        self._headers = _request_headers(options.headers, options.user_agent)
        self._recipients = Recipients(options.recipients)
        self._block = _block(self._headers)
        self._open_headers = CIMultiDict(
            (name, value) for name, value in self._headers.items() if name.lower() in OPEN_HEADERS | {"accept-encoding"}
        )
        self._open_block = _block(self._open_headers)
        self._withholds = len(self._open_headers) < len(self._headers)
        self._resolver = FilteringResolver(address_filter, resolver, options.connect_s)
        self._connections = Connections(
            self._resolver,
            limit=options.connections,
            connect_s=options.connect_s,
            read_s=options.read_s,
            context=context,
        )

    async def get(self, url: str, charge: Charge = for_nothing) -> Fetched:
        """The object at ``url``, which is sent byte for byte. ``charge`` says how long to wait after so many bytes.

        Only 200 and 203 are objects. Content-Encoding is undone. Raises ObjectError, with the number of
        HTTP requests made, or Fatal for a failing spool disk; nothing else but CancelledError.
        """
        fetched = await self._get(url, charge, _Question())
        assert isinstance(fetched, Fetched)
        return fetched

    async def get_if(
        self, url: str, etag: str | None, last_modified: str | None, charge: Charge = for_nothing
    ) -> Fetched | NotModified:
        """The object, as :meth:`get` has it, if it is another one than these validators are of (RFC 9110 section 13);
        else what the 304 said. What cannot be a validator is not sent."""
        return await self._get(url, charge, _Question(conditions=_conditions(etag, last_modified)))

    async def head(self, url: str) -> NotModified:
        """What is said of the object. Raises as :meth:`get` does, also for servers that know no HEAD."""
        trip = _Trip(self._loop.time())
        try:
            response = await self._open(url, trip, _Question(b"HEAD"))
            headers = response.headers
            length = "" if "Content-Encoding" in headers else headers.get("Content-Length", "")
            await _drain(response)
        except Exception as exc:
            raise _mapped(exc, trip) from None
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
        return NotModified(
            size, printable_header(headers.get("ETag")), printable_header(headers.get("Last-Modified")), trip.requests
        )

    async def _get(self, url: str, charge: Charge, question: _Question) -> Fetched | NotModified:
        trip = _Trip(self._loop.time())
        try:
            response = await self._open(url, trip, question)
            headers = response.headers
            if response.status == _NOT_MODIFIED:
                await _drain(response)
                return NotModified(
                    None,
                    printable_header(headers.get("ETag")),
                    printable_header(headers.get("Last-Modified")),
                    trip.requests,
                )
            try:
                body = await self._reader.body(response, charge, trip.host)
            except BaseException:
                response.close()
                raise
        except Exception as exc:
            raise _mapped(exc, trip) from None
        return Fetched(
            body,
            response.status,
            media_type(headers.get("Content-Type")),
            printable_header(headers.get("ETag")),
            printable_header(headers.get("Last-Modified")),
            trip.requests,
            response.length is not None or response.chunked,
        )

    async def download(self, url: str, path: Path, max_bytes: int) -> str:
        """Writes what is at ``url`` to ``path`` and returns its Content-Type ("" if it has none).

        For manifests: same filter, redirects, encodings and errors as :meth:`get`. ``path`` is removed
        on any error. A file that is itself compressed stays so.
        """
        trip = _Trip(self._loop.time())
        try:
            response = await self._open(url, trip, _Question())
            try:
                await self._save(response, path, max_bytes)  # no budget: nothing else is on yet
            except BaseException:
                response.close()
                raise
        except Exception as exc:
            raise _mapped(exc, trip) from None
        return media_type(response.headers.get("Content-Type")) or ""

    async def close(self) -> None:
        await self._connections.close()

    @property
    def connections_opened(self) -> int:
        """Connections opened so far."""
        return self._connections.connections_opened

    async def _open(self, url: str, trip: _Trip, question: _Question) -> Response:
        """The answer with the object, its body not read yet, at the end of the redirects."""
        target = self._targets.read(url)
        site = target.site
        trip.host = f"{site[1]}:{site[2]}"
        known = self._recipients.include(*site)
        block = self._block if known else self._open_block
        if target.authorization is not None:
            own = (self._headers if known else self._open_headers).copy()
            own["Authorization"] = target.authorization
            block = _block(own)
        deadline = trip.started + self._total_s
        seen: set[URL] = set()
        while True:
            response = await self._send(target, question, block, deadline, trip)
            status = response.status
            if status in _WHOLE or (status == _NOT_MODIFIED and question.conditions):
                return response
            if status not in _REDIRECTS:
                error = await self._refused(response)
                if not known and target.site == site and self._withholds and error.error_class is ErrorClass.FORBIDDEN:
                    error.message += _NOT_NAMED.format(*site)
                raise error
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
                block = self._open_block
            if target.url in seen or len(seen) > MAX_HOPS:
                raise ObjectError(ErrorClass.REDIRECT_LOOP, "the redirects do not end", status_code=status)
            if self._loop.time() >= deadline:
                raise TimeoutError

    async def _send(self, target: Target, question: _Question, block: bytes, deadline: float, trip: _Trip) -> Response:
        """One request; a second at once when its connection turns out to be dead."""
        url = target.url
        head = b"%s %s HTTP/1.1\r\nHost: %s\r\n%s%s" % (
            question.method, url.raw_path_qs.encode(), _authority(url).encode(), question.conditions, block,
        )  # fmt: skip
        only = question.method == b"HEAD"
        trip.requests += 1
        try:
            return await self._connections.ask(target.site, head, deadline=deadline, heads_only=only)
        except Exception as exc:
            if not died_unanswered(exc):
                raise
        trip.requests += 1
        return await self._connections.ask(target.site, head, deadline=deadline, heads_only=only, fresh=True)

    async def _refused(self, response: Response) -> ObjectError:
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

    async def _save(self, response: Response, path: Path, max_bytes: int) -> None:
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


def _conditions(etag: str | None, last_modified: str | None) -> bytes:
    """Header lines; none for what an origin once said and what is no validator (RFC 9110 sections 5.6.7, 8.8.3)."""
    lines = b""
    if etag is not None and _ETAG.fullmatch(etag):
        lines += b"If-None-Match: %s\r\n" % etag.encode()
    if last_modified is not None and _DATE.fullmatch(last_modified):
        lines += b"If-Modified-Since: %s\r\n" % last_modified.encode()
    return lines


def _authority(url: URL) -> str:
    """What Host says: without the dot that makes a name absolute, as servers know themselves."""
    return url.raw_authority.rstrip(".").replace(".:", ":")


def _block(headers: CIMultiDict[str]) -> bytes:
    """Headers as they are sent, with the empty line behind them."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{lines}\r\n".encode("utf-8", "surrogateescape")


def _mapped(exc: Exception, trip: _Trip) -> ObjectError | Fatal:
    error = from_origin(exc)
    if isinstance(error, ObjectError):
        error.requests = trip.requests
    return error


async def _drain(response: Response) -> None:
    """Be done with an answer: a short rest is read, so that the connection is used again, else it is closed."""
    left = _DRAIN_BYTES
    with contextlib.suppress(FerryError, OSError):
        while left > 0 and (piece := await response.piece()):
            left -= len(piece)
    response.close()
