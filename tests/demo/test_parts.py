"""The demo's servers and generated data, which other tests rely on, behave as documented."""

from __future__ import annotations

import asyncio
import csv
import email.utils
import gzip
import hashlib
import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from PIL import Image
from rich.console import Console

from demo.images import FORMATS, make_image
from demo.library import Library, build_library, key_of
from demo.origin import Fault, Origin, Trouble
from demo.s3 import S3Server, remove_sockets
from demo.tour import Tour
from ferry import __version__
from ferry.core.records import AGAIN, Again, ErrorClass
from flows.server.local import is_free

BODY = make_image("jpeg", 7)
Answer = tuple[int, dict[str, str], bytes]


def get(origin: Origin, path: str, method: str = "GET", **headers: str) -> Answer:
    """Send one request on its own connection, with ``target`` as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", origin.port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def raw(origin: Origin, path: str, until: int | None = None) -> bytes:
    """Returns the bytes until the origin closes, or until there are ``until`` of them."""
    with socket.create_connection(("127.0.0.1", origin.port), timeout=10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = b""
        while piece := sock.recv(65536):
            received += piece
            if until is not None and len(received) >= until:
                break
        return received


def poll(what: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Returns whether ``what`` became true within the time."""
    deadline = time.monotonic() + within_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    """Returns whether the process exists and is not a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# images


def test_images_are_distinct_and_loadable() -> None:
    """Each seed gives a different image of its format, which Pillow decodes."""
    for fmt in FORMATS:
        bodies = [make_image(fmt, seed) for seed in range(120)]
        assert len(set(bodies)) == 120
        for body in bodies:
            if fmt == "svg":
                assert body.rstrip().endswith(b"</svg>")
                continue
            with Image.open(io.BytesIO(body)) as image:
                image.load()
                assert image.format == fmt.upper()


def test_images_are_deterministic_and_sized() -> None:
    """The same seed gives the same bytes, a given size is kept, and images are small."""
    for fmt in FORMATS:
        assert make_image(fmt, 3) == make_image(fmt, 3)
        sizes = [len(make_image(fmt, seed)) for seed in range(1, 101)]
        assert 1_500 < sum(sizes) / len(sizes) < 14_000
    with Image.open(io.BytesIO(make_image("gif", 1, width=31, height=17))) as image:
        assert image.size == (31, 17)


def test_unknown_format_is_refused() -> None:
    """An unknown format raises ValueError."""
    with pytest.raises(ValueError, match="tiff"):
        make_image("tiff", 1)


# origin


def test_healthy_object(origin: Origin) -> None:
    """A healthy path serves its bytes with type, length, ETag and Last-Modified, and 304 for its ETag."""
    origin.add("/a.jpg", BODY)
    status, headers, body = get(origin, "/a.jpg")
    assert (status, body, headers["content-type"]) == (200, BODY, "image/jpeg")
    assert headers["content-length"] == str(len(BODY))
    assert headers["last-modified"].endswith("GMT")
    assert get(origin, "/a.jpg", If_None_Match=headers["etag"])[::2] == (304, b"")
    assert get(origin, "/a.jpg", If_None_Match='"other"')[0] == 200
    assert get(origin, "/a.jpg", "HEAD")[::2] == (200, b"")


def test_paths_are_matched_byte_for_byte(origin: Origin) -> None:
    """A signed, percent-encoded target matches only byte for byte, and is counted under that text."""
    path = "/a%20b.jpg?sig=%2F+x%7E"
    origin.add(path, BODY)
    assert get(origin, path)[0] == 200
    for changed in ("/a%20b.jpg", "/a+b.jpg?sig=%2F+x%7E", "/a%20b.jpg?sig=%2f+x%7E", "/a%20b.jpg?sig=/+x~"):
        assert get(origin, changed)[0] == 404
    assert origin.requests[path] == 1
    assert origin.total == 5


def test_impossible_path_is_refused(origin: Origin) -> None:
    """A path that cannot be in a request line raises ValueError when it is added."""
    for path in ("a.jpg", "/a b.jpg", "/ü.jpg", "/a#b"):
        with pytest.raises(ValueError, match="request target"):
            origin.add(path, BODY)


def test_last_headers_are_kept(origin: Origin) -> None:
    """The origin keeps the headers of a path's last request."""
    origin.add("/a.jpg", BODY)
    get(origin, "/a.jpg", User_Agent="first")
    get(origin, "/a.jpg", User_Agent="second", Authorization="Bearer x", Accept_Encoding="identity")
    seen = origin.last_headers["/a.jpg"]
    assert (seen["user-agent"], seen["authorization"], seen["accept-encoding"]) == ("second", "Bearer x", "identity")


