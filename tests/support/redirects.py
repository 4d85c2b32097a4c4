"""Jobs with odd old addresses, and visitors that ask web servers for them byte by byte."""

from __future__ import annotations

import csv
import random
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from ferry.core import ErrorClass, Status
from ferry.job import Job
from ferry.state.files import DirectoryState
from ferry.state.ledger import append_outcomes
from ferry.state.queries import folded_ledger
from tests.support.helpers import make_job, make_outcome, plan

NEW = "https://img.new.example/p/"
HOSTS = ("img.old.example", "cdn.old.example", "www.xn--bcher-kva.example")
_ODD = [
    *"+ #?&=;:@!$'()*,[]{}|^`\"\\<>%~-_.", "ä", "日本", "é", "e\u0301", "😀", "\u00a0", "%41", "%2F", "%20", "%", "%zz",
    "$uri", "$1", "${x}", "{http.request.uri}", "~^", "(?i)", ".*", "#x", "default", "hostnames", "include", "volatile",
    "\n", "\t", "\x7f", "\x01", "\r\n",
]  # fmt: skip
_NAMES = [
    "default", "hostnames", "include", "volatile", "map", "~^a", "~*a", "\\a", "-", "a b", "a\tb", "*.x", ".x", "x.*",
    "A.jpg", "a.jpg", "B.JPG", "b.jpg", "b.Jpg", "Ä.jpg", "ä.jpg", '"', "'", ";", "}", "{", "$", "\\", "`", "|", "^",
    "a#b", "a?b", "a&b=c", "a+b", "a%2Bb", "a=b", "x,y", "x;y", "\u00ff", "index.html", "favicon.ico", "a.php", "@",
    "!", "#", "%",
]  # fmt: skip


class Visit(NamedTuple):
    """A request of a visitor, and the answer that it should get: the new address, or "" for no redirect."""

    host: str
    target: str
    location: str


