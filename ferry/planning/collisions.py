"""Detection of duplicates and key collisions, and the outcomes of rows with such a problem or without a usable URL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ferry.core import ErrorClass, Outcome, Reason, Status, UserError, redact, short
from ferry.planning.contenders import (
    NAMED_BY_DIGEST,
    find_contenders,
    find_repeated,
    hash_conditions,
)
from ferry.state import ROWS_AT_ONCE, State, append_outcomes
from ferry.storage import FoldedName

if TYPE_CHECKING:
    import duckdb


MAX_COLLISION_SHARE = 0.10
MAY_HAVE_WRITTEN = "('upload_unconfirmed', 'store_error', 'timeout', 'internal')"  # classes of a failed first try
# Of the rows with one key: all have the same digest, and nothing that the manifest says of their bytes differs.
_HAS_ONE_BODY = "(count(sha256) = count(*) OR count(md5) = count(*)) AND " + " AND ".join(
    f"min({name}) IS NOT DISTINCT FROM max({name})" for name in ("sha256", "md5", "size")
)
# The row shares the object of another row, and the manifest does not say any more that their bytes are equal: either of
# the rows may change, so only the other one may have the key.
_NO_LONGER_SHARED = "(coalesce(l.copy_of = m.key, false) AND m.key NOT IN (SELECT key FROM equal))"


@dataclass(frozen=True, slots=True)
class ProblemCounts:
    """Number of the manifest's rows, and of those that cannot be transferred, by problem."""

    rows: int
    unusable: int
    duplicates: int
    collisions: int

    @property
    def usable(self) -> int:
        """Rows that are neither unusable nor duplicates."""
        return self.rows - self.unusable - self.duplicates


# Rows that have a copy, or may have written their key.
_TRIED = f"""(status IN ('copied', 'unchanged', 'pending', 'removed') OR (status = 'failed' AND chunk <> ''
             AND (attempt > 1 OR error_class IN {MAY_HAVE_WRITTEN})))"""


def find_superseded(
    con: duckdb.DuckDBPyConnection, ledger: Iterable[object] = (None,), at_once: int = ROWS_AT_ONCE
) -> None:
    """Fills `superseded`: rows that have a copy by the ledger, but whose key another row has written since.

    The other row also counts if its object was deleted or found wrong since. So does a row whose last try failed, or
    has no outcome, since it may have written the key. The other row may have been removed from the manifest. A row is
    not superseded if both rows have a copy with the same bytes. ``ledger`` fills `latest` with one part of the ledger
    after the other.
    """
    con.execute("CREATE TABLE tried_keys AS SELECT hash(key) AS hash FROM begun")
    for _ in ledger:
        con.execute(f"INSERT INTO tried_keys SELECT hash(key) FROM latest WHERE {_TRIED}")
    find_repeated(con, "tried_keys", "hash", at_once)
    con.execute("""
        DROP TABLE tried_keys;
        CREATE TABLE tried AS
        SELECT row_id, key, NULL::VARCHAR AS sha256, NULL::VARCHAR AS md5, run_no,
               'infinity'::TIMESTAMPTZ AS recorded_at, false AS has_copy
        FROM begun WHERE hash(key) IN (FROM repeated)
    """)
    if con.execute("SELECT 1 FROM repeated LIMIT 1").fetchall():
        for _ in ledger:
            con.execute(f"""
                INSERT INTO tried
                SELECT row_id, key, sha256, md5, run_no, recorded_at, status IN ('copied', 'unchanged')
                       OR (status = 'failed' AND dest_etag IS NOT NULL)
                FROM latest WHERE {_TRIED} AND hash(key) IN (FROM repeated)
            """)
    con.execute("""
        CREATE TABLE superseded AS
        WITH shared AS (SELECT key FROM tried GROUP BY key HAVING count(*) > 1 AND bool_or(has_copy)),
        ordered AS (
            SELECT *, first_value(row_id) OVER last AS last_id, first_value(has_copy) OVER last AS last_has_copy,
                   first_value(sha256) OVER last AS last_sha256, first_value(md5) OVER last AS last_md5
            FROM tried SEMI JOIN shared USING (key)
            WINDOW last AS (PARTITION BY key ORDER BY run_no DESC, recorded_at DESC, row_id)
        )
        SELECT row_id FROM ordered
        WHERE has_copy AND row_id <> last_id
              AND NOT (last_has_copy AND coalesce(sha256 = last_sha256 OR md5 = last_md5, false));
        DROP TABLE tried
    """)