def test_keep_alive_and_pipelining(origin: Origin) -> None:
    """One connection serves many requests in order, and closes on request."""
    origin.add("/a", b"aa", "text/plain")
    origin.add("/b", b"bb", "text/plain", Fault(Trouble.SLOW, seconds=0.1))
    with socket.create_connection(("127.0.0.1", origin.port), timeout=10) as sock:
        sock.sendall(b"GET /b HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := sock.recv(65536):
            received += piece
    bodies = [answer[-2:] for answer in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"bb", b"aa", b"bb"]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (Trouble.NOT_FOUND, 404),
        (Trouble.GONE, 410),
        (Trouble.FORBIDDEN, 403),
        (Trouble.SERVER_ERROR, 500),
    ],
)
def test_statuses(origin: Origin, kind: Trouble, status: int) -> None:
    """A path with an error status keeps it until it is mended."""
    origin.add("/a.jpg", BODY, fault=kind)
    assert [get(origin, "/a.jpg")[0] for _ in range(4)] == [status] * 4
    origin.mend("/a.jpg")
    assert get(origin, "/a.jpg")[::2] == (200, BODY)


def test_flaky(origin: Origin) -> None:
    """A flaky path answers 500 twice, or as often as configured, and then serves its object."""
    origin.add("/a", BODY, fault=Trouble.FLAKY)
    origin.add("/b", BODY, fault=Fault(Trouble.FLAKY, times=3))
    assert [get(origin, "/a")[0] for _ in range(4)] == [500, 500, 200, 200]
    assert [get(origin, "/b")[0] for _ in range(4)] == [500, 500, 500, 200]


def test_rate_limited(origin: Origin) -> None:
    """A path answers 429 with Retry-After, in seconds or as a future date, and then serves its object."""
    origin.add("/a", BODY, fault=Fault(Trouble.RATE_LIMITED, seconds=3))
    status, headers, _ = get(origin, "/a")
    assert (status, headers["retry-after"]) == (429, "3")
    assert get(origin, "/a")[0] == 200
    origin.add("/b", BODY, fault=Fault(Trouble.RATE_LIMITED, seconds=30, http_date=True, times=2))
    before = time.time()
    until = email.utils.parsedate_to_datetime(get(origin, "/b")[1]["retry-after"]).timestamp()
    assert before + 30 <= until <= time.time() + 32
    assert [get(origin, "/b")[0] for _ in range(2)] == [429, 200]


def test_pages_instead_of_images(origin: Origin) -> None:
    """An HTML page is sent with an image's type, JSON with its own, and an empty body with 200."""
    origin.add("/a.jpg", BODY, fault=Trouble.HTML_200)
    origin.add("/b.jpg", BODY, fault=Trouble.JSON_200)
    origin.add("/c.jpg", BODY, fault=Trouble.EMPTY)
    status, headers, body = get(origin, "/a.jpg")
    assert (status, headers["content-type"], body[:14]) == (200, "image/jpeg", b"<!DOCTYPE html")
    status, headers, body = get(origin, "/b.jpg")
    assert (status, headers["content-type"], body[:1]) == (200, "application/json", b"{")
    status, headers, body = get(origin, "/c.jpg")
    assert (status, headers["content-length"], body) == (200, "0", b"")


