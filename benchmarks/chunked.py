"""The cost of origins without Content-Length, and of slow origins beside a fast one: `python -m benchmarks.chunked`.

Three cases run in turn, so that a busy machine slows all of them: a host that sends lengths, one that does not, and
that one beside eight very slow hosts. The destination needs 100 ms for each response. All hosts are on loopback.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from demo.origin import Fault, Origin, Trouble
from ferry.core.errors import ChunkIncomplete
from ferry.storage.access import S3Access
from ferry.transfer.chunk import run_chunk
from tests.servers.odd_s3 import OddS3
from tests.support import helpers

SIZE_BYTES, ANSWER_S, GIVEN_UP_S = 77_000, 0.1, 120.0
SLOW_HOSTS, SLOW_ROWS, SLOW_BYTES, SLOW_S = 8, 8, 1_000_000, 600.0
KINDS = ("with a length", "chunked", "chunked, beside slow hosts")


def rate(kind: str, rows: int, folder: Path) -> float:
    """Returns the objects of the fast host per second."""
    with contextlib.ExitStack() as stack, OddS3(delay_s=ANSWER_S) as server:
        server.make_bucket("bucket")
        access = S3Access(server.endpoint_url, server.region, keys=(server.access_key, server.secret_key, None))
        listed: list[Sequence[str]] = []
        for host in range(SLOW_HOSTS if kind == KINDS[2] else 0):
            slow = stack.enter_context(Origin())
            fault = Fault(Trouble.SLOW, seconds=SLOW_S, chunked=True)
            listed += [[slow.add(f"/s{host}-{n}", bytes(SLOW_BYTES), fault=fault)] for n in range(SLOW_ROWS)]
        origin = stack.enter_context(Origin())
        fault_or_none = None if kind == KINDS[0] else Fault(Trouble.CHUNKED)
        listed += [[origin.add(f"/{n}", bytes(SIZE_BYTES), fault=fault_or_none)] for n in range(rows)]
        job = helpers.make_job(
            manifest=str(helpers.write_list(folder / "list.csv", listed)), checks="length", on_existing="overwrite",
            chunk_rows=10_000, destination={"uri": "s3://bucket/p/", "endpoint_url": server.endpoint_url},
        )  # fmt: skip
        state = helpers.directory_state(folder)
        (ref,) = helpers.plan(job, state, server=access).chunks
        with helpers.engine(job, state, access) as runtime:
            ends: list[float] = []

            def watch() -> None:
                limit = time.monotonic() + GIVEN_UP_S
                while len(server.objects["bucket"]) < rows and time.monotonic() < limit:
                    time.sleep(0.02)
                ends.append(time.monotonic())
                runtime.request_stop("measured")

            began = time.monotonic()
            watching = threading.Thread(target=watch)
            watching.start()
            with contextlib.suppress(ChunkIncomplete):
                run_chunk(runtime, ref)
            watching.join()
        return len(server.objects["bucket"]) / (ends[0] - began)


def main(rows: int = 400, rounds: int = 9) -> None:
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                rates[kind].append(rate(kind, rows, Path(folder)))
    medians = {kind: statistics.median(found) for kind, found in rates.items()}
    print(f"{rows:,} objects of {SIZE_BYTES:,} bytes, {rounds} rounds in turn, medians:")
    for kind, before in zip(KINDS, (KINDS[0], *KINDS), strict=False):
        share = medians[kind] / medians[before]
        print(f"| {kind} | {medians[kind]:,.0f} objects/s | {share:.2f} of {before} | {rates[kind]} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
