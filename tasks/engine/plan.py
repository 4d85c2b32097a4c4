"""What a plan is, and the decisions in it: which rows to do and why. Pure; planner.py does the work."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from tasks.engine.errors import Damaged, UserError
from tasks.engine.job import Job
from tasks.engine.objects import AGAIN, Again, ErrorClass, Reason, Status
from tasks.engine.recheck import Look
from tasks.engine.seal import open_json, seal_json
from tasks.engine.state import State
from tasks.engine.tables import SCHEMA_VERSION, check_version

PLAN_FILE = "plan/plan.json"
PLACE_FILE = "plan/place.json"
HINTS = "plan/hints"
REPLACED = "plan/replaced"
REPLAN = "plan/replan"
HEAD_AT_MOST = 500  # rows to do for which HEADs are asked; for more the destination is listed

Existing = Literal["unknown", "head", "listed"]
Mode = Literal["plain", "retry", "pass", "repair"]


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """All that a task is handed: where a chunk is, and what this run's plan found out about it."""

    uri: str  # the file's name in the state
    digest: str  # SHA-256 of the file
    rows: int
    bytes: int  # sum of the sizes that the manifest names
    kind: Literal["base", "again"]  # base chunks hold rows for good, "again" chunks until they are settled
    run_no: int  # the run that cut it
    done: int = 0  # rows that need nothing more, by the ledger
    existing: Existing = "unknown"  # how existing objects are found: not at all, by HEAD, from the hints
    hints: str = ""  # the file with what this run's plan knows of single rows; "" where it knows nothing


