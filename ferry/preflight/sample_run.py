"""A sample's transfer by the run's own engine, to a prefix of its own, and what it showed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ferry.core import ChunkIncomplete, Row, Status
from ferry.http import Auth
from ferry.job import Job
from ferry.processes import idle_s
from ferry.state import (
    ChunkRef,
    Sample,
    State,
    connect,
    create_latest,
    hold_lease,
    host_sql,
    ledger_files,
    open_state,
    read_table,
    rows_of,
)
from ferry.storage import Access
from ferry.transfer import Runtime, run_chunk

SAMPLE_S = 25.0  # for the sample; rows that have no outcome by then are counted as such
MEASURE_S = 10.0  # for the rows that measure the rate
REFUSED_S = 20.0  # the same, if an origin refuses requests (429): its rate is found out by and by
TOGETHER_S = 45.0  # for both
SAMPLE_BYTES = 1_000_000_000  # the most that is read for the sample
MEASURE_BYTES = 256_000_000  # the same, to measure the rate
POLL_S = 0.1


class Engine(NamedTuple):
    """What the run's engine is given besides its job."""

    source: Access
    destination: Access
    headers: Mapping[str, str]
    auth: Auth | None = None


class RowEnd(NamedTuple):
    """The outcome of one row of the sample."""

    row: Row
    judged: bool  # of the sample; else it only measured the rate
    host: str  # as in Sample.hosts: "" for all but the largest
    status: Status
    key: str  # of the object, complete
    error_class: str | None
    status_code: int | None
    message: str | None
    source: str  # without secrets
    size: int
    md5: str | None
    content_type: str | None
    etag: str | None
    last_modified: str | None
    confirmed: str | None
    requests: int
    ended: float  # seconds since 1970
    lost_attributes: Sequence[str] | None


@dataclass(slots=True)
class SampleRun:
    """What the transfer of a sample showed."""

    ends: list[RowEnd] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)  # of the sample
    unfinished: dict[str, int] = field(default_factory=dict)  # host -> rows of the sample without an outcome
    silent: dict[str, str] = field(default_factory=dict)  # hosts that never answered -> what they do instead
    why: str = ""  # why rows have no outcome
    measured: bool = False  # whether more rows than the sample were begun
    since: float = 0.0  # the time whose rate counts, in seconds since 1970
    until: float = 0.0
    core: float = 0.0  # the share of a core that the event loop used in this time
    idle: float = 0.0  # cores that were idle in this time
    limited_by: str = ""  # the busiest host, and why it was sent no more requests at once


def run_sample(job: Job, uri: str, sample: Sample, folder: Path, engine: Engine, found: SampleRun) -> None:
    """Copies the sample to ``uri`` and fills ``found``, also before an error. ``folder`` has the sample's state.

    Objects stay at ``uri``. Raises Fatal and UserError.
    """
    state = open_state(str(folder), Access(), folder)
    own = job.model_copy(
        update={"destination": job.destination.model_copy(update={"uri": uri}), "state": str(folder), "mode": "full"}
    )
    with hold_lease(state, f"{job.name} (check)") as lease:
        runtime = Runtime(
            own, state, lease, 1, source_access=engine.source, destination_access=engine.destination,
            headers=engine.headers, auth=engine.auth, scheme=job.destination.uri.partition(":")[0],
        )  # fmt: skip
        try:
            _transfer(runtime, sample, found)
        finally:
            runtime.close()
            _read(state, sample, found)


def _transfer(runtime: Runtime, sample: Sample, found: SampleRun) -> None:
    began = time.time()
    for ref in sample.chunks:
        _run(runtime, ref, SAMPLE_S, found)
    left_s = TOGETHER_S - (time.time() - began)
    if sample.more and not runtime.stopping and left_s > 0:
        _run(runtime, sample.more[0], left_s, found, measuring=True)


def _run(runtime: Runtime, ref: ChunkRef, seconds: float, found: SampleRun, *, measuring: bool = False) -> None:
    """Runs one chunk for at most so many seconds, and notes the time whose rate counts."""
    runtime.progress.start(ref.rows)
    found.since, cpu_s, spare_s = time.time(), runtime.loop_cpu_s(), idle_s() or 0.0
    end, most = found.since + seconds, _bytes(runtime) + (MEASURE_BYTES if measuring else SAMPLE_BYTES)
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(run_chunk, runtime, ref)
        found.measured = measuring
        try:
            while not wait([work], POLL_S).done and time.time() < end and not runtime.stopping:
                if _bytes(runtime) >= most or (measuring and time.time() >= found.since + _measured_s(runtime)):
                    break
        finally:
            found.until = time.time()
            if not work.done():  # also after a Ctrl-C, since the thread is waited for
                runtime.request_stop("the check is over")
            found.silent |= runtime.dispatcher.silent
        span = max(POLL_S, found.until - found.since)
        found.core, found.idle = (runtime.loop_cpu_s() - cpu_s) / span, ((idle_s() or 0.0) - spare_s) / span
        busiest = max(runtime.hosts()[0], key=lambda host: host.requests, default=None)
        found.limited_by = f"{busiest.host}: {busiest.why}" if busiest is not None else ""
        try:
            work.result()
        except ChunkIncomplete as incomplete:
            if not measuring and not runtime.stopping:
                found.why = incomplete.why


def _measured_s(runtime: Runtime) -> float:
    return REFUSED_S if any(host.refused for host in runtime.hosts()[0]) else MEASURE_S


def _bytes(runtime: Runtime) -> int:
    return runtime.progress.snapshot().bytes


def _read(state: State, sample: Sample, found: SampleRun) -> None:
    """Reads the outcomes of the sample's rows, with their rows and hosts."""
    judged, more = ([str(state.local(ref.uri)) for ref in refs] for refs in (sample.chunks, sample.more))
    found.rows = [row for path in judged for row in rows_of(read_table(Path(path)))]
    rows = {row.row_id: row for path in more for row in rows_of(read_table(Path(path)))}
    rows |= {row.row_id: row for row in found.rows}
    with contextlib.closing(connect(state.spool_dir)) as con:
        con.execute("CREATE TABLE latest (row_id VARCHAR)")
        if ledger_files(state):
            con.execute("DROP TABLE latest")
            create_latest(con, state)
            ends = con.execute(
                f"""
                SELECT l.row_id, c.filename IN (SELECT unnest($judged)), {host_sql("c.source")}, l.status, l.key,
                       l.error_class, l.status_code, l.message, l.source, coalesce(l.size, 0), l.md5, l.content_type,
                       l.source_etag, l.source_last_modified, l.confirmed, l.requests, epoch(l.recorded_at),
                       l.lost_attributes
                FROM latest l JOIN read_parquet($paths, filename = true) c USING (row_id)
                """,
                {"judged": judged, "paths": judged + more},
            ).fetchall()
            for row_id, is_judged, host, status, *values in ends:
                name = host if host in sample.hosts else ""
                found.ends.append(RowEnd(rows[row_id], is_judged, name, Status(status), *values))
        if judged:
            without = "FROM read_parquet(?) ANTI JOIN latest USING (row_id) GROUP BY 1"
            left = con.execute(f"SELECT {host_sql('source')}, count(*) {without}", [judged]).fetchall()
            for host, count in left:
                name = host if host in sample.hosts else ""
                found.unfinished[name] = found.unfinished.get(name, 0) + count
