"""Manifests: any file of rows, or a listing, as one normalised Parquet file."""

from ferry.manifest.load import NORMALISED, LoadedManifest, globs, load_manifest, matches_globs
from ferry.manifest.look import URL_OF_IDS, Look, look_at
from ferry.manifest.normalize import base_row_id
from ferry.manifest.text import excerpt

__all__ = [
    "NORMALISED",
    "URL_OF_IDS",
    "LoadedManifest",
    "Look",
    "base_row_id",
    "excerpt",
    "globs",
    "load_manifest",
    "look_at",
    "matches_globs",
]
