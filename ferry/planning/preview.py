"""What `ferry plan` shows of a manifest: where some rows would go, which hosts are asked, which of them are blocked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ferry.core import HOLDS, TIER, ErrorClass, ObjectError, carried, redact, split
from ferry.http import AddressFilter, Targets
from ferry.job import Job
from ferry.state import host_sql

if TYPE_CHECKING:
    import duckdb

EXAMPLES = 5
SHOWN_HOSTS = 10
JUDGED_HOSTS = 1_000


@dataclass(frozen=True, slots=True)
class Preview:
    """Examples and hosts of the usable rows of a manifest."""

    mappings: list[tuple[str, str]] = field(default_factory=list)  # source, and the URI of its object
    hosts: dict[str, int] = field(default_factory=dict)  # rows by host, those with most rows
    more_hosts: int = 0
    warnings: list[str] = field(default_factory=list)


def preview(con: duckdb.DuckDBPyConnection, job: Job) -> Preview:
    """Returns the preview of the relation `manifest`. Nothing is asked of a host, and no name is resolved."""
    (rows,) = con.execute("SELECT count(*) FROM manifest").fetchall()[0]
    numbers = sorted({1 + (rows - 1) * step // max(1, EXAMPLES - 1) for step in range(EXAMPLES)})  # spread evenly
    found = con.execute(
        "SELECT source, key FROM manifest WHERE row_no IN (SELECT unnest(?)) AND error_class IS NULL ORDER BY row_no",
        [numbers],
    ).fetchall()
    hosts = con.execute(
        f"SELECT {host_sql('source')} AS host, count(*), min(source), count(*) OVER (), count(alternatives) FROM "
        f"manifest WHERE error_class IS NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {JUDGED_HOSTS}"
    ).fetchall()
    targets = Targets(AddressFilter(job.source.allow_private_addresses))
    blocked = [(host, n, more, why) for host, n, example, _, more in hosts if (why := _why_blocked(targets, example))]
    return Preview(
        mappings=[(redact(source), job.destination.uri_of(key)) for source, key in found],
        hosts={host: n for host, n, *_ in hosts[:SHOWN_HOSTS]},
        more_hosts=max(0, hosts[0][3] - SHOWN_HOSTS) if hosts else 0,
        warnings=[
            f"{n:,} {'row' if n == 1 else 'rows'} of {host} would fail{_unless(more, n)}: {why}"
            for host, n, more, why in blocked
        ]
        + _lost_classes(con, job),
    )


def _lost_classes(con: duckdb.DuckDBPyConnection, job: Job) -> list[str]:
    """Returns how many objects would lose their storage class; a listing shows no other attribute."""
    rules, holds = job.destination.attribute_rules(), HOLDS[job.destination.uri.partition(":")[0]]
    listed = con.execute(
        "SELECT storage_class, count(*) FROM manifest WHERE error_class IS NULL AND storage_class IS NOT NULL "
        "GROUP BY 1"
    ).fetchall()
    lost = {name: n for name, n in listed if split(carried({TIER: name}, None, rules), holds)[1]}
    rows = sum(lost.values())
    if not lost:
        return []
    would = "would fail: they have" if job.on_lost_attribute == "fail" else "would lose their storage_class:"
    return [f"{rows:,} {'row' if rows == 1 else 'rows'} {would} {', '.join(sorted(lost))}, which does not exist there"]


def _unless(more: int, rows: int) -> str:
    """Returns what may keep rows from failing. ``more``: how many of them have another address."""
    some = f", {more:,} of them" if more < rows else ""
    return f"{some} unless another address has the object" if more else ""


def _why_blocked(targets: Targets, source: str) -> str:
    """Returns why no request is sent to an address that is written as a number, or to its port; "" if one is."""
    if not source.startswith(("http://", "https://")):
        return ""
    try:
        targets.read(source)
    except ObjectError as error:
        return error.message if error.error_class is ErrorClass.BLOCKED_ADDRESS else ""
    return ""
