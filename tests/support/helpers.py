"""Builders for the engine's tests: jobs, rows, outcomes, manifests, a plan, a running engine. All on real files."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

from demo.images import make_image
from demo.s3 import S3Server
from ferry.core.body import Body, BodyWriter
from ferry.core.errors import ChunkIncomplete
from ferry.core.memory_budget import SPOOL_OVER_BYTES
from ferry.core.records import ErrorClass, Outcome, Reason, Row, Status
from ferry.job.model import Job
from ferry.planning.options import Accesses, PlanOptions
from ferry.planning.planner import make_plan
from ferry.planning.rules import Mode
from ferry.ratelimit import Share
from ferry.reconcile import expected_rows
from ferry.state import ROWS_AT_ONCE, lease, ledger, parquet
from ferry.state.counts import Counts, count
from ferry.state.files import DirectoryState, State
from ferry.state.plan_file import ChunkRef, Planned
from ferry.state.queries import folded_ledger
from ferry.storage.access import Access, S3Access
from ferry.transfer.chunk import run_chunk
from ferry.transfer.runtime import Runtime
from tests.servers.odd_s3 import OddS3

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
QUICK = {"attempts": 1, "backoff_s": 0.01, "max_backoff_s": 2.0}
IMAGE = make_image("jpeg", 1)


def make_job(**given: Any) -> Job:
    """A job from a list of URLs; what matters to a test it says itself."""
    values: dict[str, Any] = {
        "name": "test",
        "manifest": "list.csv",
        "destination": "s3://bucket/p/",
        "source": {"allow_private_addresses": ["127.0.0.1"]},
        "retries": QUICK,
        **given,
    }
    return Job.model_validate(values)


def access(server: S3Server | OddS3) -> S3Access:
    return S3Access(server.endpoint_url, server.region, keys=(server.access_key, server.secret_key, None))


def read_access(s3: S3Server) -> Access:
    return S3Access(s3.endpoint_url, s3.region, keys=(s3.reader_key, s3.reader_secret, None))


def row_id(n: int | str) -> str:
    return hashlib.sha256(str(n).encode()).hexdigest()


def make_row(n: int | str, source: str | None = None, **given: Any) -> Row:
    return Row(row_id(n), source or f"https://img.example/{n}.jpg", given.pop("key", f"{n}.jpg"), **given)


def make_outcome(id_: str | int, status: Status = Status.COPIED, **given: Any) -> Outcome:
    """``id_``: a row's ID, or a number that stands for one."""
    values: dict[str, Any] = {
        "row_id": row_id(id_) if isinstance(id_, int) else id_, "source": f"https://img.example/{id_}.jpg",
        "key": f"{id_}.jpg", "id": None, "status": status, "error_class": None, "status_code": None, "message": None,
        "retryable": False, "reason": Reason.NEW, "attempt": 1, "requests": 1, "size": 10, "md5": None,
        "sha256": None, "content_type": None, "source_etag": None, "source_last_modified": None, "dest_etag": None,
        "started_at": NOW, "recorded_at": NOW, "run_no": 1, "chunk": "c",
        "settings_digest": make_job().settings_digest(), **given,
    }  # fmt: skip
    return Outcome(**values)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def make_body(data: bytes, spool: Path) -> Body:
    """As the origin client makes it: spooled past 8 MiB."""
    writer = BodyWriter(spool)
    if len(data) > SPOOL_OVER_BYTES:
        writer.spool()
    writer.write(data)
    return writer.finish()


def write_list(path: Path, lines: Sequence[Sequence[str]], header: Sequence[str] = ("url",)) -> Path:
    path.write_text("\n".join(",".join(line) for line in [header, *lines]) + "\n", encoding="utf-8")
    return path


def urls(*numbers: int, base: str = "https://img.example") -> list[list[str]]:
    return [[f"{base}/{n}.jpg"] for n in numbers]


def plan(
    job: Job,
    state: State,
    run_no: int = 1,
    mode: Mode = "plain",
    *,
    server: Access = Access(),
    source: Access | None = None,
    at_once: int = ROWS_AT_ONCE,
    **ask: Any,
) -> Planned:
    options = PlanOptions(run_no=run_no, mode=mode, **ask)
    return make_plan(job, state, Accesses(source or server, server), options, at_once)


