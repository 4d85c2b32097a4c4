"""Facts of each row as a table, and the decisions from them, made once for each combination of facts.

The decisions themselves are pure functions: :func:`ferry.planning.rules.reason_to_do` and
:func:`ferry.core.how_to_revalidate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ferry.core import Checked, ErrorClass, Reason, Revalidate, Status, date_over_at, how_to_revalidate
from ferry.job import Job
from ferry.planning.rules import Latest, Mode, reason_to_do
from ferry.state import MANIFEST_DIGEST

if TYPE_CHECKING:
    import duckdb


LEDGER_FACTS = (
    "known", "status", "error_class", "status_code", "by_plan", "same_settings", "this_run", "superseded", "held",
)  # fmt: skip
COPY_FACTS = ("has_copy", "said", "proof", "validators", "web", "checked_by", "old", "due")

A_DAY_S = 86_400  # the longest time that a date names


def load_rules(con: duckdb.DuckDBPyConnection, job: Job) -> None:
    """Fills `retry_rules` with the rules of `delta.retry`, and makes what :func:`gather` needs; to be called once."""
    con.create_function("date_over_at", date_over_at, ["VARCHAR"], "DOUBLE")
    con.execute("CREATE TABLE retry_rules (error_class VARCHAR, after_s DOUBLE, runs BIGINT)")
    rules = [job.delta.rule(error) for error in ErrorClass]
    con.execute(  # in one statement: thirty of them take ten times as long
        "INSERT INTO retry_rules SELECT unnest($names::VARCHAR[]), unnest($after::DOUBLE[]), unnest($runs::BIGINT[])",
        {
            "names": [error.value for error in ErrorClass],
            "after": [r.after for r in rules],
            "runs": [r.runs for r in rules],
        },
    )


def has_digests(con: duckdb.DuckDBPyConnection) -> bool:
    """Returns whether a row of `manifest` has a digest; if none has, those of the ledger need not be read."""
    ((found,),) = con.execute("SELECT count(md5) + count(sha256) > 0 FROM manifest").fetchall()
    return bool(found)


def gather(con: duckdb.DuckDBPyConnection, job: Job, run_no: int, *, with_digests: bool) -> None:
    """Fills `facts` for each usable row of `manifest_rows`, from `latest`, `held` and the row itself.

    ``with_digests`` is what :func:`has_digests` returned.

    | column | content |
    |---|---|
    | `known`, `status`, ... `attempt` | the latest outcome |
    | `superseded` | another row has written the key since |
    | `held` | a listed chunk has the row as the manifest describes it, for an attempt that the ledger does not have |
    | `position` | that chunk's; of several chunks the one with the latest attempt |
    | `has_copy` | Ferry's object exists under the key by the ledger, even if a later check of the source failed |
    | `said` | what the manifest says of the object, compared with the copy: `same`, `other` or `nothing` |
    | `proof` | the manifest has a digest, an ETag, or a date that was over when the copy was last known to be current |
    | `validators` | how well the source's ETag and date show a change: `strong`, `racy`, `weak` or `none` |
    | `old` | the copy's bytes were read more than `delta.revalidate_after` before or after now |
    | `due` | `delta.retry` allows another try of the failed row now |

    The manifest's ETag and date are those of a row's first address: they prove nothing of a copy from another one.

    Clocks are set back, and machines' clocks differ, so a recorded time may be in the future. A failed row whose last
    try is in the future is due at once. A copy is known to be current when its bytes were read, or when its source
    confirmed a strong ETag. Without a strong ETag, a source's date more than a day in the future is a weak validator.
    """
    now = datetime.now(UTC)
    said = MANIFEST_DIGEST.format(m="m")
    bytes_read_at = "coalesce(l.bytes_read_at, l.started_at, l.recorded_at)"
    web = "CASE WHEN l.address IS NULL THEN m.web ELSE starts_with(lower(l.address), 'http') END"
    # an ETag that changed without a change of the bytes (`size`) is not a validator
    strong = "(NOT starts_with(l.source_etag, 'W/') AND l.checked_by IS DISTINCT FROM 'size')"
    digests = "" if with_digests else "REPLACE (NULL::VARCHAR AS md5, NULL::VARCHAR AS sha256)"
    con.execute(
        f"""
        CREATE OR REPLACE TABLE facts AS
        SELECT m.row_id, m.row_no, l.row_id IS NOT NULL AS known, l.status, l.error_class, l.status_code,
               l.attempt, l.of_no_chunk AND l.status <> 'pending' AS by_plan, l.same_settings,
               l.run_no = $run_no AS this_run, s.row_id IS NOT NULL AS superseded,
               coalesce(h.attempt > coalesce(l.attempt, 0), false) AS held, h.position,
               CASE WHEN l.status = 'failed' THEN coalesce(l.consecutive_failures, 1) - (l.run_no = $run_no)::INT
                    ELSE 0 END AS consecutive_failures,
               coalesce(s.row_id IS NULL AND (l.status IN ('copied', 'unchanged')
                        OR (l.status = 'failed' AND l.has_etag)), false) AS has_copy,
               CASE WHEN {said} IS NULL THEN 'nothing'
                    WHEN l.manifest_digest = {said} THEN 'same'
                    WHEN l.manifest_digest IS NOT NULL OR m.md5 <> l.md5 OR m.sha256 <> l.sha256 OR m.size <> l.size
                    THEN 'other'
                    WHEN m.md5 = l.md5 OR m.sha256 = l.sha256 THEN 'same'
                    WHEN l.address IS NULL AND trim(m.etag, '"') = trim(l.source_etag, '"') THEN 'same'
                    ELSE 'nothing' END AS said,
               CASE WHEN coalesce(m.md5, m.sha256) IS NOT NULL THEN true
                    WHEN l.address IS NOT NULL THEN false  -- the manifest's ETag and date are of the first address
                    WHEN m.etag IS NOT NULL THEN true
                    WHEN m.last_modified IS NULL OR l.row_id IS NULL THEN false
                    ELSE date_over_at(m.last_modified) <= epoch(
                        CASE WHEN {strong} AND (l.checked_by = 'condition' OR (l.checked_by = 'head' AND NOT ({web})))
                             THEN l.started_at ELSE {bytes_read_at} END) END AS proof,
               CASE WHEN {strong} THEN 'strong'
                    WHEN l.source_last_modified IS NULL THEN CASE WHEN l.source_etag IS NULL THEN 'none' ELSE 'weak' END
                    WHEN date_over_at(l.source_last_modified) <= epoch({bytes_read_at}) THEN 'strong'
                    WHEN date_over_at(l.source_last_modified) <= epoch($now) + {A_DAY_S} THEN 'racy'
                    ELSE 'weak' END AS validators,
               {web} AS web, l.checked_by,
               {bytes_read_at} NOT BETWEEN $now - to_seconds($valid_s) AND $now + to_seconds($valid_s) AS old,
               coalesce(coalesce(l.consecutive_failures, 1) < r.runs
                        AND l.recorded_at NOT BETWEEN $now - to_seconds(r.after_s) AND $now, false) AS due
        FROM manifest_rows m LEFT JOIN (
            -- a join that carries long texts takes half as long again
            SELECT * {digests}, chunk = '' AS of_no_chunk, settings_digest = $settings AS same_settings,
                   dest_etag IS NOT NULL AS has_etag FROM latest
        ) l ON l.row_id = m.row_id LEFT JOIN superseded s ON s.row_id = m.row_id
               LEFT JOIN (SELECT row_id, described, max(attempt) AS attempt,
                                 max_by(position, attempt << 32 | position) AS position FROM held GROUP BY 1, 2) h
               ON h.row_id = m.row_id AND h.described = m.described
               LEFT JOIN retry_rules r ON r.error_class = l.error_class
        WHERE m.error_class IS NULL AND m.row_no NOT IN (SELECT row_no FROM problems)
        """,
        {"settings": job.settings_digest(), "run_no": run_no, "now": now, "valid_s": job.delta.revalidate_after},
    )


def decide(con: duckdb.DuckDBPyConnection, mode: Mode, classes: Sequence[str], *, delta: bool) -> int:
    """Adds to `todo` the rows of `facts` for new chunks with their reasons; returns how many failed for good.

    It fills `revalidations` with how the copies of these rows, and of pending rows of listed chunks, are rechecked.
    ``classes`` are the error classes that the mode `retry` takes; empty takes all. ``drawn`` is a random order.
    """
    names = (*LEDGER_FACTS, *COPY_FACTS)
    columns = ", ".join(names)
    con.execute(
        f"CREATE TABLE cases AS SELECT row_number() OVER () AS number, * FROM (SELECT DISTINCT {columns} FROM facts)"
    )
    con.execute("CREATE TABLE decisions (number BIGINT, reason VARCHAR, revalidate VARCHAR)")
    for number, *values in con.execute(f"SELECT number, {columns} FROM cases").fetchall():
        case = dict(zip(names, values, strict=True))
        revalidate = None
        if case["has_copy"]:
            revalidate = how_to_revalidate(
                claim=case["said"], proof=case["proof"], validators=case["validators"], web=case["web"],
                checked=Checked(case["checked_by"]) if case["checked_by"] else None, old=case["old"],
            )  # fmt: skip
            if revalidate is Revalidate.SKIP and case["status"] == Status.FAILED:
                revalidate = Revalidate.GET  # a retry after a failed check reads the bytes, whatever the manifest says
        latest = None
        if case["known"]:
            error = ErrorClass(case["error_class"]) if case["error_class"] else None
            latest = Latest(
                Status(case["status"]), error, case["status_code"], case["by_plan"], case["same_settings"],
                case["this_run"], case["superseded"], delta, revalidate, case["said"] == "other", case["due"],
            )  # fmt: skip
        reason = reason_to_do(latest, held=case["held"], mode=mode, classes=classes)
        if reason is not None or case["held"] or case["status"] == Status.FAILED:  # the others need no decision
            con.execute("INSERT INTO decisions VALUES (?, ?, ?)", [number, reason, revalidate])
    same = " AND ".join(f"d.{name} IS NOT DISTINCT FROM f.{name}" for name in names)
    con.execute(
        "CREATE TABLE decided AS SELECT f.row_id, f.row_no, f.status, f.held, f.attempt, f.consecutive_failures, "
        f"d.reason, d.revalidate FROM facts f JOIN (FROM cases JOIN decisions USING (number)) d ON {same}"
    )
    reasons = "', '".join(Reason)
    con.execute(
        f"""
        CREATE TABLE IF NOT EXISTS todo (
            row_no BIGINT, reason ENUM ('{reasons}'), attempt INTEGER, consecutive_failures INTEGER, drawn UBIGINT
        );
        INSERT INTO todo SELECT row_no, reason, coalesce(attempt, 0) + 1, consecutive_failures,
                                ('0x' || row_id[:16])::UBIGINT FROM decided WHERE reason IS NOT NULL;
        CREATE OR REPLACE TABLE revalidations AS SELECT row_id, row_no, revalidate FROM decided
        WHERE revalidate IS NOT NULL AND (reason IS NOT NULL OR held)
        """
    )
    (failed,) = con.execute(
        "SELECT count(*) FROM decided WHERE status = 'failed' AND NOT held AND reason IS NULL"
    ).fetchall()[0]
    for name in ("cases", "decisions", "decided", "facts"):  # large; later steps need their memory
        con.execute(f"DROP TABLE {name}")
    return int(failed)
