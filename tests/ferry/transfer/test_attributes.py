"""Attributes on their way: from stores and origins, lost ones, and changes that a delta run sees."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin
from demo.s3 import S3Server
from demo.validators import Validators
from ferry.core.attributes import AttributeRules
from ferry.core.records import ErrorClass, Outcome, Status
from ferry.job.model import Job
from ferry.storage.access import S3Access
from ferry.storage.factory import open_store
from ferry.transfer.attributes import Carrier
from tests.support.helpers import access, by_key, counts_of, directory_state, make_job, make_row, run
from tests.support.nights import World

IMAGE = make_image("jpeg", 3)
EARLIER = "Thu, 01 Jan 2026 00:00:00 GMT"
LATER = "Fri, 02 Jan 2026 00:00:00 GMT"
GIVEN: dict[str, Any] = {
    "CacheControl": "max-age=60",
    "ContentLanguage": "de",
    "Metadata": {"sku": "A 1", "team": "shop"},
}


class Copies:
    """A bucket with objects below `old/`, and a job that copies them."""

    def __init__(self, s3: S3Server, bucket: str, folder: Path) -> None:
        self.s3, self.bucket, self.folder = s3, bucket, folder
        self.state, self.run_no = directory_state(folder), 0

    def put(self, name: str, body: bytes = IMAGE, **given: Any) -> None:
        self.s3.client().put_object(
            Bucket=self.bucket, Key=f"old/{name}", Body=body, **{"ContentType": "image/jpeg", **given}
        )

    def job(self, uri: str | None = None, *, destination: dict[str, Any] = {}, **given: Any) -> Job:
        uri = uri or f"s3://{self.bucket}/new/"
        server = {"endpoint_url": self.s3.endpoint_url} if uri.startswith("s3:") else {}
        return make_job(
            manifest=f"s3://{self.bucket}/old/", source={"endpoint_url": self.s3.endpoint_url},
            destination={"uri": uri, **server, **destination}, **given,
        )  # fmt: skip

    def run(self, uri: str | None = None, **given: Any) -> dict[str, Outcome]:
        self.run_no += 1
        run(self.job(uri, **given), self.state, access(self.s3), self.run_no)
        return by_key(self.state)

    def head(self, name: str) -> dict[str, Any]:
        found = self.s3.client().head_object(Bucket=self.bucket, Key=f"new/{name}")
        return {name: found[name] for name in ("CacheControl", "ContentLanguage", "Metadata") if found.get(name)}


@pytest.fixture
def copies(s3: S3Server, bucket: str, tmp_path: Path) -> Copies:
    return Copies(s3, bucket, tmp_path)


def test_what_a_job_keeps_sets_and_drops(copies: Copies) -> None:
    """From a bucket everything is kept by default, what `keep` names, or all but what `drop` names; `set` is last."""
    copies.put("a.jpg", **GIVEN)
    copies.run()
    assert copies.head("a.jpg") == GIVEN
    rules = {
        "drop": ["Content-Language", "metadata.sku"],
        "set": {"metadata.via": "ferry", "Cache-Control": "no-cache"},
    }
    other = Copies(copies.s3, copies.bucket, copies.folder / "second")
    other.run(destination={"attributes": rules}, on_existing="overwrite")
    assert other.head("a.jpg") == {"CacheControl": "no-cache", "Metadata": {"team": "shop", "via": "ferry"}}
    third = Copies(copies.s3, copies.bucket, copies.folder / "third")
    third.run(destination={"attributes": {"keep": ["metadata.sku", "Last-Modified"]}}, on_existing="overwrite")
    date = copies.s3.client().head_object(Bucket=copies.bucket, Key="old/a.jpg")["LastModified"]
    assert third.head("a.jpg") == {"Metadata": {"sku": "A 1", "mtime": f"{date.timestamp():.0f}"}}


def test_what_an_origin_gives(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """From a web server only what `keep` names, by default nothing; its date becomes the metadata `mtime`."""
    headers = {"Cache-Control": "max-age=5", "Content-Disposition": "inline", "Content-Language": "de"}
    origin.add("/a.jpg", IMAGE, more=headers, modified="Thu, 01 Jan 2026 00:00:00 GMT")
    expected: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"Metadata": {}}),
        ({"keep": ["Cache-Control", "Content-Disposition", "Last-Modified"]},
         {"CacheControl": "max-age=5", "ContentDisposition": "inline", "Metadata": {"mtime": "1767225600"}}),
        ({"keep": ["Content-Disposition"], "set": {"Cache-Control": "no-cache"}},
         {"CacheControl": "no-cache", "ContentDisposition": "inline", "Metadata": {}}),
    ]  # fmt: skip
    for n, (attributes, there) in enumerate(expected):
        world = World(origin, s3, bucket, tmp_path / str(n))
        world.bodies["a.jpg"] = IMAGE
        uri = {"uri": f"s3://{bucket}/{n}/", "endpoint_url": s3.endpoint_url, "attributes": attributes}
        assert world.night(destination=uri)["a.jpg"].attributes_sha256
        head = s3.client().head_object(Bucket=bucket, Key=f"{n}/a.jpg")
        assert {k: head[k] for k in ("CacheControl", "ContentDisposition", "Metadata") if k in head} == there
        assert head["ContentType"] == "image/jpeg"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sees_dates"),
    [
        (Validators.DATE, True),
        (Validators.WEAK_DATE, True),
        (Validators.SERVERS_DATE, True),  # each answer has another strong ETag
        (Validators.BOTH, False),  # the ETag says that nothing has changed, and the object is not read
    ],
)
def test_a_date_that_is_kept(
    kind: Validators, sees_dates: bool, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """A delta run writes an object with equal bytes once for each new date, and never for the same one."""
    uri = {"uri": f"s3://{bucket}/p/", "endpoint_url": s3.endpoint_url, "attributes": {"keep": ["Last-Modified"]}}
    world, ends = World(origin, s3, bucket, tmp_path), []
    for date in (EARLIER, EARLIER, LATER, LATER):
        world.put("a.jpg", 1, kind=kind, modified=date)
        ends.append(world.night(destination=uri)["a.jpg"].status)
    assert ends == ["copied", "unchanged", "copied" if sees_dates else "unchanged", "unchanged"]
    metadata = s3.client().head_object(Bucket=bucket, Key="p/a.jpg")["Metadata"]
    assert metadata == {"mtime": "1767312000" if sees_dates else "1767225600"}


def test_a_directory_loses_them_and_says_so(copies: Copies, tmp_path: Path) -> None:
    """A file has no attributes: each is counted by its name, and nothing that could be compared is recorded."""
    copies.put("a.jpg", **GIVEN)
    copies.put("b.jpg", CacheControl="no-cache")
    copies.put("c.jpg")
    found = copies.run((tmp_path / "files").as_uri() + "/")
    lost = {key: set(outcome.lost_attributes or ()) for key, outcome in found.items()}
    assert lost["a.jpg"] == {"Cache-Control", "Content-Language", "metadata.sku", "metadata.team"}
    assert (lost["b.jpg"], lost["c.jpg"]) == ({"Cache-Control"}, set())
    assert {outcome.attributes_sha256 for outcome in found.values()} == {None}
    counts = counts_of(copies.state)
    assert next(iter(counts.lost_attributes.items())) == ("Cache-Control", 2)
    assert counts.copied == 3


def test_a_row_fails_before_anything_is_written(copies: Copies, tmp_path: Path) -> None:
    """With on_lost_attribute: fail a row that would lose an attribute writes nothing; others are copied."""
    copies.put("a.jpg", CacheControl="no-cache")
    copies.put("b.jpg")
    uri = (tmp_path / "files").as_uri() + "/"
    found = copies.run(uri, on_lost_attribute="fail")
    assert found["a.jpg"].error_class is ErrorClass.LOST_ATTRIBUTE
    assert "does not keep Cache-Control of this object" in (found["a.jpg"].message or "")
    assert not found["a.jpg"].retryable
    assert [path.name for path in (tmp_path / "files").rglob("*.jpg")] == ["b.jpg"]
    found = copies.run(uri, on_lost_attribute="fail", destination={"attributes": {"drop": ["Cache-Control"]}})
    assert found["a.jpg"].status is Status.COPIED, "other rules plan the row again"


def test_an_equal_object_that_stays_is_no_loss(copies: Copies, tmp_path: Path) -> None:
    """What is there with the same bytes stays: nothing is written, and so nothing can be lost."""
    copies.put("a.jpg", CacheControl="no-cache")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jpg").write_bytes(IMAGE)
    found = copies.run((tmp_path / "files").as_uri() + "/", on_lost_attribute="fail")["a.jpg"]
    assert (found.status, found.lost_attributes, found.attributes_sha256) == (Status.UNCHANGED, None, None)


def test_a_delta_run_sees_changed_attributes(copies: Copies) -> None:
    """A store rewrites an object to change its headers, so the listing has another date; the copy follows."""
    copies.put("a.jpg", **GIVEN)
    copies.put("b.jpg", **GIVEN)
    first = copies.run(mode="delta")
    time.sleep(1.1)  # dates have seconds
    copies.put("a.jpg", **{**GIVEN, "CacheControl": "no-cache"})
    copies.put("b.jpg", **GIVEN)  # the same again
    second = copies.run(mode="delta")
    assert {key: outcome.status for key, outcome in second.items()} == {
        "a.jpg": Status.COPIED, "b.jpg": Status.UNCHANGED,
    }  # fmt: skip
    assert copies.head("a.jpg")["CacheControl"] == "no-cache"
    assert second["a.jpg"].attributes_sha256 != first["a.jpg"].attributes_sha256
    assert second["b.jpg"].attributes_sha256 == first["b.jpg"].attributes_sha256 is not None
    third = copies.run(mode="delta")
    assert {outcome.run_no for outcome in third.values()} == {2}, "nothing is left to do"


@pytest.mark.parametrize("again", [False, True], ids=["untouched", "written-again"])
def test_a_copy_whose_attributes_are_not_known(again: bool, copies: Copies) -> None:
    """The ledger has no digest of a copy by the server: if the source was written again, the copy is, too."""
    copies.put("a.jpg", **GIVEN)
    assert copies.run(mode="delta", checks="none")["a.jpg"].attributes_sha256 is None
    if again:
        time.sleep(1.1)
        copies.put("a.jpg", **{**GIVEN, "CacheControl": "no-cache"})
    found = copies.run(mode="delta", checks="none")["a.jpg"]
    assert (found.run_no, found.status) == (2 if again else 1, Status.COPIED)
    assert copies.head("a.jpg")["CacheControl"] == ("no-cache" if again else "max-age=60")


def test_a_file_has_no_attributes_to_follow(copies: Copies, tmp_path: Path) -> None:
    """An object that was written again with the same bytes leaves its copy in a directory as it is."""
    copies.put("a.jpg", **GIVEN)
    uri = (tmp_path / "files").as_uri() + "/"
    copies.run(uri, mode="delta")
    time.sleep(1.1)
    copies.put("a.jpg", **{**GIVEN, "CacheControl": "no-cache"})
    found = copies.run(uri, mode="delta")["a.jpg"]
    assert (found.run_no, found.status) == (2, Status.UNCHANGED)


def test_a_delta_run_sees_a_header_of_an_origin(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Equal bytes with another Cache-Control are written again where it is kept, and are unchanged where it is not."""
    runs = {}
    for name, keep in (("kept", ["Cache-Control"]), ("not", [])):
        world = World(origin, s3, bucket, tmp_path / name)
        world.put("a.jpg", 1, kind=Validators.DATE, more={"Cache-Control": "max-age=5"})
        uri = {"uri": f"s3://{bucket}/{name}/", "endpoint_url": s3.endpoint_url, "attributes": {"keep": keep}}
        world.night(destination=uri)
        world.put("a.jpg", 1, kind=Validators.DATE, modified=LATER, more={"Cache-Control": "max-age=6"})
        runs[name] = world.night(destination=uri)["a.jpg"].status
        assert s3.client().head_object(Bucket=bucket, Key=f"{name}/a.jpg").get("CacheControl") == (
            "max-age=6" if keep else None
        )
    assert runs == {"kept": Status.COPIED, "not": Status.UNCHANGED}


