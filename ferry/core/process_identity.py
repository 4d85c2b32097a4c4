"""What tells a process from another one with the same number: later, on another machine, or in another container."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """Returns the machine's boot ID and this process's PID namespace, or "" without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_start(pid: int) -> str | None:
    """Returns field 22 of /proc/PID/stat (proc(5)), None for a process that has ended, or "" without /proc."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]
