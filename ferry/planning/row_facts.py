"""What planning knows of each row, as a table; the decisions are rules.py's and revalidation.py's, asked once for each
combination of facts that occurs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ferry.core import Checked, ErrorClass, Revalidate, Status, date_over_at, how_to_revalidate
from ferry.job import Job
from ferry.planning.rules import Latest, Mode, reason_to_do
from ferry.state import MANIFEST_DIGEST

if TYPE_CHECKING:
    import duckdb


OF_RESULT = ("known", "status", "error_class", "status_code", "by_plan", "how_same", "this_run", "superseded", "held")
OF_OBJECT = ("standing", "said", "proof", "validators", "web", "checked_by", "old", "due")

A_DAY_S = 86_400  # no date spans more


def gather(con: duckdb.DuckDBPyConnection, job: Job, run_no: int) -> None:
    """Fills `facts`: for each usable row what the ledger has of it, and what the list says of its object since.

    ``standing``: an object of ours stands under its key, as the ledger describes it; also where a later look failed.

    Clocks are set back, and workers have clocks of their own. A last try that lies ahead of now says nothing: the row
    is ``due`` now, and not when that time has come. Bytes that were read then are believed, but not for longer than
    any: ``old`` is what was read further from now than that, on either side.

    A date is believed where it was over before the object was last known: before its bytes were read, or before its
    source said by a strong ETag that they are the same still. An origin's date far ahead of now counts for little.
    """
    now = datetime.now(UTC)
    con.create_function("date_over_at", date_over_at, ["VARCHAR"], "DOUBLE")
    con.execute("CREATE OR REPLACE TABLE rules (error_class VARCHAR, after_s DOUBLE, runs BIGINT)")
    rules = ((error.value, job.delta.rule(error)) for error in ErrorClass)
    con.executemany("INSERT INTO rules VALUES (?, ?, ?)", [[name, rule.after, rule.runs] for name, rule in rules])
    said = MANIFEST_DIGEST.format(m="m")
    bytes_read_at = "coalesce(l.bytes_read_at, l.started_at, l.recorded_at)"
    web = "starts_with(lower(m.source), 'http')"
    # one that changed by itself tells nothing
    strong = "(NOT starts_with(l.source_etag, 'W/') AND l.checked_by IS DISTINCT FROM 'size')"
    con.execute(
        f"""
        CREATE TABLE facts AS
        SELECT m.row_id, m.row_no, l.row_id IS NOT NULL AS known, l.status, l.error_class, l.status_code,
               l.attempt, l.chunk = '' AND l.status <> 'pending' AS by_plan, l.settings_digest = $settings AS how_same,
               l.run_no = $run_no AS this_run, s.row_id IS NOT NULL AS superseded,
               coalesce(h.attempt > coalesce(l.attempt, 0), false) AS held,
               CASE WHEN l.status = 'failed' THEN coalesce(l.consecutive_failures, 1) - (l.run_no = $run_no)::INT
                    ELSE 0 END AS consecutive_failures,
               coalesce(s.row_id IS NULL AND (l.status IN ('copied', 'unchanged')
                        OR (l.status = 'failed' AND l.dest_etag IS NOT NULL)), false) AS standing,
               CASE WHEN {said} IS NULL THEN 'nothing'
                    WHEN l.manifest_digest = {said} THEN 'same'
                    WHEN l.manifest_digest IS NOT NULL OR m.md5 <> l.md5 OR m.sha256 <> l.sha256 OR m.size <> l.size
                    THEN 'other'
                    WHEN m.md5 = l.md5 OR m.sha256 = l.sha256 THEN 'same'
                    WHEN trim(m.etag, '"') = trim(l.source_etag, '"') THEN 'same'
                    ELSE 'nothing' END AS said,
               CASE WHEN coalesce(m.md5, m.sha256, m.etag) IS NOT NULL THEN true
                    WHEN m.last_modified IS NULL OR l.row_id IS NULL THEN false
                    ELSE date_over_at(m.last_modified) <= epoch(
                        CASE WHEN {strong} AND (l.checked_by = 'condition' OR (l.checked_by = 'head' AND NOT {web}))
                             THEN l.started_at ELSE {bytes_read_at} END) END AS proof,
               CASE WHEN {strong} THEN 'strong'
                    WHEN l.source_last_modified IS NULL THEN CASE WHEN l.source_etag IS NULL THEN 'none' ELSE 'weak' END
                    WHEN date_over_at(l.source_last_modified) <= epoch({bytes_read_at}) THEN 'strong'
                    WHEN date_over_at(l.source_last_modified) <= epoch($now) + {A_DAY_S} THEN 'racy'
                    ELSE 'weak' END AS validators,
               {web} AS web, l.checked_by,
               {bytes_read_at} NOT BETWEEN $now - to_seconds($believed)
                                                      AND $now + to_seconds($believed) AS old,
               coalesce(coalesce(l.consecutive_failures, 1) < r.runs
                        AND l.recorded_at NOT BETWEEN $now - to_seconds(r.after_s) AND $now, false) AS due
        FROM m LEFT JOIN latest l ON l.row_id = m.row_id LEFT JOIN superseded s ON s.row_id = m.row_id
               LEFT JOIN (SELECT row_id, max(attempt) AS attempt FROM held WHERE NOT stale GROUP BY 1) h
               ON h.row_id = m.row_id LEFT JOIN rules r ON r.error_class = l.error_class
        WHERE m.error_class IS NULL AND m.row_id NOT IN (SELECT row_id FROM verdict)
        """,
        {"settings": job.settings_digest(), "run_no": run_no, "now": now, "believed": job.delta.revalidate_after},
    )


def decide(con: duckdb.DuckDBPyConnection, mode: Mode, classes: Sequence[str], *, delta: bool) -> None:
    """Fills `todo`, the rows for new chunks with their reason, and `revalidations`: how the objects that
    stand at the destination are checked again."""
    names = (*OF_RESULT, *OF_OBJECT)
    columns = ", ".join(names)
    con.execute(
        f"CREATE TABLE cases AS SELECT row_number() OVER () AS number, * FROM (SELECT DISTINCT {columns} FROM facts)"
    )
    con.execute("CREATE TABLE answers (number BIGINT, reason VARCHAR, revalidate VARCHAR)")
    for number, *values in con.execute(f"SELECT number, {columns} FROM cases").fetchall():
        case = dict(zip(names, values, strict=True))
        revalidate = None
        if case["standing"]:
            revalidate = how_to_revalidate(
                claim=case["said"], proof=case["proof"], validators=case["validators"], web=case["web"],
                checked=Checked(case["checked_by"]) if case["checked_by"] else None, old=case["old"],
            )  # fmt: skip
            if revalidate is Revalidate.SKIP and case["status"] == Status.FAILED:
                revalidate = Revalidate.GET  # whatever the list says: the last look failed, and this row is tried again
        latest = None
        if case["known"]:
            error = ErrorClass(case["error_class"]) if case["error_class"] else None
            latest = Latest(
                Status(case["status"]), error, case["status_code"], case["by_plan"], case["how_same"],
                case["this_run"], case["superseded"], delta, revalidate, case["said"] == "other", case["due"],
            )  # fmt: skip
        reason = reason_to_do(latest, held=case["held"], mode=mode, classes=classes)
        con.execute("INSERT INTO answers VALUES (?, ?, ?)", [number, reason, revalidate])
    same = " AND ".join(f"c.{name} IS NOT DISTINCT FROM f.{name}" for name in names)
    con.execute(
        f"CREATE TABLE answered AS SELECT f.*, a.* FROM facts f JOIN cases c ON {same} JOIN answers a USING (number)"
    )
    con.execute(
        "CREATE TABLE todo AS SELECT row_id, row_no, reason, coalesce(attempt, 0) + 1 AS attempt, consecutive_failures "
        "FROM answered WHERE reason IS NOT NULL"
    )
    con.execute("CREATE TABLE revalidations AS SELECT row_id, revalidate FROM answered WHERE revalidate IS NOT NULL")
    for name in ("rules", "cases", "answers", "answered"):  # nothing reads them later, and cutting needs their memory
        con.execute(f"DROP TABLE {name}")
