"""Planning: manifest x ledger -> chunk files. Runs in a child process, whose memory ends with it.

DuckDB joins out of core; the decisions are plan.py's. Whatever is written before plan.json, the commit
point, is either ignored or found again by a later plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa

from tasks.engine import existing as listing
from tasks.engine import ledger, tables
from tasks.engine.errors import UserError
from tasks.engine.job import Job, OnExisting
from tasks.engine.intake import bring_manifest
from tasks.engine.objects import ErrorClass, Outcome, Reason, Status
from tasks.engine.plan import (
    HEAD_AT_MOST,
    HINTS,
    MANIFEST_FILE,
    PLAN_FILE,
    ChunkRef,
    Existing,
    Latest,
    Plan,
    Planned,
    auto_chunk_rows,
    check_where,
    keep,
    reason_to_do,
    with_hints,
)
from tasks.engine.state import State
from tasks.engine.store import Access, open_store
from tasks.engine.urls import redact

Mode = Literal["plain", "retry", "pass"]
COLLISIONS_AT_MOST = 0.10
_CHUNK_COLUMNS = (
    "m.row_id, m.source, m.key, m.late_key, m.size, m.md5, m.sha256, m.content_type, m.etag, m.last_modified, m.id"
)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a run asks of planning."""

    run_no: int
    mode: Mode = "plain"
    classes: Sequence[str] = ()
    limit: int | None = None
    dry: bool = False  # `ferry plan`: count, write nothing
    returned: Sequence[str] = ()  # mode pass: the chunks that this run submitted and that returned


@dataclass(frozen=True, slots=True)
class Accesses:
    """How to reach each end."""

    source: Access
    destination: Access


