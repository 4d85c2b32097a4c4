"""The check of public addresses: asks for each copy as a visitor does, and compares the answer with the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import fcntl
import hashlib
import json
import os
import random
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple, TextIO
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from ferry.core import Charge, ErrorClass, ObjectError, Progress, Status, UserError, backoff_s
from ferry.cutover.addresses import create_addresses
from ferry.cutover.public_compare import Answer, Difference, Expected, What, differences, of_error
from ferry.http import USER_AGENT, AddressFilter, Algorithm, Network, Origin, media_type, printable_header
from ferry.job import Job
from ferry.ratelimit import Limiter, PausedTooLong, host_of, record_failure
from ferry.reconcile import sample_rows
from ferry.state import State, failure_cell, folded_ledger
from ferry.state import count as count_rows
from ferry.transfer import Next, next_step

AT_ONCE = 32
HEAD_BYTES = 64 * 1024
PAUSED_S = 0.5
SILENT_IN_A_ROW = 50  # after so many addresses in a row without an answer, the site is the problem
SEEDS = 1 << 31
EXAMPLES = 3
MOST_GROUPS = 500  # a CDN may answer each address in its own way
FOLDER = "reports/public"
COLUMNS = ("id", "key", "public_url", "what", "how", "expected", "found")
NO_ADDRESS = Difference(
    What.NO_ADDRESS, "the row has no value for a field of public_url", "an address", "no public address"
)


class _Copy(NamedTuple):
    """A copy with its public address."""

    id: str | None
    key: str
    public_url: str | None
    size: int | None
    md5: str | None
    sha256: str | None
    content_type: str | None


@dataclass(slots=True)
class Group:
    """Answers that differ in the same way."""

    what: str
    how: str
    rows: int = 0
    examples: list[dict[str, str | None]] = field(default_factory=list)


@dataclass(slots=True)
class PublicReport:
    """The result of a check, as `reports/public/<UTC time>.json` has it (docs/reference/state.md)."""

    at: str  # UTC
    public_url: str  # the job's template
    addresses: int = 0  # of all copies
    checked: int = 0
    right: int = 0
    differ: int = 0
    by_size: int = 0  # of those that are right: copies without a digest in the ledger, compared by size
    by_status: int = 0  # of those that are right: copies with neither digest nor size in the ledger
    redirected: int = 0  # answers that came after a redirect
    bytes: int = 0
    pending: int = 0  # rows of the manifest without a copy yet
    seed: int | None = None  # of the sample; None: all copies
    ended_early: str = ""  # why not all of them were asked for
    rows_file: str | None = None  # in the state: the rows that differ
    groups: list[Group] = field(default_factory=list)  # the largest first

    @property
    def proven(self) -> bool:
        """Whether each address that was to be asked gives what the ledger says."""
        return not self.differ and not self.ended_early

    @property
    def message(self) -> str:
        """The result in sentences, for the flow run's state."""
        drawn = f" ({self.checked:,} of {self.addresses:,} addresses asked, a sample with the seed {self.seed})"
        drawn = "" if self.seed is None else drawn
        text = f"all {self.checked:,} public addresses give what the ledger says{drawn}"
        if self.differ:
            counts: Counter[str] = Counter()
            for group in self.groups:
                counts[group.what] += group.rows
            text = (
                f"{self.differ:,} of {self.checked:,} public addresses give something else than the ledger says"
                f"{drawn}: {', '.join(f'{rows:,} {what}' for what, rows in counts.most_common())}. "
                f"Rows: {self.rows_file} in the state. The destination may be right all the same: `ferry verify` "
                "without --public reads it"
            )
        elif self.ended_early:
            text = f"{self.checked:,} of {self.addresses:,} public addresses asked"
        if self.by_size:
            text += f". Compared by size alone, since the ledger has no digest: {self.by_size:,}"
        if self.by_status:
            text += f". Compared by status and media type alone, since the ledger has no size: {self.by_status:,}"
        if self.redirected:
            text += f". Answers that came after a redirect: {self.redirected:,}"
        if self.pending:
            text += f". Pending rows, which have no copy yet: {self.pending:,}"
        return f"{text}. {self.ended_early}" if self.ended_early else text

    @property
    def advice(self) -> str:
        """What to do if many bodies differ in one way, as behind a CDN that converts images; else ""."""
        first = next((group for group in self.groups if group.what == What.OTHER_BYTES), None)
        if first is None or first.rows * 10 < self.checked or first.rows < 2:
            return ""
        return (
            f"{first.rows:,} of {self.checked:,}: {first.how}. A server that changes many bodies in one way converts "
            "or optimises images. Switch that off for the check, or set public_url to an address that does not do it"
        )


