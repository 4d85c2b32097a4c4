"""`ferry plan`: what a run would do, found out without a lease and without writing to the state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tasks import references
from tasks.engine.child import Child, Request
from tasks.engine.job import Job
from tasks.engine.plan import Planned
from tasks.engine.preflight import preflight
from tasks.run import cache_root


@contextlib.contextmanager
def _leaving_nothing(state: str) -> Iterator[None]:
    """Takes away the folders that opening a state in a directory makes."""
    made = [] if "://" in state else [path for path in (Path(state), *Path(state).parents) if not path.exists()]
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def dry_plan(job: Job) -> Planned:
    """Raises UserError for whatever would stop a run before anything moves."""
    assert job.state is not None
    destination = references.destination_access(job)
    references.headers(job)  # what is missing is said now
    request = Request(
        job, job.state, str(cache_root()), references.source_access(job), destination,
        "plan", {"run_no": 0, "dry": True},
    )  # fmt: skip
    with _leaving_nothing(job.state), Child() as child:
        planned = Planned.decode(child.ask(request))
    preflight(job.destination.uri, destination, dry=True)
    return planned
