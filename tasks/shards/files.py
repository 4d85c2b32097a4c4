"""The files in the state by which a run and its shards work together, and what a crash between two of them leaves.

In `shards/RUN/`, with the number of the run, N for a shard and A for an attempt at it:

| file | written by | content |
|---|---|---|
| `N.json` | the run, before it submits shard N | the chunks, and the digest of the code that cut them |
| `orders.json` | the run, when it changes | the orders, and the attempt of each shard that counts |
| `N-A.claim` | the process that begins attempt A; created exclusively | who it is |
| `N-A.beat` | that process, every few seconds | what it has done so far; the last one says how it ended |

The process of a shard that holds the claim writes outcomes as every process does, and the results of its chunks.

| a process dies, or cannot write, | what is left | what follows |
|---|---|---|
| the run, before or after `N.json` | no order that names N | the next run plans from the ledger |
| the run, between `orders.json` and the submission | an attempt that no process begins | as for the run below |
| the run, after a submission whose answer was lost | a flow run at Prefect | the same key submits the same flow run |
| the run, which takes such a shard itself | its claim | a worker that begins it cannot claim it, and stops |
| a shard, before its claim | a flow run that ends, or none | the run submits the next attempt, or claims this one |
| a shard, between its claim and its first beat | a claim | the run counts its silence from when it saw the claim |
| a shard, between two beats | outcomes that no beat has counted | the run counts the shard's outcomes again |
| a shard, between a row's upload and its outcome | an object | the next attempt copies it again: it was in flight |
| a shard, between outcomes and a chunk's result | all outcomes | the next attempt finds them and asks for nothing |
| a shard, between the last result and its last beat | all results | the next attempt finds each chunk Cached |
| a shard, between its last beat and its end at Prefect | everything | nothing; Prefect shows a crash |
| the run, while shards work | a lease that is not renewed | shards stop after 120 s, or one look after a takeover |
| the run, between a shard's last beat and the next step | all outcomes | the next run plans from the ledger |
| none, but two processes believe in one attempt | one claim | creation is exclusive: the other one leaves |
| none, but one was silent and lives | two outcomes of a row, both true | it stops at its next look; a copy wins |

Settings may be changed by the file `shards/settings.json`, for tests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ferry import __version__
from ferry.core import Damaged, UserError
from ferry.state import ChunkRef, State, decode_checked_json, encode_checked_json, this_process
from tasks.workers.messages import Beat, Orders

FOLDER = "shards"
SETTINGS = f"{FOLDER}/settings.json"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Settings:
    """All sizes and times of shards. No clocks of two machines are compared: each measures with its own."""

    least_rows: int = 200_000  # of a shard: its start takes about 6 s of CPU time
    per_machine: int = 4  # shards of the plan for each machine, so that no machine is left with a long one
    look_s: float = 5.0  # between two looks of a process at lease and orders, and between its beats
    fresh_s: float = 15.0  # a shard writes only while its last look is not older
    silent_s: float = 20.0  # without a new beat, as the run sees it, a shard counts as dead: longer than fresh_s
    hint_s: float = 15.0  # after which the run says why no worker has begun a shard; a worker asks every 10 s
    unclaimed_s: float = 20.0  # for how long the run leaves a shard that no process has begun to the workers
    stop_s: float = 25.0  # for how long the run waits for its shards after a stop
    most_crashes: int = 3  # of one shard, with no new outcome in between; then the run ends
    most_refusals: int = 3  # of all shards; then the run continues alone


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """N.json: the chunks of a shard, with the places of the first one and of all in the run."""

    refs: list[ChunkRef]
    first: int
    total: int
    code: str

    def encode(self) -> bytes:
        return encode_checked_json(asdict(self))

    @classmethod
    def decode(cls, raw: bytes, code: str) -> ShardPlan:
        """Raises UserError for a plan of other code before its chunks are read: they may have other fields there."""
        data = decode_checked_json(raw)
        if data["code"] != code:
            raise UserError(
                f"this worker's Ferry is {code}, and that of the run is {data['code']}. Install the same version "
                "on all machines, and restart their workers"
            )
        return cls(**{**data, "refs": [ChunkRef(**ref) for ref in data["refs"]]})


Kind = Literal["done", "left", "refused", "machine", "job"]


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended.

    | kind | meaning | what the run does |
    |---|---|---|
    | done | each chunk has returned, or has rows pending for good | takes over the records |
    | left | the process was to leave: a signal, a cancellation of this flow run alone | submits the next attempt |
    | refused | this machine lacks a credential, or cannot use a setting | the same, a few times |
    | machine | an error of the machine: its disk, its network, the state unreachable | the same, and counts it |
    | job | an error of the job: credentials, the bucket | ends |
    """

    kind: Kind
    message: str = ""
    returned: list[str] = field(default_factory=list)
    cached: int = 0
    incomplete: dict[str, str] = field(default_factory=dict)
    task_runs: dict[str, str] = field(default_factory=dict)
    needs_repair: bool = False
    problems: list[list[str]] = field(default_factory=list)  # of the run's page


