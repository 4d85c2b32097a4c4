"""Tests of limits.json: what `ferry limits` writes into a directory or a bucket, and what a run reads of it."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.s3 import S3Server
from ferry.core.errors import UserError
from ferry.job.limits import Limits
from ferry.ratelimit import follower as followers
from ferry.ratelimit.effective import Override
from ferry.ratelimit.follower import LimitsFollower
from ferry.ratelimit.overrides import NAME, add_overrides, end_overrides, read_overrides
from ferry.state.bucket import open_state
from ferry.state.files import State
from tests.flows.project import wait_for
from tests.support.helpers import access, directory_state

RATE = Override("hosts.img.old.example", "requests_per_s", 20.0, 2000.0)
SIZE = Override("hosts.img.old.example", "bytes_per_s", 10_000_000)
OFF = Override("", "concurrency", "off", 3000.0)

Open = Callable[[], State]


@pytest.fixture(params=["directory", "bucket"])
def reopen(request: pytest.FixtureRequest, s3: S3Server, tmp_path: Path) -> Open:
    """Opens one state, as several commands do."""
    if request.param == "directory":
        return lambda: directory_state(tmp_path)
    bucket = f"test-{secrets.token_hex(6)}"
    s3.make_bucket(bucket)
    return lambda: open_state(f"s3://{bucket}/job", access(s3), tmp_path / "cache")


def test_overrides_are_kept(reopen: Open) -> None:
    """Each limit of each part has one override; one that has ended is removed with the next change."""
    assert read_overrides(reopen()) == []
    add_overrides(reopen(), [RATE, OFF], 1000.0)
    add_overrides(reopen(), [SIZE], 1000.0)
    assert read_overrides(reopen()) == [RATE, OFF, SIZE]
    other = Override(RATE.key, RATE.limit, 5.0)
    add_overrides(reopen(), [other], 1000.0)
    assert read_overrides(reopen()) == [OFF, SIZE, other]
    end_overrides(reopen(), "destination", 2999.0)
    assert read_overrides(reopen()) == [OFF, SIZE, other]
    end_overrides(reopen(), RATE.key, 2999.0)
    assert read_overrides(reopen()) == [OFF]
    add_overrides(reopen(), [SIZE], 3000.0)
    assert read_overrides(reopen()) == [SIZE]
    end_overrides(reopen(), None, 3000.0)
    assert read_overrides(reopen()) == []
    assert reopen().list("") == []


def test_commands_at_the_same_time(reopen: Open) -> None:
    """Of several changes at once none is lost."""
    new = [Override(f"hosts.h{n}.example", "concurrency", n + 1) for n in range(4)]
    threads = [threading.Thread(target=add_overrides, args=(reopen(), [one], 0.0)) for one in new]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_overrides(reopen()), key=lambda one: one.key) == new


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"{}", b'{"schema": "1", "overrides": []}', b'{"schema": 1, "overrides": [5]}',
        b'{"schema": 1, "overrides": [{"key": "", "limit": "speed", "value": 1, "until": null}]}',
        b'{"schema": 1, "overrides": [{"key": "", "limit": "concurrency", "value": 0, "until": null}]}',
        b'{"schema": 1, "overrides": [{"key": "", "limit": "concurrency", "value": 1, "until": "soon"}]}',
    ],
)  # fmt: skip
def test_a_damaged_file(raw: bytes, tmp_path: Path) -> None:
    """It is refused with the way out, which works."""
    state = directory_state(tmp_path)
    state.write(NAME, raw)
    for use in (lambda: read_overrides(state), lambda: add_overrides(state, [RATE], 0.0)):
        with pytest.raises(UserError, match=r"is damaged .* `ferry limits JOB --reset`"):
            use()
    assert state.read(NAME) == raw
    end_overrides(state, None, 0.0)
    assert read_overrides(state) == []


def test_a_file_of_a_newer_ferry(tmp_path: Path) -> None:
    state = directory_state(tmp_path)
    state.write(NAME, json.dumps({"schema": 2, "overrides": "other"}).encode())
    with pytest.raises(UserError, match="written by a newer Ferry; update this one"):
        read_overrides(state)


def test_a_run_follows(reopen: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are read again and again, each is told once, and a file that cannot be read changes nothing."""
    monkeypatch.setattr(followers, "READ_S", 0.01)
    monkeypatch.setattr(followers, "READ_S_IN_A_BUCKET", 0.01)
    now = 1000.0
    given = Limits.model_validate({"requests_per_s": 50, "timetable": [{"bytes_per_s": 5000}]})
    add_overrides(reopen(), [OFF], now)
    with LimitsFollower(reopen(), given, lambda: now) as follower:
        assert follower.limits == Limits(requests_per_s=50, bytes_per_s=5000)
        assert follower.update() == [
            "limits: 5,000 bytes/s for all origin hosts together, by the timetable (mon-sun 00:00-24:00)"
        ]
        assert follower.update() == []
        add_overrides(reopen(), [Override("", "requests_per_s", 20.0, 2000.0)], now)
        (said,) = wait_for("the change", follower.update)
        assert said.startswith("limits: 20 requests/s for all origin hosts together, by ferry limits until ")
        assert follower.limits.requests_per_s == 20
        reopen().write(NAME, b"{")
        (said,) = wait_for("the damage", follower.update)
        assert "is damaged" in said
        assert follower.update() == []
        assert follower.limits.requests_per_s == 20
        now = 2000.0
        assert follower.update() == ["limits: 50 requests/s for all origin hosts together, by the job"]
        end_overrides(reopen(), None, now)
        add_overrides(reopen(), [Override("destination", "concurrency", 3)], now)
        assert wait_for("another change", follower.update) == [
            "limits: 3 requests in flight for the destination, by ferry limits"
        ]
