"""Passes connections on: `python -m tests.support.relay ADDRESS:PORT TARGET:PORT` (tests.support.machines)."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import uvloop

PIECE = 256 * 1024


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies what comes until its end, and passes that on."""
    with contextlib.suppress(OSError, RuntimeError):  # uvloop's error for a connection that the other end has reset
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()


async def main(here: str, there: str) -> None:
    live: set[asyncio.Task[None]] = set()  # the loop alone would let them be collected

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(relay(reader, writer))
        live.add(task)
        task.add_done_callback(live.discard)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*there.rsplit(":", 1))
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))
        for end in (up_writer, writer):
            end.close()

    address, port = here.rsplit(":", 1)
    server = await asyncio.start_server(accept, address, int(port))
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main(sys.argv[1], sys.argv[2]))
