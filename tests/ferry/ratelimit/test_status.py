"""Tests of the hosts in `ferry status`, which a run writes and any process reads."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from demo.images import make_image
from demo.origin import Fault, Origin, Trouble
from demo.s3 import S3Server
from ferry.ratelimit import status
from ferry.ratelimit.host_snapshot import HostSnapshot
from ferry.ratelimit.status import busiest, read_hosts
from ferry.transfer.chunk import run_chunk
from flows.cli import terminal
from tests.ferry.transfer.test_chunk import write_chunk
from tests.support.helpers import access, directory_state, engine, make_job, make_row


def test_a_run_writes_the_state_of_each_host(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Origin and destination have their requests, refusals and a reason, and are shown as a table."""
    state = directory_state(tmp_path)
    rows = [make_row(n, origin.add(f"/{n}.jpg", make_image("jpeg", 1))) for n in range(20)]
    slow = Fault(Trouble.RATE_LIMITED, seconds=0, times=1)
    rows.append(make_row(99, origin.add("/99.jpg", make_image("jpeg", 1), fault=slow)))
    ref = write_chunk(state, rows)
    before = time.time()
    job = make_job(
        destination=f"s3://{bucket}/p/", retries={"attempts": 3, "backoff_s": 0.01, "max_backoff_s": 5},
        limits={"destination": {"concurrency": 2}},
    )  # fmt: skip
    with engine(job, state, access(s3)) as runtime:
        assert run_chunk(runtime, ref).counts == {"copied": 21}
    known = read_hosts(state)
    assert known is not None
    assert known.at >= before
    by_name = {host.host: host for host in known.hosts}
    assert set(by_name) == {origin.base_url.removeprefix("http://"), "destination"}
    assert by_name["destination"].limit == 2
    assert by_name["destination"].requests >= 21
    source = by_name[origin.base_url.removeprefix("http://")]
    assert (source.requests, source.refused) == (22, 1)
    assert all(host.why for host in known.hosts)
    assert 2 <= known.connections_opened <= 21 + 21 + 4  # they are reused: at most as many as were in flight
    with terminal.out.capture() as drawn:
        terminal.hosts(known, 3.0)
    assert "destination" in drawn.get()
    assert by_name["destination"].why in " ".join(drawn.get().split())


def test_the_file_has_the_busiest_hosts() -> None:
    """Of 10,000 hosts the file has the fifty busiest and the number of the others with requests."""
    all_of_them = [HostSnapshot(f"h{n}.example", 32, 0, 0, 0.0, "why", requests=n) for n in range(10_000)]
    known = busiest(1, all_of_them, 5.0)
    assert len(known.hosts) == status.MOST_HOSTS
    assert known.hosts[0].host == "h9999.example"
    assert known.omitted == 9_999 - status.MOST_HOSTS


@pytest.mark.parametrize("raw", [b"", b"{", b"{}", b'{"run_no": 1, "at": 1, "omitted": 0, "hosts": [{"new": 1}]}'])
def test_a_file_that_cannot_be_read_is_none(raw: bytes, tmp_path: Path) -> None:
    """A damaged file, or one of another version, does not stop `ferry status`."""
    state = directory_state(tmp_path)
    assert read_hosts(state) is None
    state.write(status.NAME, raw)
    assert read_hosts(state) is None
