"""Planning: manifest x ledger -> chunk files. Runs in a child process, whose memory ends with it.

DuckDB joins out of core; the decisions are rules.py's. Tables on the way: `m` (the manifest), `latest` (the
folded ledger), `held` (rows of listed chunks), `verdict` (collisions.py), `todo` (rows for new chunks) and `cut`
(those that this run takes). Whatever is written before plan.json, the commit point, is either ignored or
found again by a later plan.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ferry.core import Damaged
from ferry.job import Job
from ferry.manifest import NORMALISED, LoadedManifest, load_manifest
from ferry.planning import chunk_files, collisions, row_facts
from ferry.planning.existing_objects import find_existing, forget_hints, name_folding_of
from ferry.planning.overlaps import refuse_overlaps
from ferry.planning.removed import find_gone
from ferry.planning.rules import Mode, auto_chunk_rows, check_where, keep, much_shorter, rows_believed
from ferry.state import (
    LOCATION_FILE,
    OLD_LOCATION_FILE,
    PLAN_FILE,
    REPLAN,
    ChunkRef,
    Plan,
    PlanLocation,
    Planned,
    State,
    check_lease,
    checked_file_name,
    connect,
    create_latest,
    delete_unlisted,
    forget_returned,
    is_intact,
    ledger_files,
    manifest_stem,
    missing_files,
    read_location,
    read_plan,
    refuse_lost_ledger,
    with_hints,
)
from ferry.storage import Access


@dataclass(frozen=True, slots=True)
class Ask:
    """What a run asks of planning."""

    run_no: int
    mode: Mode = "plain"
    classes: Sequence[str] = ()
    limit: int | None = None
    dry: bool = False  # `ferry plan`: count, write nothing
    returned: Sequence[str] = ()  # modes pass and repair: the chunks of this run that returned
    token: str = ""  # of the run's lease: nothing of the plan is written when another run has taken it


@dataclass(frozen=True, slots=True)
class Accesses:
    """How to reach each end."""

    source: Access
    destination: Access


class Planner:
    """One planning. :meth:`run` is the walk; each step leaves a table for the next."""

    def __init__(self, job: Job, state: State, access: Accesses, ask: Ask) -> None:
        self.job, self.state, self.access, self.ask = job, state, access, ask
        # `ferry plan` may look at a job whose run is on: its work files lie elsewhere, and go.
        self._scratch = tempfile.TemporaryDirectory(prefix="ferry-plan-") if ask.dry else None
        self.spool_dir = Path(self._scratch.name) if self._scratch else state.spool_dir
        self.con = connect(self.spool_dir)
        self.notes: list[str] = []
        self.listed = ""  # the normalised list

    def run(self) -> Planned:
        """Raises UserError for a job, list or state that cannot be used; nothing has moved then."""
        plain, dry = self.ask.mode == "plain", self.ask.dry
        refuse_overlaps(self.job, self.state.uri)
        old = self._plan_in_force()
        if old is not None:
            check_where(old, self.job)
        refuse_lost_ledger(self.state)
        chunks = self._whole(old.chunks) if old else []
        since_run = old.since_run if old else self._since_run()
        before = (old.expected_rows or old.rows) if old else self._believed()
        brought = self._manifest(old)
        self._view(brought)
        create_latest(self.con, self.state, since_run, at_once=dry)  # the job's run may be on
        self._load_held(chunks)
        chunk_files.load_begun(self.con, self.state, chunks)
        collisions.find_superseded(self.con)
        to_directory = self.job.destination.uri.startswith("file://")
        twins = partial(name_folding_of, self.job.destination.uri) if to_directory and not dry else tuple
        judged = collisions.find_collisions(
            self.con, self.notes, for_directory=to_directory, listed=self.job.is_listed(), twins=twins
        )
        about = brought.about
        # An earlier Ferry counted all rows, unusable ones and duplicates too.
        counted = judged.rows if old is not None and not old.usable else judged.usable
        last = old.usable if old is not None and old.usable else before
        self._check_lease()
        if old is None and not dry:  # before all else: what is found without a plan is of this place
            self.state.write(LOCATION_FILE, PlanLocation(self.job.location_digests(), since_run, before).encode())
        if brought.path is not None and not dry:  # a list that was refused leaves the old one in force
            about = {**about, "file": checked_file_name(manifest_stem(self.ask.run_no), brought.path)}
            self.state.write_file(about["file"], brought.path)
            self._view(LoadedManifest(None, about))
        row_facts.gather(self.con, self.job, self.ask.run_no)
        row_facts.decide(self.con, self.ask.mode, self.ask.classes, delta=self.job.mode == "delta")
        listed = self._count_done(chunks) if plain else []
        if plain and not dry:
            collisions.write_outcomes(self.con, self.state, self.ask.run_no, self.job.settings_digest())
        pending = sum(chunk.rows - chunk.done for chunk in listed)
        todo = chunk_files.choose(self.con, self.ask.limit, pending)
        (open_rows,) = self.con.execute("SELECT count(*) FROM todo").fetchall()[0]
        (permanent_failures,) = self.con.execute(
            "SELECT count(*) FROM facts ANTI JOIN todo USING (row_id) WHERE status = 'failed' AND NOT held"
        ).fetchall()[0]
        self.con.execute("DROP TABLE facts; DROP TABLE todo")  # as large as the list; cutting needs their memory
        chunk_rows = old.chunk_rows if old else self._chunk_rows(judged.rows)
        # What nights add is known by the ledger alone, once it is settled: base chunks are there for good, and are
        # submitted in every run.
        base = old is None or self.job.mode == "full"
        new = [] if dry else chunk_files.write_chunks(self.con, self.state, self.ask.run_no, chunk_rows, base=base)
        kept = chunk_files.without(listed if plain else chunks, new)
        run_chunks, how_found = find_existing(
            self.con, self.state, self.job, self.access.destination, [*kept, *new] if plain else new, pending, dry=dry
        )
        if not dry:
            where = self.job.location_digests()
            believed = rows_believed(counted, before, accept_shorter_manifest=self.job.delta.accept_shorter_manifest)
            if believed == counted:
                believed = judged.usable
            self._check_lease()  # the list may have been long, and so the listing of the destination
            self.state.write(LOCATION_FILE, PlanLocation(where, since_run, believed).encode())
            if plain and missing_files(self.state):
                find_gone(self.con, self.listed, to_directory=to_directory)
                forget_returned(self.con, self.state, self.ask.run_no)
            plan = Plan(where, chunk_rows, judged.rows, about, self.ask.run_no, [*kept, *new], since_run, believed,
                        judged.usable)  # fmt: skip
            self._check_lease()
            self.state.write(PLAN_FILE, plan.encode())
            self.state.delete([REPLAN, OLD_LOCATION_FILE])
            self._forget_old_manifests(about["file"])
            if plain:
                forget_hints(self.state, run_chunks)
                delete_unlisted(self.state, [chunk.digest for chunk in plan.chunks])
        return Planned(
            run_no=self.ask.run_no, rows=judged.rows, unusable=judged.unusable, duplicates=judged.duplicates,
            collisions=judged.collisions, todo=todo, pending=pending,
            settled=judged.rows - open_rows - pending, permanent_failures=permanent_failures if plain else 0,
            deferred_by_limit=open_rows - sum(todo.values()), existing=how_found, chunk_rows=chunk_rows,
            chunks=run_chunks, recognised=about.get("recognised", {}), notes=self.notes,
            shorter=_shorter(counted, last),
        )  # fmt: skip

    def close(self) -> None:
        self.con.close()
        (self.spool_dir / NORMALISED).unlink(missing_ok=True)  # of a list that was refused
        if self._scratch is not None:
            self._scratch.cleanup()

    def _check_lease(self) -> None:
        """Before each write that another run's plan would build on. Raises Fatal where that run has the lease now."""
        if self.ask.token and not self.ask.dry:
            check_lease(self.state, self.ask.token)

    def _plan_in_force(self) -> Plan | None:
        """A damaged or lost plan is as none, where it is known that what the ledger has is of this place.

        Raises Damaged where it is not, and NewerVersion.
        """
        what = "is gone"
        try:
            plan = read_plan(self.state)
        except Damaged:
            plan, what = None, "is damaged"
        if plan is not None or REPLAN in self.state.list("plan"):
            return plan
        if not ledger_files(self.state) and what == "is gone":
            return None
        place = self._place()
        if place is None or place.location_digests != self.job.location_digests():
            raise Damaged(
                f"{PLAN_FILE} in the state {what}, and {LOCATION_FILE} does not say that rows went where this job "
                "says. Restore it, undo the change of the job, or run `ferry run --replan` (nothing is deleted)"
            )
        self.notes.append(f"no plan was in force ({PLAN_FILE} {what}): made anew from the list and the ledger")
        return None

    def _place(self) -> PlanLocation | None:
        with contextlib.suppress(Damaged):
            return read_location(self.state)
        return None

    def _since_run(self) -> int:
        """The first plan after a --replan: a new place makes all that was done before count for nothing.

        So does an old place that is not known any more: rows are looked at again rather than believed.
        """
        place = self._place()
        if place is None:
            return self.ask.run_no if ledger_files(self.state) else 0
        return place.since_run if place.location_digests == self.job.location_digests() else self.ask.run_no

    def _believed(self) -> int:
        """What the list is to have, where no plan says it: a list that is cut off stays one after a --replan."""
        place = self._place()
        return place.expected_rows if place is not None and place.location_digests == self.job.location_digests() else 0

    def _whole(self, chunks: Sequence[ChunkRef]) -> list[ChunkRef]:
        """The chunks whose files are as they were written; rows of others are in no chunk any more, and come anew."""
        if self.ask.mode in ("pass", "repair"):
            return list(chunks)
        kept = [chunk for chunk in chunks if is_intact(self.state, chunk.uri)]
        if len(kept) < len(chunks):
            lost = sorted({chunk.uri for chunk in chunks} - {chunk.uri for chunk in kept})
            self.notes.append(
                f"{len(lost):,} chunk files were damaged or gone ({lost[0]}"
                f"{', ...' if len(lost) > 1 else ''}): what of their rows is to do is cut anew"
            )
        return kept

    def _chunk_rows(self, rows: int) -> int:
        return auto_chunk_rows(rows) if self.job.chunk_rows == "auto" else self.job.chunk_rows

    def _manifest(self, old: Plan | None) -> LoadedManifest:
        """The list, brought and normalised; or the one that the state holds, where it did not change."""
        known = old.manifest if old else {}
        if known and not is_intact(self.state, known["file"]):
            self.notes.append(f"{known['file']} was damaged or gone: made anew from the list")
            known = {}
        if known and "deferred_key" not in self.con.from_parquet(str(self.state.local(known["file"]))).columns:
            known = {}  # written by a Ferry whose schema had other names: read the list again
        if self.ask.mode != "plain" and known:
            return LoadedManifest(None, known)
        brought = load_manifest(self.con, self.job, self.access.source, self.spool_dir, known)
        self.notes += brought.notes
        return brought if brought.path is not None else LoadedManifest(None, known)

    def _view(self, manifest: LoadedManifest) -> None:
        self.listed = str(manifest.path or self.state.local(manifest.about["file"]))
        self.con.from_parquet(self.listed).create_view("m", replace=True)

    def _forget_old_manifests(self, current: str) -> None:
        self.state.delete(n for n in self.state.list("plan") if n.startswith("plan/manifest-") and n != current)

    def _load_held(self, chunks: Sequence[ChunkRef]) -> None:
        if self.ask.mode in ("pass", "repair"):
            returned = set(self.ask.returned)
            chunks = [chunk for chunk in chunks if chunk.digest in returned]
        chunk_files.load_held(self.con, self.state, chunks)

    def _count_done(self, chunks: Sequence[ChunkRef]) -> list[ChunkRef]:
        """The listed chunks that stay, each with how many of its rows need nothing more (chunk_files.DONE)."""
        self.con.execute(f"CREATE TABLE done AS SELECT h.chunk, {chunk_files.DONE} AS done {chunk_files.HELD_JOINED}")
        counts: dict[str, int] = dict(
            self.con.execute("SELECT chunk, count(*) FILTER (done) FROM done GROUP BY 1").fetchall()
        )
        self.con.execute("DROP TABLE done")
        newest = max((chunk.run_no for chunk in chunks), default=0)
        counted = [with_hints(chunk, counts.get(chunk.digest, 0), "unknown") for chunk in chunks]
        return [chunk for chunk in counted if keep(chunk, newest)]


def _shorter(rows: int, last: int) -> str:
    if not much_shorter(rows, last):
        return ""
    had = f"The list has {rows:,} rows that can be used, where the last one had {last:,}."
    return f"{had} If it is cut off, stop this run."


def make_plan(job: Job, state: State, access: Accesses, ask: Ask) -> Planned:
    planner = Planner(job, state, access, ask)
    try:
        return planner.run()
    finally:
        planner.close()
