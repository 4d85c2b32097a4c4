"""Nightly deltas: whether a settled row's object may have changed, and the cheapest honest way to find out. Pure.

The list's author says so (an ETag, a digest, a date), or the origin is asked; what only guesses (a size that is the
same) is believed for `delta.revalidate_after`, no longer.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple

from tasks.engine.objects import Checked

Said = Literal["nothing", "same", "other"]
Validators = Literal["none", "weak", "strong"]


class Look(StrEnum):
    """How a row is looked at again."""

    NOT = "not"  # the list says that nothing changed
    IF = "if"  # GET with If-None-Match, If-Modified-Since (RFC 9110 section 13)
    HEAD = "head"  # HEAD, and a GET where it tells of a change
    SIZE = "size"  # likewise, but its ETag, which changes by itself, tells nothing
    READ = "read"  # GET: the digest decides


class Known(NamedTuple):
    """What the ledger knows of a row's object that stands at the destination and is to be looked at again."""

    look: Look
    key: str
    size: int | None
    md5: str | None
    sha256: str | None
    content_type: str | None
    etag: str | None  # of the source
    last_modified: str | None
    dest_etag: str | None
    read_at: datetime | None


def how_to_look(
    *, said: Said, proof: bool, validators: Validators, web: bool, checked: Checked | None, old: bool
) -> Look:
    """How a settled row is looked at in a delta.

    ``said``: what the list says of the object against what it said when that was last looked at. ``proof``: by an ETag,
    a digest or a date, and not by its size alone. ``validators``: what the origin gave; a weak ETag alone is weak.
    ``web``: it is asked over HTTP, and not a bucket or a directory. ``checked``: how it was found the same last time.
    ``old``: its bytes were read longer ago than `delta.revalidate_after`.

    | list | proof | validators | asked | last time | bytes read | look |
    |---|---|---|---|---|---|---|
    | other | any | any | any | any | any | read |
    | same | yes | any | any | any | any | not |
    | same, nothing | no | strong | over HTTP | new, body, condition | any | if |
    | same, nothing | no | weak | over HTTP | likewise | recently | if |
    | same, nothing | no | strong | in a store | any but size | any | head |
    | same, nothing | no | any other | any | size | recently | size |
    | same, nothing | no | any other | any | any other | recently | head |
    | same, nothing | no | any other | any | any | long ago | read |

    "Any other" are a source without validators, and one that does not honour them: the whole body came in answer to a
    condition (body_again), or its ETag changed by itself (size). Nobody is to send their bodies every night.
    """
    if said == "other":
        return Look.READ
    if said == "same" and proof:
        return Look.NOT
    deaf = checked is Checked.SIZE or (web and checked in (Checked.BODY_AGAIN, Checked.HEAD))
    if old and (deaf or validators != "strong"):
        return Look.READ
    if web and validators != "none" and not deaf:
        return Look.IF
    return Look.SIZE if checked is Checked.SIZE else Look.HEAD


def told_by_head(known: Known, size: int | None, etag: str | None, last_modified: str | None) -> bool:
    """Does a HEAD's answer tell of the object that is known?

    | sizes | ETags, where they are looked at | dates | the same |
    |---|---|---|---|
    | both given, different | any | any | no |
    | else | both given, equal (weakly) | any | yes |
    | else | otherwise | both given, equal | yes: the servers of one origin may have ETags of their own |
    | else | both given, different | not both given, or different | no |
    | else | not both given | both given, different | no |
    | both given, equal | not both given | not both given | yes: nothing more is told |
    | not both given | not both given | not both given | no |
    """
    if size is not None and known.size is not None and size != known.size:
        return False
    etags = bool(etag and known.etag) and known.look is not Look.SIZE
    dates = bool(last_modified and known.last_modified)
    if (etags and opaque(etag) == opaque(known.etag)) or (dates and last_modified == known.last_modified):
        return True
    return not etags and not dates and size is not None and size == known.size


def opaque(etag: str | None) -> str:
    """An ETag for the weak comparison (RFC 9110 section 8.8.3.2)."""
    return (etag or "").removeprefix("W/")
