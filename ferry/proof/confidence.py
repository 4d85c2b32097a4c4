"""How many wrong objects a sample may have missed: the upper bound of the hypergeometric distribution."""

from __future__ import annotations

from math import exp, lgamma, log


def most_missed(objects: int, drawn: int, wrong: int, confidence: float) -> int:
    """Returns how many of the objects outside a random sample may be wrong at most, with this confidence.

    ``wrong`` of the ``drawn`` objects were wrong. The bound is exact (Clopper and Pearson, for draws without
    replacement): if more of the ``objects`` were wrong, a sample with so few of them had a probability of at most
    1 - ``confidence``.

    | objects | drawn | wrong | at 95% | at 99% |
    |---|---|---|---|---|
    | 1,000 | 1,000 | 0 | 0 | 0 |
    | 1,000 | 0 | 0 | 1,000 | 1,000 |
    | 1,000 | 100 | 0 | 28 | 42 |
    | 1,000 | 100 | 2 | 57 | 76 |
    | 100,000,000 | 1,000,000 | 0 | 298 | 458 |
    | 0 | 0 | 0 | 0 | 0 |
    """
    low, high = wrong, wrong + objects - drawn  # the number of wrong objects is at least low, and at most high
    while low < high:
        middle = (low + high + 1) // 2
        if _at_most(objects, drawn, middle, wrong) > 1 - confidence + 1e-12:
            low = middle
        else:
            high = middle - 1
    return low - wrong


def _at_most(objects: int, drawn: int, bad: int, wrong: int) -> float:
    """Returns the probability that at most ``wrong`` of the ``drawn`` are among the ``bad`` ones of ``objects``."""
    fewest, most = max(0, drawn - (objects - bad)), min(drawn, bad)
    if wrong >= most:
        return 1.0
    whole = _log_choose(objects, drawn)
    terms = (_log_choose(bad, n) + _log_choose(objects - bad, drawn - n) - whole for n in range(fewest, wrong + 1))
    return sum(exp(term) for term in terms)


def _log_choose(n: int, k: int) -> float:
    """Returns the logarithm of the number of ways to choose ``k`` of ``n``.

    For a large n the difference of two lgammas loses digits: there, and for a small k, the terms are added up.
    """
    k = min(k, n - k)
    if k <= 64:
        return sum(log(n - i) - log(i + 1) for i in range(k))
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
