"""The alarm of a deployment whose runs do not complete in time, and how often its schedules let them begin."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events.schemas.automations import Posture

from ferry.core import UserError
from ferry.job import duration
from flows.deploying.alerts import Alarm, states, trigger

LOOKED_AT = 100  # dates of a schedule: a weekday's, three months ahead
DO = (
    "see in its runs whether they fail, are cancelled, or do not begin. Where its schedule is off on purpose, run "
    "`ferry deploy`: it takes this alarm away"
)


def missed(name: str, deployment: UUID, ui: str, within: timedelta) -> Alarm:
    """The alarm of one deployment, as `migrate/nightly`. It speaks again each time that ``within`` has passed."""
    return Alarm(
        f"Ferry: {name} did not complete in time",
        f"No run of {name} was Completed within {within}. Made while its schedule was on.",
        trigger(
            [deployment], Posture.Proactive, expect=states("Completed"), within_s=within.total_seconds(), each=False
        ),
        f"Ferry: no run of {name} completed for {within.total_seconds() / 3600:.4g} hours",
        f"No run of {name} was Completed within {within}, and its schedule was on when the alarm was made.\n"
        f"Look: {ui}/deployments/deployment/{deployment}\nDo: {DO}.",
    )


def every(given: Iterable[str]) -> list[timedelta]:
    """The values of `--expect-every`, the shortest first. Raises UserError."""
    found = []
    for text in given:
        try:
            within_s = float(duration(text))
        except ValueError as exc:
            raise UserError(f"--expect-every {text}: {exc}") from None
        if within_s < 3600:
            raise UserError(f"--expect-every {text}: the least is an hour")
        found.append(timedelta(seconds=within_s))
    return sorted(found)


def chosen(gap: timedelta, given: Sequence[timedelta]) -> timedelta | None:
    """Which of the durations a deployment's runs are to complete within, when they begin at most ``gap`` apart.

    | gap | given | |
    |---|---|---|
    | 24 h | 26 h, 8 d | 26 h |
    | 7 d | 26 h, 8 d | 8 d |
    | 72 h: not at weekends | 26 h | none: each Sunday would be an alarm |
    """
    return next((one for one in sorted(given) if one > gap), None)


def longest_gap(schedules: Iterable[DeploymentSchedule], start: datetime) -> timedelta:
    """The longest time from one begin to the next that these schedules have from ``start`` on."""
    each = [dates for one in schedules if (dates := _dates(one, start))]
    known_until = min((max(dates) for dates in each), default=start)
    begins = sorted({date for dates in each for date in dates if date <= known_until})
    apart = [(after - before).total_seconds() for before, after in itertools.pairwise(begins)]
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
    return list(asyncio.run(schedule.get_dates(n=LOOKED_AT, start=start)))
