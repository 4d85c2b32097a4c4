"""The switch from the old store to the new one: old and new addresses, redirects, and what visitors get."""

from ferry.cutover.addresses import create_addresses
from ferry.cutover.files import export
from ferry.cutover.public_check import PublicReport, check_public, public_site

__all__ = ["PublicReport", "check_public", "create_addresses", "export", "public_site"]
