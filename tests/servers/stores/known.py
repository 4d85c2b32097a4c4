"""What is known of a store's server: where it differs from the provider that it stands for. The contract suite holds
each field against what the server does, so that an update that mends or breaks something fails a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

# folded: it is stored under another name, or as something else; unlisted: with it the listing is an error
KeyIs = Literal["kept", "folded", "refused", "unlisted"]
IfMatch = Literal["yes", "bare", "no"]  # bare: the right ETag is refused in quotes, and taken without (Ceph RGW 16)


@dataclass(frozen=True, slots=True)
class Known:
    """The defaults are those of the real providers."""

    keys: Mapping[str, KeyIs] = field(default_factory=lambda: MappingProxyType({}))  # by the names of odd_keys.py
    bad_keys: frozenset[str] = frozenset()  # Ferry refuses them, by the provider's rules or as one of a kind
    lost: frozenset[str] = frozenset()  # attributes, by their names in the contract suite, that are not kept
    byte_order: bool = True  # listings are sorted by the keys' bytes
    starts_after: bool = True  # a listing can start after a key
    compares_digest: bool = True  # it refuses a body that is not that of the digest sent with it
    checks_keys: bool = True  # credentials that are wrong are refused
    creates_once: bool = True  # of several creations of one key one succeeds
    creates_parts_once: bool = True  # the same at the end of an upload in parts
    if_match: IfMatch = "yes"
    makes_buckets: bool = False  # a bucket that is missing is made by the first object
    names_missing: bool = True  # a 404 says whether the bucket is missing or the object
    aborts: bool = True  # an upload in parts can be ended; Azure deletes its blocks after a week
    at_once: int = 16  # requests that it bears
    copies_if_equal: bool = True  # a copy whose condition is another version is refused

    @property
    def holds_state(self) -> bool:
        """Whether two runs exclude each other there."""
        return self.creates_once and self.if_match != "no"
