"""Validators of single job values. Each raises ValueError with what to write instead."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from ferry.core import (
    ADDRESS_FORMS,
    SECRET_PARAMETER,
    holds_secret,
    in_any_case,
    in_bucket,
    parse_bucket,
    scheme_of,
    short,
)
from ferry.http import OPEN_HEADERS
from ferry.job.units import size

_SENDABLE = re.compile(r"[\x20-\x7e]*\Z")  # header values that every server and store returns unchanged
METADATA_NAME = re.compile(r"[A-Za-z0-9._-]+\Z")
SECRET_REF = re.compile(r"(secret|env):\S+\Z")


# Provider -> the references to credentials of its buckets, as a pattern and in words.
CREDENTIALS: dict[str, tuple[re.Pattern[str], str]] = {
    "s3": (re.compile(r"(profile|block):\S+|anonymous"), "`profile:NAME`, `block:NAME` or `anonymous`"),
    "gs": (
        re.compile(r"(env|secret):\S+|anonymous|impersonate:[^\s@]+@[^\s@]+\.gserviceaccount\.com"),
        "`env:NAME`, `secret:BLOCK`, `impersonate:ACCOUNT@PROJECT.iam.gserviceaccount.com` or `anonymous`",
    ),
    "az": (re.compile(r"(env|secret):\S+|anonymous"), "`env:NAME`, `secret:BLOCK` or `anonymous`"),
}


def endpoint(value: str | None, key: str) -> str | None:
    """Validates a store's endpoint: http or https, a host, no secret. Azure's may have an account as its path."""
    if value is None:
        return None
    if not re.match(r"https?://[^/\s]+(/[a-z0-9]+)?/?\Z", value):
        raise ValueError(f"{key} is not a valid endpoint; write `https://s3.example` or `http://127.0.0.1:9000`")
    return no_secret_in_address(value, key)


def no_secret_in_address(text: str, key: str) -> str:
    """Returns the text unless it contains a secret, since job files, Prefect's database and its UI show a job."""
    found = holds_secret(text)
    if found == "a user name or password":
        raise ValueError(f"{key} holds {found}; use `auth`, `headers` or `credentials` with a reference instead")
    if found:
        instead = "use `source.auth`, or download the file first, or use a bucket and `credentials`"
        if in_bucket(text):
            instead = "use `credentials` with a reference"
        if key == "source.url":
            instead = "add a column for it to the manifest and name that column: `?token={token}`"
        raise ValueError(f"{key} holds {found}, but a job must not hold secrets; {instead}")
    return text


def plain_location(text: str, key: str) -> str:
    """Returns the text if every client reads it as the same location.

    `?` and `#` end the path of an address, and clients omit the empty segment in `a//b`. So such a text would mean
    another location than it shows.
    """
    no_secret_in_address(text, key)
    scheme, _, rest = text.partition("://")
    if not in_bucket(text) and scheme != "file":
        return text
    parent = "name a parent of it (with `include` for a listing, or as one of `source.roots` for a manifest file)"
    if scheme == "file" and "%00" in rest:
        raise ValueError(f"{key} holds %00, which a file name cannot contain; remove it")
    if found := re.search(r"[?#\x00-\x1f\x7f]", rest):
        instead = f"write %{ord(found[0]):02X}" if scheme == "file" else parent
        raise ValueError(f"{key} holds {found[0]!a}, which ends the path of an address; {instead}")
    if scheme == "file":
        return text
    if "//" in rest.lstrip("/"):
        raise ValueError(f"{key} holds `//`, an empty path segment, which clients cannot request; {parent}")
    try:
        parse_bucket(text)
    except ValueError as error:
        raise ValueError(f"{key} {error}") from None
    return text


def store_address(text: str, key: str, shown: str = "") -> str:
    """Validates the address of a prefix or a directory. ``shown`` is what a message calls it."""
    plain_location(text, key)
    if not in_bucket(text) and not text.startswith("file:///"):
        raise ValueError(f"{shown or key} is neither {ADDRESS_FORMS} nor `file:///directory/`")
    return text


def root_address(root: str) -> str:
    """Validates an entry of `source.roots`."""
    return store_address(root, "source.roots", f"root `{short(root)}`")


def state_location(value: str) -> str:
    """Validates the location of a state: a directory, or an address in a bucket."""
    plain_location(value, "state")
    if not value.strip() or ((scheme_of(value) or "://" in value) and not in_bucket(value)):
        raise ValueError(f"state is neither a directory nor {ADDRESS_FORMS}")
    return value


def manifest_location(value: str) -> str:
    """Validates the manifest's path or address."""
    if not value.strip():
        raise ValueError("manifest is empty; write the path or address of the manifest")
    plain_location(value, "manifest")
    if scheme_of(value) and not in_bucket(value) and not value.startswith(("https://", "http://", "file://")):
        raise ValueError(
            f"manifest is neither a path nor an address that Ferry reads: `https://host/list.csv`, {ADDRESS_FORMS} or "
            "`file:///directory/`"
        )
    return value


# The same rules as far as a JSON schema has them: a Prefect server checks parameters by it before it stores them.
ADDRESS_SCHEMA: dict[str, Any] = {
    "pattern": r"^(?![A-Za-z][A-Za-z0-9+.-]*:[/\\]+[^/?#]*@)(?![\s\S]*" + SECRET_PARAMETER + ")"
}
HEADERS_SCHEMA: dict[str, Any] = {
    "patternProperties": {"^(" + in_any_case(" ".join(sorted(OPEN_HEADERS))) + ")$": {"type": "string"}},
    "additionalProperties": {"type": "string", "pattern": r"^(secret|env):\S+$"},
}


