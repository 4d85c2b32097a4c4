"""Whether an address is one of this machine's own."""

from __future__ import annotations

import socket

_NO_MACHINES = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # for documentation, RFC 5737 and 3849


def is_own(address: str, family: int) -> bool:
    """Whether a socket here may have this address for its own end.

    A connection to an own address need not come from it: for a second address in a network Linux takes the first one as
    its sender. Where sockets may have any address (`ip_nonlocal_bind`) this says nothing, and is False.
    """
    return _binds(address, family) and not _binds(_NO_MACHINES[socket.AddressFamily(family)], family)


def _binds(address: str, family: int) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
