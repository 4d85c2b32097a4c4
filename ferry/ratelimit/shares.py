"""Division of the user's limits among several worker processes, so that together they keep the limits. Pure."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from ferry.job import HostLimits, Limits

LimitsT = TypeVar("LimitsT", bound=HostLimits)


class Share(NamedTuple):
    """How many engine processes divide what."""

    run: int = 1  # those of the run, on all machines: its limits
    machine: int = 1  # those of this machine: memory, open files and space in the spool


def limits_of(limits: Limits, processes: int) -> Limits:
    """Return the part of the user's limits for one of ``processes`` processes."""
    if processes == 1:
        return limits
    hosts = {pattern: _part(of_host, processes) for pattern, of_host in limits.hosts.items()}
    return _part(limits, processes).model_copy(
        update={"hosts": hosts, "destination": _part(limits.destination, processes)}
    )


def most_processes(wanted: int, concurrency: int | None, limits: Limits) -> int:
    """Return ``wanted``, or the lowest concurrency limit if it is lower, so that each process gets a permit."""
    values = [concurrency, limits.concurrency, limits.destination.concurrency]
    values += [of_host.concurrency for of_host in limits.hosts.values()]
    return max(1, min([wanted, *(value for value in values if value is not None)]))


def is_bounded(concurrency: int | None, limits: Limits) -> bool:
    """Return whether the user set any limit. If so, that limit, not the CPU, determines the speed of a process."""
    return concurrency is not None or limits != Limits()


def _part(limits: LimitsT, processes: int) -> LimitsT:
    """Divide limits by the number of processes. Permits are rounded down, to at least one: 9 for two are 4 each."""
    return limits.model_copy(
        update={
            "concurrency": limits.concurrency and max(1, limits.concurrency // processes),
            "requests_per_s": limits.requests_per_s and limits.requests_per_s / processes,
            "bytes_per_s": limits.bytes_per_s and max(1, int(limits.bytes_per_s) // processes),
        }
    )
