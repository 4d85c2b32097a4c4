"""Why a run of a deployment has not begun: its work pool, and who is there to take it."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import Worker
from prefect.exceptions import ObjectNotFound


def workers(client: SyncPrefectClient, pool: str) -> list[Worker]:
    """Those of a work pool that have been heard of lately."""
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    return client.read_workers_for_work_pool(pool, worker_filter=online)


def start_one(pool: str) -> str:
    """What to type."""
    return f"in the project's root, on the machine that is to work: prefect worker start --pool {pool}"


def why_waiting(state: str, pool: str | None, exists: bool, paused: bool, online: Sequence[str]) -> str | None:
    """What a run waits for, and what to do about it; None: for its turn, which comes by itself.

    | its state | the pool | workers | it waits for |
    |---|---|---|---|
    | AwaitingConcurrencySlot | any | any | another run of its deployment to end |
    | any other | none | | nobody: it is the deployment's to name one |
    | any other | gone | | a pool of that name |
    | any other | paused | any | the pool to be resumed |
    | any other | there | none | a worker |
    | any other | there | some | its turn |
    """
    if state == "AwaitingConcurrencySlot":
        return "it waits for another run of its deployment to end; it looks again every 30 seconds"
    if pool is None:
        return "its deployment names no work pool, so no worker takes it; `ferry deploy` gives it that of prefect.yaml"
    if not exists:
        return f"there is no work pool `{pool}`; `ferry deploy` makes it"
    if paused:
        return f"the work pool `{pool}` is paused: prefect work-pool resume {pool}"
    if not online:
        return f"no worker of the work pool `{pool}` is up. Start one {start_one(pool)}"
    return None


def look(client: SyncPrefectClient, state: str, pool: str | None) -> str | None:
    """As :func:`why_waiting`, of what the server knows now."""
    if pool is None:
        return why_waiting(state, None, False, False, ())
    try:
        found = client.read_work_pool(pool)
    except ObjectNotFound:
        return why_waiting(state, pool, False, False, ())
    return why_waiting(state, pool, True, found.is_paused, [worker.name for worker in workers(client, pool)])