class Planner:
    def __init__(self, job: Job, state: State, access: Accesses, ask: Ask) -> None:
        self.job, self.state, self.access, self.ask = job, state, access, ask
        self.con = ledger.connect(state.spool_dir)
        self.notes: list[str] = []

    def run(self) -> Planned:
        """Raises UserError for a job, list or state that cannot be used; nothing has moved then."""
        old = read_plan(self.state)
        if old is not None:
            check_where(old, self.job)
        manifest, about = self._manifest(old)
        self._load(manifest, old)
        rows, unusable, duplicates, collisions = self._judge()
        chunk_rows = old.chunk_rows if old else self._chunk_rows(rows)
        self._decide()
        listed = self._count_done(old.chunks if old else [])
        if not self.ask.dry:
            self._write_plan_outcomes()
        pending = sum(chunk.rows - chunk.done for chunk in listed)
        new = self._cut(chunk_rows, pending if self.ask.mode == "plain" else 0)
        run_chunks = [*listed, *new] if self.ask.mode == "plain" else new
        run_chunks, how_found = self._find_existing(run_chunks)
        todo: dict[str, int] = dict(
            self.con.execute("SELECT reason, count(*) FROM cut GROUP BY 1 ORDER BY 1").fetchall()
        )
        planned = Planned(
            run_no=self.ask.run_no, rows=rows, unusable=unusable, duplicates=duplicates, collisions=collisions,
            todo=todo, pending=pending if self.ask.mode == "plain" else 0,
            settled=max(0, rows - sum(todo.values()) - pending), existing=how_found, chunk_rows=chunk_rows,
            chunks=run_chunks, recognised=about.get("recognised", {}), notes=self.notes,
        )  # fmt: skip
        if not self.ask.dry:
            last_run = old.last_run if old and self.ask.mode == "retry" else self.ask.run_no
            kept = listed if self.ask.mode == "plain" else (old.chunks if old else [])
            plan = Plan(self.job.where(), chunk_rows, rows, about, last_run, [*kept, *new])
            self.state.write(PLAN_FILE, plan.encode())
        return planned

    def _chunk_rows(self, rows: int) -> int:
        return auto_chunk_rows(rows) if self.job.chunk_rows == "auto" else self.job.chunk_rows

    def _manifest(self, old: Plan | None) -> tuple[Path, dict[str, Any]]:
        """The normalised manifest: made anew when the list changed, kept where only the ledger did."""
        if self.ask.mode != "plain" and old is not None:
            return self.state.local(MANIFEST_FILE), old.manifest
        brought = bring_manifest(self.job, self.access.source, self.state.spool_dir, old.manifest if old else {})
        self.notes += brought.notes
        if brought.path is None:
            return self.state.local(MANIFEST_FILE), brought.about
        if self.ask.dry:
            return brought.path, brought.about
        self.state.write_file(MANIFEST_FILE, brought.path)
        return self.state.local(MANIFEST_FILE), brought.about

    def _load(self, manifest: Path, old: Plan | None) -> None:
        self.con.execute(f"CREATE VIEW m AS SELECT * FROM read_parquet('{_quoted(manifest)}')")
        ledger.create_latest(self.con, self.state)
        chunks = old.chunks if old else []
        if self.ask.mode == "pass":
            chunks = [chunk for chunk in chunks if chunk.digest in set(self.ask.returned)]
        self._load_held(chunks)

    def _load_held(self, chunks: Sequence[ChunkRef]) -> None:
        """For each row of a listed chunk: the chunk, and for which attempt it holds the row."""
        self.con.execute("CREATE OR REPLACE TABLE held (row_id VARCHAR, attempt BIGINT, chunk VARCHAR)")
        for start in range(0, len(chunks), 500):
            paths = [str(self.state.local(chunk.uri)) for chunk in chunks[start : start + 500]]
            try:
                self.con.execute(
                    "INSERT INTO held SELECT row_id, attempt, parse_filename(filename, true) "
                    "FROM read_parquet(?, filename = true)",
                    [paths],
                )
            except duckdb.IOException as exc:
                raise UserError(
                    f"a chunk file of the plan is missing or damaged ({str(exc).splitlines()[0]}). "
                    "Restore it, or plan anew with `ferry run --replan`"
                ) from None

    def _judge(self) -> tuple[int, int, int, int]:
        """Finds duplicates and key collisions among the usable rows (SEMANTICS: keys).

        Rows that the ledger has keep their place: before others of the same source and key, and
        against others of the same key.
        """
        self.con.execute("""
            CREATE TABLE verdict AS
            WITH shared AS (
                SELECT key FROM m WHERE error_class IS NULL GROUP BY key HAVING count(*) > 1
            ), candidates AS (
                SELECT m.row_id, m.row_no, m.source, m.key, m.late_key,
                       coalesce(l.attempt > 0 AND l.status IN ('copied', 'unchanged', 'pending'), false) AS has
                FROM m JOIN shared USING (key) LEFT JOIN latest l ON l.row_id = m.row_id
                WHERE m.error_class IS NULL
            ), ranked AS (
                SELECT *,
                       row_number() OVER (PARTITION BY source, key ORDER BY has DESC, row_no) AS nth,
                       first_value(row_no) OVER (PARTITION BY source, key ORDER BY has DESC, row_no) AS first_no,
                       min(source) OVER (PARTITION BY key) <> max(source) OVER (PARTITION BY key) AS contested,
                       min(row_no) OVER (PARTITION BY key) AS low_no,
                       max(row_no) OVER (PARTITION BY key) AS high_no
                FROM candidates
            )
            SELECT row_id,
                   CASE WHEN nth > 1 THEN 'duplicate'
                        WHEN contested AND NOT late_key AND NOT has THEN 'key_collision' END AS error_class,
                   CASE WHEN nth > 1 THEN 'the same source and key as row ' || first_no
                        ELSE 'row ' || CASE WHEN row_no = low_no THEN high_no ELSE low_no END
                             || ' wants the same key from another source' END AS message
            FROM ranked WHERE nth > 1 OR (contested AND NOT late_key AND NOT has)
        """)
        rows, unusable = self._one("SELECT count(*), count(error_class) FROM m")
        duplicates, collisions = self._one(
            "SELECT count(*) FILTER (error_class = 'duplicate'), count(*) FILTER (error_class = 'key_collision') FROM verdict"
        )
        if collisions > COLLISIONS_AT_MOST * max(1, rows - duplicates):
            example = self._one(
                "SELECT key FROM m JOIN verdict v USING (row_id) WHERE v.error_class = 'key_collision' LIMIT 1"
            )
            raise UserError(
                f"{collisions:,} of {rows:,} rows want a key that another row wants too (for one: `{example[0]}`). "
                "Set `key` to a template that tells them apart, such as `{id}/{source.name}`"
            )
        if unusable == rows:
            first = self._one("SELECT message FROM m LIMIT 1")
            raise UserError(f"no row of the manifest can be used; the first one: {first[0]}")
        twins = self._one("""
            SELECT count(*) FROM (SELECT 1 FROM m WHERE error_class IS NULL AND NOT late_key
            GROUP BY lower(nfc_normalize(key)) HAVING count(DISTINCT key) > 1)
        """)[0]
        if twins:
            self.notes.append(
                f"{twins:,} groups of keys differ only in case or Unicode form; a store that does not tell them apart would mix them up"
            )
        return rows, unusable, duplicates, collisions

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
        if self.ask.mode != "plain":
            return []
        self.con.execute("""
            CREATE TABLE done AS
            SELECT h.chunk, h.row_id, (l.row_id IS NOT NULL OR m.row_id IS NULL) AS done
            FROM held h LEFT JOIN m ON m.row_id = h.row_id
                        LEFT JOIN latest l ON l.row_id = h.row_id AND l.attempt >= h.attempt
        """)
        counts: dict[str, int] = dict(
            self.con.execute("SELECT chunk, count(*) FILTER (done) FROM done GROUP BY 1").fetchall()
        )
        last = max((chunk.run_no for chunk in chunks), default=0)
        counted = [with_hints(chunk, counts.get(chunk.digest, 0), "unknown") for chunk in chunks]
        return [chunk for chunk in counted if keep(chunk, last)]

    def _write_plan_outcomes(self) -> None:
        """Unusable, doubled and colliding rows become outcomes, where the ledger does not say so yet."""
        if self.ask.mode != "plain":
            return
        reader = self.con.execute("""
            SELECT m.row_id, m.source, m.key, m.id, m.size, v.error_class, v.message
            FROM m JOIN (
                SELECT row_id, error_class, message FROM m WHERE error_class IS NOT NULL
                UNION ALL SELECT row_id, error_class, message FROM verdict
            ) v ON v.row_id = m.row_id LEFT JOIN latest l ON l.row_id = m.row_id
            WHERE l.row_id IS NULL
               OR (l.status NOT IN ('copied', 'unchanged') AND l.error_class IS DISTINCT FROM v.error_class)
            ORDER BY m.row_no
        """)
        part = 0
        while lines := reader.fetchmany(50_000):
            outcomes = [self._plan_outcome(*line) for line in lines]
            ledger.append(self.state, outcomes, self.ask.run_no, "plan", part)
            part += 1

    def _plan_outcome(
        self, row_id: str, source: str | None, key: str | None, id_: str | None, size: int | None, cls: str, text: str
    ) -> Outcome:
        now = datetime.now(UTC)
        error = ErrorClass(cls)
        return Outcome(
            row_id=row_id, source=redact(source or ""), key=key or "", id=id_,
            status=Status.SKIPPED if error is ErrorClass.DUPLICATE else Status.FAILED, error_class=error,
            status_code=None, message=text, retryable=False, reason=Reason.NEW, attempt=0, requests=0, size=size,
            md5=None, sha256=None, content_type=None, source_etag=None, source_last_modified=None, dest_etag=None,
            started_at=now, recorded_at=now, run_no=self.ask.run_no, chunk="", how=self.job.how_digest(),
        )  # fmt: skip

    def _cut(self, chunk_rows: int, pending: int) -> list[ChunkRef]:
        """Writes the rows to do as chunk files, in the manifest's order: new rows first, then the others."""
        self.con.execute("CREATE TABLE cut AS SELECT * FROM todo")
        if self.ask.limit is not None:
            room = max(0, self.ask.limit - pending)
            self.con.execute(
                "CREATE OR REPLACE TABLE cut AS SELECT * FROM todo ORDER BY reason <> 'new', row_no LIMIT ?", [room]
            )
        if self.ask.dry:
            return []
        chunks: list[ChunkRef] = []
        for kind, test in (("base", "= 'new'"), ("again", "<> 'new'")):
            reader = self.con.execute(f"""
                SELECT {_CHUNK_COLUMNS}, t.reason, t.attempt FROM m JOIN cut t ON t.row_id = m.row_id
                WHERE t.reason {test} ORDER BY m.row_no
            """).to_arrow_reader(chunk_rows)
            for table in _regrouped(reader, chunk_rows):
                chunks.append(self._write_chunk(table, kind))  # type: ignore[arg-type]
        return chunks

    def _write_chunk(self, table: pa.Table, kind: Literal["base", "again"]) -> ChunkRef:
        data = tables.to_bytes(table.cast(tables.CHUNK))
        digest = tables.digest(data)
        name = f"chunks/{digest}.parquet"
        self.state.write(name, data)
        size = sum(value or 0 for value in table.column("size").to_pylist())
        return ChunkRef(name, digest, table.num_rows, size, kind, self.ask.run_no)

    def _find_existing(self, chunks: list[ChunkRef]) -> tuple[list[ChunkRef], str]:
        """Decides how existing objects are found, lists the destination where that is cheaper, writes hints."""
        if not self.ask.dry and self.ask.mode != "pass":
            self.state.delete(self.state.list(HINTS))
        open_chunks = [chunk for chunk in chunks if chunk.done < chunk.rows]
        if self.ask.dry:
            count = self._one("SELECT count(*) FROM cut")[0]
            if self.job.on_existing is OnExisting.OVERWRITE:
                return chunks, "not looked for (on_existing: overwrite)"
            return chunks, "by one listing of the destination" if count > HEAD_AT_MOST else "by a HEAD for each row"
        self._load_held(open_chunks)
        self.con.execute("""
            CREATE OR REPLACE TABLE open_rows AS
            SELECT h.chunk, h.row_id, m.key, m.late_key, coalesce(l.attempt >= h.attempt OR m.row_id IS NULL, false) AS done
            FROM held h LEFT JOIN m ON m.row_id = h.row_id LEFT JOIN latest l ON l.row_id = h.row_id
        """)
        how: Existing
        count = self._one("SELECT count(*) FROM open_rows WHERE NOT done")[0]
        self.con.execute("CREATE OR REPLACE TABLE there (key VARCHAR, size BIGINT, etag VARCHAR)")
        if self.job.on_existing is OnExisting.OVERWRITE:
            how, words = "unknown", "not looked for (on_existing: overwrite)"
        elif count == 0:
            how, words = "unknown", "not looked for: nothing is to do"
        elif count <= HEAD_AT_MOST or self.ask.mode == "pass":
            how, words = "head", "by a HEAD for each row"
        else:
            how, words = (
                "listed",
                f"by one listing of the destination: {self._list_destination():,} of these keys exist",
            )
        self._write_hints(open_chunks)
        still_open = {chunk.digest for chunk in open_chunks}
        return [with_hints(chunk, chunk.done, how) if chunk.digest in still_open else chunk for chunk in chunks], words

    def _list_destination(self) -> int:
        destination = self.job.destination.uri
        store = open_store(destination, self.access.destination, self.state.spool_dir)
        keys = [
            key
            for (key,) in self.con.execute(
                "SELECT DISTINCT key FROM open_rows WHERE NOT done AND NOT late_key ORDER BY key"
            ).fetchall()
        ]
        self.con.execute("CREATE TABLE wanted AS SELECT DISTINCT key FROM open_rows WHERE NOT done AND NOT late_key")
        if not keys:
            return 0
        for page in listing.existing(store, keys):
            found = pa.table(
                {
                    "key": [f.key for f in page],
                    "size": pa.array([f.size for f in page], pa.int64()),
                    "etag": pa.array([f.etag for f in page], pa.string()),
                }
            )
            self.con.register("page", found)
            self.con.execute("INSERT INTO there SELECT page.* FROM page SEMI JOIN wanted USING (key)")
            self.con.unregister("page")
        return int(self._one("SELECT count(DISTINCT key) FROM there")[0])

    def _write_hints(self, chunks: Sequence[ChunkRef]) -> None:
        reader = self.con.execute("""
            SELECT o.chunk, o.row_id, o.done, any_value(t.size), any_value(t.etag)
            FROM open_rows o LEFT JOIN there t ON t.key = o.key AND NOT o.late_key
            WHERE o.done OR t.key IS NOT NULL GROUP BY ALL ORDER BY o.chunk
        """)
        by_digest = {chunk.digest: chunk for chunk in chunks}
        current: str | None = None
        lines: list[tuple[Any, ...]] = []
        while batch := reader.fetchmany(50_000):
            for line in batch:
                if line[0] != current and lines:
                    self._write_hint(by_digest[lines[0][0]], lines)
                    lines = []
                current = line[0]
                lines.append(line)
        if lines:
            self._write_hint(by_digest[lines[0][0]], lines)

    def _write_hint(self, chunk: ChunkRef, lines: list[tuple[Any, ...]]) -> None:
        columns = list(zip(*lines, strict=True))[1:]
        arrays = [pa.array(column, type=f.type) for column, f in zip(columns, tables.HINT, strict=True)]
        self.state.write(chunk.hints, tables.to_bytes(pa.Table.from_arrays(arrays, schema=tables.HINT)))

    def _one(self, sql: str) -> Any:
        return self.con.execute(sql).fetchone()


def _regrouped(reader: Any, rows: int) -> Any:
    """Tables of exactly ``rows`` rows (the last may be shorter), whatever batches the reader gives."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in reader:
        while batch.num_rows:
            take = min(rows - count, batch.num_rows)
            held.append(batch.slice(0, take))
            batch = batch.slice(take)
            count += take
            if count == rows:
                yield pa.Table.from_batches(held)
                held, count = [], 0
    if count:
        yield pa.Table.from_batches(held)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def read_plan(state: State) -> Plan | None:
    try:
        return Plan.decode(state.read(PLAN_FILE))
    except FileNotFoundError:
        return None


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
