"""The addresses of each row's object: its source, its default key, and further addresses from other columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import cast

from ferry.core import ErrorClass, is_printable_ascii
from ferry.job import Template, decode_path
from ferry.manifest.columns import Batch, more_source
from ferry.manifest.sources import PLAIN_URL, key_or_problem, normal_roots, repaired, trim

Texts = Sequence[str | None]
Problems = dict[int, tuple[str, str]]  # index in the batch -> error class and message
_BAD_URL = ErrorClass.BAD_URL.value


class Addresses:
    """Reads the addresses of batches, and counts the cells that were completed or left out."""

    def __init__(
        self,
        url: Template | None,
        roots: Sequence[str],
        *,
        bare_hosts: bool,
        columns: Sequence[str] = (),
        as_listed: bool = False,
    ) -> None:
        """``url``: `source.url`. ``columns``: the names of the columns with addresses, if there are several.

        ``as_listed``: the addresses are those of a listing.
        """
        self._url, self._roots, self._bare_hosts, self._columns = url, normal_roots(roots), bare_hosts, columns
        self._as_listed = as_listed
        self.repairs: Counter[str] = Counter()  # `blanks`, `schemes` -> addresses that were completed
        self.ignored: Counter[str] = Counter()  # one of several columns -> cells without a usable address

    def sources(self, batch: Batch, problems: Problems) -> tuple[list[str | None], list[str | None]]:
        """Returns each row's source and default key, None if it has none."""
        given: Texts = batch.values.get("source") or [None] * len(batch)
        if self._url is not None:
            given = self._from_template(self._url, batch, given, problems)
        sources: list[str | None] = []
        default_keys: list[str | None] = []
        if plain := _plain_keys(given):
            return list(given), plain
        for index, text in enumerate(given):
            source, key, why = self._read(text)
            sources.append(source)
            default_keys.append(key)
            if key is None:
                problems.setdefault(index, (_BAD_URL, why or f"{_shown_row(batch, index)} has no URL"))
        return sources, default_keys

    def alternatives(
        self, batch: Batch, sources: list[str | None], default_keys: list[str | None], problems: Problems
    ) -> list[object]:
        """Returns each row's further addresses, None if it has none.

        A row's first usable address is its source: the arguments are what :meth:`sources` returned, and change so.
        """
        found: list[list[str] | None] = [None] * len(batch)
        unusable = [index for index, key in enumerate(default_keys) if key is None and sources[index] is not None]
        for number, name in enumerate(self._columns[1:], 2):
            for index, text in enumerate(batch.values[more_source(number)]):
                source, key, why = self._read(text)
                if source is None:
                    continue
                if key is None:
                    self.ignored[name] += 1
                    if sources[index] is None:
                        sources[index], problems[index] = source, (_BAD_URL, why or "")
                elif default_keys[index] is None:
                    sources[index], default_keys[index] = source, key
                    del problems[index]
                elif source != sources[index] and source not in (found[index] or ()):
                    found[index] = [*(found[index] or ()), source]
        if self._columns:
            self.ignored[self._columns[0]] += sum(default_keys[index] is not None for index in unusable)
        return list(found)

    def _read(self, text: str | None) -> tuple[str | None, str | None, str | None]:
        """Returns a cell's address with its default key, or with its problem. All are None for an empty cell."""
        if not text:
            return None, None, None
        if plain := PLAIN_URL.fullmatch(text):
            return text, decode_path(plain[1]).lstrip("/"), None
        source = self._repair(trim(text))
        if not source:
            return None, None, None
        return (source, *key_or_problem(source, self._roots, as_listed=self._as_listed))

    def _repair(self, source: str) -> str:
        better = repaired(source, bare=self._bare_hosts)
        if better is not source:
            self.repairs["blanks"] += "%20" in better and " " in source
            self.repairs["schemes"] += "://" not in source.partition("?")[0]
        return better

    def _from_template(self, url: Template, batch: Batch, given: Texts, problems: Problems) -> Texts:
        """Returns the rows' addresses, built from source.url unless the source is one. Others are used as {id}."""
        values = dict(batch.values)
        ids = values.get("id") or [None] * len(batch)
        values["id"] = [id_ or source for id_, source in zip(ids, given, strict=True)]
        built = url.render_many(values, len(batch))
        out: list[str | None] = []
        for index, (source, address_) in enumerate(zip(given, built, strict=True)):
            if source is not None and "://" in source:
                out.append(source)
                continue
            if address_ is None:
                why = url.missing({name: column[index] for name, column in values.items()})
                problems.setdefault(index, (_BAD_URL, why.replace("the row", _shown_row(batch, index), 1)))
            out.append(address_)
        return out


def _plain_keys(texts: Texts) -> list[str | None]:
    """Returns the default keys of addresses that all match PLAIN_URL, else an empty list.

    Most lists are such addresses on few hosts, so hosts are matched once, and other characters are looked for at once.
    """
    try:
        joined = "".join(cast("Sequence[str]", texts))
    except TypeError:  # a row has no address
        return []
    if not is_printable_ascii(joined) or " " in joined or "#" in joined:
        return []
    given = cast("Sequence[str]", texts)
    return list(_keys_of_one_host(given, joined) or _keys_of_hosts(given))


def _keys_of_one_host(texts: Sequence[str], joined: str) -> list[str]:
    """Returns the default keys of plain addresses on one host without anything to decode, else an empty list."""
    begin = joined[: joined.find("/", 8) + 1]  # after the slashes of https://
    if not _begins_plain(begin) or "?" in joined or "%" in joined or f"{begin}/" in joined:
        return []
    keys = [text.removeprefix(begin) for text in texts]
    return keys if len(joined) - sum(map(len, keys)) == len(begin) * len(keys) else []


def _keys_of_hosts(texts: Sequence[str]) -> list[str]:
    """Returns the default keys of addresses, or an empty list if one does not begin plainly."""
    keys = []
    for text in texts:
        end = text.find("/", 8) + 1  # after the slashes of https://
        if not _begins_plain(text[:end]):
            return []
        path = text[end:]
        if "?" in path:
            path = path[: path.index("?")]
        keys.append(decode_path(path).lstrip("/"))
    return keys


@lru_cache(10_000)
def _begins_plain(begin: str) -> bool:
    """Returns whether an address may begin so: scheme, host and a slash."""
    return begin.endswith("/") and PLAIN_URL.fullmatch(begin) is not None


def _shown_row(batch: Batch, index: int) -> str:
    return f"row {batch.row_no[index]}" if batch.line_no is None else f"the row in line {batch.line_no[index]}"
