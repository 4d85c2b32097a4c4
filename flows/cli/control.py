"""The commands `ferry pause`, `ferry resume` and `ferry cancel`, which set the state of a live run at Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from ferry.core import UserError
from ferry.state import lease_holder
from flows.cli import local_run, terminal
from flows.cli.output import JsonFlag, print_json
from flows.server.shared import prefect_server
from tasks.job_file import load_job

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

Request = Literal["pause", "resume", "cancel"]
SOON = "within 15 s; objects in flight end first"


# Nothing here may import Prefect before `prefect_server` has chosen the server and left the working directory.
def pause(job_file: Path, *, json_: JsonFlag = False) -> int:
    """Pause the job's live run: it starts no more objects, waits, and keeps the lease."""
    return _control(job_file, "pause", f"pauses {SOON}. To go on: ferry resume {{job}}", json_)


def resume(job_file: Path, *, json_: JsonFlag = False) -> int:
    """Resume the job's run after a pause."""
    return _control(job_file, "resume", "continues within 15 s", json_)


def cancel(job_file: Path, *, json_: JsonFlag = False) -> int:
    """Cancel the job's live run: it ends as after a Ctrl-C, and the next run resumes."""
    return _control(job_file, "cancel", f"ends {SOON}. The next run resumes", json_)


def _ask(client: SyncPrefectClient, run: UUID, what: Request) -> str:
    """Asks Prefect for another state of a flow run. Returns why it refused, or ""."""
    from prefect.client.schemas.objects import State, StateType

    if what == "resume":
        result = client.resume_flow_run(run)
    elif what == "pause":
        result = client.set_flow_run_state(run, State[Any](type=StateType.PAUSED, name="Paused"))
    else:
        result = client.set_flow_run_state(run, State[Any](type=StateType.CANCELLING, name="Cancelling"))
    return "" if result.status.value == "ACCEPT" else str(getattr(result.details, "reason", result.status))


def _control(job_file: Path, what: Request, effect: str, as_json: bool) -> int:
    """Ask Prefect to change the state of the job's live run, which reads it every few seconds."""
    job = load_job(job_file)
    holder = lease_holder(local_run.state_to_read(job, job_file))
    if holder is None:
        raise UserError(f"no run of {job.name} is running, so there is none to {what}")
    if not holder.flow_run:
        raise UserError(f"{holder.run} (process {holder.pid} on {holder.host}) was not started by Prefect")
    with prefect_server(local_run.prefect_home(job_file.absolute().parent), lambda: None) as url:
        from prefect.exceptions import ObjectNotFound

        from tasks import prefect_api

        with prefect_api.required_client() as client:
            try:
                refused = _ask(client, UUID(holder.flow_run), what)
            except ObjectNotFound:
                raise UserError(
                    f"the Prefect server at {url} does not know the run {holder.run} ({holder.flow_run}). Set "
                    "PREFECT_API_URL to the server of that run"
                ) from None
    if refused:
        raise UserError(f"Prefect refused to {what} {holder.run}: {refused}")
    if as_json:
        print_json({"flow_run": holder.flow_run, "name": holder.run, "asked": what})
    else:
        terminal.say(f"{holder.run} {effect.format(job=job_file)}")
    return 0
