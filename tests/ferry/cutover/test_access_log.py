"""Lines of access logs, usual and hostile ones, and files of other kinds."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ferry.core import UserError
from ferry.cutover.access_log import MAX_LINE_BYTES, LogLines, Request

TIME = "[01/Dec/2026:10:00:00 +0000]"
AGENT = '"https://shop.example/" "Mozilla/5.0"'


def get(target: str, status: int = 200, host: str | None = None, method: str = "GET") -> Request:
    return Request(method, target, status, host)


def read(folder: Path, data: bytes, name: str = "access.log") -> list[Request]:
    (folder / name).write_bytes(data)
    return list(LogLines(str(folder / name)).requests())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (f'203.0.113.7 - - {TIME} "GET /a.jpg HTTP/1.1" 200 12 {AGENT}', get("/a.jpg")),
        (f'203.0.113.7 - - {TIME} "GET /a.jpg HTTP/1.1" 304 -', get("/a.jpg", 304)),  # common
        (f'2001:db8::1 - anna lee {TIME} "HEAD /a.jpg?v=1 HTTP/2.0" 200 0', get("/a.jpg?v=1", method="HEAD")),
        (f'img.example:443 203.0.113.7 - - {TIME} "GET /a HTTP/1.1" 200 1 {AGENT}', get("/a", host="img.example")),
        (f'IMG.example 2001:db8::1 - - {TIME} "GET /a HTTP/1.1" 404 1', get("/a", 404, "img.example")),
        (f'[2001:db8::2]:80 2001:db8::1 - - {TIME} "GET /a HTTP/1.1" 200 1', get("/a", host="[2001:db8::2]")),
        (f'client.example - - {TIME} "GET /a HTTP/1.1" 200 1', get("/a")),
        (f'1.2.3.4 - - {TIME} "GET http://img.example:80/a?b HTTP/1.1" 200 1', get("/a?b", host="img.example")),
        (f'1.2.3.4 - - {TIME} "GET HTTP://u:p@img.example/a HTTP/1.1" 200 1', get("/a", host="img.example")),
        (f'1.2.3.4 - img.example - {TIME} "GET /a HTTP/1.1" 200 1', get("/a")),  # a user's name
        ('{"uri": "/a.jpg", "status": 20000, "host": "_"}', get("/a.jpg", 0)),
        (f'1.2.3.4 - - {TIME} "GET /old" 200 1', get("/old")),  # HTTP/0.9
        (f'1.2.3.4 - - {TIME} "-" 408 0', Request("", "", 408, None)),
        (f'1.2.3.4 - - {TIME} "" 400 0', Request("", "", 400, None)),
        (f'1.2.3.4 - - {TIME} "\\x16\\x03\\x01" 400 0', Request("", "", 400, None)),
        (f'1.2.3.4 - - {TIME} "OPTIONS * HTTP/1.1" 200 0', get("", method="OPTIONS")),
        (f'1.2.3.4 - - {TIME} "GET /a\\x22b\\x5C\\xC3\\xBC.jpg HTTP/1.1" 200 1', get('/a"b\\%C3%BC.jpg')),  # nginx
        (f'1.2.3.4 - - {TIME} "GET /a\\"b\\\\\\t.jpg HTTP/1.1" 200 1', get('/a"b\\%09.jpg')),  # Apache
        (f'1.2.3.4 - - {TIME} "GET /a b.jpg HTTP/1.1" 200 1', get("/a%20b.jpg")),
        (f'1.2.3.4 - - {TIME} "GET /a#b HTTP/1.1" 200 1', get("/a")),
        (f'1.2.3.4 - - {TIME} 0.003 "GET /a HTTP/1.1" 200 1', get("/a")),
        (f'_ 1.2.3.4 - - {TIME} "GET /a HTTP/1.1" 200 1', get("/a")),
        (
            f'79a5 bucket {TIME} 192.0.2.3 - 3E57 REST.GET.OBJECT a.jpg "GET /a.jpg HTTP/1.1" 200 - 113 - 7 - "-"',
            get("/a.jpg"),
        ),
        ('{"request_uri": "/ü.jpg?v=1", "host": "img.example:8080", "status": 200, "request_method": "HEAD"}',
         get("/%C3%BC.jpg?v=1", host="img.example", method="HEAD")),
        ('{"request": {"method": "GET", "host": "img.example", "uri": "/a.jpg"}, "status": 404}',
         get("/a.jpg", 404, "img.example")),  # Caddy
        ('{"request": "GET /a\\"b.jpg HTTP/1.1", "status": "200", "http_host": "-"}', get('/a"b.jpg')),
        ('{"request": "GET /a.jpg?v=1 HTTP/1.1", "uri": "/index.php", "status": 200}', get("/a.jpg?v=1")),  # rewritten
        (f'IMG.example. 1.2.3.4 - - {TIME} "GET /a HTTP/1.1" 200 1', get("/a", host="img.example")),
        ('{"uri": "/a.jpg", "args": "v=1", "status": "x"}', get("/a.jpg?v=1", 0)),
        ('{"httpRequest": {"requestUrl": "https://img.example/a.jpg", "requestMethod": "GET", "status": 200}}',
         get("/a.jpg", host="img.example")),
        ('{"url": {"path": "/a.jpg", "query": "v=1"}, "http": {"request": {"method": "get"}}}', get("/a.jpg?v=1", 0)),
    ],
)  # fmt: skip
def test_a_line(line: str, found: Request, tmp_path: Path) -> None:
    assert read(tmp_path, line.encode() + b"\n") == [found]


def test_w3c_extended(tmp_path: Path) -> None:
    """CloudFront's columns by tabs, and those of IIS by spaces; a later #Fields line changes them."""
    data = (
        "#Version: 1.0\n"
        "#Fields: date time cs-method cs(Host) cs-uri-stem sc-status cs-uri-query x-host-header\n"
        "2026-12-01\t10:00:00\tGET\td111.cloudfront.net\t/a%20b.jpg\t200\t-\timg.example\n"
        "#Fields: date cs-method cs-uri-stem cs-uri-query sc-status cs-host\n"
        "2026-12-01 GET /b.jpg v=1 304 img.example\n"
    )
    assert read(tmp_path, data.encode()) == [
        get("/a%20b.jpg", host="img.example"), get("/b.jpg?v=1", 304, "img.example"),
    ]  # fmt: skip


