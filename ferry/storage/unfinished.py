"""Uploads in parts that an earlier run left, as the log has them, and which of their parts may stay.

The log's entry has the MD5s of all parts. They were computed while the body arrived, of the same bytes as the body's
SHA-256. A resumed upload consists of parts that the provider has, with those MD5s, and of parts that were fetched
again, with those MD5s. So the object has the SHA-256 of the entry, although this run has not read all of it
(docs/decisions/0056).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ferry.core import Body, Parts, StreamedBody
from ferry.storage.provider import Part


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upload in parts that has begun. ``kept`` are the parts that need not be sent again.

    That of a streamed body has no digests, since they were not known when it began.
    """

    path: str
    upload: str  # its ID, by which Google lets anyone write this object
    size: int
    md5: str
    sha256: str
    part_bytes: int
    md5s: Sequence[str]  # of all parts, or none
    about: Mapping[str, Any]  # as Body has it
    attributes: Mapping[str, str]  # those that it began with, without what the store had refused
    kept: Sequence[Part | None] = ()

    @property
    def start(self) -> int:
        """The offset of the first part that is sent."""
        return next((index for index, part in enumerate(self.kept) if part is None), 0) * self.part_bytes

    @property
    def streamed(self) -> bool:
        """Whether the body is streamed: then all of it is read again, and each part compared."""
        return not self.md5s

    def lacks(self, body: Body, attributes: Mapping[str, str]) -> bool:
        """Returns whether a body is the rest that this upload lacks, and the attributes are those that it has."""
        if isinstance(body, StreamedBody) or self.streamed:
            here = (body.size, body.part_bytes if isinstance(body, StreamedBody) else 0, dict(attributes))
            return self.streamed and (self.size, self.part_bytes, self.attributes) == here
        rest = (body.start, body.size, body.md5, body.sha256, dict(attributes))
        return (self.start, self.size, self.md5, self.sha256, self.attributes) == rest

    def entry(self) -> dict[str, Any]:
        """Returns what :meth:`of_entry` reads."""
        return {
            "id": self.upload, "size": self.size, "md5": self.md5, "sha256": self.sha256,
            "part_bytes": self.part_bytes, "parts": list(self.md5s), "about": dict(self.about),
            "attributes": dict(self.attributes),
        }  # fmt: skip

    @classmethod
    def of_entry(cls, path: str, entry: Mapping[str, Any]) -> Unfinished | None:
        """Returns the upload of an entry, or None if it has not begun or cannot be resumed."""
        try:
            found = cls(
                path, entry["id"], entry["size"], entry["md5"], entry["sha256"], entry["part_bytes"], entry["parts"],
                entry["about"], entry["attributes"],
            )  # fmt: skip
        except KeyError:  # of another version
            return None
        texts, numbers = (found.upload, found.md5, found.sha256), (found.size, found.part_bytes)
        if not (isinstance(found.about, dict) and isinstance(found.md5s, list)):
            return None
        if not all(isinstance(each, str) for each in (*texts, *found.md5s, found.about.get("row_id", ""))):
            return None
        if not all(type(each) is int and each > 0 for each in numbers):
            return None
        return found if found.streamed or len(found.md5s) == found._count else None

    def keep(self, parts: Sequence[Part], *, in_order: bool) -> Unfinished:
        """Returns this upload with those of the provider's parts that may stay.

        The last part never does. So the source is always asked whether it has changed.

        | the provider | a part stays if |
        |---|---|
        | lists parts (S3, Azure) | it has the size and the MD5 of the entry, or that of the streamed part |
        | has bytes, ``in_order`` (Google) | all its bytes are there: Google compares the whole body's MD5 at the end |
        """
        kept: list[Part | None] = [None] * self._count
        if in_order:
            there = sum(part.size for part in parts)
            parts = [
                Part(index + 1, self._size_of(index), "", None if self.streamed else self.md5s[index])
                for index in range(self._count)
                if index * self.part_bytes + self._size_of(index) <= there
            ]
        for part in parts:
            index = part.number - 1
            if index not in range(len(kept)):
                continue
            md5 = part.md5 if self.streamed else self.md5s[index]
            if (part.size, part.md5) == (self._size_of(index), md5):
                kept[index] = part
        kept[-1] = None
        return replace(self, kept=kept)

    @property
    def _count(self) -> int:
        return -(-self.size // self.part_bytes)

    def _size_of(self, index: int) -> int:
        return min(self.part_bytes, self.size - index * self.part_bytes)


def begun(path: str, upload: str, body: Body, parts: Parts, attributes: Mapping[str, str]) -> Unfinished | None:
    """Returns the upload of a body, for the log, or None if it could not be resumed."""
    if body.about is None or body.start:
        return None
    md5s = [digests.md5 for digests in parts.digests]
    return Unfinished(path, upload, body.size, body.md5, body.sha256, parts.size, md5s, body.about, attributes)
