"""Tests of the limiter with simulated hosts: how soon it finds their limits, its overshoot, and the rate that remains.

docs/explanation/concurrency.md has the same numbers, and a test compares them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ferry.job.limits import Limits
from tests.support.simulated_hosts import (
    HOST,
    Answer,
    Outage,
    Queue,
    RateLimit,
    Run,
    client_cap,
    congested,
    connection_limit,
    event_loop,
    outage,
    random_refusals,
    rate_limit,
    sizes,
    steps,
    table,
    unlimited,
)

pytestmark = pytest.mark.matrix

DOC = Path(__file__).parents[3] / "docs" / "explanation" / "concurrency.md"


@pytest.mark.parametrize("base_s", [0.05, 0.1])
def test_a_host_without_a_limit(base_s: float) -> None:
    """From 32 to 256 in flight within 1.2 s, and no more than 256."""
    seen = unlimited(base_s)
    assert seen.converged_s <= 1.2
    assert seen.most == 256
    assert seen.share >= 0.97


def test_the_client_s_own_limit() -> None:
    """A process that manages 1,300 objects/s needs 65 in flight. At most twice as many are tried."""
    seen = client_cap()
    assert seen.converged_s <= 1
    assert seen.share >= 0.95
    assert seen.most <= 2 * 65
    assert seen.latency_ms <= 100


@pytest.mark.slow
def test_small_losses_do_not_add_up() -> None:
    """If the client is the limit, and fewer in flight cost it more, many small steps down do not follow each other."""
    seen = event_loop()
    assert seen.share >= 0.93


def test_capacity_steps() -> None:
    """200/s, then 800/s, then 100/s are each found within 10 s, with at most about twice the latency that is needed."""
    run, first, up, down = steps()
    assert first.converged_s <= 1
    assert first.share >= 0.95
    assert first.most <= 64
    assert first.latency_ms <= 125
    assert up.converged_s <= 10
    assert up.share >= 0.95
    assert up.most <= 4 * 40
    assert down.converged_s <= 10  # no more than 12 in flight, of 5 needed
    assert down.share >= 0.85
    assert down.latency_ms <= 150
    assert run.refused_share(0, 70) == 0


@pytest.mark.parametrize("seed", range(2, 7))
def test_capacity_steps_with_other_sizes(seed: int) -> None:
    """The same with another order of large and small objects."""
    queue = Queue(200, work=sizes(seed))
    run = Run({HOST: queue})
    run.run(20)
    queue.per_s = 800
    run.run(20)
    queue.per_s = 100
    run.run(30)
    assert run.delivered(5, 20) >= 0.8 * 200
    assert run.mean_in_flight(10, 20) <= 30
    assert run.converged_s(800, 20, 40) <= 10
    assert run.fewer_than_s(15, 41, 70) <= 15
    assert run.delivered(55, 70) >= 0.8 * 100


@pytest.mark.parametrize("best", [40, 10])
def test_latency_that_grows_with_load(best: int) -> None:
    """The limit ends where the host delivers most, from a start above and below it."""
    seen = congested(best)
    assert seen.share >= 0.9
    assert seen.latency_ms <= 125
    assert seen.most <= 64
    assert seen.converged_s <= 20


@pytest.mark.parametrize("retry_after_s", [None, 1.0])
@pytest.mark.parametrize("base_s", [0.005, 0.05])
@pytest.mark.parametrize("per_s", [20, 200, 1000])
def test_a_hidden_rate_limit(per_s: float, base_s: float, retry_after_s: float | None) -> None:
    """Found within 10 s from 32 in flight. From then on at least 92% of it is delivered, and less than 1% refused.

    Each Retry-After stops the host for 1 s, so a single refusal in 30 s costs 3.3%.
    """
    run, seen = rate_limit(per_s, base_s, retry_after_s)
    assert seen.converged_s <= 10
    assert run.delivered(10, 40) >= 0.92 * per_s
    assert run.refused_share(10, 40) < 0.01
    assert seen.most <= max(64, 2 * per_s * base_s)


@pytest.mark.parametrize(("per_s", "burst"), [(50, 5), (100, 1), (500, 50)])
def test_other_hidden_rate_limits(per_s: float, burst: float) -> None:
    """Other rates, other bursts and a longer Retry-After, whose pauses cost more."""
    run = Run({HOST: RateLimit(per_s, burst, retry_after_s=2.0)})
    run.run(60)
    assert run.delivered(20, 60) >= 0.8 * per_s
    assert run.refused_share(20, 60) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("per_s", "retry_after_s"), [(20, 30.0), (200, 30.0), (200, 10.0), (50, 60.0)])
def test_a_long_retry_after(per_s: float, retry_after_s: float) -> None:
    """Each try of a higher rate may cost a long pause, so tries become rare: at least 75% after five minutes."""
    run = Run({HOST: RateLimit(per_s, 20, retry_after_s=retry_after_s)})
    run.run(900)
    assert run.delivered(300, 900) >= 0.75 * per_s


@pytest.mark.parametrize("base_s", [0.5, 1.0, 2.0])
def test_a_far_host_whose_latency_never_varies(base_s: float) -> None:
    """Its answers come together, all of one round trip. That does not disturb the measured rate."""
    run = Run({HOST: Queue(1e6, base_s)})
    run.run(120)
    assert run.reaches_s(256) <= 16
    assert run.delivered(30, 120) >= 0.96 * 256 / base_s


def test_a_limit_on_requests_in_flight() -> None:
    """A host refuses the 21st request in flight. Later it refuses less than 1%."""
    seen = connection_limit()
    assert seen.share >= 0.7
    assert seen.refused < 0.01
    assert seen.most <= 32


@pytest.mark.parametrize("silent", [False, True])
def test_an_outage(silent: bool) -> None:
    """The full rate is back within 8 s of its end, whether the host reset connections or did not answer."""
    seen = outage(silent)
    assert seen.converged_s <= 8
    assert seen.share >= 0.95
    assert seen.most <= 128


def test_attempts_at_a_host_that_is_down() -> None:
    """While it resets connections, one request is in flight, then one every 5 s."""
    run = Run({HOST: Outage(Queue(800), 110, 200)})
    run.run(100)
    assert run._count("reset", 30, 100, HOST) <= 16
    assert run.most_in_flight(15, 100) == 1


def test_random_refusals() -> None:
    """A host that refuses 1% at any rate is not held back, after 45 s at the latest."""
    seen = random_refusals(0.01)
    assert seen.share >= 0.9
    assert seen.converged_s <= 45


def test_a_pause_holds_no_other_host() -> None:
    """A Retry-After of 20 s does not change the rate of another host, and no burst follows it."""

    def away(now: float) -> Answer:
        return Answer(0.02, "refused", 20.0) if 105 <= now < 105.05 else Answer(0.05)

    run = Run({"busy.example": away, "other.example": Queue(400)})
    run.run(40)
    assert run.delivered(6, 25, "busy.example") == 0
    assert run.delivered(6, 25, "other.example") >= 0.95 * 400
    assert run.delivered(25.2, 25.5, "busy.example") > 0
    begun = sorted(at for at, n in run.changes["busy.example"] if at > 24)
    assert begun[3] - begun[0] > 0.001  # one by one


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps(jump_s: float) -> None:
    """An hour ahead or back, a host with a rate limit and one without get neither a burst nor a freeze."""
    run = Run({"limited.example": RateLimit(200), "free.example": Queue(400)})
    run.run(20)
    run.world.shift = jump_s
    run.run(20)
    assert run.delivered(20, 21, "limited.example") == pytest.approx(200, rel=0.2)
    assert run.delivered(20, 40, "limited.example") >= 0.9 * 200
    assert run.refused_share(20, 40, "limited.example") < 0.01
    assert run.delivered(20, 40, "free.example") >= 0.9 * 400


def test_the_user_s_limits_hold() -> None:
    """Limits of a host and of the job, per second and in flight, are not exceeded."""
    limits = Limits.model_validate(
        {"concurrency": 20, "hosts": {"a.example": {"requests_per_s": 50, "concurrency": 8}}}
    )
    run = Run({"a.example": Queue(1e6), "b.example": Queue(1e6)}, limits=limits)
    run.run(10)
    assert run.delivered(0, 10, "a.example") == pytest.approx(50, rel=0.05)
    assert run.most_in_flight(0, 10, "a.example") <= 8
    assert run.most_in_flight(0, 10, "b.example") <= 20
    assert run.delivered(1, 10, "b.example") >= 0.9 * 17 / 0.05


@pytest.mark.slow
def test_the_document_states_what_the_simulation_shows() -> None:
    """Each number in docs/explanation/concurrency.md is right within a fifth, as floating point differs by machine.

    `python -m tests.support.simulated_hosts` prints the table.
    """
    text = DOC.read_text(encoding="utf-8")
    stated = [line for line in text.splitlines() if line.startswith("|") and line.endswith(" ms |")]
    measured = [line for line in table() if line.endswith(" ms |")]
    assert len(stated) == len(measured)
    for old, new in zip(stated, measured, strict=True):
        assert old.split("|")[1] == new.split("|")[1]
        for said, seen in zip(numbers(old), numbers(new), strict=True):
            assert said == pytest.approx(seen, rel=0.2, abs=2), f"\n{old}\n{new}"


def numbers(line: str) -> list[float]:
    cells = "|".join(line.split("|")[2:]).replace("none", "0")
    return [float(number) for number in re.findall(r"[0-9.]+", cells)]
