"""The job: what to move, from where, to where and how. One model for the file, the flow and the UI.

Its fingerprints (SEMANTICS: plan and cache) say what a change of a setting means for work that is done.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ferry.core import short
from ferry.http import OPEN_HEADERS, USER_AGENT, OriginOptions, recipient, site_of_template
from ferry.job.base import Model as _Model
from ferry.job.base import Part
from ferry.job.delta import Delta
from ferry.job.validators import (
    ADDRESS_SCHEMA,
    HEADERS_SCHEMA,
    METADATA_NAME,
    BytesPerSecond,
    DestinationEndpoint,
    PerSecond,
    Places,
    SourceEndpoint,
    credentials_reference,
    header_references,
    host_pattern,
    no_secret_in_address,
    parse_budget,
    patterns_for,
    plain_place,
    private_addresses,
    root_address,
    sendable,
)


class Checks(StrEnum):
    NONE = "none"
    LENGTH = "length"
    IMAGE = "image"
    DECODE = "decode"


class OnExisting(StrEnum):
    SKIP_SAME = "skip-same"
    SKIP = "skip"
    OVERWRITE = "overwrite"
    FAIL = "fail"


Auto = Annotated[Literal["auto"], Field(title="auto")]  # titles are what the form calls the choices


class Columns(_Model):
    """Which column of the manifest is what. What is not named is recognised by its usual names."""

    source: str | None = None
    """Where the object is: a URL, or an ID for `source.url`."""
    key: str | None = None
    """The key at the destination."""
    size: str | None = None
    """Its length in bytes."""
    md5: str | None = None
    """Its MD5, hex or base64."""
    sha256: str | None = None
    """Its SHA-256, hex or base64."""
    etag: str | None = None
    """The origin's ETag."""
    last_modified: str | None = None
    """When it last changed."""
    content_type: str | None = None
    """Its media type."""
    id: str | None = None
    """Your own name for the row; it is carried into every report."""


class Source(_Model):
    """Where the objects come from."""

    url: Annotated[str | None, Field(json_schema_extra=ADDRESS_SCHEMA)] = None
    """The address of an object for lists of bare IDs: `https://img.old.example/{id}.jpg`. Any column may stand in braces."""
    roots: list[Annotated[str, AfterValidator(root_address)]] = []
    """Where `s3://` and `file://` sources of rows may lie: `s3://old/images/`, `file:///srv/images/`. A manifest that is a bucket prefix or a directory is a root by itself."""
    headers: Annotated[dict[str, str], AfterValidator(header_references), Field(json_schema_extra=HEADERS_SCHEMA)] = {}
    """Sent with each request. Values are references, `secret:BLOCK` or `env:NAME`, except Accept, Accept-Language, Referer and User-Agent."""
    headers_for: list[Annotated[str, AfterValidator(recipient)]] = []
    """Hosts that are sent the headers whose values are references: `img.old.example`, `*.old.example`, `img.old.example:8443`, or `*` for every host that a row names. Over https alone, at port 443 where none is named; `http://img.old.example` means plain HTTP too. Default: scheme, host and port of `source.url`."""
    user_agent: Annotated[str | None, AfterValidator(partial(sendable, key="source.user_agent"))] = None
    """Who asks. Say how to reach you: an origin's operator will look here first."""
    allow_private_addresses: Annotated[list[str], AfterValidator(private_addresses)] = []
    """Hosts and networks inside private address ranges that may be fetched from: `img.internal`, `10.1.0.0/16`; with a port, `img.internal:8080`, that port alone."""
    endpoint_url: SourceEndpoint = None
    """For buckets that are not at AWS: the S3 endpoint."""
    region: str | None = None
    """The bucket's region."""
    credentials: Annotated[str | None, AfterValidator(credentials_reference)] = None
    """For buckets: `profile:NAME`, `block:NAME` (a saved Prefect AwsCredentials block) or `anonymous`. Default: boto3's chain."""

    @field_validator("url")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        return value if value is None else no_secret_in_address(value, "source.url")

    def recipients(self) -> list[str]:
        """Which sites get the headers that are secrets."""
        return self.headers_for or site_of_template(self.url)

    @model_validator(mode="after")
    def _secrets_have_recipients(self) -> Source:
        secret = next((name for name in self.headers if name.lower() not in OPEN_HEADERS), None)
        if secret is not None and not self.recipients():
            raise ValueError(
                f"header `{short(secret)}` is a secret, and a list may name any host. Say which hosts get it: "
                "`headers_for: [img.old.example]`"
            )
        return self


