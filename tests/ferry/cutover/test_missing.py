"""Addresses of logs beside the ledger of a real run: which have no copy, and what to do about them."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin, Trouble
from ferry.core import UserError
from ferry.cutover import MissingReport, find_missing_addresses
from ferry.cutover.missing import canonical
from ferry.job import Job
from ferry.state.files import DirectoryState
from ferry.storage.access import Access
from tests.support.helpers import make_job, plan, run, write_list

FAULTS = {"/failed.jpg": Trouble.SERVER_ERROR, "/none.jpg": Trouble.NOT_FOUND, "/denied.jpg": Trouble.FORBIDDEN}
QUOTE, WRITTEN = '"', "\\x22"  # as nginx writes it
TIME = "[01/Dec/2026:10:00:00 +0000]"


class Site:
    """An origin whose list was run: copies, failures, rows that left, and rows that came."""

    def __init__(self, folder: Path, origin: Origin, paths: Sequence[str], **given: Any) -> None:
        self.folder, self.origin = folder, origin
        for n, path in enumerate(paths):
            origin.add(path, make_image("jpeg", n, 40, 30), fault=FAULTS.get(path))
        write_list(folder / "list.csv", [[origin.url(path)] for path in paths])
        values = {"manifest": str(folder / "list.csv"), "destination": f"file://{folder}/out/", **given}
        self.job: Job = make_job(**values)
        self.state = DirectoryState(folder / "state")
        run(self.job, self.state, Access())

    def relist(self, paths: Sequence[str], run_no: int = 2) -> None:
        write_list(self.folder / "list.csv", [[self.origin.url(path)] for path in paths])
        plan(self.job, self.state, run_no)

    def missing(self, *asked: str | tuple[str, int], host: str | None = None, **given: Any) -> MissingReport:
        """``asked``: targets, or targets with a status, each one request in a combined log."""
        lines = [(one, 200) if isinstance(one, str) else one for one in asked]
        before = f"{host} 1.2.3.4" if host else "1.2.3.4"
        text = "".join(
            f'{before} - - {TIME} "GET {target.replace(QUOTE, WRITTEN)} HTTP/1.1" {status} 1 "-" "x"\n'
            for target, status in lines
        )
        (self.folder / "access.log").write_text(text)
        return find_missing_addresses(self.job, self.state, [str(self.folder / "access.log")], **{"limit": 50, **given})

    def whats(self, *asked: str | tuple[str, int], **given: Any) -> dict[str, str]:
        report = self.missing(*asked, **given)
        return {line["address"].removeprefix(self.origin.base_url): line["what"] for line in report.first}


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("/a.jpg", "/a.jpg"),
        ("/a%20b.jpg", "/a%20b.jpg"),
        ("/%7euser/%c3%bc+,;", "/~user/%C3%BC%2B%2C%3B"),
        ("/a%2fb", "/a/b"),
        ("/%zz%", "/%25zz%25"),
        ("/ü", "/%C3%BC"),
    ],
)
def test_equal_forms(path: str, same: str) -> None:
    assert canonical(path) == canonical(same) == same


def test_each_reason(origin: Origin, tmp_path: Path) -> None:
    """Every reason is told apart, most asked first; an address with a copy is not shown."""
    site = Site(tmp_path, origin, ["/1.jpg", "/a%20b.jpg", "/failed.jpg", "/denied.jpg", "/none.jpg", "/left.jpg"])
    site.relist(["/1.jpg", "/a%20b.jpg", "/failed.jpg", "/denied.jpg", "/none.jpg", "/new.jpg"])
    report = site.missing(
        *["/1.jpg"] * 9, "/a%20b.jpg", "/%61%20b.jpg", *["/other.jpg"] * 4, *["/failed.jpg"] * 3, "/denied.jpg",
        *["/new.jpg"] * 2, "/left.jpg", *[("/gone.jpg", 404)] * 8, ("/none.jpg", 404), ("/half.jpg", 404), "/half.jpg",
        *["/robots.txt"] * 7, "/", "/about",
    )  # fmt: skip
    url = origin.url
    assert [(line["requests"], line["what"], line["error_class"], line["address"]) for line in report.first] == [
        (4, "unlisted", None, url("/other.jpg")),
        (3, "failed", "server_error", url("/failed.jpg")),
        (2, "unlisted", None, url("/half.jpg")),
        (2, "pending", None, url("/new.jpg")),
        (1, "failed", "forbidden", url("/denied.jpg")),
        (1, "removed", None, url("/left.jpg")),
        (8, "gone", None, url("/gone.jpg")),
        (7, "other", None, url("/robots.txt")),
        (1, "other", None, url("/")),
        (1, "other", None, url("/about")),
        (1, "gone", None, url("/none.jpg")),
    ]
    assert (report.requests, report.addresses, report.copied, report.copied_requests) == (42, 14, 3, 11)
    assert [(group.what, group.addresses, group.requests) for group in report.groups] == [
        ("unlisted", 2, 6), ("failed", 1, 3), ("pending", 1, 2), ("failed", 1, 1), ("removed", 1, 1),
        ("gone", 2, 9), ("other", 3, 9),
    ]  # fmt: skip
    assert "failed, server_error; run again later" in report.groups[1].todo


@pytest.mark.parametrize(
    ("listed", "asked", "what"),
    [
        ("/a.jpg", "/a.jpg?v=1", None),  # no row of the path has a query: it does not count
        ("/a.jpg?v=1", "/a.jpg?v=1", None),
        ("/a.jpg?v=1", "/a.jpg?v=2", "unlisted"),
        ("/a.jpg?v=1", "/a.jpg", "unlisted"),
        ("/%C3%BC%2c.jpg", "/%c3%bc,.jpg", None),
        ("/A.jpg", "/a.jpg", "unlisted"),
        ("/img/noending", "/img/other", "unlisted"),
        ("/img/noending", "/img/", "other"),
        ("/img/noending", "/other", "other"),
        ("/a.bin", "/b.bin", "unlisted"),
        ("/a.jpg", "/b.bin", "other"),
        ("/a.jpg", "/b.AVIF", "unlisted"),
    ],
)
def test_which_row_has_an_address(listed: str, asked: str, what: str | None, origin: Origin, tmp_path: Path) -> None:
    """By path in any equal form; the query counts where the list's rows have one."""
    site = Site(tmp_path, origin, [listed])
    assert list(site.whats(asked).values()) == ([what] if what else [])


