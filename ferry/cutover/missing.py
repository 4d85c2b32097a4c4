"""Addresses that visitors asked the old origin for and that have no copy, with what to do."""

from __future__ import annotations

import csv
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pyarrow as pa

from ferry.core import ErrorClass, UserError, redact
from ferry.cutover.access_log import LogLines
from ferry.cutover.addresses import create_addresses, old_address
from ferry.cutover.redirects import ascii_host
from ferry.job import Job
from ferry.state import REMEDIES, State, folded_ledger, host_sql

if TYPE_CHECKING:
    import duckdb

BATCH_ADDRESSES = 200_000  # different addresses in memory
GONE = frozenset({404, 410})
# A file with such an ending may be an object of the library, also where the list has none of its kind
IMAGES = ("jpg", "jpeg", "png", "gif", "webp", "avif", "svg", "tif", "tiff", "bmp", "heic", "jxl", "jp2")
_PLAIN = re.compile(r"[A-Za-z0-9_.~/-]*")
_EXTENSION = "lower(regexp_extract({path}, '[^/][.]([^./]+)$', 1))"


class What(StrEnum):
    """Why an address has no copy."""

    UNLISTED = "unlisted"
    FAILED = "failed"
    PENDING = "pending"
    SKIPPED = "skipped"
    REMOVED = "removed"
    GONE = "gone"
    OTHER = "other"


LOST = (What.UNLISTED, What.FAILED, What.PENDING, What.SKIPPED, What.REMOVED)  # what visitors would miss
_DO = {
    What.UNLISTED: "in no list; write them to a list with --as-list, and run that",
    What.PENDING: "pending; `ferry run` takes them",
    What.SKIPPED: "skipped, ",
    What.FAILED: "failed, ",
    What.REMOVED: "removed from the list; add them again, or let them go",
    What.GONE: "the old origin answered 404 or 410 each time; no loss",
    What.OTHER: "not of the list's hosts, folders or endings (pages, /robots.txt); look at the first ones",
}


@dataclass(frozen=True, slots=True)
class MissingGroup:
    """Addresses without a copy for one reason."""

    what: What
    error_class: str | None
    addresses: int
    requests: int

    @property
    def todo(self) -> str:
        """What they are, and what to do."""
        remedy = ""
        if self.error_class:
            remedy = f"{self.error_class}; {REMEDIES[ErrorClass(self.error_class)]}"
        return _DO[self.what] + remedy


@dataclass(slots=True)
class MissingReport:
    """What a log has that no copy answers. Addresses are redacted."""

    lines: int = 0
    bad_lines: int = 0
    other_requests: int = 0  # neither GET nor HEAD, of another status than asked for, or without an address
    requests: int = 0
    addresses: int = 0
    copied: int = 0  # addresses with a copy
    copied_requests: int = 0
    groups: list[MissingGroup] = field(default_factory=list)
    first: list[dict[str, Any]] = field(default_factory=list)  # most asked first: requests, what, error_class, address
    list_file: str | None = None
    list_rows: int = 0


def find_missing_addresses(
    job: Job,
    state: State,
    logs: Sequence[str],
    *,
    limit: int,
    statuses: Collection[int] = (),
    host: str | None = None,
    as_list: Path | None = None,
) -> MissingReport:
    """Reads the logs, and returns which addresses have no copy. ``host`` is that of requests which name none.

    ``as_list`` is written with the addresses in no list, byte for byte, mode 0600, if there are any. Raises UserError
    for logs that cannot be read, and before anything is written for addresses whose host is not known.
    """
    report = MissingReport()
    with folded_ledger(state) as con:
        create_addresses(con, job)
        _create_old(con, job)
        _read(con, logs, report, statuses, ascii_host(host) if host else None)
        _judge(con)
        _count(con, report, limit)
        if as_list is not None:
            report.list_rows = _write_list(con, as_list)
            report.list_file = str(as_list) if report.list_rows else None
    return report


def canonical(path: str) -> str:
    """Returns one spelling for all equal forms of a path: escapes undone, then only what must be escaped.

    | path | canonical |
    |---|---|
    | /a%20b.jpg, /a b.jpg | /a%20b.jpg |
    | /%7euser/%C3%BC, /~user/ü | /~user/%C3%BC |
    | /a%2fb | /a/b |
    """
    return path if _PLAIN.fullmatch(path) else quote_from_bytes(unquote_to_bytes(path))


