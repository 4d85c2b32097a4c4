"""Predictions from a sample: failures with their interval, rates, time, bytes and money. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ferry.job import Prices, Retries

Z = 1.96  # of an interval that has the true value in 95 of 100 cases
WINDOWS = 4  # parts of the measured time, whose rates are compared
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

    The first WARM_UP of the time is left out. The rest is divided into WINDOWS parts, and the interval is twice the
    standard error of their rates.
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
    error = 2 * statistics.stdev(rates) / math.sqrt(WINDOWS)
    return Range(max(0.0, value - error), value, value + error)


def host_rates(ends: Mapping[str, Sequence[float]], since: float, until: float) -> dict[str, float]:
    """Returns rows per second of each host. A host whose rows ended early counts until its last one."""
    found = {}
    for host, times in ends.items():
        inside = [time for time in times if since < time <= until]
        if len(inside) >= 2 and max(inside) > since:
            found[host] = len(inside) / (max(inside) - since)
    return found


def seconds(
    rows: Mapping[str, int], measured: Range, by_host: Mapping[str, float], *, fixed_s: float, tail_s: float,
    processes: int = 1,
) -> Range:  # fmt: skip
    """Returns the time of a run. ``rows``: those to do by host; ``measured``: rows per second of all hosts together.

    The slowest host decides if its rows alone take longer. ``fixed_s`` is for plan and report. ``tail_s`` is for the
    last tries of rows that fail. Up to ``processes`` transfer processes may share the work where one core limited the
    rate, so that the lower end is that much shorter.
    """  # fmt: skip
    total = sum(rows.values())
    if not total:
        return Range(fixed_s, fixed_s, fixed_s)
    if measured.value <= 0:
        return Range(math.inf, math.inf, math.inf)
    spread = max(LEAST_SPREAD, (measured.high - measured.value) / measured.value)
    slowest = max((rows[host] / by_host[host] for host in rows if by_host.get(host)), default=0.0)
    transfer = max(total / measured.value, slowest)
    low, high = transfer * (1 - min(0.5, spread)) / processes, transfer * (1 + min(1.0, spread)) + tail_s
    return Range(low, transfer + tail_s, high).plus(fixed_s)


def retries_s(retries: Retries) -> float:
    """Returns how long the tries of a failing row take, without its requests: the waits between them, in all passes."""
    waits = (min(retries.max_backoff_s, retries.backoff_s * 2.0**number) for number in range(retries.attempts))
    return float(sum(waits)) * (1 + retries.passes)


def sizes(found: Sequence[int], rows: float, known_rows: int, known_bytes: int) -> Range:
    """Returns the bytes of ``rows`` objects: those whose size the manifest has, and the others by the sample's mean."""
    left = max(0.0, rows - known_rows)
    known = float(min(known_bytes, known_bytes * rows / known_rows)) if known_rows else 0.0
    if not left or not found:
        return Range(known, known, known)
    mean = statistics.fmean(found)
    error = Z * statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else mean
    return Range(max(0.0, mean - error), mean, mean + error).times(left).plus(known)


def money(prices: Prices, *, puts: float, gets: float, egress_bytes: float, stored_bytes: float) -> tuple[float, float]:
    """Returns the price of the run, and of a month of storage. ``gets`` and ``egress_bytes`` are those that cost."""
    once = (
        puts / 1000 * prices.put_per_1000
        + gets / 1000 * prices.get_per_1000
        + egress_bytes / 1e9 * prices.egress_per_gb
    )
    return once, stored_bytes / 1e9 * prices.storage_per_gb_month
