"""The prediction of a run, from what a sample showed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from ferry.core import AGAIN, ONE_PUT_BYTES, Again, Confirmed, ErrorClass, Status, in_bucket, part_bytes
from ferry.job import Checks, Job, OnExisting
from ferry.preflight import predict
from ferry.preflight.destination_probe import DestinationFacts, Existing
from ferry.preflight.predict import Range
from ferry.preflight.result import FailureShare, Prediction
from ferry.preflight.sample_run import RowEnd, SampleRun
from ferry.processes import MIN_IDLE_CPU, MIN_LOOP_CPU
from ferry.state import Planned, Sample

EXAMPLES = 3
STATE_BYTES_A_ROW = 500  # plan, ledger and history; measured on lists of URLs
SPOOLED_FILES = 20  # of large bodies at once (ferry.core.Budget)
SPOOLED_OVER_BYTES = 8 << 20
PROCESS_BYTES, PLANNING_BYTES = 400e6, 1.3e9  # docs/explanation/concurrency.md, "Memory"
FINISH_S = 1.0  # reconciliation and report of a short run
DEAD_HOST_S = 60.0  # after which a run gives up a host that never answered


def failure_shares(run: SampleRun, sample: Sample) -> list[FailureShare]:
    """Returns the failures of the sample by class, status and host, those with most rows first."""
    judged = Counter(end.host for end in run.ends if end.judged)
    tried = Counter(end.host for end in run.ends)
    groups: dict[tuple[str, int | None, str], list[RowEnd]] = {}
    for end in run.ends:
        if end.status is Status.FAILED and (end.judged or _is_lasting(end)):
            groups.setdefault((end.error_class or "", end.status_code, end.host), []).append(end)
    found = []
    for (error, status, host), rows in groups.items():
        of = tried if _is_lasting(rows[0]) else judged
        share = predict.share({host: len(rows)}, {host: of[host]}, {host: sample.hosts[host]})
        found.append(
            FailureShare(
                error, status, host, len(rows), share.times(sample.hosts[host]), rows[0].message or "",
                [end.source for end in rows[:EXAMPLES]],
            )
        )  # fmt: skip
    return sorted(found, key=lambda failure: -failure.rows.value)


def _is_lasting(end: RowEnd) -> bool:
    """Returns whether a failure came at once, without further tries that the time of the check may have cut off."""
    return end.error_class is not None and AGAIN[ErrorClass(end.error_class)] is not Again.NOW


def predict_run(
    job: Job, planned: Planned, run: SampleRun, facts: DestinationFacts, existing: Existing, *,
    plan_s: float, processes: int, wrote: bool,
) -> Prediction:  # fmt: skip
    """Returns the prediction for all rows to do."""
    sample = planned.sample
    assert sample is not None
    rows = sum(sample.hosts.values())
    copied = [end for end in run.ends if end.status is not Status.FAILED]
    failing = _failing(job, run, sample, existing).times(rows)
    stored = max(0.0, rows - failing.value)
    a_row = predict.mean(_by_host(run.ends, lambda end: end.requests), sample.hosts).value
    checked = [end.confirmed for end in copied if end.confirmed]
    by_request = sum(how != Confirmed.DIGEST for how in checked) / len(checked) if checked else 0.0
    if not wrote:
        by_request = float(facts.confirmed_by is not Confirmed.DIGEST)
    parts = sum(end.size / part_bytes(end.size) for end in copied if end.size > ONE_PUT_BYTES) / max(1, len(copied))
    total = predict.sizes(
        predict.mean(_by_host(copied, lambda end: end.size), sample.hosts), stored, sample.sized_rows,
        sample.sized_bytes,
    )  # fmt: skip
    puts, confirmations = stored * (1 + parts), stored * by_request
    from_bucket = sum(in_bucket(row.source) for row in run.rows) / max(1, len(run.rows))
    to_bucket = in_bucket(job.destination.uri)
    copied_by_server = job.checks is Checks.NONE and to_bucket and job.is_one_store()
    once, monthly = predict.money(
        job.prices,
        puts=puts if to_bucket else 0.0,
        gets=(confirmations if to_bucket else 0.0) + rows * a_row * from_bucket,
        egress_bytes=0.0 if copied_by_server else total.value * from_bucket,
        stored_bytes=total.value if to_bucket else 0.0,
    )
    able = 1
    if run.core >= MIN_LOOP_CPU and run.idle >= MIN_IDLE_CPU:  # a run adds processes then
        able = max(1, min(processes, 1 + round(run.idle)))
    until = run.until if run.measured or not run.ends else max(end.ended for end in run.ends)
    dead = _dead(run)
    tail_s = DEAD_HOST_S if dead else 0.0
    if any(end.status is Status.FAILED and not _is_lasting(end) for end in run.ends):
        tail_s = max(tail_s, predict.retries_s(job.retries))
    measured = predict.rate([end.ended for end in run.ends], run.since, until)
    largest = max((end.size for end in copied), default=0)
    return Prediction(
        rows=rows,
        seconds=predict.seconds(
            {host: count for host, count in sample.hosts.items() if host not in dead}, measured,
            predict.host_rates(_by_host(run.ends, lambda end: end.ended), run.since, until),
            hosts_at_once=sample.hosts_at_once, fixed_s=plan_s + FINISH_S, tail_s=tail_s, processes=able,
        ),
        rows_per_s=measured,
        failures=failing.plus(_known_failures(planned)),
        known_failures=_known_failures(planned),
        budget=job.budget(planned.rows - planned.duplicates),
        bytes=total, source_requests=rows * a_row, destination_requests=puts + confirmations,
        currency=job.prices.currency, money=once, money_per_month=monthly,
        disk_bytes=planned.rows * STATE_BYTES_A_ROW + (SPOOLED_FILES * largest if largest > SPOOLED_OVER_BYTES else 0),
        memory_bytes=max(PLANNING_BYTES, PROCESS_BYTES * able), limited_by=run.limited_by,
    )  # fmt: skip


def _failing(job: Job, run: SampleRun, sample: Sample, existing: Existing) -> Range:
    """Returns the share of the rows to do that would fail."""
    failed = [end for end in run.ends if end.status is Status.FAILED]
    share = predict.failing(
        Counter(end.host for end in run.ends if end.judged),
        Counter(end.host for end in failed if end.judged and not _is_lasting(end)),
        Counter(end.host for end in run.ends),
        Counter(end.host for end in failed if _is_lasting(end)),
        run.unfinished, _dead(run), sample.hosts,
    )  # fmt: skip
    if job.on_existing is not OnExisting.FAIL or not existing.asked:
        return share
    taken = predict.share({"": existing.other}, {"": existing.asked}, {"": sum(sample.hosts.values())})
    return Range(share.low + taken.low, min(1.0, share.value + taken.value), min(1.0, share.high + taken.high))


def _dead(run: SampleRun) -> set[str]:
    """Returns the hosts that never answered, as the sample names them."""
    answered = {end.host for end in run.ends}
    return {name.lower() for name in run.silent} - answered


def _known_failures(planned: Planned) -> int:
    return planned.unusable + planned.collisions + planned.permanent_failures


def _by_host(ends: list[RowEnd], value: Callable[[RowEnd], float]) -> Mapping[str, list[float]]:
    found: dict[str, list[float]] = {}
    for end in ends:
        found.setdefault(end.host, []).append(value(end))
    return found
