"""Writes a proof into the state: a folder that can be checked without Ferry."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferry.core import Fatal, ObjectError, UserError, disk_error, short
from ferry.job import Job
from ferry.proof import bag, document, objects, origin, page
from ferry.proof.document import Verification
from ferry.reconcile import Sample, load_listing
from ferry.state import (
    FAILURE_COLUMNS,
    FailureFilter,
    State,
    count,
    failure_cell,
    folded_ledger,
    iterate_failures,
    read_plan,
    spreadsheet_safe,
)
from ferry.storage import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

PROOFS = "proofs"
DOCUMENT, PAGE, FAILURES, OTHERS = "proof.json", "proof.html", "failures.csv", "others.csv"
Pages = Callable[[], Iterable[Sequence[ObjectInfo]]]


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof in the state. ``reasons`` say why it is incomplete; without any it is complete."""

    name: str  # its folder
    reasons: list[str]
    document: dict[str, Any]

    @property
    def message(self) -> str:
        """The verdict, for the end of the flow run."""
        verdict = f"The proof is incomplete: {'; '.join(self.reasons)}" if self.reasons else "The proof is complete"
        return f"{verdict}. It is in the state as {self.name}/"


def write_proof(
    state: State,
    job: Job,
    readings: Path,
    verification: Verification,
    sample: Sample,
    pages: Pages,
    flow_run: str = "",
    keep_lease: Callable[[], None] = lambda: None,
) -> Proof:
    """Writes `proofs/<UTC time>/` and returns it. To be called under the lease, after the verification.

    ``pages`` lists the destination. The tag manifest is written last: a folder with it is complete. Raises Fatal if the
    state or its disk fails, and what ``keep_lease`` raises: another run may have changed objects meanwhile.
    """
    made_at = datetime.now(UTC)
    state.spool_dir.mkdir(parents=True, exist_ok=True)
    with _folder(state.spool_dir) as folder, folded_ledger(state, state.spool_dir) as con:
        objects.create_objects(con, readings, sample, read=verification.kind != "listing")
        found = bag.write_manifests(con, folder)
        listing = _compare_listing(con, folder, pages)
        told = _document(con, state, job, verification, found, listing)
        _write_csv(
            folder / FAILURES,
            FAILURE_COLUMNS,
            (map(failure_cell, each.values()) for each in iterate_failures(con, FailureFilter())),
        )
        told |= {"made_at": document.moment(made_at), "origin": origin.origin(flow_run)}
        _write_tags(folder, job, told, found, made_at)
        keep_lease()
        name = f"{PROOFS}/{made_at:%Y%m%dT%H%M%S.%fZ}"  # a second may have two
        for path in sorted(folder.iterdir(), key=lambda path: (path.name == bag.TAGS, path.name == DOCUMENT)):
            state.write_file(f"{name}/{path.name}", path)
        return Proof(name, told["reasons"], told)


@contextmanager
def _folder(spool_dir: Path) -> Iterator[Path]:
    """Yields a temporary folder for the block. Raises Fatal for a full disk."""
    try:
        with tempfile.TemporaryDirectory(prefix="ferry-proof-", dir=spool_dir) as folder:
            yield Path(folder)
    except OSError as exc:
        raise disk_error(exc, "a file of the proof") from exc


def _compare_listing(con: duckdb.DuckDBPyConnection, folder: Path, pages: Pages) -> dict[str, Any]:
    """Lists the destination, writes the objects that no row has, and returns the numbers, or why listing failed."""
    try:
        load_listing(con, pages())
    except (ObjectError, UserError, Fatal) as error:
        return {"refused": str(error)}
    return {
        **objects.compare_listing(con),
        "others": _write_csv(
            folder / OTHERS,
            ("key", "size", "etag", "last_modified", "row"),
            (map(spreadsheet_safe, each) for each in objects.select_others(con)),
        ),
    }


def _document(
    con: duckdb.DuckDBPyConnection,
    state: State,
    job: Job,
    verification: Verification,
    found: bag.Bag,
    listing: dict[str, Any],
) -> dict[str, Any]:
    counts, plan = count(con), read_plan(state)
    assert plan is not None  # folded_ledger needs one
    budget = job.budget(counts.planned - counts.duplicates)
    reasons = document.reasons(counts, budget, verification, listing, found.without_digests)
    with state.local(plan.manifest["file"]).open("rb") as file:
        normalised = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "ferry_proof": document.VERSION,
        "verdict": "incomplete" if reasons else "complete",
        "reasons": reasons,
        "job": job.name,
        "destination": job.destination.uri_of(""),
        "verification": verification.describe(),
        "rows": document.identity(counts),
        "failure_budget": budget,
        "confirmed": objects.count_confirmed(con),
        "objects": {
            "in_manifests": found.objects, "bytes": found.bytes, "without_digests": found.without_digests,
            "digests_read_now": found.read_now,
        },
        "digest_of_digests": found.digest,
        "listing": listing,
        "failures": document.failures(con),
        "list": document.list_of_rows(job, plan, normalised),
        "runs": document.runs(con),
        "settings": origin.settings(job),
    }  # fmt: skip


def _write_tags(folder: Path, job: Job, told: dict[str, Any], found: bag.Bag, made_at: datetime) -> None:
    """Writes the files beside the manifests; their own manifest last."""
    info = {
        "Bag-Software-Agent": f"Ferry {told['origin']['versions']['ferry']}",
        "External-Identifier": short(job.name, 200),
        "External-Description": f"Objects below {short(told['destination'], 500)}, without the payload",
    }
    bag.declare(folder, found, info, made_at.date())
    files = sorted({path.name for path in folder.iterdir()} | {DOCUMENT, PAGE})
    told["files"] = [*files, bag.TAGS]
    (folder / DOCUMENT).write_text(json.dumps(told, indent=1, ensure_ascii=False, default=str), encoding="utf-8")
    (folder / PAGE).write_text(page.render_page(told), encoding="utf-8")
    bag.write_tag_manifest(folder, files)


def _write_csv(path: Path, columns: Sequence[str], lines: Iterable[Iterable[Any]]) -> int:
    """Writes a table and returns the number of its lines; a table without lines is not written."""
    written = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for line in lines:
            writer.writerow(line)
            written += 1
    if not written:
        path.unlink()
    return written


def copy_proof(state: State, name: str, folder: Path) -> None:
    """Copies the files of a proof from the state into a local folder."""
    for each in state.list(name):
        shutil.copyfile(state.local(each), folder / each.rpartition("/")[2])
