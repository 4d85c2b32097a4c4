"""The store for a URI, with the client that it needs."""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ferry.core import Budget, UserError
from ferry.storage.credentials import Access, http_client
from ferry.storage.local_files import Folder
from ferry.storage.multipart import UploadLog
from ferry.storage.store import Store


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
    """Returns the store for a URI: ``s3://bucket/prefix`` or ``file:///directory``.

    ``timeout_s`` limits a request, ``read_s`` the time without a byte from a bucket. ``budget`` limits the memory for
    bodies, and ``pool`` hashes large ones. The store must be closed in the event loop that used it; one that only lists
    needs no loop. ``mark`` begins the names of this job's unfinished files in a directory. ``upload_log`` records this
    job's multipart uploads in a bucket.
    Raises UserError for any other scheme, and for a missing directory unless ``create`` is set.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        # Amazon documents the order (ListObjectsV2); other stores may sort differently.
        at_amazon = access.endpoint_url is None or ".amazonaws.com" in access.endpoint_url
        http = partial(http_client, parts.netloc, access, timeout_s, read_s)
        return Store(
            uri, parts.path.strip("/"), "s3", spool_dir, in_byte_order=at_amazon, budget=budget, pool=pool, http=http,
            access=access, upload_log=upload_log, read_s=read_s,
        )  # fmt: skip
    if parts.scheme == "file":
        directory = Path(unquote(parts.path))
        if not directory.is_dir() and not create:
            raise UserError(f"the directory {directory} does not exist. Create it, or correct its address in the job")
        folder = Folder(directory, mark, create=create)
        return Store(uri, "", "file", spool_dir, folder, budget=budget, pool=pool)
    raise UserError(f"`{uri}` is neither `s3://bucket/prefix/` nor `file:///directory/`")
