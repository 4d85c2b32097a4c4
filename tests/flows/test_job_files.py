"""What `ferry deploy jobs/*.yaml` makes of job files, without a server."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from ferry.core import UserError
from flows.deploying.job_files import WINDOW, Times, parse_times, read, stagger
from flows.deploying.prefect_yaml import POOL, PULL, Wanted, for_jobs


def write(folder: Path, name: str, /, **job: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(
        yaml.safe_dump({"name": name, "manifest": f"{name}.csv", "destination": f"s3://new/{name}/", **job})
    )
    return path


def made(*paths: Path, times: Times = Times()) -> dict[str, Wanted]:
    return {one.name: one for one in read(paths, "shop", POOL, PULL, times)}


def test_three_deployments_for_each_job(tmp_path: Path) -> None:
    """A migration, nightly delta runs and a weekly verification, which share one slot; no secret is resolved."""
    header = {"headers": {"X-Token": "env:OLD_TOKEN"}, "headers_for": ["x.example"]}
    found = made(write(tmp_path, "a", source=header), write(tmp_path, "b"))
    assert list(found) == [
        "migrate/a", "migrate/a-nightly", "verify/a-weekly", "migrate/b", "migrate/b-nightly", "verify/b-weekly",
    ]  # fmt: skip
    assert {one.slot for name, one in found.items() if "/a" in name} == {"ferry shop: a"}
    assert {one.slot for name, one in found.items() if "/b" in name} == {"ferry shop: b"}
    strategies = {name: one.fields["concurrency_options"]["collision_strategy"] for name, one in found.items()}
    assert strategies["migrate/a"] == strategies["verify/a-weekly"] == "ENQUEUE"
    assert strategies["migrate/a-nightly"] == "CANCEL_NEW"
    assert found["migrate/a"].fields["parameters"]["job"]["source"] == header
    assert found["migrate/a-nightly"].fields["parameters"]["job"]["mode"] == "delta"
    for one in found.values():
        assert "jobs:shop" in one.fields["tags"]
        assert all(schedule.active is False for schedule in one.schedules), "off until the operator switches it on"


def test_a_job_for_several_machines(tmp_path: Path) -> None:
    """It has a deployment for its shards too, of its own name, without a schedule, a limit or a job of its own."""
    found = made(write(tmp_path, "a", machines=3, state="s3://states/a"), write(tmp_path, "b"))
    assert [name for name in found if name.startswith("shard/")] == ["shard/a"]
    shard = found["shard/a"]
    assert (shard.slot, shard.schedules, shard.fields["parameters"], shard.job) == (None, [], {}, None)
    assert shard.fields["concurrency_options"] is None
    assert "jobs:shop" in shard.fields["tags"]


def test_times_are_staggered_and_stable(tmp_path: Path) -> None:
    """A job's minute depends on its name alone, and no minute has more than a few of 50 jobs."""
    minutes = Counter(stagger(f"shop{number}") for number in range(50))
    assert max(minutes.values()) <= 3
    assert max(minutes) - min(minutes) > WINDOW * 0.8
    quarters = Counter(minute // 15 for minute in minutes.elements())
    assert max(quarters.values()) <= 10
    paths = [write(tmp_path, name) for name in ("a", "b", "c")]
    alone, beside = made(paths[1]), made(*paths)
    assert alone["migrate/b-nightly"].schedules == beside["migrate/b-nightly"].schedules


@pytest.mark.parametrize(
    ("first", "timezone", "nightly", "weekly"),
    [
        (None, None, 60, 540),
        ("01:30", "Europe/Berlin", 90, 570),
        ("23:59", None, 1439, 479),
    ],
)
def test_hours(first: str | None, timezone: str | None, nightly: int, weekly: int, tmp_path: Path) -> None:
    """The window begins at --from, in --timezone, and the weekly run eight hours after the nightly one."""
    times = parse_times(first, timezone)
    assert times.given is (first is not None or timezone is not None)
    found = made(write(tmp_path, "a"), times=times)
    for name, begin, days in (("migrate/a-nightly", nightly, "*"), ("verify/a-weekly", weekly, "0")):
        (schedule,) = found[name].schedules
        minute = (begin + stagger("a")) % 1440
        cron = {"cron": f"{minute % 60} {minute // 60} * * {days}", "timezone": timezone or "UTC", "day_or": True}
        assert schedule.schedule.model_dump() == cron
        assert found[name].keeps_times is not times.given


@pytest.mark.parametrize(("first", "timezone"), [("25:00", None), ("1", None), (None, "Europe/Berln")])
def test_hours_that_are_none(first: str | None, timezone: str | None) -> None:
    """A time or a time zone that does not exist is refused with the option's name."""
    with pytest.raises(UserError, match=r"--from|--timezone"):
        parse_times(first, timezone)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"name": "a"}, {"name": "a"}, "the deployment `migrate/a`"),
        ({"name": "a"}, {"name": "a-nightly"}, "the deployment `migrate/a-nightly`"),
        ({"state": "s3://s/x/"}, {"state": "s3://s/x"}, "the state `s3://s/x`"),
        ({"state": ".ferry/y"}, {"name": "y"}, "the state `.ferry/y`"),
    ],
)
def test_what_two_jobs_may_not_share(one: dict[str, Any], other: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Two job files with one name, or one state, are refused with both files named."""
    paths = write(tmp_path, "one", **one), write(tmp_path, "other", **other)
    with pytest.raises(UserError) as raised:
        read(paths, "shop", POOL, PULL, Times())
    assert f"{paths[0]} and {paths[1]} both have {words}" in str(raised.value)


def test_all_problems_are_listed(tmp_path: Path) -> None:
    """Each file's problems are named, and the good file does not hide them."""
    good, typo = write(tmp_path, "good"), write(tmp_path, "typo", manifset="x")
    with pytest.raises(UserError) as raised:
        read([good, typo, tmp_path / "none.yaml"], "shop", POOL, PULL, Times())
    said = str(raised.value)
    assert said.startswith("nothing was changed:")
    assert "unknown key `manifset`" in said
    assert f"the job file {tmp_path / 'none.yaml'} does not exist" in said


def test_what_prefect_yaml_lends(tmp_path: Path) -> None:
    """Name, work pool and pull steps are those of prefect.yaml; without the file, Ferry's own."""
    path = tmp_path / "prefect.yaml"
    assert for_jobs(path) == (tmp_path.name, POOL, PULL)
    pool = {"name": "big", "job_variables": {"image": "ferry:1"}}
    path.write_text(yaml.safe_dump({"name": "shop", "pull": [], "deployments": [{"work_pool": pool}]}))
    assert for_jobs(path) == ("shop", pool, PULL)
    path.write_text(yaml.safe_dump({"name": "shop", "deployments": [{"work_pool": "big"}]}))
    with pytest.raises(UserError, match="first deployment"):
        for_jobs(path)
