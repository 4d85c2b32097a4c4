"""What each of several engine processes may ask of the hosts: together no more than one alone. Pure."""

from __future__ import annotations

from typing import TypeVar

from ferry.job import HostLimits, Limits

LimitsT = TypeVar("LimitsT", bound=HostLimits)


def limits_of(limits: Limits, processes: int) -> Limits:
    """One process's part of the user's bounds."""
    if processes == 1:
        return limits
    hosts = {pattern: _part(bounds, processes) for pattern, bounds in limits.hosts.items()}
    return _part(limits, processes).model_copy(
        update={"hosts": hosts, "destination": _part(limits.destination, processes)}
    )


def most_processes(wanted: int, concurrency: int | None, limits: Limits) -> int:
    """As many as are ``wanted``, but no more than the smallest bound has places: none of them may be without."""
    bounds = [concurrency, limits.concurrency, limits.destination.concurrency]
    bounds += [bound.concurrency for bound in limits.hosts.values()]
    return max(1, min([wanted, *(bound for bound in bounds if bound is not None)]))


def is_bounded(concurrency: int | None, limits: Limits) -> bool:
    """Did the user bound anything? Then what is measured is that bound, not what a core can do."""
    return concurrency is not None or limits != Limits()


def _part(bounds: LimitsT, processes: int) -> LimitsT:
    """Places are divided downwards: nine for two processes are four each."""
    return bounds.model_copy(
        update={
            "concurrency": bounds.concurrency and max(1, bounds.concurrency // processes),
            "requests_per_s": bounds.requests_per_s and bounds.requests_per_s / processes,
            "bytes_per_s": bounds.bytes_per_s and max(1, int(bounds.bytes_per_s) // processes),
        }
    )
