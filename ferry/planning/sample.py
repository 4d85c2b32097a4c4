"""Samples of the rows to do, for `ferry check`: rows of all hosts to judge, and more rows to measure the rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ferry.planning import chunk_files
from ferry.state import ChunkRef, Sample, State, host_sql, open_state
from ferry.storage import Access

if TYPE_CHECKING:
    import duckdb

MOST_HOSTS = 50  # that are sampled one by one; all others together are one more, named ""
ROWS_PER_HOST = 3  # at least
READY_ROWS = 10_000  # that a run keeps ready, in the manifest's order
MEASURED_ROWS = 20_000  # to measure the rate; a fast run does not end before its time is over
_TO_DO = f"""
    SELECT m.row_id, m.row_no, {host_sql("m.source")} AS host, m.size FROM manifest m
    WHERE m.row_no IN (SELECT row_no FROM selected WHERE reason <> 'revalidate' UNION ALL SELECT row_no FROM open_rows)
"""


def quotas(rows: Mapping[str, int], total: int) -> dict[str, int]:
    """Returns how many rows of each host a sample of ``total`` rows has. ``rows``: the rows of each host.

    Each host has ROWS_PER_HOST rows if there are enough, since a host may be the one that fails. The others are divided
    in proportion.

    | rows | total | quotas |
    |---|---|---|
    | a: 900, b: 100 | 100 | a: 88, b: 12 |
    | a: 10, b: 5 | 100 | a: 10, b: 5 |
    | a: 100,000, b: 1 | 100 | a: 99, b: 1 |
    """
    found = {host: min(ROWS_PER_HOST, n) for host, n in rows.items()}
    left = max(0, min(total, sum(rows.values())) - sum(found.values()))
    room = {host: n - found[host] for host, n in rows.items()}
    all_room = max(1, sum(room.values()))
    shares = {host: left * room[host] / all_room for host in rows}
    for host, share in shares.items():
        found[host] += int(share)
    rest = left - sum(int(share) for share in shares.values())
    for host in sorted(shares, key=lambda host: -(shares[host] % 1))[:rest]:
        found[host] += 1
    return found


def draw_sample(con: duckdb.DuckDBPyConnection, folder: Path, total: int) -> Sample:
    """Writes two chunks of rows to do to a state in ``folder``: the sample of ``total`` rows, and rows to measure.

    The rows with the smallest row IDs are taken, which are digests: a random sample, the same for the same manifest.
    Rechecks of copies are left out. It replaces `selected`.
    """
    state = open_state(str(folder), Access(), folder)
    con.execute(f"CREATE TEMP TABLE to_do AS {_TO_DO}")
    by_host = con.execute("SELECT host, count(*), count(size), coalesce(sum(size), 0) FROM to_do GROUP BY 1").fetchall()
    by_host.sort(key=lambda line: (-line[1], line[0]))
    named = [line[0] for line in by_host[:MOST_HOSTS]]
    rows: dict[str, int] = {}
    for host, count, _, _ in by_host:
        name = host if host in named else ""
        rows[name] = rows.get(name, 0) + count
    wanted = quotas(rows, total)
    con.execute("CREATE TEMP TABLE quotas (host VARCHAR, wanted BIGINT)")
    con.executemany("INSERT INTO quotas VALUES (?, ?)", [[host, n] for host, n in wanted.items()] or [["", 0]])
    con.execute(
        """
        CREATE TEMP TABLE drawn AS
        SELECT unnest(min_by(row_id, row_id, $most)[:any_value(wanted)]) AS row_id
        FROM to_do JOIN quotas ON quotas.host = CASE WHEN list_contains($named, to_do.host) THEN to_do.host ELSE '' END
        GROUP BY quotas.host
        """,
        {"most": max(1, *wanted.values(), 1), "named": named},
    )
    con.execute(
        "CREATE TEMP TABLE measured AS "
        f"SELECT row_id FROM to_do ANTI JOIN drawn USING (row_id) ORDER BY row_id LIMIT {MEASURED_ROWS}"
    )
    (at_once,) = con.execute(
        f"SELECT avg(n) FROM (SELECT count(DISTINCT host) AS n FROM to_do GROUP BY row_no // {READY_ROWS})"
    ).fetchall()[0]
    return Sample(
        chunks=_write(con, state, "drawn"), more=_write(con, state, "measured"), hosts=rows, hosts_at_once=at_once or 0,
        sized_rows=sum(line[2] for line in by_host), sized_bytes=int(sum(line[3] for line in by_host)),
    )  # fmt: skip


def _write(con: duckdb.DuckDBPyConnection, state: State, table: str) -> list[ChunkRef]:
    """Writes the rows of a table as one chunk, if there are any."""
    con.execute("DROP TABLE IF EXISTS to_do; DROP TABLE IF EXISTS selected")
    con.execute(
        "CREATE TABLE selected AS SELECT row_no, 'new' AS reason, 1::BIGINT AS attempt, "
        f"0::BIGINT AS consecutive_failures FROM {table} JOIN manifest USING (row_id)"
    )
    return chunk_files.write_chunks(con, state, 1, MEASURED_ROWS, base=True)
