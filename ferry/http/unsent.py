"""How much of a request is still on its way to the other end: what tells a slow upload from a silent server."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import sys
import termios


def unsent_bytes(transport: asyncio.Transport) -> int:
    """Bytes that the other end has not acknowledged: in our buffers, and in the system's where it tells
    (tcp(7), SIOCOUTQ; the same number as TIOCOUTQ)."""
    waiting = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            waiting += int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return waiting
