"""Access logs of web servers, line by line: common and combined, JSON, W3C extended, S3; also compressed."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from ferry.core import UserError
from ferry.manifest import excerpt

MAX_LINE_BYTES = 64 * 1024  # servers refuse request lines of more than 8 to 32 KiB
TRIED_LINES = 1000  # after so many lines a file that is not a log is refused
_DEPTH = 3  # of nested JSON objects
# `[vhost] host ident user [time] ... "request" status`. S3 has fields between the time and the request.
_LINE = re.compile(
    r"((?:\[[0-9A-Fa-f:.]+\]\S* )?[^\[]{1,2000})\[[^\]]{1,60}\] "
    r'(?:[^"]{0,3000} )?"((?:[^"\\]|\\.)*+)" (\d{3}|-)(?: |$)'
)
_REQUEST = re.compile(r"([A-Za-z]+) (.*?)(?: HTTP/[0-9.]+)?", re.DOTALL)
_ESCAPE = re.compile(r"\\x([0-9A-Fa-f]{2})|\\(.)")
_NAMED = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "v": "\v", "f": "\f"}  # Apache's
_TO_QUOTE = re.compile(r"[^\x21-\x7e]")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)
_HOST = re.compile(r"([a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?", re.IGNORECASE)
# Names of fields, in lower case, the first that has a value counts: nginx and Apache by custom, Caddy, Traefik, Envoy,
# Google Cloud, Cloudflare, Elastic Common Schema; CloudFront and IIS (W3C extended).
_TARGETS = (
    "request_uri", "request.uri", "requesturi", "requestpath", "clientrequesturi", "httprequest.requesturl",
    "cs-uri-stem", "uri", "url", "url.original", "url.path", "path",
)  # fmt: skip
_QUERIES = ("cs-uri-query", "args", "query_string", "url.query", "query")
_HOSTS = (
    "request.host", "x-host-header", "http_host", "requesthost", "clientrequesthost", "authority", ":authority",
    "url.domain", "host", "vhost", "cs(host)", "cs-host", "server_name",
)  # fmt: skip
_METHODS = (
    "method", "request_method", "request.method", "requestmethod", "clientrequestmethod", "httprequest.requestmethod",
    "http.request.method", "cs-method",
)  # fmt: skip
_STATUSES = (
    "status", "status_code", "response_code", "downstreamstatus", "edgeresponsestatus", "httprequest.status",
    "http.response.status_code", "sc-status",
)  # fmt: skip


class Request(NamedTuple):
    """A request of a log. ``target`` is printable ASCII, other bytes percent-encoded; "" if it is not an address."""

    method: str
    target: str
    status: int  # 0: not known
    host: str | None  # in lower case, without its port


class LogLines:
    """The requests of one log, with the counts of its lines. ``name`` is a path, or `-` for standard input."""

    def __init__(self, name: str) -> None:
        self.name, self.shown = name, "standard input" if name == "-" else name
        self.lines = self.bad = 0
        self._first_bad = ""
        self._columns: list[str] = []  # of the W3C extended format, by the last `#Fields:`

    def requests(self) -> Iterator[Request]:
        """Yields the requests. Raises UserError for a file that cannot be read, or mostly holds other lines."""
        with _opened(self.name, self.shown) as stream:
            for number, line in enumerate(_lines(stream, self.shown), start=1):
                if line == "":
                    continue
                if line is not None and line.startswith("#"):
                    if line.startswith("#Fields:"):
                        self._columns = line[8:].lower().split()
                    continue
                self.lines += 1
                found = self._parse(line) if line is not None else None
                if found is not None:
                    yield found
                else:
                    self.bad += 1
                    self._first_bad = (
                        self._first_bad or f"line {number}: {'it is too long' if line is None else excerpt(line)}"
                    )
                if self.lines == TRIED_LINES:
                    self._refuse()
            self._refuse()

    def _refuse(self) -> None:
        if self.bad * 2 > self.lines:
            lines = "line" if self.lines == 1 else "lines"
            what = "is not a request" if self.bad == 1 else "are not requests"
            raise UserError(
                f"{self.shown} is not an access log that Ferry reads: {self.bad:,} of its first {self.lines:,} {lines} "
                f"{what}, the first such {self._first_bad}. Ferry reads the common and the combined "
                "format of nginx and Apache, JSON lines with fields such as `request_uri`, `host`, `method` and "
                "`status`, and W3C extended logs with their `#Fields:` line"
            )

    def _parse(self, line: str) -> Request | None:
        if line.startswith("{"):
            return _of_json(line)
        if self._columns:
            values = line.split("\t") if "\t" in line else line.split(" ")
            if len(values) != len(self._columns):  # a cut line, or a space in a value: the fields would be others'
                return None
            return _of_fields(dict(zip(self._columns, values, strict=True)))
        return _of_line(line)


def _opened(name: str, shown: str) -> io.BufferedReader:
    """Opens a log; its first bytes say whether it is compressed. Raises UserError."""
    try:
        raw = sys.stdin.buffer if name == "-" else open(name, "rb")  # noqa: SIM115, PTH123 - closed by the caller
        stream = cast(io.BufferedReader, raw)
        head = stream.peek(4)[:4]
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error.strerror or error}") from None
    if head.startswith(b"\x1f\x8b"):
        return io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=stream)))
    if head == b"\x28\xb5\x2f\xfd":
        return io.BufferedReader(cast(Any, pa.CompressedInputStream(pa.PythonFile(stream), "zstd")))
    return stream


def _lines(stream: BinaryIO, shown: str) -> Iterator[str | None]:
    """Yields the lines as Latin-1, so that each byte is a character; None for a line that is too long."""
    try:
        while line := stream.readline(MAX_LINE_BYTES):
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield None
            else:
                yield line.rstrip(b"\r\n").decode("latin-1")
    except (EOFError, OSError, zlib.error) as error:
        what = "it is truncated" if isinstance(error, EOFError) or "runcated" in str(error) else str(error)
        raise UserError(f"{shown} cannot be read to its end: {what}. Copy or write it again") from None


def _of_line(line: str) -> Request | None:
    """Returns the request of a line in the common or combined format, with or without a virtual host in front.

    | before the time | host |
    |---|---|
    | `203.0.113.7 - -`, `2001:db8::1 - anna`, `203.0.113.7 - anna lee` | None |
    | `img.example:443 203.0.113.7 - -` | `img.example` |
    """
    found = _LINE.match(line)
    if found is None:
        return None
    before = found[1].split()
    with_host = len(before) >= 4 and before[1] != "-" and before[2] == "-"
    status = 0 if found[3] == "-" else int(found[3])
    return _request(_unescaped(found[2]), status, before[0] if with_host else None)


def _unescaped(text: str) -> str:
    """Returns the bytes that nginx and Apache write as `\\xHH`, `\\"` and `\\\\`."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _NAMED.get(found[2], found[2]), text)