class Destination(_Model):
    """Where the objects go."""

    uri: Annotated[str, Field(json_schema_extra=ADDRESS_SCHEMA)]
    """`s3://bucket/prefix/` or `file:///dir/`."""
    endpoint_url: DestinationEndpoint = None
    """For buckets that are not at AWS: the S3 endpoint, `https://s3.example`."""
    region: str | None = None
    """The bucket's region."""
    credentials: Annotated[str | None, AfterValidator(credentials_reference)] = None
    """`profile:NAME`, `block:NAME` (a saved Prefect AwsCredentials block) or `anonymous`. Default: boto3's chain."""
    cache_control: Annotated[str | None, AfterValidator(partial(sendable, key="destination.cache_control"))] = None
    """The Cache-Control that objects are written with."""
    metadata: dict[str, str] = {}
    """User metadata that objects are written with."""

    @field_validator("uri")
    @classmethod
    def _uri(cls, value: str) -> str:
        plain_place(value, "destination")
        if re.match(r"s3://[^/]+", value) or value.startswith("file:///"):
            return value
        raise ValueError("destination is neither `s3://bucket/prefix/` nor `file:///directory/`")

    @field_validator("metadata")
    @classmethod
    def _metadata(cls, values: dict[str, str]) -> dict[str, str]:
        for name, value in values.items():
            if not METADATA_NAME.match(name):
                raise ValueError(
                    f"destination.metadata: `{ascii(name)[1:-1]}` is no name; use letters, digits, -, _ and ."
                )
            sendable(value, f"destination.metadata.{name}")
        return values

    @model_validator(mode="after")
    def _files_have_no_headers(self) -> Destination:
        if self.uri.startswith("file:") and (self.cache_control or self.metadata):
            raise ValueError("cache_control and metadata cannot be kept in a directory; leave them out")
        return self


class Retries(_Model):
    """How often, and after what, a failure is tried again."""

    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """Tries of one object before it goes to the end of its chunk for a last one."""
    backoff_s: Annotated[float, Field(gt=0, le=600)] = 1.0
    """Seconds before the second try; doubled for each further one, with jitter."""
    max_backoff_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds at most between two tries; a longer Retry-After leaves the row for later."""
    passes: Annotated[int, Field(ge=0, le=10)] = 1
    """Further passes over the retryable failures, after the last chunk."""
    chunk_attempts: Annotated[int, Field(ge=0, le=100)] = 4
    """Prefect retries of a chunk for its pending rows."""
    chunk_delay_s: Annotated[float, Field(gt=0, le=3600)] = 15.0
    """Seconds before the first of them; doubled for each further one, with jitter."""


class Timeouts(_Model):
    """When an object is given up and tried again."""

    connect_s: Annotated[float, Field(gt=0, le=300)] = 15.0
    """Seconds to open a connection."""
    read_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Seconds without a byte."""
    total_s: Annotated[float, Field(gt=0, le=86400)] = 600.0
    """Seconds for one object, download or upload."""


class HostLimits(_Model):
    """Bounds for the destination, or for one host. What adapts stays below them."""

    concurrency: Places = None
    """Requests in flight at most, 1 to 4096."""
    requests_per_s: PerSecond = None
    """Requests per second at most, evenly spread; `0.5` is one every two seconds."""
    bytes_per_s: BytesPerSecond = None
    """Bytes per second at most: a number, or `10MB`, `10MiB`, `1GB`."""


