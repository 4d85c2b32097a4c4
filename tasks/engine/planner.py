"""Planning: manifest x ledger -> chunk files. Runs in a child process, whose memory ends with it.

DuckDB joins out of core; the decisions are plan.py's. Tables on the way: `m` (the manifest), `latest` (the
folded ledger), `held` (rows of listed chunks), `verdict` (judge.py), `todo` (rows for new chunks) and `cut`
(those that this run takes). Whatever is written before plan.json, the commit point, is either ignored or
found again by a later plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.engine import cut, judge, ledger
from tasks.engine.destination import find_existing
from tasks.engine.intake import bring_manifest
from tasks.engine.job import Job
from tasks.engine.objects import ErrorClass, Status
from tasks.engine.plan import (
    PLAN_FILE,
    ChunkRef,
    Latest,
    Mode,
    Plan,
    Planned,
    auto_chunk_rows,
    check_where,
    keep,
    manifest_name,
    read_plan,
    reason_to_do,
    with_hints,
)
from tasks.engine.state import State
from tasks.engine.store import Access


@dataclass(frozen=True, slots=True)
class Ask:
    """What a run asks of planning."""

    run_no: int
    mode: Mode = "plain"
    classes: Sequence[str] = ()
    limit: int | None = None
    dry: bool = False  # `ferry plan`: count, write nothing
    returned: Sequence[str] = ()  # modes pass and repair: the chunks of this run that returned


@dataclass(frozen=True, slots=True)
class Accesses:
    """How to reach each end."""

    source: Access
    destination: Access


class Planner:
    """One planning. :meth:`run` is the walk; each step leaves a table for the next."""

    def __init__(self, job: Job, state: State, access: Accesses, ask: Ask) -> None:
        self.job, self.state, self.access, self.ask = job, state, access, ask
        self.con = ledger.connect(state.spool_dir)
        self.notes: list[str] = []

    def run(self) -> Planned:
        """Raises UserError for a job, list or state that cannot be used; nothing has moved then."""
        plain, dry = self.ask.mode == "plain", self.ask.dry
        old = read_plan(self.state)
        if old is not None:
            check_where(old, self.job)
        chunks = old.chunks if old else []
        manifest, about = self._manifest(old)
        self._load(manifest, chunks)
        judged = judge.judge(self.con, self.notes)
        self._decide()
        listed = self._count_done(chunks) if plain else []
        if plain and not dry:
            judge.write_outcomes(self.con, self.state, self.ask.run_no, self.job.how_digest())
        pending = sum(chunk.rows - chunk.done for chunk in listed)
        todo = cut.choose(self.con, self.ask.limit, pending)
        chunk_rows = old.chunk_rows if old else self._chunk_rows(judged.rows)
        new = [] if dry else cut.write_chunks(self.con, self.state, self.ask.run_no, chunk_rows)
        run_chunks, how_found = find_existing(
            self.con, self.state, self.job, self.access.destination, [*listed, *new], dry=dry
        )
        if not dry:
            kept = listed if plain else chunks
            plan = Plan(self.job.where(), chunk_rows, judged.rows, about, self.ask.run_no, [*kept, *new])
            self.state.write(PLAN_FILE, plan.encode())
            self._forget_old_manifests(about["file"])
        return Planned(
            run_no=self.ask.run_no, rows=judged.rows, unusable=judged.unusable, duplicates=judged.duplicates,
            collisions=judged.collisions, todo=todo, pending=pending,
            settled=max(0, judged.rows - sum(todo.values()) - pending), existing=how_found, chunk_rows=chunk_rows,
            chunks=run_chunks, recognised=about.get("recognised", {}), notes=self.notes,
        )  # fmt: skip

    def _chunk_rows(self, rows: int) -> int:
        return auto_chunk_rows(rows) if self.job.chunk_rows == "auto" else self.job.chunk_rows

    def _manifest(self, old: Plan | None) -> tuple[Path, dict[str, Any]]:
        """The normalised manifest: made anew when the list changed, kept where only the ledger did."""
        known = old.manifest if old else {}
        if self.ask.mode != "plain" and old is not None:
            return self.state.local(known["file"]), known
        brought = bring_manifest(self.job, self.access.source, self.state.spool_dir, known)
        self.notes += brought.notes
        if brought.path is None:
            return self.state.local(known["file"]), known
        if self.ask.dry:
            return brought.path, brought.about
        name = manifest_name(self.ask.run_no)
        self.state.write_file(name, brought.path)
        return self.state.local(name), {**brought.about, "file": name}

    def _forget_old_manifests(self, current: str) -> None:
        self.state.delete(n for n in self.state.list("plan") if n.startswith("plan/manifest-") and n != current)

    def _load(self, manifest: Path, chunks: Sequence[ChunkRef]) -> None:
        self.con.from_parquet(str(manifest)).create_view("m")
        ledger.create_latest(self.con, self.state)
        if self.ask.mode in ("pass", "repair"):
            returned = set(self.ask.returned)
            chunks = [chunk for chunk in chunks if chunk.digest in returned]
        cut.load_held(self.con, self.state, chunks)

    def _decide(self) -> None:
        """Asks plan.reason_to_do once for each combination of facts that occurs, and joins the answers."""
        self.con.execute(
            """
            CREATE TABLE facts AS
            SELECT m.row_id, m.row_no, l.row_id IS NOT NULL AS known, l.status, l.error_class, l.status_code,
                   l.attempt, l.how = ? AS how_same, l.run_no = ? AS this_run,
                   coalesce(h.attempt > coalesce(l.attempt, 0), false) AS held
            FROM m LEFT JOIN latest l ON l.row_id = m.row_id
                   LEFT JOIN (SELECT row_id, max(attempt) AS attempt FROM held GROUP BY 1) h ON h.row_id = m.row_id
            WHERE m.error_class IS NULL AND m.row_id NOT IN (SELECT row_id FROM verdict)
            """,
            [self.job.how_digest(), self.ask.run_no],
        )
        facts = ["known", "status", "error_class", "status_code", "attempt = 0", "how_same", "this_run", "held"]
        combos = self.con.execute(f"SELECT DISTINCT {', '.join(facts)} FROM facts").fetchall()
        self.con.execute(
            "CREATE TABLE answer (known BOOLEAN, status VARCHAR, error_class VARCHAR, status_code BIGINT, "
            "planned_only BOOLEAN, how_same BOOLEAN, this_run BOOLEAN, held BOOLEAN, reason VARCHAR)"
        )
        for known, status, error_class, code, planned_only, how_same, this_run, held in combos:
            latest = None
            if known:
                error = ErrorClass(error_class) if error_class else None
                latest = Latest(Status(status), error, code, 0 if planned_only else 1, how_same, this_run)
            reason = reason_to_do(latest, held=held, mode=self.ask.mode, classes=self.ask.classes)
            self.con.execute(
                "INSERT INTO answer VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [known, status, error_class, code, planned_only, how_same, this_run, held, reason],
            )
        self.con.execute("""
            CREATE TABLE todo AS
            SELECT f.row_id, f.row_no, a.reason, coalesce(f.attempt, 0) + 1 AS attempt
            FROM facts f JOIN answer a ON a.known = f.known AND a.held = f.held
                AND a.status IS NOT DISTINCT FROM f.status AND a.error_class IS NOT DISTINCT FROM f.error_class
                AND a.status_code IS NOT DISTINCT FROM f.status_code
                AND a.planned_only IS NOT DISTINCT FROM (f.attempt = 0)
                AND a.how_same IS NOT DISTINCT FROM f.how_same AND a.this_run IS NOT DISTINCT FROM f.this_run
            WHERE a.reason IS NOT NULL
        """)

    def _count_done(self, chunks: Sequence[ChunkRef]) -> list[ChunkRef]:
        """The listed chunks that stay, each with how many of its rows need nothing more.

        A row needs nothing when the ledger has this attempt of it, or when it left the manifest.
        """
        self.con.execute("""
            CREATE TABLE done AS
            SELECT h.chunk, h.row_id, (l.row_id IS NOT NULL OR m.row_id IS NULL) AS done
            FROM held h LEFT JOIN m ON m.row_id = h.row_id
                        LEFT JOIN latest l ON l.row_id = h.row_id AND l.attempt >= h.attempt
        """)
        counts: dict[str, int] = dict(
            self.con.execute("SELECT chunk, count(*) FILTER (done) FROM done GROUP BY 1").fetchall()
        )
        newest = max((chunk.run_no for chunk in chunks), default=0)
        counted = [with_hints(chunk, counts.get(chunk.digest, 0), "unknown") for chunk in chunks]
        return [chunk for chunk in counted if keep(chunk, newest)]


def make_plan(job: Job, state: State, access: Accesses, ask: Ask) -> Planned:
    planner = Planner(job, state, access, ask)
    try:
        return planner.run()
    finally:
        planner.con.close()


def forget_plan(state: State) -> None:
    """`--replan`: puts the present plan aside. The ledger stays: it is what happened."""
    plan = read_plan(state)
    if plan is not None:
        state.write(f"plan/replaced/{plan.last_run:06d}.json", plan.encode())
        state.delete([PLAN_FILE])