@dataclass(frozen=True, slots=True)
class SharedOrders:
    """orders.json."""

    orders: Orders
    attempts: dict[str, int]  # shard -> the attempt at it that counts
    counted: dict[str, int]  # shard -> its processes that ``orders.share`` has counted

    def counts(self, number: int, attempt: int) -> bool:
        return self.attempts.get(str(number)) == attempt


class ShardFiles:
    """The files of one run's shards. The methods block on the state."""

    def __init__(self, state: State, run_no: int) -> None:
        self.state = state
        self.folder = f"{FOLDER}/{run_no:06d}"

    def names(self) -> set[str]:
        """Returns the names of all claims and beats in the folder."""
        return {name.removeprefix(f"{self.folder}/") for name in self.state.list(self.folder)}

    def write_plan(self, number: int, plan: ShardPlan) -> None:
        self.state.write(f"{self.folder}/{number}.json", plan.encode())

    def read_plan(self, number: int, code: str) -> ShardPlan:
        """Raises Damaged, and UserError if the run has other code than ``code``."""
        try:
            return ShardPlan.decode(self.state.read(f"{self.folder}/{number}.json"), code)
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{self.folder}/{number}.json in the state is damaged") from None

    def write_orders(self, shared: SharedOrders) -> None:
        data = {**asdict(shared), "orders": asdict(shared.orders)}
        self.state.write(f"{self.folder}/orders.json", json.dumps(data).encode())

    def read_orders(self) -> SharedOrders | None:
        """Returns None where there are none: the run has ended, and a later one has tidied up."""
        try:
            data = json.loads(self.state.read(f"{self.folder}/orders.json"))
            return SharedOrders(**{**data, "orders": Orders(**data["orders"])})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def claim(self, number: int, attempt: int) -> bool:
        """Returns whether this process has the attempt. No other process ever gets it then."""
        me = this_process(f"shard {number}", 0.0)
        return self.state.create(f"{self.folder}/{claim_name(number, attempt)}", me.encode())

    def write_beat(self, number: int, attempt: int, count: int, beat: Beat, end: End | None = None) -> None:
        """``count`` makes each beat another file content, also of a process to which nothing happens."""
        data = {"count": count, "beat": asdict(beat), "end": asdict(end) if end else None}
        self.state.write(f"{self.folder}/{beat_name(number, attempt)}", json.dumps(data).encode())

    def read_beat(self, number: int, attempt: int) -> tuple[int, Beat, End | None]:
        """Raises FileNotFoundError, and Damaged."""
        try:
            data = json.loads(self.state.read(f"{self.folder}/{beat_name(number, attempt)}"))
            return int(data["count"]), Beat(**data["beat"]), End(**data["end"]) if data["end"] else None
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{self.folder}/{beat_name(number, attempt)} in the state is damaged") from None

    def delete_earlier(self) -> None:
        """Delete the files of earlier runs. Their processes read that as their end."""
        old = [name for name in self.state.list(FOLDER) if name != SETTINGS and not name.startswith(f"{self.folder}/")]
        self.state.delete(old)


def claim_name(number: int, attempt: int) -> str:
    return f"{number}-{attempt}.claim"


def beat_name(number: int, attempt: int) -> str:
    return f"{number}-{attempt}.beat"


def read_settings(state: State) -> Settings:
    """Returns the settings, with those that a test has written."""
    try:
        given: Mapping[str, Any] = json.loads(state.read(SETTINGS))
    except FileNotFoundError:
        return Settings()
    return Settings(**given)


@cache
def code_digest() -> str:
    """Returns Ferry's version and a digest of its sources, which is the same for a checkout and an installed package.

    Machines with other sources may decide otherwise about a row, and would still share results and outcomes.
    """
    digest = hashlib.sha256()
    for path in sorted(path for top in ("ferry", "flows", "tasks") for path in (ROOT / top).rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT).as_posix()} {len(data)}\n".encode() + data)
    return f"{__version__} {digest.hexdigest()[:16]}"
