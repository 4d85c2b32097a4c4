"""What a run tells Prefect as it ends: an event, labels with its counts, and the table of all jobs.

All of it is optional: the run's state has the result. So it is tried for a few seconds, and a failure is only a line in
the log.
"""

from __future__ import annotations

import contextvars
import threading
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks import prefect_api
from tasks.reporting import jobs
from tasks.reporting.run_end import EVENT, RunEnd

MOST_S = 10.0  # a run ends at most this much later; what is under way then is left
RETRIES = 2  # of a request that a busy server refused: SQLite answers 503 while its database is locked


def record(end: RunEnd, state: State[Any]) -> None:
    """Emit the event, set the labels, and bring the artifact `ferry-jobs` up to date in a run of a deployment.

    ``state``: the final state that the run will have at Prefect. Prefect sends the event by a thread of its own.
    """
    emit_event(EVENT, end.resource(flow_run.id, flow_run.name or end.job), payload=end.payload)
    log, is_deployed = get_run_logger().debug, deployment.id is not None
    context, own = contextvars.copy_context(), UUID(flow_run.id)  # has Prefect's settings

    def send() -> None:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}),
            prefect_api.best_effort(log, "the run's end in the table of jobs") as client,
        ):
            client.update_flow_run_labels(own, end.labels)
            if is_deployed:
                now = datetime.now(UTC)
                ended = {"state": state, "state_type": state.type, "end_time": now}
                jobs.publish(client, client.read_flow_run(own).model_copy(update=ended), now)

    thread = threading.Thread(target=context.run, args=(send,), name="ferry-ending", daemon=True)
    thread.start()
    thread.join(MOST_S)