def test_a_failed_recheck_keeps_what_is_known(copies: Copies) -> None:
    """A row whose recheck failed still has the digest of its copy's attributes."""
    copies.put("a.jpg", **GIVEN)
    known = copies.run(mode="delta")["a.jpg"].attributes_sha256
    time.sleep(1.1)
    copies.put("a.jpg", body=b"no image")
    found = copies.run(mode="delta")["a.jpg"]
    assert (found.status, found.attributes_sha256) == (Status.FAILED, known)


@pytest.mark.parametrize(
    ("source", "rules", "known"),
    [
        ("https://a/x.jpg", {}, {"team": "shop"}),
        ("file:///a/x.jpg", {}, {"team": "shop"}),
        ("https://a/x.jpg", {"keep": frozenset({"Cache-Control"})}, None),
        ("https://a/x.jpg", {"keep": frozenset()}, {"team": "shop"}),
        ("s3://b/x.jpg", {}, None),
        ("GS://b/x.jpg", {}, None),
        ("az://account/b/x.jpg", {}, None),
    ],
)
def test_what_is_known_before_the_source_answers(
    source: str, rules: dict[str, Any], known: dict[str, str] | None, tmp_path: Path
) -> None:
    """An object of a bucket has attributes of its own, and an origin says in its response what the job keeps of it."""
    store = open_store("s3://b/", S3Access(anonymous=True), tmp_path)
    carrier = Carrier(AttributeRules(set={"team": "shop"}, **rules), "s3", store, fail=False)
    assert carrier.before_fetch(make_row(1, source=source)) == known