def chunk_rows(state: State, ref: ChunkRef) -> list[Row]:
    return parquet.rows_of(parquet.read_table(state.local(ref.uri)))


def latest(state: State) -> dict[str, Outcome]:
    """The folded ledger by row."""
    con = ledger.connect(state.spool_dir)
    try:
        ledger.create_latest(con, state)
        reader: Any = con.sql("SELECT * FROM latest").to_arrow_reader(10_000)
        return {outcome.row_id: outcome for outcome in parquet.outcomes_of(reader.read_all())}
    finally:
        con.close()


def counts_of(state: State) -> Counts:
    with folded_ledger(state) as con:
        return count(con)


def by_key(state: State) -> dict[str, Outcome]:
    return {outcome.key: outcome for outcome in latest(state).values()}


def settle(
    state: State,
    ref: ChunkRef,
    run_no: int,
    status: Status = Status.COPIED,
    *,
    only: int | None = None,
    **given: Any,
) -> None:
    """Writes outcomes for a chunk's rows (the first ``only`` of them), as the chunk itself would."""
    outcomes = [
        make_outcome(
            row.row_id, status,
            **{"key": row.key, "attempt": row.attempt, "reason": row.reason, "run_no": run_no, "chunk": ref.digest,
               "recorded_at": datetime.now(UTC), **given},
        )
        for row in chunk_rows(state, ref)[:only]
    ]  # fmt: skip
    ledger.append_outcomes(state, outcomes, run_no, ref.digest, 0)


FAILED_404: dict[str, Any] = {"error_class": ErrorClass.NOT_FOUND, "status_code": 404}
FAILED_500: dict[str, Any] = {"error_class": ErrorClass.SERVER_ERROR, "status_code": 500, "retryable": True}


@contextlib.contextmanager
def engine(
    job: Job,
    state: State,
    server: Access,
    run_no: int = 1,
    limit: int | None = None,
    source: Access | None = None,
    share: int = 1,
    headers: Mapping[str, str] = {},
) -> Iterator[Runtime]:
    """A runtime under a lease, as a run has it."""
    with lease.hold_lease(state, "test") as held:
        runtime = Runtime(
            job, state, held, run_no,
            source_access=source or server, destination_access=server, headers=headers, limit=limit,
            share=Share(share, share),
        )  # fmt: skip
        try:
            yield runtime
        finally:
            runtime.close()


def run(
    job: Job,
    state: State,
    server: Access,
    run_no: int = 1,
    mode: Mode = "plain",
    source: Access | None = None,
    **ask: Any,
) -> Planned:
    """A whole run without Prefect: plan, each chunk once, fold. Chunks may stay incomplete."""
    planned = plan(job, state, run_no, mode, server=server, source=source, **ask)
    with engine(job, state, server, run_no, source=source) as runtime:
        for ref in planned.chunks:
            with contextlib.suppress(ChunkIncomplete):
                run_chunk(runtime, ref)
        ledger.compact_ledger(state, run_no)
        if not counts_of(state).pending:
            runtime.abandon_uploads()
    return planned


def directory_state(folder: Path, name: str = "state") -> DirectoryState:
    return DirectoryState(folder / name)


def stored_keys(s3: S3Server, bucket: str, prefix: str = "") -> set[str]:
    """The keys in a bucket, listed with boto3 and not with Ferry."""
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {item["Key"] for page in pages for item in page.get("Contents", [])}


def stored(s3: S3Server, bucket: str, prefix: str = "") -> dict[str, bytes]:
    """Everything in a bucket by key, read with boto3 and not with Ferry."""
    client = s3.client()
    keys = sorted(stored_keys(s3, bucket, prefix))
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def bindings(function: Callable[..., Any]) -> list[tuple[ModuleType, str]]:
    """Where a function has a name: in its own module, and in those that imported it; to replace it."""
    ours = [module for name, module in sys.modules.items() if name.split(".")[0] in ("ferry", "tasks", "flows")]
    return [(module, name) for module in ours for name, value in list(vars(module).items()) if value is function]


def expected_objects(state: State) -> list[Outcome]:
    """The outcomes of all rows that should have an object."""
    return [outcome for part in expected_rows(state, 5_000) for outcome in parquet.outcomes_of(part)]
