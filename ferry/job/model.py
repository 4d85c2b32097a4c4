"""The configuration model of a job, shared by the job file, the Prefect flow and Prefect's UI.

Its fingerprints decide which settings cause objects to be transferred again (docs/reference/job.md).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ferry.core import AttributeRules, Bucket, in_bucket, parse_bucket, short
from ferry.http import OPEN_HEADERS, USER_AGENT, Auth, Network, OriginOptions, recipient, site_of_template
from ferry.job.api_list import ApiList, ManifestSetting
from ferry.job.attributes import Attributes, Encryption, refuse_unheld, rules_of
from ferry.job.auth import SourceAuth
from ferry.job.base import Model as _Model
from ferry.job.base import Part
from ferry.job.buckets import check_side
from ferry.job.columns import ROLES, Columns
from ferry.job.delta import Delta
from ferry.job.limits import Limits
from ferry.job.network import JobNetwork
from ferry.job.prices import Prices
from ferry.job.public_url import public_address
from ferry.job.retries import Retries, Timeouts
from ferry.job.units import UNLIMITED_BYTES, MaxBytes, SpoolBytes
from ferry.job.validators import (
    ADDRESS_SCHEMA,
    HEADERS_SCHEMA,
    METADATA_NAME,
    DestinationEndpoint,
    SourceEndpoint,
    credentials_reference,
    header_references,
    no_secret_in_address,
    parse_budget,
    private_addresses,
    root_address,
    sendable,
    state_location,
    store_address,
)


class Checks(StrEnum):
    """Checks of a downloaded body."""

    NONE = "none"
    LENGTH = "length"
    IMAGE = "image"
    DECODE = "decode"


class OnExisting(StrEnum):
    """Policies for a destination key that exists."""

    SKIP_SAME = "skip-same"
    SKIP = "skip"
    OVERWRITE = "overwrite"
    FAIL = "fail"


Side = Literal["source", "destination"]
Auto = Annotated[Literal["auto"], Field(title="auto")]  # Prefect's form shows titles as the names of the choices


class Source(_Model):
    """Sources of the objects."""

    url: Annotated[str | None, Field(json_schema_extra=ADDRESS_SCHEMA)] = None
    """URL template for manifests that have IDs instead of URLs: `https://img.old.example/{id}.jpg`. Braces may name any column."""
    roots: list[Annotated[str, AfterValidator(root_address)]] = []
    """Prefixes and directories that rows may name as sources: `s3://old/images/`, `gs://old/images/`, `az://account/old/images/`, `file:///srv/images/`. Its buckets, and that of the manifest, are of one provider, and at Azure of one account. A manifest that is a prefix or a directory is also a root."""
    headers: Annotated[dict[str, str], AfterValidator(header_references), Field(json_schema_extra=HEADERS_SCHEMA)] = {}
    """Headers of each HTTP request. Values are references (`secret:BLOCK` or `env:NAME`), except for Accept, Accept-Language, Referer and User-Agent."""
    headers_for: list[Annotated[str, AfterValidator(recipient)]] = []
    """Hosts that receive the headers with references: `img.old.example`, `*.old.example`, `img.old.example:8443`, or `*` for every host and port in the manifest. A host means HTTPS, and port 443 unless the entry names another. `http://img.old.example` also allows plain HTTP. Default: scheme, host and port of `source.url`."""
    auth: SourceAuth | None = None
    """A credential for the list and the objects: a token, a key or a password."""
    auth_for: list[Annotated[str, AfterValidator(partial(recipient, key="auth_for"))]] = []
    """Hosts that receive the credential of `source.auth`, and that the next page of a list may be at. Entries are those of `source.headers_for`. Default: scheme, host and port of the manifest, if it is at a web server, and of `source.url`."""
    user_agent: Annotated[str | None, AfterValidator(partial(sendable, key="source.user_agent"))] = None
    """The User-Agent header. Include a contact address for the origin's operator."""
    allow_private_addresses: Annotated[list[str], AfterValidator(private_addresses)] = []
    """Hosts and networks in private address ranges that Ferry may download from: `img.internal`, `10.1.0.0/16`. An entry with a port (`img.internal:8080`) allows only that port."""
    endpoint_url: SourceEndpoint = None
    """The endpoint of a source bucket that is not at AWS, Google or Azure, as of `destination.endpoint_url`."""
    region: str | None = None
    """The region of an `s3://` bucket."""
    credentials: Annotated[str | None, AfterValidator(credentials_reference)] = None
    """Credentials for source buckets, a reference as of `destination.credentials`."""
    public_url: Annotated[str | None, AfterValidator(partial(public_address, setting="source.public_url"))] = None
    """The address under which visitors asked for an object at the source, if that is not the row's own address: `https://img.old.example/{key}`. `{key}` is the object's key below its root, or the path of its URL. Redirects and `ferry missing` use it."""

    @field_validator("url")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        return value if value is None else no_secret_in_address(value, "source.url")

    def recipients(self) -> list[str]:
        """Returns the entries of the hosts that receive the headers with references."""
        return self.headers_for or site_of_template(self.url)

    @model_validator(mode="after")
    def _secrets_have_recipients(self) -> Source:
        secret = next((name for name in self.headers if name.lower() not in OPEN_HEADERS), None)
        if secret is not None and not self.recipients():
            raise ValueError(
                f"header `{short(secret)}` is a secret, and a manifest may name any host. Name the hosts that receive it: "
                "`headers_for: [img.old.example]`"
            )
        return self

    @model_validator(mode="after")
    def _one_credential(self) -> Source:
        header = self.auth.header_name() if self.auth is not None else None
        if header is not None and header.lower() in map(str.lower, self.headers):
            raise ValueError(f"`auth` and `headers` both set `{header}`; remove one of them")
        return self