def test_w3c_lines_with_other_columns(tmp_path: Path) -> None:
    """A line that was cut, or has a space in a value, would give a field's value to another: it is counted as bad."""
    lines = ["#Fields: cs-method cs-uri-stem sc-status", *["GET /a.jpg 200"] * 3, "GET /a b.jpg 200", "GET /a.j"]
    (tmp_path / "log").write_text("\n".join(lines))
    log = LogLines(str(tmp_path / "log"))
    assert list(log.requests()) == [get("/a.jpg")] * 3
    assert (log.lines, log.bad) == (5, 2)


GOOD = f'1.2.3.4 - - {TIME} "GET /a.jpg HTTP/1.1" 200 1\n'.encode()


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
def test_compressed(pack: Any, tmp_path: Path) -> None:
    """By the first bytes, whatever the name; two members in one file are one log."""
    assert read(tmp_path, pack(GOOD * 3), "access.log-20261201") == [get("/a.jpg")] * 3
    if pack is gzip.compress:
        assert len(read(tmp_path, pack(GOOD) + pack(GOOD))) == 2


def test_bad_lines_are_counted(tmp_path: Path) -> None:
    """Lines of control characters, of a megabyte, and of broken JSON are counted, and the others are read."""
    bad = [b"\x00\x1b[2J\xff", b"x" * 1_000_000, b'{"uri": ', b"[" * 3000, b'{"a":' * 2000, b'1.2.3.4 - - [x] "']
    data = b"".join(line + b"\n" + GOOD * 2 for line in bad)
    (tmp_path / "log").write_bytes(data)
    log = LogLines(str(tmp_path / "log"))
    assert len(list(log.requests())) == 2 * len(bad)
    assert (log.lines, log.bad) == (3 * len(bad), len(bad))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            b"sku,url\n1,https://user:pw@img.example/1.jpg?token=SECRET\n",
            r"2 of its first 2 lines .* line 1: `sku,url`",
        ),
        (GOOD + b"https://user:pw@h/1?token=SECRET\x1b[2J\n" * 2, r"line 2: `https://h/1…`"),
        (bytes(range(256)) * 50, r"is not an access log"),
        (GOOD * 1000 + b"x\n" * 1001, r"1,001 of its first 2,001 lines .* line 1001: `x`"),
        (gzip.compress(GOOD * 5000)[:-60], r"cannot be read to its end: it is truncated"),
        (b"x" * (MAX_LINE_BYTES + 5), r"line 1: it is too long"),
        (json.dumps([1, 2]).encode(), r"1 of its first 1 line is not a request, the first such line 1"),
    ],
)
def test_what_is_no_log(data: bytes, words: str, tmp_path: Path) -> None:
    """A sentence with the first line that is none, without secrets and control characters."""
    with pytest.raises(UserError, match=words) as error:
        read(tmp_path, data)
    assert "SECRET" not in str(error.value)
    assert str(error.value).isprintable()


def test_a_missing_file(tmp_path: Path) -> None:
    for name in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            list(LogLines(str(name)).requests())
