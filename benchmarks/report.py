"""The report: results as tables, as JSON, and in docs/explanation/performance.md."""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.goals import Goal, first_stored, goals, megabytes, peak, rate, refused, steady_cpu, wall, whole_cpu
from benchmarks.place import PEERS, ROOT
from benchmarks.results import Result
from benchmarks.scenes import SCENES
from benchmarks.settings import Settings
from benchmarks.summary import Summary, Value
from benchmarks.watch import PLANNER, SERVER

PAGE = ROOT / "docs" / "explanation" / "performance.md"
KEPT = ROOT / "docs" / "performance"
BEGIN, END = "<!-- from here on written by `make bench` -->", "<!-- to here written by `make bench` -->"
ROLES = {PLANNER: "its planning process", SERVER: "its local Prefect server"}

Rows = list[list[str]]


def table(head: Sequence[str], rows: Rows) -> str:
    """Returns an aligned Markdown table without empty columns."""
    used = [at for at in range(len(head)) if any(row[at] for row in rows)]
    lines = [[head[at] for at in used], *([row[at] for at in used] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(used))]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]])


HEAD = (
    "contender", "objects", "counts", "objects/s", "MB/s", "first object there, s", "steady s", "fixed s", "whole s",
    "CPU ms/object, steady", "CPU ms/object, whole", "CPU s", "peak MB", "refused", "refused after 10 s",
    "what was wrong",
)  # fmt: skip


def scene_table(summary: Summary, scene: str) -> str:
    rows: Rows = []
    for contender in summary.contenders(scene):
        rows += _rows(summary, scene, contender)
    return table(HEAD, rows)


def _rows(summary: Summary, scene: str, contender: str) -> Rows:
    runs = summary.runs(scene, contender)
    tiny = scene in ("g", "i")  # too short for a steady rate

    def spread(value: Value, digits: int = 0, scale: float = 1.0) -> str:
        numbers = [number * scale for number in summary.values(scene, contender, value)]
        middle = summary.median(scene, contender, value)
        if middle is None:
            return ""
        text = f"{middle * scale:,.{digits}f}"
        return text if len(numbers) < 2 else f"{text} ({min(numbers):,.{digits}f}–{max(numbers):,.{digits}f})"

    notes = sorted({run.note for run in runs if run.note})
    any_refused = any("429" in run.statuses for run in runs)
    rows = [
        [
            contender,
            f"{runs[0].objects:,}",
            f"{sum(run.valid for run in runs)} of {len(runs)}",
            "" if tiny or scene == "h" else spread(rate),
            spread(megabytes) if scene == "h" else "",
            spread(first_stored, 2) if scene == "i" else "",
            "" if tiny else spread(lambda run: run.steady_s, 1),
            "" if tiny else spread(lambda run: run.fixed_s, 1),
            spread(wall, 1),
            "" if tiny or scene == "h" else spread(steady_cpu, 3),
            "" if tiny or scene == "h" else spread(whole_cpu, 3),
            spread(lambda run: run.cpu_s.get("client"), 2),
            spread(peak),
            _refused(runs) if any_refused else "",
            spread(refused, 1, 100.0) + "%" if any_refused and spread(refused) else "",
            "; ".join(notes),
        ]
    ]
    for role, words in ROLES.items():
        if any(role in run.peak_mb for run in runs):
            blank = [""] * len(HEAD)
            blank[0] = f"– {words}"
            blank[HEAD.index("CPU s")] = spread(lambda run, role=role: run.cpu_s.get(role), 2)  # type: ignore[misc]
            blank[HEAD.index("peak MB")] = spread(lambda run, role=role: run.peak_mb.get(role))  # type: ignore[misc]
            rows.append(blank)
    return rows


def _refused(runs: list[Result]) -> str:
    """Returns the share of 429 among all GETs of all runs, also of invalid ones."""
    asked = sum(sum(run.statuses.values()) for run in runs)
    return f"{sum(run.statuses.get('429', 0) for run in runs) / asked * 100:.1f}%" if asked else ""


def goal_table(found: list[Goal]) -> str:
    return table(
        ("scene", "goal", "measured", "verdict"),
        [[goal.scene, goal.text, goal.measured, goal.verdict] for goal in found],
    )


def as_json(settings: Settings, machine: dict[str, str], results: list[Result], seconds: float) -> str:
    """Returns the JSON, with one result per line."""
    head = {
        "machine": machine,
        "settings": {"N": settings.n, "ROUNDS": settings.rounds, "SCENES": ",".join(settings.scenes)},
        "seconds": round(seconds),
        "goals": [
            {"scene": goal.scene, "goal": goal.text, "measured": goal.measured, "met": goal.met}
            for goal in goals(Summary(results))
        ],
    }
    lines = ",\n".join(json.dumps(result.as_json()) for result in results)
    return json.dumps(head, indent=1)[:-2] + f',\n "results": [\n{lines}\n]}}\n'


def text(settings: Settings, machine: dict[str, str], results: list[Result], seconds: float) -> str:
    """Returns the generated part of the page, which the terminal also shows."""
    summary = Summary(results)
    parts = [
        textwrap.fill("Machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + ".", 118),
        f"N={settings.n}, ROUNDS={settings.rounds}, {seconds / 60:.0f} minutes. "
        "Medians, with the least and the most in brackets.",
        "### Goals",
        goal_table(goals(summary)),
    ]
    for scene in SCENES:
        if summary.contenders(scene.name):
            parts += [f"### {scene.name}: {scene.title}", scene_table(summary, scene.name)]
    return "\n\n".join(parts) + "\n"


def commands(results: list[Result]) -> str:
    """Returns each command once, without Ferry's job files, which are the same three lines each time."""
    seen: dict[str, dict[str, None]] = {}
    for result in results:
        seen.setdefault(result.scene, {})[result.command] = None
    lines = [line for scene, typed in seen.items() for line in [f"# {scene}", *typed]]
    return "### Commands\n\n```\n" + "\n".join(lines) + "\n```\n"


def write_page(settings: Settings, machine: dict[str, str], results: list[Result], seconds: float) -> None:
    """Writes docs/explanation/performance.md between its two marks, the data and the plots."""
    KEPT.mkdir(parents=True, exist_ok=True)
    data = KEPT / "results.json"
    data.write_text(as_json(settings, machine, results, seconds))
    plot = [str(PEERS / "python"), str(Path(__file__).parent / "peers" / "plot.py"), str(data), str(KEPT)]
    drawn = subprocess.run(plot, check=True, capture_output=True, text=True).stdout.splitlines()
    images = "\n\n".join(f"![{title}](../performance/{file})" for file, title in (line.split("\t") for line in drawn))
    page = PAGE.read_text() if PAGE.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    body = "\n".join([text(settings, machine, results, seconds), f"{images}\n", commands(results)])
    PAGE.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}")
