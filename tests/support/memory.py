"""The memory of this process, as the kernel counts it (proc(5), /proc/PID/status and clear_refs)."""

from __future__ import annotations

from pathlib import Path


def resident_bytes() -> int:
    """Returns what is in memory now."""
    return _size("VmRSS:")


def peak_bytes() -> int:
    """Returns the most since the process began or :func:`forget_peak`. getrusage(2) has the parent's peak in it."""
    return _size("VmHWM:")


def forget_peak() -> int:
    """Lowers the peak to what is in memory now, and returns that: an earlier peak would hide what comes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes()


def _size(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
