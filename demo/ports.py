"""Reservation of free loopback ports, which stay reserved while their server restarts."""

from __future__ import annotations

import fcntl
import os
import random
import tempfile
from pathlib import Path

from flows.server.local import is_free

# Below Linux's ephemeral range (32768 and up). A port in that range can be taken by an outgoing connection while its
# server is down, and a client that polls it can even connect to itself.
_LOW, _HIGH = 20_000, 32_600
_NOT_FOR_HTTP = {27_017}  # MongoDB's: Ferry sends no HTTP there (ferry.http.address_filter.OTHER_SERVICES)
_random = random.SystemRandom()
_reserved: list[int] = []  # open files, whose locks end with this process


def free_ports(count: int, *, below: int = _HIGH, but: tuple[int, ...] = ()) -> list[int]:
    """Returns ``count`` different ports that are free at the moment. Raises RuntimeError if there are too few.

    While this process lives, other processes do not get these ports from this function. Several processes start servers
    at the same time, and a free port is taken only when its server listens.
    """
    found: list[int] = []
    for _ in range(2000):
        if len(found) == count:
            return found
        port = _random.randrange(_LOW, below)
        if port not in {*found, *but, *_NOT_FOR_HTTP} and is_free(port) and reserve(port):
            found.append(port)
    raise RuntimeError(f"no {count} free ports between {_LOW} and {below} on 127.0.0.1")


def reserve(port: int) -> bool:
    """Reserve a port against other callers of this module. Returns False if another process has it."""
    folder = Path(tempfile.gettempdir()) / f"ferry-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = os.open(folder / str(port), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    _reserved.append(file)
    return True
