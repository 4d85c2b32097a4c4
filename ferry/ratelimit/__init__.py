"""Limits on concurrency, request rate and bandwidth for each host, and for the whole job."""

from ferry.ratelimit.circuit_breaker import CircuitBreaker, silence_of
from ferry.ratelimit.effective import Override, in_force, limits_at, sentence
from ferry.ratelimit.follower import LimitsFollower
from ferry.ratelimit.host import HostLimit
from ferry.ratelimit.host_snapshot import HostSnapshot
from ferry.ratelimit.limiter import COPIES_START, DESTINATION, Limiter
from ferry.ratelimit.members import BEAT_S, JOIN_S, Members
from ferry.ratelimit.overrides import add_overrides, end_overrides, read_overrides
from ferry.ratelimit.pause import Pause
from ferry.ratelimit.permit import PausedTooLong, Permit, host_of, record_failure
from ferry.ratelimit.shares import Share, is_bounded, limits_of, most_processes
from ferry.ratelimit.status import Hosts, busiest, keep_written, read_hosts, together

__all__ = [
    "BEAT_S",
    "COPIES_START",
    "DESTINATION",
    "JOIN_S",
    "CircuitBreaker",
    "HostLimit",
    "HostSnapshot",
    "Hosts",
    "Limiter",
    "LimitsFollower",
    "Members",
    "Override",
    "Pause",
    "PausedTooLong",
    "Permit",
    "Share",
    "add_overrides",
    "busiest",
    "end_overrides",
    "host_of",
    "in_force",
    "is_bounded",
    "keep_written",
    "limits_at",
    "limits_of",
    "most_processes",
    "read_hosts",
    "read_overrides",
    "record_failure",
    "sentence",
    "silence_of",
    "together",
]
