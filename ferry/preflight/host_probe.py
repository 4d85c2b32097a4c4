"""What the origins of a sample support, found out with a few requests to one object of each host."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ferry.core import ObjectError
from ferry.http import AddressFilter, NotModified, Origin
from ferry.job import Job
from ferry.preflight.sample_run import Engine, RowEnd

MOST_HOSTS = 10
PROBES_S = 10.0


@dataclass(slots=True)
class HostFacts:
    """What one origin supports."""

    host: str
    encrypted: bool  # https
    conditions: bool | None = None  # whether it answers 304 to a condition; None: its objects have no ETag and no date
    ranges: bool | None = None  # whether it sends a part of an object (RFC 9110, section 14); None: it did not say
    redirects: int = 0  # redirects on the way to the object


async def probe_hosts(job: Job, engine: Engine, copied: Sequence[RowEnd], folder: Path) -> list[HostFacts]:
    """Asks for one copied object of each host again: on condition, and for its first byte."""
    first: dict[str, RowEnd] = {}
    for end in copied:
        if end.host and end.row.source.lower().startswith("http"):
            first.setdefault(end.host, end)
    chosen = dict(list(first.items())[:MOST_HOSTS])
    found = [HostFacts(host, end.row.source.lower().startswith("https:")) for host, end in chosen.items()]
    filtered = AddressFilter(job.source.allow_private_addresses)
    origin = Origin(job.origin_options(engine.headers, engine.auth, engine.source.network), filtered, folder)
    try:
        async with asyncio.timeout(PROBES_S):
            await asyncio.gather(
                *(_probe(origin, facts, end) for facts, end in zip(found, chosen.values(), strict=True))
            )
    except TimeoutError:
        pass  # what is not known by now stays unknown
    finally:
        await origin.close()
    return found


async def _probe(origin: Origin, facts: HostFacts, end: RowEnd) -> None:
    """Fills the facts of one host. A question that fails leaves its answer unknown: the sample has the failures."""
    with contextlib.suppress(ObjectError):
        got = await origin.get_if(end.row.source, end.etag, end.last_modified)
        facts.redirects = got.requests - 1
        if end.etag or end.last_modified:
            facts.conditions = isinstance(got, NotModified)
        if not isinstance(got, NotModified):
            got.body.discard()
        facts.ranges = await origin.sends_ranges(end.row.source)