class Limits(HostLimits):
    """Bounds that you set; docs/explanation/concurrency.md says what adapts by itself below them. `concurrency`, `requests_per_s` and `bytes_per_s` here are for all origin hosts of the job together. Each entry of `hosts` has the keys of `limits.destination`: `hosts: {img.old.example: {requests_per_s: 50}}`."""

    hosts: dict[Annotated[str, AfterValidator(host_pattern)], HostLimits] = {}
    """Bounds for single origin hosts: `img.old.example`, `img.old.example:8080`, `*.old.example`, or the name of a bucket. The most exact entry counts, alone."""
    destination: Part[HostLimits] = HostLimits()
    """Bounds for the destination."""

    def of_host(self, host: str) -> tuple[str, HostLimits]:
        """The most exact entry for a host (with its port) or a bucket, and its key; ("", no bounds) where none is."""
        key = next((key for key in patterns_for(host) if key in self.hosts), "") if self.hosts else ""
        return key, self.hosts.get(key, HostLimits())


def _or_address(schema: dict[str, Any]) -> None:
    """The short form in the schema too: a Prefect server checks a deployment's parameters against it."""
    schema["anyOf"] = [{"type": "string", "title": "Address", **ADDRESS_SCHEMA}, {"$ref": schema.pop("$ref")}]


