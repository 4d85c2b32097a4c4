"""The store for a URI, with the clients that it needs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ferry.core import Bucket, Budget, UserError, parse_bucket, short
from ferry.storage.access import Access, AzureAccess, GoogleAccess, S3Access
from ferry.storage.control import Control
from ferry.storage.directory import Folder
from ferry.storage.provider import Provider
from ferry.storage.store import Store
from ferry.storage.uploads import UploadLog

CONTROL_READ_S = 60.0
CONTROL_TOTAL_S = 24 * 3600.0  # a state's largest file over the slowest line; low_speed.py ends what does not move


def open_store(
    uri: str,
    access: Access,
    spool_dir: Path,
    *,
    timeout_s: float = 600.0,
    read_s: float = 30.0,
    create: bool = False,
    budget: Budget | None = None,
    pool: Executor | None = None,
    mark: str = "ferry",
    upload_log: UploadLog | None = None,
) -> Store:
    """Returns the store for a URI: ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://account/container/prefix`` or
    ``file:///directory``.

    ``timeout_s`` limits a request, ``read_s`` the time without a byte from a bucket. ``budget`` limits the memory for
    bodies, and ``pool`` hashes large ones. The store must be closed in the event loop that used it; one that only lists
    needs no loop. ``mark`` begins the names of this job's unfinished files in a directory. ``upload_log`` records this
    job's uploads in parts to a bucket.
    Raises UserError for any other scheme, and for a missing directory unless ``create`` is set.
    """
    if urlsplit(uri).scheme == "file":
        directory = Path(unquote(urlsplit(uri).path))
        if not directory.is_dir() and not create:
            raise UserError(f"the directory {directory} does not exist. Create it, or correct its address in the job")
        folder = Folder(directory, mark, create=create)
        return Store(uri, "", "file", spool_dir, folder, budget=budget, pool=pool)
    where = bucket_of(uri)
    return Store(
        uri, where.prefix, where.provider, spool_dir, where=where, access=access, budget=budget, pool=pool,
        upload_log=upload_log, provider=partial(_provider, where, access, timeout_s, read_s),
        control=partial(_provider, where, access, CONTROL_TOTAL_S, read_s),
    )  # fmt: skip


def open_control(uri: str, access: Access, *, side: str = "destination", read_s: float = CONTROL_READ_S) -> Control:
    """Returns the client for control requests to a bucket. ``side`` is its name in messages."""
    where = bucket_of(uri)
    return Control(partial(_provider, where, access, CONTROL_TOTAL_S, read_s, side=side), side=side)


def bucket_of(uri: str) -> Bucket:
    """Returns the parts of a bucket's address. Raises UserError."""
    try:
        return parse_bucket(uri)
    except ValueError as error:
        raise UserError(f"`{short(uri)}` {error}") from None


def _provider(where: Bucket, access: Access, timeout_s: float, read_s: float, *, side: str = "destination") -> Provider:
    """Returns a client, in the event loop that calls it. The modules of other providers are not loaded."""
    return _MAKERS[where.provider](where, access, timeout_s=timeout_s, read_s=read_s, side=side)


def _s3(where: Bucket, access: Access, *, timeout_s: float, read_s: float, side: str) -> Provider:
    from ferry.storage.s3 import S3, credentials_of, endpoint_of, region_of

    assert isinstance(access, S3Access)
    return S3(
        endpoint_of(access), where.name, region_of(access), credentials_of(access), timeout_s=timeout_s,
        read_s=read_s, network=access.network, side=side,
    )  # fmt: skip


def _google(where: Bucket, access: Access, *, timeout_s: float, read_s: float, side: str) -> Provider:
    from ferry.storage.gcs import Gcs, endpoint_of, tokens_for

    assert isinstance(access, GoogleAccess)
    return Gcs(
        endpoint_of(access), where.name, tokens_for(access), timeout_s=timeout_s, read_s=read_s,
        network=access.network, side=side,
    )  # fmt: skip


def _azure(where: Bucket, access: Access, *, timeout_s: float, read_s: float, side: str) -> Provider:
    from ferry.storage.azure import AzureContainer, authority_of

    assert isinstance(access, AzureAccess)
    return AzureContainer(
        where.account, where.name, authority_of(where.account, access), endpoint_url=access.endpoint_url,
        timeout_s=timeout_s, read_s=read_s, network=access.network, side=side,
    )  # fmt: skip


_MAKERS: dict[str, Callable[..., Provider]] = {"s3": _s3, "gs": _google, "az": _azure}