def find_collisions(
    con: duckdb.DuckDBPyConnection,
    notes: list[str],
    *,
    for_directory: bool,
    listed: bool = False,
    dedupe: bool = False,
    name_folding: Callable[[], Collection[FoldedName]] = tuple,
    spans: Sequence[str] = ("true",),
    ledger: Iterable[object] = (None,),
    at_once: int = ROWS_AT_ONCE,
) -> ProblemCounts:
    """Fills `problems` with the duplicates and key collisions among the usable rows, and returns all counts.

    A row that has a copy by the ledger keeps its key: other rows with the same source and key are its duplicates, and
    rows with the same key and another source collide. If no row has a copy, all rows with that key and different
    sources collide.

    Two equal rows of a listing (``listed``) are two objects whose names the client cannot tell apart, and only one can
    be requested. Examples are `a.jpg` and `/a.jpg` in a bucket, or a file name that is not UTF-8.

    With ``dedupe`` rows share a key if the manifest says by a digest that all of them have the same bytes. When it does
    not say so any more, the row that was stored keeps the key, and those that shared its object collide.

    In a directory (``for_directory``) a file and a folder cannot have one name. ``name_folding`` returns which
    differences in names the directory ignores; it is called only if keys of the manifest differ in such a way alone.

    ``spans`` and ``ledger`` are those of :func:`find_contenders`, and ``at_once`` the rows that are compared at once.

    Raises UserError when no row is usable, or more than a tenth of the rows collide.
    """
    same_name = ("key_collision", "another object whose name the client cannot tell from this one is row ")
    repeated = same_name if listed else ("duplicate", "the same source and key as row ")
    find_contenders(con, FOLDED_KEY, spans, ledger, for_directory=for_directory, at_once=at_once)
    con.execute(
        "CREATE TABLE problems (row_id VARCHAR, row_no BIGINT, error_class VARCHAR, message VARCHAR, shared BOOLEAN)"
    )
    for part in hash_conditions(con, "contenders", "hash", at_once):
        con.execute(f"""
            INSERT INTO problems
            WITH part AS (
                FROM contenders WHERE {part}
            ), shared AS (
                SELECT key FROM part GROUP BY key HAVING count(*) > 1
            ), equal AS (
                SELECT key FROM part SEMI JOIN shared USING (key) GROUP BY key HAVING {_HAS_ONE_BODY}
            ), candidates AS (
                SELECT m.row_id, m.row_no, m.source, m.key, m.deferred_key, l.copy_of,
                       coalesce(l.attempt > 0 AND l.status IN ('copied', 'unchanged', 'pending'), false)
                       AND s.row_id IS NULL AND NOT {_NO_LONGER_SHARED}
                       AS has_copy
                FROM part m JOIN shared USING (key) LEFT JOIN marks l ON l.row_id = m.row_id
                     LEFT JOIN superseded s ON s.row_id = m.row_id
            ), ranked AS (
                SELECT *,
                       row_number() OVER (PARTITION BY source, key ORDER BY has_copy DESC, row_no) AS rank,
                       first_value(row_no) OVER (PARTITION BY source, key ORDER BY has_copy DESC, row_no) AS first_no,
                       min(source) OVER (PARTITION BY key) <> max(source) OVER (PARTITION BY key)
                       AND NOT {NAMED_BY_DIGEST}
                       AND NOT ({dedupe} AND key IN (SELECT key FROM equal)) AS contested,
                       min(row_no) OVER (PARTITION BY key) AS low_no,
                       max(row_no) OVER (PARTITION BY key) AS high_no
                FROM candidates
            )
            SELECT row_id, row_no,
                   CASE WHEN rank > 1 THEN '{repeated[0]}'
                        WHEN contested AND NOT has_copy THEN 'key_collision' END AS error_class,
                   CASE WHEN rank > 1 THEN '{repeated[1]}' || first_no
                        ELSE 'row ' || CASE WHEN row_no = low_no THEN high_no ELSE low_no END
                             || ' has the same key and another source' END AS message,
                   coalesce(copy_of = key, false)
            FROM ranked WHERE rank > 1 OR (contested AND NOT has_copy)
        """)
    if for_directory:
        con.execute("""
            INSERT INTO problems
            WITH usable AS (
                SELECT m.row_id, m.row_no, m.key, coalesce(l.copy_of = m.key, false) AS is_shared,
                       coalesce(l.status IN ('copied', 'unchanged', 'pending'), false) AND s.row_id IS NULL AS has_copy
                FROM contenders m LEFT JOIN marks l ON l.row_id = m.row_id
                     LEFT JOIN superseded s ON s.row_id = m.row_id
                WHERE m.row_id NOT IN (SELECT row_id FROM problems)
            ), folders AS (
                SELECT row_id, row_no, is_shared, has_copy,
                       unnest([array_to_string(parts[1:n], '/') FOR n IN range(1, len(parts))]) AS key
                FROM (SELECT *, string_split(key, '/') AS parts FROM usable WHERE contains(key, '/'))
            ), files AS (
                SELECT * FROM usable SEMI JOIN folders USING (key)
            )
            SELECT row_id, row_no, 'key_collision', 'other rows have keys below this key, which makes it a directory',
                   is_shared
            FROM files WHERE NOT has_copy
            UNION
            SELECT row_id, row_no, 'key_collision', 'another row has the key of its directory', is_shared
            FROM folders SEMI JOIN (SELECT key FROM files WHERE has_copy) USING (key) WHERE NOT has_copy
        """)
    _find_folded_names(con, notes, name_folding)
    rows, unusable = one(con, "SELECT count(*), count(error_class) FROM manifest")
    duplicates, collisions = one(
        con,
        "SELECT count(*) FILTER (error_class = 'duplicate'), "
        "count(*) FILTER (error_class = 'key_collision') FROM problems",
    )
    if collisions > MAX_COLLISION_SHARE * max(1, rows - duplicates):
        example = one(
            con,
            "SELECT key FROM contenders JOIN problems p USING (row_no) WHERE p.error_class = 'key_collision' LIMIT 1",
        )
        raise UserError(
            f"{collisions:,} of {rows:,} rows have a key collision (one of the keys: `{short(example[0], 200)}`). More "
            f"than {MAX_COLLISION_SHARE:.0%} is not accidental: set `key` to a template that tells the rows apart, "
            "such as `{id}/{source.name}`"
        )
    if unusable == rows:
        first = one(con, "SELECT message FROM manifest LIMIT 1")
        raise UserError(f"no row of the manifest can be used; the first one: {first[0]}")
    return ProblemCounts(rows, unusable, duplicates, collisions)


