"""Planning without a lease and without writing to the state, for `ferry plan`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ferry.job import Job
from ferry.processes import PlannerProcess, PlanRequest
from ferry.state import Planned
from ferry.storage import run_preflight
from tasks import secrets
from tasks.run import cache_root


@contextlib.contextmanager
def _leaving_nothing(state: str) -> Iterator[None]:
    """Remove the folders that opening a state creates, if they are empty."""
    made = [] if "://" in state else [path for path in (Path(state), *Path(state).parents) if not path.exists()]
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def dry_plan(job: Job) -> Planned:
    """Returns the plan of the next run. Raises UserError for anything that would stop that run before its transfer."""
    assert job.state is not None
    destination = secrets.destination_access(job)
    secrets.headers(job)  # raises for a missing secret
    request = PlanRequest(
        job, job.state, str(cache_root()), secrets.source_access(job), destination,
        "plan", {"run_no": 0, "dry": True},
    )  # fmt: skip
    with _leaving_nothing(job.state), PlannerProcess() as child:
        planned = Planned.decode(child.ask(request))
    run_preflight(job.destination.uri, destination, dry=True)
    return planned