def stored(folder: Path, rows: Iterable[Mapping[str, str]], **given: Any) -> tuple[DirectoryState, Job]:
    """Plans rows with `url`, `key` and `id`, and has them copied, but for those with `missing` in their id."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = list(rows)
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["url", "key", "id"], restval="")
        writer.writeheader()
        writer.writerows(lines)
    values = {"destination": f"file://{folder}/out/", "public_url": NEW + "{key}", **given}
    job = make_job(manifest=str(folder / "list.csv"), **values)
    state = DirectoryState(folder / "state")
    plan(job, state)
    with folded_ledger(state) as con:
        todo = con.execute("SELECT row_id, source, key, id FROM manifest ANTI JOIN latest USING (row_id)").fetchall()
    append_outcomes(
        state,
        [
            make_outcome(row_id, Status.FAILED, source=source, key=key, id=id_, error_class=ErrorClass.NOT_FOUND)
            if "missing" in (id_ or "")
            else make_outcome(row_id, source=source, key=key, id=id_)
            for row_id, source, key, id_ in todo
        ],
        1,
        "c",
        0,
    )
    return state, job


class Odd(NamedTuple):
    """A manifest of odd addresses, and what visitors ask for."""

    rows: list[dict[str, str]]
    visits: list[Visit]


def odd_addresses(count: int, longest: int, seed: int = 1, *, without_copy: int = 200) -> Odd:
    """Returns addresses with characters that configuration files, servers and clients treat in ways of their own."""
    draw = random.Random(seed)
    rows: list[dict[str, str]] = []
    visits: list[Visit] = []
    taken: set[tuple[str, bytes, str]] = set()

    def add(host: str, path: str, query: str = "", *, missing: bool = False) -> None:
        """``path`` and ``query`` as a visitor sends them."""
        plain = re.sub(rb"/+", b"/", unquote_to_bytes(path))
        if (host, plain, query) in taken:
            return
        taken.add((host, plain, query))
        number = len(rows)
        key = f"{number}/" + "".join(draw.choice(_ODD[:40]) for _ in range(draw.randrange(4))).replace("/", "") + "k"
        target = path + (f"?{query}" if query else "")
        rows.append({"url": f"https://{host}{target}", "key": key, "id": f"{'missing' if missing else 'id'}{number}"})
        visits.append(Visit(host, target, "" if missing else NEW + quote(key, safe="/")))

    for host in HOSTS[:2]:
        for name in _NAMES:
            add(host, "/" + quote(name))
            add(host, "/img/" + quote(name, safe="!$&'()*+,;=:@~"))
            add(host, "/" + quote(name), "v=1")
    for query in (
        "v=1",
        "v=2",
        "V=1",
        "a=%3D&b==&c",
        "q=%41",
        "x=%2F/",
        "a=b?c",
        "~x",
        "\\",
        "'",
        "%22",
        "{x}",
        "$uri",
    ):
        add(HOSTS[0], "/query.jpg", query)
    add(HOSTS[0], "/a%3Fb", "c")
    add(HOSTS[0], "/a", "b?c")
    add(HOSTS[0], "/a%3Fb%3Fc")
    add(HOSTS[0], "/" + "l" * (longest - 300) + "/" + quote("日" * 25))
    for number in range(8):  # twins of case, one of them without a copy
        add(HOSTS[2], f"/Twin/{number}.jpg")
        add(HOSTS[2], f"/twin/{number}.JPG", missing=number % 2 == 1)
    while len(rows) < count + without_copy:
        words = ["".join(draw.choice([*_ODD, "aB", "img", "0"]) for _ in range(draw.randrange(1, 5))) for _ in range(3)]
        words = words[: draw.randrange(1, 4)]
        safe = draw.choice(["", "!$&'()*+,;=:@~", "!$'()*,~"])
        path = "/" + draw.choice(["/", "//", "/"]).join(quote(word.strip("."), safe=safe) or "x" for word in words)
        path = re.sub(r"%[0-9A-F]{2}", lambda m: m[0].lower() if draw.random() < 0.3 else m[0], path)
        query = draw.choice(
            ["", "", "", f"v={draw.randrange(9)}", "w=100&h=%3D%26&x=a+b", "a=b=c&&d", "%C3%A4", "url=/x?y"]
        )
        add(
            draw.choice(HOSTS),
            f"/{len(rows)}{path}",
            query,
            missing=draw.random() < without_copy / (count + without_copy),
        )
    return Odd(rows, visits)


def other_spellings(visit: Visit) -> Iterator[str]:
    """Yields other request targets for the same path: escapes of letters, lower-case hex, and their opposite."""
    path, mark, query = visit.target.partition("?")
    rest = mark + query
    yield re.sub(r"(?<!%)(?<!%[0-9A-Fa-f])[a-z]", lambda m: f"%{ord(m[0]):02x}", path, count=2) + rest
    yield re.sub(r"%[0-9A-F]{2}", lambda m: m[0].lower(), path) + rest
    yield quote(unquote_to_bytes(path), safe="/") + rest


class Visitor:
    """An HTTP/1.1 client on one connection, which sends request targets as they are."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._rest = b""

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def ask(self, host: str, target: str | bytes) -> tuple[int, str]:
        """Returns the status and the Location of the answer, "" for none."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=20)
            self._rest = b""
        raw = target if isinstance(target, bytes) else target.encode()
        self._socket.sendall(b"GET " + raw + b" HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n")
        head = self._until(lambda data: data.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in data else 0)
        fields = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
        }
        length = int(fields.get("content-length", "0"))
        self._until(lambda data: length if len(data) >= length else 0, length == 0)
        if fields.get("connection", "").lower() == "close" or "transfer-encoding" in fields:
            self._close()
        return int(head.split()[1]), fields.get("location", "")

    def _until(self, end: Callable[[bytes], int], nothing: bool = False) -> bytes:
        while not nothing and not (at := end(self._rest)):
            assert self._socket is not None
            data = self._socket.recv(65_536)
            if not data:
                raise ConnectionError(f"the server closed the connection after {self._rest!r}")
            self._rest += data
        if nothing:
            return b""
        found, self._rest = self._rest[:at], self._rest[at:]
        return found

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
