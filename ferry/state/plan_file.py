"""The plan's files in the state: plan.json, location.json and references to chunks."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from ferry.core import Damaged
from ferry.state.checksums import decode_checked_json, encode_checked_json
from ferry.state.files import State
from ferry.state.old_schemas import renamed_keys
from ferry.state.parquet import check_version

PLAN_FILE = "plan/plan.json"
PLAN_SCHEMA = 7  # of this file alone, since `settled` was added: an earlier Ferry refuses it
LOCATION_FILE = "plan/location.json"
OLD_LOCATION_FILE = "plan/place.json"  # until schema 4
HINTS = "plan/hints"
REPLACED = "plan/replaced"
REPLAN = "plan/replan"
Existing = Literal["unknown", "head", "listed"]


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """What a task receives: the chunk's file, and what this run's plan knows of its rows."""

    uri: str  # the file's name in the state
    digest: str  # SHA-256 of the file
    rows: int
    bytes: int  # sum of the sizes in the manifest
    kind: Literal["base", "retry"]  # base chunks stay in the plan, retry chunks until all their rows are done
    run_no: int  # the run that wrote the file
    done: int = 0  # rows that need no further work, by the ledger
    existing: Existing = "unknown"  # how existing objects are found: not at all, by HEAD, from the hints
    hints: str = ""  # the file with what this run's plan knows of single rows; "" if it knows nothing
    settled: bool = False  # the ledger has an outcome for each attempt in the file: later plans need not read it


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan in force, which lasts from run to run (plan/plan.json)."""

    location_digests: dict[str, str]  # Job.location_digests() of the first plan
    chunk_rows: int
    rows: int  # of the current manifest
    manifest: dict[str, Any]  # file, digest of its source, recognised columns
    last_run: int
    chunks: list[ChunkRef] = field(default_factory=list)
    since_run: int = 0  # earlier outcomes are of another location, which a --replan has left
    expected_rows: int = 0  # usable rows of the last manifest that did not look truncated; 0 in older plans
    usable: int = 0  # rows that are neither unusable nor duplicates; 0 in older plans

    def encode(self) -> bytes:
        """Returns the content of plan.json."""
        return encode_checked_json({"ferry_schema": PLAN_SCHEMA, **asdict(self)})

    @classmethod
    def decode(cls, raw: bytes) -> Plan:
        """Returns the plan in a plan.json. Raises NewerVersion, or Damaged."""
        try:
            data = decode_checked_json(raw)
            check_version(data.pop("ferry_schema"), PLAN_FILE, PLAN_SCHEMA)
            data = renamed_keys(data)
            data["chunks"] = [ChunkRef(**chunk) for chunk in data["chunks"]]
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Damaged(
                f"{PLAN_FILE} in the state is damaged. Run `ferry run`: it plans again from the manifest and the ledger"
            ) from None


@dataclass(frozen=True, slots=True)
class PlanLocation:
    """Facts about source and destination that `--replan` needs even if the plan is damaged (plan/location.json)."""

    location_digests: dict[str, str]  # as Plan.location_digests
    since_run: int  # as Plan.since_run
    expected_rows: int = 0  # as Plan.expected_rows

    def encode(self) -> bytes:
        """Returns the content of location.json."""
        return encode_checked_json(asdict(self))


def manifest_stem(run_no: int) -> str:
    """Returns the start of the normalised manifest's name.

    plan.json has the full name, so that plan and manifest change in one write.
    """
    return f"plan/manifest-{run_no:06d}"


def with_hints(chunk: ChunkRef, done: int, existing: Existing, hints: str = "") -> ChunkRef:
    """Returns the reference with what this run's plan knows of the chunk's rows."""
    return replace(chunk, done=done, existing=existing, hints=hints)


class _Readable(Protocol):
    def read(self, name: str) -> bytes: ...


def read_plan(state: _Readable) -> Plan | None:
    """Returns the state's plan, or None before the first plan. Raises NewerVersion, or Damaged."""
    try:
        return Plan.decode(state.read(PLAN_FILE))
    except FileNotFoundError:
        return None


