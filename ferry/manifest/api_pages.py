"""Lists from APIs: pages of JSON, which follow each other as `manifest.paginator` says, as one file of JSON Lines.

A list is complete or an error. Rows that are missing from a list may be deleted at the destination, so no error, loop,
repeated page or missed total leaves a shorter list.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus, urlencode, urljoin, urlsplit

from ferry.core import ErrorClass, ObjectError, ProxyUnusable, UserError, disk_error, redact, short
from ferry.http import AddressFilter, Auth, Network, Recipients, Resolver, Targets
from ferry.job import ApiList, Job, Paginator
from ferry.manifest.http_list import MAX_PAGE_BYTES, ListSession
from ferry.manifest.lines import decode_json

MAX_PAGES = 1_000_000
_MISSING: Any = object()


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list. ``url`` is its URL after redirects, ``entries`` and ``seen`` count without and with it."""

    url: str
    number: int  # from 0
    document: Any
    links: Mapping[str, Mapping[str, str]]  # of its Link header, by `rel`
    entries: int
    seen: int

    def value(self, path: str, what: str) -> Any:
        """Returns the value at a path, None if it is missing. Raises UserError for an object, a list, or `true`."""
        found = at(self.document, path)
        if found is _MISSING or found is None or found is False or found == "":
            return None
        if not isinstance(found, str) or not found.isprintable():  # numbers are text
            raise UserError(f"`{what}: {path}` names neither a line of text nor a number")
        return found

    def total(self, path: str) -> int:
        """Returns the number at a path. Raises UserError if there is none."""
        found = self.value(path, "total_path")
        if found is None or not found.isdecimal():
            raise UserError(f"`total_path: {path}` names no number in page {self.number + 1}")
        return int(found)


def at(document: Any, path: str) -> Any:
    """Returns what a dotted path names in a document, _MISSING if there is nothing.

    | document | path | result |
    |---|---|---|
    | {"a": {"b": 1}} | a.b | 1 |
    | {"a": [{"b": 1}]} | a.0.b | 1 |
    | {"a": null} | a | None |
    | {"a": null} | a.b | missing |
    """
    for part in path.split("."):
        if isinstance(document, dict):
            document = document.get(part, _MISSING)
        elif isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        else:
            return _MISSING
    return document


def with_parameter(url: str, name: str, value: str | int) -> str:
    """Returns the URL with a query parameter, in place of those of this name; the others stay as they are."""
    base, _, query = url.partition("#")[0].partition("?")
    kept = [part for part in query.split("&") if part and unquote_plus(part.partition("=")[0]) != name]
    return f"{base}?{'&'.join([*kept, urlencode({name: value})])}"


def first_url(paginator: Paginator, url: str) -> str:
    """Returns the URL of the first page."""
    if paginator.type == "page_number":
        return with_parameter(url, paginator.page_param, paginator.base_page)
    if paginator.type == "offset":
        sized = with_parameter(url, paginator.limit_param, paginator.limit or 0)
        return with_parameter(sized, paginator.offset_param, paginator.offset)
    return url


