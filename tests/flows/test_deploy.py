"""`ferry deploy` applies prefect.yaml to the server, and keeps what the operator has switched."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.server.schemas.schedules import CronSchedule as ServersCronSchedule
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from demo.ports import free_ports
from demo.prefect_api import ask
from ferry.core.errors import UserError
from ferry.job.model import Job
from flows.deploying import prefect_yaml
from flows.deploying.deployments import block_of, match
from flows.migrate import migrate
from flows.server.api_address import VERSION, version_problem
from tests.flows.deployed import Deployed, make_pool
from tests.flows.project import Cli, Prefect

pytestmark = pytest.mark.slow

SECRET = "not-to-be-shown"
MINE = ["migrate/prod", "migrate/nightly", "verify/weekly", "shard/products"]
ALL = {
    "work pool pool": "created",
    **{f"deployment {name}": "created" for name in MINE},
    "schedule migrate/nightly nightly": "created",
    "schedule verify/weekly weekly": "created",
}


@pytest.fixture
def deployed(cli: Cli, tmp_path: Path) -> Deployed:
    return Deployed(tmp_path, cli)


def deployments(prefect_api: Prefect, deployed: Deployed) -> dict[str, dict[str, Any]]:
    """Returns the test's deployments at the server."""
    found = prefect_api.post("deployments/filter", {"deployments": {"name": {"like_": deployed.mark}}})
    return {one["name"].removesuffix(f"-{deployed.mark}"): one for one in found}


def test_it_makes_what_is_missing_and_then_nothing(deployed: Deployed, prefect_api: Prefect) -> None:
    """A dry run only prints the changes, a deploy makes them, and a second deploy makes none."""
    assert deployed.changes("--dry-run") == ALL
    assert deployments(prefect_api, deployed) == {}
    assert deployed.changes() == ALL
    made = deployments(prefect_api, deployed)
    assert set(made) == {"prod", "nightly", "weekly", "products"}
    for one in made.values():
        assert "ferry" in one["tags"]
        assert one["description"]
        is_shard = one is made["products"]  # of these, several run at once
        assert (one["global_concurrency_limit"] is None) is is_shard
        assert is_shard or one["global_concurrency_limit"]["limit"] == 1
        assert one["work_pool_name"] == deployed.pool
        assert all(schedule["active"] is False for schedule in one["schedules"]), "off until somebody switches it on"
    assert made["prod"]["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert made["nightly"]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert made["nightly"]["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    assert made["nightly"]["parameters"]["job"]["mode"] == "delta"
    before = {name: one["updated"] for name, one in made.items()}
    said = deployed.deploy().expect(0).stdout
    assert "nothing changed: the server matches prefect.yaml" in said
    assert f"prefect worker start --pool {deployed.pool}" in said
    assert {name: one["updated"] for name, one in deployments(prefect_api, deployed).items()} == before


def test_on_and_off_are_the_operators(deployed: Deployed, prefect_api: Prefect) -> None:
    """A schedule that is on stays on, and a deploy without changes deletes no scheduled run."""
    deployed.deploy().expect(0)
    nightly = deployments(prefect_api, deployed)["nightly"]
    (schedule,) = nightly["schedules"]
    switch = f"deployments/{nightly['id']}/schedules/{schedule['id']}"
    ask(prefect_api.url, switch, {"active": True}, method="PATCH")

    def planned() -> set[str]:
        asked = {"deployments": {"id": {"any_": [nightly["id"]]}}}
        return {run["id"] for run in prefect_api.post("flow_runs/filter", asked)}

    prefect_api.post(f"deployments/{nightly['id']}/schedule", {})  # what the scheduler does every minute
    runs = planned()
    assert runs, "a schedule that is on plans runs"
    assert set(deployed.changes().values()) == {"unchanged"}
    assert runs <= planned()
    (schedule,) = deployments(prefect_api, deployed)["nightly"]["schedules"]
    assert schedule["active"] is True

    deployed.entry("nightly")["schedules"][0]["cron"] = "30 4 * * *"
    deployed.entry("prod")["description"] = "another one"
    deployed.write()
    would = deployed.changes("--dry-run")
    assert {name for name, what in would.items() if what != "unchanged"} == {
        "schedule migrate/nightly nightly",
        "deployment migrate/prod",
    }
    assert deployed.changes() == would
    made = deployments(prefect_api, deployed)
    (schedule,) = made["nightly"]["schedules"]
    assert (schedule["active"], schedule["schedule"]["cron"]) == (True, "30 4 * * *")
    assert made["prod"]["description"] == "another one"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cron": "30 1 * * *", "timezone": "Europe/Berlin", "day_or": False},
         CronSchedule(cron="30 1 * * *", timezone="Europe/Berlin", day_or=False)),
        ({"interval": 3600, "timezone": None}, IntervalSchedule(interval=timedelta(hours=1))),
        ({"interval": "PT1H", "anchor_date": "2026-01-01T00:00:00Z"},
         IntervalSchedule(interval=timedelta(hours=1), anchor_date="2026-01-01T00:00:00Z")),
        ({"rrule": "DTSTART:20260101T000000\nFREQ=DAILY", "timezone": "UTC"},
         RRuleSchedule(rrule="DTSTART:20260101T000000\nFREQ=DAILY", timezone="UTC")),
    ],
)  # fmt: skip
def test_kinds_of_schedules(given: dict[str, Any], expected: Any) -> None:
    """Each kind of schedule is read, without the keys that belong to the deployment."""
    made = prefect_yaml.schedule_of({**given, "slug": "s", "active": False, "parameters": {"retry_failed": True}})
    assert (made.slug, made.active, made.parameters) == ("s", False, {"retry_failed": True})
    assert made.schedule.model_dump(exclude={"anchor_date"}) == expected.model_dump(exclude={"anchor_date"})
    if "anchor_date" in given:
        assert made.schedule == expected


