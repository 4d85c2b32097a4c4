"""Work of the engine's in a process of its own, and how much memory it took at most.

`python -m tests.faults.measured plan|move|fold SETUP.json` prints a line of JSON. In the setup, `cores` is how many
DuckDB finds in the machine, and `memory` how much it may take; without them it is as it is.
"""

from __future__ import annotations

import contextlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from ferry.core.errors import ChunkIncomplete
from ferry.core.memory_budget import MIB
from ferry.job.model import Job
from ferry.state import ledger, parquet
from ferry.state.files import DirectoryState, State
from ferry.state.ledger import connection
from ferry.state.plan_file import read_plan
from ferry.storage import store
from ferry.storage.access import Access
from ferry.transfer.chunk import run_chunk
from tasks.workers.tuning import limit_malloc_arenas
from tests.support import helpers
from tests.support.memory import peak_bytes


def main(what: str, setup: dict[str, Any]) -> dict[str, Any]:
    limit_malloc_arenas()  # as each process of Ferry's does before it moves objects
    job, access = Job.model_validate(setup["job"]), Access.decode(setup["access"])
    state = DirectoryState(Path(setup["state"]))
    if "one_put_bytes" in setup:
        vars(store)["ONE_PUT_BYTES"] = setup["one_put_bytes"]
    if "cores" in setup:
        vars(duckdb)["connect"] = partial(duckdb.connect, config={"threads": setup["cores"]})
        vars(connection)["MEMORY"] = setup["memory"]
    if what == "fold":
        ledger.compact_ledger(state, 1)
        return {"peak_mb": peak_bytes() / MIB}
    if what == "plan":
        planned = helpers.plan(job, state, server=access)
        return {"rows": planned.rows, "chunks": len(planned.chunks), "peak_mb": peak_bytes() / MIB}
    plan = read_plan(state)
    assert plan is not None
    with helpers.engine(job, state, access) as runtime:
        for ref in plan.chunks:
            with contextlib.suppress(ChunkIncomplete):
                run_chunk(runtime, ref)
    return {"peak_mb": peak_bytes() / MIB}


def write_outcomes(state: State, rows: int, files: int) -> None:
    """Outcomes of as many rows as a run leaves that copied them all, in so many files."""
    per_file = -(-rows // files)
    with duckdb.connect() as con:
        for part in range(files):
            relation = con.sql(
                """
                SELECT sha256(n::VARCHAR) AS row_id, 'https://img.example/products/' || n || '-front.jpg' AS source,
                       'products/' || n || '-front.jpg' AS key, n::VARCHAR AS id, 'copied' AS status, 'new' AS reason,
                       1 AS attempt, 1 AS requests, 40000 AS size, md5(n::VARCHAR) AS md5,
                       sha256('body' || n) AS sha256, 'image/jpeg' AS content_type, md5(n::VARCHAR) AS source_etag,
                       md5(n::VARCHAR) AS dest_etag, now() AS recorded_at, 1 AS run_no, 'c' AS chunk, 'h' AS how
                FROM range($start, $end) numbers(n)
                """,
                params={"start": part * per_file, "end": min(rows, (part + 1) * per_file)},
            )
            table = parquet.add_missing_columns(relation.to_arrow_table(), parquet.OUTCOME_SCHEMA)
            outcomes = table.select(parquet.OUTCOME_SCHEMA.names).cast(parquet.OUTCOME_SCHEMA)
            ledger.write_outcomes(state, parquet.to_bytes(outcomes), 1, "c", part)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))))
