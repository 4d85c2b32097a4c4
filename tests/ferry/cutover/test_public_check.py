"""The check of public addresses against a server that stands for a CDN, in front of copies that a real run made."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Fault, Origin, Trouble
from ferry.core import Progress, UserError
from ferry.cutover import PublicReport, check_public, public_site
from ferry.http import Network
from ferry.job import Job
from ferry.state import append_outcomes
from ferry.state.files import DirectoryState
from ferry.storage.access import Access
from tasks.run import clean_spool
from tests.support.helpers import QUICK, by_key, make_job, plan, run, write_list

CACHING = "public, max-age=60"


@pytest.fixture
def cdn() -> Iterator[Origin]:
    with Origin() as server:
        yield server


class Shop:
    """Images that were copied to a directory; a CDN serves them."""

    def __init__(self, folder: Path, origin: Origin, cdn: Origin, paths: list[str], **given: Any) -> None:
        self.cdn, self.bodies = cdn, {path: make_image("jpeg", n, 40, 30) for n, path in enumerate(paths)}
        write_list(folder / "list.csv", [[origin.add(path, body)] for path, body in self.bodies.items()])
        self.job: Job = make_job(
            **{
                "manifest": str(folder / "list.csv"),
                "destination": {"uri": f"file://{folder}/out/"},
                "public_url": f"{cdn.base_url}/{{key}}",
                "source": {"allow_private_addresses": [f"127.0.0.1:{origin.port}"]},
                **given,
            }
        )
        self.state = DirectoryState(folder / "state")
        run(self.job, self.state, Access())
        for path, body in self.bodies.items():
            cdn.add(path, body)

    def check(self, **given: Any) -> PublicReport:
        return check_public(self.job, self.state, Network(), Progress(), **given)

    def rows(self, report: PublicReport) -> list[dict[str, str]]:
        assert report.rows_file is not None
        return list(csv.DictReader(self.state.read(report.rows_file).decode().splitlines()))


def numbered(count: int) -> list[str]:
    return [f"/{n}.jpg" for n in range(count)]


def test_right_addresses(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """All is right: each address is asked once, by its bytes, and the state has the result. No secret is sent."""
    paths = ["/a%20b.jpg", "/a%2Bb.jpg", "/%C3%BC/%25.jpg", *numbered(60)]
    secret = {"X-Key": "env:NOT_SET", "Accept": "image/avif", "Referer": "https://old.example/"}
    source = {
        "allow_private_addresses": [f"127.0.0.1:{origin.port}"], "headers": secret, "headers_for": ["img.old.example"],
    }  # fmt: skip
    shop = Shop(tmp_path, origin, cdn, paths, source=source)
    report = shop.check()
    assert (report.checked, report.right, report.differ, report.rows_file) == (63, 63, 0, None)
    assert report.message == "all 63 public addresses give what the ledger says"
    assert set(cdn.requests) == set(paths)
    headers = cdn.last_headers["/1.jpg"]
    assert (headers["accept"], headers["accept-encoding"]) == ("*/*", "identity")
    assert not {"x-key", "authorization", "referer"} & headers.keys()
    (name,) = shop.state.list("reports/public")
    assert json.loads(shop.state.read(name))["right"] == 63
    assert not list(shop.state.spool_dir.glob("ferry-public-*"))


def test_what_differs_is_a_row(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """Each kind of difference is a line of the file, with the key, the address, both sides, and how."""
    shop = Shop(tmp_path, origin, cdn, numbered(12))
    caching = shop.job.destination.model_copy(update={"cache_control": CACHING})  # a directory cannot hold it
    shop.job = shop.job.model_copy(update={"destination": caching})
    for path, body in shop.bodies.items():
        cdn.add(path, body, more={"Cache-Control": CACHING})
    kept = {"Cache-Control": CACHING}
    cdn.remove("/0.jpg")
    cdn.add("/1.jpg", b"", fault=Trouble.FORBIDDEN)
    cdn.add("/2.jpg", b"", fault=Trouble.SERVER_ERROR)
    cdn.add("/3.jpg", make_image("webp", 1), "image/webp", more=kept)
    cdn.add("/4.jpg", shop.bodies["/4.jpg"], "text/plain", more=kept)
    cdn.add("/5.jpg", shop.bodies["/5.jpg"], more={"Cache-Control": "max-age=5"})
    cdn.add("/6.jpg", shop.bodies["/6.jpg"], fault=Trouble.RESET)
    cdn.add("/7.jpg", shop.bodies["/7.jpg"], fault=Trouble.REDIRECT_LOOP)
    cdn.add("/8.jpg", b"<!doctype html><title>Sign in</title>", more=kept)
    report = shop.check()
    assert (report.checked, report.right, report.differ) == (12, 3, 9)
    assert [row for row in shop.rows(report) if row["key"] == "3.jpg"] == [
        {
            "id": "", "key": "3.jpg", "public_url": f"{cdn.base_url}/3.jpg", "what": "other bytes",
            "how": "a WebP image where the ledger has a JPEG image",
            "expected": _figures(shop.bodies["/3.jpg"]), "found": _figures(make_image("webp", 1)),
        }
    ]  # fmt: skip
    assert {row["key"]: (row["what"], row["how"]) for row in shop.rows(report)} == {
        "0.jpg": ("not there", "404"),
        "1.jpg": ("forbidden", "403"),
        "2.jpg": ("other status", "500"),
        "3.jpg": ("other bytes", "a WebP image where the ledger has a JPEG image"),
        "4.jpg": ("other type", "text/plain for image/jpeg"),
        "5.jpg": ("other caching", "lacks public; max-age=5 for max-age=60"),
        "6.jpg": ("not answered", "connection failed"),
        "7.jpg": ("other status", "a redirect that leads nowhere"),
        "8.jpg": ("other bytes", "an HTML page where the ledger has a JPEG image"),
    }
    assert report.message.startswith("9 of 12 public addresses give something else than the ledger says: ")
    assert report.rows_file is not None
    assert (shop.state.root / report.rows_file).stat().st_mode & 0o777 == 0o600
    assert shop.state.list("outcomes") == [], "the ledger stays as it is"


def _figures(body: bytes) -> str:
    return f"{len(body)} bytes {hashlib.sha256(body).hexdigest()}"


def test_an_image_optimiser(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """A CDN that converts all images: one group, and a sentence about it."""
    shop = Shop(tmp_path, origin, cdn, numbered(6))
    for path in numbered(5):
        cdn.add(path, make_image("webp", 7), "image/webp")
    report = shop.check()
    assert [(group.rows, group.how) for group in report.groups] == [
        (5, "a WebP image where the ledger has a JPEG image")
    ]
    assert len(report.groups[0].examples) == 3
    assert report.advice.startswith("5 of 6: a WebP image where the ledger has a JPEG image.")


def test_answers_that_are_right_in_the_end(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """Redirects are followed, 429 and 500 are tried again, encoded and slow bodies are read to their end."""
    shop = Shop(tmp_path, origin, cdn, numbered(6), retries={**QUICK, "attempts": 3})
    faults: tuple[Fault | Trouble, ...] = (
        Trouble.REDIRECT, Fault(Trouble.RATE_LIMITED, seconds=1), Trouble.FLAKY, Trouble.GZIP,
        Fault(Trouble.SLOW, seconds=0.2), Trouble.CHUNKED,
    )  # fmt: skip
    for (path, body), fault in zip(shop.bodies.items(), faults, strict=True):
        cdn.add(path, body, fault=fault)
    report = shop.check()
    assert (report.right, report.differ, report.redirected) == (6, 0, 1), report.groups
    assert (cdn.requests["/1.jpg"], cdn.requests["/2.jpg"]) == (2, 3)
    assert report.message.endswith("Answers that came after a redirect: 1")


def test_retry_after_longer_than_a_wait(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """A host that asks for an hour is left alone: the addresses are rows, and the host gets no more requests."""
    shop = Shop(tmp_path, origin, cdn, numbered(60))
    cdn.trouble = Fault(Trouble.RATE_LIMITED, seconds=3600)
    report = shop.check()
    assert report.differ == report.checked
    assert cdn.total <= 32, "only what was under way when the first answer came"


def test_a_site_that_does_not_answer(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """After 50 addresses in a row the check ends, keeps the rows so far, and says so."""
    shop = Shop(tmp_path, origin, cdn, numbered(200))
    cdn.down()
    report = shop.check()
    assert 50 <= report.checked < 200
    assert "The check ended early: 50 addresses in a row did not answer" in report.message
    assert len(shop.rows(report)) == report.differ == report.checked
    assert not report.proven


def test_a_site_that_answers_now_and_then(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """Addresses without an answer end the check only if they are in a row."""
    shop = Shop(tmp_path, origin, cdn, numbered(120), retries={"attempts": 1})
    for n in range(0, 120, 2):
        cdn.add(f"/{n}.jpg", b"", fault=Trouble.RESET)
    report = shop.check()
    assert (report.checked, report.differ, report.ended_early) == (120, 60, "")


def test_a_redirect_to_a_private_address_is_not_followed(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """public_url is the user's own; where it redirects to is not."""
    shop = Shop(tmp_path, origin, cdn, numbered(1))
    cdn.add("/0.jpg", b"", fault=Fault(Trouble.REDIRECT, target="http://127.0.0.2:8080/0.jpg"))
    (row,) = shop.rows(shop.check())
    assert (row["what"], row["how"]) == ("not answered", "private address, not allowed")


