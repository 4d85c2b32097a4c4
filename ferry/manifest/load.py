"""Brings the list of what to move into the state as normalised Parquet, whatever and wherever it is."""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ferry import __version__
from ferry.core import Fatal, ObjectError, Tries, UserError, redact, short
from ferry.http import AddressFilter, Origin
from ferry.job import SOURCE_FIELDS, Job, Template
from ferry.manifest.columns import Batch
from ferry.manifest.normalize import normalise
from ferry.manifest.open import open_manifest
from ferry.storage import Access, ObjectInfo, open_store

if TYPE_CHECKING:
    import duckdb

LIST_AT_MOST_BYTES = 64 << 30  # 100 million rows of 600 bytes; who serves more wants to fill the disk
COPY = "list"  # in the spool
NORMALISED = "manifest.parquet"
LISTED_FIELDS = frozenset({"source", "key", "size", "etag", "last_modified"})  # what a listing says of each object


@dataclass(frozen=True, slots=True)
class LoadedManifest:
    """``path`` is None when the list is the one that the state holds already."""

    path: Path | None
    about: dict[str, Any]  # kept in plan.json: the list's digest, recognised columns
    notes: list[str] = field(default_factory=list)


def load_manifest(
    con: duckdb.DuckDBPyConnection, job: Job, access: Access, spool_dir: Path, known: Mapping[str, Any]
) -> LoadedManifest:
    """Fetches or lists the manifest and normalises it. ``known`` is what an earlier plan says of its own.

    Raises UserError for whatever makes the list unusable; a bad row is a row with a problem.
    """
    spool_dir.mkdir(parents=True, exist_ok=True)
    try:
        return _bring(con, job, access, spool_dir, known)
    finally:
        (spool_dir / COPY).unlink(missing_ok=True)  # it holds addresses as they are


def _bring(
    con: duckdb.DuckDBPyConnection, job: Job, access: Access, spool_dir: Path, known: Mapping[str, Any]
) -> LoadedManifest:
    out = spool_dir / NORMALISED
    key_template = Template.parse(job.key) if job.key is not None else None
    if job.is_listed():
        same_store = job.source.endpoint_url == job.destination.endpoint_url
        if job.manifest.rstrip("/") == job.destination.uri.rstrip("/") and same_store:
            raise UserError(f"manifest and destination are the same place ({job.manifest}); nothing would be moved")
        if key_template is not None and (unknown := key_template.needed - LISTED_FIELDS):
            usable = ", ".join(f"{{{name}}}" for name in sorted({*LISTED_FIELDS, *SOURCE_FIELDS, "sha256", "ext"}))
            raise UserError(f"the key template names {{{min(unknown)}}}; a listed manifest has {usable}")
        batches = _listed(job, access, spool_dir)
        recognised = {"source": "the listing", "key": "the listing"}
        about: dict[str, Any] = {"recognised": recognised, "digest": None}
    else:
        path = _local(job, access, spool_dir)
        before = _version(path)
        about = {"digest": _digest_of(path, job), "recognised": known.get("recognised", {})}
        if known.get("digest") == about["digest"]:
            return LoadedManifest(None, about)
        needed = sorted(key_template.needed) if key_template else []
        manifest = open_manifest(path, job.manifest, job.columns, needed, job.bad_lines, job.source.url)
        about["recognised"] = manifest.recognised
        batches = manifest.batches()
    parts = urlsplit(job.destination.uri)
    result = normalise(
        con,
        batches,
        url_template=Template.parse_url(job.source.url) if job.source.url else None,
        key_template=key_template,
        roots=job.roots(),
        prefix=parts.path.strip("/") if parts.scheme == "s3" else "",
        for_directory=parts.scheme == "file",
        out_path=out,
    )
    if not job.is_listed() and _version(path) != before:
        raise UserError(
            f"the manifest {job.manifest} was written to while it was read: rows may be missing. Run the job again "
            "when it is complete; whoever writes it should write another file and rename it"
        )
    notes = [f"{result.late:,} keys are known only after the fetch (`key` names sha256 or ext)"] if result.late else []
    return LoadedManifest(out, about, notes)