def _create_old(con: duckdb.DuckDBPyConnection, job: Job) -> None:
    """Creates `old`: each address of the list, and of rows that left it, with what became of it."""
    con.create_function("canonical", canonical, ["VARCHAR"], "VARCHAR")
    con.create_function("ascii_host", ascii_host, ["VARCHAR"], "VARCHAR")
    con.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE old AS
        WITH rows AS (
            SELECT m.source, m.alternatives, m.id, l.error_class,
                   CASE WHEN a.row_id IS NOT NULL THEN 'copy' WHEN l.status IN ('failed', 'skipped') THEN l.status
                        ELSE 'pending' END AS what
            FROM manifest m LEFT JOIN latest l USING (row_id)
            LEFT JOIN (SELECT DISTINCT row_id FROM addresses) a USING (row_id) WHERE m.source IS NOT NULL
            UNION ALL
            SELECT l.source, [l.address], l.id, NULL, 'removed' FROM latest l ANTI JOIN manifest USING (row_id)
        ), each AS (
            SELECT * EXCLUDE (alternatives), unnest(list_concat([source], coalesce(alternatives, []))) AS address
            FROM rows
        ), urls AS (
            SELECT what, error_class, {old_address(job)} AS url FROM each WHERE address IS NOT NULL
        )
        SELECT what, error_class, {host_sql("url")} AS site_host, lower(regexp_extract(url, '^[a-zA-Z]+')) AS scheme,
               ascii_host(regexp_replace(site_host, ':[0-9]+$', '')) AS host,
               canonical(coalesce(nullif(regexp_extract(url, '^[^/]*//[^/?#]*([^?#]*)', 1), ''), '/')) AS path,
               regexp_extract(url, '^[^?#]*[?]([^#]*)', 1) AS query
        FROM urls WHERE url SIMILAR TO '(?i)https?://.*'
        """
    )
    (known,) = con.execute("SELECT count(*) FROM old").fetchall()[0]
    if not known:
        raise UserError(
            "the addresses under which visitors asked for the objects are not known: the list has none. Set "
            "source.public_url, such as `https://img.old.example/{key}`"
        )


def _read(
    con: duckdb.DuckDBPyConnection,
    logs: Sequence[str],
    report: MissingReport,
    statuses: Collection[int],
    host: str | None,
) -> None:
    """Creates `asked`: each address of the logs with its requests."""
    con.execute(
        "CREATE OR REPLACE TEMP TABLE parts "
        "(host VARCHAR, target VARCHAR, path VARCHAR, query VARCHAR, requests BIGINT, gone BIGINT)"
    )
    counts: dict[tuple[str | None, str], list[int]] = {}
    for log in map(LogLines, logs):
        for request in log.requests():
            wanted = request.target and request.method in ("GET", "HEAD")
            if not wanted or (statuses and request.status not in statuses):
                report.other_requests += 1
                continue
            report.requests += 1
            found = counts.setdefault((request.host or host, request.target), [0, 0])
            found[0] += 1
            found[1] += request.status in GONE
            if len(counts) >= BATCH_ADDRESSES:
                _flush(con, counts)
        report.lines += log.lines
        report.bad_lines += log.bad
    if not report.lines:
        raise UserError(f"{', '.join(logs)}: no line at all; name a log with requests")
    _flush(con, counts)
    con.execute(
        """
        CREATE OR REPLACE TEMP TABLE asked AS
        SELECT row_number() OVER () AS n, host, any_value(path) AS path, any_value(query) AS query, target,
               sum(requests)::BIGINT AS requests, sum(gone)::BIGINT AS gone FROM parts GROUP BY host, target
        """
    )


def _flush(con: duckdb.DuckDBPyConnection, counts: dict[tuple[str | None, str], list[int]]) -> None:
    parts = [target.partition("?") for _, target in counts]
    table = pa.table(
        {
            "host": pa.array([host for host, _ in counts], pa.string()),
            "target": pa.array([target for _, target in counts], pa.string()),
            "path": pa.array([canonical(path) for path, _, _ in parts], pa.string()),
            "query": pa.array([query for _, _, query in parts], pa.string()),
            "requests": pa.array([requests for requests, _ in counts.values()], pa.int64()),
            "gone": pa.array([gone for _, gone in counts.values()], pa.int64()),
        }
    )
    con.register("part", table)
    con.execute("INSERT INTO parts FROM part")
    con.unregister("part")
    counts.clear()


def _judge(con: duckdb.DuckDBPyConnection) -> None:
    """Creates `judged`: each asked address with what it is. The first line that fits decides:

    | the address | what |
    |---|---|
    | a row with a copy has it | copy |
    | each answer was 404 or 410 | gone |
    | a row that is pending, failed or skipped has it | that |
    | a row that left the list has it | removed |
    | its host is not one of the list's | other |
    | it ends as an address of the list does, or as images do | unlisted |
    | it has no ending and no final `/`, and lies in a folder of the list's addresses without an ending | unlisted |
    | any other | other |

    A row has an address if host (where the log has it), path and query are equal; the query does not count for a path
    whose rows have none.
    """
    images = ", ".join(f"'{ending}'" for ending in IMAGES)
    con.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE judged AS
        WITH paths AS (SELECT path, bool_or(query <> '') AS queried FROM old GROUP BY path),
        endings AS (SELECT DISTINCT {_EXTENSION.format(path="path")} AS ending FROM old),
        folders AS (
            SELECT DISTINCT regexp_extract(path, '^.*/') AS folder FROM old WHERE {_EXTENSION.format(path="path")} = ''
        ), ranked AS (
            SELECT *, list_position(['copy', 'pending', 'failed', 'skipped', 'removed'], what) AS rank FROM old
        ), matched AS (
            SELECT a.n, min(o.rank) AS rank, min_by({{'what': o.what, 'class': o.error_class}}, o.rank) AS best
            FROM asked a JOIN ranked o ON o.path = a.path AND (a.host IS NULL OR a.host = o.host)
            JOIN paths p ON p.path = a.path
            WHERE NOT p.queried OR o.query = a.query
                  OR (o.what = 'removed' AND o.query = left(sha256(a.query), 8))  -- the ledger has it redacted
            GROUP BY a.n, o.host
        ), hosts AS (  -- without a host in the log, the visitor may have asked any of them
            SELECT n, max_by(best, rank) AS best FROM matched GROUP BY n
        ), sites AS (
            SELECT host, mode(scheme || '://' || site_host) AS site FROM old GROUP BY host
        ), single AS (
            SELECT CASE WHEN count(*) = 1 THEN any_value(site) END AS site FROM sites
        ), facts AS (
            SELECT a.*, best.what AS known, {_EXTENSION.format(path="a.path")} AS ending,
                   a.host IS NULL OR s.host IS NOT NULL AS ours, best.class AS error_class,
                   coalesce(s.site, 'https://' || a.host, (SELECT site FROM single)) AS site
            FROM asked a LEFT JOIN hosts USING (n) LEFT JOIN sites s ON s.host = a.host
        )
        SELECT requests, target, site, error_class,
               CASE WHEN known = 'copy' THEN 'copy' WHEN gone = requests THEN 'gone' WHEN known IS NOT NULL THEN known
                    WHEN NOT ours THEN 'other'
                    WHEN ending IN ({images}) OR (ending <> '' AND ending IN (FROM endings)) THEN 'unlisted'
                    WHEN ending = '' AND path NOT LIKE '%/' AND regexp_extract(path, '^.*/') IN (FROM folders)
                    THEN 'unlisted' ELSE 'other' END AS what
        FROM facts
        """
    )


