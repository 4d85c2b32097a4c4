"""The preflight of a job: its destination is probed, a sample is copied and deleted again, and the run is predicted."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from ferry.core import ONE_PUT_BYTES, PART_BYTES, Confirmed, FerryError, ObjectError, Status
from ferry.job import Job, OnExisting
from ferry.preflight import predict
from ferry.preflight.destination_probe import KEY, DestinationFacts, probe_destination
from ferry.preflight.host_probe import HostFacts, probe_hosts
from ferry.preflight.result import CheckResult, FailureShare, Prediction
from ferry.preflight.sample_run import Engine, RowEnd, SampleRun, run_sample
from ferry.processes import MIN_IDLE_CPU, MIN_LOOP_CPU
from ferry.state import Planned, Sample
from ferry.storage import ConditionUnsupported, open_store

NAME = "ferry-check-"  # of the prefix for probes, with random digits after it
EXAMPLES = 3
STATE_BYTES_A_ROW = 500  # plan, ledger and history; measured on lists of URLs
SPOOLED_FILES = 20  # of large bodies at once (ferry.core.Budget)
SPOOLED_OVER_BYTES = 8 << 20
PROCESS_BYTES, PLANNING_BYTES = 400e6, 1.3e9  # docs/explanation/concurrency.md, "Memory"
FINISH_S = 1.0  # reconciliation and report of a short run


def check_job(
    job: Job,
    planned: Planned,
    folder: Path,
    engine: Engine,
    *,
    plan_s: float,
    processes: int,
    write: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> CheckResult:
    """Probes the destination, copies the sample of ``planned`` and predicts the run.

    ``folder`` has the state with the sample's chunks. ``plan_s``: how long planning took; ``processes``: the largest
    number of transfer processes of a run. Without ``write``, the sample is copied to ``folder``, and the destination is
    written to by the probe alone. Everything that was written is deleted again. Raises UserError for a destination or a
    source that cannot be used, and Fatal.
    """
    sample = planned.sample
    assert sample is not None
    prefix = f"{job.destination.uri.rstrip('/')}/{NAME}{secrets.token_hex(4)}"
    run = SampleRun()
    with _Probes(prefix, engine, folder, run) as probes:
        say("checking the destination")
        facts = probe_destination(f"{prefix}/probe", engine.destination, folder)
        if facts.conditional_writes == "refused" and job.on_existing in (OnExisting.SKIP, OnExisting.FAIL):
            raise ConditionUnsupported
        wrote = probes.with_sample = write and not facts.keeps_what_is_deleted
        uri = f"{prefix}/sample" if wrote else (folder / "sample").absolute().as_uri()
        drawn = sum(ref.rows for ref in sample.chunks)
        say(f"copying a sample of {drawn:,} rows, and measuring the rate")
        run_sample(job, uri, sample, folder, engine, run)
        say("deleting what was written")
    copied = [end for end in run.ends if end.status is not Status.FAILED]
    hosts = asyncio.run(probe_hosts(job, engine, copied, folder / "spool"))
    return _result(job, planned, sample, run, facts, hosts=hosts, wrote=wrote, left=probes.left, prefix=prefix,
                   plan_s=plan_s, processes=processes)  # fmt: skip


class _Probes:
    """What a check writes under its prefix. All of it is deleted at the end of the block, also after a Ctrl-C."""

    def __init__(self, prefix: str, engine: Engine, folder: Path, run: SampleRun) -> None:
        self._prefix, self._engine, self._folder, self._run = prefix, engine, folder, run
        self.with_sample = False  # whether the sample is copied there, too
        self.left = 0  # objects that could not be deleted
        self._directory = Path(unquote(urlsplit(prefix).path)) if prefix.startswith("file:") else None
        self._made = [path for path in self._directory.parents if not path.exists()] if self._directory else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._directory is None:
            self.left = self._delete_objects()
            return
        shutil.rmtree(self._directory, ignore_errors=True)
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir()

    def _delete_objects(self) -> int:
        """Deletes the keys that are known, then what a listing shows. Returns how many objects may be left."""
        store = open_store(self._prefix, self._engine.destination, self._folder)
        ends = self._run.ends if self.with_sample else []
        keys = [f"probe/{KEY}", *(f"sample/{end.key}" for end in ends if end.status is Status.COPIED)]
        left = len(keys)
        with contextlib.suppress(ObjectError, FerryError):
            store.control().delete(map(store.path, keys))
            left = 0
            for page in store.list():
                left = len(page)
                store.control().delete(store.path(found.key) for found in page)
                left = 0
            store.control().abort(f"{store.prefix}/", below=True)
        return left


def _result(
    job: Job, planned: Planned, sample: Sample, run: SampleRun, facts: DestinationFacts, *,
    hosts: list[HostFacts], wrote: bool, left: int, prefix: str, plan_s: float, processes: int,
) -> CheckResult:  # fmt: skip
    copied = [end for end in run.ends if end.status is not Status.FAILED]
    sizes = sorted(end.size for end in copied)
    prediction = _predict(job, planned, sample, run, plan_s=plan_s, processes=processes)
    return CheckResult(
        job=job.name, planned=planned, sampled=len(run.ends), copied=len(copied), unfinished=run.unfinished,
        why_unfinished=run.why, failures=_failures(run.ends, sample),
        formats=dict(Counter(end.content_type or "unknown" for end in copied).most_common()),
        median_bytes=int(statistics.median(sizes)) if sizes else 0, largest_bytes=sizes[-1] if sizes else 0,
        hosts=hosts, destination=facts, wrote_sample=wrote, left_objects=left, prefix=prefix,
        plain_http=sum(end.row.source.lower().startswith("http:") for end in run.ends), prediction=prediction,
        warnings=_warnings(job, facts, left, prefix),
    )  # fmt: skip


def _failures(ends: Sequence[RowEnd], sample: Sample) -> list[FailureShare]:
    """Returns the failures of the sample by class, status and host, those with most rows first."""
    tried = Counter(end.host for end in ends)
    groups: dict[tuple[str, int | None, str], list[RowEnd]] = {}
    for end in ends:
        if end.status is Status.FAILED:
            groups.setdefault((end.error_class or "", end.status_code, end.host), []).append(end)
    found = []
    for (error, status, host), rows in groups.items():
        share = predict.share({host: len(rows)}, {host: tried[host]}, {host: sample.hosts[host]})
        found.append(
            FailureShare(
                error, status, host, len(rows), share.times(sample.hosts[host]), rows[0].message or "",
                [end.source for end in rows[:EXAMPLES]],
            )
        )  # fmt: skip
    return sorted(found, key=lambda failure: -failure.rows.value)


def _predict(
    job: Job, planned: Planned, sample: Sample, run: SampleRun, *, plan_s: float, processes: int
) -> Prediction:  # fmt: skip
    """Returns the prediction for all rows to do."""
    rows = sum(sample.hosts.values())
    tried = Counter(end.host for end in run.ends)
    failed = Counter(end.host for end in run.ends if end.status is Status.FAILED)
    known = planned.unusable + planned.collisions + planned.permanent_failures
    failing = predict.share(failed, tried, sample.hosts).times(rows)
    stored = max(0.0, rows - failing.value)
    ends = [end.ended for end in run.ends]
    measured = predict.rate(ends, run.since, run.until)
    by_host: dict[str, list[float]] = {}
    for end in run.ends:
        by_host.setdefault(end.host, []).append(end.ended)
    retried = run.unfinished or any(end.status is Status.FAILED and end.requests > 1 for end in run.ends)
    total_bytes = predict.sizes(
        [end.size for end in run.ends if end.status is not Status.FAILED], stored, sample.sized_rows, sample.sized_bytes
    )
    a_row = statistics.fmean([end.requests for end in run.ends]) if run.ends else 1.0
    checked = [end.confirmed for end in run.ends if end.confirmed]
    by_request = sum(how != Confirmed.DIGEST for how in checked) / len(checked) if checked else 0.0
    big = [end.size for end in run.ends if end.size > ONE_PUT_BYTES]
    parts = sum(size / PART_BYTES for size in big) / max(1, len(run.ends))
    puts = stored * (1 + parts)
    from_bucket = job.is_listed() or bool(job.source.roots)
    to_bucket = job.destination.uri.startswith("s3://")
    once, monthly = predict.money(
        job.prices,
        puts=puts if to_bucket else 0.0,
        gets=(stored * by_request if to_bucket else 0.0) + (rows * a_row if from_bucket else 0.0),
        egress_bytes=total_bytes.value if from_bucket else 0.0,
        stored_bytes=total_bytes.value if to_bucket else 0.0,
    )
    largest = max((end.size for end in run.ends), default=0)
    spool = SPOOLED_FILES * largest if largest > SPOOLED_OVER_BYTES else 0
    able = 1
    if run.core >= MIN_LOOP_CPU and run.idle >= MIN_IDLE_CPU:  # a run adds processes then
        able = max(1, min(processes, 1 + round(run.idle)))
    seconds = predict.seconds(
        sample.hosts, measured, predict.host_rates(by_host, run.since, run.until),
        fixed_s=plan_s + FINISH_S, tail_s=predict.retries_s(job.retries) if retried else 0.0, processes=able,
    )  # fmt: skip
    return Prediction(
        rows=rows, seconds=seconds, rows_per_s=measured, failures=failing.plus(known), known_failures=known,
        budget=job.budget(planned.rows - planned.duplicates), bytes=total_bytes, source_requests=rows * a_row,
        destination_requests=puts + stored * by_request, currency=job.prices.currency, money=once,
        money_per_month=monthly, disk_bytes=planned.rows * STATE_BYTES_A_ROW + spool,
        memory_bytes=max(PLANNING_BYTES, PROCESS_BYTES * able), limited_by=run.limited_by,
    )  # fmt: skip


def _warnings(job: Job, facts: DestinationFacts, left: int, prefix: str) -> list[str]:
    """Returns what a user should know before the run."""
    found = [f"destination: {problem}" for problem in facts.problems]
    if facts.conditional_writes != "yes" and job.destination.uri.startswith("s3://"):
        found.append(
            "the destination ignores or refuses conditional writes: with on_existing skip or fail, an object that "
            "another program writes during the run may be overwritten"
        )
    if left:
        found.append(f"{left:,} objects could not be deleted; they are under {prefix}/")
    return found
