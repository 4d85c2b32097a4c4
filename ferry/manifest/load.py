"""Loading of a manifest: downloaded, or listed, and normalised to Parquet."""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ferry import __version__
from ferry.core import (
    TIER,
    Fatal,
    ObjectError,
    ProxyUnusable,
    Tries,
    UserError,
    in_bucket,
    parse_bucket,
    redact,
    short,
)
from ferry.http import Auth
from ferry.job import SOURCE_FIELDS, ApiList, Job, Template
from ferry.manifest.columns import Batch
from ferry.manifest.normalize import normalise
from ferry.manifest.open import open_manifest
from ferry.manifest.plausible import Reading
from ferry.storage import Access, ObjectInfo, open_store

if TYPE_CHECKING:
    import duckdb

MAX_MANIFEST_BYTES = 64 << 30  # 100 million rows of 600 bytes; a host that sends more may try to fill the disk
READING = 2  # counts the changes of how a manifest is read: each has manifests read again that have not changed
COPY = "list"  # in the spool directory
NORMALISED = "manifest.parquet"
LISTED_COLUMNS = {"source": "the listing", "key": "the listing"}
LISTED_FIELDS = frozenset({"source", "key", "size", "etag", "last_modified"})  # what a listing has for each object


@dataclass(frozen=True, slots=True)
class LoadedManifest:
    """The normalised manifest. ``path`` is None if the state already has this manifest."""

    path: Path | None
    about: dict[str, Any]  # for plan.json: the manifest's digest, the recognised columns
    notes: list[str] = field(default_factory=list)


def load_manifest(
    con: duckdb.DuckDBPyConnection,
    job: Job,
    access: Access,
    spool_dir: Path,
    known: Mapping[str, Any],
    auth: Auth | None = None,
) -> LoadedManifest:
    """Downloads or lists the manifest and normalises it. ``known`` is ``about`` of the manifest of the last plan.

    ``auth`` is the job's credential for web servers.
    Raises UserError if the manifest is unusable. An unusable row is a row with a problem.
    """
    spool_dir.mkdir(parents=True, exist_ok=True)
    try:
        return _load(con, job, access, spool_dir, known, auth)
    finally:
        (spool_dir / COPY).unlink(missing_ok=True)  # it contains addresses with their signatures


def _load(
    con: duckdb.DuckDBPyConnection,
    job: Job,
    access: Access,
    spool_dir: Path,
    known: Mapping[str, Any],
    auth: Auth | None,
) -> LoadedManifest:
    out = spool_dir / NORMALISED
    unread: Collection[str] = ()
    bare_hosts = False
    notes: list[str] = []
    key_template = Template.parse(job.key) if job.key is not None else None
    if job.is_listed():
        same_store = job.source.endpoint_url == job.destination.endpoint_url
        if job.manifest_address.rstrip("/") == job.destination.uri.rstrip("/") and same_store:
            raise UserError(
                f"manifest and destination are the same location ({job.manifest_address}); change one of them"
            )
        if key_template is not None and (unknown := key_template.needed - LISTED_FIELDS):
            usable = ", ".join(f"{{{name}}}" for name in sorted({*LISTED_FIELDS, *SOURCE_FIELDS, "sha256", "ext"}))
            raise UserError(f"the key template names {{{min(unknown)}}}; a listed manifest has {usable}")
        batches = _list_objects(job, access, spool_dir)
        about: dict[str, Any] = {"recognised": LISTED_COLUMNS, "digest": None}
    else:
        if isinstance(job.manifest, ApiList):
            from ferry.manifest.api_pages import write_pages  # loads requests, which other manifests do without

            path = spool_dir / COPY
            notes.append(write_pages(job, job.manifest, auth, access.network, path, MAX_MANIFEST_BYTES))
        else:
            path = _local_file(job, access, spool_dir, auth)
        before = _file_version(path)
        about = {
            **_digests_of(path, job),
            "recognised": known.get("recognised", {}),
            "samples": known.get("samples", {}),
        }
        if known.get("digest") == about["digest"]:
            return LoadedManifest(None, about, notes)
        needed = sorted(key_template.needed) if key_template else []
        columns = known.get("recognised", LISTED_COLUMNS)
        decided = Reading(columns, known.get("bare_hosts", False)) if columns != LISTED_COLUMNS else None
        manifest = open_manifest(
            path, job.manifest_address, job.columns, needed, job.bad_lines, job.source.url, decided,
            keys_from_column=key_template is None or "key" in needed, from_api=isinstance(job.manifest, ApiList),
        )  # fmt: skip
        about |= {
            "recognised": manifest.recognised, "samples": manifest.samples, "bare_hosts": manifest.bare_hosts,
        }  # fmt: skip
        unread, bare_hosts, notes = manifest.unread, manifest.bare_hosts, [*notes, *manifest.left]
        batches = manifest.batches()
    target = parse_bucket(job.destination.uri) if in_bucket(job.destination.uri) else None
    result = normalise(
        con,
        batches,
        url_template=Template.parse_url(job.source.url) if job.source.url else None,
        key_template=key_template,
        roots=job.roots(),
        prefix=target.path.strip("/") if target else "",
        for_directory=target is None,
        as_listed=job.is_listed() and key_template is None and target is not None,
        unread=unread,
        bare_hosts=bare_hosts,
        sources=[job.columns.of("source") or "", *more] if (more := job.columns.more_sources) else (),
        out_path=out,
    )
    if not job.is_listed() and _file_version(path) != before:
        raise UserError(
            f"the manifest {job.manifest_address} was written to while it was read: rows may be missing. Run the job "
            "again when it is complete. The program that writes it should write a new file and rename it"
        )
    notes += [*_repairs(result.repairs), *_ignored(result.ignored)]
    if result.deferred:
        notes = [*notes, f"{result.deferred:,} keys are known only after the download (`key` names sha256 or ext)"]
    return LoadedManifest(out, about, notes)


