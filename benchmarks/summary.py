"""Medians and spread of the valid runs over the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from benchmarks.results import Result

Value = Callable[[Result], float | None]


class Summary:
    def __init__(self, results: Iterable[Result]) -> None:
        self._runs: dict[tuple[str, str], list[Result]] = {}
        for result in results:
            self._runs.setdefault((result.scene, result.contender), []).append(result)

    def contenders(self, scene: str) -> list[str]:
        """Returns the contenders in the order of the first round."""
        return [contender for name, contender in self._runs if name == scene]

    def runs(self, scene: str, contender: str) -> list[Result]:
        return self._runs.get((scene, contender), [])

    def values(self, scene: str, contender: str, value: Value) -> list[float]:
        """Returns one number for each valid run that has it."""
        found = (value(run) for run in self.runs(scene, contender) if run.valid)
        return [number for number in found if number is not None]

    def median(self, scene: str, contender: str, value: Value) -> float | None:
        numbers = self.values(scene, contender, value)
        return statistics.median(numbers) if numbers else None

    def ratio(self, scene: str, ours: str, theirs: str, value: Value) -> float | None:
        """Returns the ratio of the medians."""
        a, b = self.median(scene, ours, value), self.median(scene, theirs, value)
        return a / b if a is not None and b else None
