"""A run in words and numbers, for logs, terminals and the UI. Imports no Prefect: `ferry status` needs none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ferry.core import ErrorClass, Snapshot
from ferry.reconcile import PruneResult
from ferry.state import PLAIN_WORDS, Planned


@dataclass(frozen=True, slots=True)
class Troubled:
    """A chunk with rows that failed, or that are pending: what an operator wants to know of it."""

    digest: str
    task_run: str  # Prefect's ID
    words: str
    file: str  # where its rows are


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to. ``counts`` is the whole job's, ``this_run`` the rows that this run settled."""

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
    rate: float  # rows a second between the first outcome and the last
    stopped: str  # why the run ended early; "" when it did not
    why_pending: str
    night: dict[str, int] | None = None  # of a delta: night.NAMES
    same_bytes: dict[str, Any] | None = None  # rows with the same bytes: same_bytes.find_same_bytes, and `fail`
    swept: PruneResult | None = None  # of a delta that deletes what left the list
    chunk_lines: list[dict[str, Any]] = field(default_factory=list)  # chunks of this run, or with failures; the first

    @property
    def exit_code(self) -> int:
        """SEMANTICS: results of a run.

        | ended early | pending | failed | asked with --limit | code |
        |---|---|---|---|---|
        | no | 0 | within budget | any | 0 |
        | no | some | within budget | yes, and it was reached | 0 |
        | no | some | any | no | 1 |
        | any | any | over budget | any | 1 |
        | yes | any | any | any | 1: what it was to try again counts as failed, and was not tried |
        | no | any | any | any | 1 where copies were to be deleted, and were not |
        | no | any | any | any | 1 where rows have the same bytes, and `duplicate_bodies` is `fail` |
        """
        pending_is_fine = not self.counts["pending"] or self.limited
        swept_well = self.swept is None or self.swept.well
        well = pending_is_fine and not self.stopped and self.counts["failed"] <= self.budget and swept_well
        return 0 if well and not (self.same_bytes and self.same_bytes["fail"]) else 1

    @property
    def there(self) -> str:
        """How the job stands, after this run."""
        c = self.counts
        line = f"{c['copied'] + c['unchanged']:,} of {c['planned']:,} are there"
        if by_size := sum(c["by_size"].values()):
            line += f", {by_size:,} of them confirmed by size alone"
        if lesser := c.get("lesser_checks", 0):
            line += f", {lesser:,} of them checked by length or structure alone"
        if c["failed"]:
            line += f", {c['failed']:,} failed (budget {self.budget:,})"
        return f"{line}, {c['pending']:,} pending" if c["pending"] else line

    @property
    def message(self) -> str:
        """One line for the flow run's state."""
        run = self.this_run
        done = ", ".join(
            f"{run[status]:,} {status}" for status in ("copied", "unchanged", "skipped", "failed") if run.get(status)
        )
        nothing = "nothing settled" if self.counts["pending"] else "nothing to do"
        line = f"this run: {done or nothing}; in all {self.there}"
        if self.swept is not None and self.swept.deleted:
            line += f"; {self.swept.deleted:,} deleted, whose rows left the list ({self.swept.listed})"
        why = self.stopped or (self.why_pending if self.counts["pending"] else "")
        said = (line, why, swept_badly(self.swept), *swept_later(self.swept), repeated(self.same_bytes))
        return ". ".join(part for part in said if part)


def swept_badly(swept: PruneResult | None) -> str:
    """Why copies that were to be deleted stand where they are, as a sentence; "" where none does."""
    if swept is None or swept.well:
        return ""
    if swept.refused:
        whose = "whose row left the list was" if swept.gone == 1 else "whose rows left the list were"
        return f"{_copies(swept.gone)} {whose} not deleted: {swept.refused}"
    first = f": {swept.why_failed}" if swept.failed == 1 else f", the first of them {swept.why_failed}"
    why = f": {swept.ended}" if swept.ended else first
    return f"{_copies(swept.failed)} could not be deleted{why}; the next night tries again"


def repeated(same: dict[str, Any] | None) -> str:
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


def _copies(count: int) -> str:
    return "1 copy" if count == 1 else f"{count:,} copies"


def _copies_are(count: int) -> str:
    return f"{_copies(count)} {'is' if count == 1 else 'are'}"


def swept_later(swept: PruneResult | None) -> list[str]:
    """What a night that deletes has left for another one, or for good, as sentences."""
    if swept is None:
        return []
    found = []
    if swept.waiting and swept.delete_after == 2:
        found.append(
            f"{_copies_are(swept.waiting)} missing from the list for the first time; what the next list lacks too is "
            f"deleted ({swept.listed})"
        )
    elif swept.waiting:
        found.append(
            f"{_copies_are(swept.waiting)} missing from the list; what {swept.delete_after} lists in a row lack is "
            f"deleted ({swept.listed})"
        )
    if swept.kept:
        found.append(
            f"{_copies_are(swept.kept)} kept although missing from the list: a row or the source may still have the "
            f"object ({swept.listed})"
        )
    return found


def worth_retrying(counts: dict[str, Any]) -> bool:
    """Are there failures that `--retry-failed` takes? What planning found is not among them: the list is to change."""
    found_by_plan = (ErrorClass.BAD_URL, ErrorClass.BAD_KEY, ErrorClass.BAD_LINE, ErrorClass.KEY_COLLISION)
    return bool(counts["failed"] > sum(counts["classes"].get(name, 0) for name in found_by_plan))