def _repairs(counts: Mapping[str, int]) -> list[str]:
    """Returns sentences on sources that were completed."""
    notes = []
    if rows := counts.get("schemes"):
        notes.append(f"{rows:,} {'address lacks' if rows == 1 else 'addresses lack'} a scheme: https:// is added")
    if rows := counts.get("blanks"):
        notes.append(f"{rows:,} {'URL contains' if rows == 1 else 'URLs contain'} spaces: %20 is written for each")
    return notes


def _ignored(counts: Mapping[str, int]) -> list[str]:
    """Returns sentences on cells of several source columns that are not read."""
    return [
        f"{cells:,} {'cell' if cells == 1 else 'cells'} of `{short(column)}` {'has' if cells == 1 else 'have'} no "
        "usable address: nothing is requested for such a cell"
        for column, cells in counts.items()
        if cells
    ]


def _file_version(path: Path) -> tuple[int, int, int]:
    """Returns what changes if the file is written to, or replaced."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _digests_of(path: Path, job: Job) -> dict[str, str]:
    """Returns the SHA-256 of the file, and a digest of it and of the settings that its rows depend on."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    of_file = digest.hexdigest()
    settings = [
        __version__,
        READING,
        job.location_digests(),
        list(job.roots()),
        job.bad_lines,
        Path(job.manifest_address).suffix,
        *job.columns.more_sources,
    ]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return {"digest": digest.hexdigest(), "sha256": of_file}


def _local_file(job: Job, access: Access, spool_dir: Path, auth: Auth | None) -> Path:
    """Returns the manifest as a local file, downloaded if necessary. Raises UserError."""
    address = job.manifest_address
    copy = spool_dir / COPY
    if address.startswith(("http://", "https://")):
        from ferry.manifest.http_list import download  # loads requests, which other manifests do without

        try:
            download(job, auth, access.network, address, copy, MAX_MANIFEST_BYTES)
        except (ObjectError, ProxyUnusable) as error:
            why = error.message if isinstance(error, ObjectError) else error
            raise UserError(f"the manifest {redact(address)} cannot be downloaded: {why}") from None
        return copy
    if in_bucket(address):
        key = parse_bucket(address).path
        store = open_store(address.removesuffix(key), access, spool_dir)
        try:
            Tries()(lambda: asyncio.run(_from_bucket(store, key, copy)))
        except (ObjectError, Fatal) as error:
            hint = "" if address.endswith("/") else ". To transfer the objects below it, add a final `/`"
            raise UserError(f"the manifest {address} cannot be read: {error}{hint}") from None
        return copy
    path = Path(unquote(urlsplit(address).path)) if address.startswith("file://") else Path(address)
    if path.is_dir():
        raise UserError(f"{path} is a directory; to transfer its files, write `manifest: file://{path.absolute()}/`")
    if path.exists() and not path.is_file():
        raise UserError(
            f"the manifest {path} is not a regular file but a pipe or a device; write its rows to a file first"
        )
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise UserError(f"the manifest {path} does not exist") from None
    except OSError as exc:
        raise UserError(f"the manifest {path} cannot be read: {exc.strerror}") from None
    return path


