"""Attributes of objects beside their bytes: which are carried, which the other side cannot hold, and their digest.

An attribute is a name and a text. Headers have their names of RFC 9110 (`Cache-Control`), user metadata has its own, in
lower case if it is that of a header, and what is neither begins with a colon. So the metadata `expires` is not the
header `Expires`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.errors import MessageError
from email.header import decode_header, make_header
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

from ferry.core.revalidation import moment_of

TIER = ":tier"  # storage class or access tier
TAGS = ":tags"  # as `name=value&...`, percent-encoded
REDIRECT = ":redirect"  # of a bucket that is a website
KMS_KEY = ":kms-key"  # the provider's name of the key that the server encrypts with; only to be written
TYPE, ENCODING, MODIFIED = "Content-Type", "Content-Encoding", "Last-Modified"
HEADERS = (TYPE, "Cache-Control", "Content-Disposition", ENCODING, "Content-Language", "Expires")
WORDS = {TIER: "storage_class", TAGS: "tags", REDIRECT: "website_redirect", KMS_KEY: "encryption"}
METADATA = "metadata"  # as a name in a job: all user metadata; `metadata.sku` is one
MTIME = "mtime"  # the metadata that has a source's Last-Modified, as rclone writes and reads it

_OCTETS = ("application/octet-stream", "binary/octet-stream")  # what stores say of an object without a type
_MAX_TAGS = 10  # of an object, at S3 and Azure
_ASCII = re.compile(r"[ -~]*")
_STANDARD = ("STANDARD", "Hot")  # tiers that a store gives without being asked


class Holds(NamedTuple):
    """What an object of a provider can have beside its bytes and its type."""

    names: frozenset[str] = frozenset()  # headers, TAGS, REDIRECT, KMS_KEY
    metadata: str | None = None  # pattern of the metadata's names
    metadata_bytes: int = 0  # of all names and values
    tiers: frozenset[str] | None = frozenset()  # None: any name, of which the server knows some
    any_case: bool = False  # whether the metadata's names differ in case
    header: str = r"(?s).*"  # pattern of a header's value
    tag: str = r"(?s).*"  # pattern of a tag, as name, line end and value


_OF_ALL = frozenset(HEADERS) - {"Expires"}
# Keys are the schemes of addresses. S3 API, PutObject and "Working with object metadata"; Google's "Object metadata"
# and "Storage classes"; Azure's "Naming and referencing containers, blobs, and metadata", "Put Blob", "Set Blob Tags".
HOLDS = {
    "s3": Holds(_OF_ALL | {"Expires", TAGS, REDIRECT, KMS_KEY}, r"[A-Za-z0-9_!#$%&'*+.^`|~-]+", 2048, None),
    "gs": Holds(_OF_ALL | {KMS_KEY}, r"[^:].*", 8192, frozenset({"STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"}), True),
    "az": Holds(
        _OF_ALL | {TAGS},
        r"[A-Za-z_][A-Za-z0-9_]*",
        8192,
        frozenset({"Hot", "Cool", "Cold", "Archive"}),
        header=r"[ -~]*",
        tag=r"[A-Za-z0-9 +./:=_-]{1,128}\n[A-Za-z0-9 +./:=_-]{0,256}",
    ),
    "file": Holds(),
}


@dataclass(frozen=True, slots=True)
class AttributeRules:
    """What a job says of attributes. ``keep`` and ``drop`` have names as :func:`word_of` returns them."""

    keep: frozenset[str] | None = None  # None: all
    drop: frozenset[str] = frozenset()
    set: Mapping[str, str] = field(default_factory=dict)  # by their names as attributes

    @property
    def server_may_copy(self) -> bool:
        """Whether a copy by the server is what reading and writing would give; TIER and KMS_KEY go with its request."""
        return self.keep is None and not self.drop and self.set.keys() <= {TIER, KMS_KEY}


def word_of(name: str) -> str:
    """Returns the name of an attribute as jobs and reports have it: `Cache-Control`, `tags`, `metadata.sku`."""
    return WORDS.get(name) or (name if name in HEADERS else f"{METADATA}.{name}")


def name_of(word: str) -> str | None:
    """Returns the attribute that a job names, in any case; None for another word, and for METADATA itself."""
    lower = word.lower()
    if lower.startswith(f"{METADATA}."):
        return lower.removeprefix(f"{METADATA}.") or None
    known = {**{word_of(name).lower(): name for name in (*HEADERS, *WORDS)}, MODIFIED.lower(): MODIFIED}
    return known.get(lower)


def carried(
    found: Mapping[str, str], last_modified: str | None, rules: AttributeRules, *, web: bool = False
) -> dict[str, str]:
    """Returns the attributes that an object is to have, without its type.

    ``found`` and ``last_modified`` are the source's; ``web``: it is an HTTP origin, not a store. The first row decides:

    | attribute | source | job | |
    |---|---|---|---|
    | any | any | `set` | the job's value |
    | Content-Encoding | a store | any | the source's: without it the bytes could not be read |
    | any | any | `drop` has it, or `metadata` and it is metadata | none |
    | any | any | `keep` has it, or `metadata` and it is metadata | the source's |
    | any but Last-Modified | a store | `keep: all` | the source's |
    | any other | | | none |

    Last-Modified becomes the metadata `mtime`, in seconds since 1970. An empty header is none, since not every store
    would keep it.
    """
    if (web or not found) and rules.keep is None:
        return dict(rules.set)
    result = {
        name: text
        for name, value in found.items()
        if _is_kept(name, rules, web=web) and ((text := one_line(value)) or name not in HEADERS)
    }
    moment = moment_of(last_modified) if last_modified and rules.keep and MODIFIED in rules.keep else None
    if moment is not None and moment.tzinfo is not None:
        result[MTIME] = f"{moment.timestamp():.0f}"
    return {**result, **rules.set}


def _is_kept(name: str, rules: AttributeRules, *, web: bool) -> bool:
    if name == ENCODING:
        return not web
    if name == KMS_KEY:  # only a job may choose it
        return False
    words = {word_of(name)} if name in HEADERS or name in WORDS else {word_of(name.lower()), METADATA}
    if not words.isdisjoint(rules.drop):
        return False
    return not web if rules.keep is None else not words.isdisjoint(rules.keep)


def one_line(value: str) -> str:
    """Returns a value without blanks around it, which are not part of it (RFC 9110 section 5.5), and without line ends.

    Bytes of a source that are not UTF-8 are read as Latin-1.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        value = value.encode("utf-8", "surrogateescape").decode("latin-1")
    return re.sub(r"[\r\n\0]+", " ", value).strip(" \t")


