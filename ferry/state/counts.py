"""The ledger as counts: what `status` says, and the identity that must hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ferry.core import ErrorClass, FerryError

if TYPE_CHECKING:
    import duckdb

PLAIN_WORDS: dict[ErrorClass, str] = {
    ErrorClass.NOT_FOUND: "not there (404)",
    ErrorClass.GONE: "gone for good (410)",
    ErrorClass.FORBIDDEN: "access refused (401, 403)",
    ErrorClass.CLIENT_ERROR: "request not accepted (other 4xx)",
    ErrorClass.REDIRECT_LOOP: "redirects that do not end",
    ErrorClass.RATE_LIMITED: "asked to slow down, to the end (429)",
    ErrorClass.SERVER_ERROR: "origin in trouble (5xx)",
    ErrorClass.TIMEOUT: "no answer in time",
    ErrorClass.DNS: "host name does not resolve",
    ErrorClass.TLS: "TLS connection failed",
    ErrorClass.CONNECTION: "connection broken",
    ErrorClass.BLOCKED_ADDRESS: "private address, not allowed",
    ErrorClass.TRUNCATED: "body cut short",
    ErrorClass.NOT_IMAGE: "not an image",
    ErrorClass.BAD_ENCODING: "Content-Encoding that cannot be undone",
    ErrorClass.TOO_LARGE: "larger than max_bytes",
    ErrorClass.DIGEST_MISMATCH: "other bytes than the manifest says",
    ErrorClass.STORE_ERROR: "destination in trouble",
    ErrorClass.UPLOAD_UNCONFIRMED: "upload not confirmed",
    ErrorClass.EXISTS: "key taken at the destination",
    ErrorClass.BAD_URL: "no usable address in the row",
    ErrorClass.BAD_KEY: "no usable key",
    ErrorClass.BAD_LINE: "line that cannot be read",
    ErrorClass.KEY_COLLISION: "key that another row wants too",
    ErrorClass.DUPLICATE: "the same row again",
    ErrorClass.MISSING: "missing at the destination",
    ErrorClass.ALTERED: "altered at the destination",
    ErrorClass.INTERNAL: "unexpected error (please report it)",
}


@dataclass(slots=True)
class Counts:
    """Rows of the current manifest by their state. planned is the sum of the others, always."""

    planned: int = 0
    copied: int = 0
    unchanged: int = 0
    skipped: int = 0
    failed: int = 0
    pending: int = 0
    bytes: int = 0  # of copied rows
    duplicates: int = 0  # of the skipped
    retryable: int = 0  # of the failed
    by_size: dict[str, int] = field(default_factory=dict)  # of the copied and the unchanged: confirmed by size alone
    lesser_checks: int = 0  # of the copied and the unchanged: checked less than `checks` asks, as their message says
    classes: dict[str, int] = field(default_factory=dict)  # error class -> failed, skipped or pending rows

    def check(self) -> None:
        """Raises FerryError when a row is in no state, or in two: a bug, and the run must not pass for good."""
        total = self.copied + self.unchanged + self.skipped + self.failed + self.pending
        if total != self.planned:
            raise FerryError(
                f"the accounts do not add up: {self.planned:,} planned, but {total:,} = {self.copied:,} copied + "
                f"{self.unchanged:,} unchanged + {self.skipped:,} skipped + {self.failed:,} failed + "
                f"{self.pending:,} pending. Please report this; the ledger is in the state's outcomes/ and ledger/"
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def count(con: duckdb.DuckDBPyConnection, manifest: str) -> Counts:
    """Counts over the rows of the manifest; the table ``latest`` holds the folded ledger, ``waiting`` what is to be
    moved once more all the same.

    ``planned`` is counted apart from the states, so that :meth:`Counts.check` can fail.
    """
    counts = Counts()
    (counts.planned,) = con.execute("SELECT count(*) FROM read_parquet(?)", [manifest]).fetchall()[0]
    lines = con.execute(
        """
        SELECT coalesce(nullif(l.status, 'removed'), 'pending'), l.error_class, count(*), coalesce(sum(l.size), 0),
               count(*) FILTER (l.retryable), count(*) FILTER (l.confirmed = 'size'), count(l.message)
        FROM read_parquet(?) m LEFT JOIN (SELECT * FROM latest ANTI JOIN waiting USING (row_id)) l USING (row_id)
        GROUP BY 1, 2
        """,
        [manifest],
    ).fetchall()
    for status, error_class, rows, size, retryable, by_size, messages in lines:
        setattr(counts, status, getattr(counts, status) + rows)
        if status == "copied":
            counts.bytes += int(size)
        if status in ("copied", "unchanged"):
            counts.lesser_checks += messages
            if by_size:
                counts.by_size[status] = counts.by_size.get(status, 0) + by_size
        if status == "failed":
            counts.retryable += retryable
        if error_class is not None:
            counts.classes[error_class] = counts.classes.get(error_class, 0) + rows
        if error_class == ErrorClass.DUPLICATE:
            counts.duplicates += rows
    return counts
