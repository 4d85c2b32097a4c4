"""An origin that goes away, crawls, fails altogether, or changes what it serves: `ferry run` before, during and after.

Each time: what the run says, what the ledger says, and that one plain run afterwards ends the job, with every object
byte for byte, and nothing asked for again that was recorded.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Fault, Origin, Trouble
from tests.faults.amount import LONG, some
from tests.flows.project import Cli, Ended, Forked, Project, fold, serve, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROWS = some(160, 400)
HASTY = {
    "attempts": 2, "backoff_s": 0.05, "max_backoff_s": 1, "chunk_attempts": 1, "chunk_delay_s": 0.2, "passes": 0,
}  # fmt: skip


def recorded(project: Project) -> set[str]:
    """The source paths of the rows that the ledger has as copied."""
    while True:
        try:
            lines = fold(project.state).values()
            break
        except FileNotFoundError:  # a chunk of the run that is on has just put its parts together
            continue
    return {line["source"].partition("://")[2].partition("/")[2] for line in lines if line["status"] == "copied"}


def one_state_each(project: Project, rows: int) -> dict[str, int]:
    """`ferry status` counts every row once."""
    counts: dict[str, Any] = project.ferry("status", "job.yaml", "--json").expect(0).json
    states = {name: counts[name] for name in ("copied", "unchanged", "skipped", "failed", "pending")}
    assert counts["planned"] == rows == sum(states.values())
    return states


def finish(project: Project, origin: Origin, bodies: dict[str, bytes]) -> None:
    """The cause is gone: one plain run ends the job, and asks for nothing that is recorded."""
    done = recorded(project)
    before = origin.requests.copy()
    report = project.ferry("run", "job.yaml", "--json", within_s=600).expect(0).json
    assert report["this_run"] == {"copied": len(bodies) - len(done)}
    again = [path for path in done if origin.requests[f"/{path}"] != before[f"/{path}"]]
    assert not again, f"{len(again)} recorded rows were asked for again"
    assert project.stored() == bodies
    assert one_state_each(project, len(bodies))["copied"] == len(bodies)


def end(process: Forked, within_s: float) -> Ended:
    return Cli.end(process, ("run",), within_s)


def test_it_goes_away(project: Project, origin: Origin, tried: Callable[..., None]) -> None:
    """In the middle of a run nobody listens any more: the run ends by itself and says so. What was recorded stands."""
    rows, bodies = serve(origin, ROWS)
    origin.latency_s = 0.1
    project.manifest(rows)
    project.job(chunk_rows=20, concurrency=4, retries=HASTY)
    run = project.fork("run", "job.yaml", "--json")
    wait_for("some outcomes", lambda: len(recorded(project)) >= 20)
    origin.down()
    ended = end(run, 120).expect(1)
    done = recorded(project)
    assert 20 <= len(done) < ROWS
    states = one_state_each(project, ROWS)
    assert states["copied"] == len(done)
    assert states["failed"] + states["pending"] == ROWS - len(done)
    failures = [line for line in fold(project.state).values() if line["status"] == "failed"]
    assert {line["error_class"] for line in failures} <= {"connection", "truncated"}
    assert all(line["retryable"] for line in failures)
    if states["pending"]:
        assert "127.0.0.1" in ended.json["message"]
        assert "has not responded for" in ended.json["message"]
    origin.latency_s = 0
    origin.up()
    finish(project, origin, bodies)
    tried("the origin goes away for the rest of a run")


@pytest.mark.skipif(not LONG, reason="tests/flows/test_silent_hosts.py has it for two seconds; `make faults` for 60")
def test_it_goes_away_and_returns(project: Project, origin: Origin, tried: Callable[..., None]) -> None:
    """For 60 s: the same run ends the job, and asks for nothing twice that had come."""
    rows, bodies = serve(origin, ROWS)
    origin.latency_s = 0.1
    project.manifest(rows)
    retries = {"attempts": 4, "backoff_s": 1, "max_backoff_s": 20, "chunk_attempts": 8, "chunk_delay_s": 5, "passes": 2}
    project.job(chunk_rows=20, concurrency=4, retries=retries, failure_budget=0)
    run = project.fork("run", "job.yaml", "--json")
    wait_for("some outcomes", lambda: len(recorded(project)) >= 20)
    origin.down()
    done, asked = recorded(project), origin.requests.copy()
    time.sleep(60)
    origin.up()
    report = end(run, 600).expect(0).json
    assert report["counts"]["copied"] == ROWS
    assert all(origin.requests[f"/{path}"] == asked[f"/{path}"] for path in done)
    assert project.stored() == bodies
    tried("the origin goes away for 60 s")


def test_it_becomes_slow(project: Project, origin: Origin, tried: Callable[..., None]) -> None:
    """10 bytes a second: the rows end as `timeout`, to be tried again, or wait; those of another host do not wait.

    The quick run bounds an object by `timeouts.total_s`, the long one leaves it to the rule of ferry/http/low_speed.py.
    """
    rows, bodies = serve(origin, 12)
    with Origin() as other:
        fast, fast_bodies = serve(other, 12, "fast")
        for name, body in bodies.items():
            origin.add(f"/{name}", body, "image/jpeg", Fault(Trouble.SLOW, seconds=len(body) / 10))
        assert min(map(len, bodies.values())) > 650, "it must last longer than a minute"
        project.manifest([row for pair in zip(rows, fast, strict=True) for row in pair])
        settings: dict[str, Any] = {} if LONG else {"timeouts": {"total_s": 1.5}}
        project.job(retries={**HASTY, "attempts": 1}, failure_budget=0, **settings)
        report = project.ferry("run", "job.yaml", "--json", within_s=500).expect(1).json
        assert report["this_run"]["copied"] == 12
        assert recorded(project) == set(fast_bodies)
        assert report["seconds"] < some(30, 300)
        states = one_state_each(project, 24)
        assert states["failed"] + states["pending"] == 12
        failures = [line for line in fold(project.state).values() if line["status"] == "failed"]
        assert failures
        assert {(line["error_class"], line["retryable"]) for line in failures} == {("timeout", True)}
        if LONG:
            assert "slower than" in failures[0]["message"]
        for name in bodies:
            origin.mend(f"/{name}")
        project.job(retries=HASTY, **settings)
        asked = other.requests.copy()
        finish(project, origin, bodies | fast_bodies)
        assert other.requests == asked
    tried("the origin sends 10 bytes a second", 12)


def test_it_answers_500_for_everything(project: Project, origin: Origin, tried: Callable[..., None]) -> None:
    """After 50 such answers in a row nothing more is asked but a probe now and then: no list, however long, is burnt.

    The run says why it ended; nearly all rows are pending, with no failure to their name.
    """
    rows, bodies = serve(origin, 40)
    project.manifest(rows)
    project.job(chunk_rows=200, retries=HASTY)
    project.ferry("run", "job.yaml", "--json").expect(0)
    image = make_image("jpeg", 1, 16, 16)
    count = some(600, 250_000)
    late = [{"sku": f"late-{number}", "url": origin.add(f"/late/{number}.jpg", image)} for number in range(count)]
    project.manifest(rows + late)
    origin.trouble = Fault(Trouble.SERVER_ERROR)
    before = origin.total
    ended = project.ferry("run", "job.yaml", "--json", within_s=600).expect(1)
    assert 50 <= origin.total - before < 250  # 50, what was under way then, and probes
    report = ended.json
    assert "answered 50 requests in a row with a server error (last HTTP 500)" in report["message"]
    assert "Run the job again when the host has recovered" in report["message"]
    states = one_state_each(project, count + 40)
    assert states["copied"] == 40
    assert states["failed"] < 100
    assert states["pending"] == count - states["failed"]
    assert {line["error_class"] for line in fold(project.state).values() if line["status"] == "failed"} <= {
        "server_error"
    }
    origin.trouble = None
    if LONG:  # to move them all would show nothing more
        late = late[:2_000]
        project.manifest(rows + late)
    bodies |= {f"late/{number}.jpg": image for number in range(len(late))}
    finish(project, origin, bodies)
    tried("rows of an origin that answers nothing but 500", count)


def test_it_changes_between_two_reads(project: Project, origin: Origin, tried: Callable[..., None]) -> None:
    """An object is of one read alone, never of two; with a digest in the list it is the one that the list means.

    | what the origin does | without a digest | with the old one's | with the new one's |
    |---|---|---|---|
    | breaks off, then serves another | the new one | digest_mismatch | the new one |
    | serves half of each as one body | taken: it looks whole | one more read | one more read |
    """
    old, new = make_image("jpeg", 1, 60, 40), make_image("jpeg", 2, 60, 40)
    half = len(old) // 2
    torn = old[:half] + new[half:]
    rows, bodies = serve(origin, 5)

    def row(name: str, fault: Fault | None, body: bytes, digest: bytes | None) -> None:
        url = origin.add(f"/c/{name}.jpg", body, "image/jpeg", fault)
        sha256 = hashlib.sha256(digest).hexdigest() if digest else ""
        rows.append({"sku": name, "url": url, "sha256": sha256})

    for name, digest in (("any", None), ("new", new), ("old", old)):
        row(f"broken-{name}", Fault(Trouble.CHANGES, then=new), old, digest)
    row("torn-new", Fault(Trouble.CHANGES, then=new, keep=1.0), torn, new)
    row("torn-any", None, torn, None)
    for given in rows:
        given.setdefault("sha256", "")
    project.manifest(rows)
    project.job(retries={**HASTY, "attempts": 3}, failure_budget=0)
    project.ferry("run", "job.yaml", "--json").expect(1)
    ledger = project.ledger()
    failed = ledger["broken-old"]
    assert (failed["status"], failed["error_class"], failed["retryable"]) == ("failed", "digest_mismatch", False)
    assert failed["requests"] == 3  # the one that broke off, and one more after the first mismatch
    stored = project.stored()
    assert "c/broken-old.jpg" not in stored
    bodies |= {"c/broken-any.jpg": new, "c/broken-new.jpg": new, "c/torn-new.jpg": new, "c/torn-any.jpg": torn}
    assert stored == bodies
    for name in ("broken-any", "broken-new", "torn-new"):
        assert ledger[name]["sha256"] == hashlib.sha256(new).hexdigest()
        assert ledger[name]["requests"] == 2
    # What was recorded is not read again, though the origin serves something else by now.
    asked = origin.requests.copy()
    for number in range(5):
        origin.add(f"/images/p{number:04d}.jpg", new)
    origin.add("/c/broken-old.jpg", old)
    project.ferry("run", "job.yaml", "--json", "--retry-failed=digest_mismatch").expect(0)
    bodies["c/broken-old.jpg"] = old
    assert project.stored() == bodies
    asked["/c/broken-old.jpg"] += 1
    assert origin.requests == asked
    tried("an object changes at the origin between two reads, or within one", 5)
