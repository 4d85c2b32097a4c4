"""The plan as it is written down: plan.json, location and chunk references."""

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
from ferry.state.parquet import SCHEMA_VERSION, check_version

PLAN_FILE = "plan/plan.json"
LOCATION_FILE = "plan/location.json"
OLD_LOCATION_FILE = "plan/place.json"  # until schema 4
HINTS = "plan/hints"
REPLACED = "plan/replaced"
REPLAN = "plan/replan"
Existing = Literal["unknown", "head", "listed"]


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """All that a task is handed: where a chunk is, and what this run's plan found out about it."""

    uri: str  # the file's name in the state
    digest: str  # SHA-256 of the file
    rows: int
    bytes: int  # sum of the sizes that the manifest names
    kind: Literal["base", "retry"]  # base chunks stay in the plan, retry chunks until all their rows are done
    run_no: int  # the run that cut it
    done: int = 0  # rows that need nothing more, by the ledger
    existing: Existing = "unknown"  # how existing objects are found: not at all, by HEAD, from the hints
    hints: str = ""  # the file with what this run's plan knows of single rows; "" where it knows nothing


@dataclass(frozen=True, slots=True)
class Plan:
    """plan/plan.json: what stays from run to run."""

    location_digests: dict[str, str]  # Job.location_digests() of the first plan
    chunk_rows: int
    rows: int  # of the current manifest
    manifest: dict[str, Any]  # file, digest of its source, recognised columns
    last_run: int
    chunks: list[ChunkRef] = field(default_factory=list)
    since_run: int = 0  # outcomes of earlier runs are of another place: a --replan after a change of the location
    expected_rows: int = 0  # usable rows of the last list that did not look cut off; 0 in older plans
    usable: int = 0  # rows without those that cannot be used, and without duplicates; 0 in older plans, too

    def encode(self) -> bytes:
        return encode_checked_json({"ferry_schema": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def decode(cls, raw: bytes) -> Plan:
        """Raises NewerVersion, or Damaged."""
        try:
            data = decode_checked_json(raw)
            check_version(data.pop("ferry_schema"), PLAN_FILE)
            data = renamed_keys(data)
            data["chunks"] = [ChunkRef(**chunk) for chunk in data["chunks"]]
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Damaged(
                f"{PLAN_FILE} in the state is damaged. `ferry run` plans anew from the list and the ledger"
            ) from None


@dataclass(frozen=True, slots=True)
class PlanLocation:
    """Where the rows go, since which run, and how many the list is to have: what a --replan, also of a damaged plan,
    must still know."""

    location_digests: dict[str, str]
    since_run: int
    expected_rows: int = 0  # as Plan.expected_rows

    def encode(self) -> bytes:
        return encode_checked_json(asdict(self))


def manifest_stem(run_no: int) -> str:
    """What the normalised manifest's name begins with; plan.json has the whole name, so that both change at once."""
    return f"plan/manifest-{run_no:06d}"


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


def read_location(state: _Reads) -> PlanLocation | None:
    """The location of the last plan, or None before the first. Raises Damaged."""
    for name in (LOCATION_FILE, OLD_LOCATION_FILE):
        try:
            data = renamed_keys(decode_checked_json(state.read(name)))
            digests, rows = dict(data["location_digests"]), int(data.get("expected_rows", 0))
            return PlanLocation(digests, int(data["since_run"]), rows)
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError) as exc:
            raise Damaged(f"{name} in the state is damaged ({type(exc).__name__})") from None
    return None


def set_plan_aside(state: State) -> None:
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


_RESULT = re.compile(r"-([0-9a-f]{32})\.json\Z")  # of a chunk, by the end of its cache key; others are not ours


def delete_unlisted(state: State, digests: Collection[str]) -> None:
    """Deletes chunk files, and what Prefect's cache keeps of chunks, that are not of these chunks.

    Under the lease, after the plan with these chunks is in force. Outcomes stay: they are what happened.
    """
    listed, short = set(digests), {digest[:32] for digest in digests}
    old = [name for name in state.list("chunks") if name.removeprefix("chunks/").removesuffix(".parquet") not in listed]
    for name in state.list("results"):
        match = _RESULT.search(name)
        if match is not None and match[1] not in short:
            old.append(name)
    state.delete(old)
    state.forget_copies()


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
    permanent_failures: int  # of these: failed for a reason that a plain run does not try again
    deferred_by_limit: int  # rows to do that --limit leaves for later
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
