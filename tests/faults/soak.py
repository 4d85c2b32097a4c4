"""Rounds of `ferry run` against origins and stores that go wrong in every way at once, for as long as is asked.

`python -m tests.faults.soak --minutes 60 --seed 1`. Each store has a job of its own, which runs again and again: its
list grows and shrinks, objects change, and each round the seed draws what its store does wrong. After each round
every row must be settled and nothing wrong may stand at the store; after the last, calm one each good row is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from demo.images import make_image
from demo.origin import Fault as OriginFault
from demo.origin import Origin, Trouble
from demo.s3 import S3Server
from demo.validators import Validators
from flows.server.local import LocalServer
from tests.flows.project import TRACEBACK, Cli, Ended, fold
from tests.servers.odd_s3 import Fault, OddS3

ORIGINS = 3
NEW_ROWS = 120
ROWS_AT_MOST = 900
WITHIN_S = 420.0  # the watchdog ends a run before that
CALM_RUNS = 3
PASSES = {
    Trouble.FLAKY, Trouble.RATE_LIMITED, Trouble.SLOW, Trouble.REDIRECT, Trouble.GZIP, Trouble.WRONG_TYPE,
    Trouble.CHANGES, Trouble.CHUNKED,
}  # fmt: skip
STORES: dict[str, dict[str, Any]] = {
    "MD5 ETags": {},
    "MD5 in upper case, checksums": {"etags": "upper", "checksums": True},
    "KMS-like ETags": {"etags": "kms"},
    "opaque ETags, no conditions": {"etags": "opaque", "conditions": "ignored"},
    "no ETags, no DeleteObjects": {"etags": "none", "delete_many": False, "page_keys": 50},
    "conditions refused, small pages": {"conditions": "501", "page_keys": 50},
    "state at the same store": {"etags": "md5"},
}
READS, WRITES = ("GetObject", "HeadObject"), ("PutObject",)
REST = ("HeadBucket", "ListObjectsV2", "DeleteObject", "DeleteObjects", "CreateMultipartUpload", "AbortMultipartUpload")
ALL = (*READS, *WRITES, *REST)


@dataclass
class Lane:
    """One store, its job, and what must be there."""

    name: str
    store: OddS3
    folder: Path
    good: dict[str, bytes] = field(default_factory=dict)  # key: what must stand there
    bad: set[str] = field(default_factory=set)  # keys of rows whose source never answers with an image
    urls: dict[str, str] = field(default_factory=dict)
    old: dict[str, set[bytes]] = field(default_factory=dict)  # what earlier rounds rightly wrote


@dataclass
class Figures:
    rounds: int = 0
    rows: int = 0
    runs: int = 0
    calm_runs: int = 0
    wrong: int = 0
    by_size: int = 0
    missing: int = 0
    pending: int = 0
    hung: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)


def faults_of(seeded: random.Random) -> list[Fault]:
    """What one round's store does wrong: each kind rarely enough for five tries, and silence once or twice."""
    each: list[Fault] = [
        Fault("status", ALL, probability=0.03, status=503, code="SlowDown"),
        Fault("status", ALL, probability=0.02, status=500, code="InternalError"),
        Fault("reset", ALL, probability=0.02),
        Fault("lost answer", (*WRITES, "DeleteObject", "DeleteObjects"), probability=0.02),
        Fault("alter", WRITES, probability=0.02, key=r"\.jpg$"),
        Fault("halve", ("GetObject",), probability=0.05),
        Fault("error in 200", ("PutObject", "ListObjectsV2"), probability=0.02),
        Fault("silence", ALL, probability=0.01, times=2),
        Fault("slow", ALL, probability=0.05, delay_s=0.5),
    ]
    return seeded.sample(each, seeded.randint(3, len(each)))


