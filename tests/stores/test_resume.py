"""A run that gets SIGKILL in an upload in parts, at each provider: the next one fetches and sends what is missing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Origin
from ferry.core.memory_budget import MIB, PART_BYTES
from ferry.core.records import Confirmed
from ferry.state.files import DirectoryState
from ferry.storage import store as store_module
from ferry.storage.azure.container import AzureContainer
from ferry.storage.gcs.bucket import Gcs
from ferry.storage.s3.bucket import S3
from tests.servers.stores import Azurite, GcpStorageEmulator, SeaweedFS, StoreServer
from tests.support import helpers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
DATA = random.Random(3).randbytes(4 * PART_BYTES + 5)
PARTS, SENT = 5, 3
ONE_PUT_BYTES = 9 * MIB
PROVIDERS: dict[str, Any] = {"s3": S3, "gs": Gcs, "az": AzureContainer}
# A run that sends one part after the other, and kills itself before the next one.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from ferry.core import memory_budget
from ferry.storage import store
from tests.faults import measured
from tests.stores.test_resume import ONE_PUT_BYTES, PROVIDERS, SENT
memory_budget.PARTS_AT_ONCE, store.ONE_PUT_BYTES = 1, ONE_PUT_BYTES
sent = 0

def dying(put_part):
    async def put(*given):
        global sent
        if sent == SENT:
            os.kill(os.getpid(), signal.SIGKILL)
        part = await put_part(*given)
        sent += 1
        return part
    return put

for provider in PROVIDERS.values():
    provider.put_part = dying(provider.put_part)
measured.main("move", json.loads(Path(sys.argv[1]).read_text()))
"""


@pytest.fixture(params=[SeaweedFS, GcpStorageEmulator, Azurite], ids=lambda each: each.name)
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    if (reason := request.param.missing()) is not None:
        pytest.skip(reason)
    with request.param() as running:
        yield running


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("changes", [False, True])
def test_killed_half_way(
    changes: bool,
    streamed: bool,
    server: StoreServer,
    origin: Origin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the source has changed, all of it is fetched and sent; the object is whole and confirmed by its digest.

    A body that the spool cannot hold is fetched again in any case.
    """
    monkeypatch.setattr(store_module, "ONE_PUT_BYTES", ONE_PUT_BYTES)
    server.make_bucket("bucket")
    origin.sends_ranges = True
    manifest = helpers.write_list(tmp_path / "list.csv", [[origin.add("/large.bin", DATA)]])
    job = helpers.make_job(
        manifest=str(manifest), checks="none", destination=server.uri("bucket"),
        spool_bytes=2 * PART_BYTES if streamed else "off",
    )  # fmt: skip
    state, access = DirectoryState(tmp_path / "state"), server.access()
    helpers.plan(job, state, server=access)
    setup = tmp_path / "setup.json"
    given = {"job": job.model_dump(mode="json"), "state": state.uri, "access": dataclasses.asdict(access)}
    setup.write_text(json.dumps(given))
    done = subprocess.run([sys.executable, "-c", KILLED, str(setup)], cwd=ROOT, timeout=240, check=False)
    assert done.returncode == -signal.SIGKILL
    assert server.keys("bucket") == []

    data = DATA
    if changes:
        data = random.Random(4).randbytes(len(DATA))
        origin.add("/large.bin", data)
    origin.bytes_sent.clear()
    sent: list[int] = []
    provider = PROVIDERS[server.scheme]
    put_part = provider.put_part

    async def counted(*args: Any) -> Any:
        sent.append(args[3])
        return await put_part(*args)

    monkeypatch.setattr(provider, "put_part", counted)
    helpers.run(job, state, access, 2)
    (outcome,) = helpers.latest(state).values()
    assert (outcome.status, outcome.confirmed) == ("copied", Confirmed.DIGEST)
    assert outcome.sha256 == hashlib.sha256(data).hexdigest()
    assert server.get("bucket", f"p/{outcome.key}") == data
    first = 0 if changes else SENT
    google = server.scheme == "gs"  # it is asked what it has with each part
    assert sorted(sent) == list(range(1 if streamed and google else first + 1, PARTS + 1))
    assert origin.bytes_sent["/large.bin"] == len(data) - (0 if streamed else first * PART_BYTES)
    assert (state.list("uploads"), server.open_uploads("bucket")) == ([], [])