def test_truncated(origin: Origin) -> None:
    """Half of the body is sent with the full length, as chunks without an end, or with only a close."""
    half = len(BODY) // 2
    origin.add("/length", BODY, fault=Trouble.TRUNCATED_LENGTH)
    origin.add("/chunked", BODY, fault=Trouble.TRUNCATED_CHUNKED)
    origin.add("/close", BODY, fault=Fault(Trouble.TRUNCATED_CLOSE, keep=0.25))
    with pytest.raises(http.client.IncompleteRead) as cut:
        get(origin, "/length")
    assert (cut.value.partial, cut.value.expected) == (BODY[:half], len(BODY) - half)
    with pytest.raises(http.client.IncompleteRead) as cut:
        get(origin, "/chunked")
    assert cut.value.partial == BODY[:half]
    assert raw(origin, "/chunked").endswith(BODY[:half] + b"\r\n")
    status, headers, body = get(origin, "/close")
    assert (status, body) == (200, BODY[: len(BODY) // 4])
    assert "content-length" not in headers
    assert get(origin, "/length", "HEAD")[1]["content-length"] == str(len(BODY))


def test_slow(origin: Origin) -> None:
    """A slow body is complete and takes the configured time."""
    origin.add("/a", BODY, fault=Fault(Trouble.SLOW, seconds=0.4))
    before = time.monotonic()
    assert get(origin, "/a")[::2] == (200, BODY)
    assert 0.35 < time.monotonic() - before < 60


def test_stall(origin: Origin) -> None:
    """After half of the body nothing more is sent, and the connection stays open."""
    origin.add("/a", BODY, fault=Trouble.STALL)
    with socket.create_connection(("127.0.0.1", origin.port), timeout=10) as sock:
        sock.sendall(b"GET /a HTTP/1.1\r\n\r\n")
        received = b""
        while not received.endswith(BODY[: len(BODY) // 2]):
            piece = sock.recv(65536)
            assert piece, "closed"
            received += piece
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_redirects(origin: Origin) -> None:
    """A redirect leads to the body or to the configured target; a loop returns to its start."""
    origin.add("/a.jpg?x=1", BODY, fault=Trouble.REDIRECT)
    origin.add("/b.jpg", BODY, fault=Fault(Trouble.REDIRECT, target="/a.jpg?x=1"))
    origin.add("/c.jpg", BODY, fault=Trouble.REDIRECT_LOOP)
    status, headers, _ = get(origin, "/a.jpg?x=1")
    assert status == 302
    assert get(origin, headers["location"])[::2] == (200, BODY)
    assert get(origin, "/b.jpg")[1]["location"] == "/a.jpg?x=1"
    status, headers, _ = get(origin, "/c.jpg")
    there = headers["location"]
    assert there != "/c.jpg"
    assert get(origin, there)[:2] == (302, {"location": "/c.jpg", "content-length": "0"})
    origin.mend("/c.jpg")
    assert get(origin, "/c.jpg")[::2] == (200, BODY)


def test_reset(origin: Origin) -> None:
    """The connection is reset without an answer, always or as often as configured."""
    origin.add("/a", BODY, fault=Trouble.RESET)
    origin.add("/b", BODY, fault=Fault(Trouble.RESET, times=1))
    for path in ("/a", "/a", "/a", "/b"):
        with pytest.raises(ConnectionResetError):
            raw(origin, path)
    assert get(origin, "/b")[::2] == (200, BODY)


def test_gzip_and_wrong_type(origin: Origin) -> None:
    """gzip is sent although identity was requested; the wrong type is sent with the right bytes."""
    origin.add("/a", BODY, fault=Trouble.GZIP)
    origin.add("/b", BODY, fault=Trouble.WRONG_TYPE)
    _, headers, body = get(origin, "/a", Accept_Encoding="identity")
    assert (headers["content-encoding"], gzip.decompress(body)) == ("gzip", BODY)
    _, headers, body = get(origin, "/b")
    assert (headers["content-type"], body) == ("text/plain", BODY)


def test_endless(origin: Origin) -> None:
    """The origin sends far more than the body, and afterwards serves other requests."""
    origin.add("/a", BODY, fault=Trouble.ENDLESS)
    origin.add("/b", BODY)
    assert len(raw(origin, "/a", until=5_000_000)) >= 5_000_000
    assert get(origin, "/b")[::2] == (200, BODY)
    assert poll(lambda: not origin._connections)


def test_outage(origin: Origin) -> None:
    """`down` breaks connections and refuses new ones; after `up` the same address answers."""
    origin.add("/a", BODY)
    connection = http.client.HTTPConnection("127.0.0.1", origin.port, timeout=10)
    connection.request("GET", "/a")
    assert connection.getresponse().read() == BODY
    origin.down()
    assert connection.sock is not None
    with pytest.raises(ConnectionResetError):
        connection.sock.recv(1)
    connection.close()
    with pytest.raises(ConnectionRefusedError):
        get(origin, "/a")
    origin.down()
    origin.up()
    assert get(origin, "/a")[::2] == (200, BODY)


def test_latency(origin: Origin) -> None:
    """The latency delays each answer, for many connections at once."""
    origin.add("/a", BODY)
    origin.latency_s = 1.0

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", origin.port)
        writer.write(b"GET /a HTTP/1.1\r\nConnection: close\r\n\r\n")
        received = len(await reader.read())
        writer.close()
        return received

    async def many() -> list[int]:
        return await asyncio.gather(*(one() for _ in range(50)))

    before = time.monotonic()
    assert min(asyncio.run(many())) > len(BODY)
    assert 1.0 <= time.monotonic() - before < 40  # one after the other they would take 50 s


def test_origin_ends_with_its_context() -> None:
    """After the context the port is free and the thread has ended; a second stop does nothing."""
    with Origin() as server:
        server.add("/a", BODY, fault=Trouble.STALL)
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        sock.sendall(b"GET /a HTTP/1.1\r\n\r\n")
        assert sock.recv(1) == b"H"
        thread = server._thread
    sock.close()
    assert is_free(server.port)
    assert thread is not None
    assert not thread.is_alive()
    server.stop()


# S3


def test_bucket_holds_what_is_put(s3: S3Server, bucket: str) -> None:
    """An object is read back byte for byte, and its ETag is the body's MD5."""
    put = s3.client().put_object(Bucket=bucket, Key="a b/ü+#.jpg", Body=BODY)
    assert s3.client().get_object(Bucket=bucket, Key="a b/ü+#.jpg")["Body"].read() == BODY
    assert put["ETag"].strip('"') == hashlib.md5(BODY, usedforsecurity=False).hexdigest()


def test_reader_may_read_but_not_write(s3: S3Server, bucket: str) -> None:
    """The second identity reads and lists; its writes, and requests with a wrong key, are refused."""
    s3.client().put_object(Bucket=bucket, Key="a", Body=b"a")
    reader = s3.client(reader=True)
    assert reader.get_object(Bucket=bucket, Key="a")["Body"].read() == b"a"
    assert reader.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.put_object(Bucket=bucket, Key="b", Body=b"b")


@pytest.mark.slow
def test_restart_keeps_the_data(tmp_path: Path) -> None:
    """A stopped server refuses connections, a restarted one has the same objects, and stop works twice."""
    server = S3Server(tmp_path)
    try:
        server.start()
        pid = server.pid
        server.make_bucket("kept")
        server.client().put_object(Bucket="kept", Key="a", Body=BODY)
        before = time.monotonic()
        server.stop()
        server.stop()
        assert time.monotonic() - before < 60
        assert not server.running
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(server.endpoint_url.rpartition(":")[2])))
        server.start()
        assert server.client().get_object(Bucket="kept", Key="a")["Body"].read() == BODY
    finally:
        server.stop(within_s=0)
    assert (tmp_path / "s3.json").stat().st_mode & 0o077 == 0
    assert not list(Path("/tmp").glob(f"weed*.{pid}"))  # its logs lie in its folder


def test_with_json_the_tours_commands_print_to_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With `--json`, the demo's standard output is one JSON document."""
    for as_json in (True, False):
        tour = Tour(tmp_path, Console(stderr=as_json))
        tour.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
        tour.ferry("--version")
        shown = capfd.readouterr()
        assert (__version__ in shown.err, __version__ in shown.out) == (as_json, not as_json)


@pytest.mark.slow
def test_killed_server_keeps_the_data(tmp_path: Path) -> None:
    """A server that is restarted after SIGKILL has the same objects."""
    server = S3Server(tmp_path)
    try:
        server.start()
        server.make_bucket("kept")
        server.client().put_object(Bucket="kept", Key="a", Body=BODY)
        server.stop(within_s=0)
        server.start()
        assert server.client().get_object(Bucket="kept", Key="a")["Body"].read() == BODY
    finally:
        server.stop(within_s=0)


def test_two_side_by_side(s3: S3Server, bucket: str) -> None:
    """Two servers run with different keys and buckets, and the temporary folder is deleted."""
    with S3Server() as other:
        folder = other.folder
        assert folder.is_dir()
        other.make_bucket("second")
        assert [b["Name"] for b in other.client().list_buckets()["Buckets"]] == ["second"]
        assert bucket in [b["Name"] for b in s3.client().list_buckets()["Buckets"]]
        assert other.access_key != s3.access_key
        pid = other.pid
    assert pid is not None
    assert not is_alive(pid)
    assert not folder.exists()


def test_failed_start_shows_the_log(tmp_path: Path) -> None:
    """The error of a failed start has the end of the log, and no process is left."""
    server = S3Server(tmp_path)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(server.endpoint_url.rpartition(":")[2])))
        taken.listen()
        with pytest.raises(RuntimeError, match="not available"):
            server.start()
    assert not server.running