def next_list(lane: Lane, origins: Sequence[Origin], seeded: random.Random, number: int, figures: Figures) -> None:
    """New rows with every kind of trouble, some objects changed, and now and then some rows less."""
    for at in range(NEW_ROWS):
        key = f"{number:04d}/{at:03d}.jpg"
        origin = seeded.choice(origins)
        body = make_image("jpeg", seeded.randrange(1 << 30), seeded.randint(20, 300), seeded.randint(20, 200))
        trouble = seeded.choice(list(Trouble)) if seeded.random() < 0.4 else None
        validators = seeded.choice(list(Validators))
        fault: OriginFault | None = None
        kept = body
        if trouble is not None:
            figures.met[trouble] += 1
            kept = make_image("jpeg", seeded.randrange(1 << 30), 40, 30) if trouble is Trouble.CHANGES else body
            then = kept if trouble is Trouble.CHANGES else b""
            fault = OriginFault(trouble, seconds=1.0, then=then, chunked=seeded.random() < 0.5)
        path = f"/{secrets.token_hex(4)}/{key}"
        lane.urls[key] = origin.add(path, body, fault=fault, kind=validators)
        if trouble is None or trouble in PASSES:
            lane.good[key] = kept
        else:
            lane.bad.add(key)
    gone = [key for key in lane.urls if int(key[:4]) <= number - ROWS_AT_MOST // NEW_ROWS]
    for key in gone:
        del lane.urls[key]
        lane.good.pop(key, None)
        lane.bad.discard(key)
    lines = [f"{url},{key}" for key, url in lane.urls.items()]
    lines += ["N/A,not-an-address.jpg", "http://127.0.0.1:1/never.jpg,refused.jpg"]
    (lane.folder / "list.csv").write_text("url,key\n" + "\n".join(lines) + "\n")


def write_job(lane: Lane) -> None:
    job: dict[str, Any] = {
        "name": "soak",
        "manifest": "list.csv",
        "destination": {"uri": "s3://soak/images/", "endpoint_url": lane.store.endpoint_url},
        "source": {"allow_private_addresses": ["127.0.0.1"]},
        "retries": {"attempts": 3, "backoff_s": 0.1, "max_backoff_s": 2, "chunk_delay_s": 1, "passes": 1},
        "timeouts": {"read_s": 4, "total_s": 20},
        "mode": "delta",
        "delta": {"delete_removed": True, "max_delete": "100%"},
        "failure_budget": "100%",
        "max_bytes": 4 * 1024 * 1024,
        "chunk_rows": 100,
    }
    if lane.name == "state at the same store":
        job["state"] = "s3://soak/state/"
    (lane.folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))


def run(cli: Cli, lane: Lane, *arguments: str) -> Ended:
    keys = {"AWS_ACCESS_KEY_ID": lane.store.access_key, "AWS_SECRET_ACCESS_KEY": lane.store.secret_key}
    if arguments[0] == "status":
        return cli.run([*arguments], lane.folder, keys, WITHIN_S)
    return cli.end(cli.start(arguments, lane.folder, keys), arguments, WITHIN_S)


def pending(cli: Cli, lane: Lane) -> int:
    answer = run(cli, lane, "status", "job.yaml", "--json").json
    return int(answer["pending"])


def wrong(lane: Lane) -> tuple[list[str], int]:
    """Keys of rows that are called copied or unchanged, where other bytes stand than their source ever had.

    Those whose line says that only sizes could be compared are counted apart.
    """
    found = lane.store.stored("soak", "images/")
    for key, body in lane.good.items():
        lane.old.setdefault(key, set()).add(body)
    bad, by_size = [], 0
    for line in ledger(lane).values():
        key = line["key"]
        if line["status"] not in ("copied", "unchanged") or found.get(f"images/{key}") in lane.old.get(key, set()):
            continue
        if line["confirmed"] == "size":
            by_size += 1
        else:
            bad.append(key)
    return bad, by_size