def public_site(job: Job) -> str:
    """Returns host and port of the job's public addresses. Raises UserError if it has none."""
    if job.public_url is None:
        raise UserError(
            "the job has no public_url, so the addresses of visitors are not known; set it, such as "
            "`public_url: https://img.new.example/{key}`"
        )
    parts = urlsplit(job.public_url.partition("{")[0])
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def check_public(
    job: Job,
    state: State,
    network: Network,
    progress: Progress,
    sample: str | int | None = None,
    seed: int | None = None,
) -> PublicReport:
    """Asks for the public addresses of all copies or of a sample, writes what differs to the state, and returns it.

    Nothing is written to the ledger. Raises UserError for a job without public_url, one that never ran, rows that are
    pending (unless a sample is asked for), and a public_url that two keys share.
    """
    site, now = public_site(job), datetime.now(UTC)
    report = PublicReport(now.isoformat(timespec="seconds"), job.public_url or "")
    name = f"{FOLDER}/{now:%Y%m%dT%H%M%S.%fZ}"
    state.spool_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ferry-public-", dir=state.spool_dir) as folder, _locked(folder):
        copies, rows = Path(folder) / "copies.parquet", Path(folder) / "rows.csv"
        _draw(job, state, report, sample, seed, copies)
        if not report.addresses:
            raise UserError("no row has a copy yet, so no public address can be checked; run `ferry run` first")
        with rows.open("x", newline="", encoding="utf-8") as file:
            check = _Check(job, network, site, report, progress, file)
            groups = asyncio.run(check.all_of(copies))
        if report.differ:
            report.rows_file = f"{name}.csv"
            state.write_file(report.rows_file, rows)
    report.groups = sorted(groups.values(), key=lambda group: (-group.rows, group.what, group.how))
    state.write(f"{name}.json", json.dumps(asdict(report), indent=1).encode())
    return report


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Holds a lock on the folder: a run that begins meanwhile deletes what killed processes left, and not this."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # without locks nothing is deleted
            fcntl.flock(opened, fcntl.LOCK_SH)
        yield
    finally:
        os.close(opened)


def _draw(job: Job, state: State, report: PublicReport, sample: str | int | None, seed: int | None, path: Path) -> None:
    """Writes each public address once, and each copy without one, to a Parquet file; all, or a sample of them.

    The ledger is closed when this returns: asking may take hours.
    """
    with folded_ledger(state) as con:
        report.pending = count_rows(con).pending
        if report.pending and sample is None:
            raise UserError(
                f"rows are pending ({report.pending:,}), so not every object has a copy yet. Run `ferry run` first; to "
                "check the copies that exist, ask for a sample (`--sample 100%` takes all of them)"
            )
        create_addresses(con, job)
        con.execute(
            """
            CREATE TEMP TABLE copies AS
            SELECT unnest(min_by({'row_id': row_id, 'id': id, 'key': key, 'public_url': public_url, 'size': size,
                                  'md5': md5, 'sha256': sha256, 'content_type': content_type}, row_no))
            FROM addresses GROUP BY coalesce(public_url, key), public_url IS NULL
            """
        )
        (report.addresses,) = con.execute("SELECT count(*) FROM copies").fetchall()[0]
        drawn = ""
        if sample is not None:
            report.seed = secrets.randbelow(SEEDS) if seed is None else seed
            rows = sample_rows(sample, report.addresses)
            drawn = f"ORDER BY md5(row_id || '{report.seed:d}') LIMIT {rows:d}"
        con.sql(f"SELECT {', '.join(_Copy._fields)} FROM copies {drawn}").write_parquet(str(path))


