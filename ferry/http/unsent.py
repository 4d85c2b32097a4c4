"""The number of unacknowledged bytes of a connection, which tells a slow upload from a silent server."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import sys
import termios


def unsent_bytes(transport: asyncio.Transport) -> int:
    """Return the number of bytes in asyncio's write buffer and, where the system reports it, in the socket's queue.

    The request number of SIOCOUTQ is that of TIOCOUTQ (tcp(7)).
    """
    waiting = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            waiting += int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return waiting
