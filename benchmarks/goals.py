"""The goals, and whether each was met. A missed goal is reported, but is not an error."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import scenes
from benchmarks.nginx import ALLOWED_PER_S
from benchmarks.results import Result
from benchmarks.scenes import COPY, COPY_NO_HEADS, COPY_OFF, FERRY, FERRY_LOCAL
from benchmarks.summary import Summary, Value
from benchmarks.watch import CLIENT


@dataclass(frozen=True, slots=True)
class Goal:
    scene: str
    text: str
    measured: str
    met: bool | None  # None: not measured

    @property
    def verdict(self) -> str:
        return {True: "met", False: "**not met**", None: "not measured"}[self.met]


def rate(run: Result) -> float | None:
    return run.rate


def wall(run: Result) -> float | None:
    return run.wall_s


def moving(run: Result) -> float | None:
    return run.steady_s


def steady_cpu(run: Result) -> float | None:
    return run.steady_cpu_ms


def whole_cpu(run: Result) -> float | None:
    return run.cpu_ms


def peak(run: Result) -> float | None:
    return run.peak_mb.get(CLIENT)


def megabytes(run: Result) -> float | None:
    return run.megabytes_s


def first_stored(run: Result) -> float | None:
    return run.first_stored_s


def refused(run: Result) -> float | None:
    return run.refused_later


def endurance(run: Result) -> float | None:
    """Returns the rate in the last tenth of the objects, relative to the second tenth."""
    if not run.curve:
        return None
    tenth = len(run.curve) // 10
    took = [1 / value for value in run.curve]
    return sum(took[tenth : 2 * tenth]) / sum(took[-tenth:])


def growth(run: Result) -> float | None:
    """Returns the memory at the end, relative to that after a tenth of the objects."""
    return run.memory_at["the end"] / run.memory_at["a tenth"] if run.memory_at.get("a tenth") else None


class _Goals:
    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self.goals: list[Goal] = []

    def _add(self, scene: str, text: str, number: float | None, unit: str, *, met: bool | None, digits: int) -> None:
        if self.summary.contenders(scene):
            measured = "—" if number is None else f"{number:,.{digits}f}{unit}"
            self.goals.append(Goal(scene, text, measured, met if number is not None else None))

    def at_least(self, scene: str, what: str, number: float | None, least: float, unit: str = "x") -> None:
        met = number is not None and number >= least
        self._add(scene, f"{what}: {least:g}{unit} or more", number, unit, met=met, digits=2)

    def at_most(self, scene: str, what: str, number: float | None, most: float, unit: str, digits: int = 2) -> None:
        met = number is not None and number <= most
        self._add(scene, f"{what}: {most:g}{unit} or less", number, unit, met=met, digits=digits)

    def ratio(self, scene: str, what: str, ours: str, theirs: str, value: Value, least: float) -> None:
        self.at_least(scene, what, self.summary.ratio(scene, ours, theirs, value), least)

    def part(self, scene: str, what: str, ours: str, theirs: str, value: Value, most: float) -> None:
        self.at_most(scene, what, self.summary.ratio(scene, ours, theirs, value), most, "x")

    def best(self, scene: str, ours: str, theirs: list[str], value: Value) -> float | None:
        """Returns our median, relative to the best of theirs."""
        mine = self.summary.median(scene, ours, value)
        others = [number for name in theirs if (number := self.summary.median(scene, name, value))]
        return mine / max(others) if mine is not None and others else None

    def right(self, scene: str, what: str, contender: str) -> None:
        """Adds the goal that all runs of a contender are valid."""
        runs = self.summary.runs(scene, contender)
        good = sum(run.valid for run in runs)
        if runs:
            self.goals.append(Goal(scene, what, f"{good} of {len(runs)} runs", good == len(runs)))


def goals(summary: Summary) -> list[Goal]:
    """Returns the goals of the scenes that were run."""
    it = _Goals(summary)
    median = summary.median
    it.ratio("a", "rate over rclone's, 32 transfers and its default checks", FERRY, COPY, rate, 1.5)
    off = [COPY_OFF, COPY_NO_HEADS]
    it.at_least("a", "rate over rclone's best with its checks off", it.best("a", FERRY, off, rate), 1.0)
    it.ratio("a", "rate over requests + boto3 in 32 threads", FERRY, scenes.THREADS, rate, 3.5)
    it.ratio("a", "rate over requests + boto3 in a plain loop", FERRY, scenes.LOOP, rate, 5.0)
    it.part("a", "CPU for an object of rclone's, steady", FERRY, COPY, steady_cpu, 0.6)
    it.at_most("a", "CPU for an object, steady", median("a", FERRY, steady_cpu), 0.55, " ms")
    it.part("a", "CPU for an object of rclone's, whole process", FERRY, COPY, whole_cpu, 0.6)
    it.at_most("a", "CPU for an object, whole process", median("a", FERRY, whole_cpu), 0.55, " ms")
    it.part("a", "time of the whole process of rclone's, with a running server", FERRY, COPY, wall, 0.9)
    it.at_most("a", "peak memory of the client", median("a", FERRY, peak), 200, " MB", 0)

    it.ratio("b", "rate without a flag over rclone's without one", FERRY, scenes.COPY_BARE, rate, 30)
    by_hand = [scenes.by_hand(transfers, heads=heads) for transfers in scenes.BY_HAND for heads in (False, True)]
    it.at_least("b", "rate without a flag over rclone's best by hand", it.best("b", FERRY, by_hand, rate), 1.0)

    for how in scenes.PAUSES.values():
        name = f"{FERRY} ({how})"
        number = median("c", name, rate)
        share = number / ALLOWED_PER_S * 100 if number else None
        it.at_least("c", f"of the {ALLOWED_PER_S} allowed a second, {how}", share, 90, "%")
        later = median("c", name, refused)
        percent = later * 100 if later is not None else None
        it.at_most("c", f"requests refused after the first ten seconds, {how}", percent, 2, "%")
        it.right("c", f"nothing failed, {how}", name)

    for ours, how in ((FERRY, "every byte read and checked"), (scenes.FERRY_UNCHECKED, "checks: none")):
        it.part("d", f"time of s5cmd's, {how}", ours, scenes.S5CMD, moving, 0.9)
        it.part("d", f"time of juicefs sync's, {how}", ours, scenes.JUICEFS, moving, 0.6)
        it.part("d", f"time of rclone's, {how}", ours, COPY, moving, 0.55)

    it.right("e", "exactly the good objects arrive", FERRY)

    it.part("f", "time of the whole process of rclone's, with the local server", FERRY_LOCAL, COPY, wall, 0.9)
    it.at_least("f", "rate in the last tenth over the second", median("f", FERRY_LOCAL, endurance), 0.97)
    it.at_most("f", "memory at the end over that after a tenth", median("f", FERRY_LOCAL, growth), 1.1, "x")
    it.at_most("f", "peak memory of the client", median("f", FERRY_LOCAL, peak), 200, " MB", 0)

    it.part("g", "time of a job of one object's, running server", scenes.SETTLED_RUN, scenes.ONE_RUN, wall, 1.5)
    it.at_most("g", "time with the local server", median("g", scenes.SETTLED_LOCAL, wall), 8, " s")

    peers = [scenes.COPY_BARE, scenes.COPYURL_BARE]
    it.at_least("h", "MB/s over the best peer's", it.best("h", FERRY, peers, megabytes), 0.95)
    it.at_most("h", "peak memory of the client", median("h", FERRY, peak), 400, " MB", 0)

    it.at_most("i", "first object there, running server", median("i", FERRY, first_stored), 1.8, " s")
    it.at_most("i", "first object there, local server", median("i", FERRY_LOCAL, first_stored), 5, " s")
    it.at_most("i", "first object there, new folder, empty HOME", median("i", scenes.FERRY_NEW, first_stored), 5, " s")

    for how in scenes.PINNED:
        over = it.best("sink", f"{FERRY}, {how}", [f"{name}, {how}" for name in off], rate)
        it.at_least("sink", f"rate over rclone's best with its checks off, {how}", over, 1.0)
    # with the sink, so that the store cannot be the cause
    it.at_least(
        "sink", "rate in the last tenth over the second, one process", median("sink", scenes.FERRY_ONE, endurance), 0.97
    )
    return it.goals