@pytest.mark.parametrize("given", [{}, {"cron": "0 1 * * *", "interval": 60}, {"cron": "0 1 * * *", "hour": 3}])
def test_a_schedule_of_no_kind(given: dict[str, Any]) -> None:
    """A schedule of no kind, of two kinds, or with an unknown key is refused."""
    with pytest.raises(ValueError, match=r"needs one of|hour"):
        prefect_yaml.schedule_of({**given, "slug": "s"})


CRON = CronSchedule(cron="0 1 * * *", timezone="Europe/Berlin")
OTHER = CronSchedule(cron="0 5 * * *", timezone="Europe/Berlin")


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([("other", CRON), ("nightly", OTHER)], 1),
        ([("old", OTHER), ("other", CRON)], 0),
        ([(None, CRON)], 0),
        ([(None, OTHER), ("other", CRON)], None),
        ([], None),
    ],
)
def test_which_schedule_it_is(there: list[tuple[str | None, CronSchedule]], expected: int | None) -> None:
    """match() follows its table."""
    wanted = DeploymentScheduleCreate(schedule=CRON, slug="nightly", replaces="old")
    found = [DeploymentSchedule(slug=slug, schedule=schedule) for slug, schedule in there]
    assert match(wanted, found) is (None if expected is None else found[expected])


def test_what_is_wrong_in_the_file_is_said_before_anything_is_changed(deployed: Deployed, prefect_api: Prefect) -> None:
    """All errors in the file are listed by deployment, and nothing is created."""
    deployed.entry("prod")["parameters"]["job"] = {**good(), "destinatoin": "s3://x/"}
    deployed.entry("nightly")["schedules"][0]["timezone"] = "Europe/Berln"
    deployed.entry("weekly")["schedules"][0]["cron"] = "0 99 * * 0"
    more = [
        {**deployed.entry("weekly"), "name": "noslug", "schedules": [{"cron": "0 1 * * *"}]},
        {**deployed.entry("weekly"), "name": "built", "schedules": [], "build": [{"steps.x": {}}]},
        {**deployed.entry("weekly"), "name": "gone", "schedules": [], "entrypoint": "flows/nothing.py:flow"},
        {**deployed.entry("weekly"), "name": "asked", "schedules": [], "parameters": {"job": good(), "wait": "maybe"}},
        {**deployed.entry("weekly"), "name": "typo", "schedules": [], "parameters": {"job": good(), "waiting": True}},
    ]
    deployed.content["deployments"] += more
    deployed.write()
    said = deployed.deploy().expect(2).stderr
    for words in (
        "prefect.yaml cannot be deployed; nothing was changed:",
        f"migrate/prod-{deployed.mark}: ",
        "unknown key `destinatoin`; did you mean `destination`?",
        f'migrate/nightly-{deployed.mark}: the schedule `nightly`: Invalid timezone: "Europe/Berln"',
        f'verify/weekly-{deployed.mark}: the schedule `weekly`: Invalid cron string: "0 99 * * 0"',
        "verify/noslug: a schedule has no `slug`",
        "verify/built: `build`: make the image first",
        "flow/gone: `entrypoint`: flows/nothing.py:flow cannot be loaded",
        "verify/asked: `parameters.wait`: ",
        "'maybe' is not of type 'boolean'",
        "verify/typo: `parameters.waiting` is not a parameter of the flow verify, which has job, ",
    ):
        assert words in said
    assert deployments(prefect_api, deployed) == {}


