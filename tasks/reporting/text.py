"""Texts about plans and runs, for logs, terminals and the UI. Without Prefect, which `ferry status` does not load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ferry.core import ErrorClass, Snapshot, duration, size
from ferry.state import Planned

if TYPE_CHECKING:
    from ferry.reconcile import PruneResult


@dataclass(frozen=True, slots=True)
class ChunkProblem:
    """A chunk with failed or pending rows, for the run's page."""

    digest: str
    task_run: str  # Prefect's ID
    problem: str
    file: str  # the file with its rows


SHORTEST_S = 1.0  # a rate over less time says nothing


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a run. ``counts`` are those of the whole job, ``this_run`` those of this run's outcomes."""

    run_no: int
    counts: dict[str, Any]
    this_run: dict[str, int]
    budget: int
    failures: list[dict[str, Any]]
    chunks: int
    cached: int
    limited: bool
    seconds: float
    bytes: int
    rate: float  # rows per second, from the first outcome to the last; 0 if that was less than SHORTEST_S
    stopped: str  # why the run ended early, or ""
    why_pending: str
    delta: dict[str, int] | None = None  # only in a delta run: ferry.reconcile's figures of the run
    same_bytes: dict[str, Any] | None = None  # rows with the same bytes, and whether they fail the run
    pruned: PruneResult | None = None  # only in a delta run that deletes removed copies
    chunk_lines: list[dict[str, Any]] = field(default_factory=list)  # the first chunks of this run, or with failures
    budget_setting: str = ""  # `failure_budget` as the job has it
    limit_option: str = "--limit"  # which of `--limit` and `--sample` the run was given
    predicted: tuple[float, float] | None = None  # seconds, by `ferry check` for as many rows
    deduped: Mapping[str, int] = field(default_factory=dict)  # rows and bytes of this run that dedupe saved
    page: str = ""  # the address of the run's report in HTML
    limit_changes: list[str] = field(default_factory=list)  # the last changes of limits in this run, with their times

    @property
    def exit_code(self) -> int:
        """The run's exit code.

        | ended early | pending | failed | other condition | code |
        |---|---|---|---|---|
        | no | 0 | within budget | | 0 |
        | no | some | within budget | `--limit` was reached | 0 |
        | no | some | any | `--limit` was not reached, or not given | 1 |
        | any | any | over budget | | 1 |
        | yes | any | any | | 1: rows to retry count as failed, and were not tried |
        | no | any | any | copies were to be deleted, and were not | 1 |
        | no | any | any | rows have the same bytes, and `duplicate_bodies` is `fail` | 1 |
        """
        pending_is_fine = not self.counts["pending"] or self.limited
        pruned_well = self.pruned is None or self.pruned.succeeded
        well = pending_is_fine and not self.stopped and self.counts["failed"] <= self.budget and pruned_well
        return 0 if well and not (self.same_bytes and self.same_bytes["fail"]) else 1

    @property
    def totals(self) -> str:
        """The job's totals after this run."""
        c = self.counts
        line = f"{c['copied'] + c['unchanged']:,} of {c['planned']:,} stored"
        if by_size := sum(c["by_size"].values()):
            line += f", {by_size:,} of them confirmed by size alone"
        if lesser := c.get("lesser_checks", 0):
            line += f", {lesser:,} of them checked by length or structure alone"
        if c["failed"]:
            line += f", {c['failed']:,} failed (budget {self.budget:,})"
        return f"{line}, {c['pending']:,} pending" if c["pending"] else line

    @property
    def verdict(self) -> str:
        """How the run ended and, if not well, why: the first words of all that is said of it.

        `Completed`, `Completed: 20 rows are left, since --limit was reached`, `Failed: 72 rows failed, more than the 60
        (1%) that failure_budget allows`, `Cancelled: interrupted by SIGINT`; the first word is that of Prefect's
        state
        """
        pending, failed = self.counts["pending"], self.counts["failed"]
        if self.exit_code == 0:
            left = f": {_rows_are(pending)} left, since {self.limit_option} was reached"
            return f"Completed{left if pending else ''}"
        why = [self.stopped] if self.stopped else []
        if failed > self.budget:
            share = f" ({self.budget_setting})" if self.budget_setting not in ("", str(self.budget)) else ""
            why.append(f"{_rows(failed)} failed, more than the {self.budget:,}{share} that failure_budget allows")
        if pending and not self.stopped and not self.limited:
            why.append(f"{_rows_are(pending)} pending" + (f" ({self.why_pending})" if self.why_pending else ""))
        if self.pruned is not None and not self.pruned.succeeded:
            why.append(prune_failure(self.pruned))
        if self.same_bytes and self.same_bytes["fail"]:
            why.append("rows have the same bytes, and `duplicate_bodies` is `fail`")
        return f"{'Cancelled' if self.is_interrupted else 'Failed'}: {'; '.join(why)}"

    @property
    def is_interrupted(self) -> bool:
        """Whether the run was ended by a signal or cancelled."""
        return self.stopped.startswith("interrupted")

    @property
    def message(self) -> str:
        """The result in one line, for the flow run's state: the verdict, and the counts."""
        return f"{self.verdict}. {self.details}"

    @property
    def details(self) -> str:
        """What the run did, and the job's totals."""
        run = self.this_run
        done = ", ".join(
            f"{run[status]:,} {status}" for status in ("copied", "unchanged", "skipped", "failed") if run.get(status)
        )
        nothing = "no outcomes" if self.counts["pending"] else "nothing to do"
        line = f"This run: {done or nothing}; total: {self.totals}"
        if self.pruned is not None and self.pruned.deleted:
            line += f"; {self.pruned.deleted:,} deleted, removed from the manifest ({self.pruned.file})"
        lost = lost_note(self.counts.get("lost_attributes", {}), more=self.counts.get("lost_more", 0))
        said = (line, dedupe_note(self.deduped), lost, self.comparison, self.others, *prune_notes(self.pruned))
        return ". ".join(part for part in (*said, same_bytes_note(self.same_bytes)) if part)

    @property
    def comparison(self) -> str:
        """What `ferry check` predicted of this run, and what it took; "" without a prediction."""
        if self.predicted is None:
            return ""
        low, high = map(duration, self.predicted)
        return f"Predicted {low} to {high}, took {duration(self.seconds)}"

    @property
    def others(self) -> str:
        """What the rows that `--limit` left would take, by the rate and sizes of this run; "" without such rows."""
        pending, copied = self.counts["pending"], self.this_run.get("copied", 0)
        if not self.limited or not pending or not copied:
            return ""
        what = "The other row" if pending == 1 else f"The other {_rows(pending)}"
        time = f"take about {duration(pending / self.rate)} at this rate, and " if self.rate else ""
        return f"{what} would {time}be about {size(round(self.bytes / copied * pending))}"


