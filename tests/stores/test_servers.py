"""The servers themselves: two of each run beside each other, do what is known of them, and end with their process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers.stores import (
    Azurite,
    AzuriteHttps,
    Ceph,
    FakeGcsServer,
    GcpStorageEmulator,
    MinioGateway,
    Moto,
    Rclone,
    StoreServer,
)
from tests.stores.odd_keys import ODD_KEYS, what_becomes_of

pytestmark = pytest.mark.slow

SERVERS = (Ceph, Moto, MinioGateway, Rclone, FakeGcsServer, GcpStorageEmulator, Azurite, AzuriteHttps)


def skip_if_missing(kind: type[StoreServer]) -> None:
    if (reason := kind.missing()) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind.name)
def test_two_run_beside_each_other(kind: type[StoreServer]) -> None:
    """Another client than Ferry writes, lists and reads at one of two, and the other has nothing of it."""
    skip_if_missing(kind)
    with kind() as one, kind() as other:
        for server in (one, other):
            server.make_bucket("bucket")
        one.put("bucket", "p/a b.jpg", b"an image")
        assert (one.keys("bucket"), other.keys("bucket")) == (["p/a b.jpg"], [])
        assert (one.get("bucket", "p/a b.jpg"), other.get("bucket", "p/a b.jpg")) == (b"an image", None)
        assert one.attributes("bucket", "p/a b.jpg").get("Content-Type")
        assert one.open_uploads("bucket") == []


@pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind.name)
def test_what_becomes_of_odd_keys_is_known(kind: type[StoreServer]) -> None:
    """Each odd key is kept, folded or refused as `known.py` has it of this server."""
    skip_if_missing(kind)
    with kind() as server:
        found = {}
        for number, (name, key) in enumerate(ODD_KEYS.items()):
            server.make_bucket(f"bucket-{number}")
            found[name] = what_becomes_of(server, f"bucket-{number}", f"p/{key}")
        assert {name: each for name, each in found.items() if each != "kept"} == dict(server.known.keys)


def test_a_server_ends_with_its_process(tmp_path: Path) -> None:
    """A killed test run leaves no server behind."""
    skip_if_missing(FakeGcsServer)
    script = (
        "import time; from tests.servers.stores import FakeGcsServer; server = FakeGcsServer(); server.start(); "
        "print(server._processes[0].pid, flush=True); time.sleep(600)"
    )
    started = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pid = int(started.stdout.readline())
    os.kill(pid, 0)
    started.kill()
    started.wait()
    started.stdout.close()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
