"""HTTP client for origins, which checks the address of each redirect before it follows it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from multidict import CIMultiDict
from yarl import URL

from ferry.core import (
    Again,
    Batches,
    Budget,
    Charge,
    ErrorClass,
    Fatal,
    FerryError,
    ObjectError,
    no_delay,
    to_disk,
)
from ferry.http.address_filter import AddressFilter, FilteringResolver, Resolver
from ferry.http.auth import Credential, Header
from ferry.http.connection import Response
from ferry.http.dial import Site
from ferry.http.errors import closed_before_response, from_origin, from_status
from ferry.http.exchange import Downloaded, Fetched, NotModified, OriginOptions, Rest, Writable
from ferry.http.header_hosts import OPEN_HEADERS, Recipients
from ferry.http.headers import media_type, printable_header
from ferry.http.pool import Connections
from ferry.http.read_body import Reader, stream_body
from ferry.http.request_headers import conditions, header_block, request_headers, rest_conditions, strong_etag
from ferry.http.retry_after import parse_retry_after
from ferry.http.urls import Targets

MAX_HOPS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PARTIAL, _NOT_MODIFIED, _UNAUTHORIZED = 206, 304, 401
_WHOLE = frozenset({200, 203})  # 203: a proxy changed something, but the object is complete
_TOKEN_BYTES = 64 * 1024  # of a token server's answer
_ATTRIBUTES = ("Cache-Control", "Content-Disposition")  # that a job may keep
_DRAIN_BYTES = 64 * 1024  # of an unused body, read so that its connection can be used again


_NO_HEADERS = "; Ferry sent no secret headers, because `source.headers_for` does not list {}://{}:{}"
_NO_CREDENTIAL = "; Ferry sent no credential, because `source.auth_for` does not list {}://{}:{}"


@dataclass(frozen=True, slots=True)
class _RequestSpec:
    """The parts of a request that do not depend on its URL."""

    method: bytes = b"GET"
    conditions: bytes = b""  # header lines
    headers: CIMultiDict[str] | None = None  # in place of the job's, for the URL's own site
    valid: frozenset[int] = _WHOLE
    rest: Rest | None = None  # what a response must be a part of
    may_stream: bool = False  # a body that the spool cannot hold comes as a StreamedBody


@dataclass(slots=True)
class _FetchState:
    """The start, the number of requests and the host of one fetch, redirects included."""

    started: float
    requests: int = 0
    host: str = ""  # `host:port` of the row's URL, not of a redirect
    url: str = ""  # of the last response
    redirects: int = 0  # before it
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
        self._open_headers = _open_only(self._headers)
        self._open_block = header_block(self._open_headers)
        self._withholds = len(self._open_headers) < len(self._headers)
        self._resolver = FilteringResolver(address_filter, resolver, options.connect_s)
        self._connections = Connections(
            self._resolver,
            limit=options.connections,
            connect_s=options.connect_s,
            read_s=options.read_s,
            network=options.network,
            context=context,
        )
        self._credential = Credential(options.auth, self._post, self._loop.time) if options.auth is not None else None

    async def get(self, url: str, charge: Charge = no_delay, *, may_stream: bool = False) -> Fetched:
        """Return the object at ``url``, or with ``may_stream`` its start if the spool cannot hold it (StreamedBody).

        The bytes of the URL are sent unchanged.

        ``charge`` takes the number of bytes read and returns the seconds to wait. Only 200 and 203 are objects.
        Content-Encoding is decoded. Raises ObjectError with the number of HTTP requests, or Fatal for a failing spool
        disk; nothing else but CancelledError.
        """
        fetched = await self._get(url, charge, _RequestSpec(may_stream=may_stream))
        assert isinstance(fetched, Fetched)
        return fetched

    async def get_if(
        self,
        url: str,
        etag: str | None,
        last_modified: str | None,
        charge: Charge = no_delay,
        *,
        may_stream: bool = False,
    ) -> Fetched | NotModified:
        """Return the object as :meth:`get` does, or the metadata of a 304 if these validators still match it.

        Malformed validators are not sent (RFC 9110 section 13).
        """
        valid = _WHOLE | {_NOT_MODIFIED}
        spec = _RequestSpec(conditions=conditions(etag, last_modified), valid=valid, may_stream=may_stream)
        return await self._get(url, charge, spec)

    async def get_rest(self, url: str, rest: Rest, charge: Charge) -> Fetched:
        """Return the last bytes of an object that has not changed. Raises as :meth:`get` does, also if it has."""
        lines = rest_conditions(rest.start, rest.version)
        fetched = await self._get(url, charge, _RequestSpec(conditions=lines, valid=frozenset({_PARTIAL}), rest=rest))
        assert isinstance(fetched, Fetched)
        return fetched

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
            spec = _RequestSpec(conditions=b"Range: bytes=0-0\r\n", valid=_WHOLE | {_PARTIAL})
            response = await self._open(url, state, spec)
        except Exception as exc:
            raise _mapped(exc, state) from None
        response.close()
        return response.status == _PARTIAL

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
                if spec.rest is not None:
                    _check_rest(response, spec.rest)
                part_bytes = spec.rest.part_bytes if spec.rest else 0
                body = await self._reader.body(
                    response, charge, state.host, part_bytes=part_bytes,
                    streamed=partial(_mapped, state=state) if spec.may_stream else None,
                )  # fmt: skip
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
            {name: value for name in _ATTRIBUTES if (value := printable_header(headers.get(name)))},
            strong_etag(headers),
        )

    async def download(
        self, url: str, headers: Mapping[str, str], into: Writable, max_bytes: int, charge: Charge = no_delay
    ) -> Downloaded:
        """Write the content at ``url`` to a file, or to what hashes it.

        For lists and public addresses, with the same address filter, redirects, credential, decoding and errors as
        :meth:`get`. ``headers`` take the place of the job's, which are for the images' hosts. A file in a compressed
        format stays compressed. After an error, ``into`` may hold a part of the content.
        """
        state = _FetchState(self._loop.time())
        sent = CIMultiDict({**headers, "Accept-Encoding": "identity"})
        try:
            response = await self._open(url, state, _RequestSpec(headers=sent))
            try:  # without a memory budget: no transfer is running yet
                write = to_disk(into.write, "the file of the downloaded list")
                await stream_body(response, Batches(write, self._pool), max_bytes, charge)
            except BaseException:
                response.close()
                raise
        except Exception as exc:
            raise _mapped(exc, state) from None
        return Downloaded(state.url, response.status, response.headers, state.redirects)

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
        block, open_block = self._block if known else self._open_block, self._open_block
        if spec.headers is not None:
            block, open_block = header_block(spec.headers), header_block(_open_only(spec.headers))
        credential = self._credential if self._credential is not None and self._credential.is_for(site) else None
        if target.authorization is not None:
            own = (spec.headers or (self._headers if known else self._open_headers)).copy()
            own["Authorization"] = target.authorization
            block, credential = header_block(own), None
        renewed = False
        deadline = state.started + self._total_s
        seen: set[URL] = set()
        while True:
            header = await credential.header() if credential is not None else None
            own_block = block if header is None else f"{header[0]}: {header[1]}\r\n".encode() + block
            address = target.url if credential is None else credential.in_query(target.url)
            response = await self._send(address, target.site, spec, own_block, deadline, state)
            status = response.status
            if status in spec.valid:
                if credential is not None:
                    credential.accepted(header)
                state.url, state.redirects = str(target.url), len(seen)
                return response
            if status == _UNAUTHORIZED and credential is not None and not renewed and credential.refused(header):
                renewed = True
                await _drain(response)
                continue
            if status not in _REDIRECTS:
                error = await self._status_error(response)
                if error.again is not Again.NEVER and (proxy := self._connections.forwarder_of(target.site)):
                    error.message += f"; the answer came through the proxy {proxy}, and may be its own"
                if target.site == site and error.error_class is ErrorClass.FORBIDDEN:
                    error.message += self._withheld(site)
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
                block, credential = open_block, None
            if target.url in seen or len(seen) > MAX_HOPS:
                raise ObjectError(
                    ErrorClass.REDIRECT_LOOP,
                    f"the origin redirects in a loop, or more than {MAX_HOPS} times",
                    status_code=status,
                )
            if self._loop.time() >= deadline:
                raise TimeoutError

    def _withheld(self, site: Site) -> str:
        """Return what a site did not get that it may have needed, for the message of a refusal."""
        if self._withholds and not self._recipients.include(*site):
            return _NO_HEADERS.format(*site)
        if self._credential is not None and not self._credential.is_for(site):
            return _NO_CREDENTIAL.format(*site)
        return ""

    async def _send(
        self, url: URL, site: Site, spec: _RequestSpec, block: bytes, deadline: float, state: _FetchState
    ) -> Response:
        """Send one request, and send it again at once if its connection ended before the response."""
        head = b"%s %s HTTP/1.1\r\nHost: %s\r\n%s%s" % (
            spec.method, url.raw_path_qs.encode(), _authority(url).encode(), spec.conditions, block,
        )  # fmt: skip
        is_head = spec.method == b"HEAD"
        state.requests += 1
        request = partial(self._connections.request, site, head, deadline=deadline, is_head=is_head)
        try:
            response = await request()
        except Exception as exc:
            if not closed_before_response(exc):
                raise
            state.requests += 1
            response = await request(fresh=True)
        state.answered = True
        return response

    async def _post(self, address: str, header: Header | None, form: bytes) -> tuple[int, bytes]:
        """Send a form, and return the status and the start of the body, without redirects. Raises ObjectError."""
        state = _FetchState(self._loop.time())
        headers = CIMultiDict({"User-Agent": self._headers["User-Agent"], "Accept": "application/json"})
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        headers["Content-Length"] = str(len(form))
        if header is not None:
            headers[header[0]] = header[1]
        body = b""
        try:
            target = self._targets.read(address)
            head = b"POST %s HTTP/1.1\r\nHost: %s\r\n%s" % (
                target.url.raw_path_qs.encode(), _authority(target.url).encode(), header_block(headers),
            )  # fmt: skip
            deadline = state.started + self._total_s
            response = await self._connections.request(target.site, head, form, deadline=deadline, fresh=True)
            while len(body) < _TOKEN_BYTES and (piece := await response.read_chunk()):
                body += piece
            response.close()
        except Exception as exc:
            raise _mapped(exc, state) from None
        return response.status, body

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


def _check_rest(response: Response, rest: Rest) -> None:
    """Raise ObjectError unless the response has the bytes that were asked for (RFC 9110 section 15.3.7)."""
    wanted = f"bytes {rest.start}-{rest.size - 1}/{rest.size}"
    if response.headers.get("Content-Range") != wanted or strong_etag(response.headers) != rest.version:
        raise ObjectError(ErrorClass.CLIENT_ERROR, "the origin sent another part than was asked for", status_code=206)


def _open_only(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    """Return the headers that any site may receive."""
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() in OPEN_HEADERS | {"accept-encoding"}
    )


def _authority(url: URL) -> str:
    """Return the value of Host, without a trailing dot of the name, which many servers do not recognise."""
    return url.raw_authority.rstrip(".").replace(".:", ":")


def _mapped(exc: Exception, state: _FetchState) -> ObjectError | Fatal:
    """Return the error for an exception, with the number of requests."""
    error = from_origin(exc)
    if isinstance(error, ObjectError):
        error.requests = state.requests
        error.no_response = not state.answered and not error.outage
    return error


async def _drain(response: Response) -> None:
    """Finish an unused response: read a short rest, so that the connection can be used again, else close it."""
    left = _DRAIN_BYTES
    with contextlib.suppress(FerryError, OSError):
        while left > 0 and (piece := await response.read_chunk()):
            left -= len(piece)
    response.close()