def exit_code_of(completed: bool, message: str) -> tuple[int, str]:
    """Returns the exit code and the message of a run that was not cancelled (see flows.migrate.failure_message)."""
    name, _, text = message.partition(": ")
    if name in ("UserError", "LeaseHeld"):
        return (2 if name == "UserError" else 3), text
    return (0 if completed else 1), text if name in ("Fatal", "FerryError") else message


def prune_failure(pruned: PruneResult | None) -> str:
    """Returns why copies that were to be deleted still exist, as a sentence; "" if none does."""
    if pruned is None or pruned.succeeded:
        return ""
    if pruned.refused:
        whose = "whose row was" if pruned.removed == 1 else "whose rows were"
        were = "was" if pruned.removed == 1 else "were"
        return f"{_copies(pruned.removed)} {whose} removed from the manifest {were} not deleted: {pruned.refused}"
    first = f": {pruned.first_failure}" if pruned.failed == 1 else f", the first of them {pruned.first_failure}"
    why = f": {pruned.stop_reason}" if pruned.stop_reason else first
    return f"{_copies(pruned.failed)} could not be deleted{why}; the next delta run tries again"


def dedupe_note(deduped: Mapping[str, int]) -> str:
    """Returns what dedupe saved, as a sentence; "" if that is nothing."""
    if not deduped:
        return ""
    of_it = f", {size(deduped['not_downloaded'])} of them not downloaded" if deduped["not_downloaded"] else ""
    return f"Dedupe saved {size(deduped['bytes'])} in {_rows(deduped['rows'])}{of_it}"


