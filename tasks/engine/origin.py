"""The one HTTP client of the data path: aiohttp behind the address filter, redirects followed by hand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urljoin

import aiohttp
from aiohttp.abc import AbstractResolver
from multidict import CIMultiDict
from yarl import URL

from tasks.engine.address import HOST_NAME, AddressFilter, FilteringResolver, parse_literal
from tasks.engine.body import SPOOL_OVER_BYTES, Body, BodyWriter
from tasks.engine.errors import Fatal, ObjectError, UserError, died_unanswered, disk_error, from_origin, from_status
from tasks.engine.job import Timeouts
from tasks.engine.job_rules import OPEN_HEADERS
from tasks.engine.objects import ErrorClass
from tasks.engine.retry import parse_retry_after

MAX_HOPS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WHOLE = frozenset({200, 203})  # 203: a proxy on the way changed something, and the object is whole
_DRAIN_BYTES = 64 * 1024  # of an answer nobody wants, read so that its connection can be used again
_HEADER_BYTES = 16 * 1024  # one line of an answer's header, or the value of one field
_PIECE_BYTES = 256 * 1024
_DNS_CACHE_S = 60
_HOSTS_KEPT = 4096
_MAX_CODINGS = 3

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

_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?:(?P<user>[^/?#\\]*)@)?(?P<host>\[[^\[\]/?#]*\]|[^\[\]/?#:]*)(?::(?P<port>[0-9]{0,5}))?(?P<rest>[/?#].*)?",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TO_QUOTE = re.compile(r"[^\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole object and what its origin said of it. Whoever takes it discards ``body`` in the end."""

    body: Body
    status: int
    content_type: str | None
    etag: str | None
    last_modified: str | None
    requests: int


