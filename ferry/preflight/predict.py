"""Predictions from a sample: failures with their interval, rates, time, bytes and money. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ferry.job import Prices, Retries

Z = 1.96  # of an interval that has the true value in 95 of 100 cases
WINDOWS = 4  # parts of the measured time, whose rates are compared
T = 3.18  # as Z, for WINDOWS values (Student's t for three degrees of freedom)
MIXED = 0.9  # a list with less of a mix may take its hosts one after the other
LEAST_SPREAD = 0.1  # of a predicted time, on each side: two runs of one job differ by as much
WARM_UP = 0.25  # share of the measured time in which concurrency still grows


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate, and the interval in which the true value lies."""

    low: float
    value: float
    high: float

    def times(self, factor: float) -> Range:
        """Returns all three numbers multiplied."""
        return Range(self.low * factor, self.value * factor, self.high * factor)

    def plus(self, addend: float) -> Range:
        """Returns all three numbers with an addend."""
        return Range(self.low + addend, self.value + addend, self.high + addend)


def share(hits: Mapping[str, int], tried: Mapping[str, int], rows: Mapping[str, int]) -> Range:
    """Returns the share of all rows that a sample by hosts shows, with its 95% interval.

    ``hits`` of the ``tried`` rows of each host had the property; ``rows`` are all rows of each host, its weight. Hosts
    of which no row was tried are left out. The interval is E. B. Wilson's (1927), which is right for rare events and
    small samples, for the effective size of a weighted sample of a finite number of rows (L. Kish, Survey Sampling,
    1965). It is exact once all rows were tried.

    | host a: hits of tried, rows | host b | low | value | high |
    |---|---|---|---|---|
    | 0 of 200, 1,000,000 | | 0.000 | 0.000 | 0.019 |
    | 10 of 200, 1,000,000 | | 0.027 | 0.050 | 0.090 |
    | 10 of 200, 400 | | 0.033 | 0.050 | 0.076 |
    | 10 of 200, 200 | | 0.050 | 0.050 | 0.050 |
    | 0 of 190, 950,000 | 10 of 10, 50,000 | 0.027 | 0.050 | 0.090 |
    """
    weights = {host: rows.get(host, 0) for host, n in tried.items() if n and rows.get(host, 0)}
    total = sum(weights.values())
    if not total:
        return Range(0.0, 0.0, 1.0)
    p = sum(weight / total * hits.get(host, 0) / tried[host] for host, weight in weights.items())
    left = {
        host: max(0.0, 1 - tried[host] / weight) for host, weight in weights.items()
    }  # the share that was not tried
    unknown = sum((weight / total) ** 2 * left[host] / tried[host] for host, weight in weights.items())
    if not unknown:
        return Range(p, p, p)
    n = 1 / unknown
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return Range(max(0.0, min(p, middle - half)), p, min(1.0, max(p, middle + half)))


def rate(ends: Sequence[float], since: float, until: float) -> Range:
    """Returns rows per second by the times at which rows ended, from ``since`` to ``until`` seconds.

    The first WARM_UP of the time is left out. The rest is divided into WINDOWS parts, whose rates give the interval.
    """
    start = since + WARM_UP * (until - since)
    span = until - start
    if span <= 0 or not ends:
        return Range(0.0, 0.0, 0.0)
    counts = [0] * WINDOWS
    for end in ends:
        if start < end <= until:
            counts[min(WINDOWS - 1, int((end - start) / span * WINDOWS))] += 1
    rates = [count * WINDOWS / span for count in counts]
    value = statistics.fmean(rates)
    error = T * statistics.stdev(rates) / math.sqrt(WINDOWS)
    return Range(max(0.0, value - error), value, value + error)


def host_rates(ends: Mapping[str, Sequence[float]], since: float, until: float) -> dict[str, float]:
    """Returns rows per second of each host. A host whose rows ended early counts until its last one."""
    found = {}
    for host, times in ends.items():
        inside = [time for time in times if since < time <= until]
        if len(inside) >= 2 and max(inside) > since:
            found[host] = len(inside) / (max(inside) - since)
    return found