class Job(_Model):
    """A migration: the list of what to move, where it goes, and how."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """The job's name: letters, digits, `.`, `_` and `-`. Names the state and the runs."""
    manifest: Annotated[str, Field(json_schema_extra=ADDRESS_SCHEMA)]
    """The list: a path, `s3://` or `http(s)://` address of a csv, tsv, txt, jsonl, parquet or xlsx file (text also as .gz or .zst); or a bucket prefix or directory to list: `s3://old/images/`, `file:///dir/`."""
    destination: Annotated[Destination, Field(json_schema_extra=_or_address)]
    """Where to: an address, or a mapping of `uri` and more."""
    source: Part[Source] = Source()
    """Where the objects come from."""
    columns: Part[Columns] = Columns()
    """Which column of the manifest is what."""
    include: list[str] = []
    """Listed manifests: only keys that match one of these globs."""
    exclude: list[str] = []
    """Listed manifests: no key that matches one of these globs."""
    key: str | None = None
    """A template for the destination key: `{sku}/{source.name}`, `{sha256}.{ext}`. Default: the row's key column, else the path of its URL."""
    checks: Checks = Checks.IMAGE
    """What a body must be: `image` (a whole image of a known format), `decode` (every pixel too), `length`, `none`. Digests in the manifest are always compared. With `none`, S3 copies from bucket to bucket by itself."""
    on_existing: OnExisting = OnExisting.SKIP_SAME
    """What to do with a key that exists: `skip-same`, `skip`, `overwrite`, `fail`."""
    bad_lines: Literal["error", "skip"] = "error"
    """A line of the manifest that cannot be delimited: `error` stops before anything moves, `skip` makes it an outcome."""
    state: Annotated[str | None, Field(json_schema_extra=ADDRESS_SCHEMA)] = None
    """Where plan, outcomes and reports live: a directory or an `s3://` prefix. Default: `.ferry/<name>`."""
    mode: Literal["full", "delta"] = "full"
    """`full` moves what is new, pending or failed for a passing reason, and believes the ledger of the rest. `delta` looks again at what is settled, too: for every night while both ends live (docs/how-to/delta-runs.md)."""
    delta: Part[Delta] = Delta()
    """What `mode: delta` does with rows that are settled, or that failed."""
    chunk_rows: Annotated[int, Field(ge=1, le=1_000_000, title="number")] | Auto = "auto"
    """Rows in a chunk; the first plan freezes it."""
    concurrency: Annotated[int, Field(ge=1, le=4096, title="number")] | Auto = "auto"
    """Objects in flight at each host at most, the destination included. `auto` finds out what each host bears; a number is a bound that is backed off from, and come back to, in the same way. `limits` bounds single hosts, rates, and the whole job."""
    limits: Part[Limits] = Limits()
    """Bounds on what origin hosts and the destination are asked for."""
    processes: Annotated[int, Field(ge=1, le=16, title="number")] | Auto = "auto"
    """Engine processes. `auto`: one, and another when its core is what limits the rate, a core is idle, and nothing else is bounded. A number divides all bounds among them."""
    retries: Part[Retries] = Retries()
    """How often a failure is tried again."""
    timeouts: Part[Timeouts] = Timeouts()
    """When an object is given up."""
    failure_budget: int | float | str = "1%"
    """Failures that a run may end with and still be Completed: a share (`1%`, `0.01`) or a count of rows (`25`)."""
    duplicate_bodies: Literal["warn", "fail"] = "warn"
    """Rows from different addresses with the same bytes, often a placeholder: ten rows at least, and a thousandth of all. `warn` reports them. With `fail` the run also ends as Failed. Their objects stay."""
    max_bytes: Annotated[int, Field(ge=1)] = 1024**3
    """The largest object that is taken, in bytes."""

    @field_validator("destination", mode="before")
    @classmethod
    def _short_destination(cls, value: Any) -> Any:
        return {"uri": value} if isinstance(value, str) else value

    @field_validator("manifest")
    @classmethod
    def _manifest(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("manifest is empty; name the list of what to move")
        return plain_place(value, "manifest")

    @field_validator("failure_budget", mode="before")
    @classmethod
    def _budget(cls, value: int | float | str) -> int | float | str:
        parse_budget(value)
        return value

    @field_validator("state")
    @classmethod
    def _state(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or ("://" in value and not re.match(r"s3://[^/]+", value))):
            raise ValueError("state is a directory or an `s3://bucket/prefix`")
        return value if value is None else plain_place(value, "state")

    @model_validator(mode="after")
    def _globs(self) -> Job:
        if (self.include or self.exclude) and not self.is_listed():
            raise ValueError(
                "include and exclude are for manifests that are listed: `s3://old/images/` or `file:///dir/`, "
                "with the `/` at the end"
            )
        if self.is_listed() and (self.source.url or self.columns != Columns()):
            raise ValueError("source.url and columns are for lists; a listed manifest says both source and key itself")
        return self

    def is_listed(self) -> bool:
        """The manifest is a bucket prefix or a directory, to be listed; every other one is a file."""
        return self.manifest.endswith("/") and self.manifest.startswith(("s3://", "file://"))

    def roots(self) -> list[str]:
        """Where `s3://` and `file://` sources may lie: `source.roots`, and a listed manifest itself."""
        listed = [self.manifest] if self.is_listed() else []
        return [root if root.endswith("/") else root + "/" for root in (*self.source.roots, *listed)]

    def origin_options(self, headers: Mapping[str, str]) -> OriginOptions:
        """How this job asks origins. ``headers``: its own, with their secrets resolved."""
        return OriginOptions(
            headers, self.source.recipients(), self.timeouts.connect_s, self.timeouts.read_s, self.timeouts.total_s,
            self.max_bytes, self.source.user_agent or USER_AGENT,
        )  # fmt: skip

    def location_digests(self) -> dict[str, str]:
        """The settings that say where rows come from and go to; each as a digest, so that none is shown."""
        values: dict[str, Any] = {
            "source.url": self.source.url,
            "columns": self.columns.model_dump(),
            "key": self.key,
            "destination.uri": self.destination.uri.rstrip("/"),
            "destination.endpoint_url": self.destination.endpoint_url,
        }
        return {name: _digest(value) for name, value in values.items()}

    def how(self) -> dict[str, Any]:
        """The settings that change what is written or accepted, but not which row goes where."""
        return {
            "checks": self.checks.value,
            "on_existing": self.on_existing.value,
            "max_bytes": self.max_bytes,
            "cache_control": self.destination.cache_control,
            "metadata": self.destination.metadata,
            "headers": sorted(name.lower() for name in self.source.headers),
            **({"headers_for": sorted(self.source.headers_for)} if self.source.headers_for else {}),
        }

    def settings_digest(self) -> str:
        """16 hex digits that outcomes carry: failed and skipped rows of another `how` are planned anew."""
        return _digest(self.how())[:16]

    def fingerprint(self) -> str:
        """SHA-256 over everything that changes results; a part of each chunk's cache key."""
        return _digest({"where": self.location_digests(), "how": self.how()})

    def budget(self, rows: int) -> int:
        """Failures allowed among ``rows`` rows without duplicates; a share is rounded up, to one row at least."""
        share, count = parse_budget(self.failure_budget)
        if share is None:
            return count or 0
        return 0 if share == 0 else max(1, math.ceil(rows * share - 1e-9))


def _digest(value: Any) -> str:
    """SHA-256 of canonical JSON: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