def lost_note(lost: Mapping[str, int], of: str = "object", more: int = 0) -> str:
    """Returns which attributes the destination cannot hold, with the objects that had them. ``more``: other names."""
    names = ", ".join(f"{name} ({count:,} {of}{'' if count == 1 else 's'})" for name, count in lost.items())
    names += f" and {more:,} more" if more else ""
    return f"Attributes that the destination cannot hold: {names}" if names else ""


def same_bytes_note(same: dict[str, Any] | None) -> str:
    """Returns what to say of rows with the same bytes: an example, the file, and whether the run fails for them."""
    if not same:
        return ""
    first = same["largest"][0]
    name = f"id {first['id']}, " if first["id"] else ""
    text = (
        f"{first['rows']:,} rows have the same bytes (digest {first['digest'][:12]}): a placeholder? "
        f"One of them: {name}{first['source']}"
    )
    if same["groups"] > 1:
        text += f". {same['groups']:,} such groups have {same['rows']:,} rows"
    text += f". They are listed in the state's {same['file']}"
    return f"{text}. The run fails, because `duplicate_bodies` is `fail`" if same["fail"] else text


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _rows_are(count: int) -> str:
    return f"{_rows(count)} {'is' if count == 1 else 'are'}"


def _copies(count: int) -> str:
    return "1 copy" if count == 1 else f"{count:,} copies"


def _copies_are(count: int) -> str:
    return f"{_copies(count)} {'is' if count == 1 else 'are'}"


def prune_notes(pruned: PruneResult | None) -> list[str]:
    """Returns sentences on copies that a deleting delta run left for a later run, or for good."""
    if pruned is None:
        return []
    found = []
    if pruned.waiting and pruned.delete_after == 2:
        found.append(
            f"{_copies_are(pruned.waiting)} missing from the manifest for the first time, and will be deleted if also "
            f"missing from the next one ({pruned.file})"
        )
    elif pruned.waiting:
        found.append(
            f"{_copies_are(pruned.waiting)} missing from the manifest, and will be deleted when missing from "
            f"{pruned.delete_after} in a row ({pruned.file})"
        )
    if pruned.kept:
        found.append(
            f"{_copies_are(pruned.kept)} kept although missing from the manifest: a row or the source may still have "
            f"the object ({pruned.file})"
        )
    return found


def worth_retrying(counts: dict[str, Any]) -> bool:
    """Returns whether `--retry-failed` takes any failure. Those found by planning need a changed manifest instead."""
    found_by_plan = (ErrorClass.BAD_URL, ErrorClass.BAD_KEY, ErrorClass.BAD_LINE, ErrorClass.KEY_COLLISION)
    return bool(counts["failed"] > sum(counts["classes"].get(name, 0) for name in found_by_plan))


def delta_table(figures: dict[str, int]) -> list[tuple[str, str]]:
    """Returns the figures of a delta run, each with its name."""
    again = f", {figures['failed_again']:,} of them repeatedly" if figures["failed_again"] else ""
    if again and figures["failed_again"] == figures["failed"]:
        again = ", all of them repeatedly"
    removed = figures["removed"] + figures["deleted"]
    return [
        ("new", f"{figures['new']:,}"),
        ("changed", f"{figures['changed']:,}"),
        ("rechecked, unchanged", f"{figures['unchanged']:,}"),
        ("failed", f"{figures['failed']:,}{again}"),
        ("removed from the manifest", f"{removed:,}, {figures['deleted']:,} of them deleted"),
        ("requests to the origins", f"{figures['requests']:,}"),
        ("not downloaded again", size(figures["bytes_saved"])),
    ]


