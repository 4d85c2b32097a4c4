"""What `copied` rests on: the store's digest, the bytes read back, or their number alone. Whole jobs to odd stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin
from tasks.engine.access import Access
from tasks.engine.job import Job
from tasks.engine.objects import Confirmed, ErrorClass, Outcome, Status
from tasks.engine.state import DirectoryState
from tests.engine.helpers import by_key, directory_state, make_job, run, write_list
from tests.servers.odd_s3 import Fault, OddS3

ROWS = 80


def reach(server: OddS3) -> Access:
    return Access(server.endpoint_url, server.region, keys=(server.access_key, server.secret_key, None))


def job_for(
    origin: Origin, server: OddS3, folder: Path, rows: int = ROWS, **given: Any
) -> tuple[Job, dict[str, bytes]]:
    """A job of small images from the origin to an empty bucket of the server, and what must arrive."""
    server.make_bucket("bucket")
    bodies = {f"{n}.jpg": make_image("jpeg", n) for n in range(ROWS)}
    lines = [[origin.add(f"/{key}", body)] for key, body in bodies.items()]
    write_list(folder / "list.csv", lines)
    return make_job(manifest=str(folder / "list.csv"), concurrency=4, **given), bodies


def moved(
    origin: Origin, server: OddS3, folder: Path, **given: Any
) -> tuple[dict[str, Outcome], set[str], DirectoryState]:
    """Runs the job; the outcomes by key, and the keys whose bytes at the store are not the source's."""
    job, bodies = job_for(origin, server, folder, **given)
    state = directory_state(folder)
    run(job, state, reach(server))
    there = server.stored("bucket", "p/")
    return by_key(state), {key for key, body in bodies.items() if there.get(f"p/{key}") != body}, state


@pytest.mark.parametrize("checksums", [False, True], ids=["", "checksums"])
@pytest.mark.parametrize("etags", ["md5", "upper", "kms", "opaque", "none"])
def test_no_altered_object_is_called_confirmed(etags: Any, checksums: bool, origin: Origin, tmp_path: Path) -> None:
    """A store alters three of ten bodies after the 30th and answers for what it holds: each row that is said to be
    confirmed by a digest or by reading has its bytes, and what is copied with other bytes is by size alone."""
    fault = Fault("alter", ("PutObject",), after=30, probability=0.3)
    with OddS3(etags=etags, checksums=checksums, faults=[fault], seed=5) as server:
        outcomes, wrong, _ = moved(origin, server, tmp_path)
    assert fault.struck > 5
    copied = {key: o.confirmed for key, o in outcomes.items() if o.status is Status.COPIED}
    failed = {key: o.error_class for key, o in outcomes.items() if o.status is Status.FAILED}
    assert len(copied) + len(failed) == ROWS
    by_size = {key for key, how in copied.items() if how is Confirmed.SIZE}
    assert wrong & set(copied) <= by_size
    assert set(failed.values()) <= {ErrorClass.UPLOAD_UNCONFIRMED}
    if checksums or etags in ("md5", "upper"):  # the store says what it holds
        assert not by_size
        assert wrong == set(failed)
    else:
        assert len(by_size) > 15
        assert Confirmed.DIGEST not in copied.values()