def _request(text: str, status: int, host: str | None) -> Request:
    """Returns the request of a request line. `-`, and a line that is none, have no target."""
    found = _REQUEST.fullmatch(text)
    return _made(found[1], found[2], status, host) if found else Request("", "", status, None)


def _made(method: str, target: str, status: int, host: str | None) -> Request:
    if absolute := _ABSOLUTE.fullmatch(target):  # of a request to a proxy, or a field with the whole address
        host, target = absolute[1].rpartition("@")[2], absolute[2] or "/"
    target = _TO_QUOTE.sub(lambda char: f"%{ord(char[0]):02X}", target.partition("#")[0])
    known = _HOST.fullmatch(host.lower()) if host else None
    name = known[1].removesuffix(".") if known else ""
    return Request(
        method.upper(), target if target.startswith("/") else "", status, None if name in ("", "-", "_") else name
    )


def _of_json(line: str) -> Request | None:
    try:
        data = json.loads(line.encode("latin-1").decode("utf-8", "surrogateescape"))
        return _of_fields(dict(_flat(data)))
    except (ValueError, RecursionError):
        return None


def _flat(data: Mapping[str, Any], before: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """Yields the fields of nested objects: `request.uri`."""
    for name, value in data.items():
        if isinstance(value, dict):
            if depth:
                yield from _flat(value, f"{before}{name.lower()}.", depth - 1)
        else:
            yield before + name.lower(), value


def _of_fields(fields: Mapping[str, Any]) -> Request | None:
    """Returns the request that named fields describe, None if they do not. Without a method it is a GET."""

    def first(names: tuple[str, ...]) -> str:
        value = next((value for name in names if (value := fields.get(name)) not in (None, "", "-")), "")
        return str(value).encode("utf-8", "surrogateescape").decode("latin-1")

    target, host, status = first(_TARGETS), first(_HOSTS) or None, first(_STATUSES)
    number = int(status) if status.isascii() and status.isdigit() and len(status) == 3 else 0
    line = first(("request",))  # as the visitor sent it: nginx's `uri` is what a rewrite made of it
    if _REQUEST.fullmatch(line):
        return _request(line, number, host)
    if not target:
        return _request(line, number, host) if isinstance(fields.get("request"), str) else None
    if "?" not in target and (query := first(_QUERIES)):
        target += f"?{query}"
    return _made(first(_METHODS) or "GET", target, number, host)
