"""Planning of a run: joins manifest and ledger in DuckDB, and writes rows to do as chunk files.

It runs in a child process, so that its memory is freed when it ends. Writing plan.json commits a plan: a later plan
ignores, or finds again, whatever was written before a crash. Its main relations:

| relation | content | filled by |
|---|---|---|
| `manifest` | the rows of the normalised manifest | planner |
| `latest` | the folded ledger | ferry.state.ledger |
| `held` | the rows of listed chunks | chunk_files |
| `superseded` | rows whose key another row has written since | collisions |
| `problems` | duplicates and key collisions | collisions |
| `facts` | what decides about each row | row_facts |
| `todo` | rows for new chunks, with their reasons | row_facts |
| `selected` | the rows of `todo` that this run takes | chunk_files |
| `existing` | keys to do that exist at the destination | existing_objects |
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ferry.core import Damaged
from ferry.job import Job
from ferry.manifest import NORMALISED, LoadedManifest, load_manifest
from ferry.planning import chunk_files, collisions, row_facts
from ferry.planning.collisions import ProblemCounts
from ferry.planning.existing_objects import delete_old_hints, find_existing, name_folding_of
from ferry.planning.options import Accesses, PlanOptions
from ferry.planning.overlaps import refuse_overlaps
from ferry.planning.preview import Preview, preview
from ferry.planning.removed import find_removed
from ferry.planning.rules import auto_chunk_rows, check_locations, expected_rows, much_shorter, stays_in_plan
from ferry.planning.sample import draw_sample
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


@dataclass(frozen=True, slots=True)
class _Earlier:
    """What earlier plans left: the plan in force, its intact chunks, since which run outcomes count, expected rows."""

    plan: Plan | None
    chunks: list[ChunkRef]
    since_run: int
    expected_rows: int

    def compared(self, counts: ProblemCounts) -> tuple[int, int]:
        """Returns the rows of the manifest and of the last one, counted alike."""
        if self.plan is None:
            return counts.usable, self.expected_rows
        if not self.plan.usable:  # an earlier Ferry counted all rows, unusable ones and duplicates included
            return counts.rows, self.expected_rows
        return counts.usable, self.plan.usable


@dataclass(frozen=True, slots=True)
class _Todo:
    """Numbers of rows: for new chunks, of these taken by this run (by reason), pending, and failed permanently."""

    rows: int
    selected: dict[str, int]
    pending: int
    permanent_failures: int


class Planner:
    """The planning of one run. Each step of :meth:`run` fills relations that later steps read (module docstring)."""

    def __init__(self, job: Job, state: State, access: Accesses, options: PlanOptions) -> None:
        self.job, self.state, self.access, self.options = job, state, access, options
        # `ferry plan` may read the state of a running job, so its temporary files must not be in that state.
        self._scratch = tempfile.TemporaryDirectory(prefix="ferry-plan-") if options.dry else None
        self.spool_dir = Path(self._scratch.name) if self._scratch else state.spool_dir
        self.con = connect(self.spool_dir)
        self._open_files = contextlib.ExitStack()
        self.notes: list[str] = []
        self._plain = options.mode == "plain"
        self._to_directory = job.destination.uri.startswith("file://")

    def run(self) -> Planned:
        """Plans the run and returns the result. Raises UserError for an unusable job, manifest or state."""
        refuse_overlaps(self.job, self.state.uri)
        earlier = self._earlier()
        loaded = self._load_manifest(earlier.plan)
        counts = self._load_relations(loaded, earlier)
        self._check_lease()
        about = loaded.about if self.options.dry else self._keep_manifest(loaded, earlier)
        chunks, todo = self._decide(earlier)
        seen = preview(self.con, self.job) if self.options.dry else Preview()
        run_chunks, plan_chunks, how_found = self._write_chunks(chunks, counts, earlier)
        if not self.options.dry:
            self._commit(about, counts, run_chunks, plan_chunks, earlier)
        folder = self.options.sample_folder
        sample = draw_sample(self.con, Path(folder), self.options.sample) if folder else None
        return Planned(
            run_no=self.options.run_no, rows=counts.rows, unusable=counts.unusable, duplicates=counts.duplicates,
            collisions=counts.collisions, todo=todo.selected, pending=todo.pending,
            untouched=counts.rows - todo.rows - todo.pending,
            permanent_failures=todo.permanent_failures if self._plain else 0,
            deferred_by_limit=todo.rows - sum(todo.selected.values()), existing=how_found,
            chunk_rows=self._chunk_rows(counts, earlier), chunks=run_chunks,
            recognised=about.get("recognised", {}), samples=about.get("samples", {}),
            mappings=seen.mappings, hosts=seen.hosts, more_hosts=seen.more_hosts, notes=[*self.notes, *seen.warnings],
            shorter=_shorter(*earlier.compared(counts)), sample=sample,
        )  # fmt: skip

    def _earlier(self) -> _Earlier:
        """Reads what earlier plans left in the state."""
        plan = self._plan_in_force()
        if plan is not None:
            check_locations(plan, self.job)
        refuse_lost_ledger(self.state)
        if plan is None:
            return _Earlier(None, [], self._since_run(), self._expected_rows())
        return _Earlier(plan, self._intact(plan.chunks), plan.since_run, plan.expected_rows or plan.rows)

    def _load_relations(self, loaded: LoadedManifest, earlier: _Earlier) -> ProblemCounts:
        """Fills the relations from `manifest` to `problems`."""
        self._create_manifest_view(loaded)
        create_latest(self.con, self.state, earlier.since_run, open_files=self._open_files)
        self._load_held(earlier.chunks)
        chunk_files.load_begun(self.con, self.state, earlier.chunks)
        collisions.find_superseded(self.con)
        names_fold = self._to_directory and not self.options.dry
        return collisions.find_collisions(
            self.con, self.notes, for_directory=self._to_directory, listed=self.job.is_listed(), dedupe=self.job.dedupe,
            name_folding=partial(name_folding_of, self.job.destination.uri) if names_fold else tuple,
        )  # fmt: skip

    def _keep_manifest(self, loaded: LoadedManifest, earlier: _Earlier) -> dict[str, Any]:
        """Writes a new manifest to the state, only now, so that a refused one leaves the old one in force."""
        if earlier.plan is None:  # written first: outcomes without a plan are then known to belong to this location
            self._write_location(earlier.since_run, earlier.expected_rows)
        if loaded.path is None:
            return loaded.about
        about = {**loaded.about, "file": checked_file_name(manifest_stem(self.options.run_no), loaded.path)}
        self.state.write_file(about["file"], loaded.path)
        self._create_manifest_view(LoadedManifest(None, about))
        return about

    def _decide(self, earlier: _Earlier) -> tuple[list[ChunkRef], _Todo]:
        """Fills `selected`. Returns the earlier chunks that stay in the plan, and the numbers of rows to do."""
        row_facts.gather(self.con, self.job, self.options.run_no)
        row_facts.decide(self.con, self.options.mode, self.options.classes, delta=self.job.mode == "delta")
        chunks = self._count_done(earlier.chunks) if self._plain else earlier.chunks
        if self._plain and not self.options.dry:
            collisions.write_outcomes(self.con, self.state, self.options.run_no, self.job.settings_digest())
        pending = sum(chunk.rows - chunk.done for chunk in chunks) if self._plain else 0
        selected = chunk_files.select_rows(self.con, self.options.limit, pending, at_random=self.options.at_random)
        (rows,) = self.con.execute("SELECT count(*) FROM todo").fetchall()[0]
        (permanent_failures,) = self.con.execute(
            "SELECT count(*) FROM facts ANTI JOIN todo USING (row_id) WHERE status = 'failed' AND NOT held"
        ).fetchall()[0]
        self.con.execute("DROP TABLE facts; DROP TABLE todo")  # large; writing chunks needs their memory
        return chunks, _Todo(rows, selected, pending, permanent_failures)

    def _write_chunks(
        self, chunks: Sequence[ChunkRef], counts: ProblemCounts, earlier: _Earlier
    ) -> tuple[list[ChunkRef], list[ChunkRef], str]:
        """Writes `selected` to chunk files. Returns the chunks of the run and of the plan, and how objects are found.

        Base chunks stay in the plan and are submitted in every run. Rows that delta runs add go to retry chunks, which
        leave the plan once their rows are done.
        """
        base, dry = earlier.plan is None or self.job.mode == "full", self.options.dry
        chunk_rows = self._chunk_rows(counts, earlier)
        run_no, dedupe = self.options.run_no, self.job.dedupe
        write = partial(chunk_files.write_chunks, self.con, self.state, run_no, chunk_rows, base=base, dedupe=dedupe)
        new = [] if dry else write()
        kept = chunk_files.without(chunks, new)
        pending = sum(chunk.rows - chunk.done for chunk in kept) if self._plain else 0
        run_chunks, how_found = find_existing(
            self.con, self.state, self.job, self.access.destination, [*kept, *new] if self._plain else new, pending,
            dry=dry,
        )  # fmt: skip
        return run_chunks, [*kept, *new], how_found

    def _commit(
        self,
        about: dict[str, Any],
        counts: ProblemCounts,
        run_chunks: Sequence[ChunkRef],
        plan_chunks: Sequence[ChunkRef],
        earlier: _Earlier,
    ) -> None:
        """Writes the plan, and deletes what it replaces."""
        rows, _ = earlier.compared(counts)
        accept_shorter = self.job.delta.accept_shorter_manifest
        expected = expected_rows(rows, earlier.expected_rows, accept_shorter_manifest=accept_shorter)
        if expected == rows:
            expected = counts.usable
        self._check_lease()  # reading the manifest and listing the destination may have taken long
        self._write_location(earlier.since_run, expected)
        if self._plain and missing_files(self.state):
            find_removed(self.con, to_directory=self._to_directory)
            forget_returned(self.con, self.state, self.options.run_no)
        plan = Plan(
            self.job.location_digests(), self._chunk_rows(counts, earlier), counts.rows, about, self.options.run_no,
            list(plan_chunks), earlier.since_run, expected, counts.usable,
        )  # fmt: skip
        self._check_lease()
        self.state.write(PLAN_FILE, plan.encode())
        self.state.delete([REPLAN, OLD_LOCATION_FILE])
        self._delete_old_manifests(about["file"])
        if self._plain:
            delete_old_hints(self.state, run_chunks)
            delete_unlisted(self.state, [chunk.digest for chunk in plan.chunks])

    def _write_location(self, since_run: int, expected: int) -> None:
        location = PlanLocation(self.job.location_digests(), since_run, expected)
        self.state.write(LOCATION_FILE, location.encode())

    def close(self) -> None:
        """Closes DuckDB and deletes temporary files."""
        self.con.close()
        self._open_files.close()
        (self.spool_dir / NORMALISED).unlink(missing_ok=True)  # a refused manifest leaves it
        if self._scratch is not None:
            self._scratch.cleanup()

    def _check_lease(self) -> None:
        """Raises Fatal if another run has taken the lease; to be called before a write that later plans depend on."""
        if self.options.token and not self.options.dry:
            check_lease(self.state, self.options.token)

    def _plan_in_force(self) -> Plan | None:
        """Returns the plan, or None for no plan and for a damaged or missing one that can be made again.

        It can be made again if location.json shows that the ledger's outcomes belong to the job's present location.
        Raises Damaged if it does not, and NewerVersion.
        """
        problem = "is missing"
        try:
            plan = read_plan(self.state)
        except Damaged:
            plan, problem = None, "is damaged"
        if plan is not None or REPLAN in self.state.list("plan"):
            return plan
        if not ledger_files(self.state) and problem == "is missing":
            return None
        location = self._location()
        if location is None or location.location_digests != self.job.location_digests():
            raise Damaged(
                f"{PLAN_FILE} in the state {problem}, and {LOCATION_FILE} does not show that earlier runs used the "
                "source and destination of this job. Restore it, undo the change of the job, or run `ferry run "
                "--replan` (nothing is deleted)"
            )
        self.notes.append(f"{PLAN_FILE} {problem}: planned again from the manifest and the ledger")
        return None

    def _location(self) -> PlanLocation | None:
        with contextlib.suppress(Damaged):
            return read_location(self.state)
        return None

    def _since_run(self) -> int:
        """Returns since which run outcomes count, for a plan without a predecessor.

        After a `--replan` to another location no earlier outcome counts. None does either if the earlier location is
        not known, so that all rows are rechecked.
        """
        location = self._location()
        if location is None:
            return self.options.run_no if ledger_files(self.state) else 0
        same = location.location_digests == self.job.location_digests()
        return location.since_run if same else self.options.run_no

    def _expected_rows(self) -> int:
        """Returns the expected rows for a plan without a predecessor: a `--replan` must not accept a short manifest."""
        location = self._location()
        if location is None or location.location_digests != self.job.location_digests():
            return 0
        return location.expected_rows

    def _intact(self, chunks: Sequence[ChunkRef]) -> list[ChunkRef]:
        """Returns the chunks with intact files. Rows of the others are in no chunk any more, and are planned again."""
        if self.options.mode in ("pass", "repair"):
            return list(chunks)
        kept = [chunk for chunk in chunks if is_intact(self.state, chunk.uri)]
        if len(kept) < len(chunks):
            lost = sorted({chunk.uri for chunk in chunks} - {chunk.uri for chunk in kept})
            self.notes.append(
                f"{len(lost):,} chunk files were damaged or missing ({lost[0]}"
                f"{', ...' if len(lost) > 1 else ''}): their rows that are to do go to new chunks"
            )
        return kept

    def _chunk_rows(self, counts: ProblemCounts, earlier: _Earlier) -> int:
        if earlier.plan is not None:
            return earlier.plan.chunk_rows
        return auto_chunk_rows(counts.rows) if self.job.chunk_rows == "auto" else self.job.chunk_rows

    def _load_manifest(self, old: Plan | None) -> LoadedManifest:
        """Loads and normalises the manifest, or returns the state's file if the manifest has not changed."""
        known = old.manifest if old else {}
        if known and not is_intact(self.state, known["file"]):
            self.notes.append(f"{known['file']} was damaged or missing: made again from the manifest")
            known = _reading(known)
        if "file" in known:
            path = str(self.state.local(known["file"]))
            if not {"deferred_key", "alternatives", "storage_class"} <= set(self.con.from_parquet(path).columns):
                # a file before schema 6 lacks columns, or has them under other names, so the manifest is read again
                known = _reading(known)
        if self.options.mode != "plain" and "file" in known:
            return LoadedManifest(None, known)
        loaded = load_manifest(self.con, self.job, self.access.source, self.spool_dir, known, self.access.auth)
        self.notes += loaded.notes
        return loaded if loaded.path is not None else LoadedManifest(None, known)

    def _create_manifest_view(self, loaded: LoadedManifest) -> None:
        path = loaded.path or self.state.local(loaded.about["file"])
        self.con.from_parquet(str(path)).create_view("manifest", replace=True)

    def _delete_old_manifests(self, current: str) -> None:
        self.state.delete(n for n in self.state.list("plan") if n.startswith("plan/manifest-") and n != current)

    def _load_held(self, chunks: Sequence[ChunkRef]) -> None:
        if self.options.mode in ("pass", "repair"):
            returned = set(self.options.returned)
            chunks = [chunk for chunk in chunks if chunk.digest in returned]
        chunk_files.load_held(self.con, self.state, chunks)

    def _count_done(self, chunks: Sequence[ChunkRef]) -> list[ChunkRef]:
        """Returns the chunks that stay in the plan, each with its number of rows that need no further work."""
        self.con.execute(f"CREATE TABLE done AS SELECT h.chunk, {chunk_files.DONE} AS done {chunk_files.HELD_JOINED}")
        counts: dict[str, int] = dict(
            self.con.execute("SELECT chunk, count(*) FILTER (done) FROM done GROUP BY 1").fetchall()
        )
        self.con.execute("DROP TABLE done")
        newest = max((chunk.run_no for chunk in chunks), default=0)
        counted = [with_hints(chunk, counts.get(chunk.digest, 0), "unknown") for chunk in chunks]
        return [chunk for chunk in counted if stays_in_plan(chunk, newest)]


def _reading(known: dict[str, Any]) -> dict[str, Any]:
    """Returns what says how a manifest was read, so that its next version is read in the same way."""
    return {name: known[name] for name in ("recognised", "bare_hosts") if name in known}


def _shorter(rows: int, last: int) -> str:
    """Returns a warning for a manifest that is over a tenth shorter than the last one, else ""."""
    if not much_shorter(rows, last):
        return ""
    return (
        f"The manifest has {rows:,} usable rows, and the last one had {last:,}. If it is truncated, stop this run and "
        "complete the manifest."
    )


def make_plan(job: Job, state: State, access: Accesses, options: PlanOptions) -> Planned:
    """Plans a run as :meth:`Planner.run` does."""
    planner = Planner(job, state, access, options)
    try:
        return planner.run()
    finally:
        planner.close()