def test_hosts(origin: Origin, tmp_path: Path) -> None:
    """With a host in the log, an address of another host has no row, and is none of the list's."""
    site = Site(tmp_path, origin, ["/1.jpg"])
    assert site.whats("/1.jpg", "/2.jpg", host="127.0.0.1:80") == {"/2.jpg": "unlisted"}
    assert set(site.whats("/1.jpg", "/2.jpg", host="www.example").values()) == {"other"}


def test_a_log_without_hosts_and_several_hosts(origin: Origin, tmp_path: Path) -> None:
    """The visitor may have asked the host whose object has no copy."""
    site = Site(tmp_path, origin, ["/1.jpg", "/2.jpg"], key="{sha256}.jpg")
    write_list(tmp_path / "list.csv", [[origin.url("/1.jpg")], [origin.url("/2.jpg")], ["https://img.example/1.jpg"]])
    plan(site.job, site.state, 2)
    assert list(site.whats("/1.jpg", "/2.jpg").values()) == ["pending"]
    assert site.whats("/1.jpg", host="127.0.0.1") == {}


def test_a_host_in_unicode(origin: Origin, tmp_path: Path) -> None:
    """Browsers send it IDNA-encoded, and so logs have it."""
    source = {"allow_private_addresses": ["127.0.0.1"], "public_url": "https://xn--bcher-kva.example./{key}"}
    site = Site(tmp_path, origin, ["/1.jpg"], source=source)
    assert list(site.whats("/1.jpg", "/2.jpg", host="xn--bcher-kva.example").values()) == ["unlisted"]
    site.job = site.job.model_copy(update={"source": site.job.source.model_copy(update={"public_url": None})})
    write_list(tmp_path / "list.csv", [["https://Bücher.example/1.jpg"]])
    plan(site.job, site.state, 2)
    assert list(site.whats("/1.jpg", host="xn--bcher-kva.example").values()) == ["pending"]


def test_a_query_that_looks_like_a_digest(origin: Origin, tmp_path: Path) -> None:
    """Only the ledger's addresses of rows that left have digests; a row of the list has its own query."""
    digest = hashlib.sha256(b"v=2").hexdigest()[:8]
    site = Site(tmp_path, origin, [f"/1.jpg?{digest}"])
    assert list(site.whats(f"/1.jpg?{digest}", "/1.jpg?v=2").values()) == ["unlisted"]


def test_a_row_that_left_with_its_query(origin: Origin, tmp_path: Path) -> None:
    """The ledger has the query of such a row as 8 digits, which are compared; and so has the screen."""
    site = Site(tmp_path, origin, ["/1.jpg?sig=SECRET", "/2.jpg"])
    site.relist(["/2.jpg"])
    found = site.missing("/1.jpg?sig=SECRET", "/1.jpg?sig=OTHER").first
    assert [line["what"] for line in found] == ["unlisted", "removed"] or [line["what"] for line in found] == [
        "removed", "unlisted",
    ]  # fmt: skip
    assert "SECRET" not in str(found)


def test_addresses_of_a_cdn(origin: Origin, tmp_path: Path) -> None:
    """Visitors asked a CDN, and the list names an internal host: source.public_url says how."""
    source = {"allow_private_addresses": ["127.0.0.1"], "public_url": "https://img.example/p/{key}"}
    site = Site(tmp_path, origin, ["/1.jpg"], source=source)
    found = site.missing("/p/1.jpg", "/p/2.jpg", host="img.example").first
    assert [line["address"] for line in found] == ["https://img.example/p/2.jpg"]


