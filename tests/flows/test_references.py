"""A job's references to secrets and credentials are resolved on the machine of the run."""

from __future__ import annotations

import re
import shlex
import stat
import subprocess
import sys

import pytest

from demo.origin import Origin
from tests.flows.project import ROOT, Cli, Ended, Environment, Project, serve

SCRIPT = """
from prefect.blocks.system import Secret
from prefect_aws import AwsCredentials
from tasks import secrets
from ferry.core.errors import UserError
from ferry.job.model import Job

Secret(value="Bearer abc").save("old-token", overwrite=True)
keys = {"aws_access_key_id": "AK", "aws_secret_access_key": "SK", "region_name": "eu-central-1"}
AwsCredentials(**keys).save("new-store", overwrite=True)
job = Job.model_validate({
    "name": "x", "manifest": "a.csv",
    "source": {"headers": {"Authorization": "secret:old-token"}, "headers_for": ["h"]},
    "destination": {"uri": "s3://b/", "credentials": "block:new-store"},
})
assert secrets.headers(job) == {"Authorization": "Bearer abc"}
access = secrets.destination_access(job)
assert access.keys == ("AK", "SK", None), access
assert access.region == "eu-central-1"
assert "SK" not in repr(access)
file = {"type": "service_account"}
Secret(value=file).save("google-mapping", overwrite=True)
Secret(value='{"type": "service_account"}').save("google-text", overwrite=True)
Secret(value="?sig=x").save("sas", overwrite=True)
for name in ("google-mapping", "google-text"):
    assert secrets.google_access(f"secret:{name}", None, "source.credentials").info == file, name
assert secrets.azure_access("secret:sas", None, "shop", "source.credentials").secret == "?sig=x"
AwsCredentials(**keys, assume_role_arn="arn:aws:iam::123456789012:role/x").save("with-role", overwrite=True)
try:
    secrets.s3_access("block:with-role", None, None, "destination.credentials")
except UserError as error:
    assert "`with-role` has `assume_role_arn`" in str(error) and "profile:NAME" in str(error)
else:
    raise AssertionError("a role was ignored")
assert "abc" not in job.model_dump_json()
try:
    secrets.s3_access("block:not-there", None, None, "destination.credentials")
except UserError as error:
    assert "has no AwsCredentials block `not-there`" in str(error)
else:
    raise AssertionError("a missing block was not refused")
print("all held")
"""


@pytest.mark.slow
def test_blocks_are_read_where_the_work_runs(cli: Cli) -> None:
    """`secret:BLOCK` and `block:NAME` give the block's values, which the job does not show."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=cli.environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip().endswith("all held"), done.stdout + done.stderr


def as_documented(project: Project, environment: Environment) -> Ended:
    """Run the shell line of docs/reference/job.md exactly."""
    (lines,) = re.findall(
        r"```sh\n(ferry block .*?)```", (ROOT / "docs" / "reference" / "job.md").read_text(), re.DOTALL
    )
    (line,) = lines.splitlines()
    keys = {"AWS_ACCESS_KEY_ID": project.cli.s3.access_key, "AWS_SECRET_ACCESS_KEY": project.cli.s3.secret_key}
    given = {"PREFECT_API_URL": None, "PREFECT_HOME": None, "OLD_TOKEN": "Bearer abc", **keys, **environment}
    return project.ferry(*shlex.split(line)[1:], env=given)


@pytest.mark.slow
def test_one_server_keeps_the_blocks(project: Project, origin: Origin) -> None:
    """`ferry plan` reads blocks from the server of its job's runs, where the documented `ferry block` saves them."""
    rows, bodies = serve(origin, 3)
    project.manifest(rows)
    alone: Environment = {"PREFECT_API_URL": None, "PREFECT_HOME": None}
    project.job(destination=project.destination(credentials="block:new-store"))
    missing = project.ferry("plan", "job.yaml", env=alone).expect(2)
    assert "has no AwsCredentials block `new-store`" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
    assert "AWS_ACCESS_KEY_ID is not set" in as_documented(project, {"AWS_ACCESS_KEY_ID": None}).expect(2).stderr
    assert "created    block  aws-credentials/new-store" in as_documented(project, {}).expect(0).stdout
    assert as_documented(project, {}).expect(0).stdout.count("unchanged") == 2
    home = project.folder / ".ferry" / "prefect"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    without_keys: Environment = {**alone, "AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
    assert project.ferry("plan", "job.yaml", "--json", env=without_keys).expect(0).json["rows"] == 3
    project.ferry("run", "job.yaml", "--json", env=without_keys).expect(0)
    assert project.stored() == bodies


TELEMETRY = """
import os, sys
from flows.cli import main as command
def leave(code):
    from prefect._internal.analytics import is_telemetry_enabled
    print("telemetry:", os.environ.get("DO_NOT_TRACK"), is_telemetry_enabled())
    sys.exit(code)
command._leave = leave
sys.argv[0] = "ferry"
command.main()
"""


def test_no_command_sends_telemetry(project: Project) -> None:
    """Prefect's telemetry is off, also with the user's own server."""
    environment = {name: value for name, value in project.cli.environment.items() if name != "DO_NOT_TRACK"}
    ended = subprocess.run(
        [sys.executable, "-c", TELEMETRY, "deploy", "--dry-run"], cwd=project.folder, capture_output=True, text=True,
        timeout=120, env={**environment, "PREFECT_API_URL": "http://127.0.0.1:9/api"},
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "telemetry: 1 False" in ended.stdout