async def _from_bucket(store: Any, key: str, path: Path) -> None:
    try:
        body, _, _ = await store.get(key, max_bytes=MAX_MANIFEST_BYTES)
    finally:
        await store.disconnect()
    if body.path is not None:
        body.path.replace(path)
    else:
        path.write_bytes(body.data)


def matches_globs(key: str, include: Sequence[re.Pattern[str]], exclude: Sequence[re.Pattern[str]]) -> bool:
    """Returns whether the job's globs select a key below the listed root. `*` also matches `/`."""
    if include and not any(pattern.match(key) for pattern in include):
        return False
    return not any(pattern.match(key) for pattern in exclude)


def globs(job: Job) -> tuple[list[re.Pattern[str]], list[re.Pattern[str]]]:
    """Returns the job's `include` and `exclude` as patterns."""
    include, exclude = ([re.compile(fnmatch.translate(glob)) for glob in given] for given in (job.include, job.exclude))
    return include, exclude


def _list_objects(job: Job, access: Access, spool_dir: Path) -> Iterator[Batch]:
    """Yields the objects under a bucket prefix (with ETags) or a directory as rows. Raises UserError."""
    root = job.manifest_address
    include, exclude = globs(job)
    store = open_store(root, access, spool_dir)
    row_no = 0
    try:
        for page in store.list(side="source"):
            found = [
                info
                for info in page
                if not _is_folder_marker(info, store.kind) and matches_globs(info.key, include, exclude)
            ]
            if store.kind == "file":
                _refuse_links(root, page, exclude)
                found.sort(key=lambda info: info.key)
            if not found:
                continue
            yield Batch(
                row_no=range(row_no + 1, row_no + 1 + len(found)),
                line_no=None,
                values={
                    "source": [root + info.key for info in found],
                    "key": [info.key for info in found],
                    "size": [str(info.size) for info in found],
                    "etag": [info.etag if store.kind != "file" else None for info in found],
                    "last_modified": [info.last_modified.isoformat() if info.last_modified else None for info in found],
                    TIER: [info.tier for info in found],
                },
            )
            row_no += len(found)
    except (ObjectError, Fatal) as error:
        raise UserError(f"the manifest {root} cannot be listed: {error}") from None
    if not row_no:
        hint = " that `include` and `exclude` select" if job.include or job.exclude else ""
        raise UserError(f"there is no object under {root}{hint}; nothing would be transferred")


def _is_folder_marker(info: ObjectInfo, kind: str) -> bool:
    """Returns whether a listed key is a folder: in a bucket, an object of zero bytes, as consoles make them.

    A key with a final `/` and bytes is an object.
    """
    return info.key[-1:] in ("", "/") and (kind == "file" or info.size == 0)


def _refuse_links(root: str, page: Sequence[ObjectInfo], exclude: Sequence[re.Pattern[str]]) -> None:
    """Raises UserError for a link to a directory outside the root: a listing without its files would look complete."""
    for info in page:
        if info.key.endswith("/") and matches_globs(info.key, [], exclude):
            link = short(info.key, 300)
            raise UserError(
                f"{root}{link} is a link to a directory outside {root}. Ferry does not follow such links, so the files "
                "there would not be transferred. Transfer that directory with a job of its own, and exclude the link "
                f"here: `exclude: ['{link}*']`"
            )
