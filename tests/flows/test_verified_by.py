"""`ferry verify` says how it compared objects, also with a store of unusual ETags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from demo.origin import Origin
from tests.flows.project import Project, fold, serve
from tests.servers.odd_s3 import OddS3, Stored

ROWS = 30


@pytest.fixture
def server() -> Iterator[OddS3]:
    """A store whose ETags do not depend on the bytes."""
    with OddS3(etags="opaque") as started:
        started.make_bucket("odd")
        yield started


def odd(project: Project, server: OddS3, **settings: Any) -> dict[str, str]:
    """Write the project's job for this store, and return the environment with its credentials."""
    project.job(destination={"uri": "s3://odd/new/", "endpoint_url": server.endpoint_url}, **settings)
    return {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}


@pytest.mark.slow
def test_what_is_altered_is_found_by_its_etag(project: Project, origin: Origin, server: OddS3) -> None:
    """`verify --list` finds rewritten objects by their ETag, and says how many had only their size compared."""
    env = odd(project, server, concurrency=2)
    rows, _ = serve(origin, ROWS)
    project.manifest(rows)
    ended = project.ferry("run", "job.yaml", env=env).expect(0)
    confirmed = [outcome["confirmed"] for outcome in project.ledger().values()]
    by_size = confirmed.count("size")
    assert set(confirmed) == {"read_back", "size"}
    assert f"{ROWS} of {ROWS} stored, {by_size} of them confirmed by size alone" in ended.text
    assert project.ferry("status", "job.yaml", "--json", env=env).json["by_size"] == {"copied": by_size}
    report = (project.state / "reports" / "run-000001" / "summary.md").read_text()
    assert f"| copied | uploaded, confirmed by size alone | {by_size} |" in report

    objects = server.objects["odd"]
    keys = sorted(objects)
    for key in keys[:2]:
        objects[key].etag = ""
    listed = project.ferry("verify", "job.yaml", "--list", env=env).expect(0)
    assert f"{ROWS} objects at the destination match the ledger: 28 by ETag, 2 by size alone" in listed.text
    read = project.ferry("verify", "job.yaml", env=env).expect(0)
    assert f"match the ledger: {ROWS} by digest" in read.text

    for key in keys[2:18]:
        data = objects[key].data
        server.put("odd", key, bytes([data[0] ^ 1]) + data[1:])
    listed = project.ferry("verify", "job.yaml", "--list", env=env).expect(1)
    assert "16 of 30 objects do not match the ledger: 0 missing, 16 altered" in listed.text
    assert "28 by ETag, 2 by size alone" in listed.text
    assert f'the object\'s ETag is "{objects[keys[2]].etag}", the ledger has' in listed.text


@pytest.mark.slow
def test_a_copy_that_the_server_made_is_compared_by_its_etag(project: Project, server: OddS3) -> None:
    """A copy without a digest in the ledger is compared by its ETag, and the message says so."""
    env = odd(project, server, manifest="s3://odd/old/", checks="none", source={"endpoint_url": server.endpoint_url})
    for n in range(10):
        server.put("odd", f"old/{n}.bin", b"object %d" % n)
    project.ferry("run", "job.yaml", env=env).expect(0)
    assert server.requests["CopyObject"] == 11, "one is the trial whether copies keep attributes"
    (evidence,) = {
        (outcome["confirmed"], outcome["sha256"], outcome["md5"]) for outcome in fold(project.state).values()
    }
    assert evidence == ("size", None, None)
    assert "match the ledger: 10 by ETag" in project.ferry("verify", "job.yaml", env=env).expect(0).text
    objects = server.objects["odd"]
    objects["new/3.bin"] = Stored(b"object x", "another", {})
    objects["new/4.bin"].etag = ""
    ended = project.ferry("verify", "job.yaml", env=env).expect(1)
    assert "0 missing, 1 altered" in ended.text
    assert "Compared: 9 by ETag, 1 by size alone" in ended.text
