"""Lists from APIs, from a real server: every paginator, and that a list which breaks off leaves nothing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ferry.core.errors import Fatal, ObjectError, UserError
from ferry.core.records import ErrorClass
from ferry.http.address_filter import Resolved
from ferry.http.auth import Auth, TokenRequest
from ferry.http.network import Network
from ferry.job import ApiList, Job, Paginator
from ferry.manifest import api_pages
from ferry.manifest.api_pages import Page, at, next_url, with_parameter, write_pages
from ferry.manifest.http_list import download
from ferry.state.files import DirectoryState
from ferry.state.plan_file import read_plan
from tests.servers.list_api import CLIENT, SECRET, Answer, Asked, ListApi
from tests.support.helpers import make_job, plan

LINK = {"type": "header_link"}
PAGINATORS: dict[str, dict[str, Any]] = {
    "single": {"paginator": {"type": "single_page"}},
    "link": {"paginator": LINK},
    "json": {"paginator": {"type": "json_link", "next_url_path": "paging.next"}, "data_selector": "data.items"},
    "cursor": {"paginator": {"type": "cursor", "cursor_path": "meta.next", "cursor_param": "after"},
               "data_selector": "items"},
    "pages": {"paginator": {"type": "page_number"}, "data_selector": "items"},
    "pages?total": {"paginator": {"type": "page_number", "total_path": "pages"}, "data_selector": "items"},
    "offset": {"paginator": {"type": "offset", "limit": 1000}, "data_selector": "items"},
    "offset?total": {"paginator": {"type": "offset", "limit": 7, "total_path": "total"}, "data_selector": "items"},
}  # fmt: skip
REQUESTS = {
    "single": 1, "link": 3, "json": 3, "cursor": 3, "pages": 4, "pages?total": 3, "offset": 4, "offset?total": 4,
}  # fmt: skip


@pytest.fixture
def api() -> Iterator[ListApi]:
    with ListApi() as server:
        yield server


def job_for(api: ListApi, name: str = "link", **given: Any) -> Job:
    source = {"allow_private_addresses": ["127.0.0.1"], **given.pop("source", {})}
    manifest = {"url": f"{api.url}/{name.partition('?')[0]}", **PAGINATORS[name], **given.pop("manifest", {})}
    return make_job(manifest=manifest, source=source, retries={"backoff_s": 0.01, "max_backoff_s": 2}, **given)


def read(job: Job, folder: Path, auth: Auth | None = None, **given: Any) -> list[dict[str, Any]]:
    assert isinstance(job.manifest, ApiList)
    path = folder / "rows.jsonl"
    write_pages(job, job.manifest, auth, Network(), path, 1 << 30, **given)
    return [json.loads(line) for line in path.read_text().splitlines()]


def broken(job: Job, folder: Path, auth: Auth | None = None, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(job, folder, auth, **given)
    return str(caught.value)


def oauth(api: ListApi) -> Auth:
    return Auth([api.url], token=TokenRequest(f"{api.url}/token", CLIENT, SECRET, {"scope": "read"}))


def site(api: ListApi) -> list[str]:
    return [api.url]


@pytest.mark.parametrize("name", PAGINATORS)
def test_each_paginator_reads_every_row_once(name: str, api: ListApi, tmp_path: Path) -> None:
    """All 25 entries arrive in order, with as many requests as there are pages; numbers are the text of the page."""
    rows = read(job_for(api, name), tmp_path)
    assert [row["id"] for row in rows] == [str(n) for n in range(25)]
    assert rows[0]["price"] == "1.1"
    assert len(api.asked) == REQUESTS[name], api.paths()
    assert {one.headers["accept"] for one in api.asked} == {"application/json"}


def test_a_server_that_sends_fewer_entries_than_asked(api: ListApi, tmp_path: Path) -> None:
    """The next offset counts what arrived, else entries between would be missing."""
    read(job_for(api, "offset"), tmp_path)
    assert api.paths() == [f"/offset?limit=1000&offset={n}" for n in (0, 10, 20, 25)]


def test_rows_of_elements(api: ListApi, tmp_path: Path) -> None:
    """`explode` makes a row of each element; an entry without elements has no row."""
    later_page(api, 3, Answer([{"id": 70, "images": None}, {"id": 71}, *map(api.entry, range(20, 25))]))
    fields = {"url": "_.href", "sku": "sku", "n": "_n", "first": "images.0.href"}
    rows = read(job_for(api, manifest={"explode": "images", "fields": fields}), tmp_path)
    assert len(rows) == 2 * 20
    assert rows[1] == {"url": f"{api.url}/img/1-2.jpg", "sku": "S1", "n": "2", "first": f"{api.url}/img/1-1.jpg"}
    assert list(rows[0]) == sorted(fields)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"fields": {"url": "url", "md5": "checksum"}}, "`fields.md5: checksum` names nothing in any of its entries"),
        ({"fields": {"url": "_"}, "explode": "sku"}, "`explode: sku` names something that is not a list"),
        ({"data_selector": "items"}, "page 1: `data_selector: items` names no list"),
        ({"url": "SERVER/json", "data_selector": None}, "page 1: the page is not a list: set `data_selector`"),
        ({"url": "SERVER/cursor", "data_selector": "meta"}, "names no list; its lists: `items`"),
        ({"url": "SERVER/nothing"}, "page 1 cannot be read: the origin has no such object (HTTP 404)"),
    ],
)
def test_a_job_that_does_not_fit_the_api(manifest: dict[str, Any], words: str, api: ListApi, tmp_path: Path) -> None:
    """What the job names and the API does not have is an error that says so."""
    manifest = {key: value.replace("SERVER", api.url) if key == "url" else value for key, value in manifest.items()}
    assert words in broken(job_for(api, manifest=manifest), tmp_path)


def test_an_empty_list(api: ListApi, tmp_path: Path) -> None:
    """A list without rows is an error, as an empty file is."""
    api.size = 0
    assert "contains no rows; nothing would be transferred" in broken(job_for(api), tmp_path)


def later_page(api: ListApi, page: int, *answers: Answer) -> None:
    api.faults[f"/link?page={page}"] = list(answers)


BREAKS: dict[str, tuple[Callable[[ListApi], Answer], str]] = {
    "a server error": (lambda _: Answer(status=500), "page 2 cannot be read: the origin reports a server error"),
    "no such page": (lambda _: Answer(status=404), "page 2 cannot be read: the origin has no such object"),
    "a body that ends early": (lambda api: Answer([api.entry(1)], cut=True), "page 2 cannot be read: the body ended"),
    "half of a document": (lambda _: Answer(b'[{"id": 1}, {"id"'), "(Expecting ':' delimiter at character 18)"),
    "a page of HTML": (lambda _: Answer(b"<html>maintenance</html>"), "page 2 is not JSON"),
    "Latin-1": (lambda _: Answer(b'["\xe4"]'), "page 2 is not JSON (UTF-8 is expected)"),
    "a number that is none": (lambda _: Answer(b"[NaN]"), "page 2 is not JSON (NaN is not JSON)"),
    "brackets": (lambda _: Answer(b"[" * 200_000), "page 2 is not JSON"),
    "an error with status 200": (lambda _: Answer({"error": "try later"}), "page 2: the page is not a list"),
    "null for a list": (lambda _: Answer(b"null"), "page 2: the page is not a list"),
    "a page of bare values": (lambda _: Answer(["a"]), "page 2: an entry is not an object"),
    "the first page again": (
        lambda api: Answer(
            [dict(reversed(api.entry(n).items())) for n in range(10)], headers={"Link": '</link?page=3>; rel="next"'}
        ),
        "page 2 repeats an earlier page",
    ),
    "a link to itself": (
        lambda api: Answer([api.entry(70)], headers={"Link": '</link?page=2>; rel="next"'}),
        "the list goes round: page 3 has the address of an earlier one",
    ),
    "a link to another site": (
        lambda api: Answer([api.entry(70)], headers={"Link": '<https://img.example/>; rel="next"'}),
        "page 3 is at another site (https://img.example:443); if that is right, add it to `source.auth_for`",
    ),
    "a link to a metadata server": (
        lambda api: Answer([api.entry(70)], headers={"Link": '<http://169.254.169.254/>; rel="next"'}),
        "metadata address",
    ),
    "a link that is none": (
        lambda api: Answer([api.entry(70)], headers={"Link": '<http://[x>; rel="next"'}), "the next page is malformed",
    ),
    "a redirect to a metadata server": (
        lambda _: Answer(status=302, headers={"Location": "http://169.254.169.254/"}), "metadata address",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_list_that_breaks_off_plans_nothing(name: str, api: ListApi, tmp_path: Path) -> None:
    """Any problem after the first page is an error: the plan and the rows of the last list stay as they are."""
    make, words = BREAKS[name]
    state = DirectoryState(tmp_path / "state")
    job = job_for(api)
    plan(job, state)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "state" / "plan").iterdir())}
    later_page(api, 2, *[make(api)] * 5)
    with pytest.raises(UserError) as caught:
        plan(job, state, 2)
    assert words in str(caught.value)
    assert str(caught.value).endswith("Nothing was planned")
    assert {path: path.read_bytes() for path in sorted((tmp_path / "state" / "plan").iterdir())} == before
    assert not list(state.spool_dir.glob("list*"))


@pytest.mark.parametrize("name", ["pages?total", "offset?total"])
def test_a_total_that_is_not_reached(name: str, api: ListApi, tmp_path: Path) -> None:
    """A page that is empty too early does not end the list."""
    second = {"pages?total": "/pages?page=1", "offset?total": "/offset?limit=7&offset=7"}[name]
    api.faults[second] = [Answer({"items": [], "pages": 3, "total": 25})]
    assert "page 2 is empty, but `" in broken(job_for(api, name), tmp_path)
    api.faults[second] = [Answer({"items": [api.entry(70)]})]
    assert "names no number in page 2" in broken(job_for(api, name), tmp_path)


def test_a_page_that_is_too_large(api: ListApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page over the limit is an error that says what to do, however long its header says that it is."""
    monkeypatch.setattr(api_pages, "MAX_PAGE_BYTES", 100)
    assert "page 1 cannot be read: it is larger than" in broken(job_for(api), tmp_path)


