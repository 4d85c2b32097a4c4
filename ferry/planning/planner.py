"""Planning of a run: joins manifest and ledger in DuckDB, and writes rows to do as chunk files.

It runs in a child process, so that its memory is freed when it ends. Writing plan.json commits a plan: a later plan
ignores, or finds again, whatever was written before a crash. Its main relations:

| relation | content | filled by |
|---|---|---|
| `manifest` | the rows of the normalised manifest | planner |
| `manifest_rows` | one part of them, without the wide columns | row_parts |
| `latest` | the same part of the folded ledger | ferry.state.ledger |
| `held` | the same part of the rows of listed chunks | row_parts, chunk_files |
| `begun` | removed rows that a killed run may have transferred | chunk_files |
| `superseded` | rows whose key another row has written since | collisions |
| `contenders` | rows whose key may be another row's, too | contenders |
| `problems` | duplicates and key collisions | collisions |
| `facts` | what decides about each row of the part | row_facts |
| `todo` | rows for new chunks, with their reasons | row_facts |
| `open_rows` | rows to do of listed and new chunks | planner, chunk_files |
| `selected` | the rows of `todo` that this run takes | chunk_files |
| `existing` | rows to do whose keys exist at the destination | existing_objects |

A manifest has more rows than fit into memory. What is joined by row ID is so one part after the other (row_parts), and
leaves only row numbers and counts. What is joined by key first finds the few keys that occur twice, by hashes
(contenders). What follows is by row number, in spans of the manifest.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ferry.job import Job
from ferry.manifest import NORMALISED, LoadedManifest, load_manifest
from ferry.planning import chunk_files, collisions, row_facts
from ferry.planning.collisions import ProblemCounts
from ferry.planning.earlier import Earlier, read_earlier
from ferry.planning.existing_objects import (
    are_hints_needed,
    delete_old_hints,
    find_existing,
    how_to_find,
    name_folding_of,
)
from ferry.planning.hints import KnownCopies
from ferry.planning.options import Accesses, PlanOptions
from ferry.planning.overlaps import refuse_overlaps
from ferry.planning.preview import Preview, preview
from ferry.planning.removed import find_removed
from ferry.planning.row_parts import RowParts
from ferry.planning.rules import auto_chunk_rows, expected_rows, much_shorter, stays_in_plan
from ferry.planning.sample import draw_sample
from ferry.state import (
    LOCATION_FILE,
    OLD_LOCATION_FILE,
    PLAN_FILE,
    REPLAN,
    ROWS_AT_ONCE,
    ChunkRef,
    Plan,
    PlanLocation,
    Planned,
    State,
    check_lease,
    checked_file_name,
    connect,
    delete_unlisted,
    forget_returned,
    is_intact,
    manifest_stem,
    missing_files,
    open_ledger,
    with_hints,
)


@dataclass(frozen=True, slots=True)
class _Todo:
    """Numbers of rows: for new chunks, of these taken by this run (by reason), pending, and failed permanently."""

    rows: int
    selected: dict[str, int]
    pending: int
    permanent_failures: int


class Planner:
    """The planning of one run. Each step of :meth:`run` fills relations that later steps read (module docstring)."""

    def __init__(self, job: Job, state: State, access: Accesses, options: PlanOptions, at_once: int) -> None:
        self.job, self.state, self.access, self.options, self._at_once = job, state, access, options, at_once
        # `ferry plan` may read the state of a running job, so its temporary files must not be in that state.
        self._scratch = tempfile.TemporaryDirectory(prefix="ferry-plan-") if options.dry else None
        self.spool_dir = Path(self._scratch.name) if self._scratch else state.spool_dir
        self.con = connect(self.spool_dir)
        self._open_files = contextlib.ExitStack()  # of what is deleted or closed at the end
        self.notes: list[str] = []
        self._plain = options.mode == "plain"
        self._to_directory = job.destination.uri.startswith("file://")

    def run(self) -> Planned:
        """Plans the run and returns the result. Raises UserError for an unusable job, manifest or state."""
        refuse_overlaps(self.job, self.state.uri)
        earlier = read_earlier(self.job, self.state, self.options, self.notes)
        loaded = self._load_manifest(earlier.plan)
        parts = self._open_parts(loaded, earlier)
        known = KnownCopies(self.con, parts.ledger, parts.at_once)
        self._open_files.callback(known.close)
        counts = self._find_problems(parts)
        self._check_lease()
        about = loaded.about if self.options.dry else self._keep_manifest(loaded, earlier)
        chunks, todo = self._decide(earlier, parts, known)
        seen = preview(self.con, self.job) if self.options.dry else Preview()
        run_chunks, plan_chunks, how_found = self._write_chunks(chunks, counts, earlier, known)
        if not self.options.dry:
            self._commit(about, counts, run_chunks, plan_chunks, earlier, parts)
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

    def _open_parts(self, loaded: LoadedManifest, earlier: Earlier) -> RowParts:
        """Opens manifest, ledger and listed chunks, to be joined one part after the other."""
        self._create_manifest_view(loaded)
        ledger = self._open_files.enter_context(open_ledger(self.con, self.state, earlier.since_run))
        self._held = earlier.chunks
        if self.options.mode in ("pass", "repair"):
            returned = set(self.options.returned)
            self._held = [chunk for chunk in self._held if chunk.digest in returned]
        parts = RowParts(self.con, self.state, ledger, self._held, self._at_once)
        self._open_files.callback(parts.close)
        return parts

    def _find_problems(self, parts: RowParts) -> ProblemCounts:
        """Fills `begun`, `superseded` and `problems`."""
        self._unsettled = chunk_files.load_begun(self.con, self.state, self._held, parts)
        collisions.find_superseded(self.con, parts.ledger, self._at_once)
        names_fold = self._to_directory and not self.options.dry
        return collisions.find_collisions(
            self.con, self.notes, for_directory=self._to_directory, listed=self.job.is_listed(), dedupe=self.job.dedupe,
            name_folding=partial(name_folding_of, self.job.destination.uri) if names_fold else tuple,
            spans=parts.spans(), ledger=parts.ledger, at_once=self._at_once,
        )  # fmt: skip

    def _keep_manifest(self, loaded: LoadedManifest, earlier: Earlier) -> dict[str, Any]:
        """Writes a new manifest to the state, only now, so that a refused one leaves the old one in force."""
        if earlier.plan is None:  # written first: outcomes without a plan are then known to belong to this location
            self._write_location(earlier.since_run, earlier.expected_rows)
        if loaded.path is None:
            return loaded.about
        about = {**loaded.about, "file": checked_file_name(manifest_stem(self.options.run_no), loaded.path)}
        self.state.write_file(about["file"], loaded.path)
        self._create_manifest_view(LoadedManifest(None, about))
        return about

    def _decide(self, earlier: Earlier, parts: RowParts, known: KnownCopies) -> tuple[list[ChunkRef], _Todo]:
        """Fills `selected`. Returns the earlier chunks that stay in the plan, and the numbers of rows to do."""
        open_rows: Counter[str] = Counter()
        permanent_failures = 0
        self.con.execute("CREATE TABLE open_rows (position INTEGER, row_no BIGINT)")
        row_facts.load_rules(self.con, self.job)
        with_digests = row_facts.has_digests(self.con)
        for _ in parts:
            row_facts.gather(self.con, self.job, self.options.run_no, with_digests=with_digests)
            if self._plain:
                open_rows.update(self._count_open())
            mode, delta = self.options.mode, self.job.mode == "delta"
            permanent_failures += row_facts.decide(self.con, mode, self.options.classes, delta=delta)
            if not self.options.dry:
                known.add_rechecks()
            if self._plain:
                collisions.find_unrecorded(self.con)
        chunks = self._with_counts(earlier.chunks, open_rows) if self._plain else earlier.chunks
        if self._plain and not self.options.dry:
            digest = self.job.settings_digest()
            collisions.write_outcomes(self.con, self.state, self.options.run_no, digest, parts.spans())
        pending = sum(chunk.rows - chunk.done for chunk in chunks) if self._plain else 0
        selected = chunk_files.select_rows(self.con, self.options.limit, pending, at_random=self.options.at_random)
        (rows,) = self.con.execute("SELECT count(*) FROM todo").fetchall()[0]
        self.con.execute("DROP TABLE todo")  # large; writing chunks needs its memory
        parts.release()
        return chunks, _Todo(rows, selected, pending, permanent_failures)

    def _write_chunks(
        self, chunks: Sequence[ChunkRef], counts: ProblemCounts, earlier: Earlier, known: KnownCopies
    ) -> tuple[list[ChunkRef], list[ChunkRef], str]:
        """Writes `selected` to chunk files. Returns the chunks of the run and of the plan, and how objects are found.

        Base chunks stay in the plan and are submitted in every run. Rows that delta runs add go to retry chunks, which
        leave the plan once their rows are done.
        """
        (rows,) = self.con.execute("SELECT count(*) FROM selected").fetchall()[0]
        if self._plain:
            rows += sum(chunk.rows - chunk.done for chunk in chunks)
        how, how_found = how_to_find(self.job.on_existing, rows)
        if self.options.dry:
            return list(chunks) if self._plain else [], list(chunks), how_found
        hinted = are_hints_needed(self.job, how, known.rechecks, chunks if self._plain else ())
        new = chunk_files.write_chunks(
            self.con, self.state, self.options.run_no, self._chunk_rows(counts, earlier),
            base=earlier.plan is None or self.job.mode == "full", dedupe=self.job.dedupe,
            record_from=len(self._held) if hinted else None, at_once=min(self._at_once, chunk_files.SORTED_ROWS),
        )  # fmt: skip
        kept = chunk_files.without(chunks, new)
        positions = {chunk.digest: position for position, chunk in enumerate(self._held)}
        run_chunks = {positions[chunk.digest]: chunk for chunk in kept} if self._plain else {}
        run_chunks |= dict(enumerate(new, len(self._held)))
        found, how_found = find_existing(
            self.con, self.state, self.job, self.access.destination, run_chunks, (how, how_found),
            known if hinted else None,
        )  # fmt: skip
        return found, [*kept, *new], how_found

    def _commit(
        self,
        about: dict[str, Any],
        counts: ProblemCounts,
        run_chunks: Sequence[ChunkRef],
        plan_chunks: Sequence[ChunkRef],
        earlier: Earlier,
        parts: RowParts,
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
            parts.ledger.create_all()
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
        self._open_files.close()
        self.con.close()
        (self.spool_dir / NORMALISED).unlink(missing_ok=True)  # a refused manifest leaves it
        if self._scratch is not None:
            self._scratch.cleanup()

    def _check_lease(self) -> None:
        """Raises Fatal if another run has taken the lease; to be called before a write that later plans depend on."""
        if self.options.token and not self.options.dry:
            check_lease(self.state, self.options.token)

    def _chunk_rows(self, counts: ProblemCounts, earlier: Earlier) -> int:
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

    def _count_open(self) -> dict[str, int]:
        """Adds to `open_rows`, and returns how many rows of the part are still to do, by their chunk's digest."""
        self.con.execute("INSERT INTO open_rows SELECT position, row_no FROM facts WHERE held")
        found = self.con.execute("SELECT position, count(*) FROM facts WHERE held GROUP BY 1").fetchall()
        return {self._held[position].digest: rows for position, rows in found}

    def _with_counts(self, chunks: Sequence[ChunkRef], open_rows: Mapping[str, int]) -> list[ChunkRef]:
        """Returns the chunks that stay in the plan, each with its number of rows that need no further work."""
        newest = max((chunk.run_no for chunk in chunks), default=0)
        counted = [
            replace(
                with_hints(chunk, chunk.rows - open_rows.get(chunk.digest, 0), "unknown"),
                settled=position not in self._unsettled,
            )
            for position, chunk in enumerate(chunks)
        ]
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


def make_plan(job: Job, state: State, access: Accesses, options: PlanOptions, at_once: int = ROWS_AT_ONCE) -> Planned:
    """Plans a run as :meth:`Planner.run` does, with parts of about ``at_once`` rows."""
    planner = Planner(job, state, access, options, at_once)
    try:
        return planner.run()
    finally:
        planner.close()