def failing(
    judged: Mapping[str, int], retryable: Mapping[str, int], tried: Mapping[str, int], permanent: Mapping[str, int],
    without: Mapping[str, int], dead: Collection[str], rows: Mapping[str, int],
) -> Range:  # fmt: skip
    """Returns the share of all rows that would fail. All numbers are by host.

    ``retryable`` of the ``judged`` rows of the sample failed after all their tries; ``permanent`` of all ``tried`` rows
    failed at once. The two are apart, since rows that measured the rate had no time for all tries. ``without`` rows of
    the sample have no outcome: those of ``dead`` hosts, which never answered, count as failures, and the others as
    failures for the upper end alone. The true value lies in the interval in 95 of 100 cases.
    """
    at_dead = {host: count for host, count in without.items() if host in dead}
    known = share(_sum(retryable, at_dead), _sum(judged, at_dead), rows)
    at_most = share(_sum(retryable, without), _sum(judged, without), rows)
    lasting = share(permanent, _sum(tried, at_dead), rows)
    low = math.hypot(known.value - known.low, lasting.value - lasting.low)
    high = math.hypot(at_most.high - known.value, lasting.high - lasting.value)
    value = min(1.0, known.value + lasting.value)
    return Range(max(0.0, value - low), value, min(1.0, value + high))


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {host: one.get(host, 0) + other.get(host, 0) for host in {**one, **other}}


def seconds(
    rows: Mapping[str, int], measured: Range, by_host: Mapping[str, float], *, hosts_at_once: float, fixed_s: float,
    tail_s: float, processes: int = 1,
) -> Range | None:  # fmt: skip
    """Returns the time of a run, None without a rate. ``measured``: rows per second of all hosts together.

    ``rows`` are those to do by host. The slowest host decides if its rows alone take longer. A list that is sorted by
    host (``hosts_at_once``: hosts among rows that a run has ready together) takes the hosts one after the other.
    ``fixed_s`` is for plan and report. ``tail_s`` is for the last tries of rows that fail. Up to ``processes`` transfer
    processes may share the work where one core limited the rate, so that the lower end is that much shorter.
    """
    total = sum(rows.values())
    if not total:
        return Range(fixed_s, fixed_s, fixed_s)
    if measured.value <= 0:
        return None
    spread = max(LEAST_SPREAD, (measured.high - measured.value) / measured.value)
    alone = [rows[host] / by_host[host] for host in rows if by_host.get(host)]
    together = max(total / measured.value, *alone, 0.0)
    one_by_one = max(together, sum(alone)) if len(alone) > 1 else together
    hosts = 1 / sum((count / total) ** 2 for count in rows.values())  # as many of equal size
    mixed = min(1.0, max(0.0, (hosts_at_once - 1) / (hosts - 1))) if hosts > 1 else 1.0
    middle = mixed * together + (1 - mixed) * one_by_one
    low = together * (1 - min(0.5, spread)) / processes
    high = max(middle, one_by_one if mixed < MIXED else 0.0) * (1 + min(1.0, spread)) + tail_s
    return Range(low, middle + tail_s, high).plus(fixed_s)


def retries_s(retries: Retries) -> float:
    """Returns how long the tries of a failing row take, without its requests: the waits between them, in all passes."""
    waits = (min(retries.max_backoff_s, retries.backoff_s * 2.0**number) for number in range(retries.attempts))
    return float(sum(waits)) * (1 + retries.passes)


def mean(values: Mapping[str, Sequence[float]], rows: Mapping[str, int]) -> Range:
    """Returns the mean of a value over all rows, from the values of a sample by host, with its 95% interval."""
    weights = {host: rows[host] for host in rows if values.get(host)}
    total = sum(weights.values())
    if not total:
        return Range(0.0, 0.0, 0.0)
    value = sum(weight / total * statistics.fmean(values[host]) for host, weight in weights.items())
    spread = {host: statistics.variance(values[host]) if len(values[host]) > 1 else 0.0 for host in weights}
    error = Z * math.sqrt(sum((weights[h] / total) ** 2 * spread[h] / len(values[h]) for h in weights))
    return Range(max(0.0, value - error), value, value + error)


def sizes(mean_bytes: Range, rows: float, known_rows: int, known_bytes: int) -> Range:
    """Returns the bytes of ``rows`` objects: those whose size the manifest has, and the others by the sample's mean."""
    known = float(min(known_bytes, known_bytes * rows / known_rows)) if known_rows else 0.0
    return mean_bytes.times(max(0.0, rows - known_rows)).plus(known)


def money(prices: Prices, *, puts: float, gets: float, egress_bytes: float, stored_bytes: float) -> tuple[float, float]:
    """Returns the price of the run, and of a month of storage. ``gets`` and ``egress_bytes`` are those that cost."""
    once = (
        puts / 1000 * prices.put_per_1000
        + gets / 1000 * prices.get_per_1000
        + egress_bytes / 1e9 * prices.egress_per_gb
    )
    return once, stored_bytes / 1e9 * prices.storage_per_gb_month