def next_url(paginator: Paginator, url: str, page: Page) -> str | None:
    """Returns the URL of the page after ``page``, None after the last one. ``url`` is `manifest.url`.

    | type | the next page | the last page |
    |---|---|---|
    | single_page | | the first |
    | header_link | the link `links_next_key` in the Link header | has no such link |
    | json_link | the URL at `next_url_path` | has none there, or null, false, "" |
    | cursor | ``url`` with the value at `cursor_path` as `cursor_param` | has none there, or null, false, "" |
    | page_number | ``url`` with the next number as `page_param` | is number `total_path`, or without it is empty |
    | offset | ``url`` with the entries so far as `offset_param` | reaches `total_path`, or without it is empty |

    Raises UserError if a page is empty before `total_path` is reached.
    """
    match paginator.type:
        case "header_link":
            link = page.links.get(paginator.links_next_key, {}).get("url")
            return _joined(page.url, link) if link else None
        case "json_link":
            link = page.value(str(paginator.next_url_path), "next_url_path")
            return _joined(page.url, link) if link else None
        case "cursor":
            cursor = page.value(str(paginator.cursor_path), "cursor_path")
            return with_parameter(url, str(paginator.cursor_param), cursor) if cursor else None
        case "page_number":
            done, what = page.number + 1, "pages"
            following = with_parameter(url, paginator.page_param, paginator.base_page + done)
        case "offset":
            done, what = page.seen + paginator.offset, "entries"
            following = with_parameter(first_url(paginator, url), paginator.offset_param, done)
        case _:
            return None
    if paginator.total_path is None:
        return following if page.entries else None
    total = page.total(paginator.total_path)
    if done >= total and (what == "entries" or page.entries or not total):
        return None
    if not page.entries:
        raise UserError(f"page {page.number + 1} is empty, but `{paginator.total_path}` says {total:,} {what}")
    return following


def _joined(base: str, link: str) -> str:
    try:
        return urljoin(base, link)
    except ValueError:  # brackets without an address
        raise UserError(f"the link to the next page is malformed: {short(link)}") from None