_FOLDS: dict[FoldedName, str] = {
    "dots": "regexp_replace({}, '[. ]+(/|$)', '\\1', 'g')",
    "form": "nfc_normalize({})",
    "case": "lower({})",
}


def _folded(name_folding: Collection[FoldedName]) -> str:
    """Returns SQL for the key, equal for keys that differ only in these ways."""
    expression = "key"
    for difference, fold in _FOLDS.items():
        if difference in name_folding:
            expression = fold.format(expression)
    return expression


FOLDED_KEY = _folded(list(_FOLDS))  # SQL for the key, equal for keys that some directory may treat as one name


def _find_folded_names(
    con: duckdb.DuckDBPyConnection, notes: list[str], name_folding: Callable[[], Collection[FoldedName]]
) -> None:
    """Adds to `problems` the rows whose keys differ only in case, Unicode form or dots at the end of a name.

    They collide if the destination is known to ignore that difference. For any other destination a note is added.
    """
    con.execute(f"""
        CREATE OR REPLACE TEMP VIEW folded_keys AS
        SELECT row_id, row_no, key, {FOLDED_KEY} AS folded FROM contenders WHERE NOT {NAMED_BY_DIGEST}
    """)
    (groups,) = one(
        con, "SELECT count(*) FROM (SELECT 1 FROM folded_keys GROUP BY folded HAVING count(DISTINCT key) > 1)"
    )
    if not groups:
        return
    if ignored := name_folding():
        con.execute(f"""
            INSERT INTO problems
            WITH usable AS (
                SELECT k.row_id, k.row_no, k.key, k.folded, coalesce(l.copy_of = k.key, false) AS is_shared,
                       coalesce(l.status IN ('copied', 'unchanged', 'pending'), false) AND s.row_id IS NULL AS has_copy
                FROM (SELECT row_id, row_no, key, {_folded(ignored)} AS folded FROM folded_keys) k
                     LEFT JOIN marks l ON l.row_id = k.row_id LEFT JOIN superseded s ON s.row_id = k.row_id
                WHERE k.row_id NOT IN (SELECT row_id FROM problems)
            ), shared AS (
                SELECT folded, min(row_no) AS low_no, max(row_no) AS high_no FROM usable
                GROUP BY folded HAVING count(DISTINCT key) > 1
            )
            SELECT row_id, row_no, 'key_collision',
                   'in the destination directory this key is the same name as that of row '
                   || CASE WHEN row_no = low_no THEN high_no ELSE low_no END, is_shared
            FROM usable JOIN shared USING (folded) WHERE NOT has_copy
        """)
        return
    notes.append(
        f"{groups:,} groups of keys differ only in case, Unicode form or dots at the end of a name; "
        "a store that ignores such differences keeps one object of each group"
    )


