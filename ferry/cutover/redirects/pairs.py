"""Pairs of an old address and the new one, as a target of redirects sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from ferry.core import holds_secret, redact
from ferry.cutover.redirects.old_address import Asked, asked

if TYPE_CHECKING:
    import duckdb

BATCH_ROWS = 10_000
# Characters of a new address that some target interprets, or that no URI has (RFC 3986, section 2)
_ESCAPED = {ord(char): f"%{ord(char):02X}" for char in "\"$<>\\^`{|}'"}


_OLD = ("old address", "es")


class Pair(NamedTuple):
    """An old address and the new one. Both are printable ASCII without spaces and quotes."""

    host: str  # lower case, without port
    path: str  # percent-encoded but for unreserved characters and `/`
    query: str  # "": the redirect holds whatever the query is
    new: str
    twins: int | None = None  # the group of old addresses that the target does not tell apart


class Sight(NamedTuple):
    """How a target sees an address."""

    longest: int  # bytes of host, path and query together
    longest_new: int  # bytes of the new address
    longest_pair: int = 1 << 30  # bytes of both together
    merge_slashes: bool = True  # `//a` is `/a`
    ignore_case: bool = False  # `/A` is `/a`
    queries: bool = True  # it can compare the query
    as_written: bool = False  # it has whole addresses, as the list writes them: in `path`
    utf8: bool = False  # it can hold only paths that are UTF-8


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What an export leaves out. ``without_copy`` counts rows, the others count old addresses."""

    without_copy: int = 0
    unknown: int = 0  # not the address of a web server, or without a new one
    ambiguous: int = 0  # one old address, several new ones
    secret: int = 0  # only a query with a credential tells it from others
    served: int = 0  # it is a new address, too
    unfit: int = 0  # longer than the target allows, or with characters that it cannot hold
    examples: tuple[str, ...] = ()  # of ambiguous addresses

    def sentences(self) -> list[str]:
        """Returns a sentence for each reason that left something out, with what to do."""
        named = f", such as {', '.join(self.examples)}" if self.examples else ""
        reasons = (
            (self.without_copy, "row", "s", "without a copy. `ferry failures` says why"),
            (
                self.unknown,
                *_OLD,
                "not that of a web server, or the row has no ID for `{id}`. Set `source.public_url` to the address "
                "under which visitors asked for the object",
            ),
            (self.ambiguous, *_OLD, f"rows give it different new ones, or a row without a copy has it, too{named}"),
            (
                self.secret,
                *_OLD,
                "only a query with a credential tells it from others. --full includes it, with the credential",
            ),
            (self.served, *_OLD, "the new store serves this or another object there"),
            (self.unfit, *_OLD, "longer than the target allows, or with characters that it cannot hold, such as %00"),
        )
        return [
            f"{count:,} {noun}{'' if count == 1 else plural} left out: {why}"
            for count, noun, plural, why in reasons
            if count
        ]

    def counts(self) -> dict[str, int]:
        """Returns the counts for `--json`."""
        return {name: value for name, value in asdict(self).items() if name != "examples"}


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of one export, in the table `redirects` of a DuckDB connection. They are read in batches."""

    con: duckdb.DuckDBPyConnection
    job: str
    at: datetime
    left_out: LeftOut

    def __len__(self) -> int:
        return self.number("count(*)")

    def number(self, what: str, where: str = "true") -> int:
        """Returns the value of an SQL expression over the pairs, 0 for none."""
        ((value,),) = self.con.execute(f"SELECT coalesce({what}, 0) FROM redirects WHERE {where}").fetchall()
        return int(value)

    def rows(self, columns: str, where: str = "true") -> Iterator[tuple[Any, ...]]:
        """Yields columns of the pairs, each group of twins together, the others in the order of the manifest."""
        cursor = self.con.cursor()
        cursor.execute(f"SELECT {columns} FROM redirects WHERE {where} ORDER BY twins, row_no, path, query")
        while batch := cursor.fetchmany(BATCH_ROWS):
            yield from batch

    def select(self, where: str = "true") -> Iterator[Pair]:
        """Yields the pairs in the order of :meth:`rows`."""
        return map(Pair._make, self.rows("host, path, query, new, twins", where))

    def heading(self) -> list[str]:
        """Returns the first comment lines of a file: job, time, rows, and what is left out."""
        redirects = f"{len(self):,} {'redirect' if len(self) == 1 else 'redirects'}"
        return [
            f"{redirects} of the job {self.job}, by `ferry export` at {self.at:%Y-%m-%d %H:%M:%S} UTC",
            *self.left_out.sentences(),
        ]


def make_pairs(con: duckdb.DuckDBPyConnection, job: str, at: datetime, sight: Sight, *, full: bool) -> Pairs:
    """Creates `redirects` from `addresses` and `uncopied` (:mod:`ferry.cutover.addresses`), and counts the rest.

    | the old address | becomes |
    |---|---|
    | of a row with a copy | a redirect |
    | of rows with the same new address | one redirect |
    | of rows with different new addresses | ambiguous |
    | with a credential in its query, the path's only one | a redirect for the path, whatever the query is |
    | with a credential in its query, others have the path | secret; with ``full`` a redirect for this query |
    | without a query, others have the path and a query, and one of these becomes no redirect | ambiguous |
    | that is itself a new address, or its path without a query | served: a redirect would hide the object there |
    | longer than the target allows, or with %00 or other characters that it cannot hold | unfit |

    The column `twins` numbers, from 0, groups of old addresses that differ only in case, where the target ignores case.
    Rows without a copy, and new addresses, make others twins, too. It is NULL for all other addresses.
    """
    _create_asked(con, sight)
    query = "asked.query" if sight.queries else "''"
    secret = "secret AND NOT $full" if sight.queries else "false AND NOT $full"  # a path alone holds no credential
    alone = "false" if sight.as_written else f"count(DISTINCT {query}) OVER (PARTITION BY asked.host, asked.path) = 1"
    con.execute(
        f"""
        CREATE OR REPLACE TABLE seen AS
        WITH known AS (
            SELECT row_no, id, key, new, asked.host AS host, asked.path AS path, {query} AS query, {secret} AS hidden,
                   {alone} AS alone, asked.query AS asked_query
            FROM asked
        )
        SELECT host, path, CASE WHEN hidden AND alone THEN '' ELSE query END AS query, min(row_no) AS row_no,
               arg_min(id, row_no) AS id, arg_min(key, row_no) AS key, bool_or(hidden AND NOT alone) AS secret,
               min(new) AS new, count(DISTINCT new) > 1
               OR (count(DISTINCT asked_query) > 1 AND bool_or(new IS NULL)) AS ambiguous
        FROM known GROUP BY 1, 2, 3
        """,
        {"full": full},
    )
    con.execute(
        """
        CREATE OR REPLACE TABLE new AS
        SELECT DISTINCT asked.host AS host, asked.path AS path, asked.query AS query
        FROM (SELECT asked(new) AS asked FROM asked WHERE $as_written OR
              rtrim(lower(regexp_extract(new, '^https?://(\\[[^]]*\\]|[^/?#:]*)', 1)), '.') IN (SELECT host FROM seen))
        """,
        {"as_written": sight.as_written},
    )
    con.execute(
        f"""
        CREATE OR REPLACE TABLE judged AS
        WITH spelled AS (
            SELECT host, path, query FROM seen WHERE $ignore_case UNION SELECT * FROM new WHERE $ignore_case
        ), twin AS (
            SELECT host, lower(path) AS folded FROM spelled GROUP BY ALL
            HAVING min(path) <> max(path) OR count(DISTINCT query) <> count(DISTINCT lower(query))
        ), served AS (
            FROM new UNION SELECT host, path, '' FROM new  -- a redirect without a query is one for all queries
        )
        SELECT t.*, CASE WHEN w.host IS NOT NULL
            THEN dense_rank() OVER (ORDER BY w.host, w.folded, CASE WHEN w.host IS NOT NULL THEN lower(t.query) END) END
            AS twins, CASE
            WHEN t.new IS NULL THEN 'without_copy' WHEN ambiguous THEN 'ambiguous' WHEN secret THEN 'secret'
            WHEN n.host IS NOT NULL THEN 'served'
            WHEN t.path = ''
                 OR length(t.host) + length(t.path) + length(t.query) > {sight.longest}
                 OR length(t.new) > {sight.longest_new}
                 OR length(t.host) + length(t.path) + length(t.query) + length(t.new) > {sight.longest_pair}
                 OR contains(t.path, '%00')
                 OR ({sight.utf8} AND NOT is_utf8(t.path)) THEN 'unfit'
            ELSE 'redirect' END AS verdict
        FROM seen t LEFT JOIN served n ON t.host = n.host AND t.path = n.path AND t.query = n.query
        LEFT JOIN twin w ON t.host = w.host AND lower(t.path) = w.folded
        """,
        {"ignore_case": sight.ignore_case},
    )
    # A redirect without a query is one for all queries, also for one whose row has no redirect of its own
    con.execute(
        """
        UPDATE judged SET verdict = 'ambiguous' WHERE verdict = 'redirect' AND query = ''
        AND (host, path) IN (SELECT (host, path) FROM judged WHERE query <> '' AND verdict <> 'redirect')
        """
    )
    con.execute("DROP TABLE asked; DROP TABLE seen; DROP TABLE new")
    con.execute(
        """
        CREATE OR REPLACE TABLE redirects AS SELECT host, path, query, new, row_no, id, key,
               CASE WHEN twins IS NOT NULL THEN dense_rank() OVER (ORDER BY twins NULLS LAST) - 1 END AS twins
        FROM judged WHERE verdict = 'redirect'
        """
    )
    return Pairs(con, job, at, _left_out(con))


def _create_asked(con: duckdb.DuckDBPyConnection, sight: Sight) -> None:
    """Creates `asked`: all old addresses as the target sees them, with the new one of each row that has a copy."""

    def split(url: str) -> dict[str, str]:
        found = Asked("", url, "") if sight.as_written else asked(url, sight.merge_slashes)
        return (found or Asked(url, "", ""))._asdict()  # DuckDB refuses None of a function

    def is_secret(url: str) -> bool:
        return bool(holds_secret(url.replace("#", "?") if sight.as_written else "?" + url.partition("?")[2]))

    def is_utf8(path: str) -> bool:
        with contextlib.suppress(UnicodeDecodeError):
            return bool(unquote(path, errors="strict"))
        return False

    struct = con.struct_type(dict.fromkeys(Asked._fields, con.string_type()))
    con.create_function("asked", split, ["VARCHAR"], struct)
    con.create_function("is_secret", is_secret, ["VARCHAR"], "BOOLEAN")
    con.create_function("is_utf8", is_utf8, ["VARCHAR"], "BOOLEAN")
    con.create_function("encoded", lambda url: str(url).translate(_ESCAPED), ["VARCHAR"], "VARCHAR")
    con.execute(
        """
        CREATE OR REPLACE TABLE asked AS
        SELECT row_no, id, key, asked(old_url) AS asked, is_secret(old_url) AS secret, encoded(public_url) AS new
        FROM (SELECT row_no, id, key, old_url, public_url FROM addresses
              UNION ALL BY NAME SELECT old_url FROM uncopied) WHERE old_url IS NOT NULL
        """
    )


def _left_out(con: duckdb.DuckDBPyConnection) -> LeftOut:
    counted = dict(con.execute("SELECT verdict, count(*) FROM judged GROUP BY 1").fetchall())
    ((rows, unknown),) = con.execute(
        """
        SELECT (SELECT count(*) FROM manifest ANTI JOIN addresses USING (row_id)),
               (SELECT count(*) FROM addresses WHERE old_url IS NULL OR public_url IS NULL)
        """
    ).fetchall()
    ambiguous = "SELECT host || path FROM judged WHERE verdict = 'ambiguous' ORDER BY row_no LIMIT 3"
    examples = tuple(redact(name) if "://" in name else name for (name,) in con.execute(ambiguous).fetchall())
    reasons = {reason: counted.get(reason, 0) for reason in ("ambiguous", "secret", "served", "unfit")}
    return LeftOut(without_copy=rows, unknown=unknown, examples=examples, **reasons)
