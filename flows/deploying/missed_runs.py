"""The alert for a deployment whose runs do not complete in time, and the gaps between its scheduled runs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events.schemas.automations import Posture

from ferry.core import UserError
from ferry.job import duration
from flows.deploying.alerts import WHOSE, Alert, states, trigger

MOST_DATES = 100  # dates of a schedule; for a daily one, three months
DO = (
    "see whether its runs fail, are cancelled or do not start. If its schedule is off on purpose, run `ferry deploy`, "
    "which removes this alert"
)


def missed_alert(name: str, deployment: UUID, ui: str, within: timedelta) -> Alert:
    """Returns the alert for one deployment, such as `migrate/nightly`. It repeats each time ``within`` has passed."""
    return Alert(
        f"Ferry: {name} did not complete in time",
        f"No run of {name} was Completed within {within}. Created while its schedule was on.",
        trigger([deployment], Posture.Proactive, expect=states("Completed"), within_s=within.total_seconds(), each=""),
        f"Ferry: no run of {name} completed for {within.total_seconds() / 3600:.4g} hours",
        f"No run of {name} was Completed within {within}. Its schedule was on when this alert was created.\n"
        f"Look: {ui}/deployments/deployment/{deployment}\nDo: {DO}.",
    )


JOBS = "Ferry: a job did not complete within "
SIGNS = (
    "Late",
    "Running",
    "Failed",
    "TimedOut",
    "Crashed",
    "Cancelled",
)  # of a deployment, whether it completes or not


def missed_jobs_alert(deployments: Collection[UUID], ui: str, within: timedelta) -> Alert:
    """Returns the alert for many deployments, each of which counts separately.

    Prefect counts for a deployment from its first event on, and after an alert again from its next event on.
    """
    hours = f"{within.total_seconds() / 3600:.4g} hours"
    return Alert(
        f"{JOBS}{hours}",
        f"For each deployment that it watches: no run was Completed within {hours}. Their schedules were on.",
        trigger(
            deployments,
            Posture.Proactive,
            after=states("Completed", *SIGNS),
            expect=states("Completed"),
            within_s=within.total_seconds(),
            each="related:deployment:prefect.resource.id",
        ),
        f"Ferry: no run of {WHOSE} completed for {hours}",
        f"No run of {WHOSE} was Completed within {hours}. Its schedule was on when this alert was made.\n"
        f"Look: {ui}/deployments/deployment/{{{{ deployment.id }}}}\nDo: {DO}.",
    )


def parse_expect_every(given: Iterable[str]) -> list[timedelta]:
    """Returns the durations of `--expect-every`, shortest first. Raises UserError for one that cannot be used."""
    found = []
    for text in given:
        try:
            within_s = float(duration(text))
        except ValueError as exc:
            raise UserError(f"--expect-every {text}: {exc}") from None
        if within_s < 3600:
            raise UserError(f"--expect-every {text}: the duration must be at least an hour")
        found.append(timedelta(seconds=within_s))
    return sorted(found)


def shortest_over(gap: timedelta, given: Sequence[timedelta]) -> timedelta | None:
    """Returns the shortest of the durations that is longer than the gap between a deployment's runs, or None.

    | gap | given | result |
    |---|---|---|
    | 24 h | 26 h, 8 d | 26 h |
    | 7 d | 26 h, 8 d | 8 d |
    | 72 h: not at weekends | 26 h | None: it would raise an alert each Sunday |
    """
    return next((one for one in sorted(given) if one > gap), None)


def longest_gap(schedules: Iterable[DeploymentSchedule], start: datetime) -> timedelta:
    """Returns the longest time between two scheduled starts in a row, from ``start`` on; timedelta.max without two."""
    each = [dates for one in schedules if (dates := _dates(one, start))]
    known_until = min((max(dates) for dates in each), default=start)
    starts = sorted({date for dates in each for date in dates if date <= known_until})
    apart = [(after - before).total_seconds() for before, after in itertools.pairwise(starts)]
    return timedelta(seconds=max(apart)) if apart else timedelta.max


def _dates(one: DeploymentSchedule, start: datetime) -> list[datetime]:
    from prefect.server.schemas import schedules as servers  # Prefect's own scheduler; slow to import

    given = one.schedule.model_dump()
    schedule: servers.SCHEDULE_TYPES
    if isinstance(one.schedule, CronSchedule):
        schedule = servers.CronSchedule(**given)
    elif isinstance(one.schedule, IntervalSchedule):
        schedule = servers.IntervalSchedule(**given)
    else:
        schedule = servers.RRuleSchedule(**given)
    return list(asyncio.run(schedule.get_dates(n=MOST_DATES, start=start)))