@dataclass(frozen=True, slots=True)
class Plan:
    """plan/plan.json: what stays from run to run."""

    where: dict[str, str]  # Job.where() of the first plan
    chunk_rows: int
    rows: int  # of the current manifest
    manifest: dict[str, Any]  # file, digest of its source, recognised columns
    last_run: int
    chunks: list[ChunkRef] = field(default_factory=list)
    since_run: int = 0  # outcomes of earlier runs are of another place: a --replan after a change of `where`
    believed: int = 0  # usable rows of the last list that did not look cut off; 0 in plans of before there was such
    usable: int = 0  # rows without those that cannot be used, and without duplicates; 0 in older plans, too

    def encode(self) -> bytes:
        return seal_json({"ferry_schema": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def decode(cls, raw: bytes) -> Plan:
        """Raises NewerVersion, or Damaged."""
        try:
            data = open_json(raw)
            check_version(data.pop("ferry_schema"), PLAN_FILE)
            data["chunks"] = [ChunkRef(**chunk) for chunk in data["chunks"]]
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Damaged(
                f"{PLAN_FILE} in the state is damaged. `ferry run` plans anew from the list and the ledger"
            ) from None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rows go, since which run, and how many the list is to have: what a --replan, also of a damaged plan,
    must still know."""

    where: dict[str, str]
    since_run: int
    believed: int = 0  # as Plan.believed

    def encode(self) -> bytes:
        return seal_json(asdict(self))


@dataclass(frozen=True, slots=True)
class Planned:
    """What planning tells the run (JSON between the child process and the flow)."""

    run_no: int
    rows: int  # rows of the manifest
    unusable: int
    duplicates: int
    collisions: int
    todo: dict[str, int]  # reason -> rows in new chunks
    pending: int  # rows of earlier chunks that are still to do
    settled: int  # rows that this run does not touch, whatever became of them
    lasting: int  # of these: failed for a reason that a plain run does not try again
    beyond: int  # rows to do that --limit leaves for later
    existing: str  # how existing objects are found, in words
    chunk_rows: int
    chunks: list[ChunkRef]
    recognised: dict[str, str]
    notes: list[str]
    shorter: str = ""  # the list is more than a tenth shorter than the last one: said before anything moves

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, raw: str | bytes) -> Planned:
        data = json.loads(raw)
        data["chunks"] = [ChunkRef(**chunk) for chunk in data["chunks"]]
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Latest:
    """What the ledger says of a row."""

    status: Status
    error_class: ErrorClass | None
    status_code: int | None
    by_plan: bool  # an outcome of planning: unusable, doubled, colliding
    how_same: bool  # written under the job's present `how`
    this_run: bool
    superseded: bool = False  # copied once, and another row wrote its key since
    delta: bool = False  # what is settled is looked at again, as these say:
    look: Look | None = None  # how; None where nothing of ours stands at the destination
    other: bool = False  # the list says that the object is another one
    due: bool = False  # a failed row may be tried again by now


def reason_to_do(
    latest: Latest | None,
    *,
    held: bool,
    mode: Mode,
    classes: Collection[str] = (),
) -> Reason | None:
    """Why a usable row goes into a new chunk, or None when it does not (SEMANTICS: plan and cache).

    ``held``: a listed chunk holds the row for an attempt that the ledger does not have yet.

    | mode | ledger | held | reason |
    |---|---|---|---|
    | plain | any | yes | none: that chunk does it |
    | plain | nothing, or an outcome of planning | no | new |
    | plain | pending (found by verify) | no | repair |
    | plain | copied, unchanged; another row wrote the key since | no | changed |
    | plain | copied, unchanged otherwise; in a delta: the list says that the object is another one | no | changed |
    | plain | copied, unchanged otherwise; in a delta: the list does not say that it is the same | no | revalidate |
    | plain | copied, unchanged otherwise | no | none |
    | plain | failed under another `how` | no | changed |
    | plain | failed, in a delta: as `delta.retry` says of its class | no | retry |
    | plain | failed, retryable | no | retry |
    | plain | failed, terminal | no | none |
    | plain | skipped under another `how`, not a duplicate | no | changed |
    | plain | skipped otherwise | no | none |
    | retry | failed, of one of ``classes`` (empty: any) | any | retry |
    | retry | anything else | any | none |
    | pass | nothing, pending, outcome of planning | yes | repair: its chunk returned without it |
    | pass | anything of an earlier run | yes | retry: likewise, and on_existing is asked |
    | pass | failed in this run, worth another try now | any | retry |
    | pass | anything else | any | none |
    | repair | as pass, but failures of this run are left alone | | |

    Where `retry` or `changed` is said of a failed row, one that failed as `upload_unconfirmed` is a `repair`: what
    stands under its key may be what arrived of our own upload, and no policy is to keep that.

    A class may be named by its name or by the status code (`404`).
    """
    ours = latest is not None and latest.error_class is ErrorClass.UPLOAD_UNCONFIRMED
    retry = Reason.REPAIR if ours else Reason.RETRY
    if mode == "retry":
        if latest is None or latest.status is not Status.FAILED or latest.by_plan:
            return None
        wanted = (
            not classes
            or latest.error_class in classes
            or (latest.status_code is not None and str(latest.status_code) in classes)
        )
        return retry if wanted else None
    if mode in ("pass", "repair"):
        if latest is None or latest.status is Status.PENDING or latest.by_plan:
            return Reason.REPAIR if held else None
        if held and not latest.this_run:
            return retry
        failed = mode == "pass" and latest.status is Status.FAILED and latest.this_run
        now = latest.error_class is not None and AGAIN[latest.error_class] is Again.NOW
        return retry if failed and now else None
    if held:
        return None
    if latest is None or latest.by_plan:
        return Reason.NEW
    if latest.status is Status.PENDING:
        return Reason.REPAIR
    if latest.status is Status.FAILED:
        if not latest.how_same:
            return Reason.REPAIR if ours else Reason.CHANGED
        again = latest.error_class is not None and AGAIN[latest.error_class] is not Again.NEVER
        return retry if (latest.due if latest.delta else again) else None
    if latest.superseded:
        return Reason.CHANGED
    if latest.status is Status.SKIPPED and not latest.how_same and latest.error_class is not ErrorClass.DUPLICATE:
        return Reason.CHANGED
    if latest.delta and latest.status in (Status.COPIED, Status.UNCHANGED) and latest.look not in (None, Look.NOT):
        return Reason.CHANGED if latest.other else Reason.REVALIDATE
    return None


def manifest_stem(run_no: int) -> str:
    """What the normalised manifest's name begins with; plan.json has the whole name, so that both change at once."""
    return f"plan/manifest-{run_no:06d}"


def auto_chunk_rows(rows: int) -> int:
    """SEMANTICS: rows / 500, at least 500, at most 100,000."""
    return max(500, min(100_000, rows // 500))


def check_where(plan: Plan, job: Job) -> None:
    """Raises UserError when a setting changed that says where rows come from or go to."""
    changed = [name for name, value in job.where().items() if plan.where.get(name) != value]
    if changed:
        names = ", ".join(f"`{name}`" for name in changed)
        raise UserError(
            f"{names} changed since this job's first run. Rows that are done would lie in the wrong place: undo the "
            "change, give the job another `state`, or plan it anew with `ferry run --replan` (nothing is deleted)"
        )


def rows_believed(rows: int, before: int, *, shorter_list: bool) -> int:
    """How many usable rows the list is to have (Plan.believed), when it has ``rows`` and was believed to have
    ``before``.

    | rows | `delta.shorter_list` | believed |
    |---|---|---|
    | at least nine tenths of those before | any | rows |
    | fewer: it looks cut off | no | before, until a list comes that is long enough |
    | fewer | yes | rows |
    """
    return rows if shorter_list or not much_shorter(rows, before) else before


def cut_off(rows: int, believed: int) -> bool:
    """Does a list look cut off, when rows_believed() was asked for it already?"""
    return rows < believed


def much_shorter(rows: int, before: int) -> bool:
    """Has a list over a tenth fewer usable rows than one before it?"""
    return rows < 0.9 * before


def keep(chunk: ChunkRef, newest: int) -> bool:
    """Does a chunk stay in the plan? Base chunks always; retries while unsettled, and the newest ones."""
    return chunk.kind == "base" or chunk.done < chunk.rows or chunk.run_no == newest


def with_hints(chunk: ChunkRef, done: int, existing: Existing, hints: str = "") -> ChunkRef:
    return replace(chunk, done=done, existing=existing, hints=hints)


class _Reads(Protocol):
    def read(self, name: str) -> bytes: ...


def read_plan(state: _Reads) -> Plan | None:
    """The state's plan, or None before the first. Raises NewerVersion, or Damaged."""
    try:
        return Plan.decode(state.read(PLAN_FILE))
    except FileNotFoundError:
        return None


def read_place(state: _Reads) -> Place | None:
    """The place of the last plan, or None before the first. Raises Damaged."""
    try:
        data = open_json(state.read(PLACE_FILE))
        return Place(dict(data["where"]), int(data["since_run"]), int(data.get("believed", 0)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as exc:
        raise Damaged(f"{PLACE_FILE} in the state is damaged ({type(exc).__name__})") from None


def forget_plan(state: State) -> None:
    """`--replan`: puts the present plan aside, also a damaged one. The ledger stays: it is what happened.

    REPLAN says until the next plan that this one is missing on purpose. Raises NewerVersion.
    """
    try:
        raw = state.read(PLAN_FILE)
    except FileNotFoundError:
        raw = b""
    with contextlib.suppress(Damaged):
        Plan.decode(raw)
    state.write(REPLAN, b"")
    if not raw:
        return
    state.write(f"{REPLACED}/{len(state.list(REPLACED)) + 1:06d}.json", raw)
    state.delete([PLAN_FILE])
