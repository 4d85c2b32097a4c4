"""`ferry verify --sample` reads some objects, and says how many of how many."""

from __future__ import annotations

import re

import pytest

from demo.origin import Origin
from tests.flows.project import Project, serve

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_a_sample_says_what_it_read(project: Project, origin: Origin) -> None:
    """The message has N of M and the seed; the same seed draws the same objects and finds errors among them."""
    rows, _ = serve(origin, 20)
    project.manifest(rows)
    project.ferry("run", "job.yaml").expect(0)
    said = project.ferry("verify", "job.yaml", "--sample", "20%", "--json").expect(0).json["message"]
    found = re.fullmatch(
        r"all objects read match the ledger \(4 of 20 objects read, a sample with the seed (\d+)\): "
        r"4 by digest",
        said,
    )
    assert found, said
    client = project.client()
    for key in project.stored():
        client.put_object(Bucket=project.bucket, Key=project.prefix + key, Body=b"other")
    ended = project.ferry("verify", "job.yaml", "--sample", "4", "--seed", found[1], "--json").expect(1).json
    assert ended["message"] == (
        "4 of 4 objects do not match the ledger: 0 missing, 4 altered "
        f"(4 of 20 objects read, a sample with the seed {found[1]}). Compared: 4 by size alone. "
        "The next run repairs them"
    )
    assert len(ended["wrong"]) == 4
    project.ferry("run", "job.yaml").expect(0)
    assert sum(body != b"other" for body in project.stored().values()) == 4, (
        "what was not read is not known to be wrong"
    )


def test_what_cannot_be_sampled(project: Project) -> None:
    """An invalid sample, a sample of a listing, and a seed alone are refused before a read."""
    project.manifest([{"url": "http://127.0.0.1/x.jpg"}])
    for arguments, words in (
        (["--sample", "lots"], "neither a share"),
        (["--sample", "1%", "--list"], "a listing compares every object"),
        (["--seed", "3"], "a seed needs the size of its sample"),
    ):
        assert words in project.ferry("verify", "job.yaml", *arguments).expect(2).stderr
