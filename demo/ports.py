"""Free loopback ports that stay free while their server is down for a moment."""

from __future__ import annotations

import random

from flows.server import is_free

# Below Linux's ephemeral range (32768 and up). A port inside it can be taken by somebody's outgoing
# connection while its server is down, and a client polling it can even connect to itself.
_LOW, _HIGH = 20_000, 32_600
_random = random.SystemRandom()


def free_ports(count: int, *, below: int = _HIGH, but: tuple[int, ...] = ()) -> list[int]:
    """``count`` different ports, free at this moment. Raises RuntimeError when there are not so many."""
    found: list[int] = []
    for _ in range(2000):
        if len(found) == count:
            return found
        port = _random.randrange(_LOW, below)
        if port not in found and port not in but and is_free(port):
            found.append(port)
    raise RuntimeError(f"no {count} free ports between {_LOW} and {below} on 127.0.0.1")
