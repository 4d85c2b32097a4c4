"""A proof's document, proof.json: the verdict with its reasons, and all numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ferry.core import redact
from ferry.job import Job
from ferry.proof.confidence import most_missed
from ferry.state import Counts, FailureFilter, Plan, failure_groups

if TYPE_CHECKING:
    import duckdb

VERSION = 1
LEVELS = (0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Verification:
    """What the verification did that the proof is made from."""

    kind: str  # whole, sample or listing
    started_at: datetime
    ended_at: datetime
    checked: int
    bytes: int
    missing: int
    altered: int
    unread: int
    unproven: int
    compared_by: Mapping[str, int]  # digest, ETag, size
    unread_first: str = ""
    seed: int | None = None
    of: int = 0  # of a sample: rows that it was drawn from

    def describe(self) -> dict[str, Any]:
        """Returns the document's part about the verification; of a sample with what it may have missed."""
        found = {name: value for name, value in asdict(self).items() if name not in ("seed", "of", "unread_first")}
        found["compared_by"] = dict(self.compared_by)  # asdict does not know a Counter
        found["started_at"], found["ended_at"] = moment(self.started_at), moment(self.ended_at)
        if self.kind == "sample":
            wrong = self.missing + self.altered
            found["sample"] = {
                "seed": self.seed, "drawn_from": self.of, "read": self.checked,
                "wrong": wrong,
                "not_read": self.of - self.checked,
                "wrong_at_most": {
                    f"{level:.0%}": most_missed(self.of, self.checked, wrong, level) for level in LEVELS
                },
            }  # fmt: skip
        return found


def moment(at: datetime) -> str:
    """Returns a time as text: UTC, to the second."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def reasons(
    counts: Counts, budget: int, verification: Verification, listing: Mapping[str, Any], without_digests: int
) -> list[str]:
    """Returns why a proof is incomplete, as sentences; an empty list for a complete one.

    | rows pending | failed | verification | listing | incomplete |
    |---|---|---|---|---|
    | 0 | at most the budget | no wrong, unread or unproven object | lacks no object, or was refused | no |
    | more | | | | yes |
    | | more than the budget | | | yes |
    | | | a wrong, unread or unproven object | | yes |
    | | | whole, and an object has no digests all the same | | yes |
    | | | | lacks an object, or shows another size | yes |
    """
    missing, altered = verification.missing, verification.altered
    not_listed, other_size = listing.get("not_listed", 0), listing.get("other_size", 0)
    why = [
        (counts.pending, f"{_many(counts.pending, 'row')} pending; the next `ferry run` takes them"),
        (
            counts.failed > budget,
            f"{_many(counts.failed, 'row')} failed, more than the {budget:,} that failure_budget allows",
        ),
        (missing + altered, f"{_many(missing, 'object')} missing, {altered:,} altered"),
        (
            verification.unread,
            f"{_many(verification.unread, 'object')} could not be read ({verification.unread_first})",
        ),
        (
            verification.unproven,
            f"{_many(verification.unproven, 'object')} found wrong earlier, which sizes and ETags do not disprove",
        ),
        (
            verification.kind == "whole" and without_digests > verification.unread,
            f"{_many(without_digests, 'object')} without digests",
        ),
        (not_listed, f"the listing lacks the objects of {_many(not_listed, 'row')}"),
        (other_size, f"the listing has another size for {_many(other_size, 'row')}"),
    ]
    return [text for holds, text in why if holds]


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def identity(counts: Counts) -> dict[str, Any]:
    """Returns the accounting identity: planned = copied + unchanged + skipped + failed + pending, checked."""
    counts.check()
    names = ("planned", "copied", "unchanged", "skipped", "failed", "pending")
    found = counts.as_dict()
    return {name: found[name] for name in names} | {"classes": counts.classes, "duplicates": counts.duplicates}


def failures(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Returns the failed rows by class, status code and host, those with most rows first."""
    return [
        {"error_class": each.error_class, "status_code": each.status_code, "host": each.host, "rows": each.rows,
         "message": each.message}
        for each in failure_groups(con, FailureFilter())
    ]  # fmt: skip


def runs(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Returns when the rows of the list got their outcomes, and in which runs."""
    first, last, lowest, highest = con.execute(
        "SELECT min(started_at), max(recorded_at), min(run_no), max(run_no) FROM latest "
        "SEMI JOIN manifest USING (row_id)"
    ).fetchall()[0]
    return {
        "first_outcome": moment(first) if first else None,
        "last_outcome": moment(last) if last else None,
        "first_run": lowest,
        "last_run": highest,
    }


def list_of_rows(job: Job, plan: Plan, normalised: str) -> dict[str, Any]:
    """Returns the address and the digests of the list; ``normalised`` is the SHA-256 of its rows' file in the state.

    A listed bucket has no file with a digest of its own.
    """
    return {
        "address": redact(job.manifest_address),
        "rows": plan.rows,
        "sha256": plan.manifest.get("sha256"),
        "normalised": plan.manifest["file"],
        "normalised_sha256": normalised,
    }