def split(attributes: Mapping[str, str], holds: Holds) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns the attributes that an object of a provider can have, and the names of the others.

    A standard tier is neither, where its name is not known: the object gets the store's own. TAGS without a text are
    tags that the source does not show. Of metadata that is too long the first names fit, in their order. Of names that
    differ only in case, one does where the provider does not tell them apart: that in lower case, or the first.
    """
    if not attributes:
        return {}, ()
    held: dict[str, str] = {}
    lost = []
    free = holds.metadata_bytes
    for name, value in sorted(attributes.items()):
        if name == TIER:
            if holds.tiers is not None and value in holds.tiers or holds.tiers is None and value not in _STANDARD:
                held[name] = value
            elif value not in _STANDARD:
                lost.append(name)
        elif name in HEADERS or name in WORDS:
            if _fits(name, value, holds):
                held[name] = value
            else:
                lost.append(name)
        else:
            sent = name if holds.any_case else name.lower()
            if sent in held or (sent != name and sent in attributes):
                lost.append(name)
                continue
            free -= len(name) + len(in_ascii(value))
            if free >= 0 and holds.metadata is not None and re.fullmatch(holds.metadata, name):
                held[sent] = value
            else:
                lost.append(name)
    return held, tuple(lost)


def _fits(name: str, value: str, holds: Holds) -> bool:
    if name == TAGS and TAGS in holds.names:
        tags = parse_qsl(value, keep_blank_values=True)
        return 1 <= len(tags) <= _MAX_TAGS and all(re.fullmatch(holds.tag, "\n".join(tag)) for tag in tags)
    return name == TYPE or (name in holds.names and re.fullmatch(holds.header, value) is not None)


def in_ascii(value: str) -> str:
    """Returns a metadata value as S3 and Azure take it: one outside ASCII as one word of RFC 2047, in base64.

    S3 returns such words itself (S3 user guide, "Working with object metadata").
    """
    text = one_line(value)
    return text if _ASCII.fullmatch(text) else f"=?UTF-8?B?{b64encode(text.encode()).decode()}?="


def from_ascii(value: str) -> str:
    """Returns the text of a value that may be in words of RFC 2047."""
    if "=?" in value:
        with contextlib.suppress(MessageError, LookupError, ValueError):
            return str(make_header(decode_header(value)))
    return value


def attributes_digest(attributes: Mapping[str, str]) -> str:
    """Returns the SHA-256 of attributes, the same for what was written and for what a store says of it later.

    It has neither the tier nor the key: the bucket's own rules move objects to other tiers, and a key has several
    names. Nor has it a type that says nothing. Values are compared as texts, whatever words of RFC 2047 they are in.
    """
    return _digest(tuple(sorted(attributes.items())))


@lru_cache(4096)  # most objects of a library have the same few
def _digest(items: tuple[tuple[str, str], ...]) -> str:
    lines = []
    for name, value in items:
        if name not in (TIER, KMS_KEY) and not (name == TYPE and value.lower() in _OCTETS):
            lines.append(f"{name}: {_normal(name, value)}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _normal(name: str, value: str) -> str:
    if name == TAGS:
        return urlencode(sorted(parse_qsl(value, keep_blank_values=True)))
    if name == TYPE:
        return value.lower()
    return " ".join(from_ascii(value).split())
