"""The preflight of a job: its destination is probed, a sample is copied and deleted again, and the run is predicted."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from ferry.core import FerryError, ObjectError, Status, in_bucket
from ferry.job import Job, OnExisting
from ferry.preflight.destination_probe import KEY, DestinationFacts, find_existing, probe_destination
from ferry.preflight.estimate import failure_shares, predict_run
from ferry.preflight.host_probe import probe_hosts
from ferry.preflight.result import CheckResult
from ferry.preflight.sample_run import Engine, SampleRun, run_sample
from ferry.state import Planned
from ferry.storage import ConditionUnsupported, Store, open_store

NAME = "ferry-check-"  # of the prefix for probes, with random digits after it
DELETING_THREADS, KEYS_AT_ONCE = 8, 100


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
    shielded: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> CheckResult:
    """Probes the destination, copies the sample of ``planned`` and predicts the run.

    ``folder`` has the state with the sample's chunks. ``plan_s``: how long planning took; ``processes``: the largest
    number of transfer processes of a run. Without ``write``, the sample is copied to ``folder``, and the destination is
    written to by the probe alone. Everything that was written is deleted again, in a block of ``shielded``, which may
    keep signals out. Raises UserError for a destination or a source that cannot be used, and Fatal.
    """
    sample = planned.sample
    assert sample is not None
    prefix = f"{job.destination.uri.rstrip('/')}/{NAME}{secrets.token_hex(4)}"
    run = SampleRun()
    with _Probes(prefix, engine, folder, run, say, shielded) as probes:
        say(f"checking the destination with objects under {prefix}/")
        facts = probe_destination(f"{prefix}/probe", engine.destination, folder)
        if facts.conditional_writes == "refused" and job.on_existing in (OnExisting.SKIP, OnExisting.FAIL):
            raise ConditionUnsupported
        wrote = probes.with_sample = write and not facts.keeps_what_is_deleted
        uri = f"{prefix}/sample" if wrote else (folder / "sample").absolute().as_uri()
        drawn = sum(ref.rows for ref in sample.chunks)
        say(f"copying a sample of {drawn:,} rows, and measuring the rate")
        run_sample(job, uri, sample, folder, engine, run)
    copied = [end for end in run.ends if end.status is not Status.FAILED]
    keys = {end.key: end.md5 or "" for end in copied if end.judged}
    existing = asyncio.run(find_existing(job.destination.uri, engine.destination, folder, keys))
    hosts = asyncio.run(probe_hosts(job, engine, copied, folder / "spool"))
    prediction = predict_run(
        job, planned, run, facts, existing, plan_s=plan_s, processes=processes, wrote=wrote
    )  # fmt: skip
    sizes = sorted(end.size for end in copied)
    return CheckResult(
        job=job.name, planned=planned, sampled=len(run.ends), copied=len(copied), unfinished=run.unfinished,
        why_unfinished="; ".join(f"{host} {what}" for host, what in run.silent.items()) or run.why,
        failures=failure_shares(run, sample),
        formats=dict(Counter(end.content_type or "unknown" for end in copied).most_common()),
        lost_attributes=dict(Counter(name for end in copied for name in end.lost_attributes or ()).most_common()),
        median_bytes=int(statistics.median(sizes)) if sizes else 0, largest_bytes=sizes[-1] if sizes else 0,
        hosts=hosts, destination=facts, existing=existing, on_existing=job.on_existing.value, wrote_sample=wrote,
        left_objects=probes.left, prefix=prefix,
        plain_http=sum(end.row.source.lower().startswith("http:") for end in run.ends), prediction=prediction,
        warnings=_warnings(job, facts, probes, wrote=wrote),
    )  # fmt: skip


class _Probes:
    """What a check writes under its prefix. All of it is deleted at the end of the block, also after a Ctrl-C."""

    def __init__(
        self, prefix: str, engine: Engine, folder: Path, run: SampleRun, say: Callable[[str], object],
        shielded: Callable[[], AbstractContextManager[object]],
    ) -> None:  # fmt: skip
        self.prefix, self._engine, self._folder, self._run = prefix, engine, folder, run
        self._say, self._shielded = say, shielded
        self.with_sample = False  # whether the sample is copied there, too
        self.left = 0  # objects that could not be deleted
        self.unsure = False  # whether there may be others, since the prefix could not be listed
        self._directory = Path(unquote(urlsplit(prefix).path)) if prefix.startswith("file:") else None
        self._made = [path for path in self._directory.parents if not path.exists()] if self._directory else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._shielded():
            self._say("deleting what was written")
            if self._directory is None:
                self._delete_objects()
            else:
                self._delete_directory(self._directory)
        if kind is not None and (self.left or self.unsure):
            self._say(f"objects may be left under {self.prefix}/")

    def _delete_directory(self, directory: Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self.left = sum(path.is_file() for path in directory.rglob("*"))
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir()

    def _delete_objects(self) -> None:
        """Deletes the keys that are known, then what a listing shows."""
        store = open_store(self.prefix, self._engine.destination, self._folder)
        keys = {f"probe/{KEY}"}
        if self.with_sample:
            keys.update(f"sample/{row.key}" for row in self._run.rows if not row.deferred_key)
            keys.update(f"sample/{end.key}" for end in self._run.ends)
        self.left = self._delete(store, sorted(keys))
        try:
            listed = [found.key for page in store.list() for found in page]
        except (ObjectError, FerryError):
            self.unsure = self.with_sample
        else:
            self.left = self._delete(store, listed)
        with contextlib.suppress(ObjectError, FerryError):
            store.control().abort(f"{store.prefix}/")

    def _delete(self, store: Store, keys: Sequence[str]) -> int:
        """Deletes objects, and returns how many keys were refused."""

        def delete(some: Sequence[str]) -> int:
            try:
                store.control().delete(map(store.path, some))
            except (ObjectError, FerryError):
                return len(some)
            return 0

        # stores without DeleteObjects take a request for each key, so several threads ask
        with ThreadPoolExecutor(DELETING_THREADS) as threads:
            return sum(threads.map(delete, (keys[at : at + KEYS_AT_ONCE] for at in range(0, len(keys), KEYS_AT_ONCE))))


def _warnings(job: Job, facts: DestinationFacts, probes: _Probes, *, wrote: bool) -> list[str]:
    """Returns what a user should know before the run."""
    found = [f"destination: {problem}" for problem in facts.problems]
    if facts.conditional_writes != "yes" and in_bucket(job.destination.uri):
        found.append(
            "the destination ignores or refuses conditional writes: with on_existing skip or fail, an object that "
            "another program writes during the run may be overwritten"
        )
    if not wrote:
        found.append("the sample was copied to this machine, so that the speed of uploads was not measured")
    if facts.versioning in ("on", "suspended"):
        found.append(f"the bucket keeps versions of the few probe objects under {probes.prefix}/")
    if probes.left:
        found.append(f"{probes.left:,} objects could not be deleted; they are under {probes.prefix}/")
    elif probes.unsure:
        found.append(f"the listing failed, so it is not certain that nothing is left under {probes.prefix}/")
    return found