@pytest.mark.slow
def test_server_outlives_the_thread_that_started_it() -> None:
    """The server survives the end of the thread that started it."""
    with S3Server() as server:
        server.stop(within_s=0)
        starter = threading.Thread(target=server.start)
        starter.start()
        starter.join()
        server.make_bucket("alive")
        assert server.running


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_no_orphan_after_sigkill(tmp_path: Path) -> None:
    """The server ends when the process that started it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from demo.s3 import S3Server\n"
        "s = S3Server(Path(sys.argv[1])); s.start(); print(s.pid, *s._ports.values(), flush=True); time.sleep(600)"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    try:
        assert parent.stdout is not None
        pid, *ports = map(int, parent.stdout.readline().split())
        assert is_alive(pid)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()
    assert poll(lambda: not is_alive(pid))
    remove_sockets(ports)


# library


@pytest.fixture
def library(origin: Origin) -> Library:
    return build_library(origin, count=200)


def test_library_adds_up(library: Library) -> None:
    """Each row is expected to be copied, to fail with a known class, or to be a duplicate."""
    assert len(library.rows) == 200 + 63
    assert len(library.rows) == len(library.expected) + len(library.expected_failures) + library.duplicates
    assert len(library.expected_failures) == 47
    assert {row["url"] for row in library.rows} >= set(library.expected_failures)
    assert {key_of(row["url"].removeprefix(library.origin.base_url)) for row in library.rows} >= set(library.expected)
    assert set(library.expected_failures.values()) <= {error_class.value for error_class in ErrorClass}
    again = {url for url, cls in library.expected_failures.items() if AGAIN[ErrorClass(cls)] is not Again.NEVER}
    assert set(library.retryable) == again
    assert len(library.retryable) == len(again) == 17


def test_library_rows(library: Library) -> None:
    """One row appears twice, one has no URL, and two pairs have one key for different bytes."""
    pairs = [(row["sku"], row["url"]) for row in library.rows]
    assert len(pairs) - len(set(pairs)) == 1
    assert [row["url"] for row in library.rows].count("") == 1
    colliding = [url for url, cls in library.expected_failures.items() if cls == "key_collision"]
    assert len(colliding) == 4
    assert len({url.partition("?")[0] for url in colliding}) == 2
    served = {get(library.origin, url.removeprefix(library.origin.base_url))[2] for url in colliding}
    assert len(served) == 4


def test_library_serves_what_it_expects(library: Library) -> None:
    """Each good row's URL yields exactly its key's bytes, after enough requests."""
    origin = library.origin
    for url in {row["url"] for row in library.rows if row["url"]} - set(library.expected_failures):
        path = target = url.removeprefix(origin.base_url)
        for _ in range(4):
            try:
                status, headers, body = get(origin, target)
            except ConnectionResetError:
                continue
            target = headers.get("location", target)
            if status == 200:
                break
        assert (status, len(body) > 0) == (200, True)
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert library.expected[key_of(path)] == body


def test_library_failures_do_not_heal(library: Library) -> None:
    """A row that must fail never yields its image."""
    origin = library.origin
    true_bytes = dict(library._broken)
    for _ in range(5):
        for path, body in true_bytes.items():
            try:
                status, _, received = get(origin, path)
            except (http.client.IncompleteRead, ConnectionResetError, http.client.RemoteDisconnected):
                continue
            assert (status, received) != (200, body)


def test_library_mends(library: Library) -> None:
    """Repairs start with 404s, pages and 500s, continue where they stopped, and the origin serves the bytes."""
    first = library.mend(6)
    second = library.mend(library.mendable)
    assert (len(first), len(second), library.mendable) == (6, 36, 0)
    assert not set(first) & (set(second) | set(library.expected))
    by_key = {key_of(url.removeprefix(library.origin.base_url)): url for url in library.expected_failures if url}
    assert [library.expected_failures[by_key[key]] for key in first][:3] == ["not_found", "server_error", "not_image"]
    for key, body in (first | second).items():
        assert get(library.origin, by_key[key].removeprefix(library.origin.base_url))[::2] == (200, body)
    with pytest.raises(ValueError, match="only 0"):
        library.mend(1)


def test_library_is_deterministic_and_written_as_csv(tmp_path: Path) -> None:
    """The same seed gives the same library, and the CSV has its rows."""
    with Origin() as one, Origin() as two:
        a, b, c = build_library(one, 30), build_library(two, 30), build_library(two, 30, seed=2)
    assert a.expected == b.expected
    assert [row["sku"] for row in a.rows] == [row["sku"] for row in b.rows]
    assert a.expected != c.expected
    a.write_csv(tmp_path / "list.csv")
    with (tmp_path / "list.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == a.rows
