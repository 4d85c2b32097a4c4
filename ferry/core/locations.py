"""Locations: buckets of the providers that Ferry knows, and directories."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

BUCKET_SCHEMES = ("s3://", "gs://", "az://")
ADDRESS_FORMS = "`s3://bucket/prefix/`, `gs://bucket/prefix/`, `az://account/container/prefix/`"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_GOOGLE_BUCKET = re.compile(r"(?=.{3,222}\Z)[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_GOOGLE_PART_CHARS = 63  # between dots
_AZURE_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_AZURE_CONTAINER = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]|\$root|\$web")


class Bucket(NamedTuple):
    """A bucket or container, with a prefix or a key in it. These are raw text: nothing is percent-encoded."""

    provider: str  # s3, gs or az
    account: str  # the storage account at Azure, else ""
    name: str
    path: str  # without the slash before it

    @property
    def prefix(self) -> str:
        """The path without slashes at its ends."""
        return self.path.strip("/")

    @property
    def owner(self) -> str:
        """The provider, at Azure with its account: what one set of credentials gives access to."""
        return f"{self.provider}://{self.account}"


def in_bucket(location: str) -> bool:
    """Return whether a location is an address in a bucket; otherwise it is a directory, a file or a web address."""
    return location.startswith(BUCKET_SCHEMES)


def scheme_of(location: str) -> str:
    """Return the scheme of an address in lower case, also of one with a single slash; "" for a path."""
    found = _SCHEME.match(location)
    return found[1].lower() if found else ""


def parse_bucket(address: str) -> Bucket:
    """Return the parts of a bucket's address. Raise ValueError for another text, and for names that cannot be.

    | address | provider | account | name | path |
    |---|---|---|---|---|
    | `s3://old/images/` | s3 | | old | `images/` |
    | `gs://old` | gs | | old | |
    | `az://shop/old/a b/1%2F.jpg` | az | shop | old | `a b/1%2F.jpg` |

    Source: "Bucket naming guidelines" of Google; "Storage account overview" and "Naming and referencing containers,
    blobs, and metadata" of Azure.
    """
    provider, mark, rest = address.partition("://")
    if not mark or f"{provider}://" not in BUCKET_SCHEMES:
        raise ValueError(f"is none of {ADDRESS_FORMS}")
    account, rest = rest.partition("/")[::2] if provider == "az" else ("", rest)
    name, _, path = rest.partition("/")
    if provider == "az" and not _AZURE_ACCOUNT.fullmatch(account):
        raise ValueError("has no valid account: Azure's have 3 to 24 lower-case letters and digits")
    if not name:
        what = (
            "container after the account: `az://account/container/`" if account else f"bucket: `{provider}://bucket/`"
        )
        raise ValueError(f"names no {what}")
    if provider == "az" and not _AZURE_CONTAINER.fullmatch(name):
        raise ValueError(
            "has no valid container: Azure's have 3 to 63 lower-case letters, digits and single hyphens between them"
        )
    if provider == "gs" and not _is_google_bucket(name):
        raise ValueError(
            "has no valid bucket: Google's have 3 to 63 lower-case letters, digits, `-`, `_` and `.`, and a letter or "
            "digit at both ends"
        )
    return Bucket(provider, account, name, path)


def _is_google_bucket(name: str) -> bool:
    return bool(_GOOGLE_BUCKET.fullmatch(name)) and all(
        1 <= len(part) <= _GOOGLE_PART_CHARS for part in name.split(".")
    )


def below(uri: str, location: str) -> str | None:
    """Return the path of ``location`` below a bucket's prefix or a directory: "" if equal, None if outside.

    Symbolic links are followed. One directory may have two names: through a bind mount, or on a file system that
    ignores case.
    """
    above, inside = _normalized(uri), _normalized(location)
    if inside.startswith(above):
        return inside[len(above) :].rstrip("/")
    if "://" in above or "://" in inside:
        return None
    with contextlib.suppress(OSError):  # a directory that does not exist yet has one name
        wanted = Path(above).stat()
        for folder in (Path(inside), *Path(inside).parents):
            with contextlib.suppress(OSError):
                if os.path.samestat(folder.stat(), wanted):
                    return "/".join(Path(inside).relative_to(folder).parts)
    return None


def _normalized(location: str) -> str:
    """Return a location in the form that every name inside it starts with."""
    if in_bucket(location):
        return f"{location.rstrip('/')}/"
    path = Path(unquote(urlsplit(location).path)) if location.startswith("file://") else Path(location)
    return f"{str(path.resolve()).rstrip('/')}/"
