"""limits.json, in which `ferry limits` leaves limits for the runs of a job."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ferry.core import Fatal, UserError
from ferry.job import LIMIT_NAMES, changed_limit
from ferry.ratelimit.effective import Override
from ferry.state import State

NAME = "limits.json"
SCHEMA = 1
_TRIES = 10  # of a write beside other commands


def read_overrides(state: State) -> list[Override]:
    """Returns the overrides, [] without any. Raises UserError for a file that cannot be used."""
    try:
        return _decode(state.read(NAME))
    except FileNotFoundError:
        return []


def add_overrides(state: State, new: Sequence[Override], now: float) -> None:
    """Adds overrides, each in place of an earlier one of the same limit. Overrides that have ended are removed."""
    names = {(override.key, override.limit) for override in new}
    _update(state, now, lambda old: [*(other for other in old if (other.key, other.limit) not in names), *new])


def end_overrides(state: State, key: str | None, now: float) -> None:
    """Ends the overrides of one part of `limits`, or all of them for None, also those in a file that is damaged."""
    if key is None:
        state.delete([NAME])
    else:
        _update(state, now, lambda old: [other for other in old if other.key != key])


def _update(state: State, now: float, change: Callable[[list[Override]], list[Override]]) -> None:
    """Replaces the file. A change that another command makes at the same time is kept."""
    for _ in range(_TRIES):
        try:
            raw = state.read(NAME)
        except FileNotFoundError:
            raw = None
        data = _encode(change([other for other in (_decode(raw) if raw is not None else []) if other.holds(now)]))
        if state.create(NAME, data) if raw is None else state.swap(NAME, raw, data):
            return
    raise Fatal(f"state file {NAME} was changed by other commands {_TRIES} times; try again")


def _encode(overrides: Sequence[Override]) -> bytes:
    lines = [
        {**asdict(one), "until": one.until and datetime.fromtimestamp(one.until, UTC).isoformat()} for one in overrides
    ]
    return json.dumps({"schema": SCHEMA, "overrides": lines}, indent=1).encode()


def _decode(raw: bytes) -> list[Override]:
    try:
        data = json.loads(raw)
        newer = data["schema"] > SCHEMA
        found = [] if newer else [_override(**line) for line in data["overrides"]]
    except (ValueError, TypeError, KeyError) as exc:
        raise UserError(
            f"state file {NAME} is damaged ({type(exc).__name__}). `ferry limits JOB --reset` removes the limits in it"
        ) from None
    if newer:
        raise UserError(f"state file {NAME} was written by a newer Ferry; update this one")
    return found


def _override(key: str, limit: str, value: Any, until: str | None) -> Override:
    if limit not in LIMIT_NAMES:
        raise ValueError(limit)
    at = None if until is None else datetime.fromisoformat(until).timestamp()
    return Override(key, limit, changed_limit(value, limit), at)
