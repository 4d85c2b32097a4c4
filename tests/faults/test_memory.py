"""A long list and large objects stay within the memory that docs/explanation/concurrency.md states.

Measured in processes of their own.
"""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo.origin import Origin, Trouble
from demo.s3 import S3Server
from ferry.core.records import Status
from ferry.job.model import Job
from ferry.state import ledger
from ferry.state.files import DirectoryState
from ferry.state.ledger import connection
from ferry.storage.access import Access
from tests.faults.amount import LONG, some
from tests.faults.measured import write_outcomes
from tests.faults.proxy import Bad, Proxy
from tests.support import helpers

ROOT = Path(__file__).parents[2]
PLAN_MB = 1300 if LONG else 500  # of planning a million rows, of 250,000 at most
MEMORY = connection.MEMORY if LONG else "150MB"  # DuckDB's part of it
MOVE_MB = 400
MIB = 1024 * 1024
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the high-water mark is Linux's"),
]


def measured(what: str, job: Job, access: Access, folder: Path, **machine: Any) -> Any:
    """``machine``: cores and memory, as :mod:`tests.faults.measured` has them."""
    setup = folder / "setup.json"
    given = {
        "job": job.model_dump(mode="json"), "state": str(folder / "state"), "access": dataclasses.asdict(access),
        **machine,
    }  # fmt: skip
    setup.write_text(json.dumps(given))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.measured", what, str(setup)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=800, check=True,
    )  # fmt: skip
    return json.loads(ended.stdout)


def test_a_plan_of_a_million_rows(tmp_path: Path, tried: Callable[..., None]) -> None:
    """Planned anew, and planned again over a ledger that has nine of ten rows."""
    rows = some(20_000, 1_000_000)
    job = long_list(tmp_path, rows)
    first = measured("plan", job, Access(), tmp_path)
    assert first["rows"] == rows
    state = DirectoryState(tmp_path / "state")
    chunks = state.list("chunks")
    for number, name in enumerate(chunks[: len(chunks) * 9 // 10]):
        done = [helpers.make_outcome(row.row_id, Status.COPIED, key=row.key) for row in helpers.chunk_rows(
            state, _Ref(name))]  # type: ignore[arg-type]  # fmt: skip
        ledger.append_outcomes(state, done, 1, name.removeprefix("chunks/"), number)
    again = measured("plan", job, Access(), tmp_path)
    assert again["rows"] == rows
    peak = max(first["peak_mb"], again["peak_mb"])
    print(f"planning {rows:,} rows: {first['peak_mb']:.0f} MB, again {again['peak_mb']:.0f} MB")
    assert peak <= PLAN_MB
    tried(f"plan of {rows:,} rows within {PLAN_MB:,} MB (took {peak:,.0f})")


def long_list(folder: Path, rows: int) -> Job:
    with (folder / "list.csv").open("w") as file:
        file.write("id,url\n")
        file.writelines(f"{n},https://img{n % 7}.example/products/{n % 1000}/{n:09d}-front.jpg\n" for n in range(rows))
    return helpers.make_job(
        manifest=str(folder / "list.csv"), destination=f"file://{folder}/out/", on_existing="overwrite"
    )


# Each thread of DuckDB's holds buffers of its own: with 16 or 64 of them neither a plan of a million rows nor a fold of
# ten million outcomes fits into its memory; a quarter of the rows not into 150 MB.
MACHINES = [(rows, cores) for rows in (1_000_000, 10_000_000) for cores in (16, 64)] if LONG else [(250_000, 64)]


@pytest.mark.parametrize(("rows", "cores"), MACHINES)
def test_planning_on_a_machine_of_many_cores(rows: int, cores: int, tmp_path: Path, tried: Callable[..., None]) -> None:
    """A plan fits into its memory however many cores there are."""
    planned = measured("plan", long_list(tmp_path, rows), Access(), tmp_path, cores=cores, memory=MEMORY)
    assert planned["rows"] == rows
    assert planned["peak_mb"] <= PLAN_MB
    print(f"planning {rows:,} rows on {cores} cores: {planned['peak_mb']:.0f} MB")
    tried(f"plan of {rows:,} rows on {cores} cores within {PLAN_MB:,} MB (took {planned['peak_mb']:,.0f})")


@pytest.mark.parametrize(("rows", "cores"), MACHINES)
def test_folding_on_a_machine_of_many_cores(rows: int, cores: int, tmp_path: Path, tried: Callable[..., None]) -> None:
    """So does the fold of a run that moved everything."""
    state = DirectoryState(tmp_path / "state")
    write_outcomes(state, rows, min(500, rows // 10_000))
    folded = measured("fold", helpers.make_job(), Access(), tmp_path, cores=cores, memory=MEMORY)
    (name,) = ledger.ledger_files(state)
    assert pq.ParquetFile(state.local(name)).metadata.num_rows == rows
    assert folded["peak_mb"] <= PLAN_MB
    print(f"folding {rows:,} outcomes on {cores} cores: {folded['peak_mb']:.0f} MB")
    tried(f"fold of {rows:,} outcomes on {cores} cores within {PLAN_MB:,} MB (took {folded['peak_mb']:,.0f})")


class _Ref:
    def __init__(self, uri: str) -> None:
        self.uri = uri


def test_a_thousand_large_objects(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, tried: Callable[..., None]
) -> None:
    """Of 5 to 24 MiB, as many at once as the engine likes; and some of 60. Every second one has no Content-Length. A
    store that takes and forgets them, since what is measured is the one who moves them."""
    count = some(20, 1000)
    rng = random.Random(9)
    bodies = [rng.randbytes(size * MIB + 17) for size in (5, 9, 16, 24, 60)]
    faults = (None, Trouble.CHUNKED)
    rows = [
        [origin.add(f"/{n}.bin", bodies[n % (len(bodies) - (n % 20 > 0))], fault=faults[n % 2])] for n in range(count)
    ]
    with Proxy(s3.endpoint_url) as sink:
        sink.misbehave(Bad.LOST_QUIETLY)
        access = dataclasses.replace(helpers.access(s3), endpoint_url=sink.endpoint_url)
        job = helpers.make_job(
            manifest=str(helpers.write_list(tmp_path / "list.csv", rows)), checks="none", on_existing="overwrite",
            destination={"uri": f"s3://{bucket}/", "endpoint_url": sink.endpoint_url}, max_bytes=200 * MIB,
        )  # fmt: skip
        measured("plan", job, access, tmp_path)
        moved = measured("move", job, access, tmp_path)
    outcomes = helpers.latest(DirectoryState(tmp_path / "state")).values()
    assert [outcome.status for outcome in outcomes] == [Status.COPIED] * count
    print(f"moving {count:,} large objects: {moved['peak_mb']:.0f} MB")
    assert moved["peak_mb"] <= MOVE_MB
    assert not list((tmp_path / "state" / "spool").glob("body-*"))
    tried(f"{count:,} large objects within {MOVE_MB} MB (took {moved['peak_mb']:,.0f})")
