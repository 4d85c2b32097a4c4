"""Draws the plots of docs/explanation/performance.md from its results: plot.py RESULTS FOLDER.

Prints file and title of each.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "ferry",  # the same data gives the same file
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

from matplotlib import pyplot as plt  # noqa: E402

OURS, THEIRS = "#0b6e99", "#b5b5b5"
Run = dict[str, Any]


def medians(runs: list[Run], scene: str, value: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in runs:
        if run["scene"] == scene and run["valid"] and value in run:
            found.setdefault(run["contender"], []).append(run[value])
    return {name: statistics.median(numbers) for name, numbers in found.items()}


def bars(numbers: dict[str, float], title: str, digits: int, file: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.32 * len(numbers)))
    names = list(numbers)[::-1]
    drawn = axes.barh(
        names, [numbers[name] for name in names], color=[OURS if name.startswith("Ferry") else THEIRS for name in names]
    )
    axes.bar_label(drawn, labels=[f"{numbers[name]:,.{digits}f}" for name in names], padding=3)
    axes.set_title(title, loc="left")
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    save(figure, file)


def over_time(runs: list[Run], file: Path) -> None:
    """Rate and memory of each contender's middle round, over the share of the objects and over time."""
    figure, (rates, memory) = plt.subplots(2, 1, figsize=(7, 4.4))
    for number, (name, run) in enumerate(middle_rounds(runs).items()):
        colour = OURS if name.startswith("Ferry") else THEIRS
        share = [(at + 1) * run["objects"] / len(run["curve"]) for at in range(len(run["curve"]))]
        rates.plot(share, run["curve"], color=colour, label=name, zorder=3 - number)
        memory.plot(*zip(*run["memory"], strict=True), color=colour, zorder=3 - number)
    rates.set_title("Objects a second, by objects done", loc="left")
    rates.set(ylim=(0, None), xlim=(0, None))
    memory.set_title("Memory of the client in MB, by seconds", loc="left")
    memory.set(ylim=(0, None), xlim=(0, None))
    rates.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    save(figure, file)


def middle_rounds(runs: list[Run]) -> dict[str, Run]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run["scene"] == "f" and run["valid"] and run.get("curve"):
            found.setdefault(run["contender"], []).append(run)
    return {name: sorted(of, key=lambda run: run["rate"])[len(of) // 2] for name, of in found.items()}


def save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main() -> None:
    results, folder = Path(sys.argv[1]), Path(sys.argv[2])
    runs: list[Run] = json.loads(results.read_text())["results"]
    for value, title, digits, name in (
        ("rate", "HTTP to S3 on loopback: objects a second", 0, "rate.svg"),
        ("steady_cpu_ms", "HTTP to S3 on loopback: client's CPU time for an object, ms", 2, "cpu.svg"),
    ):
        if numbers := medians(runs, "a", value):
            bars(numbers, title, digits, folder / name)
            print(f"{name}\t{title}")
    if middle_rounds(runs):
        over_time(runs, folder / "over-time.svg")
        print("over-time.svg\tThroughput and memory over time")


if __name__ == "__main__":
    main()
