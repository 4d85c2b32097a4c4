"""What `ferry check` found, in words."""

from __future__ import annotations

import math

from ferry.core import Confirmed, ErrorClass
from ferry.preflight import CheckResult, DestinationFacts, HostFacts, Range
from ferry.state import PLAIN_WORDS, REMEDIES
from tasks.reporting.text import describe, duration, size

ROUNDING = 1e-6
CONFIRMED = {
    Confirmed.DIGEST: "by the digest in the store's response",
    Confirmed.READ_BACK: "by reading it back",
    Confirmed.SIZE: "by its size alone",
}


def verdict(found: CheckResult) -> str:
    """Returns the verdict in one line: `Ready: ...`, or `Not ready: ...` and why."""
    p = found.prediction
    if found.exit_code == 2:
        why = found.why_unfinished or (found.failures[0].message if found.failures else "")
        return f"Not ready: no row of the sample could be copied{': ' if why else ''}{why}"
    if found.exit_code == 1:
        rows = f"about {p.failures.value:,.0f} of {found.planned.rows - found.planned.duplicates:,} rows"
        return f"Not ready: {rows} would fail, more than the {p.budget:,} that failure_budget allows"
    if not p.rows:
        return "Ready: there is nothing to do"
    return f"Ready: {p.rows:,} rows, about {size(p.bytes.value)}, in about {time_words(p.seconds)}"


def describe_check(found: CheckResult) -> list[str]:
    """Returns all that the check found, as lines: the plan, the sample, the destination, the prediction."""
    lines = describe(found.planned)
    if found.prediction.rows:
        lines += ["", *_sample(found)]
    lines += ["", *_destination(found.destination, found.planned.mappings)]
    lines += [line for facts in found.hosts for line in _host(facts)]
    if found.prediction.rows:
        lines += ["", *_prediction(found)]
    return [*lines, *(f"warning: {text}" for text in found.warnings)]


def time_words(seconds: Range) -> str:
    """Returns a time with its range, such as `2:10 to 2:40`."""
    if not math.isfinite(seconds.high):
        return "a time that is not known, since no row was copied in the time of the check"
    low, high = duration(seconds.low), duration(seconds.high)
    return low if low == high else f"{low} to {high}"


def _sample(found: CheckResult) -> list[str]:
    failed = found.sampled - found.copied
    where = "to a prefix of its own, and deleted again" if found.wrote_sample else "to this machine"
    line = f"sample: {found.sampled:,} rows: {found.copied:,} copied {where}"
    lines = [f"{line}, {failed:,} failed" if failed else line]
    if found.unfinished:
        why = f" ({found.why_unfinished})" if found.why_unfinished else ""
        lines.append(f"  {found.unfinished:,} rows had no outcome in the time of the check{why}")
    if found.formats:
        kinds = ", ".join(f"{kind} ({rows:,})" for kind, rows in list(found.formats.items())[:6])
        lines.append(
            f"  types: {kinds}; half are up to {size(found.median_bytes)}, the largest {size(found.largest_bytes)}"
        )
    for failure in found.failures:
        error = ErrorClass(failure.error_class)
        words = PLAIN_WORDS[error]
        code = f" {failure.status_code}" if failure.status_code and str(failure.status_code) not in words else ""
        at = f" at {failure.host}" if failure.host else ""
        lines += [
            f"  {failure.sampled:,}  {words}{code}{at}: {count_words(failure.rows)} of all rows would fail so",
            f"     {failure.message}",
            *(f"     {example}" for example in failure.examples),
            f"     what to do: {REMEDIES[error]}",
        ]
    if found.plain_http:
        lines.append(f"  {found.plain_http:,} of these rows are fetched over plain HTTP, which is not encrypted")
    return lines


def count_words(rows: Range) -> str:
    """Returns an estimated number of rows, such as `1,000 (760 to 1,310)`."""
    value, low, high = round(rows.value), math.floor(rows.low + ROUNDING), math.ceil(rows.high - ROUNDING)
    return f"{value:,}" if low == high else f"{value:,} ({low:,} to {high:,})"


def _destination(facts: DestinationFacts, mappings: list[tuple[str, str]]) -> list[str]:
    bucket = not mappings or mappings[0][1].startswith("s3://")
    lines = [
        f"destination: writing, reading and listing work; an upload is confirmed {CONFIRMED[facts.confirmed_by]}"
        + ("" if facts.deletes else "; deleting does not")
    ]
    if bucket:
        lines.append(
            f"  conditional writes: {facts.conditional_writes}; checksums of uploads compared: {facts.checksums}; "
            f"ETags are MD5s: {'yes' if facts.md5_etags else 'no'}; versioning: {facts.versioning}; "
            f"encryption: {facts.encryption}; object lock: {facts.object_lock}"
        )
    return lines


def _host(facts: HostFacts) -> list[str]:
    conditions = {
        True: "unchanged objects answer 304, so that delta runs read only changed ones",
        False: "conditions are ignored, so that delta runs ask by HEAD or read the objects again",
        None: "objects have neither ETag nor date, so that delta runs ask by HEAD or read them again",
    }[facts.conditions]
    line = f"origin {facts.host}: {'TLS' if facts.encrypted else 'plain HTTP'}; {conditions}"
    if facts.redirects:
        line += f"; {facts.redirects:,} {'redirect' if facts.redirects == 1 else 'redirects'} for each object"
    if facts.ranges is not None:
        line += f"; parts of objects: {'yes' if facts.ranges else 'no'}"
    return [line]


def _prediction(found: CheckResult) -> list[str]:
    p = found.prediction
    rate = f", {p.rows_per_s.value:,.0f} rows/s" if p.rows_per_s.value >= 1 else ""
    known = f", {p.known_failures:,} of them known already" if p.known_failures else ""
    money = f"{p.money:,.2f} {p.currency}"
    if p.money_per_month:
        money += f", and {p.money_per_month:,.2f} {p.currency} a month for the storage"
    return [
        f"prediction for {p.rows:,} rows, by the limits in force now:",
        f"  time       {time_words(p.seconds)}{rate}" + (f" ({p.limited_by})" if p.limited_by else ""),
        f"  failures   {count_words(p.failures)}{known}; failure_budget allows {p.budget:,}",
        f"  bytes      {size(p.bytes.value)}"
        + ("" if p.bytes.low == p.bytes.high else f" ({size(p.bytes.low)} to {size(p.bytes.high)})"),
        f"  requests   {p.source_requests:,.0f} to the sources, {p.destination_requests:,.0f} to the destination",
        f"  money      {money} (by `prices`)",
        f"  disk       up to {size(p.disk_bytes)} for the state and large bodies",
        f"  memory     up to {size(p.memory_bytes)}",
    ]
