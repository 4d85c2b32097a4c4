"""What each kind of store can do, by the scheme of its addresses. docs/reference/stores.md is made from it.

Sources: Amazon S3 User Guide ("multipart upload limits", "Working with object metadata"), Google Cloud Storage ("Quotas
and limits"), Azure Storage REST API ("Put Blob", "Put Block List", "Setting and retrieving properties and metadata").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ferry.core import HEADERS, HOLDS, KMS_KEY, TIER, TYPE, WORDS, word_of

GIB = 1 << 30


def _kept(scheme: str) -> tuple[str, ...]:
    """Returns the names of the attributes that objects keep, apart from user metadata."""
    holds = HOLDS[scheme]
    kept = [name for name in (*HEADERS, *WORDS) if name != KMS_KEY and (name in holds.names or name in (TYPE, TIER))]
    return tuple(map(word_of, kept))


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The limits of one kind of store. Sizes are bytes; 0: none."""

    name: str
    address: str
    confirmed_by: str  # an upload, in the request that sends it
    attributes: tuple[str, ...]  # headers and other attributes that objects keep
    metadata_bytes: int  # names and values of user metadata
    metadata_names: str
    listed_digest: str
    byte_order: str  # whether listings are in the order of the keys' bytes
    max_bytes: int  # of an object
    max_parts: int  # of an upload; 0: no limit
    max_part_bytes: int
    parts: str  # what becomes of an upload that is left alone
    copies_up_to: int  # bytes that the server copies in one go
    state: str  # what excludes a second run, where it can hold a job's state
    credentials: str
    extra: str = ""  # of Ferry's distribution, for tokens


S3 = Capabilities(
    name="S3",
    address="s3://bucket/prefix/",
    confirmed_by="SHA-256 that the store returns, else an ETag that is the MD5, else read back",
    attributes=_kept("s3"),
    metadata_bytes=HOLDS["s3"].metadata_bytes,
    metadata_names="any token, in lower case",
    listed_digest="an ETag that is the MD5",
    byte_order="at Amazon; no other store is relied on",
    max_bytes=10_000 * 5 * GIB,
    max_parts=10_000,
    max_part_bytes=5 * GIB,
    parts="stays and costs money: Ferry aborts those of its own job",
    copies_up_to=5 * GIB,
    state="If-None-Match and If-Match, tried before the first run",
    credentials="keys, profiles, roles and SSO by boto3, a Prefect block, or none",
)
GOOGLE = Capabilities(
    name="Google Cloud Storage",
    address="gs://bucket/prefix/",
    confirmed_by="MD5, which Google compares and returns",
    attributes=_kept("gs"),
    metadata_bytes=HOLDS["gs"].metadata_bytes,
    metadata_names="any text",
    listed_digest="MD5, but for composed objects",
    byte_order="yes",
    max_bytes=5 << 40,
    max_parts=0,
    max_part_bytes=0,
    parts="ends after a week and costs nothing",
    copies_up_to=5 << 40,
    state="generations",
    credentials="Application Default Credentials, service account, workload identity, impersonation, or none",
    extra="gcs",
)
AZURE = Capabilities(
    name="Azure Blob Storage",
    address="az://account/container/prefix/",
    confirmed_by="MD5, which Azure compares and returns; for blocks the MD5 of each",
    attributes=_kept("az"),
    metadata_bytes=HOLDS["az"].metadata_bytes,
    metadata_names="letters, digits and `_`, not a digit first, in lower case",
    listed_digest="Content-MD5, if it was set",
    byte_order="not relied on",
    max_bytes=50_000 * (4_000 << 20),
    max_parts=50_000,
    max_part_bytes=4_000 << 20,
    parts="is deleted after a week",
    copies_up_to=256 << 20,
    state="If-None-Match and If-Match",
    credentials="account key, SAS, service principal, workload identity, managed identity, or none",
    extra="azure",
)
DIRECTORY = Capabilities(
    name="Directory",
    address="file:///directory/",
    confirmed_by="its size, after the bytes are synced",
    attributes=(),
    metadata_bytes=0,
    metadata_names="",
    listed_digest="none",
    byte_order="no",
    max_bytes=0,
    max_parts=0,
    max_part_bytes=0,
    parts="",
    copies_up_to=0,
    state="links and lock files; a path in place of an address",
    credentials="the user's own rights",
)
CAPABILITIES: Mapping[str, Capabilities] = MappingProxyType({"s3": S3, "gs": GOOGLE, "az": AZURE, "file": DIRECTORY})
