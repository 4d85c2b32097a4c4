"""Secrets and credentials that a job only refers to are found where the work runs."""

from __future__ import annotations

import subprocess
import sys

from tests.flows.project import Cli

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