class Destination(_Model):
    """Destination of the objects."""

    uri: Annotated[str, Field(json_schema_extra=ADDRESS_SCHEMA)]
    """The destination: `s3://bucket/prefix/`, `gs://bucket/prefix/` (Google Cloud Storage), `az://account/container/prefix/` (Azure Blob Storage) or `file:///dir/`."""
    endpoint_url: DestinationEndpoint = None
    """The endpoint of a bucket that is not at AWS, Google or Azure: `https://s3.example`. At Azure it names the account, as in `https://account.blob.core.chinacloudapi.cn` or `http://127.0.0.1:10000/account`."""
    region: str | None = None
    """The region of an `s3://` bucket."""
    credentials: Annotated[str | None, AfterValidator(credentials_reference)] = None
    """Credentials for the bucket, a reference: `s3://`: `profile:NAME`, `block:NAME` (a Prefect AwsCredentials block) or `anonymous`. `gs://`: `env:NAME` or `secret:BLOCK` (the JSON of a credentials file), `impersonate:ACCOUNT@PROJECT.iam.gserviceaccount.com` or `anonymous`. `az://`: `env:NAME` or `secret:BLOCK` (the account's key or a SAS) or `anonymous`. Default: those of the machine (Credentials of buckets)."""
    cache_control: Annotated[str | None, AfterValidator(partial(sendable, key="destination.cache_control"))] = None
    """The Cache-Control of the written objects."""
    metadata: dict[str, str] = {}
    """The user metadata of the written objects."""
    attributes: Part[Attributes] = Attributes()
    """Attributes of the written objects."""
    storage_class: Annotated[str | None, AfterValidator(partial(sendable, key="destination.storage_class"))] = None
    """The storage class or tier of the written objects: `STANDARD_IA`. Default: that of the source, if the destination has it."""
    encryption: Encryption | None = None
    """Encryption of the written objects. Default: the bucket's own."""

    def uri_of(self, key: str) -> str:
        """Returns the URI of an object, such as `s3://bucket/prefix/shoes/1.jpg`; nothing in it is percent-encoded."""
        return f"{self.uri.rstrip('/')}/{key}"

    @field_validator("uri")
    @classmethod
    def _uri(cls, value: str) -> str:
        return store_address(value, "destination")

    @field_validator("metadata")
    @classmethod
    def _metadata(cls, values: dict[str, str]) -> dict[str, str]:
        for name, value in values.items():
            if not METADATA_NAME.match(name):
                raise ValueError(
                    f"destination.metadata: `{ascii(name)[1:-1]}` is not a valid name; use letters, digits, -, _ and ."
                )
            sendable(value, f"destination.metadata.{name}")
        return values

    @model_validator(mode="after")
    def _attributes_can_be_held(self) -> Destination:
        refuse_unheld(self.attribute_rules(), self.uri)
        return self

    def attribute_rules(self) -> AttributeRules:
        """Returns which attributes objects keep from their sources, and which all of them have."""
        return rules_of(self.attributes, self.cache_control, self.metadata, self.storage_class, self.encryption)


