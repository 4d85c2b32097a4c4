"""Dedupe on real servers: what it saves, and that every row gets the bytes and attributes that it gets without it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin, Trouble
from demo.s3 import S3Server
from ferry.core.errors import ChunkIncomplete
from ferry.core.progress import Progress
from ferry.core.records import Confirmed, ErrorClass, Outcome
from ferry.job.model import Job
from ferry.reconcile.finish import finish_run
from ferry.reconcile.verify import note_verified, read_back
from ferry.storage import open_store
from ferry.transfer import dedupe, server_copy
from ferry.transfer.chunk import run_chunk
from ferry.transfer.chunk_rows import read_chunk
from tests.ferry.images.test_check import body as body_of
from tests.servers.odd_s3 import Fault, OddS3, Stored
from tests.support import helpers
from tests.support.helpers import access, by_key, counts_of, directory_state, expected_objects, make_job, stored

pytestmark = pytest.mark.matrix

BODIES = [make_image("jpeg", n, 40, 30) for n in range(4)]
A, B = BODIES[:2]


def md5(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Shop:
    """An origin, a bucket and a list of its images; the job is deduped unless a test says otherwise."""

    def __init__(self, origin: Origin, server: OddS3, folder: Path) -> None:
        self.origin, self.server, self.folder = origin, server, folder
        server.make_bucket("bucket")
        self.state = directory_state(folder)
        self.run_no = 0
        self.given: dict[str, Any] = {}

    def list(self, *rows: tuple[str, bytes, str], column: str = "md5", **more: Sequence[str]) -> None:
        """Adds images by path, and writes a list of them with their digests, or what stands there for one."""
        lines = [
            [self.origin.add(path, body), digest, *(values[at] for values in more.values())]
            for at, (path, body, digest) in enumerate(rows)
        ]
        helpers.write_list(self.folder / "list.csv", lines, ("url", column, *more))

    def job(self, **given: Any) -> Job:
        return make_job(**{"manifest": str(self.folder / "list.csv"), "dedupe": True, **self.given, **given})

    def run(self, **given: Any) -> dict[str, Outcome]:
        """A run; the outcomes by key. ``given`` holds for later runs, too."""
        self.given.update(given)
        self.run_no += 1
        self.origin.total = 0
        self.server.requests.clear()
        helpers.run(self.job(), self.state, access(self.server), self.run_no)
        return by_key(self.state)

    @property
    def objects(self) -> dict[str, Stored]:
        return {key.removeprefix("p/"): found for key, found in self.server.objects["bucket"].items()}

    def holds(self, *bodies: tuple[str, bytes]) -> bool:
        """Whether the bucket has these objects and no others."""
        return {key: found.data for key, found in self.objects.items()} == dict(bodies)


@pytest.fixture
def server() -> Iterator[OddS3]:
    with OddS3() as running:
        yield running


@pytest.fixture
def shop(origin: Origin, server: OddS3, tmp_path: Path) -> Shop:
    return Shop(origin, server, tmp_path)


def digests(outcome: Outcome) -> tuple[int | None, str | None, str | None, str | None]:
    return outcome.size, outcome.md5, outcome.sha256, outcome.content_type


TWO = (("/1.jpg", A, md5(A)), ("/2.jpg", A, md5(A)))


@pytest.mark.parametrize("column", ["md5", "sha256"])
def test_equal_digests_in_the_list_spare_the_download(column: str, shop: Shop) -> None:
    """Rows with the digest of an earlier row of the list are copied by the server, attributes included."""
    digest = md5 if column == "md5" else sha256
    bodies = [(f"/{n}.jpg", BODIES[n % 3], digest(BODIES[n % 3])) for n in range(9)]
    shop.list(*bodies, column=column)
    destination = {"uri": "s3://bucket/p/", "cache_control": "max-age=9", "metadata": {"owner": "shop 7"}}
    outcomes = shop.run(destination=destination)
    assert shop.holds(*((f"{n}.jpg", BODIES[n % 3]) for n in range(9)))
    assert shop.origin.total == 3
    assert shop.server.requests["CopyObject"] == 6 + 1  # and the trial
    assert all(found.headers == shop.objects["0.jpg"].headers for found in shop.objects.values())
    for n in range(3, 9):
        copy, first = outcomes[f"{n}.jpg"], outcomes[f"{n % 3}.jpg"]
        assert (copy.status, copy.confirmed, copy.copy_of, copy.requests) == ("copied", "digest", first.key, 0)
        assert digests(copy) == digests(first)
        assert first.copy_of is None
    saved = sum(len(BODIES[n % 3]) for n in range(3, 9))
    assert counts_of(shop.state).deduped == {"rows": 6, "bytes": saved, "not_downloaded": saved}
    assert finish_run(shop.job(), shop.state, 1)["deduped"] == counts_of(shop.state).deduped
    assert finish_run(shop.job(), shop.state, 2)["deduped"] == {}


def test_rows_that_turn_out_equal_spare_the_upload(shop: Shop) -> None:
    """Without digests in the list each row is downloaded, and one of those with equal bytes is uploaded."""
    shop.list(*((f"/{n}.jpg", BODIES[n % 2], "") for n in range(10)))
    outcomes = shop.run()
    assert shop.holds(*((f"{n}.jpg", BODIES[n % 2]) for n in range(10)))
    assert shop.origin.total == 10
    assert shop.server.requests["PutObject"] == 2 + 1
    copies = [outcome for outcome in outcomes.values() if outcome.copy_of is not None]
    assert [(copy.requests, copy.confirmed, copy.status) for copy in copies] == [(1, "digest", "copied")] * 8
    assert all(sha256(shop.objects[copy.copy_of or ""].data) == copy.sha256 for copy in copies)
    assert counts_of(shop.state).deduped == {"rows": 8, "bytes": 4 * len(A) + 4 * len(B), "not_downloaded": 0}


def test_without_the_key_nothing_is_copied(shop: Shop) -> None:
    """`dedupe` is off by default: no trial, no copy, and nothing is counted."""
    shop.list(*TWO)
    shop.run(dedupe=False)
    assert shop.server.requests["CopyObject"] == 0
    assert shop.origin.total == 2
    assert counts_of(shop.state).deduped == {}


# --- keys that rows share


@pytest.mark.parametrize("policy", ["skip-same", "skip", "fail", "overwrite"])
def test_rows_share_a_key_made_from_their_digest(policy: str, shop: Shop) -> None:
    """Rows with one key, and by the list with one digest, share an object that is transferred once."""
    shop.list(*TWO, ("/3.jpg", B, md5(B)))
    outcomes = shop.run(key="{md5}.jpg", on_existing=policy)
    assert shop.holds((f"{md5(A)}.jpg", A), (f"{md5(B)}.jpg", B))
    assert (shop.origin.total, len(helpers.latest(shop.state))) == (2, 3)
    ends = sorted(
        (out.status, out.copy_of or "", out.requests, out.sha256) for out in helpers.latest(shop.state).values()
    )
    assert ends == sorted([("copied", "", 1, sha256(A)), ("copied", "", 1, sha256(B)),
                           ("unchanged", f"{md5(A)}.jpg", 0, sha256(A))])  # fmt: skip
    assert all(outcome.confirmed is Confirmed.DIGEST for outcome in outcomes.values())
    assert counts_of(shop.state).deduped["not_downloaded"] == len(A)
    assert helpers.run(shop.job(), shop.state, access(shop.server), 2).todo == {}


@pytest.mark.parametrize("second", [("/2.jpg", A, ""), ("/2.jpg", B, md5(B))])
def test_a_key_is_not_shared_without_equal_digests(second: tuple[str, bytes, str], shop: Shop) -> None:
    """Rows with one key collide as without `dedupe` if the list does not say that their bytes are equal."""
    others = [(f"/{n}.jpg", B, md5(B)) for n in range(10, 40)]
    shop.list(("/1.jpg", A, md5(A)), second, *others, name=["x", "x", *map(str, range(10, 40))])
    outcomes = shop.run(key="{name}.jpg")
    assert outcomes["x.jpg"].error_class is ErrorClass.KEY_COLLISION
    assert sum(out.error_class is ErrorClass.KEY_COLLISION for out in helpers.latest(shop.state).values()) == 2
    assert "x.jpg" not in shop.objects


@pytest.mark.parametrize("changed", [0, 1])
def test_rows_that_shared_a_key_and_differ_now(changed: int, shop: Shop) -> None:
    """When the list has another digest for one of them, the row that was stored keeps the key; the other collides."""
    fill = [(f"/{n}.jpg", B, md5(B)) for n in range(10, 40)]
    names = ["x", "x", *map(str, range(10, 40))]
    shop.list(*TWO, *fill, name=names)
    shop.run(key="{name}.jpg", concurrency=1)
    other = BODIES[3]
    rows = [(path, other, md5(other)) if at == changed else TWO[at] for at, (path, _, _) in enumerate(TWO)]
    shop.list(*rows, *fill, name=names)
    shop.run(mode="delta")
    ends = {out.source[-6:]: out for out in helpers.latest(shop.state).values() if out.key == "x.jpg"}
    assert [ends[name].status for name in ("/1.jpg", "/2.jpg")] == ["copied", "failed"]
    assert ends["/2.jpg"].error_class is ErrorClass.KEY_COLLISION
    assert sha256(shop.objects["x.jpg"].data) == ends["/1.jpg"].sha256 == sha256(rows[0][1])


@pytest.mark.parametrize("policy", ["skip-same", "skip", "fail", "overwrite"])
@pytest.mark.parametrize("key", ["{sha256}.{ext}", "{sha256}", "{name}-{ext}"])
@pytest.mark.parametrize("known", [False, True])
def test_keys_that_are_known_after_the_download(policy: str, key: str, known: bool, shop: Shop) -> None:
    """Equal bytes under a deferred key are stored once, under every policy."""
    shop.list(*((f"/{n}.jpg", A, md5(A) if known else "") for n in range(6)), name=["x"] * 6)
    if not known and "name" in key:
        return  # a key collision
    shop.run(key=key, on_existing=policy)
    assert [found.data for found in shop.objects.values()] == [A]
    assert shop.server.requests["PutObject"] == (1 if policy in ("skip", "fail") else 2)  # with the trial's
    assert shop.origin.total == (1 if known else 6)
    ends = [(out.status, out.copy_of, out.sha256) for out in helpers.latest(shop.state).values()]
    (name,) = shop.objects
    assert sorted(ends) == sorted([("copied", None, sha256(A)), *[("unchanged", name, sha256(A))] * 5], key=str)


def test_other_rows_fill_in_for_one_that_fails(shop: Shop) -> None:
    """If the first of the rows with one digest fails, the others are fetched, and each row has its own outcome."""
    shop.list(("/1.jpg", A, md5(A)), ("/2.jpg", A, md5(A)), ("/3.jpg", A, md5(A)), ("/4.jpg", B, md5(A)))
    shop.origin.add("/1.jpg", A, fault=Trouble.NOT_FOUND)
    outcomes = shop.run()
    assert outcomes["1.jpg"].error_class is ErrorClass.NOT_FOUND
    assert [outcomes[key].status for key in ("2.jpg", "3.jpg")] == ["copied", "copied"]
    assert all(found.data == A for found in shop.objects.values())
    assert outcomes["4.jpg"].status in ("copied", "failed")  # its source has other bytes than its digest says


# --- what a row must get


def test_another_type_is_no_equal_object(shop: Shop) -> None:
    """Rows whose types differ get their own, though their bytes are equal."""
    text = b"not an image"
    kinds = ["text/plain", "text/x-other", ""]
    shop.list(*((f"/{n}.txt", text, md5(text)) for n in range(3)), content_type=kinds)
    shop.run(checks="length")
    types = [shop.objects[f"{n}.txt"].headers["Content-Type"] for n in range(3)]
    assert types == ["text/plain", "text/x-other", "image/jpeg"]  # the last is the origin's
    shop.list(*((f"/{n}.txt", text, md5(text)) for n in range(9, 13)), content_type=["text/plain"] * 4)
    shop.run()
    assert shop.origin.total == 1  # 9.txt; the ledger does not say how the type of 0.txt was found
    assert {shop.objects[f"{n}.txt"].headers["Content-Type"] for n in range(9, 13)} == {"text/plain"}


def test_objects_of_a_bucket_keep_their_own_attributes(shop: Shop) -> None:
    """A listed object is downloaded, since no list says its attributes; a copy is made only of one with the same."""
    shop.server.make_bucket("old")
    for name, owner in (("a.jpg", "x"), ("b.jpg", "x"), ("c.jpg", "y"), ("d.jpg", "")):
        headers = {"Content-Type": "image/jpeg", **({"x-amz-meta-owner": owner} if owner else {})}
        shop.server.objects["old"][name] = Stored(A, md5(A), headers)
    outcomes = shop.run(manifest="s3://old/")
    assert {key: found.headers.get("x-amz-meta-owner") for key, found in shop.objects.items()} == {
        "a.jpg": "x", "b.jpg": "x", "c.jpg": "y", "d.jpg": None,
    }  # fmt: skip
    assert shop.server.requests["PutObject"] == 3 + 1
    assert [key for key, out in outcomes.items() if out.copy_of is not None] in (["a.jpg"], ["b.jpg"])


EXPIRES = {"attributes": {"set": {"Expires": "Fri, 02 Jan 2026 00:00:00 GMT"}}}


@pytest.mark.parametrize("at_once", [1, 8])
def test_what_the_store_forgets_is_lost_for_each_row(at_once: int, origin: Origin, tmp_path: Path) -> None:
    """A header that the store takes and forgets counts for every row, also for those that wait for the first."""
    with OddS3(delay_s=0.05) as server:
        shop = Shop(origin, server, tmp_path)
        server.forgets = {"expires"}
        shop.list(*((f"/{n}.jpg", A, "") for n in range(4)))
        outcomes = shop.run(destination={"uri": "s3://bucket/p/", **EXPIRES}, concurrency=at_once)
        assert shop.holds(*((f"{n}.jpg", A) for n in range(4)))
        assert [list(out.lost_attributes or ()) for out in outcomes.values()] == [["Expires"]] * 4
        assert len({out.attributes_sha256 for out in outcomes.values()}) == 1
        if at_once == 1:
            assert [out.copy_of for out in outcomes.values()].count(None) == 1


def test_rows_that_share_an_object_have_its_attributes(origin: Origin, tmp_path: Path) -> None:
    """What the ledger says of attributes, which `ferry verify` compares, is that of the object and not of each row."""
    with OddS3(delay_s=0.05) as server:
        shop = Shop(origin, server, tmp_path)
        server.forgets = {"expires"}
        text = b"not an image"
        shop.list(*((f"/{n}.txt", text, "") for n in range(2)), content_type=["text/plain", "text/x-other"])
        shop.run(destination={"uri": "s3://bucket/p/", **EXPIRES}, key="{sha256}", checks="length", concurrency=8)
        first, second = sorted(helpers.latest(shop.state).values(), key=lambda out: out.status)
        assert (first.status, second.status, second.copy_of) == ("copied", "unchanged", sha256(text))
        assert first.attributes_sha256 == second.attributes_sha256
        assert list(second.lost_attributes or ()) == list(first.lost_attributes or ()) == ["Expires"]


@pytest.mark.parametrize("policy", ["skip", "fail"])
def test_no_copy_where_a_key_must_be_free(policy: str, shop: Shop) -> None:
    """CopyObject does not ask whether the key is free. So `skip` and `fail` write the bytes, under their condition."""
    shop.list(*TWO, ("/3.jpg", A, md5(A)))
    shop.server.objects["bucket"]["p/3.jpg"] = Stored(B, md5(B), {})
    outcomes = shop.run(on_existing=policy)
    assert shop.server.requests["CopyObject"] == 0
    assert shop.objects["3.jpg"].data == B
    assert outcomes["3.jpg"].error_class is ErrorClass.EXISTS
    assert shop.objects["2.jpg"].data == A


@pytest.mark.parametrize("policy", ["skip-same", "overwrite"])
def test_an_existing_object_is_treated_as_without_dedupe(policy: str, shop: Shop) -> None:
    """An object under a row's key is kept if it is the same, and else replaced."""
    shop.list(*TWO, ("/3.jpg", A, md5(A)), ("/4.jpg", A, md5(A)))
    shop.server.objects["bucket"]["p/3.jpg"] = Stored(B, md5(B), {})
    shop.server.objects["bucket"]["p/4.jpg"] = Stored(A, md5(A), {})
    outcomes = shop.run(on_existing=policy)
    assert all(found.data == A for found in shop.objects.values())
    assert outcomes["4.jpg"].status == ("unchanged" if policy == "skip-same" else "copied")
    assert outcomes["3.jpg"].status == "copied"


