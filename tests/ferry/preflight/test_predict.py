"""Predictions are pure functions of what a sample showed."""

from __future__ import annotations

import math
import random

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


def test_seconds() -> None:
    """The slowest host decides, if its rows alone take longer than all rows at the common rate."""
    rate = Range(95, 100, 105)
    plain = predict.seconds({"a": 1000}, rate, {"a": 100}, fixed_s=2, tail_s=0)
    assert (plain.low, plain.value, plain.high) == pytest.approx((11, 12, 13))
    slow = predict.seconds({"a": 900, "b": 100}, rate, {"a": 90, "b": 1}, fixed_s=0, tail_s=0)
    assert slow.value == pytest.approx(100)
    two = predict.seconds({"a": 1000}, rate, {}, fixed_s=0, tail_s=5, processes=2)
    assert (two.low, two.value, two.high) == pytest.approx((4.5, 15, 16))
    unsteady = predict.seconds({"a": 1000}, Range(50, 100, 150), {}, fixed_s=0, tail_s=0)
    assert (unsteady.low, unsteady.high) == pytest.approx((5, 15))
    assert math.isinf(predict.seconds({"a": 1}, Range(0, 0, 0), {}, fixed_s=1, tail_s=0).high)
    assert predict.seconds({}, Range(0, 0, 0), {}, fixed_s=1, tail_s=9) == Range(1, 1, 1)


def test_retries() -> None:
    retries = Retries(attempts=4, backoff_s=1, max_backoff_s=3, passes=1)
    assert predict.retries_s(retries) == 2 * (1 + 2 + 3 + 3)


def test_sizes() -> None:
    """Sizes that the manifest has are taken as they are; the others are estimated from the sample."""
    assert predict.sizes([], 10, 10, 1000) == Range(1000, 1000, 1000)
    assert predict.sizes([100] * 50, 20, 10, 5000).value == pytest.approx(5000 + 10 * 100)
    half_fail = predict.sizes([7], 5, 10, 1000)
    assert half_fail.value == pytest.approx(500)
    spread = predict.sizes([50, 150] * 50, 1000, 0, 0)
    assert spread.value == pytest.approx(100_000)
    assert 88_000 < spread.low < spread.value < spread.high < 112_000


def test_money() -> None:
    prices = Prices(put_per_1000=0.005, get_per_1000=0.0004, egress_per_gb=0.09, storage_per_gb_month=0.023)
    once, monthly = predict.money(prices, puts=1_000_000, gets=1_000_000, egress_bytes=100e9, stored_bytes=100e9)
    assert (once, monthly) == pytest.approx((5 + 0.4 + 9, 2.3))
