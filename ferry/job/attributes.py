"""Attributes of the written objects in a job: which are kept, set and dropped. Each mistake is a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Literal
from urllib.parse import parse_qsl

from pydantic import AfterValidator, Field, field_validator

from ferry.core import HOLDS, KMS_KEY, METADATA, TAGS, TIER, AttributeRules, name_of, short, split, word_of
from ferry.job.base import Model
from ferry.job.validators import METADATA_NAME, sendable

_NAMES = (
    "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires",
    "Last-Modified", METADATA, "storage_class", "tags", "website_redirect",
)  # fmt: skip
_ELSEWHERE = {
    "content-type": "Ferry takes it from the bytes, else from the manifest's column or the source",
    "content-encoding": "it says how the bytes are stored",
    "last-modified": "the store sets it",
    "storage_class": "set `destination.storage_class` instead",
    METADATA: "name one, such as `metadata.sku`",
}


class Attributes(Model):
    """Attributes that the written objects have beside their bytes and their type (docs/how-to/attributes.md). Names are headers (`Cache-Control`), `tags`, `storage_class`, `website_redirect`, `metadata` (all user metadata) and `metadata.NAME`."""

    keep: Annotated[list[str], Field(title="names")] | Annotated[Literal["all"], Field(title="all")] = "all"
    """Attributes that objects keep from their source: all that the destination can hold, or those that are named. Of HTTP origins none is kept but the type, unless it is named: Cache-Control, Content-Disposition, and Last-Modified, which becomes the metadata `mtime` in seconds since 1970."""
    set: dict[str, str] = {}
    """Attributes of each object, in place of its source's: `{Cache-Control: no-cache, metadata.team: shop, tags: a=1&b=2}`."""
    drop: list[str] = []
    """Attributes that objects do not keep."""

    @field_validator("keep", "drop")
    @classmethod
    def _names(cls, words: list[str] | Literal["all"]) -> list[str] | Literal["all"]:
        return words if words == "all" else [_known(word) for word in words]

    @field_validator("drop")
    @classmethod
    def _droppable(cls, words: list[str]) -> list[str]:
        for word in words:
            if word.lower() in ("content-type", "content-encoding"):
                raise ValueError(f"`{word}` cannot be dropped: without it the bytes could not be read")
        return words

    @field_validator("set")
    @classmethod
    def _settable(cls, values: dict[str, str]) -> dict[str, str]:
        for word, value in values.items():
            if (why := _ELSEWHERE.get(word.lower())) is not None:
                raise ValueError(f"`{word}` cannot be set: {why}")
            sendable(value, f"destination.attributes.set.{word}")
            if _known(word) == "tags":
                _check_tags(value)
        return values


class Encryption(Model):
    """Encryption of the written objects by the destination. Default: the bucket's own."""

    kms_key: Annotated[
        str, Field(min_length=1), AfterValidator(partial(sendable, key="destination.encryption.kms_key"))
    ]
    """Name of the key at the destination's key service: an ID, an ARN or an alias (S3: SSE-KMS)."""


def _known(word: str) -> str:
    """Returns the name of an attribute as word_of has it. Raises ValueError for any other word."""
    lower = word.lower()
    if lower == METADATA:
        return METADATA
    name = name_of(word)
    if name is None:
        near = get_close_matches(lower, map(str.lower, _NAMES), n=1, cutoff=0.6)
        hint = [known for known in _NAMES if near == [known.lower()]] or [*_NAMES, "metadata.NAME"]
        raise ValueError(
            f"`{short(word)}` is not an attribute; {'did you mean' if near else 'known:'} "
            + ", ".join(f"`{known}`" for known in hint)
            + ("?" if near else "")
        )
    if lower.startswith(f"{METADATA}.") and not METADATA_NAME.match(name):
        raise ValueError(f"`{ascii(word)[1:-1]}` is not a valid name of metadata; use letters, digits, -, _ and .")
    return name if name == "Last-Modified" else word_of(name)


def _check_tags(text: str) -> None:
    """Raises ValueError unless the text has one to ten tags, as the stores allow."""
    try:
        tags = parse_qsl(text, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise ValueError("tags are written as `team=shop&season=summer`") from None
    if not 1 <= len(tags) <= 10 or len(dict(tags)) < len(tags):
        raise ValueError("an object has at most ten tags, each with a name of its own")


def rules_of(
    attributes: Attributes,
    cache_control: str | None,
    metadata: Mapping[str, str],
    storage_class: str | None,
    encryption: Encryption | None,
) -> AttributeRules:
    """Returns a destination's settings as rules. Raises ValueError for an attribute that two of them set."""
    given = [(name_of(word) or "", value) for word, value in attributes.set.items()]
    given += [("Cache-Control", cache_control)] if cache_control else []
    given += [(name.lower(), value) for name, value in metadata.items() if value]
    given += [(TIER, storage_class)] if storage_class else []
    given += [(KMS_KEY, encryption.kms_key)] if encryption is not None else []
    values = dict(given)
    for name in values:
        if [other for other, _ in given].count(name) > 1:
            raise ValueError(f"`{word_of(name)}` is set twice; keep one")
    keep = None if attributes.keep == "all" else frozenset(attributes.keep)
    return AttributeRules(keep, frozenset(attributes.drop), values)


def refuse_unheld(rules: AttributeRules, uri: str) -> None:
    """Raises ValueError for an attribute that each object is to have, and that no object at ``uri`` can have."""
    scheme = uri.partition(":")[0]
    holds = HOLDS[scheme]
    lost = split(rules.set, holds)[1]
    if not lost:
        return
    if scheme == "file":
        names = ", ".join(word_of(name) for name in lost)
        raise ValueError(f"a directory cannot store attributes of objects ({names}); remove them")
    name = lost[0]
    if name == TIER and holds.tiers is not None:
        tiers = ", ".join(sorted(holds.tiers))
        raise ValueError(f"storage_class `{short(rules.set[name])}` does not exist there; it has {tiers}")
    if name in holds.names:
        allowed = "letters, digits, blanks and + - . / : = _" if name == TAGS else "characters of ASCII"
        raise ValueError(f"`{word_of(name)}`: Azure allows only {allowed} there")
    if name in (TAGS, KMS_KEY) or word_of(name) == name:
        raise ValueError(f"{scheme}:// objects cannot have `{word_of(name)}`; remove it")
    used = sum(len(key) + len(value) for key, value in rules.set.items())
    if used > holds.metadata_bytes:
        raise ValueError(f"the metadata has more than the {holds.metadata_bytes:,} bytes that an object can have")
    raise ValueError(
        f"destination.metadata: Azure cannot hold the name `{short(name)}`; use letters, digits and _, and begin with a "
        "letter or _"
    )
