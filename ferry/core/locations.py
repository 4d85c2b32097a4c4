"""How locations lie in each other."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit


def below(uri: str, place: str) -> str | None:
    """Where ``place`` lies below a bucket's prefix or a directory: "" for the same, None for elsewhere.

    Links are followed, and a directory may have two names: by a bind mount, or where the file system does not tell
    upper from lower case.
    """
    above, inside = _whole(uri), _whole(place)
    if inside.startswith(above):
        return inside[len(above) :].rstrip("/")
    if "://" in above or "://" in inside:
        return None
    with contextlib.suppress(OSError):  # what is not there yet has one name
        wanted = Path(above).stat()
        for folder in (Path(inside), *Path(inside).parents):
            with contextlib.suppress(OSError):
                if os.path.samestat(folder.stat(), wanted):
                    return "/".join(Path(inside).relative_to(folder).parts)
    return None


def _whole(place: str) -> str:
    """A place that names of what lies in it begin with."""
    if place.startswith("s3://"):
        return f"{place.rstrip('/')}/"
    path = Path(unquote(urlsplit(place).path)) if place.startswith("file://") else Path(place)
    return f"{str(path.resolve()).rstrip('/')}/"