@dataclass(frozen=True, slots=True)
class _Target:
    """Where one request goes."""

    url: URL
    site: tuple[str, str, int]  # scheme, host, port: what headers are meant for
    authorization: str | None  # from user info in the address


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
        connections: int = 512,
        resolver: AbstractResolver | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._filter = address_filter
        self._max_bytes = max_bytes
        self._spool_dir = spool_dir
        self._total_s = timeouts.total_s
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._headers = _request_headers(headers, user_agent)
        self._open_headers = CIMultiDict(
            (name, value) for name, value in self._headers.items() if name.lower() in OPEN_HEADERS | {"accept-encoding"}
        )
        self._hosts: dict[str, tuple[str, str | None]] = {}
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

    async def get(self, url: str) -> Fetched:
        """The object at ``url``, which is sent byte for byte.

        Only 200 and 203 are objects. Content-Encoding is undone. Raises ObjectError, with the number of
        HTTP requests made, or Fatal for a failing spool disk; nothing else but CancelledError.
        """
        trip = _Trip(self._loop.time())
        try:
            response = await self._open(url, trip)
            try:
                body = await self._body(response)
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
                await self._save(response, path, max_bytes)
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
        target = self._target(url)
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
            target = self._redirected(target.url, location, status)
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

    async def _body(self, response: aiohttp.ClientResponse) -> Body:
        headers = response.headers
        length = response.content_length
        if (
            length is not None
            and length <= SPOOL_OVER_BYTES
            and length <= self._max_bytes
            and "Content-Encoding" not in headers
            and "Transfer-Encoding" not in headers
        ):
            data = await response.read()
            if len(data) != length:
                raise _truncated()
            writer = BodyWriter(self._spool_dir)
            writer.write(data)
            return writer.finish()
        writer = BodyWriter(self._spool_dir)
        try:
            await _pour(response, _to_disk(writer.write, "spool file"), self._max_bytes)
            try:
                return writer.finish()
            except OSError as exc:
                raise disk_error(exc, "spool file") from exc
        except BaseException:
            _abandon(writer)
            raise

    async def _save(self, response: aiohttp.ClientResponse, path: Path, max_bytes: int) -> None:
        what = f"the downloaded file {path}"
        try:
            file = path.open("wb")
        except OSError as exc:
            raise disk_error(exc, what) from exc
        try:
            await _pour(response, _to_disk(file.write, what), max_bytes)
            try:
                file.close()
            except OSError as exc:
                raise disk_error(exc, what) from exc
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            path.unlink(missing_ok=True)
            raise

    def _redirected(self, base: URL, location: str, status: int) -> _Target:
        """Where a Location leads. The caller does not use user info in it: it was not the job that wrote it."""
        if location.startswith("//"):
            location = f"{base.scheme}:{location}"
        elif not _ABSOLUTE.match(location):
            location = urljoin(str(base), location)
        try:
            return self._target(location)
        except ObjectError as exc:
            raise ObjectError(exc.error_class, f"redirected: {exc.message}", status_code=status) from None

    def _target(self, text: str) -> _Target:
        """Takes an address apart. Raises ObjectError: bad_url, or blocked_address for a literal.

        What is plain ASCII is sent as it stands, escapes and all. Spaces and what is not ASCII are
        escaped as UTF-8, a host that is not ASCII becomes IDNA, a literal address its usual spelling;
        the fragment goes. (One exception, yarl's: a `?` with nothing behind it is dropped.)
        """
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise _bad_url("it is not an http:// or https:// address")
        scheme, user, host, port_text, rest = match.groups()
        scheme = scheme.lower()
        known = self._hosts.get(host)
        if known is None:
            known = self._judge(host)
        host, blocked = known
        if blocked is not None:
            raise ObjectError(ErrorClass.BLOCKED_ADDRESS, blocked)
        default = 443 if scheme == "https" else 80
        port = int(port_text) if port_text else default
        if not 0 < port < 65536:
            raise _bad_url("its port is out of range")
        rest = (rest or "/").partition("#")[0]
        if rest[:1] != "/":
            rest = "/" + rest
        if not rest.isascii() or not rest.isprintable() or " " in rest:
            rest = _quoted(rest)
        where = host if port == default else f"{host}:{port}"
        authorization = None if user is None else _basic(user)
        return _Target(URL(f"{scheme}://{where}{rest}", encoded=True), (scheme, host, port), authorization)

    def _judge(self, text: str) -> tuple[str, str | None]:
        """A URL's host as it is asked for, and why not, if it is a blocked literal. Remembered."""
        host = text.lower()
        if not host.isascii():
            try:
                host = URL.build(scheme="http", host=host).raw_host or ""
            except ValueError:
                raise _bad_url("its host is not a host name") from None
        try:
            literal = parse_literal(host)
        except ValueError as exc:
            raise _bad_url(f"its host is not a host name ({exc})") from None
        blocked = None
        if literal is not None:
            blocked = self._filter.verdict(host, literal)
            host = f"[{literal}]" if literal.version == 6 else str(literal)
        elif not HOST_NAME.fullmatch(host.removesuffix(".")):
            raise _bad_url("its host is not a host name")
        if len(self._hosts) >= _HOSTS_KEPT:
            self._hosts.clear()
        self._hosts[text] = (host, blocked)
        return host, blocked


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


def _bad_url(why: str) -> ObjectError:
    return ObjectError(ErrorClass.BAD_URL, f"this address cannot be fetched: {why}")


def _truncated() -> ObjectError:
    return ObjectError(ErrorClass.TRUNCATED, "the body ended before it was complete")


def _quoted(rest: str) -> str:
    """Escapes spaces and what is not ASCII; leaves every other byte alone.

    aiohttp hands over header bytes that are not UTF-8 as surrogates: they become what they were.
    """
    if _CONTROL.search(rest):
        raise _bad_url("it holds control characters")
    try:
        return _TO_QUOTE.sub(lambda m: "".join(f"%{b:02X}" for b in m[0].encode("utf-8", "surrogateescape")), rest)
    except UnicodeEncodeError:
        raise _bad_url("it is not Unicode") from None


def _basic(user: str) -> str:
    """RFC 7617, for user info in an address."""
    name, _, password = user.partition(":")
    return "Basic " + base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()


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


def _to_disk(write: Callable[[bytes], object], what: str) -> Callable[[bytes], None]:
    """``write``, whose failures are the disk's and not the origin's."""

    def checked(piece: bytes) -> None:
        try:
            write(piece)
        except OSError as exc:
            raise disk_error(exc, what) from exc

    return checked


def _abandon(writer: BodyWriter) -> None:
    """Removes what was spooled, also when the disk is so full that the file cannot be closed cleanly."""
    try:
        writer.abandon()
    except OSError:
        writer.abandon()  # the file is closed by now


