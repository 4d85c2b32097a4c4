"""`ferry demo` on a terminal succeeds and prints the transcript in the README."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.project import ROOT, processes_with

pytestmark = pytest.mark.slow


def on_terminal(command: list[str], folder: Path) -> tuple[int, str]:
    """Run a command on its own terminal. Returns its exit code and its output without colours."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_"))}
    environment |= {"TERM": "xterm", "COLUMNS": "110", "LINES": "50", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux's way to say that nobody has the other end any more
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode()
    # A progress line is drawn over and over in one place: what stays is the last of it.
    return process.wait(), "\n".join(line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n"))


def masked(text: str) -> list[str]:
    """Returns the lines without values that vary: times, rates, ports."""
    text = re.sub(r"http://127\.0\.0\.1:\d+", "http://127.0.0.1:PORT", text)
    text = re.sub(r"[\d,.]+ (rows/s)", r"N \1", text)
    text = re.sub(r"(?m), N rows/s\.$", ".", text)  # a run of less than a second has none
    text = re.sub(r"━ \d+:\d\d  ", "━ TIME  ", text)
    text = re.sub(r"[\d,.]+ (bytes|[kMG]B)/s", "N/s", text)
    text = re.sub(r"\b(in|about) \d+(:\d+)+", r"\1 TIME", text)
    text = re.sub(r"in \d+ s\b", "in TIME", text)
    text = re.sub(r"\d+:\d\d left", "TIME left", text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_the_demo_is_what_the_readme_shows(tmp_path: Path) -> None:
    """The demo prints every line of the README's transcript in order, and leaves no process."""
    code, shown = on_terminal([sys.executable, "-m", "flows", "demo"], tmp_path)
    assert code == 0, shown
    transcript = re.search(r"<!-- transcript.*?```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert transcript is not None
    lines = iter(masked(shown))
    for wanted in masked(transcript.group(1).replace("[...]\n", "")):
        assert wanted in lines, f"not printed, or not in this place: {wanted}\n\n{shown}"
    assert not processes_with(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".demo"]
