"""Addresses of prefixes in Azure Blob Storage: `az://account/container/prefix/`."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from ferry.core import UserError

_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]|\$root|\$web")


class Address(NamedTuple):
    """A prefix without slashes at its ends."""

    account: str
    container: str
    prefix: str


def parse_address(uri: str) -> Address:
    """Returns the parts of an address. Raises UserError for names that Azure cannot have.

    Source: "Storage account overview" and "Naming and referencing containers, blobs, and metadata".
    """
    parts = urlsplit(uri)
    container, _, prefix = parts.path.lstrip("/").partition("/")
    if parts.scheme != "az" or not _ACCOUNT.fullmatch(parts.netloc):
        raise UserError(
            f"`{uri}` is not `az://account/container/prefix/`: an account has 3 to 24 lower-case letters and digits"
        )
    if not _CONTAINER.fullmatch(container):
        raise UserError(
            f"`{uri}` is not `az://account/container/prefix/`: a container has 3 to 63 lower-case letters, digits and "
            "single hyphens between them"
        )
    return Address(parts.netloc, container, prefix.strip("/"))