def _version(path: Path) -> tuple[int, int, int]:
    """Changes when a file is written to, or another one gets its name."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _digest_of(path: Path, job: Job) -> str:
    """Of the list's bytes and of the settings that make rows of them: unchanged, the rows are too."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    settings = [__version__, job.location_digests(), list(job.roots()), job.bad_lines, Path(job.manifest).suffix]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _local(job: Job, access: Access, spool_dir: Path) -> Path:
    """The list as a local file."""
    address = job.manifest
    copy = spool_dir / COPY
    if address.startswith(("http://", "https://")):
        try:
            Tries(max_s=60.0)(lambda: asyncio.run(_download(job, address, copy)))
        except ObjectError as error:
            raise UserError(f"the manifest {redact(address)} cannot be fetched: {error.message}") from None
        return copy
    if address.startswith("s3://"):
        parts = urlsplit(address)
        store = open_store(f"s3://{parts.netloc}", access, spool_dir)
        try:
            Tries()(lambda: asyncio.run(_from_bucket(store, parts.path.lstrip("/"), copy)))
        except (ObjectError, Fatal) as error:
            hint = "" if address.endswith("/") else ". To list what lies below it, end it with a `/`"
            raise UserError(f"the manifest {address} cannot be read: {error}{hint}") from None
        return copy
    path = Path(unquote(urlsplit(address).path)) if address.startswith("file://") else Path(address)
    if path.is_dir():
        raise UserError(f"{path} is a directory; to move what lies in it, write `manifest: file://{path.absolute()}/`")
    if path.exists() and not path.is_file():
        raise UserError(f"the manifest {path} is no file (a pipe or a device); write the list to a file first")
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise UserError(f"the manifest {path} does not exist") from None
    except OSError as exc:
        raise UserError(f"the manifest {path} cannot be read: {exc.strerror}") from None
    return path


async def _download(job: Job, url: str, path: Path) -> None:
    # Without the job's headers: those are for the images' host, and this may be another.

    origin = Origin(job.origin_options({}), AddressFilter(job.source.allow_private_addresses), path.parent)
    try:
        await origin.download(url, path, LIST_AT_MOST_BYTES)
    finally:
        await origin.close()


async def _from_bucket(store: Any, key: str, path: Path) -> None:
    body, _, _ = await store.get(key, max_bytes=LIST_AT_MOST_BYTES)
    if body.path is not None:
        body.path.replace(path)
    else:
        path.write_bytes(body.data)


def matches_globs(key: str, include: Sequence[re.Pattern[str]], exclude: Sequence[re.Pattern[str]]) -> bool:
    """Globs of the job against a key below the listed root; `*` also crosses `/`."""
    if include and not any(pattern.match(key) for pattern in include):
        return False
    return not any(pattern.match(key) for pattern in exclude)


def globs(job: Job) -> tuple[list[re.Pattern[str]], list[re.Pattern[str]]]:
    """The job's `include` and `exclude`."""
    include, exclude = ([re.compile(fnmatch.translate(glob)) for glob in given] for given in (job.include, job.exclude))
    return include, exclude


def _listed(job: Job, access: Access, spool_dir: Path) -> Iterator[Batch]:
    """The objects under a bucket prefix or a directory, as rows. ETags come along, for bucket to bucket."""
    root = job.manifest
    include, exclude = globs(job)
    store = open_store(root, access, spool_dir)
    row_no = 0
    try:
        for page in store.list(side="source"):
            found = [
                f for f in page if f.key and not _is_folder(f, store.kind) and matches_globs(f.key, include, exclude)
            ]
            if store.kind == "file":
                _refuse_links(root, page, exclude)
                found.sort(key=lambda f: f.key)
            if not found:
                continue
            yield Batch(
                row_no=range(row_no + 1, row_no + 1 + len(found)),
                line_no=None,
                values={
                    "source": [root + f.key for f in found],
                    "key": [f.key for f in found],
                    "size": [str(f.size) for f in found],
                    "etag": [f.etag for f in found] if store.kind == "s3" else [None] * len(found),
                    "last_modified": [f.last_modified.isoformat() if f.last_modified else None for f in found],
                },
            )
            row_no += len(found)
    except (ObjectError, Fatal) as error:
        raise UserError(f"the manifest {root} cannot be listed: {error}") from None
    if not row_no:
        hint = " that `include` and `exclude` leave over" if job.include or job.exclude else ""
        raise UserError(f"there is no object under {root}{hint}; nothing would be moved")


def _is_folder(found: ObjectInfo, kind: str) -> bool:
    """In a bucket a marker of zero bytes, as consoles make them; one with bytes is an object, whose row fails."""
    return found.key.endswith("/") and (kind == "file" or found.size == 0)


def _refuse_links(root: str, page: Sequence[ObjectInfo], exclude: Sequence[re.Pattern[str]]) -> None:
    """Links to folders elsewhere: whole trees that would be left out, by a list that looks complete."""
    for found in page:
        if found.key.endswith("/") and matches_globs(found.key, [], exclude):
            raise UserError(
                f"{root}{short(found.key, 300)} is a link to a folder outside of {root}: links out are not followed, "
                "and what lies there would not be moved. Move that folder with a job of its own, and leave the link "
                f"out here: `exclude: ['{short(found.key, 300)}*']`"
            )