def good() -> dict[str, str]:
    return {"name": "x", "manifest": "x.csv", "destination": "file:///srv/x/"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no"),
        ("deployments: [", "not valid YAML"),
        ("- 1", "it needs `deployments`"),
        ("name: x", "there are no `deployments` in it"),
        ("deployments: 7", "`deployments` is not a list"),
        ("deployments: [{name: x}]", "`work_pool.name` is missing"),
        ("deployments: [{name: x, work_pool: {name: '{{ y }}'}}]", "which nothing fills in"),
        ("deployments: [{name: x, schedules: 3}]", "`schedules` is not a list"),
        ("deployments: [{name: x, work_pool: y}]", "`work_pool` is not a mapping"),
        ("deployments: [x]", "deployment 1 is not a mapping"),
    ],
)
def test_a_file_that_is_no_prefect_yaml(text: str | None, words: str, tmp_path: Path) -> None:
    """The error names the file and its problem."""
    path = tmp_path / "prefect.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as raised:
        prefect_yaml.read(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)


def test_what_is_wrong_on_the_server_is_said_before_anything_is_changed(
    deployed: Deployed, prefect_api: Prefect
) -> None:
    """Missing blocks and a pool of another type are named with the fix, and nothing is created."""
    make_pool(prefect_api, deployed.pool, "kubernetes")
    deployed.entry("prod")["work_pool"]["job_variables"] = {"working_dir": ".", "stream_output": True}
    job = deployed.entry("prod")["parameters"]["job"] = {
        **good(),
        "destination": {"uri": "s3://x/", "credentials": f"block:new-{deployed.mark}"},
        "source": {"headers": {"X-Token": f"secret:token-{deployed.mark}"}, "headers_for": ["x.example"]},
    }
    assert job
    deployed.write()
    said = deployed.deploy("--notify", f"slack-webhook/ops-{deployed.mark}").expect(2).stderr
    for words in (
        "nothing was changed:",
        f"migrate/prod-{deployed.mark}: the work pool `{deployed.pool}` is of the type kubernetes, which knows no job "
        "variable `stream_output`",
        f"destination.credentials: there is no block `aws-credentials/new-{deployed.mark}` on the server. Make it: "
        f"with its keys in the environment, `ferry deploy --block aws-credentials/new-{deployed.mark}`",
        f"source.headers.X-Token: there is no block `secret/token-{deployed.mark}`",
        f"--notify slack-webhook/ops-{deployed.mark}: the Prefect server has no such block",
        "/blocks/catalog/slack-webhook/create",
    ):
        assert words in said
    assert deployments(prefect_api, deployed) == {}


def test_blocks_come_from_the_environment(deployed: Deployed, prefect_api: Prefect) -> None:
    """--block creates blocks or updates them, and never prints their values."""
    deployed.entry("prod")["parameters"]["job"] = {
        **good(),
        "destination": {"uri": "s3://x/", "credentials": f"block:new-{deployed.mark}"},
        "source": {"headers": {"X-Token": f"secret:token-{deployed.mark}"}, "headers_for": ["x.example"]},
    }
    deployed.write()
    blocks = [f"aws-credentials/new-{deployed.mark}", f"secret/token-{deployed.mark}=OLD_TOKEN"]
    ask = [part for block in blocks for part in ("--block", block)]
    for token, expected in ((SECRET, "created"), (SECRET, "unchanged"), (SECRET + "2", "updated")):
        env = {"OLD_TOKEN": token, "AWS_ACCESS_KEY_ID": "AKIA" + token, "AWS_SECRET_ACCESS_KEY": token}
        ended = deployed.deploy(*ask, "--json", env=env).expect(0)
        made = {one["name"]: one["what"] for one in ended.json["changes"] if one["kind"] == "block"}
        assert made == {blocks[0]: expected, blocks[1].partition("=")[0]: expected}
        assert SECRET not in ended.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("secret/x=NOBODY_SET_THIS", "NOBODY_SET_THIS is not set"),
        ("secret/x", "write aws-credentials/NAME, or secret/NAME=VARIABLE"),
        ("aws-credentials/x=y", "write aws-credentials/NAME"),
        ("gcp-credentials/x", "others are made in the UI"),
        ("x", "others are made in the UI"),
    ],
)
def test_a_block_that_cannot_be_made(text: str, words: str) -> None:
    """The error says what to write, or which variable to set."""
    with pytest.raises(UserError, match=words):
        block_of(text)


