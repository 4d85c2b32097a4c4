"""The state's disk is full or turns read-only: the run stops and says so, and the next one ends the job."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin
from demo.s3 import S3Server
from tests.faults.amount import some
from tests.support import helpers

ROWS = 60
ENOUGH_KB = 100  # a run's state takes more than this
ROOT = Path(__file__).parents[2]
UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False).returncode
        != 0,
        reason="needs a mount namespace of its own: run as root, or where user namespaces are allowed",
    ),
]


def faults() -> list[dict[str, Any]]:
    rng = random.Random(5)
    full = [{"fault": "full", "left_kb": rng.randint(4, 150)} for _ in range(some(2, 20))]
    return full + [{"fault": "read-only", "after_files": rng.randint(0, 3)} for _ in range(some(1, 10))]


@pytest.mark.parametrize("fault", faults(), ids=lambda fault: "-".join(map(str, fault.values())))
def test_the_disk_of_the_state(
    fault: dict[str, Any], origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, tried: Callable[..., None]
) -> None:
    """The run ends early with a Fatal that names the disk; afterwards one plain run moves the rest, and that alone."""
    bodies = {f"i/{n}.jpg": make_image("jpeg", n, 30, 20) for n in range(ROWS)}
    origin.latency_s = 0.005
    listed = helpers.write_list(tmp_path / "list.csv", [[origin.add(f"/{key}", body)] for key, body in bodies.items()])
    job = helpers.make_job(
        manifest=str(listed), chunk_rows=20, concurrency=4, on_existing="overwrite",
        destination={"uri": f"s3://{bucket}/p/", "endpoint_url": s3.endpoint_url},
    )  # fmt: skip
    (tmp_path / "disk").mkdir()
    given = {
        **fault, "job": job.model_dump(mode="json"), "access": asdict(helpers.access(s3)),
        "disk": str(tmp_path / "disk"),
    }  # fmt: skip
    (tmp_path / "setup.json").write_text(json.dumps(given))
    process = subprocess.Popen(
        [*UNSHARE, sys.executable, "-m", "tests.faults.small_disk", str(tmp_path / "setup.json")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        before = dict(origin.requests)
        out, _ = process.communicate("go on\n", timeout=60)
    finally:
        process.kill()
        process.wait()
    words = "no space left" if fault["fault"] == "full" else "read-only"
    if first["said"] or fault.get("left_kb", 0) < ENOUGH_KB:
        assert words in first["said"].lower(), first["said"]
    last = json.loads(out)
    assert not last["unfinished"], "files of the state that were begun stay"
    assert last["counts"]["copied"] == last["counts"]["planned"] == ROWS
    again = [key for key in first["recorded"] if origin.requests[f"/{key}"] != before[f"/{key}"]]
    assert not again, "recorded rows were fetched again"
    assert helpers.stored(s3, bucket, "p/") == {f"p/{key}": body for key, body in bodies.items()}
    tried(f"state's disk {fault['fault']}")
