"""SQL: a table of old and new addresses, for applications and their databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from ferry.cutover.redirects.pairs import Pairs, Sight
from ferry.cutover.redirects.target import Limit, Target

BATCH = 500  # rows of one INSERT: SQLite takes any number, MySQL statements of up to max_allowed_packet (16 MiB)
CONFIGURE = (
    "For PostgreSQL, MySQL, MariaDB and SQLite. The file is UTF-8 (MySQL: --default-character-set=utf8mb4).",
    "An index for look-ups, PostgreSQL and SQLite: CREATE INDEX ferry_redirects_old ON ferry_redirects (old_url);",
    "MySQL: CREATE INDEX ferry_redirects_old ON ferry_redirects (old_url(255));",
    "To replace addresses in a table of your own:",
    "    UPDATE products SET image_url =",
    "        (SELECT new_url FROM ferry_redirects WHERE old_url = products.image_url)",
    "    WHERE image_url IN (SELECT old_url FROM ferry_redirects);",
)


class Sql(Target):
    """The table `ferry_redirects`. Old addresses are as the list has them, since other tables have them so, too."""

    name = "sql"
    ending = ".sql"
    sight = Sight(longest=1 << 20, longest_new=1 << 20, as_written=True)
    limits = (Limit("MySQL takes statements of up to max_allowed_packet", "MySQL reference manual"),)

    def write(self, pairs: Pairs, out: BinaryIO) -> Sequence[str]:
        """Writes the table, and its rows in batches."""
        out.writelines(f"-- {line}".rstrip().encode() + b"\n" for line in (*pairs.heading(), *CONFIGURE))
        out.write(
            b"CREATE TABLE ferry_redirects (old_url TEXT NOT NULL, new_url TEXT NOT NULL, id TEXT, object_key TEXT"
        )
        end = b");\n"
        for number, values in enumerate(pairs.rows("path, new, id, key")):
            if number % BATCH == 0:
                out.write(end + b"INSERT INTO ferry_redirects (old_url, new_url, id, object_key) VALUES\n")
                end = b";\n"
            else:
                out.write(b",\n")
            out.write(f"({', '.join(map(literal, values))})".encode())
        out.write(end)
        return ()


def literal(value: str | None) -> str:
    r"""Returns a value as an SQL literal that PostgreSQL, MySQL and SQLite read alike.

    A backslash is an escape in MySQL alone. The first character of `'\\'` is a backslash in all of them, so it replaces
    a mark that the value does not hold. U+0000 cannot be in a text of PostgreSQL's, so it is left out.
    """
    if value is None:
        return "NULL"
    quoted = value.replace("\x00", "").replace("'", "''")
    if "\\" not in quoted:
        return f"'{quoted}'"
    mark = "|"
    while mark in quoted:
        mark += "~|"
    return f"REPLACE('{quoted.replace(chr(92), mark)}', '{mark}', SUBSTR('\\\\', 1, 1))"
