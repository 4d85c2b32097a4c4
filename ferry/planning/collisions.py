"""What planning finds wrong with rows: duplicates, key collisions, unusable rows. They become outcomes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ferry.core import ErrorClass, Outcome, Reason, Status, UserError, redact, short
from ferry.state import State, append_outcomes
from ferry.storage import FoldedName

if TYPE_CHECKING:
    import duckdb


COLLISIONS_AT_MOST = 0.10
MAY_HAVE_WRITTEN = "('upload_unconfirmed', 'store_error', 'timeout', 'internal')"  # a first try that failed so


@dataclass(frozen=True, slots=True)
class ProblemCounts:
    """How many rows the manifest has, and how many of them cannot be moved, by kind."""

    rows: int
    unusable: int
    duplicates: int
    collisions: int

    @property
    def usable(self) -> int:
        """Rows that can be moved, each once: how long the list is."""
        return self.rows - self.unusable - self.duplicates


def find_superseded(con: duckdb.DuckDBPyConnection) -> None:
    """Fills `superseded`: rows that are copied as the ledger says, and whose key another row has written since.

    Their object is gone: a row that left the list does not keep its key from one that came later. Nor where that one's
    object was deleted or found wrong since, or its last try failed, or has no outcome, and may have left something
    under the key.
    """
    con.execute(f"""
        CREATE TABLE superseded AS
        WITH tried AS (SELECT row_id, key, sha256, md5, run_no, recorded_at, status IN ('copied', 'unchanged')
                              OR (status = 'failed' AND dest_etag IS NOT NULL) AS there
                       FROM latest WHERE status IN ('copied', 'unchanged', 'pending', 'removed') OR (status = 'failed'
                            AND chunk <> '' AND (attempt > 1 OR error_class IN {MAY_HAVE_WRITTEN}))
                       UNION ALL SELECT row_id, key, NULL, NULL, run_no, 'infinity', false FROM begun),
        shared AS (SELECT key FROM tried GROUP BY key HAVING count(*) > 1 AND bool_or(there)),
        ordered AS (
            SELECT *, first_value(row_id) OVER last AS last_id, first_value(there) OVER last AS last_there,
                   first_value(sha256) OVER last AS last_sha256, first_value(md5) OVER last AS last_md5
            FROM tried SEMI JOIN shared USING (key)
            WINDOW last AS (PARTITION BY key ORDER BY run_no DESC, recorded_at DESC, row_id)
        )
        SELECT row_id FROM ordered
        WHERE there AND row_id <> last_id
              AND NOT (last_there AND coalesce(sha256 = last_sha256 OR md5 = last_md5, false))
    """)


def find_collisions(
    con: duckdb.DuckDBPyConnection,
    notes: list[str],
    *,
    for_directory: bool,
    listed: bool = False,
    twins: Callable[[], Collection[FoldedName]] = tuple,
) -> ProblemCounts:
    """Finds duplicates and key collisions among the usable rows (SEMANTICS: keys).

    What a listing (``listed``) has twice are two objects, whose names the client cannot tell apart: `a.jpg` and
    `/a.jpg` in a bucket, a file's name that is not UTF-8 and one that looks like it. Only one of them can be asked for.

    Rows that the ledger has keep their place: before others of the same source and key, and
    against others of the same key. In a directory a file cannot have the name of a folder, and ``twins`` says which
    names are one there though they differ; it is asked only where the list has such.
    """
    again = ("key_collision", "a second object whose name the client cannot tell from this one; like row ")
    twice = again if listed else ("duplicate", "the same source and key as row ")
    con.execute(f"""
        CREATE TABLE verdict AS
        WITH shared AS (
            SELECT key FROM m WHERE error_class IS NULL GROUP BY key HAVING count(*) > 1
        ), candidates AS (
            SELECT m.row_id, m.row_no, m.source, m.key, m.deferred_key,
                   coalesce(l.attempt > 0 AND l.status IN ('copied', 'unchanged', 'pending'), false)
                   AND s.row_id IS NULL AS has
            FROM m JOIN shared USING (key) LEFT JOIN latest l ON l.row_id = m.row_id
                 LEFT JOIN superseded s ON s.row_id = m.row_id
            WHERE m.error_class IS NULL
        ), ranked AS (
            SELECT *,
                   row_number() OVER (PARTITION BY source, key ORDER BY has DESC, row_no) AS nth,
                   first_value(row_no) OVER (PARTITION BY source, key ORDER BY has DESC, row_no) AS first_no,
                   min(source) OVER (PARTITION BY key) <> max(source) OVER (PARTITION BY key)
                   -- a key that names the digest says itself that its objects are equal
                   AND NOT (deferred_key AND contains(replace(key, '{{{{', ''), '{{sha256}}')) AS contested,
                   min(row_no) OVER (PARTITION BY key) AS low_no,
                   max(row_no) OVER (PARTITION BY key) AS high_no
            FROM candidates
        )
        SELECT row_id,
               CASE WHEN nth > 1 THEN '{twice[0]}'
                    WHEN contested AND NOT has THEN 'key_collision' END AS error_class,
               CASE WHEN nth > 1 THEN '{twice[1]}' || first_no
                    ELSE 'row ' || CASE WHEN row_no = low_no THEN high_no ELSE low_no END
                         || ' wants the same key from another source' END AS message
        FROM ranked WHERE nth > 1 OR (contested AND NOT has)
    """)
    if for_directory:
        con.execute("""
            INSERT INTO verdict
            WITH usable AS (
                SELECT m.row_id, m.key, coalesce(l.status IN ('copied', 'unchanged', 'pending'), false)
                       AND s.row_id IS NULL AS has
                FROM m LEFT JOIN latest l ON l.row_id = m.row_id LEFT JOIN superseded s ON s.row_id = m.row_id
                WHERE m.error_class IS NULL AND m.row_id NOT IN (SELECT row_id FROM verdict)
            ), below AS (
                SELECT row_id, has, unnest([array_to_string(parts[1:n], '/') FOR n IN range(1, len(parts))]) AS key
                FROM (SELECT *, string_split(key, '/') AS parts FROM usable WHERE contains(key, '/'))
            ), files AS (
                SELECT * FROM usable SEMI JOIN below USING (key)
            )
            SELECT row_id, 'key_collision', 'other rows want this key as a directory' FROM files WHERE NOT has
            UNION
            SELECT row_id, 'key_collision', 'another row has the key of its directory'
            FROM below SEMI JOIN (SELECT key FROM files WHERE has) USING (key) WHERE NOT has
        """)
    _judge_twins(con, notes, twins)
    rows, unusable = one(con, "SELECT count(*), count(error_class) FROM m")
    duplicates, collisions = one(
        con,
        "SELECT count(*) FILTER (error_class = 'duplicate'), "
        "count(*) FILTER (error_class = 'key_collision') FROM verdict",
    )
    if collisions > COLLISIONS_AT_MOST * max(1, rows - duplicates):
        example = one(
            con, "SELECT key FROM m JOIN verdict v USING (row_id) WHERE v.error_class = 'key_collision' LIMIT 1"
        )
        raise UserError(
            f"{collisions:,} of {rows:,} rows want a key that another row wants too "
            f"(for one: `{short(example[0], 200)}`). More than {COLLISIONS_AT_MOST:.0%} are no accident: "
            "set `key` to a template that tells them apart, such as `{id}/{source.name}`"
        )
    if unusable == rows:
        first = one(con, "SELECT message FROM m LIMIT 1")
        raise UserError(f"no row of the manifest can be used; the first one: {first[0]}")
    return ProblemCounts(rows, unusable, duplicates, collisions)


_FOLDS: dict[FoldedName, str] = {
    "dots": "regexp_replace({}, '[. ]+(/|$)', '\\1', 'g')",
    "form": "nfc_normalize({})",
    "case": "lower({})",
}


def _folded(twins: Collection[FoldedName]) -> str:
    """The key as SQL, alike for keys that only these differences tell apart."""
    expression = "key"
    for twin, fold in _FOLDS.items():
        if twin in twins:
            expression = fold.format(expression)
    return expression


ALIKE = _folded(list(_FOLDS))  # SQL of what is alike for keys that some directory may not tell apart


def _judge_twins(con: duckdb.DuckDBPyConnection, notes: list[str], twins: Callable[[], Collection[FoldedName]]) -> None:
    """Keys that differ only in case, Unicode form or dots at the end of a name: told apart by most stores, not by all.

    Where the destination is known not to tell them apart, none of their rows moves, as with any shared key.
    """
    con.execute(f"""
        CREATE OR REPLACE TEMP VIEW told_apart AS
        SELECT row_id, row_no, key, {ALIKE} AS folded FROM m
        -- a key that names the digest says itself that its objects are equal
        WHERE error_class IS NULL AND NOT (deferred_key AND contains(replace(key, '{{{{', ''), '{{sha256}}'))
    """)
    (groups,) = one(
        con, "SELECT count(*) FROM (SELECT 1 FROM told_apart GROUP BY folded HAVING count(DISTINCT key) > 1)"
    )
    if not groups:
        return
    if found := twins():
        con.execute(f"""
            INSERT INTO verdict
            WITH usable AS (
                SELECT t.row_id, t.row_no, t.key, t.folded,
                       coalesce(l.status IN ('copied', 'unchanged', 'pending'), false) AND s.row_id IS NULL AS has
                FROM (SELECT row_id, row_no, key, {_folded(found)} AS folded FROM told_apart) t
                     LEFT JOIN latest l ON l.row_id = t.row_id LEFT JOIN superseded s ON s.row_id = t.row_id
                WHERE t.row_id NOT IN (SELECT row_id FROM verdict)
            ), shared AS (
                SELECT folded, min(row_no) AS low_no, max(row_no) AS high_no FROM usable
                GROUP BY folded HAVING count(DISTINCT key) > 1
            )
            SELECT row_id, 'key_collision', 'the directory does not tell this key from that of row '
                   || CASE WHEN row_no = low_no THEN high_no ELSE low_no END
            FROM usable JOIN shared USING (folded) WHERE NOT has
        """)
        return
    notes.append(
        f"{groups:,} groups of keys differ only in case, Unicode form or dots at the end of a name; "
        "a store that does not tell them apart would mix them up"
    )


def write_outcomes(con: duckdb.DuckDBPyConnection, state: State, run_no: int, settings_digest: str) -> None:
    """Unusable, doubled and colliding rows become outcomes, where the ledger does not say so yet."""
    reader = con.execute("""
        SELECT m.row_id, m.source, m.key, m.id, m.size, v.error_class, v.message, coalesce(l.attempt, 0)
        FROM m JOIN (
            SELECT row_id, error_class, message FROM m WHERE error_class IS NOT NULL
            UNION ALL SELECT row_id, error_class, message FROM verdict
        ) v ON v.row_id = m.row_id LEFT JOIN latest l ON l.row_id = m.row_id
          LEFT JOIN superseded s ON s.row_id = m.row_id
        WHERE l.row_id IS NULL OR s.row_id IS NOT NULL
           OR (l.status NOT IN ('copied', 'unchanged') AND l.error_class IS DISTINCT FROM v.error_class)
        ORDER BY m.row_no
    """)
    part = 0
    while lines := reader.fetchmany(50_000):
        outcomes = [_outcome(run_no, settings_digest, *line) for line in lines]
        append_outcomes(state, outcomes, run_no, "plan", part)
        part += 1


def _outcome(
    run_no: int,
    settings_digest: str,
    row_id: str,
    source: str | None,
    key: str | None,
    id_: str | None,
    size: int | None,
    cls: str,
    text: str,
    attempt: int,
) -> Outcome:
    now = datetime.now(UTC)
    error = ErrorClass(cls)
    return Outcome(
        row_id=row_id, source=redact(source or ""), key=key or "", id=id_,
        status=Status.SKIPPED if error is ErrorClass.DUPLICATE else Status.FAILED, error_class=error,
        status_code=None, message=text, retryable=False, reason=Reason.NEW, attempt=attempt, requests=0, size=size,
        md5=None, sha256=None, content_type=None, source_etag=None, source_last_modified=None, dest_etag=None,
        started_at=now, recorded_at=now, run_no=run_no, chunk="", settings_digest=settings_digest,
    )  # fmt: skip


def one(con: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """The first line of an answer."""
    return con.execute(sql).fetchall()[0]
