"""`make faults`: all fault experiments, and a table of what was tried, how often, and what was lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WORKERS = 2


def main() -> int:
    """pytest's exit code. Its closing line is printed last."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ferry-faults-") as folder:
        asked = sys.argv[1:] or ["tests/faults"]
        command = [sys.executable, "-m", "pytest", "-n", str(WORKERS), "--durations=10", *asked]
        code, last = shown_but_the_last(command, {**os.environ, "FERRY_FAULTS": folder})
        lines = [json.loads(line) for path in Path(folder).glob("*.jsonl") for line in path.read_text().splitlines()]
    draw(lines, time.monotonic() - started)
    print(last, end="")
    return code


def shown_but_the_last(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Runs it, and shows its lines as they come, except for the last one: the table goes before that."""
    last = ""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(last, end="", flush=True)
            last = line
    return process.returncode, last


def draw(lines: list[dict[str, Any]], seconds: float) -> None:
    """One line a fault: equal ones are added up."""
    faults: dict[str, dict[str, Any]] = {}
    for line in lines:
        known = faults.setdefault(line["fault"], {"times": 0, "lost": 0, "failed": False})
        known["times"] += line["times"]
        known["lost"] += line["lost"]
        known["failed"] |= line["failed"]
    table = Table(title=f"What was tried, how often, and what was lost ({seconds / 60:.0f} minutes)")
    table.add_column("fault")
    table.add_column("tried", justify="right")
    table.add_column("lost", justify="right")
    for fault, known in sorted(faults.items()):
        table.add_row(fault, f"{known['times']:,}", "FAILED" if known["failed"] else f"{known['lost']:,}")
    Console(width=None if sys.stdout.isatty() else 110).print(table)


if __name__ == "__main__":
    sys.exit(main())
