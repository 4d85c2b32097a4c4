"""The bound of what a sample may have missed, against fractions."""

from __future__ import annotations

import re
from fractions import Fraction
from math import comb

import pytest

from ferry.proof import confidence
from ferry.proof.confidence import most_missed


def by_fractions(objects: int, drawn: int, wrong: int, level: Fraction) -> int:
    """The same without floats, logarithms and bisection: the most wrong objects that are not improbable."""
    at_most = wrong
    for bad in range(wrong, wrong + objects - drawn + 1):
        ways = sum(comb(bad, n) * comb(objects - bad, drawn - n) for n in range(wrong + 1))
        if Fraction(ways, comb(objects, drawn)) > 1 - level:
            at_most = bad
    return at_most - wrong


@pytest.mark.parametrize("level", ["0.95", "0.99"])
def test_every_small_sample(level: str) -> None:
    """Each sample of up to 18 objects, with each number of wrong ones."""
    for objects in range(19):
        for drawn in range(objects + 1):
            for wrong in range(drawn + 1):
                expected = by_fractions(objects, drawn, wrong, Fraction(level))
                assert most_missed(objects, drawn, wrong, float(level)) == expected, (objects, drawn, wrong)


def test_larger_samples() -> None:
    """Where the logarithms of factorials are taken from lgamma."""
    for objects, drawn, wrong in ((500, 200, 0), (500, 300, 3), (1000, 70, 1)):
        assert most_missed(objects, drawn, wrong, 0.95) == by_fractions(objects, drawn, wrong, Fraction("0.95"))


def test_the_table() -> None:
    """The table of the docstring holds."""
    lines = re.findall(r"\| ([\d,]+) \| ([\d,]+) \| (\d+) \| ([\d,]+) \| ([\d,]+) \|", most_missed.__doc__ or "")
    assert len(lines) == 6
    for line in lines:
        objects, drawn, wrong, *bounds = (int(cell.replace(",", "")) for cell in line)
        assert [most_missed(objects, drawn, wrong, level) for level in (0.95, 0.99)] == bounds


def test_all_wrong() -> None:
    """Of a sample whose objects are all wrong, the others may all be wrong."""
    assert most_missed(100, 10, 10, 0.95) == 90
    assert confidence.most_missed(100, 100, 7, 0.95) == 0