async def _pour(response: aiohttp.ClientResponse, write: Callable[[bytes], None], max_bytes: int) -> None:
    """Hands a body to ``write`` piece by piece, its encoding undone. Neither side of that passes ``max_bytes``."""
    chunked = "Transfer-Encoding" in response.headers
    length = None if chunked else response.content_length
    if length is not None and length > max_bytes:
        raise _too_large(max_bytes)
    decoders = _decoders(response.headers.getall("Content-Encoding", []))
    came = written = 0
    content = response.content
    while piece := await content.readany():
        came += len(piece)
        if came > max_bytes:
            raise _too_large(max_bytes)
        if not decoders:
            write(piece)
            continue
        for plain in _decoded(decoders, piece):
            written += len(plain)
            if written > max_bytes:
                raise _too_large(max_bytes)
            write(plain)
            await asyncio.sleep(0)  # a little that unpacks to much must not hold the loop
    if length is not None and came != length:
        raise _truncated()
    if length is None and not chunked and _reset(response):
        raise _truncated()
    if came:
        for decoder in decoders:
            decoder.finish()


def _reset(response: aiohttp.ClientResponse) -> bool:
    """Whether a body that only the connection's end delimits was ended by a reset.

    aiohttp takes any end for a good one there, and keeps the reason in its protocol object.
    """
    protocol = response._protocol
    return protocol is not None and isinstance(protocol.exception(), aiohttp.ClientOSError)


def _too_large(max_bytes: int) -> ObjectError:
    return ObjectError(ErrorClass.TOO_LARGE, f"the object is larger than `max_bytes` ({max_bytes:,} bytes)")


class _Inflater:
    """Undoes gzip (RFC 1952, any number of members) or deflate (zlib, or bare as some servers send it)."""

    __slots__ = ("_between", "_head", "_name", "_z")

    def __init__(self, name: str) -> None:
        self._name = name
        self._head = b""  # deflate: bytes held until they tell which kind it is
        self._z: zlib._Decompress | None = zlib.decompressobj(31) if name == "gzip" else None
        self._between = False  # gzip: a member has ended, and nothing has come since

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most 256 KiB. Raises ObjectError(bad_encoding)."""
        if self._z is None:
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return
            self._head = b""
            is_zlib = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
            self._z = zlib.decompressobj(15 if is_zlib else -15)
        while data:
            if self._between:
                data = data.lstrip(b"\0")  # padding, as gzip itself takes it
                if not data:
                    return
                self._between = False
                self._z = zlib.decompressobj(31)
            if self._z.eof:
                raise self._bad("there are bytes behind its end")
            try:
                plain = self._z.decompress(data, _PIECE_BYTES)
                while plain:
                    yield plain
                    plain = self._z.decompress(self._z.unconsumed_tail, _PIECE_BYTES)
            except zlib.error:
                raise self._bad("the data is damaged") from None
            data = self._z.unused_data
            if self._z.eof and self._name == "gzip":
                self._between = True

    def finish(self) -> None:
        """Raises ObjectError(truncated) if the end has not been reached."""
        if not self._between and (self._z is None or not self._z.eof):
            raise _truncated()

    def _bad(self, why: str) -> ObjectError:
        return ObjectError(ErrorClass.BAD_ENCODING, f"the body's {self._name} encoding cannot be undone: {why}")


def _decoders(values: list[str]) -> list[_Inflater]:
    """What undoes a Content-Encoding, in the order to apply it (RFC 9110 section 8.4: listed as applied)."""
    names = [name.strip().lower() for value in values for name in value.split(",")]
    codings = [name.removeprefix("x-") for name in names if name not in ("", "identity")]
    for name in codings:
        if name not in ("gzip", "deflate"):
            shown = name if len(name) <= 20 and name.isascii() and name.isprintable() else "an unknown one"
            raise ObjectError(
                ErrorClass.BAD_ENCODING, f"the body comes in an encoding that was not asked for ({shown})"
            )
    if len(codings) > _MAX_CODINGS:
        raise ObjectError(ErrorClass.BAD_ENCODING, f"the body is encoded {len(codings)} times over")
    return [_Inflater(name) for name in reversed(codings)]


def _decoded(decoders: list[_Inflater], piece: bytes) -> Iterator[bytes]:
    if not decoders:
        yield piece
        return
    for plain in decoders[0].feed(piece):
        yield from _decoded(decoders[1:], plain)