def describe(planned: Planned) -> list[str]:
    """Returns the plan in sentences, for logs and terminals."""
    lines = [planned.shorter] if planned.shorter else []
    lines += [
        f"{planned.rows:,} rows: {sum(planned.todo.values()) + planned.pending:,} to do, {planned.untouched:,} done"
    ]
    if planned.recognised:
        lines.append("columns: " + ", ".join(_column(planned, role) for role in planned.recognised))
    words = {
        "new": "new", "changed": "changed (in the manifest or the settings)", "retry": "failed earlier",
        "repair": "to be repaired", "revalidate": "to be rechecked",
    }  # fmt: skip
    reasons = [f"{rows:,} {words.get(reason, reason)}" for reason, rows in planned.todo.items()]
    if planned.pending:
        reasons.append(f"{planned.pending:,} pending in chunks of earlier runs")
    if reasons:
        lines.append("to do: " + ", ".join(reasons))
    if planned.deferred_by_limit:
        lines.append(f"deferred by --limit: {planned.deferred_by_limit:,}")
    if planned.permanent_failures:
        lines.append(f"skipped: {planned.permanent_failures:,} permanent failures (`--retry-failed` includes them)")
    left_out = [
        f"{count:,} {one if count == 1 else many}"
        for count, one, many in (
            (planned.unusable, "unusable row", "unusable rows"),
            (planned.collisions, "row with a key collision", "rows with a key collision"),
        )
        if count
    ]
    if planned.duplicates:
        lines.append(f"duplicate rows: {planned.duplicates:,} (`ferry export` lists each with the key of the first)")
    if left_out:
        lines.append("excluded: " + ", ".join(left_out) + " (`ferry failures` lists them)")
    lines.append(f"existing objects: {planned.existing}")
    if planned.hosts and (len(planned.hosts) > 1 or "" not in planned.hosts):
        more = f", {planned.more_hosts:,} more" if planned.more_hosts else ""
        lines.append("hosts: " + ", ".join(f"{host} ({_rows(rows)})" for host, rows in planned.hosts.items()) + more)
    if planned.mappings:
        lines += ["for example:", *(f"  {source} -> {target}" for source, target in planned.mappings)]
    return lines + planned.notes


def _column(planned: Planned, role: str) -> str:
    sample = planned.samples.get(role)
    return f"{role} = {planned.recognised[role]}" + (f" (such as {sample})" if sample else "")


def speed(report: Report) -> str:
    """Returns bytes, duration and rate.

    Short runs have none, nor have delta runs, which only recheck most of their rows.
    """
    moved = f"{size(report.bytes)} in {duration(report.seconds)}"
    return moved if report.delta is not None or not report.rate else f"{moved}, {report.rate:,.0f} rows/s"


def percent(s: Snapshot, *, over: bool = False) -> float:
    """Returns the progress of a run in percent.

    | the run | rows | percent |
    |---|---|---|
    | is running | some to do | the share that is done, at most 99: another pass may follow |
    | is running | none to do | 0 |
    | has ended | all done | 100 |
    | has ended | some pending | the share that is done, at most 99.9 |
    """
    if over and s.done >= s.todo:
        return 100.0
    return min(99.9 if over else 99.0, round(100 * s.done / s.todo, 1)) if s.todo else 0.0


def progress_line(s: Snapshot, *, over: bool = False) -> str:
    """Returns the progress of a run as one line. ``over``: the run has ended."""
    if not s.todo:
        return "nothing to do" if over else "no row has started yet"
    failed = f", {s.failed:,} failed" if s.failed else ""
    if over:
        return f"{s.done:,} of {s.todo:,} rows, {size(s.bytes)} in {duration(s.elapsed_s)}{failed}"
    left = f", about {duration(s.left_s)} left" if s.left_s is not None else ""
    rate = "paused" if s.paused else f"{s.rate:,.0f} rows/s"
    more = "".join(f"; {text}" for text in (s.still, s.silent) if text)
    return f"{s.done:,} of {s.todo:,} rows, {size(s.bytes)}, {rate}{left}{failed}{more}"


def progress_words(progress: Mapping[str, Any]) -> str:
    """Returns what `ferry status` says of a live run: since when, rows, rates and the time left.

    ``progress`` is that of ferry.ratelimit's Hosts.
    """
    since = datetime.fromtimestamp(progress["started_at"], UTC)
    left = f", about {duration(progress['left_s'])} left" if progress["left_s"] is not None else ""
    failed = f", {progress['failed']:,} failed" if progress["failed"] else ""
    return (
        f"this run, since {since:%Y-%m-%d %H:%M:%S} UTC: {progress['done']:,} of {progress['todo']:,} rows{failed}, "
        f"{size(progress['bytes'])}, {progress['rate']:,.0f} rows/s, {size(progress['bytes_rate'])}/s{left}"
    )
