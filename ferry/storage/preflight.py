"""Preflight check of the destination, before anything is downloaded: it exists, and Ferry may write to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ferry.core import Fatal, ObjectError, UserError
from ferry.storage.access import Access, AzureAccess
from ferry.storage.factory import bucket_of, open_control

TIMEOUT_S = 30.0


def run_preflight(uri: str, access: Access, *, attributes: Mapping[str, str] = {}, dry: bool = False) -> None:
    """Checks the destination. Raises UserError if it does not exist, or refuses writing or ``attributes``.

    A bucket is asked by requests that leave no object (Provider.refusal). With ``dry`` they do not try to write, and no
    directory is created.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file":
        _check_directory(Path(unquote(parts.path)), dry=dry)
    else:
        _check_bucket(uri, access, attributes, dry=dry)


def _check_directory(directory: Path, *, dry: bool) -> None:
    try:
        if not dry:
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UserError(f"destination: cannot create the directory {directory}: {exc.strerror}") from None
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"destination: {there} is not a directory")
    if not os.access(there, os.W_OK):
        raise UserError(f"destination: this user may not write to {there}. Change its permissions")


def _check_bucket(uri: str, access: Access, attributes: Mapping[str, str], *, dry: bool) -> None:
    where = bucket_of(uri)
    kind = "container" if where.provider == "az" else "bucket"
    named = f"destination {kind} `{where.name}`" + (f" at {access.endpoint_url}" if access.endpoint_url else "")
    try:
        control = open_control(uri, access, read_s=TIMEOUT_S)
        refusal = control.refusal(where.prefix, writing=not dry, attributes=attributes)
    except Fatal as exc:  # a redirect
        raise UserError(str(exc)) from None
    except ObjectError as exc:
        raise UserError(f"{named} cannot be reached ({exc.message}). Check `endpoint_url` and the network") from None
    if refusal is not None:
        raise UserError(f"{named} {refusal}")


def ends_too_early(access: Access, setting: str, until: datetime) -> str | None:
    """Returns that credentials end before a run will, as a sentence, or None. ``setting`` is their name in the job."""
    if not isinstance(access, AzureAccess):
        return None  # Ferry renews those of the others
    from ferry.storage.azure import end_of

    end = end_of(access)
    if end is None or end > until:
        return None
    return (
        f"{setting}: this SAS ends at {end.astimezone(UTC):%Y-%m-%d %H:%M} UTC, and the run will end at about "
        f"{until.astimezone(UTC):%Y-%m-%d %H:%M} UTC. Make one that lasts longer"
    )