SourceEndpoint = Annotated[
    str | None, AfterValidator(partial(endpoint, key="source.endpoint_url")), Field(json_schema_extra=ADDRESS_SCHEMA)
]
DestinationEndpoint = Annotated[
    str | None,
    AfterValidator(partial(endpoint, key="destination.endpoint_url")),
    Field(json_schema_extra=ADDRESS_SCHEMA),
]


def header_references(headers: dict[str, str]) -> dict[str, str]:
    """Validates headers: values are references, except those of open headers."""
    for name, value in headers.items():
        if name.lower() in OPEN_HEADERS:
            no_secret_in_address(value, f"header `{name}`")
        elif not SECRET_REF.match(value):
            raise ValueError(
                f"header `{short(name)}` holds a literal value. A job must not hold secrets: write `secret:BLOCK` "
                "(a Prefect Secret block) or `env:NAME` (an environment variable where the work runs)"
            )
    return headers


def private_addresses(entries: list[str]) -> list[str]:
    """Validates the hosts and networks of `source.allow_private_addresses`."""
    from ferry.core import UserError
    from ferry.http import AddressFilter  # few jobs need it

    try:
        AddressFilter(entries)
    except UserError as exc:
        raise ValueError(str(exc).removeprefix("source.allow_private_addresses: ")) from None
    return entries


def sendable(value: str | None, key: str) -> str | None:
    """Validates a header value: printable ASCII."""
    if value is not None and not _SENDABLE.match(value):
        raise ValueError(f"{key} holds characters that a header cannot contain; write plain ASCII without line breaks")
    return value


def credentials_reference(value: str | None) -> str | None:
    """Validates a reference to credentials. Which of them a bucket may have depends on its provider (buckets.py)."""
    if value is None or any(pattern.fullmatch(value) for pattern, _ in CREDENTIALS.values()):
        return value
    forms = "; ".join(f"of `{provider}://` buckets {words}" for provider, (_, words) in CREDENTIALS.items())
    raise ValueError(f"credentials must be a reference: {forms}. Remove the key for those that the machine has")


def parse_budget(value: int | float | str, key: str = "failure_budget") -> tuple[float | None, int | None]:
    """Returns ``(share, None)`` or ``(None, count)``. Raises ValueError with what to write instead."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{key} is neither text nor a number; write a share (`1%`, `0.01`) or a count (`25`)")
    text = str(value).strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
        elif re.fullmatch(r"\d+", text):
            return None, int(text)
        else:
            share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{key} is neither a share (`1%`, `0.01`) nor a count (`25`)")
    return share, None


_PAUSE = "to pause a run, use `ferry pause`"
_LIMITS = {  # minimum, maximum, hint
    "concurrency": (1, 4096, "write a whole number from 1 to 4096, or remove it"),
    "requests_per_s": (0.001, 1e6, "write a number from 0.001 to 1000000, or remove it"),
    "bytes_per_s": (1000, 10**12, "write at least 1000 bytes, or `10MB`, `10MiB`, `1GB`; or remove it"),
}
_HOST_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?(:[0-9]{1,5})?\Z|\[[0-9a-f:.]+\](:[0-9]{1,5})?\Z")


def limit(value: Any, key: str) -> Any:
    """Validates a limit; ``key`` is its name. None means no limit."""
    minimum, maximum, instead = _LIMITS[key]
    if value is None:
        return None
    if key == "bytes_per_s" and isinstance(value, str):
        value = size(value, key, instead)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is not a number; {instead}")
    if not math.isfinite(value):
        raise ValueError(f"{key} is not a finite number; {instead}")
    if value <= 0:
        raise ValueError(f"{key} of {value:g} allows no request: {_PAUSE}; otherwise {instead}")
    if value < minimum:
        raise ValueError(f"{key} of {value:g} is below the minimum of {minimum:,.15g}: {_PAUSE}; otherwise {instead}")
    if value > maximum:
        raise ValueError(f"{key} of {value:g} is above the maximum of {maximum:,.15g}; {instead}")
    if key == "requests_per_s":
        return float(value)
    if value != int(value):
        raise ValueError(f"{key} is not a whole number; {instead}")
    return int(value)


Concurrency = Annotated[int | None, BeforeValidator(partial(limit, key="concurrency"))]
PerSecond = Annotated[float | None, BeforeValidator(partial(limit, key="requests_per_s"))]
BytesPerSecond = Annotated[int | str | None, BeforeValidator(partial(limit, key="bytes_per_s"))]


def host_pattern(name: str) -> str:
    """Validates a key of `limits.hosts` and returns it in lower case."""
    lower = name.strip().lower()
    if not _HOST_NAME.match(lower):
        raise ValueError(
            f"`{short(name)}` in limits.hosts is not a host; write `img.example.com`, `img.example.com:8080`, "
            "`*.example.com` or the name of a bucket or an Azure account, without `https://` and without a path"
        )
    return lower


def patterns_for(host: str) -> list[str]:
    """Returns the keys of `limits.hosts` that match a host, the most specific first.

    | host | keys |
    |---|---|
    | a.b.com:80 | a.b.com:80, a.b.com, *.b.com:80, *.b.com, *.com:80, *.com |
    | a.b.com | a.b.com, *.b.com, *.com |
    | a bucket | its name |
    """
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name, port = host, ""
    wanted = [name]
    if not name.startswith("["):
        parts = name.split(".")
        wanted += ["*." + ".".join(parts[n:]) for n in range(1, len(parts))]
    return [key for pattern in wanted for key in ([f"{pattern}:{port}", pattern] if port else [pattern])]