def _address_or_mapping(schema: dict[str, Any]) -> None:
    """Allows an address in the JSON schema, since a Prefect server checks a deployment's parameters against it."""
    schema["anyOf"] = [{"type": "string", "title": "Address", **ADDRESS_SCHEMA}, {"$ref": schema.pop("$ref")}]


class Job(_Model):
    """A migration: its manifest, its destination and its settings."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """The job's name: letters, digits, `.`, `_` and `-`. The state and the runs are named after it."""
    manifest: ManifestSetting
    """The manifest, a file with one row per object: a path, or an address in a bucket or at a web server, of a csv, tsv, txt, jsonl, parquet or xlsx file (text also as .gz or .zst). Or a bucket prefix or directory to list: `s3://old/images/`, `gs://old/images/`, `az://account/old/images/`, `file:///dir/`. Or a mapping, for an API that answers with pages of JSON."""
    destination: Annotated[Destination, Field(json_schema_extra=_address_or_mapping)]
    """The destination: an address, or a mapping with `uri` and other keys."""
    source: Part[Source] = Source()
    """Sources of the objects."""
    public_url: Annotated[str | None, AfterValidator(partial(public_address, setting="public_url"))] = None
    """The address under which visitors get an object of the destination: `https://img.new.example/{key}`. Fields: `{key}` (below the destination's prefix), `{key.name}`, `{key.stem}`, `{key.ext}` and `{id}`. Maps, redirects, reports and `ferry verify --public` use it."""
    columns: Part[Columns] = Columns()
    """Manifest columns by role."""
    include: list[str] = []
    """For listed manifests: transfer only keys that match one of these globs."""
    exclude: list[str] = []
    """For listed manifests: omit keys that match one of these globs."""
    key: str | None = None
    """Template for the destination key: `{sku}/{source.name}`, `{sha256}.{ext}`. Default: the row's key column, else the path of its URL."""
    checks: Checks = Checks.IMAGE
    """Check of each body: `image` (a complete image of a known format), `decode` (also decodes every pixel), `length`, or `none`. Digests in the manifest are always compared. With `none`, a server copies objects between its buckets itself."""
    on_existing: OnExisting = OnExisting.SKIP_SAME
    """Policy for a destination key that exists: `skip-same` (replace the object if its bytes differ), `skip` (keep it), `overwrite`, or `fail` (fail the row if its bytes differ)."""
    dedupe: bool = False
    """Transfer equal bytes once. Bytes that this job has stored for one row are copied at the destination for others, or shared under one key (section "Equal bytes")."""
    bad_lines: Literal["error", "skip"] = "error"
    """Handling of a manifest line that cannot be parsed: `error` ends the run before any transfer, `skip` records the line as a failed row."""
    on_lost_attribute: Literal["report", "fail"] = "report"
    """Handling of an attribute that an object has, that is to be kept, and that the destination cannot hold: `report` counts it by name, `fail` fails the row before anything is written."""
    state: Annotated[str | None, Field(json_schema_extra=ADDRESS_SCHEMA)] = None
    """Location of plan, outcomes and reports: a directory, or a prefix in a bucket of the destination's provider. Default: `.ferry/<name>`."""
    mode: Literal["full", "delta"] = "full"
    """`full` transfers rows that are new, pending or retryable failures. `delta` also rechecks rows that are done, to keep the copies in sync (docs/how-to/delta-runs.md)."""
    delta: Part[Delta] = Delta()
    """Settings of `mode: delta`."""
    chunk_rows: Annotated[int, Field(ge=1, le=1_000_000, title="number")] | Auto = "auto"
    """Rows per chunk. The first plan of a job fixes it."""
    concurrency: Annotated[int, Field(ge=1, le=4096, title="number")] | Auto = "auto"
    """Maximum objects in flight at each origin host and at the destination. `auto` adapts to each host. With a number, Ferry adapts below that limit. `limits` sets limits for single hosts, rates and the whole job."""
    limits: Part[Limits] = Limits()
    """Fixed limits on the load of origin hosts and of the destination."""
    processes: Annotated[int, Field(ge=1, le=16, title="number")] | Auto = "auto"
    """Number of transfer processes. `auto` starts with one, and adds one when CPU limits the rate, a core is idle, and the job sets neither `concurrency` nor `limits`. With a number, all limits are divided among the processes."""
    machines: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of machines that transfer at a time: the run's own, and workers of its work pool that take shards of the plan (docs/how-to/scale.md). All limits hold for the machines together. The state, the destination and all roots of sources must be in buckets."""
    retries: Part[Retries] = Retries()
    """Number and timing of retries."""
    timeouts: Part[Timeouts] = Timeouts()
    """Timeouts after which an attempt ends."""
    failure_budget: int | float | str = "1%"
    """Failures up to which a run ends as Completed: a share of the rows (`1%`, `0.01`) or a number of rows (`25`)."""
    duplicate_bodies: Literal["warn", "fail"] = "warn"
    """Handling of equal bytes from different addresses, often a placeholder image, in at least ten rows and a thousandth of all rows. `warn` reports them. With `fail`, the run also ends as Failed. Their objects stay."""
    max_bytes: Annotated[MaxBytes, Field(ge=1)] = 1024**3
    """Maximum size of an object, also once its Content-Encoding is undone: bytes, or `20MB`, `1GiB`, `5TB`, or `off`."""
    spool_bytes: Annotated[SpoolBytes, Field(ge=1)] = UNLIMITED_BYTES
    """Maximum size of all spool files together, in which objects over 8 MiB wait on the disk of the state: bytes, or `20GB`, or `off`. An object waits for its space. A larger one is uploaded in parts while it is downloaded; it fails if its check or its key needs all of it, or if its length is unknown. `processes: auto` stays at one process, and a number of processes divides it."""
    network: Part[JobNetwork] = JobNetwork()
    """Proxies, trusted certificates and a client certificate, for origins, lists, APIs and stores."""
    prices: Part[Prices] = Prices()
    """Prices of requests, traffic and storage, for `ferry check`."""

    @field_validator("destination", mode="before")
    @classmethod
    def _short_destination(cls, value: Any) -> Any:
        return {"uri": value} if isinstance(value, str) else value

    @field_validator("failure_budget", mode="before")
    @classmethod
    def _budget(cls, value: int | float | str) -> int | float | str:
        parse_budget(value)
        return value

    @field_validator("state")
    @classmethod
    def _state(cls, value: str | None) -> str | None:
        return value if value is None else state_location(value)

    @model_validator(mode="after")
    def _globs(self) -> Job:
        if (self.include or self.exclude) and not self.is_listed():
            raise ValueError(
                "include and exclude apply only to a manifest that is a prefix or directory to list: write "
                "`s3://old/images/` or `file:///dir/`, with the `/` at the end, or remove them"
            )
        if self.source.url and self.columns.more_sources:
            raise ValueError(
                "source.url cannot be combined with several columns in columns.source: it makes one address for each "
                "row. Remove one of the two, or write the addresses into columns of the manifest"
            )
        if self.is_listed() and (self.source.url or self.columns != Columns()):
            raise ValueError(
                "source.url and columns apply only to a manifest file; remove them, since a listing has source and key itself"
            )
        return self

    @model_validator(mode="after")
    def _credential_has_recipients(self) -> Job:
        if self.source.auth is not None and not self.auth_recipients():
            raise ValueError(
                "source.auth is a secret, and a manifest may name any host. Name the hosts that receive it: "
                "`auth_for: [img.old.example]`"
            )
        return self

    @model_validator(mode="after")
    def _one_provider_a_side(self) -> Job:
        check_side("source", self._buckets("source"), self.source)
        check_side("destination", self._buckets("destination"), self.destination)
        return self

    @model_validator(mode="after")
    def _machines_share_places(self) -> Job:
        places = [("state", self.state or ""), ("destination", self.destination.uri)]
        places += [("source.roots or manifest", root) for root in self.roots()]
        own = next((setting for setting, place in places if not in_bucket(place)), None)
        if self.machines > 1 and own is not None:
            raise ValueError(
                f"machines: {self.machines} needs a bucket for {own}, since other machines do not see this machine's "
                "directories. Name a bucket, or leave `machines` at 1"
            )
        return self

    def _buckets(self, side: Side) -> list[tuple[str, Bucket]]:
        """Returns the settings that name a bucket of ``side``. The state has the destination's credentials."""
        roots = [("source.roots", root) for root in self.source.roots]
        named = {
            "source": [("manifest", self.manifest_address), *roots],
            "destination": [("destination", self.destination.uri), ("state", self.state or "")],
        }[side]
        return [(setting, parse_bucket(address)) for setting, address in named if in_bucket(address)]

    def bucket(self, side: Side) -> Bucket | None:
        """Returns the first bucket of ``side``, which has the provider and the account of all others."""
        return next((bucket for _, bucket in self._buckets(side)), None)

    def is_one_store(self) -> bool:
        """Returns whether one server has the buckets of source and destination, so that it may copy objects itself."""
        source, destination = self.bucket("source"), self.bucket("destination")
        if source is None or destination is None or source.owner != destination.owner:
            return False
        return self.source.endpoint_url == self.destination.endpoint_url

    @property
    def manifest_address(self) -> str:
        """The path or address of the manifest; of an API, the URL of its first page."""
        return self.manifest.url if isinstance(self.manifest, ApiList) else self.manifest

    def is_listed(self) -> bool:
        """Returns whether the manifest is a bucket prefix or a directory to list; otherwise it is a file or an API."""
        address = self.manifest_address
        return address.endswith("/") and (in_bucket(address) or address.startswith("file://"))

    def roots(self) -> list[str]:
        """Returns the roots of sources in buckets and directories: `source.roots`, and a listed manifest itself."""
        listed = [self.manifest_address] if self.is_listed() else []
        return [root if root.endswith("/") else root + "/" for root in (*self.source.roots, *listed)]

    def auth_recipients(self) -> list[str]:
        """Returns the entries of the hosts that receive the credential of `source.auth`."""
        named = [site for url in (self.manifest_address, self.source.url) for site in site_of_template(url)]
        return self.source.auth_for or named

    def origin_options(self, headers: Mapping[str, str], auth: Auth | None, network: Network) -> OriginOptions:
        """Returns the options of the HTTP client. The arguments are the job's, with resolved references."""
        return OriginOptions(
            headers, self.source.recipients(), self.timeouts.connect_s, self.timeouts.read_s, self.timeouts.total_s,
            self.max_bytes, self.source.user_agent or USER_AGENT, auth=auth, network=network,
        )  # fmt: skip

    def location_digests(self) -> dict[str, str]:
        """Returns digests of the settings that define sources and keys. A digest reveals no setting."""
        columns = {**dict.fromkeys(ROLES), **self.columns.model_dump()}
        if self.columns.more_sources:  # they change neither a row's identity nor its key
            columns["source"] = self.columns.of("source")
        values: dict[str, Any] = {
            "source.url": self.source.url,
            "columns": columns,
            "key": self.key,
            "destination.uri": self.destination.uri.rstrip("/"),
            "destination.endpoint_url": self.destination.endpoint_url,
        }
        return {name: _digest(value) for name, value in values.items()}

    def result_settings(self) -> dict[str, Any]:
        """Returns the settings that change what is written or accepted, but not the sources or keys."""
        return {
            "checks": self.checks.value,
            "on_existing": self.on_existing.value,
            "max_bytes": self.max_bytes,
            "cache_control": self.destination.cache_control,
            "metadata": self.destination.metadata,
            **_attribute_settings(self),
            "headers": sorted(name.lower() for name in self.source.headers),
            **({"headers_for": sorted(self.source.headers_for)} if self.source.headers_for else {}),
            **({"auth": [self.source.auth.type, *sorted(self.source.auth_for)]} if self.source.auth else {}),
            **({"more_sources": self.columns.more_sources} if self.columns.more_sources else {}),
        }

    def settings_digest(self) -> str:
        """Returns 16 hex digits of result_settings(). Failed and skipped rows with another digest are planned again."""
        return _digest(self.result_settings())[:16]

    def fingerprint(self) -> str:
        """Returns the SHA-256 of all settings that change results; part of each chunk's cache key."""
        return _digest({"where": self.location_digests(), "how": self.result_settings()})

    def budget(self, rows: int) -> int:
        """Returns how many of ``rows`` (without duplicates) may fail. A share above 0 is rounded up, to at least one."""
        share, count = parse_budget(self.failure_budget)
        if share is None:
            return count or 0
        return 0 if share == 0 else max(1, math.ceil(rows * share - 1e-9))


def _attribute_settings(job: Job) -> dict[str, Any]:
    """Returns those of a job's settings of attributes that are not the defaults, so that older digests stay valid."""
    given = job.destination.model_dump(include={"attributes", "storage_class", "encryption"}, exclude_defaults=True)
    return {**given, **({"on_lost_attribute": "fail"} if job.on_lost_attribute == "fail" else {})}


def _digest(value: Any) -> str:
    """Returns the SHA-256 of canonical JSON: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