class ApiReader:
    """Reads the list of one job page by page."""

    def __init__(
        self, job: Job, api: ApiList, auth: Auth | None, network: Network, spool_dir: Path, resolver: Resolver | None
    ) -> None:
        self._api = api
        self._targets = Targets(AddressFilter(job.source.allow_private_addresses))
        self._site = self._targets.read(api.url).site
        self._elsewhere = Recipients(job.source.auth_for)
        self._session = ListSession(
            job, auth, network, spool_dir, accept="application/json", max_bytes=MAX_PAGE_BYTES, resolver=resolver
        )
        self._unfound = set(api.fields)
        self.pages = self.rows = 0

    def write(self, path: Path, max_bytes: int) -> None:
        """Writes the rows of all pages as JSON Lines. Raises UserError, ObjectError, or Fatal if the disk fails."""
        size = 0
        try:
            with self._session, path.open("w", encoding="ascii") as file:
                for entries in self._entries():
                    for row in self._rows(entries):
                        size += file.write(json.dumps(row, sort_keys=True) + "\n")
                        self.rows += 1
                    if size > max_bytes:
                        raise UserError(f"its rows have more than {max_bytes >> 30:,} GiB")
        except OSError as exc:
            raise disk_error(exc, f"the list in {path}") from exc
        if self.rows and self._unfound:
            name = min(self._unfound)
            raise UserError(f"`fields.{short(name)}: {self._api.fields[name]}` names nothing in any of its entries")

    def _entries(self) -> Iterator[list[Any]]:
        """Yields the entries of each page."""
        url: str | None = first_url(self._api.paginator, self._api.url)
        urls: set[bytes] = set()
        contents: set[bytes] = set()
        seen = 0
        while url is not None:
            self._count(url, urls, "the list goes round: page {} has the address of an earlier one")
            document, final, links = self._page(url)
            entries = self._selected(document)
            if entries:
                content = json.dumps(entries, sort_keys=True)
                self._count(content, contents, "page {} repeats an earlier page; check the keys of `paginator`")
            seen += len(entries)
            page = Page(final, self.pages, document, links, len(entries), seen)
            self.pages += 1
            yield entries
            url = next_url(self._api.paginator, self._api.url, page)
            if url is not None:
                url = self._allowed(url)

    def _count(self, text: str, known: set[bytes], problem: str) -> None:
        """Raises UserError if the text is known, or if there are too many."""
        digest = hashlib.sha256(text.encode()).digest()
        if digest in known:
            raise UserError(problem.format(self.pages + 1))
        if len(known) >= MAX_PAGES:
            raise UserError(f"it has more than {MAX_PAGES:,} pages; request more entries per page")
        known.add(digest)

    def _page(self, url: str) -> tuple[Any, str, Mapping[str, Mapping[str, str]]]:
        """Returns the document of a page, its URL after redirects, and the links of its Link header."""
        number = self.pages + 1
        try:
            response = self._session.get(url)
        except ObjectError as error:
            if error.error_class is ErrorClass.TOO_LARGE:
                error.message = f"it is larger than {MAX_PAGE_BYTES >> 20} MiB; request fewer entries per page"
            raise UserError(f"page {number} cannot be read: {error.message}") from None
        with response.raw:
            body = response.raw.read()
        try:
            return decode_json(body.decode("utf-8-sig")), response.url, response.links
        except RecursionError:
            why = "nested too deeply"
        except json.JSONDecodeError as error:
            why = f"{error.msg.removesuffix(' at')} at character {error.pos + 1:,}"
        except ValueError as error:
            why = "UTF-8 is expected" if isinstance(error, UnicodeError) else str(error)
        raise UserError(f"page {number} is not JSON ({why})")

    def _selected(self, document: Any) -> list[Any]:
        """Returns the entries of a page. Raises UserError if `data_selector` names no list."""
        path = self._api.data_selector
        found = at(document, path) if path is not None else document
        if isinstance(found, list):
            return found
        lists = (
            [key for key, value in document.items() if isinstance(value, list)] if isinstance(document, dict) else []
        )
        hint = f"; its lists: {', '.join(f'`{short(key)}`' for key in lists[:8])}" if lists else ""
        what = (
            f"`data_selector: {path}` names no list"
            if path is not None
            else "the page is not a list: set `data_selector`"
        )
        raise UserError(f"page {self.pages + 1}: {what}{hint}")

    def _rows(self, entries: list[Any]) -> Iterator[dict[str, Any]]:
        """Yields the rows of a page's entries. Raises UserError for an entry that is not what the job says."""
        fields, explode = self._api.fields, self._api.explode
        for entry in entries:
            if not fields:
                if not isinstance(entry, dict):
                    raise UserError(f"page {self.pages}: an entry is not an object; set `fields: {{url: _}}`")
                yield entry
                continue
            elements = [entry] if explode is None else at(entry, explode)
            if elements is _MISSING or elements is None:
                continue
            if not isinstance(elements, list):
                raise UserError(f"page {self.pages}: `explode: {explode}` names something that is not a list")
            own = entry if isinstance(entry, dict) else {}
            for number, element in enumerate(elements, 1):
                found = {**own, "_": element, "_n": str(number)}
                row = {name: at(found, path) for name, path in fields.items()}
                self._unfound -= {name for name in self._unfound if row[name] is not _MISSING}
                yield {name: None if value is _MISSING else value for name, value in row.items()}

    def _allowed(self, url: str) -> str:
        """Returns the next page's URL without user info. Raises UserError for a site without permission."""
        target = self._targets.read(url)
        if target.site != self._site and not self._elsewhere.include(*target.site):
            shown = "{}://{}:{}".format(*target.site)
            raise UserError(
                f"page {self.pages + 1} is at another site ({shown}); if that is right, add it to `source.auth_for`"
            )
        return str(target.url)


def write_pages(
    job: Job, api: ApiList, auth: Auth | None, network: Network, path: Path, max_bytes: int,
    resolver: Resolver | None = None,
) -> str:  # fmt: skip
    """Writes an API's list to a file of JSON Lines. Returns a sentence on its size. Raises UserError or Fatal."""
    shown = redact(api.url)
    try:
        reader = ApiReader(job, api, auth, network, path.parent, resolver)
        reader.write(path, max_bytes)
    except (UserError, ObjectError, ProxyUnusable) as error:
        raise UserError(f"the manifest {shown} cannot be used: {error}. Nothing was planned") from None
    if not reader.rows:
        raise UserError(f"{shown} contains no rows; nothing would be transferred")
    pages = "one page" if reader.pages == 1 else f"{reader.pages:,} pages"
    return f"the API at {urlsplit(api.url).netloc} has {reader.rows:,} rows in {pages}"
