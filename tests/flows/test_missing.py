"""`ferry missing` on logs that a real nginx wrote: the reasons, the list for the next run, and that run."""

from __future__ import annotations

import csv
import gzip
import time
from pathlib import Path

import pytest

from demo.images import make_image
from demo.origin import Origin
from ferry.cutover.access_log import LogLines
from tests.flows.project import Project, serve
from tests.support.logging_nginx import FORMATS, LoggingNginx
from tests.support.proxies import find, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find("nginx") is None, reason=missing("nginx")),
]
TARGETS = [b"/a%20b.jpg", b'/q"uote\\.jpg', b"/\xc3\xbc.jpg", b"/1.jpg?v=1&s=%2F", b"/%C3%BC.jpg", b"/none.jpg"]


def test_what_a_real_nginx_writes(tmp_path: Path) -> None:
    """All formats give the same requests, odd bytes included; lines without a request do not count as bad."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "1.jpg").write_bytes(make_image("jpeg", 1))
    with LoggingNginx(tmp_path / "nginx", tmp_path / "root") as nginx:
        for target in TARGETS:
            nginx.get(target)
        nginx.get(b"/1.jpg", b"HEAD")
        nginx.get(b"/1.jpg", b"POST")
        nginx.get(b"/1.jpg", host=b'evil"\x07\xff')
        nginx.ask(b"GET /old.jpg\r\n")  # HTTP/0.9
        nginx.ask(b"\x16\x03\x01\x02\x00\x01\x00\xff\r\n\r\n")  # TLS to a port without it
        nginx.ask(b"GET /" + b"x" * 50_000 + b" HTTP/1.1\r\n\r\n")
        time.sleep(0.2)
    found = {}
    for name in FORMATS:
        log = LogLines(str(nginx.log(name)))
        found[name] = [(request.method, request.target, request.status) for request in log.requests()]
        assert log.bad <= 3, nginx.log(name).read_text()
    wanted = ["/a%20b.jpg", '/q"uote\\.jpg', "/%C3%BC.jpg", "/1.jpg?v=1&s=%2F", "/%C3%BC.jpg", "/none.jpg"]
    for name, requests in found.items():
        assert [target for _, target, _ in requests[:6]] == wanted, name
        assert ("HEAD", "/1.jpg", 200) in requests, name
        assert ("GET", "/old.jpg", 404) in requests, name
    hosts = [request.host for request in LogLines(str(nginx.log("vhost"))).requests()]
    assert hosts[:6] == ["img.example"] * 6


def test_the_command(project: Project, origin: Origin, tmp_path: Path) -> None:
    """Groups and addresses, redacted; a list of what no list has, which a run copies; then nothing is missing."""
    rows, _ = serve(origin, 4)
    project.manifest(rows[:3])
    project.ferry("run", "job.yaml").expect(0)
    project.manifest([*rows[:3], {"sku": "new", "url": origin.url("/images/new.jpg")}])
    project.ferry("plan", "job.yaml").expect(0)
    (tmp_path / "root").mkdir()
    extra = origin.add("/images/extra.jpg?sig=SECRET", make_image("jpeg", 99))
    with LoggingNginx(tmp_path / "nginx", tmp_path / "root") as nginx:
        for target in [b"/images/p0000.jpg"] * 3 + [
            b"/images/p0003.jpg",
            b"/images/extra.jpg?sig=SECRET",
            b"/robots.txt",
        ]:
            nginx.get(target)
        time.sleep(0.2)
    # nginx had none of these files; the old origin of a user does
    text = nginx.log("combined").read_text().replace('" 404 ', '" 200 ')
    (tmp_path / "access.log").write_text(text)
    (tmp_path / "access.log.1.gz").write_bytes(gzip.compress(text.encode()))
    logs = ["access.log", "access.log.1.gz"]
    ended = project.ferry("missing", "job.yaml", *logs, "--as-list", "more.csv").expect(0)
    assert "12 requests for 4 addresses; with a copy: 1 (6 requests)" in ended.stdout
    assert "in no list; write them to a list with --as-list, and run that" in ended.stdout
    assert "SECRET" not in ended.text
    listed = list(csv.DictReader((tmp_path / "more.csv").read_text().splitlines()))
    assert [row["url"] for row in listed] == [extra, origin.url("/images/p0003.jpg")]
    document = project.ferry("missing", "job.yaml", *logs, "--json", "--limit", "1").expect(0).json
    assert [(group["what"], group["addresses"]) for group in document["groups"]] == [("unlisted", 2), ("other", 1)]
    assert len(document["first"]) == 1
    project.job(name=f"{project.name}-more", manifest="more.csv")
    project.ferry("run", "job.yaml").expect(0)
    assert {"images/extra.jpg", "images/p0003.jpg"} <= project.stored_keys()
    project.job()
    project.manifest([*rows, {"sku": "extra", "url": extra}])
    project.ferry("run", "job.yaml").expect(0)
    said = project.ferry("missing", "job.yaml", *logs).expect(0).stdout
    assert "every address of an object that visitors asked for has a copy" in said


def test_what_is_refused(project: Project, origin: Origin, tmp_path: Path) -> None:
    """Another file than a log, a file that exists, a missing log, a wrong status: a sentence, and nothing written."""
    rows, _ = serve(origin, 1)
    project.manifest(rows)
    (tmp_path / "log").write_text('1.2.3.4 - - [01/Dec/2026:10:00:00 +0000] "GET /x.jpg HTTP/1.1" 200 1\n')
    for arguments, words in (
        (["log"], "nothing is planned yet"),
        ([], "name at least one access log"),
        (["log", "--status", "OK"], "`OK` is not a status code"),
        (["log", "--as-list", "products.csv"], "name a .csv file that does not exist yet"),
        (["log", "--as-list", "more.txt"], "name a .csv file that does not exist yet"),
    ):
        assert words in project.ferry("missing", "job.yaml", *arguments).expect(2).stderr
    project.ferry("run", "job.yaml").expect(0)
    both = project.ferry("missing", "job.yaml", "log", "job.yaml", "--as-list", "more.csv")
    assert "is not an access log" in both.expect(2).stderr
    assert "cannot be read" in project.ferry("missing", "job.yaml", "none.log").expect(2).stderr
    assert "no line at all" in project.ferry("missing", "job.yaml", "-").expect(2).stderr
    assert not list(tmp_path.glob("more*"))
