"""Asks a listed source for an object that its listing lacks: a listing may be cut off or out of date."""

from __future__ import annotations

from pathlib import Path

from ferry.core import Fatal, ObjectError, Outcome
from ferry.job import Job, Template
from ferry.manifest import base_row_id, globs, matches_globs
from ferry.storage import Access, Store, open_store


def source_key(outcome: Outcome, root: str, *, late: bool) -> str | None:
    """The key of a copy's source below the listed root; None where it is not known byte for byte.

    The ledger has addresses without what may be secret: a `?` or a `#` and what follows. The row's ID tells whether
    this is the source as it was. A late key is in it as it was before the fetch, which nothing tells any more: then
    only a `?` is noticed.
    """
    for source in (outcome.source, root + outcome.key):
        if source.startswith(root) and base_row_id(source, outcome.key, None).hex() == outcome.row_id:
            return source[len(root) :]
    whole = late and outcome.source.startswith(root) and "?" not in outcome.source
    return outcome.source[len(root) :] if whole else None


class SourceCheck:
    """The listed source of a job. Of a job with a list of its own it has nothing to ask."""

    def __init__(self, job: Job, access: Access, spool_dir: Path) -> None:
        self._root = job.manifest
        self._late = job.key is not None and Template.parse(job.key).late
        self._include, self._exclude = globs(job)
        self._store: Store | None = open_store(job.manifest, access, spool_dir) if job.is_listed() else None

    async def why_it_stays(self, outcome: Outcome) -> str:
        """ "" where the source answered 404, or the job leaves this key out by itself (`include`, `exclude`)."""
        if self._store is None:
            return ""
        key = source_key(outcome, self._root, late=self._late)
        if key is None:
            return "the address of its source is not known exactly, so that the source cannot be asked for it"
        if not matches_globs(key, self._include, self._exclude):
            return ""
        try:
            there = await self._store.head(key, side="source") is not None
        except (ObjectError, Fatal) as error:
            return f"its source could not be asked for it ({error})"
        return "its source still has it, although the listing lacks it" if there else ""

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()