@pytest.mark.parametrize(
    ("answer", "refused"),
    [(VERSION, False), ("3.0.0", False), ("2.20.4", True), ("4.0.0rc1", True), (None, False), ({"x": 1}, False)],
)
def test_which_versions_go_together(answer: Any, refused: bool) -> None:
    """version_problem() follows its table."""
    assert bool(version_problem("http://x/api", answer)) is refused


class Fake(http.server.BaseHTTPRequestHandler):
    """The answers of a server that is not Prefect 3, which cannot be installed beside this Prefect."""

    answer = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def fake_server(answer: bytes) -> Iterator[str]:
    handler = type("Answering", (Fake,), {"answer": answer})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
        thread.join()


COMMANDS = [["deploy"], ["watch"], ["run", "--on", "migrate/prod"], ["run", "job.yaml"]]


def test_a_server_that_ferry_cannot_work_with(cli: Cli, tmp_path: Path) -> None:
    """A server of another version, another program, no server or no address exits 2 with what to do."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(good()))
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}/api"
    with fake_server(b'"4.1.0"') as newer, fake_server(b'"2.20.4"') as older, fake_server(b"<html>") as page:
        tried = [
            *(([*command], newer, "has version 4.1.0, and Ferry uses Prefect 3") for command in COMMANDS),
            (["deploy"], older, "Use a server of Prefect 3, or a Ferry for Prefect 2"),
            (["deploy"], page, "is not a Prefect API. An API's address ends in `/api`"),
            (["watch"], nobody, "does not answer"),
            (["deploy"], "nonsense", "PREFECT_API_URL is not a valid address"),
            *((command, None, "PREFECT_API_URL is not set") for command in COMMANDS[:3]),
        ]
        started = [
            (cli.start(command, tmp_path, {"PREFECT_API_URL": url}), command, words) for command, url, words in tried
        ]
        for process, command, words in started:
            ended = cli.end(process, command).expect(2)
            assert words in ended.stderr, command


def test_what_the_form_sends() -> None:
    """A form with all defaults passes the server's validation, and gives the same job as three keys."""
    schema = parameter_schema(migrate).model_dump(mode="json", exclude_unset=True)
    keys = schema["definitions"]["Job"]["properties"]
    sent = {**{name: key["default"] for name, key in keys.items() if "default" in key}, **good()}
    validate({"job": sent, "retry_failed": False, "limit": None, "wait": False}, schema, raise_on_error=True)
    assert Job.model_validate(sent) == Job.model_validate(good())


ZONE = ZoneInfo("Europe/Berlin")


SPRING, AUTUMN = datetime(2027, 3, 28, tzinfo=ZONE), datetime(2027, 10, 31, tzinfo=ZONE)


@pytest.mark.parametrize(
    ("cron", "switch", "expected"),
    [
        ("30 1 * * *", SPRING, "01:30+0100"),
        ("30 1 * * *", AUTUMN, "01:30+0200"),
        ("30 2 * * *", SPRING, "01:30+0100"),
        ("30 2 * * *", AUTUMN, "02:30+0200"),
        ("0 3 * * *", SPRING, "03:00+0200"),
        ("0 3 * * *", AUTUMN, "03:00+0100"),
    ],
)
def test_the_nights_on_which_clocks_change(cron: str, switch: datetime, expected: str) -> None:
    """When clocks change, a schedule starts one run: a skipped hour runs early, a repeated one the first time."""

    async def ask() -> set[datetime]:
        schedule = ServersCronSchedule(cron=cron, timezone="Europe/Berlin")
        found: set[datetime] = set()
        start = switch.astimezone(ZoneInfo("UTC")) - timedelta(hours=6)
        for minutes in range(0, 20 * 60, 10):
            found |= set(await schedule.get_dates(n=3, start=start + timedelta(minutes=minutes)))
        return found

    runs = [moment.astimezone(ZONE) for moment in asyncio.run(ask())]
    assert [f"{moment:%H:%M%z}" for moment in runs if moment.date() == switch.date()] == [expected]