def test_a_large_body_is_not_kept(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """A body far larger than the limit is not read to its end, and lies in no file."""
    shop = Shop(tmp_path, origin, cdn, numbered(1))
    shop.job = shop.job.model_copy(update={"max_bytes": 100_000})
    cdn.add("/0.jpg", b"x", fault=Trouble.ENDLESS)
    (row,) = shop.rows(shop.check())
    assert row["how"] == "a larger body than max_bytes"


def test_a_sample(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """The same seed draws the same addresses; the message has N of M and the seed."""
    shop = Shop(tmp_path, origin, cdn, numbered(20))
    report = shop.check(sample="20%")
    assert (report.checked, sum(cdn.requests.values())) == (4, 4)
    assert report.message.endswith(f"(4 of 20 addresses asked, a sample with the seed {report.seed})")
    first = set(cdn.requests)
    cdn.requests.clear()
    shop.check(sample=4, seed=report.seed)
    assert set(cdn.requests) == first


def test_pending_rows(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """With pending rows a whole check is refused; a sample takes the copies that exist, and says it."""
    shop = Shop(tmp_path, origin, cdn, numbered(2))
    write_list(tmp_path / "list.csv", [[origin.url(path)] for path in (*numbered(2), "/later.jpg")])
    plan(shop.job, shop.state, 2)
    with pytest.raises(UserError, match=r"rows are pending \(1\)"):
        shop.check()
    assert shop.state.list("reports/public") == []
    report = shop.check(sample="100%")
    assert report.proven
    assert report.message.endswith("Pending rows, which have no copy yet: 1")


def test_a_copy_without_an_address(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """A row without the value that public_url names is a row that differs, and nothing is asked."""
    shop = Shop(tmp_path, origin, cdn, ["/1.jpg", "/=1.jpg"], public_url=f"{cdn.base_url}/x/{{id}}")
    report = shop.check()
    assert {row["key"] for row in shop.rows(report)} == {"1.jpg", "'=1.jpg"}, "no cell is a formula"
    assert [(group.what, group.rows) for group in report.groups] == [("no address", 2)]
    assert cdn.total == 0


def test_what_cannot_be_checked(origin: Origin, tmp_path: Path) -> None:
    """A job without public_url, and one that never ran."""
    write_list(tmp_path / "list.csv", [["https://img.example/1.jpg"]])
    job = make_job(manifest=str(tmp_path / "list.csv"), destination=f"file://{tmp_path}/out/")
    state = DirectoryState(tmp_path / "state")
    with pytest.raises(UserError, match="the job has no public_url"):
        check_public(job, state, Network(), Progress())
    job = job.model_copy(update={"public_url": f"{origin.base_url}/{{key}}"})
    with pytest.raises(UserError, match="nothing is planned yet"):
        check_public(job, state, Network(), Progress())
    assert state.list("reports") == []


def test_no_copies(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """A job whose rows all failed has nothing to check, which is not "all right"."""
    origin.trouble = Fault(Trouble.NOT_FOUND)
    shop = Shop(tmp_path, origin, cdn, numbered(2))
    with pytest.raises(UserError, match="no row has a copy yet"):
        shop.check()
    assert shop.state.list("reports/public") == []


def test_a_shared_address(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """Two keys with one address: nothing is asked and nothing is written."""
    shop = Shop(tmp_path, origin, cdn, ["/a/1.jpg", "/b/1.jpg"], public_url=f"{cdn.base_url}/{{key.name}}")
    with pytest.raises(UserError, match="public_url gives"):
        shop.check()
    assert (cdn.total, shop.state.list("reports/public")) == (0, [])


@pytest.mark.parametrize(
    ("public_url", "site"),
    [
        ("https://img.new.example/{key}", "img.new.example:443"),
        ("http://IMG.new.example:8080/{key}", "img.new.example:8080"),
        ("https://[::1]:8443/p/{key}", "[::1]:8443"),
    ],
)
def test_the_site_of_public_addresses(public_url: str, site: str) -> None:
    assert public_site(make_job(public_url=public_url)) == site


def test_a_run_leaves_the_folder_of_a_check(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """A check has no lease. A run that begins meanwhile deletes what killed processes left, not the check's files."""
    shop = Shop(tmp_path, origin, cdn, numbered(3))
    cdn.remove("/0.jpg")
    left = shop.state.spool_dir / "ferry-public-left"
    left.mkdir(parents=True)

    class Cleaned(Progress):
        def start(self, total: int) -> None:
            clean_spool(shop.state)
            super().start(total)

    report = check_public(shop.job, shop.state, Network(), Cleaned())
    assert [row["key"] for row in shop.rows(report)] == ["0.jpg"]
    assert not left.exists()


def test_copies_of_which_the_ledger_knows_little(origin: Origin, cdn: Origin, tmp_path: Path) -> None:
    """What was compared by size, and what by the status alone, is counted apart."""
    shop = Shop(tmp_path, origin, cdn, numbered(3))
    for key, size in (("0.jpg", None), ("1.jpg", len(shop.bodies["/1.jpg"]))):
        known = by_key(shop.state)[key]
        append_outcomes(shop.state, [known._replace(size=size, md5=None, sha256=None, run_no=2)], 2, "test", size or 0)
    report = shop.check()
    assert (report.right, report.by_size, report.by_status) == (3, 1, 1)
    assert "Compared by status and media type alone, since the ledger has no size: 1" in report.message
