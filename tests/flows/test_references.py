"""Secrets and credentials that a job only refers to are found where the work runs."""

from __future__ import annotations

import os
import subprocess
import sys

from demo.origin import Origin
from tests.flows.project import Cli, Environment, Project, serve

SCRIPT = """
from prefect.blocks.system import Secret
from prefect_aws import AwsCredentials
from tasks import references
from tasks.engine.errors import UserError
from tasks.engine.job import Job

Secret(value="Bearer abc").save("old-token", overwrite=True)
keys = {"aws_access_key_id": "AK", "aws_secret_access_key": "SK", "region_name": "eu-central-1"}
AwsCredentials(**keys).save("new-store", overwrite=True)
job = Job.model_validate({
    "name": "x", "manifest": "a.csv",
    "source": {"headers": {"Authorization": "secret:old-token"}, "headers_for": ["h"]},
    "destination": {"uri": "s3://b/", "credentials": "block:new-store"},
})
assert references.headers(job) == {"Authorization": "Bearer abc"}
access = references.destination_access(job)
assert access.keys == ("AK", "SK", None), access
assert access.region == "eu-central-1"
assert "SK" not in repr(access)
AwsCredentials(**keys, assume_role_arn="arn:aws:iam::123456789012:role/x").save("with-role", overwrite=True)
try:
    references.access("block:with-role", None, None, "destination.credentials")
except UserError as error:
    assert "`with-role` has `assume_role_arn`" in str(error) and "profile:NAME" in str(error)
else:
    raise AssertionError("a role was ignored")
assert "abc" not in job.model_dump_json()
try:
    references.access("block:not-there", None, None, "destination.credentials")
except UserError as error:
    assert "there is no AwsCredentials block `not-there`" in str(error)
else:
    raise AssertionError("a missing block was not refused")
print("all held")
"""


def test_blocks_are_read_where_the_work_runs(cli: Cli) -> None:
    """`secret:BLOCK` and `block:NAME` give what the blocks hold; neither shows in the job; a missing one is named."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=cli.environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip().endswith("all held"), done.stdout + done.stderr


def test_one_server_keeps_the_blocks(project: Project, origin: Origin) -> None:
    """A command that is no run asks the server that the runs of its job have, in its folder, and no other."""
    rows, bodies = serve(origin, 3)
    project.manifest(rows)
    alone: Environment = {"PREFECT_API_URL": None, "PREFECT_HOME": None}
    project.job(destination=project.destination(credentials="block:new-store"))
    missing = project.ferry("plan", "job.yaml", env=alone).expect(2)
    assert "there is no AwsCredentials block `new-store`" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
    save = (
        "import sys\nfrom prefect_aws import AwsCredentials\n"
        "AwsCredentials(aws_access_key_id=sys.argv[1], aws_secret_access_key=sys.argv[2]).save('new-store')\n"
    )
    home = {**os.environ, "PREFECT_HOME": str(project.folder / ".ferry" / "prefect"), "DO_NOT_TRACK": "1"}
    home.pop("PREFECT_API_URL", None)
    s3 = project.cli.s3
    subprocess.run([sys.executable, "-c", save, s3.access_key, s3.secret_key], env=home, check=True, timeout=120)
    without_keys: Environment = {**alone, "AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
    assert project.ferry("plan", "job.yaml", "--json", env=without_keys).expect(0).json["rows"] == 3
    project.ferry("run", "job.yaml", "--json", env=without_keys).expect(0)
    assert project.stored() == bodies