def test_a_list_that_is_too_long(api: ListApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and bytes have a limit."""
    job = job_for(api)
    assert isinstance(job.manifest, ApiList)
    with pytest.raises(UserError, match="its rows have more than"):
        write_pages(job, job.manifest, None, Network(), tmp_path / "x", 1000)
    monkeypatch.setattr(api_pages, "MAX_PAGES", 2)
    assert "more than 2 pages" in broken(job, tmp_path)


def test_an_unchanged_list_is_not_read_again(api: ListApi, tmp_path: Path) -> None:
    """A second plan recognises the list, and says how long it is; a changed field is read."""
    state = DirectoryState(tmp_path / "state")
    first = plan(job_for(api), state)
    assert first.rows == 25
    assert f"the API at 127.0.0.1:{api.port} has 25 rows in 3 pages" in first.notes
    known = read_plan(state)
    assert known is not None
    second = plan(job_for(api), state, 2)
    again = read_plan(state)
    assert again is not None
    assert again.manifest == known.manifest
    assert second.todo == {}
    api.size = 26
    assert sum(plan(job_for(api), state, 3).todo.values()) == 1


def test_errors_that_pass(api: ListApi, tmp_path: Path) -> None:
    """A page is tried again, and a Retry-After is respected."""
    later_page(api, 2, Answer(status=503), Answer([1], cut=True), Answer(status=429, headers={"Retry-After": "1"}))
    begun = time.monotonic()
    assert len(read(job_for(api), tmp_path)) == 25
    assert time.monotonic() - begun >= 1
    assert len(api.paths("/link?page=2")) == 4


# --- credentials


def test_a_token_that_ends_in_the_middle(api: ListApi, tmp_path: Path) -> None:
    """After a 401, the token is renewed once, and the page requested again."""
    api.protected, api.uses = True, 2
    assert len(read(job_for(api), tmp_path, oauth(api))) == 25
    assert api.issued == 2
    assert api.asked[0].form["scope"] == ["read"]
    assert [one.headers.get("authorization") for one in api.asked if one.path == "/link"] == [
        "Bearer canarytoken-1", "Bearer canarytoken-1", "Bearer canarytoken-1", "Bearer canarytoken-2",
    ]  # fmt: skip


def test_a_token_that_is_never_accepted(api: ListApi, tmp_path: Path) -> None:
    """One renewal, then the 401 is the answer."""
    api.protected, api.uses = True, 0
    assert "page 1 cannot be read: the origin denies access (HTTP 401)" in broken(job_for(api), tmp_path, oauth(api))
    assert api.issued == 2


def test_a_token_server_that_refuses(api: ListApi, tmp_path: Path) -> None:
    """Its error code is shown, and no other text of it; the secret is tried in both ways that the standard has."""
    api.protected = True
    wrong = Auth([api.url], token=TokenRequest(f"{api.url}/token", CLIENT, "topsecret"))
    message = broken(job_for(api), tmp_path, wrong)
    assert "no token from the server of `source.auth`: HTTP 401 invalid_client. Check" in message
    assert "topsecret" not in message
    assert "<b>" not in message
    assert len(api.paths("/token")) == 2
    api.client_auth = "form"
    assert len(read(job_for(api), tmp_path, oauth(api))) == 25


def seen(api: ListApi, name: str = "authorization") -> list[str | None]:
    return [one.headers.get(name) for one in api.asked]


@pytest.mark.parametrize("plain", [False, True])
def test_a_fixed_credential(plain: bool, api: ListApi, tmp_path: Path) -> None:
    """A header or a parameter goes with each page, and with the file of a plain list."""
    for auth in (Auth(site(api), header=("X-Key", "k 1")), Auth(site(api), parameter=("key", "k 1&"))):
        api.asked.clear()
        if plain:
            job = make_job(manifest=f"{api.url}/plain.csv")
            download(job, auth, Network(), f"{api.url}/plain.csv", tmp_path / "x", 10_000)
            assert (tmp_path / "x").read_text().startswith("url\n")
        else:
            read(job_for(api), tmp_path, auth)
        if auth.header:
            assert set(seen(api, "x-key")) == {"k 1"}
        else:
            assert {"key=k%201%26" in one.query for one in api.asked} == {True}


@pytest.mark.parametrize("plain", [False, True])
def test_no_credential_for_other_sites(plain: bool, api: ListApi, tmp_path: Path) -> None:
    """Neither a redirect nor a list that the job does not name gets the credential."""
    with ListApi() as other:
        auth = Auth(site(api), header=("Authorization", "s3cret"))
        name = "/plain.csv" if plain else "/link"
        api.faults[name] = [Answer(status=302, headers={"Location": f"{other.url}{name}"})]
        other.size = 5
        job = make_job(manifest=f"{api.url}/plain.csv") if plain else job_for(api)
        if plain:
            download(job, auth, Network(), f"{api.url}/plain.csv", tmp_path / "x", 10_000)
        else:
            read(job, tmp_path, auth)
        assert (seen(api), seen(other)) == (["s3cret"], [None])
        read(job_for(other), tmp_path, auth)
        assert set(seen(other)) == {None}


def test_a_next_page_at_a_site_with_permission(api: ListApi, tmp_path: Path) -> None:
    """`auth_for` allows the site, and the credential goes there."""
    with ListApi() as other:
        later_page(api, 2, Answer([api.entry(70)], headers={"Link": f'<{other.url}/link?page=3>; rel="next"'}))
        job = job_for(api, source={"auth_for": [api.url, other.url]})
        rows = read(job, tmp_path, Auth(job.auth_recipients(), header=("Authorization", "s3cret")))
        assert len(rows) == 10 + 1 + 5
        assert seen(other) == ["s3cret"]


# --- connections


class Names:
    """Resolves each name once to the first address, and then to the second."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
        if host == "ipv4only.arpa":
            raise socket.gaierror
        return [Resolved(host=self.addresses.pop(0), port=port, family=socket.AF_INET)]


def test_private_addresses(api: ListApi, tmp_path: Path) -> None:
    """The address filter applies to the list, whether its host is an address or a name; no connection is made."""
    private = job_for(api, source={"allow_private_addresses": []})
    assert "source.allow_private_addresses" in broken(private, tmp_path)
    named = job_for(api, manifest={"url": f"http://pim.test:{api.port}/link"}, source={"allow_private_addresses": []})
    assert "pim.test (10.0.0.1) is a private address" in broken(named, tmp_path, resolver=Names("10.0.0.1"))
    assert api.asked == []


def test_the_address_that_was_checked_is_used(api: ListApi, tmp_path: Path) -> None:
    """A name is resolved once, and the connection goes to that address."""
    job = job_for(api, manifest={"url": f"http://pim.test:{api.port}/single", "paginator": {"type": "single_page"}})
    assert len(read(job, tmp_path, resolver=Names("127.0.0.1"))) == 25
    assert seen(api, "host") == [f"pim.test:{api.port}"]


def test_nothing_of_the_environment_is_sent(api: ListApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ~/.netrc nor the proxies of the environment have an effect: tasks/secrets.py reads those."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password topsecret\n")
    netrc.chmod(0o600)
    with ListApi() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        read(job_for(api), tmp_path)
        assert proxy.asked == []
    assert set(seen(api)) == {None}


def test_an_address_that_requests_does_not_take(api: ListApi, tmp_path: Path) -> None:
    """It is a bad address, and neither a crash nor tried again."""
    for url in ("http://*.h/x.csv", f"http://h\ud800:{api.port}/x.csv"):
        with pytest.raises(ObjectError, match=r"it is malformed|not a host name") as caught:
            download(make_job(), None, Network(), url, tmp_path / "x", 10_000)
        assert caught.value.error_class is ErrorClass.BAD_URL


def test_user_info_in_a_link_is_not_sent(api: ListApi, tmp_path: Path) -> None:
    """The API's own credential goes to the next page."""
    link = f'<{api.url.replace("//", "//al:pw@")}/link?page=3>; rel="next"'
    later_page(api, 2, Answer([api.entry(70)], headers={"Link": link}))
    read(job_for(api), tmp_path, Auth([api.url], header=("Authorization", "s3cret")))
    assert seen(api) == ["s3cret"] * 3


def test_the_bytes_of_an_address_are_sent_as_they_are(api: ListApi, tmp_path: Path) -> None:
    """requests would decode and encode them again, which breaks signatures."""
    target = "/plain.csv?a=%7e%2f%2B&b=(1)"
    job = make_job(manifest=api.url + target)
    download(job, None, Network(), api.url + target, tmp_path / "x", 10_000)
    assert api.paths() == [target]


def test_a_download_leaves_nothing_behind(api: ListApi, tmp_path: Path) -> None:
    """A failed download removes its file."""
    api.faults["/plain.csv"] = [Answer(b"url\n" * 100, cut=True)] * 5
    job = make_job(manifest=f"{api.url}/plain.csv", retries={"backoff_s": 0.01})
    with pytest.raises(ObjectError) as caught:
        download(job, None, Network(), f"{api.url}/plain.csv", tmp_path / "x", 10_000)
    assert caught.value.error_class is ErrorClass.TRUNCATED
    assert len(api.asked) == 5
    assert not (tmp_path / "x").exists()


def test_a_download_to_a_disk_that_fails(api: ListApi, tmp_path: Path) -> None:
    """A path that cannot be written is Fatal, with the path in the message."""
    job = job_for(api)
    assert isinstance(job.manifest, ApiList)
    with pytest.raises(Fatal, match="nodir"):
        write_pages(job, job.manifest, None, Network(), tmp_path / "nodir" / "x", 10_000)
    with pytest.raises(Fatal, match="nodir"):
        download(make_job(), None, Network(), f"{api.url}/plain.csv", tmp_path / "nodir" / "x", 10_000)


# --- pure functions


@pytest.mark.parametrize(
    ("url", "changed"),
    [
        ("http://h/x", "http://h/x?page=2"),
        ("http://h/x?a=%2f&page=1&b", "http://h/x?a=%2f&b&page=2"),
        ("http://h/x?p%61ge=1#y", "http://h/x?page=2"),
    ],
)
def test_parameters(url: str, changed: str) -> None:
    """A parameter takes the place of the one with its name; the others keep their bytes."""
    assert with_parameter(url, "page", 2) == changed


@pytest.mark.parametrize(
    ("document", "path", "found"),
    [
        ({"a": {"b": 1}}, "a.b", 1),
        ({"a": [{"b": 1}]}, "a.0.b", 1),
        ({"a": None}, "a", None),
        ({"a": None}, "a.b", api_pages._MISSING),
        ({"a": [1]}, "a.1", api_pages._MISSING),
        ({"a": "text"}, "a.0", api_pages._MISSING),
        ([1], "x", api_pages._MISSING),
    ],
)
def test_paths(document: Any, path: str, found: Any) -> None:
    """The table of `at`."""
    assert at(document, path) is found


PAGE = {"url": "http://h/v1/list?x=1", "number": 1, "links": {}}


@pytest.mark.parametrize(
    ("paginator", "document", "entries", "found"),
    [
        ({"type": "single_page"}, {}, 5, None),
        ({"type": "json_link", "next_url_path": "next"}, {"next": "?after=7"}, 5, "http://h/v1/list?after=7"),
        ({"type": "json_link", "next_url_path": "next"}, {"next": ""}, 5, None),
        ({"type": "json_link", "next_url_path": "next"}, {"next": False}, 5, None),
        ({"type": "cursor", "cursor_path": "c", "cursor_param": "after"}, {"c": "a b"}, 5, "http://h/l?y=1&after=a+b"),
        ({"type": "cursor", "cursor_path": "c", "cursor_param": "after"}, {}, 5, None),
        ({"type": "page_number", "base_page": 1}, {}, 5, "http://h/l?y=1&page=3"),
        ({"type": "page_number", "base_page": 1}, {}, 0, None),
        ({"type": "page_number", "total_path": "n"}, {"n": "3"}, 5, "http://h/l?y=1&page=2"),
        ({"type": "page_number", "total_path": "n"}, {"n": "2"}, 5, None),
        ({"type": "page_number", "total_path": "n"}, {"n": "0"}, 0, None),
        ({"type": "offset", "limit": 9}, {}, 5, "http://h/l?y=1&limit=9&offset=10"),
        ({"type": "offset", "limit": 9, "offset": 1}, {}, 5, "http://h/l?y=1&limit=9&offset=11"),
        ({"type": "offset", "limit": 9}, {}, 0, None),
        ({"type": "offset", "limit": 9, "total_path": "n"}, {"n": "10"}, 5, None),
        ({"type": "offset", "limit": 9, "total_path": "n"}, {"n": "11"}, 5, "http://h/l?y=1&limit=9&offset=10"),
    ],
)
def test_the_next_page(paginator: dict[str, Any], document: Any, entries: int, found: str | None) -> None:
    """The table of `next_url`, for a second page after one of five entries."""
    page = Page(document=document, entries=entries, seen=5 + entries, **PAGE)  # type: ignore[arg-type]
    assert next_url(Paginator.model_validate(paginator), "http://h/l?y=1", page) == found


def test_a_last_page_that_is_empty() -> None:
    """The last of `total_path` pages must have entries, too."""
    page = Page(document={"n": "2"}, entries=0, seen=5, **PAGE)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="page 2 is empty, but `n` says 2 pages"):
        next_url(Paginator(type="page_number", total_path="n"), "http://h/l", page)


@pytest.mark.parametrize("value", [True, ["x"], {"x": "y"}, "\ud800", "a\nb"])
def test_a_next_page_that_is_none(value: Any) -> None:
    """A value that is neither text nor a number does not end the list."""
    page = Page(document={"next": value}, entries=5, seen=10, **PAGE)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="names neither a line of text nor a number"):
        next_url(Paginator(type="json_link", next_url_path="next"), "http://h/l", page)


def test_asked_is_what_arrived(api: ListApi, tmp_path: Path) -> None:
    """The job's headers are for the images' hosts, and do not go to the list."""
    source = {"headers": {"X-Image-Key": "env:K", "Accept-Language": "de"}, "headers_for": [api.url]}
    read(job_for(api, source=source), tmp_path)
    first: Asked = api.asked[0]
    assert "x-image-key" not in first.headers
    assert first.headers["user-agent"].startswith("ferry/")