@pytest.mark.parametrize("column", ["sha256", "md5"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("key", [None, "{name}.{ext}"])
def test_an_existing_object_that_is_the_same_is_kept(key: str | None, known: bool, column: str, shop: Shop) -> None:
    """Under `skip-same` an equal object stays as it is, with the attributes that it has, though another was stored."""
    digest = {"sha256": sha256, "md5": md5}[column]
    rows = [(f"/{n}.jpg", A, digest(A) if known else "") for n in range(3)]
    shop.list(*rows, column=column, name=["0", "1", "2"])
    shop.server.objects["bucket"]["p/2.jpg"] = Stored(A, md5(A), {"Content-Type": "image/x-old"})
    outcomes = shop.run(concurrency=1, key=key)
    assert outcomes["2.jpg"].status == "unchanged"
    assert shop.objects["2.jpg"].headers == {"Content-Type": "image/x-old"}


# --- objects of earlier runs, and objects that changed


def first_then_second(shop: Shop, **given: Any) -> dict[str, Outcome]:
    """Two runs: the second has one more row, with the digest of the first one's."""
    shop.list(*TWO[:1])
    shop.run(**given)
    shop.list(*TWO)
    return shop.run()


def test_objects_of_an_earlier_run_are_copied(shop: Shop) -> None:
    """A new row with the digest of a row that an earlier run has stored is not downloaded."""
    outcomes = first_then_second(shop)
    assert shop.origin.total == 0
    assert (outcomes["2.jpg"].copy_of, outcomes["2.jpg"].confirmed) == ("1.jpg", "digest")
    assert digests(outcomes["2.jpg"]) == digests(outcomes["1.jpg"])
    assert shop.holds(("1.jpg", A), ("2.jpg", A))
    assert shop.objects["2.jpg"].headers["Content-Type"] == "image/jpeg"


def test_a_copy_of_an_earlier_object_has_its_attributes(shop: Shop) -> None:
    """The ledger knows what each copy was written with: `ferry verify` and delta runs see a change of them alone."""
    outcomes = first_then_second(shop, destination={"uri": "s3://bucket/p/", "cache_control": "max-age=9"})
    assert outcomes["2.jpg"].copy_of == "1.jpg"
    assert outcomes["2.jpg"].attributes_sha256 == outcomes["1.jpg"].attributes_sha256 is not None
    shop.server.objects["bucket"]["p/2.jpg"].headers["Cache-Control"] = "no-store"
    verify(shop)
    assert {key: out.status for key, out in by_key(shop.state).items()} == {"1.jpg": "copied", "2.jpg": "pending"}


def test_a_lesser_check_is_said_of_copies_too(shop: Shop) -> None:
    """A format that Ferry checks by its length alone: each row's message says so, in one run and in the next."""
    jxl = body_of("jxl code stream")
    shop.list(("/1.jxl", jxl, md5(jxl)), ("/2.jxl", jxl, md5(jxl)))
    shop.run()
    shop.list(*((f"/{n}.jxl", jxl, md5(jxl)) for n in range(1, 4)))
    outcomes = shop.run()
    assert shop.origin.total == 0
    (message,) = {out.message for out in outcomes.values()}
    assert message
    assert counts_of(shop.state).lesser_checks == 3


def test_a_type_with_two_extensions(shop: Shop) -> None:
    """The ledger's type of an .ico is also that of a .cur: keys with `{ext}` wait for the bytes."""
    icon = body_of("ico")
    shop.list(("/1", icon, md5(icon)), name=["1"])
    shop.run(key="{name}.{ext}")
    shop.list(*((f"/{n}", icon, md5(icon)) for n in range(1, 4)), name=["1", "2", "3"])
    shop.run()
    assert shop.holds(*((f"{n}.ico", icon) for n in range(1, 4)))
    assert shop.origin.total == 1  # 2; then 3 is copied


def test_rechecked_rows_are_not_copied_before_the_trial(shop: Shop) -> None:
    """A delta run that only rechecks rows has made no trial: it uploads what changed."""
    shop.list(*(("/1.jpg", A, ""), ("/2.jpg", A, "")))
    shop.run(dedupe=False)
    shop.list(*(("/1.jpg", B, ""), ("/2.jpg", B, "")))
    outcomes = shop.run(mode="delta", dedupe=True)
    assert shop.holds(("1.jpg", B), ("2.jpg", B))
    assert shop.server.requests["CopyObject"] == 0
    assert {out.sha256 for out in outcomes.values()} == {sha256(B)}


def test_an_object_that_was_there_before_is_not_copied(shop: Shop) -> None:
    """Ferry does not know the attributes of an object that it found and kept."""
    shop.server.objects["bucket"]["p/1.jpg"] = Stored(A, md5(A), {"Content-Type": "image/x-old"})
    shop.list(("/1.jpg", A, ""))
    assert shop.run()["1.jpg"].status == "unchanged"
    shop.list(("/1.jpg", A, ""), ("/2.jpg", A, md5(A)))
    assert shop.run()["2.jpg"].requests == 1
    assert shop.objects["2.jpg"].headers["Content-Type"] == "image/jpeg"


def test_an_md5_that_two_bodies_of_the_ledger_have(shop: Shop) -> None:
    """A forged MD5 names no object of an earlier run; a SHA-256 does."""
    shop.list(("/1.jpg", A, ""), ("/2.jpg", B, ""))
    job = shop.job(chunk_rows=1)
    for ref, body in zip(helpers.plan(job, shop.state, server=access(shop.server)).chunks, (A, B), strict=True):
        given: dict[str, Any] = {"sha256": sha256(body), "confirmed": Confirmed.DIGEST, "content_type": "image/jpeg"}
        helpers.settle(shop.state, ref, 1, md5=md5(A), dest_etag="x", settings_digest=job.settings_digest(), **given)
    shop.list(("/1.jpg", A, ""), ("/2.jpg", B, ""), ("/3.jpg", A, md5(A)))
    planned = helpers.plan(job, shop.state, 2, server=access(shop.server))
    (new,) = [ref for ref in planned.chunks if ref.run_no == 2]
    assert read_chunk(shop.state, new)[1].in_ledger == {}
    shop.list(("/1.jpg", A, ""), ("/2.jpg", B, ""), ("/4.jpg", A, sha256(B)), column="sha256")
    (new,) = [ref for ref in helpers.plan(job, shop.state, 3, server=access(shop.server)).chunks if ref.run_no == 3]
    assert [found.key for found in read_chunk(shop.state, new)[1].in_ledger.values()] == ["2.jpg"]


@pytest.mark.parametrize("changed", ["checks", "max_bytes", "source", "pending"])
def test_what_is_not_known_of_an_earlier_object(changed: str, shop: Shop) -> None:
    """An object that other settings wrote, that came from a bucket, or whose key is found wrong is not copied."""
    shop.list(*TWO[:1])
    if changed == "source":
        shop.server.make_bucket("old")
        shop.server.objects["old"]["1.jpg"] = Stored(A, md5(A), {"Content-Type": "image/jpeg", "x-amz-meta-a": "b"})
        helpers.write_list(shop.folder / "list.csv", [["s3://old/1.jpg", md5(A)]], ("url", "md5"))
    shop.run(source={"allow_private_addresses": ["127.0.0.1"], "roots": ["s3://old/"]},
             checks="length" if changed == "checks" else "image")  # fmt: skip
    shop.list(*TWO)
    if changed == "pending":
        del shop.server.objects["bucket"]["p/1.jpg"]
        verify(shop)
    given = {"max_bytes": {"max_bytes": 10**6}}.get(changed, {})
    outcomes = shop.run(**given)
    assert outcomes["2.jpg"].requests == 1
    assert shop.objects["2.jpg"].data == A
    assert "x-amz-meta-a" not in shop.objects["2.jpg"].headers


@pytest.mark.parametrize(
    ("known", "counts"),
    [
        ({}, True),
        ({"address": "https://other.example/1.jpg"}, True),
        ({"address": "s3://old/1.jpg"}, False),
        ({"address": "gs://old/1.jpg"}, False),
        ({"address": "AZ://account/old/1.jpg"}, False),
        ({"lost_attributes": ("Expires",)}, False),
    ],
)
def test_an_object_of_the_ledger_with_other_attributes(known: dict[str, Any], counts: bool, shop: Shop) -> None:
    """An object from a bucket may have attributes of its own, and one that lost some has not all that a job sets."""
    shop.list(*TWO[:1])
    job = shop.job()
    (ref,) = helpers.plan(job, shop.state, server=access(shop.server)).chunks
    given: dict[str, Any] = {"sha256": sha256(A), "confirmed": Confirmed.DIGEST, "content_type": "image/jpeg", **known}
    helpers.settle(shop.state, ref, 1, md5=md5(A), dest_etag="x", settings_digest=job.settings_digest(), **given)
    shop.list(*TWO)
    (new,) = [each for each in helpers.plan(job, shop.state, 2, server=access(shop.server)).chunks if each.run_no == 2]
    assert bool(read_chunk(shop.state, new)[1].in_ledger) is counts


@pytest.mark.parametrize("etags", ["md5", "opaque", "kms", "none"])
@pytest.mark.parametrize("conditions", ["kept", "ignored"])
@pytest.mark.parametrize("key", [None, "{md5}.jpg"])
def test_an_object_that_changed_is_never_taken(
    etags: Any, conditions: Any, key: str | None, origin: Origin, tmp_path: Path
) -> None:
    """An object that another program replaced, with as many bytes, is neither copied nor shared for another row."""
    with OddS3(etags=etags, conditions=conditions) as server:
        shop = Shop(origin, server, tmp_path)
        shop.list(*TWO[:1])
        (first,) = shop.run(key=key)
        other = B[: len(A)].ljust(len(A), b"x")
        server.objects["bucket"][f"p/{first}"] = Stored(other, server._etag(other), {})
        shop.list(*TWO)
        shop.run(on_existing="overwrite" if key else "skip-same")
        second = next(out for out in helpers.latest(shop.state).values() if out.source.endswith("/2.jpg"))
        assert second.status == "copied"
        assert shop.objects[second.key].data == A


@pytest.mark.parametrize("key", [None, "{sha256}.jpg"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("policy", ["skip-same", "overwrite"])
def test_an_object_that_changes_during_the_run(policy: str, known: bool, key: str | None, shop: Shop) -> None:
    """Another program replaces the first object right after its upload: the next row with its bytes notices."""
    original = shop.server._put
    struck: list[str] = []

    def put(objects: Any, key: str, headers: Any, body: bytes) -> Any:
        answer = original(objects, key, headers, body)
        if not struck and "trial" not in key:
            struck.append(key.removeprefix("p/"))
            objects[key] = Stored(B, md5(B), {})
        return answer

    shop.server._put = put  # type: ignore[method-assign]
    shop.list(*((f"/{n}.jpg", A, md5(A) if known else "") for n in range(3)))
    outcomes = shop.run(key=key, on_existing=policy, concurrency=1)
    assert all(found.data == A for name, found in shop.objects.items() if key or name not in struck)
    assert {out.sha256 for out in outcomes.values()} == {sha256(A)}


def verify(shop: Shop, row_id: str = "") -> None:
    """`ferry verify` of all objects, or of one row's; what it finds wrong is pending then."""

    async def work() -> None:
        store = open_store("s3://bucket/p/", access(shop.server), shop.state.spool_dir)
        expected = [outcome for outcome in expected_objects(shop.state) if row_id in ("", outcome.row_id)]
        found = await read_back(store, expected, shop.run_no, Progress())
        await store.close()
        note_verified(shop.state, found, shop.run_no, 0)

    shop.run_no += 1
    asyncio.run(work())


def test_a_repair_takes_nothing_from_the_destination(shop: Shop) -> None:
    """Where a bad disk altered both objects under their ETags, a repair of one does not copy the other."""
    shop.list(*TWO)
    outcomes = shop.run()
    for name in ("p/1.jpg", "p/2.jpg"):
        shop.server.objects["bucket"][name].data = B[: len(A)].ljust(len(A), b"x")
    shop.server._etag = lambda data: md5(A)  # type: ignore[method-assign]
    verify(shop, outcomes["2.jpg"].row_id)
    assert by_key(shop.state)["1.jpg"].status == "copied"
    assert by_key(shop.state)["2.jpg"].error_class is ErrorClass.ALTERED
    outcomes = shop.run()
    assert (shop.objects["2.jpg"].data, outcomes["2.jpg"].requests) == (A, 1)


@pytest.mark.parametrize("key", [None, "{md5}.jpg", "{sha256}.jpg"])
def test_a_repair_is_always_transferred(key: str | None, shop: Shop) -> None:
    """An object with other bytes under the same ETag, as a bad disk leaves it, is replaced by the source's bytes."""
    shop.list(*TWO, ("/3.jpg", A, md5(A)))
    shop.run(key=key)
    bad = shop.server.objects["bucket"]
    for name in list(bad):
        bad[name].data = B[: len(A)].ljust(len(A), b"x")
    verify(shop)
    assert {out.error_class for out in helpers.latest(shop.state).values()} == {ErrorClass.ALTERED}
    shop.list(*TWO, ("/3.jpg", A, md5(A)), ("/4.jpg", A, md5(A)))
    shop.run()
    assert all(found.data == A for found in shop.objects.values())
    assert {out.sha256 for out in helpers.latest(shop.state).values()} <= {sha256(A), None}  # None: known by its ETag
    assert counts_of(shop.state).pending == 0


def test_a_shared_object_that_is_found_wrong_is_not_copied(shop: Shop) -> None:
    """`ferry verify --sample` finds an object altered for one of the rows that share it: no other row takes it."""
    shop.list(*TWO, name=["x", "x"])
    shop.run(key="{name}.jpg")
    shop.server.objects["bucket"]["p/x.jpg"].data = B[: len(A)].ljust(len(A), b"x")
    shop.server._etag = lambda data: md5(A)  # type: ignore[method-assign]  # a copy gets the ETag of its original
    shared = next(out for out in helpers.latest(shop.state).values() if out.copy_of)
    verify(shop, shared.row_id)
    shop.list(*TWO, ("/3.jpg", A, md5(A)), name=["x", "x", "y"])
    outcomes = shop.run()
    assert shop.holds(("x.jpg", A), ("y.jpg", A))
    assert outcomes["y.jpg"].requests == 1


def test_verify_sees_each_key(shop: Shop) -> None:
    """A copy that is gone or altered is found by its own key, and repaired; its original is left alone."""
    shop.list(*TWO)
    shop.run()
    del shop.server.objects["bucket"]["p/2.jpg"]
    verify(shop)
    assert by_key(shop.state)["2.jpg"].error_class is ErrorClass.MISSING
    assert by_key(shop.state)["1.jpg"].status == "copied"
    shop.run()
    assert shop.holds(("1.jpg", A), ("2.jpg", A))


# --- servers that do not copy, or not well


@pytest.mark.parametrize(
    ("copies", "faults"),
    [
        ("without attributes", []),
        ("altered", []),
        ("whole", [Fault("status", ("CopyObject",), status=501, code="NotImplemented")]),
        ("whole", [Fault("status", ("CopyObject",), status=403, code="AccessDenied")]),
        ("whole", [Fault("error in 200", ("CopyObject",))]),
        ("whole", [Fault("status", ("GetObject",), status=500, code="InternalError")]),
        ("whole", [Fault("status", ("PutObject",), status=403, code="AccessDenied", key="trial")]),
    ],
)
def test_after_a_failed_trial_no_object_is_copied(
    copies: Any, faults: list[Fault], origin: Origin, tmp_path: Path
) -> None:
    """A trial at the beginning shows that the server's copies are of no use: then every row goes the usual way."""
    with OddS3(copies=copies, faults=[replace(fault) for fault in faults]) as server:
        shop = Shop(origin, server, tmp_path)
        shop.list(*((f"/{n}.jpg", A, md5(A)) for n in range(12)))
        outcomes = shop.run()
        assert server.requests["CopyObject"] <= 1
        assert shop.holds(*((f"{n}.jpg", A) for n in range(12)))
        assert {(out.status, out.copy_of) for out in outcomes.values()} == {("copied", None)}


def test_a_trial_that_may_not_be_deleted(shop: Shop) -> None:
    """Without the right to delete, the trial's two small objects stay, and dedupe works."""
    shop.server.faults.append(Fault("status", ("DeleteObject",), status=403, code="AccessDenied"))
    shop.list(*TWO)
    assert shop.run()["2.jpg"].copy_of == "1.jpg"
    assert sum(key.startswith(server_copy.TRIAL) for key in shop.objects) == 2


@pytest.mark.parametrize("what", ["status", "lost answer", "reset", "silence", "error in 200"])
@pytest.mark.parametrize("known", [True, False])
def test_copies_that_fail_are_not_asked_for_again_and_again(what: Any, known: bool, shop: Shop) -> None:
    """Each row whose copy fails goes the usual way at once; after eight in a row no more are asked for."""
    shop.server.faults.append(Fault(what, ("CopyObject",), after=1, status=500, code="InternalError"))
    shop.list(*((f"/{n}.jpg", A, md5(A) if known else "") for n in range(30)))
    outcomes = shop.run(timeouts={"read_s": 1, "total_s": 2}, concurrency=2)
    assert shop.holds(*((f"{n}.jpg", A) for n in range(30)))
    assert {(out.status, out.copy_of, out.sha256) for out in outcomes.values()} == {("copied", None, sha256(A))}
    asked = shop.server.requests["CopyObject"] - 1  # a request whose connection is reset is sent twice
    assert dedupe.REFUSALS <= asked <= 2 * (dedupe.REFUSALS + 2)


def test_single_refusals_do_not_end_dedupe(shop: Shop) -> None:
    """A copy that succeeds begins the count of refusals again."""
    for at in range(1, 60, 3):
        shop.server.faults.append(Fault("status", ("CopyObject",), after=at, times=1, status=500, code="InternalError"))
    shop.list(*((f"/{n}.jpg", A, md5(A)) for n in range(60)))
    outcomes = shop.run(concurrency=1)
    assert shop.holds(*((f"{n}.jpg", A) for n in range(60)))
    assert sum(out.copy_of is not None for out in outcomes.values()) > 25


def test_credentials_that_may_not_read(shop: Shop) -> None:
    """Where HEAD is refused, shared objects are asked for eight times, and every row goes the usual way."""
    shop.list(*((f"/{n}.jpg", A, md5(A)) for n in range(60)))
    shop.server.faults.append(Fault("status", ("HeadObject",), status=403, code="AccessDenied"))
    shop.run(key="{md5}.jpg", on_existing="overwrite", concurrency=1)
    assert [out.status for out in helpers.latest(shop.state).values()] == ["copied"] * 60
    assert shop.server.requests["HeadObject"] == dedupe.REFUSALS
    assert shop.holds((f"{md5(A)}.jpg", A))


def test_attributes_that_changed_alone(shop: Shop) -> None:
    """A program that changes an object's attributes leaves its ETag: by its date, it is no object to be copied."""
    shop.list(*TWO[:1])
    shop.run()
    shop.server.objects["bucket"]["p/1.jpg"].headers["Content-Type"] = "text/x-other"
    shop.server.objects["bucket"]["p/1.jpg"].modified += timedelta(seconds=dedupe.FRESH_S + 5)
    shop.list(*TWO, ("/3.jpg", A, md5(A)))
    outcomes = shop.run()
    assert {shop.objects[key].headers["Content-Type"] for key in ("2.jpg", "3.jpg")} == {"image/jpeg"}
    assert (outcomes["2.jpg"].requests, outcomes["3.jpg"].copy_of) == (1, "2.jpg")


@pytest.mark.parametrize("etags", ["kms", "opaque", "none"])
def test_a_copy_that_no_digest_confirms_is_none(etags: Any, origin: Origin, tmp_path: Path) -> None:
    """Where ETags are not MD5s, no row is copied by a copy that only its size confirms."""
    with OddS3(etags=etags) as server:
        shop = Shop(origin, server, tmp_path)
        shop.list(*((f"/{n}.jpg", A, md5(A)) for n in range(20)))
        outcomes = shop.run()
        assert shop.holds(*((f"{n}.jpg", A) for n in range(20)))
        assert {out.copy_of for out in outcomes.values()} == {None}
        assert server.requests["CopyObject"] <= 1 + dedupe.REFUSALS + 20 * (etags == "opaque")


def test_a_server_that_alters_copies_later(shop: Shop) -> None:
    """Copies that have other bytes are replaced by the row's own, whatever the trial showed."""
    shop.list(*((f"/{n}.jpg", A, md5(A)) for n in range(30)))
    original = shop.server._copy

    def copy(objects: Any, key: str, headers: Any) -> Any:
        shop.server.copies = "whole" if "trial" in key else "altered"
        return original(objects, key, headers)

    shop.server._copy = copy  # type: ignore[method-assign]
    outcomes = shop.run()
    assert shop.holds(*((f"{n}.jpg", A) for n in range(30)))
    assert {(out.status, out.copy_of) for out in outcomes.values()} == {("copied", None)}


# --- a directory


def test_a_directory_gets_files_of_their_own(shop: Shop) -> None:
    """In a directory, equal files are read there and written again: no download, and no link between them."""
    shop.list(*TWO, ("/3.jpg", B, md5(B)), ("/4.jpg", A, ""))
    out = shop.folder / "out"
    outcomes = shop.run(destination=f"file://{out}/")
    assert {path.name: path.read_bytes() for path in out.glob("*.jpg")} == {
        "1.jpg": A, "2.jpg": A, "3.jpg": B, "4.jpg": A,
    }  # fmt: skip
    assert outcomes["2.jpg"].copy_of in ("1.jpg", "4.jpg")
    assert (outcomes["2.jpg"].requests, outcomes["2.jpg"].sha256) == (0, sha256(A))
    assert outcomes["4.jpg"].copy_of is None
    assert shop.origin.total == 3
    assert len({path.stat().st_ino for path in out.glob("*.jpg")}) == 4
    assert counts_of(shop.state).deduped == {"rows": 1, "bytes": len(A), "not_downloaded": len(A)}
    for path in out.glob("*.jpg"):
        path.write_bytes(B)
    shop.list(*TWO, ("/5.jpg", A, md5(A)))
    outcomes = shop.run()
    assert (out / "5.jpg").read_bytes() == A
    assert outcomes["5.jpg"].requests == 1  # the files have other bytes now


def test_a_directory_s_rows_have_their_own_types(shop: Shop) -> None:
    """The ledger has the type that each row's source or list says, where the bytes show none."""
    text = b"not an image"
    shop.list(*((f"/{n}.txt", text, md5(text)) for n in range(3)), content_type=["text/plain", "text/x-other", ""])
    outcomes = shop.run(destination=f"file://{shop.folder}/out/", checks="length")
    assert {key: out.content_type for key, out in outcomes.items()} == {
        "0.txt": "text/plain", "1.txt": "text/x-other", "2.txt": "image/jpeg",
    }  # fmt: skip


def test_bytes_read_are_those_of_the_sources(shop: Shop) -> None:
    """A chunk's bytes, which a run's rate is made of, are those that came from sources."""
    shop.list(*TWO, ("/3.jpg", A, md5(A)))
    for destination in ("s3://bucket/p/", f"file://{shop.folder}/out/"):
        job, state = shop.job(destination=destination), directory_state(shop.folder, destination[:2])
        planned = helpers.plan(job, state, server=access(shop.server))
        with helpers.engine(job, state, access(shop.server)) as runtime:
            assert sum(run_chunk(runtime, ref).bytes for ref in planned.chunks) == len(A)


def test_a_key_of_a_directory_is_shared(shop: Shop) -> None:
    """Rows of a directory share a key made from their digest, and a file that changed is written again."""
    shop.list(*TWO[:1])
    out = shop.folder / "out"
    shop.run(destination=f"file://{out}/", key="{md5}.jpg")
    shop.list(*TWO)
    shop.run()
    assert shop.origin.total == 0
    (out / f"{md5(A)}.jpg").write_bytes(B)
    shop.list(*TWO, ("/3.jpg", A, md5(A)))
    shop.run()
    assert (out / f"{md5(A)}.jpg").read_bytes() == A
    assert shop.origin.total == 1


# --- a real server, and what is remembered


def test_on_a_real_server(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """SeaweedFS copies with attributes; small and spooled bodies, known and unknown digests."""
    large = os.urandom(9 * 1024 * 1024)
    bodies = {f"{n}.bin": [A, large, B][n % 3] for n in range(12)}
    lines = [
        [origin.add(f"/{key}", body), md5(body) if n % 2 else "", "text/x-bin"]
        for n, (key, body) in enumerate(bodies.items())
    ]
    helpers.write_list(tmp_path / "list.csv", lines, ("url", "md5", "content_type"))
    job = make_job(
        manifest=str(tmp_path / "list.csv"), dedupe=True, checks="length",
        destination={"uri": f"s3://{bucket}/p/", "metadata": {"a": "b"}},
    )  # fmt: skip
    state = directory_state(tmp_path)
    helpers.run(job, state, access(s3))
    assert stored(s3, bucket) == {f"p/{key}": body for key, body in bodies.items()}
    outcomes = by_key(state)
    assert all(out.confirmed is Confirmed.DIGEST for out in outcomes.values())
    assert sum(out.copy_of is not None for out in outcomes.values()) == 9
    client = s3.client()
    heads = [client.head_object(Bucket=bucket, Key=f"p/{key}") for key in bodies]
    assert {(head["Metadata"]["a"], head["ContentType"]) for head in heads} == {
        ("b", "text/x-bin"), ("b", "image/jpeg"),
    }  # fmt: skip


def test_the_list_s_order_does_not_matter(shop: Shop) -> None:
    """Equal digests at both ends of a long list come into one chunk; none of the other rows is lost."""
    rows = [(f"/{n}.jpg", BODIES[n % 2], md5(BODIES[n % 2]) if n in (0, 199) else "") for n in range(199)]
    shop.list(*rows, ("/199.jpg", A, md5(A)))
    outcomes = shop.run(chunk_rows=7)
    assert len(outcomes) == 200
    assert outcomes["199.jpg"].requests == 0
    assert shop.holds(*((path[1:], body) for path, body, _ in rows), ("199.jpg", A))


def test_a_run_that_ended_between_the_copies(shop: Shop) -> None:
    """`--limit` ends a run after the first of the equal rows: the next one copies its object for the others."""
    shop.list(*((f"/{n}.jpg", A, md5(A)) for n in range(5)))
    job = shop.job()
    planned = helpers.plan(job, shop.state, 1, server=access(shop.server))
    with helpers.engine(job, shop.state, access(shop.server), limit=1) as runtime:
        for ref in planned.chunks:
            with pytest.raises(ChunkIncomplete):
                run_chunk(runtime, ref)
    shop.run_no = 1
    assert len(by_key(shop.state)) == 1
    outcomes = shop.run()
    assert shop.origin.total == 0
    assert [out.copy_of for key, out in sorted(outcomes.items())] == [None, *["0.jpg"] * 4]