class _Body:
    """Hashes a body and keeps its start."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.hash = hashlib.new(algorithm, usedforsecurity=False)
        self.size, self.head = 0, b""

    def write(self, piece: bytes) -> None:
        self.hash.update(piece)
        self.size += len(piece)
        if len(self.head) < HEAD_BYTES:
            self.head += piece[: HEAD_BYTES - len(self.head)]


class _Check:
    """Asks for copies, several at once, and counts and writes what differs."""

    def __init__(
        self, job: Job, network: Network, site: str, report: PublicReport, progress: Progress, file: TextIO
    ) -> None:
        self._job, self._site, self._network, self._report, self._progress = job, site, network, report, progress
        self._headers = {"User-Agent": job.source.user_agent or USER_AGENT, "Accept": "*/*"}
        self._limiter = Limiter(
            None if job.concurrency == "auto" else job.concurrency, AT_ONCE, time.monotonic, limits=job.limits,
            max_pause_s=job.retries.max_backoff_s,
        )  # fmt: skip
        self._rows = csv.writer(file)
        self._rows.writerow(COLUMNS)
        self._groups: dict[tuple[str, str], Group] = {}
        self._silent = 0  # addresses in a row without an answer
        self._rng = random.Random()  # noqa: S311 - jitter

    async def all_of(self, path: Path) -> dict[tuple[str, str], Group]:
        """Asks for all copies in a file and returns the groups of what differs; ends early if no address answers."""
        copies = pq.ParquetFile(path)
        self._progress.start(copies.metadata.num_rows)
        batches = copies.iter_batches(1000)
        queue = (_Copy(**line) for batch in batches for line in batch.to_pylist())
        allowed = AddressFilter([*self._job.source.allow_private_addresses, self._site])  # public_url is the user's own
        self._origin = Origin(self._job.origin_options({}, None, self._network), allowed, path.parent)
        try:
            await asyncio.gather(*(self._worker(queue) for _ in range(AT_ONCE)))
        finally:
            await self._origin.close()
        return self._groups

    async def _worker(self, queue: Iterator[_Copy]) -> None:
        for copy in queue:
            while self._progress.paused:  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(PAUSED_S)
            self._note(copy, await self._differences(copy))
            if self._report.ended_early:
                return

    async def _differences(self, copy: _Copy) -> list[Difference]:
        if copy.public_url is None:
            return [NO_ADDRESS]
        try:
            answer = await self._ask(copy, copy.public_url)
        except ObjectError as error:
            return [of_error(error)]
        self._report.bytes += answer.size
        self._report.redirected += answer.redirected_to is not None
        expected = Expected(*copy[3:], self._job.destination.cache_control)
        return differences(expected, answer)

    async def _ask(self, copy: _Copy, url: str) -> Answer:
        """Returns the answer, after retries as a run makes them. Raises the ObjectError of the last try."""
        retries, host = self._job.retries, host_of(url)
        for try_no in count(1):
            limit, loop = self._limiter.host(host), asyncio.get_running_loop()
            try:
                async with limit.slot() as slot:
                    began = loop.time()
                    try:
                        answer = await self._get(copy, url, limit.charge)
                        slot.ok(loop.time() - began)
                        return answer
                    except ObjectError as error:
                        record_failure(limit, error, loop.time() - began)
                        failed = error
            except PausedTooLong as paused:
                raise ObjectError(ErrorClass.RATE_LIMITED, str(paused)) from None
            delay_s = backoff_s(try_no, retries.backoff_s, retries.max_backoff_s, self._rng)
            step = next_step(
                failed, try_no, retries.attempts, False, retries.max_backoff_s, delay_s=delay_s, mismatches=0
            )
            if step.next is not Next.RETRY_AFTER:
                raise failed
            await asyncio.sleep(step.delay_s)
        raise AssertionError("unreachable")

    async def _get(self, copy: _Copy, url: str, charge: Charge) -> Answer:
        body = _Body("md5" if copy.md5 and not copy.sha256 else "sha256")
        got = await self._origin.download(url, self._headers, body, self._job.max_bytes, charge)
        return Answer(
            got.status, body.size, body.hash.hexdigest(), media_type(got.headers.get("Content-Type")),
            ", ".join(filter(None, map(printable_header, got.headers.getall("Cache-Control", [])))) or None,
            body.head, got.url if got.redirects else None,
        )  # fmt: skip

    def _note(self, copy: _Copy, found: list[Difference]) -> None:
        report = self._report
        report.checked += 1
        report.differ += bool(found)
        report.right += not found
        if not (found or copy.sha256 or copy.md5):
            report.by_size += copy.size is not None
            report.by_status += copy.size is None
        silent = any(difference.what is What.NOT_ANSWERED for difference in found)
        self._silent = self._silent + 1 if silent else 0
        if self._silent == SILENT_IN_A_ROW:
            report.ended_early = (
                f"The check ended early: {self._silent} addresses in a row did not answer ({found[0].found}). Check "
                "again when they do"
            )
        self._progress.add(Status.FAILED if found else Status.UNCHANGED, None, 0)
        for difference in found:
            self._rows.writerow([failure_cell(cell) for cell in (copy.id, copy.key, copy.public_url, *difference)])
            name = (difference.what, difference.how)
            if name not in self._groups and len(self._groups) >= MOST_GROUPS:
                name = (difference.what, "in other ways")
            group = self._groups.setdefault(name, Group(*name))
            group.rows += 1
            if len(group.examples) < EXAMPLES:
                group.examples.append(
                    {"id": copy.id, "key": copy.key, "public_url": copy.public_url,
                     "expected": difference.expected, "found": difference.found}
                )  # fmt: skip
