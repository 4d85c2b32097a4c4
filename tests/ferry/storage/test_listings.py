"""Listings: truncated ones, error pages and single failed requests never make an incomplete listing look complete."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ferry.core.errors import Fatal, ObjectError, UserError
from ferry.core.records import ErrorClass
from ferry.planning import existing_objects as ranges
from ferry.planning.existing_objects import existing_pages
from ferry.storage.control import Control
from ferry.storage.factory import open_store
from ferry.storage.object_info import ObjectInfo
from ferry.storage.provider import Page
from ferry.storage.s3 import xml
from ferry.storage.store import Store
from tests.servers.odd_s3 import Fault, OddS3
from tests.support.helpers import access, directory_state, latest, make_job, plan

pytestmark = pytest.mark.matrix

KEYS = [f"{n:04d}.jpg" for n in range(250)]


def filled(server: OddS3, keys: list[str] = KEYS) -> OddS3:
    server.make_bucket("other")
    for key in keys:
        server.put("b", f"p/{key}", key.encode())
    server.put("b", "p2/next door", b"x")
    return server


def store_at(server: OddS3, folder: Path) -> Store:
    return open_store("s3://b/p/", access(server), folder)


def listed(store: Store, **given: Any) -> list[str]:
    return [found.key for page in store.list(**given) for found in page]


@pytest.fixture
def odd() -> Iterator[OddS3]:
    with OddS3(page_keys=100) as server:
        yield filled(server)


@pytest.mark.parametrize("side", ["source", "destination"])
@pytest.mark.parametrize("listings", ["whole", "no token", "ends early"])
def test_every_key_is_listed_once(listings: Any, side: str, tmp_path: Path) -> None:
    """Pages without a token, or falsely marked as the last, are continued after the last key."""
    with OddS3(page_keys=100, listings=listings) as server:
        assert listed(store_at(filled(server), tmp_path), side=side) == KEYS


@pytest.mark.parametrize("keys", [KEYS, KEYS[:1]])
def test_a_store_that_starts_at_the_key_and_not_after_it(keys: list[str], tmp_path: Path) -> None:
    """If a store includes the start-after key, the listing ends and has each key once."""
    with OddS3(page_keys=100, listings="starts at it") as server:
        pages = itertools.islice(store_at(filled(server, keys), tmp_path).list(), 10)
        assert [found.key for page in pages for found in page] == keys


def test_a_key_with_a_control_character_ends_no_listing(tmp_path: Path) -> None:
    """A listing that continues after such a key has a page that repeats it as XML does not allow."""
    keys = ["a.jpg", "b\x01.jpg", "c\n.jpg", "d\x1f.jpg"]
    with OddS3() as server:
        store = store_at(filled(server, keys), tmp_path)
        assert listed(store) == keys
        assert listed(store, start_after="b\x01.jpg") == keys[2:]


def test_tokens_that_count_pages(tmp_path: Path) -> None:
    """Tokens that repeat after a listing was continued by start-after are not taken for a cycle."""
    with OddS3(page_keys=20, listings="numbered") as server:
        assert listed(store_at(filled(server), tmp_path)) == KEYS


@pytest.mark.parametrize("page_keys", [1, 50, 300])
def test_a_listing_that_goes_in_a_circle(page_keys: int, tmp_path: Path) -> None:
    """A continuation token that leads back to an earlier page is an error."""
    with OddS3(page_keys=page_keys, listings="in a circle") as server:
        pages = store_at(filled(server, KEYS[:100]), tmp_path).list()
        with pytest.raises(ObjectError, match="listing does not advance"):
            list(itertools.islice(pages, 1000))


def test_an_error_in_place_of_a_page_is_an_error(tmp_path: Path) -> None:
    """An <Error> under 200 in five attempts is an error, not the end of the listing."""
    with OddS3(page_keys=100, listings="error page") as server, pytest.raises(ObjectError, match="InternalError"):
        listed(store_at(filled(server), tmp_path))


@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("what", ["status", "reset", "lost answer", "error in 200", "halve"])
def test_a_hiccup_on_any_page(what: Any, after: int, odd: OddS3, tmp_path: Path) -> None:
    """A failed request for a page is retried alone; no key is missing or listed twice."""
    odd.faults.append(fault := Fault(what, ("ListObjectsV2",), after=after, times=1))
    assert listed(store_at(odd, tmp_path)) == KEYS
    assert fault.struck == 1
    assert odd.requests["ListObjectsV2"] == 3 + 1 + 1, "three pages, one that says so, one hiccup"


def test_it_starts_after_a_key(odd: OddS3, tmp_path: Path) -> None:
    """A listing with start_after does not include that key."""
    assert listed(store_at(odd, tmp_path), start_after=KEYS[120]) == KEYS[121:]


def test_a_store_that_does_not_know_start_after(odd: OddS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a store ignores start-after, the listing ends and has each key once."""
    whole = OddS3._list

    def from_the_start(self: OddS3, bucket: str, objects: Any, query: Any) -> Any:
        return whole(self, bucket, objects, {name: value for name, value in query.items() if name != "start-after"})

    monkeypatch.setattr(OddS3, "_list", from_the_start)
    assert listed(store_at(odd, tmp_path)) == KEYS


