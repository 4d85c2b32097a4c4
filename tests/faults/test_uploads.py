"""Uploads in parts that are broken off: nothing of them shows under a key, and no parts are left that nobody ends."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from demo.origin import Origin
from demo.s3 import S3Server
from ferry.reconcile.finish import finish_run
from ferry.state import ledger
from ferry.state.files import DirectoryState
from ferry.state.open_uploads import Uploads
from ferry.storage import store
from tests.faults.amount import some
from tests.faults.proxy import Bad, Proxy
from tests.support import helpers

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
ONE_PUT_BYTES = 9 * MIB  # as if it were 200
pytestmark = pytest.mark.slow


class World:
    """Two objects or three, of three parts each, a small one, and somebody else's upload in the same bucket."""

    def __init__(
        self, origin: Origin, s3: S3Server, bucket: str, folder: Path, proxy: Proxy, sizes: Sequence[int] = ()
    ) -> None:
        self.s3, self.bucket, self.folder = s3, bucket, folder
        rng = random.Random(7)
        sizes = sizes or [20 * MIB + n for n in range(some(2, 3))]
        self.bodies = {f"{n}ü .bin" if n == 1 else f"{n}.bin": rng.randbytes(size) for n, size in enumerate(sizes)}
        self.bodies["small.bin"] = b"small"
        rows = [[origin.add(f"/{n}", body), key] for n, (key, body) in enumerate(self.bodies.items())]
        self.access = dataclasses.replace(helpers.access(s3), endpoint_url=proxy.endpoint_url)
        self.job = helpers.make_job(
            manifest=str(helpers.write_list(folder / "list.csv", rows, ("url", "name"))), checks="none", key="{name}",
            on_existing="overwrite", destination={"uri": f"s3://{bucket}/p/", "endpoint_url": proxy.endpoint_url},
        )  # fmt: skip
        self.state = DirectoryState(folder / "state")
        self.others = s3.client().create_multipart_upload(Bucket=bucket, Key="p/others.bin")["UploadId"]

    def uploads(self) -> list[str]:
        """Keys of all uploads that nobody has ended, but for the one that is not ours."""
        found = self.s3.client().list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        assert self.others in [upload["UploadId"] for upload in found], "somebody else's upload is gone"
        return [upload["Key"] for upload in found if upload["UploadId"] != self.others]

    def check_visible(self) -> None:
        """What shows under a key is whole."""
        for key, body in helpers.stored(self.s3, self.bucket, "p/").items():
            assert body == self.bodies[key.removeprefix("p/")]

    def kill(self, proxy: Proxy, part: int) -> None:
        """One run, in a process of its own that gets SIGKILL once so many PUTs were answered."""
        helpers.plan(self.job, self.state, server=self.access)
        setup = self.folder / "setup.json"
        given = {
            "job": self.job.model_dump(mode="json"), "state": self.state.uri,
            "access": dataclasses.asdict(self.access), "one_put_bytes": ONE_PUT_BYTES,
        }  # fmt: skip
        setup.write_text(json.dumps(given))
        process = subprocess.Popen([sys.executable, "-m", "tests.faults.measured", "move", str(setup)], cwd=ROOT)
        proxy.on_put = lambda number: os.kill(process.pid, signal.SIGKILL) if number == part else None
        assert process.wait(120) == -signal.SIGKILL
        proxy.on_put = lambda _: None

    def end(self) -> None:
        """One plain run more."""
        run_no = ledger.last_run_no(self.state) + 1
        helpers.run(self.job, self.state, self.access, run_no)
        counts = finish_run(self.job, self.state, run_no)["counts"]
        assert counts["copied"] == counts["planned"] == len(self.bodies), counts
        assert helpers.stored(self.s3, self.bucket, "p/") == {f"p/{key}": body for key, body in self.bodies.items()}
        assert self.uploads() == []
        assert self.state.list("uploads") == []


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    with Proxy(s3.endpoint_url) as front:
        yield front


@pytest.fixture
def world(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> World:
    monkeypatch.setattr(store, "ONE_PUT_BYTES", ONE_PUT_BYTES)
    return World(origin, s3, bucket, tmp_path, proxy)


@pytest.mark.parametrize("part", random.Random(3).sample(range(2, some(5, 9)), some(1, 7)))
def test_killed_in_an_upload_in_parts(part: int, world: World, proxy: Proxy, tried: Callable[..., None]) -> None:
    """SIGKILL once so many requests were answered, a part among them. The next run of the job resumes or aborts what it
    left, and nothing else."""
    world.kill(proxy, part)
    left = world.uploads()
    assert left, "nothing was left: this shows nothing"
    world.check_visible()
    # Whether we may write is asked by beginning an upload: one that a killed run did not end goes, too.
    world.s3.client().create_multipart_upload(Bucket=world.bucket, Key="p/.ferry-preflight-0123")
    world.end()
    tried("SIGKILL in an upload in parts", len(left))


def test_a_killed_upload_goes_on(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGKILL with most parts there, the next run fetches and sends the rest, and the object is whole."""
    monkeypatch.setattr(store, "ONE_PUT_BYTES", ONE_PUT_BYTES)
    origin.sends_ranges = True
    world = World(origin, s3, bucket, tmp_path, proxy, [64 * MIB])
    world.kill(proxy, 6)
    left = world.uploads()
    assert left == ["p/0.bin"]
    origin.bytes_sent.clear()
    proxy.puts.clear()
    world.end()
    assert 0 < origin.bytes_sent["/0"] <= 56 * MIB
    assert 0 < proxy.puts[f"/{bucket}/p/0.bin"] < 8


def test_an_upload_whose_parts_fail_is_aborted_at_once(world: World, proxy: Proxy) -> None:
    """By the run itself: its rows fail, and no part stays."""
    proxy.misbehave(Bad.INTERNAL)
    helpers.run(world.job, world.state, world.access)
    assert helpers.stored(world.s3, world.bucket, "p/") == {}
    assert world.uploads() == []
    assert world.state.list("uploads") == []
    proxy.behave()
    world.end()


def test_notes(tmp_path: Path) -> None:
    """A key is known from before its upload begins until it ended; other buckets' are not ours to look for, and a note
    that was cut stops nothing."""
    state = DirectoryState(tmp_path / "state")
    notes = Uploads(state)
    notes.begin("b", "p/ü x.bin")
    notes.begin("other", "k")
    state.write("uploads/cut.json", b'{"bucket": "b"')
    assert notes.left("b") == ["p/ü x.bin"]
    notes.end("b", "p/ü x.bin")
    assert notes.left("b") == []
    assert notes.left("other") == ["k"]