def find_unrecorded(con: duckdb.DuckDBPyConnection) -> None:
    """Adds to `unrecorded` each unusable, duplicate or colliding row that the ledger does not have as such yet."""
    con.execute(
        "CREATE TABLE IF NOT EXISTS unrecorded (row_no BIGINT, error_class VARCHAR, message VARCHAR, attempt BIGINT)"
    )
    unusable = "SELECT 1 FROM manifest_rows WHERE error_class IS NOT NULL UNION ALL SELECT 1 FROM problems LIMIT 1"
    if not con.execute(unusable).fetchall():  # the ledger need not be read
        return
    con.execute("""
        INSERT INTO unrecorded
        SELECT p.row_no, p.error_class, p.message, coalesce(l.attempt, 0)
        FROM (SELECT row_id, row_no, error_class, NULL AS message, false AS shared FROM manifest_rows
              WHERE error_class IS NOT NULL UNION ALL FROM problems SEMI JOIN manifest_rows USING (row_id)) p
             LEFT JOIN latest l ON l.row_id = p.row_id LEFT JOIN superseded s ON s.row_id = p.row_id
        WHERE l.row_id IS NULL OR s.row_id IS NOT NULL OR (p.shared AND p.error_class = 'key_collision')
           OR (l.status NOT IN ('copied', 'unchanged') AND l.error_class IS DISTINCT FROM p.error_class)
    """)


def write_outcomes(
    con: duckdb.DuckDBPyConnection, state: State, run_no: int, settings_digest: str, spans: Sequence[str] = ("true",)
) -> None:
    """Writes an outcome for each row in `unrecorded`, in the manifest's order. ``spans``: as in find_contenders."""
    part = 0
    for span in spans if one(con, "SELECT count(*) FROM unrecorded")[0] else ():
        reader = con.execute(f"""
            SELECT m.row_id, m.source, m.key, m.id, m.size, u.error_class, coalesce(u.message, m.message), u.attempt
            FROM manifest m JOIN unrecorded u USING (row_no) WHERE {span} ORDER BY row_no
        """)
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
    error_class: str,
    message: str,
    attempt: int,
) -> Outcome:
    now = datetime.now(UTC)
    error = ErrorClass(error_class)
    return Outcome(
        row_id=row_id, source=redact(source or ""), key=key or "", id=id_,
        status=Status.SKIPPED if error is ErrorClass.DUPLICATE else Status.FAILED, error_class=error,
        status_code=None, message=message, retryable=False, reason=Reason.NEW, attempt=attempt, requests=0, size=size,
        md5=None, sha256=None, content_type=None, source_etag=None, source_last_modified=None, dest_etag=None,
        started_at=now, recorded_at=now, run_no=run_no, chunk="", settings_digest=settings_digest,
    )  # fmt: skip


def one(con: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """Returns the first line of a query's result."""
    return con.execute(sql).fetchall()[0]
