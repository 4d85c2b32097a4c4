"""The diagnosis of a deployment's run that does not start: its work pool and that pool's workers."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import Worker
from prefect.exceptions import ObjectNotFound

# Runs of every other type of pool have their own file system, which has the code but none of the project's files.
LOCAL = "process"


def workers(client: SyncPrefectClient, pool: str) -> list[Worker]:
    """Returns the online workers of a work pool."""
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    return client.read_workers_for_work_pool(pool, worker_filter=online)


def start_command(pool: str) -> str:
    """Returns where and how to start a worker of a pool."""
    return f"in the project's root, on the worker's machine: prefect worker start --pool {pool}"


def why_waiting(state: str, pool: str | None, exists: bool, paused: bool, online: Sequence[str]) -> str | None:
    """Returns what a run waits for, and what to do; None if it only waits for its turn.

    | state | work pool | online workers | the run waits for |
    |---|---|---|---|
    | AwaitingConcurrencySlot | any | any | the end of another run of its deployment |
    | any other | not named | | its deployment to name a pool |
    | any other | named, but missing | | a pool with that name |
    | any other | paused | any | the pool to be resumed |
    | any other | exists | none | a worker |
    | any other | exists | some | its turn |
    """
    if state == "AwaitingConcurrencySlot":
        return "the run waits for another run of its deployment to end; it tries again every 30 seconds"
    if pool is None:
        return "the deployment has no work pool, so no worker takes the run; `ferry deploy` sets that of prefect.yaml"
    if not exists:
        return f"the work pool `{pool}` does not exist; `ferry deploy` creates it"
    if paused:
        return f"the work pool `{pool}` is paused; to resume it: prefect work-pool resume {pool}"
    if not online:
        return f"the work pool `{pool}` has no online worker. Start one {start_command(pool)}"
    return None


def look(client: SyncPrefectClient, state: str, pool: str | None) -> str | None:
    """Returns :func:`why_waiting` for the server's present data."""
    if pool is None:
        return why_waiting(state, None, False, False, ())
    try:
        found = client.read_work_pool(pool)
    except ObjectNotFound:
        return why_waiting(state, pool, False, False, ())
    return why_waiting(state, pool, True, found.is_paused, [worker.name for worker in workers(client, pool)])