def read_location(state: _Readable) -> PlanLocation | None:
    """Returns the location of the last plan, or None before the first plan. Raises Damaged."""
    for name in (LOCATION_FILE, OLD_LOCATION_FILE):
        try:
            data = renamed_keys(decode_checked_json(state.read(name)))
            digests, rows = dict(data["location_digests"]), int(data.get("expected_rows", 0))
            return PlanLocation(digests, int(data["since_run"]), rows)
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError) as exc:
            raise Damaged(
                f"{name} in the state is damaged ({type(exc).__name__}). Restore it from a copy of the state, or run "
                "`ferry run --replan`"
            ) from None
    return None


def set_plan_aside(state: State) -> None:
    """Moves the plan, even a damaged one, to `plan/replaced/` for `--replan`; the ledger stays in force.

    The file REPLAN marks until the next plan that this one is missing on purpose. Raises NewerVersion.
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


_RESULT = re.compile(r"-([0-9a-f]{32})\.json\Z")  # a chunk's result, which has the end of its cache key as its name


def delete_unlisted(state: State, digests: Collection[str]) -> None:
    """Deletes chunk files, and chunk results in Prefect's cache, of all chunks except these.

    To be called under the lease, once the plan with these chunks is in force. Outcomes stay.
    """
    listed, short = set(digests), {digest[:32] for digest in digests}
    old = [name for name in state.list("chunks") if name.removeprefix("chunks/").removesuffix(".parquet") not in listed]
    for name in state.list("results"):
        match = _RESULT.search(name)
        if match is not None and match[1] not in short:
            old.append(name)
    state.delete(old)
    state.delete_stale_copies()


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows to do that `ferry check` copies to a prefix of its own. Its chunks are in a state of their own."""

    chunks: list[ChunkRef]  # rows of all hosts, to judge
    more: list[ChunkRef]  # further random rows, to measure the rate
    hosts: dict[str, int]  # rows to do by host; "" has all hosts but the largest
    hosts_at_once: float  # hosts among 10,000 consecutive rows of the manifest, on average
    sized_rows: int  # rows to do whose size the manifest has
    sized_bytes: int


@dataclass(frozen=True, slots=True)
class Planned:
    """The result of planning, which the child process sends to the flow as JSON."""

    run_no: int
    rows: int  # rows of the manifest
    unusable: int
    duplicates: int
    collisions: int
    todo: dict[str, int]  # reason -> rows in new chunks
    pending: int  # rows of earlier chunks that are still to do
    untouched: int  # rows that this run leaves as they are, failed ones included
    permanent_failures: int  # untouched rows with a failure that a plain run does not retry
    deferred_by_limit: int  # rows to do that --limit leaves for a later run
    existing: str  # how existing objects are found, as text for the user
    chunk_rows: int
    chunks: list[ChunkRef]
    recognised: dict[str, str]  # role -> column
    samples: dict[str, str]  # role -> a value
    notes: list[str]
    shorter: str = ""  # a warning that the manifest is more than a tenth shorter than the last one
    mappings: list[tuple[str, str]] = field(default_factory=list)  # examples of `ferry plan`: source, destination URI
    hosts: dict[str, int] = field(default_factory=dict)  # rows of the hosts with most rows, of `ferry plan`
    more_hosts: int = 0
    sample: Sample | None = None  # of `ferry check`

    def encode(self) -> str:
        """Returns the JSON document."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, raw: str | bytes) -> Planned:
        """Returns what :meth:`encode` made a document of."""
        data = json.loads(raw)
        data["chunks"] = [ChunkRef(**chunk) for chunk in data["chunks"]]
        if sample := data.get("sample"):
            for name in ("chunks", "more"):
                sample[name] = [ChunkRef(**chunk) for chunk in sample[name]]
            data["sample"] = Sample(**sample)
        return cls(**data)
