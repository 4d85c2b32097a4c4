"""Containment of locations: buckets with prefixes, and directories."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit


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
    if location.startswith("s3://"):
        return f"{location.rstrip('/')}/"
    path = Path(unquote(urlsplit(location).path)) if location.startswith("file://") else Path(location)
    return f"{str(path.resolve()).rstrip('/')}/"