def test_statuses_and_methods(origin: Origin, tmp_path: Path) -> None:
    """Only GET and HEAD, and only the statuses that are asked for."""
    site = Site(tmp_path, origin, ["/1.jpg"])
    assert site.whats(("/2.jpg", 200), ("/3.jpg", 500), statuses=[200]) == {"/2.jpg": "unlisted"}
    (tmp_path / "post.log").write_text(f'1.2.3.4 - - {TIME} "POST /2.jpg HTTP/1.1" 200 1\n')
    report = find_missing_addresses(site.job, site.state, [str(tmp_path / "post.log")], limit=9)
    assert (report.requests, report.other_requests) == (0, 1)


def test_a_list_that_a_run_takes(origin: Origin, tmp_path: Path) -> None:
    """The list has what is in no list, byte for byte, mode 0600; a run of it copies that, and then none is missing."""
    site = Site(tmp_path, origin, ["/1.jpg"])
    more = ["/2.jpg?sig=a,b", '/%C3%BC"x".jpg', "/=1.jpg"]
    for n, path in enumerate(more):
        origin.add(path, make_image("jpeg", 50 + n, 40, 30))
    report = site.missing("/1.jpg", *more, more[0], "/robots.txt", as_list=tmp_path / "more.csv")
    assert (report.list_rows, report.list_file) == (3, str(tmp_path / "more.csv"))
    assert (tmp_path / "more.csv").stat().st_mode & 0o777 == 0o600
    rows = list(csv.DictReader((tmp_path / "more.csv").read_text().splitlines()))
    assert [row["url"] for row in rows] == [origin.url(more[0]), *sorted(map(origin.url, more[1:]))]
    assert "sig=a" not in str(report.first)
    site.job = site.job.model_copy(update={"manifest": str(tmp_path / "more.csv")})
    site.state = DirectoryState(tmp_path / "state2")
    run(site.job, site.state, Access())
    assert site.whats(*more) == {}


def test_a_list_that_cannot_be_written(origin: Origin, tmp_path: Path) -> None:
    """Two hosts and a log without hosts, or a file that exists: a sentence, and nothing is written."""
    site = Site(tmp_path, origin, ["/1.jpg"])
    write_list(tmp_path / "list.csv", [[origin.url("/1.jpg")], ["https://img.example/2.jpg"]])
    plan(site.job, site.state, 2)
    with pytest.raises(UserError, match="Name it with --host"):
        site.missing("/3.jpg", as_list=tmp_path / "more.csv")
    assert not (tmp_path / "more.csv").exists()
    given = {"as_list": tmp_path / "more.csv", "host": None}
    log = [str(tmp_path / "access.log")]
    find_missing_addresses(site.job, site.state, log, limit=5, **{**given, "host": "IMG.example"})  # type: ignore[arg-type]
    assert (tmp_path / "more.csv").read_text().splitlines() == ["url", "https://img.example/3.jpg"]
    with pytest.raises(UserError, match="Name a file that does not exist yet"):
        site.missing("/3.jpg", host="img.example", as_list=tmp_path / "more.csv")
    assert not list(tmp_path.glob(".ferry-list-*"))
    assert site.missing("/robots.txt", as_list=tmp_path / "none.csv").list_file is None
    assert not (tmp_path / "none.csv").exists()


def test_what_has_no_answer(origin: Origin, tmp_path: Path) -> None:
    """A job that never ran, logs without a line, and a list without web addresses."""
    site = Site(tmp_path, origin, ["/1.jpg"])
    with pytest.raises(UserError, match="no line at all"):
        site.missing()
    with pytest.raises(UserError, match="nothing is planned yet"):
        find_missing_addresses(site.job, DirectoryState(tmp_path / "new"), [], limit=1)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "1.jpg").write_bytes(make_image("jpeg", 1))
    job = make_job(manifest=f"file://{tmp_path}/files/", destination=f"file://{tmp_path}/out2/")
    run(job, state := DirectoryState(tmp_path / "listed"), Access())
    with pytest.raises(UserError, match=r"Set source\.public_url"):
        find_missing_addresses(job, state, [str(tmp_path / "access.log")], limit=1)


def test_more_addresses_than_fit_into_memory(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of one address add up over batches and files."""
    monkeypatch.setattr("ferry.cutover.missing.BATCH_ADDRESSES", 3)
    site = Site(tmp_path, origin, ["/1.jpg"])
    site.missing(*(f"/{n % 7}.jpg" for n in range(70)))
    log = str(tmp_path / "access.log")
    report = find_missing_addresses(site.job, site.state, [log, log], limit=50)
    assert (report.requests, report.addresses, {line["requests"] for line in report.first}) == (140, 7, {20})


@pytest.mark.slow
def test_a_million_lines(origin: Origin, tmp_path: Path) -> None:
    """A log of a million lines, with more addresses than are counted in memory at once, is counted exactly."""
    site = Site(tmp_path, origin, ["/1.jpg"])
    with (tmp_path / "big.log").open("w") as file:
        for n in range(1_000_000):
            file.write(f'1.2.3.4 - - {TIME} "GET /p/{n % 300_000}.jpg HTTP/1.1" 200 1 "-" "Mozilla/5.0"\n')
    report = find_missing_addresses(site.job, site.state, [str(tmp_path / "big.log")], limit=1)
    assert (report.addresses, report.groups[0].requests) == (300_000, 1_000_000)
