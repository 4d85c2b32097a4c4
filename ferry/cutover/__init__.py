"""The switch from the old store to the new one: old and new addresses of the objects."""

from ferry.cutover.addresses import create_addresses

__all__ = ["create_addresses"]
