"""Attributes of the objects that Ferry writes: what is carried, what the destination cannot hold, what has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ferry.core import (
    HOLDS,
    TAGS,
    TIER,
    TYPE,
    AttributeRules,
    ErrorClass,
    KnownCopy,
    ObjectError,
    Row,
    TransferResult,
    attributes_digest,
    carried,
    in_bucket,
    split,
    word_of,
)
from ferry.images import kind_of_type
from ferry.storage import Store
from ferry.transfer.source import Fetch, is_web


class Carried(NamedTuple):
    """Attributes of one object: those to be written, the names of those that are lost, and the digest of the first."""

    attributes: dict[str, str]
    lost: tuple[str, ...] = ()
    digest: str | None = None  # None where the destination has none to compare it with


class Carrier:
    """Decides about the attributes of each object. ``fail``: losing one is the row's failure."""

    def __init__(
        self, rules: AttributeRules, scheme: str, destination: Store, *, fail: bool, listed: bool = False
    ) -> None:
        """``scheme``: of the job's destination, even where a check writes its sample elsewhere.

        ``listed``: the rows are those of a listing, which shows a storage class unless it is the store's own.
        """
        self._rules = rules
        self._holds = HOLDS[scheme]
        self._destination = destination
        self._listed = listed
        self.may_lose = not fail
        wanted, _ = split(carried({TAGS: "a=1"}, None, rules), self._holds)
        self.wants_tags = wanted.get(TAGS) == "a=1"  # those of the source

    def of(self, row: Row, fetch: Fetch, content_type: str | None) -> Carried:
        """Returns what an object is to have. Names of lost attributes are those of reports."""
        found = fetch.attributes
        if row.storage_class and TIER not in found:  # Azure shows the tier in listings alone
            found = {**found, TIER: row.storage_class}
        wanted = carried(found, fetch.last_modified, self._rules, web=is_web(row))
        if content_type:
            wanted[TYPE] = content_type
        held, lost = self._held(wanted)
        return Carried(held, tuple(map(word_of, lost)), self._digest(held))

    def before_fetch(self, row: Row) -> Mapping[str, str] | None:
        """Returns what an object is to have without its type, or None if that depends on its source's response.

        An object in a bucket has attributes of its own, which no list says.
        """
        if in_bucket(row.source[:5].lower()) or self._rules.keep:
            return None
        held, lost = self._held(self._rules.set)
        return None if lost else held

    def _held(self, wanted: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
        held, lost = split(wanted, self._holds)
        held, refused = self._destination.without_refused(held)
        return held, (*lost, *refused)

    def _digest(self, attributes: Mapping[str, str]) -> str | None:
        return None if self._destination.kind == "file" else attributes_digest(attributes)

    def refuse_loss(self, lost: Sequence[str]) -> None:
        """Raises ObjectError (LOST_ATTRIBUTE) if no object may lose an attribute."""
        if lost and not self.may_lose:
            text = f"the destination does not keep {', '.join(lost)} of this object; nothing was written"
            raise ObjectError(ErrorClass.LOST_ATTRIBUTE, text)

    def note_refused(self, result: TransferResult, attributes: Mapping[str, str], refused: Sequence[str]) -> None:
        """Adds attributes to an object's loss that the store has refused when it was written."""
        if refused:
            result.lost_attributes = (*(result.lost_attributes or ()), *map(word_of, refused))
            written = {name: value for name, value in attributes.items() if name not in refused}
            result.attributes_sha256 = self._digest(written)

    def unchanged(self, row: Row, known: KnownCopy, fetch: Fetch) -> bool:
        """Returns whether a copy whose bytes are the source's has its attributes, too.

        | digest of what was written | source | its date | |
        |---|---|---|---|
        | known | any | any | whether the source would give the same now, without what was lost then |
        | not known, of a directory's file | any | any | yes |
        | not known | HTTP origin, directory | any | yes |
        | not known: the server copied, or an earlier Ferry | a bucket | another than then | no: it was written again |
        | not known | a bucket | the same, or one is not known | yes |
        """
        if known.attributes_sha256 is None:
            if self._destination.kind == "file" or is_web(row) or row.source.startswith("file:"):
                return True
            then, now = known.last_modified, fetch.last_modified
            return not then or not now or then[:19] == now[:19]  # seconds: a header has no more
        same_type = known.content_type if kind_of_type(known.content_type) else None
        content_type = same_type or row.content_type or fetch.content_type
        held = self.of(row, fetch, content_type).attributes
        lost = known.lost_attributes or ()
        return attributes_digest({n: v for n, v in held.items() if word_of(n) not in lost}) == known.attributes_sha256

    def for_copy(self, row: Row) -> Mapping[str, str] | None:
        """Returns what a copy by the server must be given, or None if reading and writing would give another object.

        A copy has the source's headers, metadata and tags, but neither its class nor its website redirect (S3 API:
        CopyObject). A listing shows the class, and a file does not. Neither shows a redirect, which objects without
        bytes are made for.
        """
        class_known = self._listed or row.storage_class or TIER in self._rules.set
        if not self._rules.server_may_copy or not row.size or not class_known:
            return None
        wanted = {TIER: row.storage_class, **self._rules.set} if row.storage_class else self._rules.set
        held, lost = self._held(wanted)
        return None if lost else held
