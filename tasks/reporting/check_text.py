"""What `ferry check` found, in words."""

from __future__ import annotations

import math

from ferry.core import Confirmed, ErrorClass, Reason, duration, in_bucket, size
from ferry.preflight import CheckResult, DestinationFacts, HostFacts, Range
from ferry.state import PLAIN_WORDS, REMEDIES
from tasks.reporting.text import describe, lost_note

ROUNDING = 1e-6
CONFIRMED = {
    Confirmed.DIGEST: "by the digest in the store's response",
    Confirmed.READ_BACK: "by reading it back",
    Confirmed.SIZE: "by its size alone",
}


def verdict(found: CheckResult) -> str:
    """Returns the verdict in one line: `Ready: ...`, or `Not ready: ...` and why."""
    p = found.prediction
    rows = f"of {found.planned.rows - found.planned.duplicates:,} rows"
    if found.copies_nothing and found.exit_code:
        why = found.why_unfinished or (found.failures[0].message if found.failures else "")
        return f"Not ready: no row of the sample could be copied{': ' if why else ''}{why}"
    if found.exit_code and p.failures.value <= p.budget:
        why = f" ({found.why_unfinished})" if found.why_unfinished else ""
        return (
            f"Not ready: {sum(found.unfinished.values()):,} rows of the sample had no outcome in the time of the check"
            f"{why}. Up to {p.failures.high:,.0f} {rows} may fail, and failure_budget allows {p.budget:,}"
        )
    if found.exit_code:
        fail = f"about {p.failures.value:,.0f} {rows} would fail"
        return f"Not ready: {fail}, more than the {p.budget:,} that failure_budget allows"
    rechecks = found.planned.todo.get(Reason.REVALIDATE, 0)
    and_rechecks = f". {rechecks:,} copies are rechecked as well, whose time is not predicted" if rechecks else ""
    if not p.rows:
        return f"Ready: there is nothing to copy{and_rechecks}" if rechecks else "Ready: there is nothing to do"
    text = f"Ready: {p.rows:,} rows, about {size(p.bytes.value)}, in about {time_words(p.seconds)}{and_rechecks}"
    if p.failures.high <= p.budget:
        return text
    may = f"Up to {p.failures.high:,.0f} rows may fail, and failure_budget allows {p.budget:,}"
    return f"{text}. {may}: a larger --sample tells more"


def describe_check(found: CheckResult) -> list[str]:
    """Returns all that the check found, as lines: the plan, the sample, the destination, the prediction."""
    lines = describe(found.planned)
    if found.prediction.rows:
        lines += ["", *_sample(found)]
    lines += ["", *_destination(found.destination, found.planned.mappings), *_existing(found)]
    lines += [line for facts in found.hosts for line in _host(facts)]
    if found.prediction.rows:
        lines += ["", *_prediction(found)]
    return [*lines, *(f"warning: {text}" for text in found.warnings)]


def time_words(seconds: Range | None) -> str:
    """Returns a time with its range, such as `2:10 to 2:40`."""
    if seconds is None:
        return "a time that is not known, since too few rows were copied in the time of the check"
    low, high = duration(seconds.low), duration(seconds.high)
    return low if low == high else f"{low} to {high}"


def _sample(found: CheckResult) -> list[str]:
    failed = found.sampled - found.copied
    where = "to a prefix of its own" if found.wrote_sample else "to this machine"
    line = f"sample: {found.sampled:,} rows: {found.copied:,} copied {where}"
    lines = [f"{line}, {failed:,} failed" if failed else line]
    for host, rows in found.unfinished.items():
        lines.append(f"  {rows:,} rows{f' of {host}' if host else ''} had no outcome in the time of the check")
    if found.unfinished and found.why_unfinished:
        lines.append(f"     {found.why_unfinished}")
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
    if lost := lost_note(found.lost_attributes, "row"):
        lines.append(f"  {lost}")
    if found.plain_http:
        lines.append(f"  {found.plain_http:,} of these rows have plain HTTP, which is not encrypted")
    return lines


def count_words(rows: Range) -> str:
    """Returns an estimated number of rows, such as `1,000 (760 to 1,310)`."""
    value, low, high = round(rows.value), math.floor(rows.low + ROUNDING), math.ceil(rows.high - ROUNDING)
    return f"{value:,}" if low == high else f"{value:,} ({low:,} to {high:,})"


def _destination(facts: DestinationFacts, mappings: list[tuple[str, str]]) -> list[str]:
    bucket = not mappings or in_bucket(mappings[0][1])
    listing = ", and so does listing" if facts.listed else ""
    how = CONFIRMED[facts.confirmed_by]
    lines = [f"destination: writing and reading work{listing}; an upload is confirmed {how}"]
    if bucket:
        lines.append(
            f"  conditional writes: {facts.conditional_writes}; checksums of uploads compared: {facts.checksums}; "
            f"ETags are MD5s: {'yes' if facts.md5_etags else 'no'}; versioning: {facts.versioning}; "
            f"encryption: {facts.encryption}; object lock: {facts.object_lock}"
        )
    return lines


def _existing(found: CheckResult) -> list[str]:
    """Returns what the destination has under keys of the sample, and what a run does with it."""
    seen = found.existing
    there = seen.same + seen.other + seen.unknown
    if not there:
        return [f"  of {seen.asked:,} keys of the sample, none is taken"] if seen.asked else []
    parts = [f"{seen.same:,} with the same bytes" if seen.same else ""]
    parts += [f"{seen.other:,} with other bytes" if seen.other else ""]
    parts += [f"{seen.unknown:,} with bytes that their ETag does not tell" if seen.unknown else ""]
    what = {
        "skip-same": "objects with other bytes are REPLACED",
        "overwrite": "all of them are REPLACED",
        "skip": "they stay, and their rows are skipped",
        "fail": "rows whose object has other bytes fail",
    }[found.on_existing]
    kinds = ", ".join(filter(None, parts))
    taken = f"  of {seen.asked:,} keys of the sample, {there:,} are taken: {kinds}"
    return [f"{taken}. on_existing: {found.on_existing}: {what}"]


def _host(facts: HostFacts) -> list[str]:
    conditions = {
        True: "unchanged objects answer 304, so that delta runs read only changed ones",
        False: "conditions are ignored, so that delta runs ask by HEAD or read the objects again",
        None: "no ETag and no date is known, so that delta runs ask by HEAD or read objects again",
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
