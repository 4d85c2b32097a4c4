"""The command `ferry limits`: the limits in force, and changes of them, which a live run applies within seconds."""

from __future__ import annotations

import dataclasses
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ferry.core import UserError, in_bucket, short
from ferry.job import Job, changed_limit, duration, host_pattern, patterns_for
from ferry.ratelimit import (
    Override,
    add_overrides,
    end_overrides,
    in_force,
    read_hosts,
    read_overrides,
    sentence,
)
from ferry.state import State, lease_holder
from flows.cli import local_run, terminal
from flows.cli.output import JsonFlag, print_json
from tasks.job_file import load_job

_CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])\Z")


def limits(
    job_file: Path,
    *,
    host: Annotated[str, Parameter(help="Change the limits of one host: img.old.example, *.old.example.")] = "",
    destination: Annotated[bool, Parameter(negative="", help="Change the limits of the destination.")] = False,
    requests_per_s: Annotated[str, Parameter(help="Requests per second at most; off: no limit.")] = "",
    bytes_per_s: Annotated[str, Parameter(help="Bytes per second at most, such as 10MB; off: no limit.")] = "",
    concurrency: Annotated[str, Parameter(help="Requests in flight at most; off: no limit.")] = "",
    until: Annotated[str, Parameter(help="End the change at this local time: 18:00, or 2026-12-24T18:00.")] = "",
    for_: Annotated[str, Parameter(name="--for", help="End the change after this time, such as 2h.")] = "",
    reset: Annotated[
        bool,
        Parameter(negative="", help="End all changes, or those of --host or --destination. The job's limits apply."),
    ] = False,
    json_: JsonFlag = False,
) -> int:
    """Show the limits in force, or change them, also during a run."""
    given = {"requests_per_s": requests_per_s, "bytes_per_s": bytes_per_s, "concurrency": concurrency}
    values = {name: _value(name, text) for name, text in given.items() if text}
    key, now = _key(host, destination), time.time()
    end, note = end_of(until, for_, now)
    if reset and (values or end is not None):
        raise UserError("--reset ends changes and takes neither a limit nor a time; leave one of them out")
    if not values and not reset and (key or end is not None):
        raise UserError("no limit is given; add --requests-per-s, --bytes-per-s, --concurrency or --reset")
    job = load_job(job_file)
    state = local_run.state_to_read(job, job_file)
    if reset:
        end_overrides(state, key or None, now)
    elif values:
        add_overrides(state, [Override(key, name, value, end) for name, value in values.items()], now)
    if note and not json_:
        terminal.say(note)
    _show(job, state, now, as_json=json_, changed=key if reset or values else None)
    return 0


def end_of(until: str, for_: str, now: float) -> tuple[float | None, str]:
    """Returns when a change ends, in seconds since 1970 (None: never), and a note on a time that has passed today.

    | `--until` | `--for` | at 17:00 | ends |
    |---|---|---|---|
    | | | | never |
    | 18:00 | | | today |
    | 16:00 | | | tomorrow; the note says so |
    | 2026-12-24T18:00 | | | then; an error if that has passed |
    | | 2h | | at 19:00 |
    """
    if until and for_:
        raise UserError("--until and --for both say when the change ends; leave one of them out")
    if for_:
        try:
            seconds = duration(for_)
        except ValueError as exc:
            raise UserError(f"--for: {exc}") from None
        if not seconds:
            raise UserError("--for 0 ends the change at once; write a time such as `2h`")
        return now + seconds, ""
    if not until:
        return None, ""
    if found := _CLOCK.match(until):
        at = datetime.fromtimestamp(now).replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
        if at.timestamp() > now:
            return at.timestamp(), ""
        at += timedelta(days=1)
        return at.timestamp(), f"{until} has passed today, so the change ends tomorrow ({at:%Y-%m-%d %H:%M})"
    try:
        end = datetime.fromisoformat(until).timestamp()
    except (ValueError, OverflowError):
        raise UserError(f"--until {short(until)}: write a time such as 18:00 or 2026-12-24T18:00") from None
    if end <= now:
        raise UserError(f"--until {short(until)} has passed; write a later time")
    return end, ""


def _value(name: str, text: str) -> int | float | str:
    """Returns a limit of the command line. Raises UserError with what to write instead."""
    try:
        number: float | str = float(text)
    except ValueError:
        number = text
    try:
        value: int | float | str = changed_limit(number, name)
    except ValueError as exc:
        raise UserError(f"--{name.replace('_', '-')}: {exc}") from None
    return value


def _key(host: str, destination: bool) -> str:
    """Returns the part of `limits` that the command changes."""
    if host and destination:
        raise UserError("--host and --destination are two changes; run the command twice")
    try:
        return f"hosts.{host_pattern(host)}" if host else "destination" if destination else ""
    except ValueError as exc:
        raise UserError(f"--host: {exc}") from None


def _show(job: Job, state: State, now: float, *, as_json: bool, changed: str | None) -> None:
    """Print the limits in force, and the hosts of a live run that are at theirs. ``changed``: a part of `limits`."""
    overrides = [override for override in read_overrides(state) if override.holds(now)]
    found = in_force(now, job.limits, overrides)
    live = lease_holder(state) is not None
    known = read_hosts(state) if live else None
    held = {host.host: host.why for host in known.hosts if host.at_limit} if known else {}
    if as_json:
        lines = [
            {"key": key, "limit": name, **dataclasses.asdict(setting)}
            for key, settings in found.items() for name, setting in settings.items()
        ]  # fmt: skip
        changes = [
            {**dataclasses.asdict(one), "until": one.until and datetime.fromtimestamp(one.until, UTC).isoformat()}
            for one in overrides
        ]
        shown = {"job": job.name, "limits": lines, "shared": job.limits.shared, "overrides": changes}
        print_json({**shown, "running": live, "at_limit": held})
        return
    said = [sentence(key, name, setting) for key, settings in found.items() for name, setting in settings.items()]
    terminal.say(f"Limits of {job.name} in force:" if said else f"{job.name} has no limits; each host's are learned")
    for line in said:
        terminal.say(f"  {line}")
    if job.limits.shared:
        terminal.say(f"The live runs with `limits.shared: {job.limits.shared}` divide their limits equally.")
    if live and changed is not None:
        terminal.say(f"The live run applies them within {15 if in_bucket(state.uri) else 5} s.")
        name = changed.removeprefix("hosts.")
        if known and name != changed and not any(name in patterns_for(host.host) for host in known.hosts):
            terminal.say(f"None of its {len(known.hosts)} busiest hosts is {name}. `ferry status` shows them.")
    if changed is not None and not live:
        terminal.say(f"No run is live with the state {state.uri}; the next one applies them.")
    for host, why in held.items():
        terminal.say(f"At its limit now: {host}, {why}")
