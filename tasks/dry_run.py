"""Planning without a lease and without a run, for `ferry plan` and `ferry check`."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ferry.core import FerryError
from ferry.job import Job
from ferry.preflight import CheckResult, Engine, check_job
from ferry.processes import PlannerProcess, PlanRequest
from ferry.ratelimit import limits_at, read_overrides
from ferry.state import Planned, Predicted, lease_holder, write_predicted
from ferry.storage import ends_too_early, run_preflight
from tasks import secrets
from tasks.state_location import cache_root, state_of
from tasks.workers.pool import processes_of
from tasks.workers.tuning import raise_file_limit


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


def dry_plan(job: Job, **sample: Any) -> Planned:
    """Returns the plan of the next run. Raises UserError for anything that would stop that run before its transfer.

    ``sample``: PlanOptions that have it draw a sample, too.
    """
    assert job.state is not None
    source, destination = secrets.accesses(job)
    secrets.refuse_unusable(job, source)
    secrets.headers(job)  # raises for a missing secret
    request = PlanRequest(
        job, job.state, str(cache_root()), source, destination,
        "plan", {"run_no": 0, "dry": True, **sample}, auth=secrets.auth(job),
    )  # fmt: skip
    with _leaving_nothing(job.state), PlannerProcess() as child:
        planned = Planned.decode(child.ask(request))
    run_preflight(job.destination.uri, destination, dry=True)
    planned.notes.extend(destination.network.describe())
    return planned


def check(
    job: Job, rows: int, *, write: bool, say: Callable[[str], object],
    shielded: Callable[[], contextlib.AbstractContextManager[object]],
) -> CheckResult:  # fmt: skip
    """Checks a job with a sample of so many rows (ferry.preflight), and records in its state what is predicted.

    ``say`` gets a few words at each step; ``shielded`` is that of ferry.preflight.check_job. Raises UserError for
    anything that would stop a run, and Fatal.
    """
    raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="ferry-check-") as temporary:
        folder = Path(temporary)
        say("reading the manifest and planning")
        started = time.monotonic()
        planned = dry_plan(job, sample=rows, sample_folder=temporary)
        plan_s = time.monotonic() - started
        engine = Engine(*secrets.accesses(job), secrets.headers(job), secrets.auth(job))
        if write and (attributes := job.destination.attribute_rules().set):
            run_preflight(job.destination.uri, engine.destination, attributes=attributes)
        with _leaving_nothing(str(job.state)):
            state = state_of(job)
            limits = limits_at(time.time(), job.limits, read_overrides(state))
            holder = lease_holder(state)
        if holder is not None:
            say(f"a run of this job is live ({holder.run}): both share hosts and limits, and the check finds them busy")
        limited = job.model_copy(update={"limits": limits})
        _, most = processes_of(job, None, limits)
        found = check_job(
            limited, planned, folder, engine, plan_s=plan_s, processes=most, write=write, say=say, shielded=shielded
        )
    expected = found.prediction.seconds if found.exit_code < 2 else None
    until = datetime.now(UTC) + timedelta(seconds=expected.high if expected else 0.0)
    for side, access in (("source", engine.source), ("destination", engine.destination)):
        if too_early := ends_too_early(access, f"{side}.credentials", until):
            found.warnings.append(too_early)
    try:
        rows = found.prediction.rows if expected else 0
        write_predicted(state_of(job), Predicted(rows, *((expected.low, expected.high) if expected else (0.0, 0.0))))
    except (FerryError, OSError) as error:
        say(f"the prediction is not kept for the comparison at the end of the run: {error}")
    return found