@pytest.mark.timeout(60)
@pytest.mark.parametrize("lacks", ["start-after", "continuation-token", "keys"])
def test_a_listing_that_does_not_say_where_it_goes_on(
    lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that is truncated but cannot be continued is an error and ends."""
    whole = OddS3._list

    def odd_list(self: OddS3, bucket: str, objects: Any, query: Any) -> Any:
        if lacks == "keys" and "start-after" in query:
            return web.Response(text="<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>")
        return whole(self, bucket, objects, {name: value for name, value in query.items() if name != lacks})

    monkeypatch.setattr(OddS3, "_list", odd_list)
    listings: Any = "whole" if lacks == "continuation-token" else "no token"
    with OddS3(page_keys=100, listings=listings) as server:
        store = store_at(filled(server), tmp_path)
        with pytest.raises(ObjectError, match="listing does not advance"):
            listed(store)


def test_an_empty_listing_is_believed(odd: OddS3, tmp_path: Path) -> None:
    """An empty bucket needs one request and has no keys."""
    assert listed(open_store("s3://other/", access(odd), tmp_path)) == []
    assert odd.requests["ListObjectsV2"] == 1


def test_odd_keys_are_listed_byte_for_byte(tmp_path: Path) -> None:
    """Every key is listed byte for byte, also control characters that XML cannot hold."""
    keys = sorted(
        ["a b+c%20&<>\"'.jpg", "grün/é.jpg", "tab\there", "x\x01y", "a//b", "/lead", "./dot", "end/"], key=str.encode
    )
    with OddS3(page_keys=2) as server:
        assert listed(store_at(filled(server, keys), tmp_path)) == keys


def test_ranges_list_what_is_wanted_over_many_pages(
    odd: OddS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a store with sorted listings, each range lists all its pages and no page of the next range."""
    odd.page_keys = 10
    monkeypatch.setattr(ranges.key_ranges, "__defaults__", (40,))
    store = store_at(odd, tmp_path)
    store.in_byte_order = True
    wanted = KEYS[3:240:2]
    found = {each.key for page in existing_pages(store, wanted) for each in page}
    assert set(wanted) <= found <= set(KEYS)
    assert odd.requests["ListObjectsV2"] < 2 * len(KEYS) / odd.page_keys, "no range lists what belongs to the next"


def test_a_planner_meets_a_hiccup_on_a_page_of_its_source(odd: OddS3, tmp_path: Path) -> None:
    """A listed manifest is planned completely although one request failed."""
    odd.faults.append(fault := Fault("status", ("ListObjectsV2",), after=2, times=1))
    job = make_job(manifest="s3://b/p/", destination="s3://other/", source={})
    assert plan(job, directory_state(tmp_path), server=access(odd)).rows == len(KEYS)
    assert fault.struck == 1


def test_folder_markers_are_left_out_and_objects_are_not(odd: OddS3, tmp_path: Path) -> None:
    """An empty directory marker is not a row; an object whose key ends in `/` is one, which no directory can hold."""
    odd.put("b", "p/photos/", b"")
    odd.put("b", "p/album/", b"an object all the same")
    odd.put("b", "p/", b"the prefix itself, with bytes")
    job = make_job(manifest="s3://b/p/", destination="s3://other/", source={})
    state = directory_state(tmp_path)
    assert plan(job, state, server=access(odd)).rows == len(KEYS) + 2
    (failed,) = latest(state).values()
    assert (failed.error_class, failed.source) == (ErrorClass.BAD_URL, "s3://b/p/")
    to_directory = job.model_copy(
        update={"destination": job.destination.model_copy(update={"uri": f"file://{tmp_path}/n/"})}
    )
    state = directory_state(tmp_path, "other")
    plan(to_directory, state, server=access(odd))
    failures = {(failed.error_class, failed.source) for failed in latest(state).values()}
    assert failures == {(ErrorClass.BAD_KEY, "s3://b/p/album/"), (ErrorClass.BAD_URL, "s3://b/p/")}


def test_a_planner_does_not_believe_a_cut_source(tmp_path: Path) -> None:
    """An <Error> instead of the second page fails the plan."""
    job = make_job(manifest="s3://b/p/", destination="s3://other/", source={})
    with OddS3(page_keys=100, listings="error page") as server, pytest.raises(UserError, match="cannot be listed"):
        plan(job, directory_state(tmp_path), server=access(filled(server)))


def copy_job(folder: Path, count: int) -> Any:
    rows = "\n".join(f"https://img.example/{n:05d}.jpg" for n in range(count))
    (folder / "list.csv").write_text(f"url\n{rows}\n")
    return make_job(manifest=str(folder / "list.csv"), destination="s3://b/p/")


def test_a_hiccup_while_the_destination_is_listed(odd: OddS3, tmp_path: Path) -> None:
    """The destination is listed although one request failed; no row needs a HEAD."""
    odd.faults.append(fault := Fault("status", ("ListObjectsV2",), times=1))
    planned = plan(copy_job(tmp_path, 600), directory_state(tmp_path), server=access(odd))
    assert fault.struck == 1
    assert "one listing" in planned.existing


@pytest.mark.slow
def test_a_destination_that_cannot_be_listed_in_five_tries(odd: OddS3, tmp_path: Path) -> None:
    """If listing the destination fails five times, the run ends instead of sending a HEAD per row."""
    odd.faults.append(Fault("status", ("ListObjectsV2",)))
    with pytest.raises(Fatal, match="in 5 tries"):
        plan(copy_job(tmp_path, 600), directory_state(tmp_path), server=access(odd))
    assert odd.requests["ListObjectsV2"] == 5


def test_a_destination_that_does_not_list(odd: OddS3, tmp_path: Path) -> None:
    """If the store does not support listing (405), each row has a HEAD, and the plan says so."""
    odd.faults.append(Fault("status", ("ListObjectsV2",), status=405, code="MethodNotAllowed"))
    planned = plan(copy_job(tmp_path, 600), directory_state(tmp_path), server=access(odd))
    assert planned.existing.startswith("found by a HEAD for each row, since the destination cannot be listed")
    assert odd.requests["ListObjectsV2"] == 1


def test_a_document_with_a_dtd_is_refused_unread() -> None:
    """A document with a DTD is refused, since its entities may expand without limit."""
    inside = b"<ListBucketResult>" + b"&b;" * 1000 + b"</ListBucketResult>"
    bomb = b'<!DOCTYPE a [<!ENTITY b "' + b"x" * 1000 + b'">]>' + inside
    with pytest.raises(ObjectError, match="not an S3 document"):
        xml.parse_page(bomb, "source")


class InAnotherOrder:
    """A store that lists in an order of its own, in pages of two, and may leave out keys that precede one."""

    cuts_listings = False

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    async def page(self, prefix: str, side: str, *, after: str | None = None, token: str | None = None) -> Page:
        start = int(token or 0)
        found = [ObjectInfo(key, 1, None, None) for key in self.keys[start : start + 2] if after is None or key > after]
        return Page(found, str(start + 2) if start + 2 < len(self.keys) else None)


@pytest.mark.parametrize(
    "keys", [["foo/a", "foo/b", "foo-bar/x", "foo-bar/y", "goo"], ["a\U0001f600.jpg", "a\uff01.jpg", "b"]]
)
def test_a_listing_in_another_order_is_whole(keys: list[str]) -> None:
    """Folders first, or by UTF-16: only the key that the caller starts after leaves others out."""
    pages = list(Control(lambda: InAnotherOrder(keys)).pages(""))  # type: ignore[arg-type, return-value]
    assert [each.key for page in pages for each in page] == keys


@pytest.mark.parametrize(
    "contents",
    [
        "<Contents ><Key>a</Key><Size>1</Size></Contents >",
        "<Contents x='1'><Key>a</Key><Size>1</Size></Contents>",
    ],
)
def test_a_listing_in_an_unusual_form(contents: str) -> None:
    """It is read as a tree, and never as an empty one."""
    body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>".encode()
    assert [each.key for each in xml.parse_page(body, "source").objects] == ["a"]


@pytest.mark.parametrize("contents", ["<Contents/>", "<Contents><Size>1</Size></Contents><Key>b</Key>"])
def test_an_object_without_a_key_is_an_error(contents: str) -> None:
    """Nothing of another element is taken for it."""
    with pytest.raises(ObjectError, match="without a valid key"):
        xml.parse_page(f"<ListBucketResult>{contents}</ListBucketResult>".encode(), "source")
