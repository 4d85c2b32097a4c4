"""Predictions are pure functions of what a sample showed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ferry.job import Prices, Retries
from ferry.planning.sample import quotas
from ferry.preflight import predict
from ferry.preflight.predict import Range


@pytest.mark.parametrize(
    ("rows", "total", "expected"),
    [
        ({"a": 900, "b": 100}, 100, {"a": 90, "b": 10}),
        ({"a": 10, "b": 5}, 100, {"a": 10, "b": 5}),
        ({"a": 100_000, "b": 1}, 100, {"a": 99, "b": 1}),
        ({"a": 100_000, "b": 10}, 10, {"a": 7, "b": 3}),
        ({f"h{n}": 10 for n in range(50)}, 10, {f"h{n}": 3 for n in range(50)}),
        ({}, 100, {}),
    ],
)
def test_quotas(rows: dict[str, int], total: int, expected: dict[str, int]) -> None:
    """Each host has a few rows in a sample, and large hosts have more in proportion."""
    found = quotas(rows, total)
    assert found.keys() == expected.keys()
    assert all(abs(found[host] - n) <= 2 for host, n in expected.items())
    assert all(found[host] <= rows[host] for host in rows)
    assert sum(found.values()) == sum(expected.values())


@pytest.mark.parametrize(
    ("hits", "tried", "rows", "expected"),
    [
        ({}, {"a": 200}, {"a": 1_000_000}, (0.0, 0.0, 0.019)),
        ({"a": 10}, {"a": 200}, {"a": 1_000_000}, (0.027, 0.05, 0.09)),
        ({"a": 10}, {"a": 200}, {"a": 400}, (0.033, 0.05, 0.076)),
        ({"a": 10}, {"a": 200}, {"a": 200}, (0.05, 0.05, 0.05)),
        ({"a": 200}, {"a": 200}, {"a": 1_000_000}, (0.981, 1.0, 1.0)),
        ({"b": 10}, {"a": 190, "b": 10}, {"a": 950_000, "b": 50_000}, (0.027, 0.05, 0.09)),
        ({"b": 3}, {"a": 97, "b": 3}, {"a": 99_997, "b": 3}, (0.0, 0.00003, 0.038)),
        ({}, {}, {"a": 5}, (0.0, 0.0, 1.0)),
        ({"z": 1}, {"z": 1}, {"a": 5}, (0.0, 0.0, 1.0)),
    ],
)
def test_share(
    hits: dict[str, int], tried: dict[str, int], rows: dict[str, int], expected: tuple[float, float, float]
) -> None:
    found = predict.share(hits, tried, rows)
    assert (found.low, found.value, found.high) == pytest.approx(expected, abs=0.001)


def test_the_interval_has_the_true_share() -> None:
    """In 19 of 20 samples, as an interval of 95% should."""
    seeded, hosts = random.Random(7), {"a": 900, "b": 100}
    truth, inside = 0.9 * 0.02 + 0.1 * 0.3, 0
    for _ in range(500):
        hits = {
            "a": sum(seeded.random() < 0.02 for _ in range(180)),
            "b": sum(seeded.random() < 0.3 for _ in range(20)),
        }
        found = predict.share(hits, {"a": 180, "b": 20}, hosts)
        inside += found.low <= truth <= found.high
    assert inside >= 465


def test_rate() -> None:
    """The time in which concurrency grows does not count, nor does what ended after the time."""
    warming = [n / 5 for n in range(12)]
    steady = [2.5 + n / 100 for n in range(751)]
    found = predict.rate([*warming, *steady, *[11.0] * 50], 0.0, 10.0)
    assert found.value == pytest.approx(100, rel=0.01)
    assert found.low == pytest.approx(found.high, rel=0.02)
    uneven = predict.rate([2.5 + n / 100 for n in range(375)], 0.0, 10.0)
    assert (uneven.low, uneven.value) == pytest.approx((0, 50), rel=0.01)
    assert predict.rate([], 0.0, 10.0) == predict.rate([1.0], 5.0, 5.0) == Range(0.0, 0.0, 0.0)


def test_host_rates() -> None:
    """A host whose rows ended early is not slow."""
    ends = {"quick": [n / 100 for n in range(1, 101)], "slow": [float(n) for n in range(1, 11)], "once": [3.0]}
    assert predict.host_rates(ends, 0.0, 10.0) == {"quick": pytest.approx(100), "slow": pytest.approx(1)}


def in_seconds(rows: dict[str, int], rate: Range, by_host: dict[str, float], **given: Any) -> Range:
    found = predict.seconds(rows, rate, by_host, **{"hosts_at_once": 9.0, "fixed_s": 0, "tail_s": 0, **given})
    assert found is not None
    return found


def test_seconds() -> None:
    """The slowest host decides, if its rows alone take longer than all rows at the common rate."""
    rate = Range(95, 100, 105)
    plain = in_seconds({"a": 1000}, rate, {"a": 100}, fixed_s=2)
    assert (plain.low, plain.value, plain.high) == pytest.approx((11, 12, 13))
    slow = in_seconds({"a": 900, "b": 100}, rate, {"a": 90, "b": 1})
    assert slow.value == pytest.approx(100)
    two = in_seconds({"a": 1000}, rate, {}, tail_s=5, processes=2)
    assert (two.low, two.value, two.high) == pytest.approx((4.5, 15, 16))
    unsteady = in_seconds({"a": 1000}, Range(50, 100, 150), {})
    assert (unsteady.low, unsteady.high) == pytest.approx((5, 15))
    assert predict.seconds({"a": 1}, Range(0, 0, 0), {}, hosts_at_once=1, fixed_s=1, tail_s=0) is None
    assert in_seconds({}, Range(0, 0, 0), {}, fixed_s=1, tail_s=9) == Range(1, 1, 1)


@pytest.mark.parametrize(("hosts_at_once", "expected"), [(3.0, 20.0), (1.0, 60.0), (2.0, 40.0)])
def test_a_list_that_is_sorted_by_host(hosts_at_once: float, expected: float) -> None:
    """Its hosts are asked one after the other, each at the rate that it had alone among others."""
    rows = dict.fromkeys("abc", 1000)
    found = in_seconds(rows, Range(150, 150, 150), dict.fromkeys("abc", 50.0), hosts_at_once=hosts_at_once)
    assert found.value == pytest.approx(expected)
    assert found.low < 20
    assert found.high > (60 if hosts_at_once < 3 else 20)


ROWS = {"a": 1_000_000}


@pytest.mark.parametrize(
    ("judged", "retryable", "tried", "permanent", "without", "dead", "expected"),
    [
        (200, 20, 10_000, 0, 0, False, (0.065, 0.10, 0.149)),  # the rows that measure the rate had no time to fail
        (200, 0, 10_000, 500, 0, False, (0.046, 0.05, 0.07)),
        (200, 0, 200, 0, 0, False, (0.0, 0.0, 0.027)),
        (150, 0, 150, 0, 50, False, (0.0, 0.0, 0.315)),  # without an outcome: failures for the upper end alone
        (150, 0, 150, 0, 50, True, (0.195, 0.25, 0.315)),
        (0, 0, 0, 0, 200, True, (0.981, 1.0, 1.0)),
    ],
)
def test_failing(
    judged: int, retryable: int, tried: int, permanent: int, without: int, dead: bool, expected: tuple[float, ...]
) -> None:
    found = predict.failing(
        {"a": judged}, {"a": retryable}, {"a": tried}, {"a": permanent}, {"a": without} if without else {},
        {"a"} if dead else set(), ROWS,
    )  # fmt: skip
    assert (found.low, found.value, found.high) == pytest.approx(expected, abs=0.003)


def test_a_host_without_one_outcome() -> None:
    """Its rows count as failures for the upper end, and as failures at all once it never answered."""
    rows = {"good": 600, "odd": 400}
    unknown = predict.failing({"good": 120}, {}, {"good": 120}, {}, {"odd": 80}, set(), rows)
    assert (unknown.value, unknown.high > 0.35) == (0.0, True)
    dead = predict.failing({"good": 120}, {}, {"good": 120}, {}, {"odd": 80}, {"odd"}, rows)
    assert dead.value == pytest.approx(0.4)


def test_retries() -> None:
    retries = Retries(attempts=4, backoff_s=1, max_backoff_s=3, passes=1)
    assert predict.retries_s(retries) == 2 * (1 + 2 + 3 + 3)


def test_mean() -> None:
    """A host with few large objects does not decide for all, though a sample has some of each."""
    rows = {"big": 990_000, "few": 10_000}
    found = predict.mean({"big": [10.0] * 50, "few": [10_000.0] * 150}, rows)
    assert found.value == pytest.approx(0.99 * 10 + 0.01 * 10_000)
    assert predict.mean({}, rows) == Range(0, 0, 0)
    spread = predict.mean({"big": [50.0, 150.0] * 50}, {"big": 1000})
    assert spread.value == pytest.approx(100)
    assert 88 < spread.low < spread.high < 112


def test_sizes() -> None:
    """Sizes that the manifest has are taken as they are; the others are estimated from the sample."""
    mean = Range(90, 100, 110)
    assert predict.sizes(mean, 10, 10, 1000) == Range(1000, 1000, 1000)
    assert predict.sizes(mean, 20, 10, 5000) == Range(5900, 6000, 6100)
    assert predict.sizes(mean, 5, 10, 1000).value == pytest.approx(500)  # half of the rows fail


def test_money() -> None:
    prices = Prices(put_per_1000=0.005, get_per_1000=0.0004, egress_per_gb=0.09, storage_per_gb_month=0.023)
    once, monthly = predict.money(prices, puts=1_000_000, gets=1_000_000, egress_bytes=100e9, stored_bytes=100e9)
    assert (once, monthly) == pytest.approx((5 + 0.4 + 9, 2.3))
