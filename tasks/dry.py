"""`ferry plan`: what a run would do, found out without a lease and without writing to the state."""

from __future__ import annotations

from tasks import references
from tasks.engine.child import Child, Request
from tasks.engine.job import Job
from tasks.engine.plan import Planned
from tasks.engine.preflight import preflight
from tasks.run import cache_root


def dry_plan(job: Job) -> Planned:
    """Raises UserError for whatever would stop a run before anything moves."""
    assert job.state is not None
    destination = references.destination_access(job)
    request = Request(
        job, job.state, str(cache_root()), references.source_access(job), destination,
        "plan", {"run_no": 0, "dry": True},
    )  # fmt: skip
    with Child() as child:
        planned = Planned.decode(child.ask(request))
    preflight(job.destination.uri, destination, dry=True)
    return planned
