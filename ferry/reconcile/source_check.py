"""Check of a listed source for objects that its listing lacks: a listing may be truncated or out of date."""

from __future__ import annotations

from pathlib import Path

from ferry.core import Fatal, ObjectError, Outcome
from ferry.job import Job, Template
from ferry.manifest import base_row_id, globs, matches_globs
from ferry.storage import Access, Store, open_store


def source_key(outcome: Outcome, root: str, *, deferred_key: bool) -> str | None:
    """Returns the key of a copy's source below the listed root, or None if it is not known exactly.

    The ledger has redacted addresses, which lack the text after a `?` or `#`. The row ID, a digest of source and key,
    shows whether an address is complete. With a ``deferred_key`` the digest was made of the key before the fetch, which
    the ledger does not have. Then only a `?` shows that the address is incomplete.
    """
    for source in (outcome.source, root + outcome.key):
        if source.startswith(root) and base_row_id(source, outcome.key, None).hex() == outcome.row_id:
            return source[len(root) :]
    complete = deferred_key and outcome.source.startswith(root) and "?" not in outcome.source
    return outcome.source[len(root) :] if complete else None


class SourceCheck:
    """The listed source of a job; for a job with a manifest file no copy is checked."""

    def __init__(self, job: Job, access: Access, spool_dir: Path) -> None:
        self._root = job.manifest_address
        self._deferred_key = job.key is not None and Template.parse(job.key).late
        self._include, self._exclude = globs(job)
        self._store: Store | None = open_store(job.manifest_address, access, spool_dir) if job.is_listed() else None

    async def why_kept(self, outcome: Outcome) -> str:
        """Returns why a copy must be kept, or "" if the source answers 404 or the job excludes the key."""
        if self._store is None:
            return ""
        key = source_key(outcome, self._root, deferred_key=self._deferred_key)
        if key is None:
            return "the exact address of its source is not known, so the source cannot be checked for it"
        if not matches_globs(key, self._include, self._exclude):
            return ""
        try:
            exists = await self._store.head(key, side="source") is not None
        except (ObjectError, Fatal) as error:
            return f"its source could not be checked for it ({error})"
        return "its source still has it, although the listing lacks it" if exists else ""

    async def close(self) -> None:
        """Closes the source's connections."""
        if self._store is not None:
            await self._store.close()
