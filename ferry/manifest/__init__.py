"""Reads any list or listing into one normalised Parquet file."""

from ferry.manifest.load import NORMALISED, Brought, bring_manifest, chosen, globs
from ferry.manifest.normalize import base_row_id

__all__ = ["NORMALISED", "Brought", "base_row_id", "bring_manifest", "chosen", "globs"]
