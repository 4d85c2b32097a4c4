"""Addresses of prefixes in Azure Blob Storage: `az://account/container/prefix/`."""

from __future__ import annotations

from typing import NamedTuple

from ferry.core import UserError, parse_bucket, short


class Address(NamedTuple):
    """A prefix without slashes at its ends."""

    account: str
    container: str
    prefix: str


def parse_address(uri: str) -> Address:
    """Returns the parts of an address. Raises UserError for names that Azure cannot have."""
    try:
        found = parse_bucket(uri)
    except ValueError as error:
        raise UserError(f"`{short(uri)}` {error}") from None
    return Address(found.account, found.name, found.path.strip("/"))