def ledger(lane: Lane) -> dict[str, dict[str, Any]]:
    """The latest outcomes of the list's rows, read without Ferry."""
    with tempfile.TemporaryDirectory() as folder:
        state = lane.folder / ".ferry" / "soak"
        if lane.name == "state at the same store":
            state = Path(folder)
            for name, data in lane.store.stored("soak", "state/").items():
                path = state / name.removeprefix("state/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        return {row: line for row, line in fold(state).items() if line["key"] in lane.urls}


def one_round(
    cli: Cli, lane: Lane, origins: Sequence[Origin], seeded: random.Random, number: int, figures: Figures
) -> bool:
    """True when every row was settled and nothing wrong stood there."""
    next_list(lane, origins, seeded, number, figures)
    lane.store.faults = faults_of(seeded)
    started = time.monotonic()
    ends: list[str] = []
    try:
        for _ in range(1 + CALM_RUNS):
            ended = run(cli, lane, "run", "job.yaml")
            figures.runs += 1
            if TRACEBACK in ended.text or ended.code not in (0, 1):
                print(ended.text, flush=True)
                ends.append(f"exit {ended.code}")
                break
            left = pending(cli, lane)
            ends.append(f"exit {ended.code}, {left} pending")
            if not left:
                break
            figures.calm_runs += 1
            for fault in lane.store.faults:  # the store has recovered
                figures.struck[fault.what] += fault.struck
            lane.store.faults = []
        else:
            figures.pending += left
    except Exception as error:  # a run that does not end is what is looked for
        figures.hung += 1
        ends.append(f"did not end: {type(error).__name__}")
    for fault in lane.store.faults:
        figures.struck[fault.what] += fault.struck
    lane.store.faults = []
    bad, by_size = wrong(lane)
    figures.by_size += by_size
    figures.rounds += 1
    figures.rows += len(lane.urls) + 2
    figures.wrong += len(bad)
    print(
        f"{number:4} {lane.name:32} {len(lane.urls):4} rows {time.monotonic() - started:6.1f} s  {'; '.join(ends)}"
        + (f"  {by_size} altered ones confirmed by size alone" if by_size else "")
        + (f"  WRONG: {bad[:5]}" if bad else ""),
        flush=True,
    )
    return not bad and bool(ends) and ends[-1].endswith(", 0 pending")


def calm(cli: Cli, lane: Lane, figures: Figures) -> bool:
    """Last runs without a fault: each good row's object stands there, whole; one that the store altered and whose size
    alone was compared is found by no run, and is not looked for."""
    run(cli, lane, "run", "job.yaml", "--retry-failed")
    ended = run(cli, lane, "run", "job.yaml")
    found = lane.store.stored("soak", "images/")
    by_size = {line["key"] for line in ledger(lane).values() if line["confirmed"] == "size"}
    missing = [
        key for key, body in lane.good.items()
        if (data := found.get(f"images/{key}")) != body and (key not in by_size or data is None)
    ]  # fmt: skip
    figures.missing += len(missing)
    print(
        f"calm {lane.name:32} {len(lane.good):4} good rows, {len(missing)} missing or other {missing[:5]}", flush=True
    )
    if missing:
        print(ended.text, flush=True)
    return not missing


@contextlib.contextmanager
def lanes(folder: Path) -> Iterator[list[Lane]]:
    with contextlib.ExitStack() as stack:
        made = []
        for number, (name, given) in enumerate(STORES.items()):
            store = stack.enter_context(OddS3(**given, seed=number))
            store.make_bucket("soak")
            place = folder / str(number)
            place.mkdir()
            made.append(Lane(name, store, place))
            write_job(made[-1])
        yield made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    seeded, figures, fine = random.Random(asked.seed), Figures(), True
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ferry-soak-")))
        (folder / "home").mkdir()
        unused = S3Server(folder / "s3")  # the command's harness asks for one; it is not started
        prefect = stack.enter_context(LocalServer(folder / "prefect"))
        origins = [stack.enter_context(Origin()) for _ in range(ORIGINS)]
        made = stack.enter_context(lanes(folder))
        cli = Cli(unused, prefect, folder / "home")
        stack.callback(cli.close)
        number = 0
        while time.monotonic() - started < asked.minutes * 60:
            number += 1
            for lane in made:
                fine &= one_round(cli, lane, origins, seeded, number, figures)
                if time.monotonic() - started >= asked.minutes * 60:
                    break
        for lane in filter(lambda lane: lane.urls, made):
            fine &= calm(cli, lane, figures)
    print(
        f"\nseed {asked.seed}, {(time.monotonic() - started) / 60:.0f} minutes: {figures.rounds} rounds, "
        f"{figures.runs} runs ({figures.calm_runs} of them after the store had recovered), {figures.rows:,} rows "
        f"looked at; {figures.pending} left pending, {figures.wrong} wrong objects ({figures.by_size} more, "
        f"said to be confirmed by size alone), {figures.missing} missing, "
        f"{figures.hung} runs that did not end"
    )
    print(f"at the stores:  {json.dumps(dict(figures.struck))}\nat the origins: {json.dumps(dict(figures.met))}")
    return 0 if fine else 1


if __name__ == "__main__":
    os.environ.setdefault("DO_NOT_TRACK", "1")
    sys.exit(main())
