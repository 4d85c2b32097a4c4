"""The switch from the old store to the new one: old and new addresses, redirects, and what visitors get."""

from ferry.cutover.addresses import create_addresses
from ferry.cutover.files import export
from ferry.cutover.missing import LOST, MissingReport, find_missing_addresses
from ferry.cutover.public_check import PublicReport, check_public, public_site

__all__ = [
    "LOST",
    "MissingReport",
    "PublicReport",
    "check_public",
    "create_addresses",
    "export",
    "find_missing_addresses",
    "public_site",
]