def _count(con: duckdb.DuckDBPyConnection, report: MissingReport, limit: int) -> None:
    found = con.execute(
        """
        SELECT what, CASE WHEN what IN ('failed', 'skipped') THEN error_class END, count(*), sum(requests)::BIGINT
        FROM judged GROUP BY 1, 2 ORDER BY 4 DESC, 1, 2
        """
    ).fetchall()
    for what, error_class, addresses, requests in found:
        report.addresses += addresses
        if what == "copy":
            report.copied, report.copied_requests = addresses, requests
        else:
            report.groups.append(MissingGroup(What(what), error_class, addresses, requests))
    report.groups.sort(key=lambda group: group.what not in LOST)
    lines = con.execute(
        """
        SELECT requests, what, CASE WHEN what IN ('failed', 'skipped') THEN error_class END,
               coalesce(site, '') || target
        FROM judged WHERE what <> 'copy' ORDER BY what IN ('gone', 'other'), requests DESC, 4 LIMIT ?
        """,
        [limit],
    ).fetchall()
    names = ("requests", "what", "error_class", "address")
    report.first = [dict(zip(names, (*line[:3], redact(line[3])), strict=True)) for line in lines]


def _write_list(con: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Writes the addresses in no list as a manifest, and returns how many. Raises UserError."""
    (rows, homeless) = con.execute(
        "SELECT count(*), count(*) FILTER (site IS NULL) FROM judged WHERE what = 'unlisted'"
    ).fetchall()[0]
    if homeless:
        raise UserError(
            f"the log does not name the host of addresses in no list ({homeless:,}), and the list has several hosts. "
            "Name it with --host"
        )
    if not rows:
        return 0
    found = con.execute("SELECT site || target FROM judged WHERE what = 'unlisted' ORDER BY requests DESC, 1")
    try:
        fd, name = tempfile.mkstemp(prefix=".ferry-list-", dir=path.absolute().parent)  # mode 0600
        try:
            with os.fdopen(fd, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["url"])
                writer.writerows(_batches(found))
            os.link(name, path)  # fails if the name exists
        finally:
            os.unlink(name)  # noqa: PTH108
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. Name a file that does not exist yet, in a folder that "
            "is writable"
        ) from None
    return int(rows)


def _batches(found: duckdb.DuckDBPyConnection) -> Iterator[tuple[str]]:
    while lines := found.fetchmany(10_000):
        yield from lines