def outcome_table(counts: dict[str, Any]) -> list[tuple[str, str, int]]:
    """``(outcome, plain words, rows)``, settled well first, then failures by size."""
    by_size = counts["by_size"]
    lines = [
        (status, words, rows)
        for status, words, rows in (
            ("copied", "uploaded and confirmed", counts["copied"] - by_size.get("copied", 0)),
            ("copied", "uploaded, confirmed by size alone", by_size.get("copied", 0)),
            ("unchanged", "already there, the same bytes", counts["unchanged"] - by_size.get("unchanged", 0)),
            ("unchanged", "already there, confirmed by size alone", by_size.get("unchanged", 0)),
        )
        if rows
    ]
    skipped = counts["skipped"]
    classes = sorted(counts["classes"].items(), key=lambda item: (-item[1], item[0]))
    duplicates = counts["duplicates"]
    if duplicates:
        lines.append(("skipped", PLAIN_WORDS[ErrorClass.DUPLICATE], duplicates))
    if skipped > duplicates:
        lines.append(("skipped", "key taken at the destination", skipped - duplicates))
    failed = counts["failed"]
    for name, rows in classes:
        if name in (ErrorClass.DUPLICATE, ErrorClass.MISSING, ErrorClass.ALTERED):
            continue
        if name == ErrorClass.EXISTS:
            rows -= skipped - duplicates
        if rows > 0 and failed:
            lines.append(("failed", f"{PLAIN_WORDS[ErrorClass(name)]}  [{name}]", rows))
    if counts["pending"]:
        lines.append(("pending", "not settled yet", counts["pending"]))
    return lines


def night_table(night: dict[str, int]) -> list[tuple[str, str]]:
    """What a delta came to, as lines of words and figures."""
    again = f", {night['failed_again']:,} of them not for the first time" if night["failed_again"] else ""
    if again and night["failed_again"] == night["failed"]:
        again = ", none for the first time"
    return [
        ("new", f"{night['new']:,}"),
        ("changed", f"{night['changed']:,}"),
        ("looked at, unchanged", f"{night['unchanged']:,}"),
        ("failed", f"{night['failed']:,}{again}"),
        ("gone from the list", f"{night['gone'] + night['deleted']:,}, {night['deleted']:,} of them deleted"),
        ("requests to the origins", f"{night['requests']:,}"),
        ("not read again", size(night["bytes_saved"])),
    ]


def describe(planned: Planned) -> list[str]:
    """The plan in sentences, for logs and terminals."""
    lines = [planned.shorter] if planned.shorter else []
    lines += [
        f"{planned.rows:,} rows: {sum(planned.todo.values()) + planned.pending:,} to do, "
        f"{planned.settled:,} left as they are"
    ]
    if planned.recognised:
        lines.append("columns: " + ", ".join(f"{role} = {column}" for role, column in planned.recognised.items()))
    words = {
        "new": "new", "changed": "changed (the settings, or the object as the list has it)", "retry": "failed before",
        "repair": "to be repaired", "revalidate": "to be looked at again",
    }  # fmt: skip
    reasons = [f"{rows:,} {words.get(reason, reason)}" for reason, rows in planned.todo.items()]
    if planned.pending:
        reasons.append(f"{planned.pending:,} pending in chunks of earlier runs")
    if reasons:
        lines.append("to do: " + ", ".join(reasons))
    if planned.deferred_by_limit:
        lines.append(f"left for later by --limit: {planned.deferred_by_limit:,}")
    if planned.permanent_failures:
        lines.append(f"skipped: {planned.permanent_failures:,} permanent failures (`--retry-failed` includes them)")
    left_out = [
        f"{count:,} {one if count == 1 else many}"
        for count, one, many in (
            (planned.unusable, "unusable row", "unusable rows"),
            (planned.collisions, "row with a key that another row wants", "rows with a key that another row wants"),
        )
        if count
    ]
    if planned.duplicates:
        lines.append(f"the same row again: {planned.duplicates:,} (`ferry export` has each with the key of the first)")
    if left_out:
        lines.append("left out: " + ", ".join(left_out) + " (`ferry failures` lists them)")
    lines.append(f"existing objects: {planned.existing}")
    return lines + planned.notes


def speed(report: Report) -> str:
    """How much in what time. Of a night, most of whose rows are only looked at, a rate would say nothing."""
    moved = f"{size(report.bytes)} in {duration(report.seconds)}"
    return moved if report.night is not None else f"{moved}, {report.rate:,.0f} rows/s"


def percent(s: Snapshot, *, over: bool = False) -> float:
    """How far a run is, of 100.

    | the run | rows | percent |
    |---|---|---|
    | is on | some are to do | their share that is done, 99 at most: another pass may follow |
    | is on | none are to do | 0 |
    | is over | all are settled | 100 |
    | is over | some are pending | the share that is settled, 99.9 at most |
    """
    if over and s.done >= s.todo:
        return 100.0
    return min(99.9 if over else 99.0, round(100 * s.done / s.todo, 1)) if s.todo else 0.0


def progress_line(s: Snapshot, *, over: bool = False) -> str:
    """A moment of the run as one line; ``over``: its last one."""
    if not s.todo:
        return "nothing to do" if over else "no row is under way yet"
    failed = f", {s.failed:,} failed" if s.failed else ""
    if over:
        return f"{s.done:,} of {s.todo:,} rows, {size(s.bytes)} in {duration(s.elapsed_s)}{failed}"
    left = f", about {duration(s.left_s)} left" if s.left_s is not None else ""
    rate = "paused" if s.paused else f"{s.rate:,.0f} rows/s"
    still = f"; {s.still}" if s.still else ""
    return f"{s.done:,} of {s.todo:,} rows, {size(s.bytes)}, {rate}{left}{failed}{still}"


def size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
