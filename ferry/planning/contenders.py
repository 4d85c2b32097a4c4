"""The rows that may collide with another row, found by hashes of their keys in memory that does not grow with them.

Few of a manifest's keys occur twice, so the queries that compare keys (:mod:`ferry.planning.collisions`) only read the
rows whose hash occurs twice. Two keys that differ may have one hash: such rows are read for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ferry.state import ROWS_AT_ONCE

if TYPE_CHECKING:
    import duckdb

HASHES = 4  # that take about as much memory as a row when they are grouped, 60 bytes each
# objects with one key that contains the digest are equal
NAMED_BY_DIGEST = "(deferred_key AND contains(replace(key, '{{', ''), '{sha256}'))"
_PARENT = "regexp_replace({}, '/[^/]*$', '')"
_FOLDERS = """(SELECT row_no, unnest([array_to_string(parts[1:n], '/') FOR n IN range(1, len(parts))]) AS folder
               FROM (SELECT row_no, string_split(key, '/') AS parts FROM manifest
                     WHERE error_class IS NULL AND contains(key, '/')))"""


def hash_conditions(con: duckdb.DuckDBPyConnection, table: str, column: str, at_once: int) -> list[str]:
    """Returns conditions that divide a table into parts of about ``at_once`` rows by a column of hashes."""
    (rows,) = con.execute(f"SELECT count(*) FROM {table}").fetchall()[0]
    parts = -(-rows // at_once)
    if parts <= 1:
        return ["true"] * parts
    ends = [(1 << 64) * n // parts for n in range(parts + 1)]
    return [f"{column} BETWEEN {low} AND {high - 1}" for low, high in pairwise(ends)]


def find_repeated(con: duckdb.DuckDBPyConnection, table: str, column: str, at_once: int = ROWS_AT_ONCE) -> None:
    """Fills `repeated` with the hashes in a column that occur more than once."""
    con.execute("CREATE OR REPLACE TABLE repeated (hash UBIGINT)")
    for condition in hash_conditions(con, table, column, HASHES * at_once):
        con.execute(
            f"INSERT INTO repeated SELECT {column} FROM {table} WHERE {condition} GROUP BY 1 HAVING count(*) > 1"
        )


def find_contenders(
    con: duckdb.DuckDBPyConnection,
    folded_key: str,
    spans: Sequence[str],
    ledger: Iterable[object],
    *,
    for_directory: bool,
    at_once: int = ROWS_AT_ONCE,
) -> None:
    """Fills `contenders` with the usable rows that may share a key with another row, and `marks` with their outcomes.

    They are the rows whose key, or whose ``folded_key`` (SQL), may occur twice. With ``for_directory`` they are also
    those whose key may be the folder of another one, and those below such a key. ``spans``: conditions on `manifest`
    that together every row meets. ``ledger`` fills `latest` with one part of the ledger after the other.
    """
    con.execute(
        f"""
        CREATE OR REPLACE TABLE key_hashes AS
        SELECT row_no, CASE WHEN {NAMED_BY_DIGEST} THEN hash(key, source) ELSE hash(key) END AS hash,
               CASE WHEN NOT {NAMED_BY_DIGEST} THEN hash({folded_key}) END AS folded,
               CASE WHEN {for_directory} THEN hash(key) END AS name
        FROM manifest WHERE error_class IS NULL
        """
    )
    con.execute("CREATE OR REPLACE TABLE contending (row_no BIGINT, hash UBIGINT)")
    find_repeated(con, "key_hashes", "hash", at_once)
    _add(con, "hash IN (FROM repeated)")
    con.execute("CREATE OR REPLACE TABLE repeated (hash UBIGINT)")
    for condition in hash_conditions(con, "key_hashes", "folded", HASHES * at_once):
        con.execute(
            f"INSERT INTO repeated SELECT folded FROM key_hashes WHERE {condition} AND folded IS NOT NULL "
            "GROUP BY 1 HAVING min(hash) <> max(hash)"
        )
    _add(con, "folded IN (FROM repeated)")
    if for_directory and _find_files(con, spans, at_once):
        _add(
            con, f"name IN (FROM files) OR row_no IN (SELECT row_no FROM {_FOLDERS} WHERE hash(folder) IN (FROM files))"
        )
    con.execute(
        """
        DROP TABLE key_hashes;
        CREATE OR REPLACE TABLE contenders AS
        SELECT m.row_id, m.row_no, m.source, m.key, m.deferred_key, m.sha256, m.md5, m.size, c.hash
        FROM manifest m JOIN (SELECT row_no, any_value(hash) AS hash FROM contending GROUP BY 1) c USING (row_no);
        DROP TABLE contending;
        CREATE OR REPLACE TABLE marks (row_id VARCHAR, status VARCHAR, attempt BIGINT, copy_of VARCHAR)
        """
    )
    if con.execute("SELECT 1 FROM contenders LIMIT 1").fetchall():
        for _ in ledger:
            con.execute(
                "INSERT INTO marks SELECT row_id, status, attempt, copy_of FROM latest "
                "SEMI JOIN contenders USING (row_id)"
            )


def _add(con: duckdb.DuckDBPyConnection, condition: str) -> None:
    con.execute(f"INSERT INTO contending SELECT row_no, hash FROM key_hashes WHERE {condition}")


def _find_files(con: duckdb.DuckDBPyConnection, spans: Sequence[str], at_once: int) -> bool:
    """Fills `files` with the hashes of keys that are the folder of another key. Returns whether there are any."""
    con.execute("CREATE OR REPLACE TABLE folder_hashes (hash UBIGINT); CREATE OR REPLACE TABLE files (hash UBIGINT)")
    for span in spans:
        level = f"(SELECT key AS folder FROM manifest WHERE {span} AND error_class IS NULL)"
        while True:  # the folders of the keys, then those of the folders
            con.execute(
                f"CREATE OR REPLACE TABLE next_level AS SELECT DISTINCT {_PARENT.format('folder')} AS folder "
                f"FROM {level} WHERE contains(folder, '/')"
            )
            con.execute("CREATE OR REPLACE TABLE level AS FROM next_level")
            level = "level"
            found = con.execute("INSERT INTO folder_hashes SELECT hash(folder) FROM level").fetchall()
            if not found[0][0]:
                break
    for condition in hash_conditions(con, "folder_hashes", "hash", HASHES * at_once):
        con.execute(
            f"INSERT INTO files SELECT DISTINCT name FROM key_hashes WHERE {condition.replace('hash', 'name')} "
            f"AND name IN (SELECT hash FROM folder_hashes WHERE {condition})"
        )
    con.execute("DROP TABLE folder_hashes; DROP TABLE level; DROP TABLE next_level")
    return bool(con.execute("SELECT 1 FROM files LIMIT 1").fetchall())
