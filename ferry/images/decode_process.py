"""Decoding a body in a process of its own, whose time and memory are bounded.

Some decoders hold Python's lock until they are done: OpenJPEG and SGI's for a whole picture, the XML parser for a whole
tag. Others hold it while they copy or free one: 3 ms for each megapixel. The event loop has no turn meanwhile, in
whichever thread that is. A process takes 0.1 to 0.3 s to start, so small bodies are decoded in the thread.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from ferry.core import WITHOUT_CREDENTIALS, ErrorClass, Mapped, ObjectError, command
from ferry.images.slices import Text

MIB = 1024**2
SVG_S, RASTER_S = 10, 120  # of processor
ADDRESSES = 4096 * MIB  # beside the pixels: libraries and a thread for each core take addresses, not memory
NO_MEMORY = 3  # exit code
COMMAND = command("ferry.images.decode_child")

# Above these the lock may be held for longer than a few hundredths of a second.
BODY_BYTES, PIXELS = 32 * MIB, 25_000_000
_BODY_BYTES = {"SVG": 256 * 1024} | dict.fromkeys(("JPEG 2000", "JPEG 2000 code stream", "ICNS"), 128 * 1024)
_PIXELS = {"WebP": 12_000_000, "AVIF": 12_000_000, "SGI": 5_000_000} | dict.fromkeys(
    ("JPEG 2000", "JPEG 2000 code stream", "ICNS"), 250_000
)


def is_for_a_process(name: str, size: int, pixels: int = 0) -> bool:
    """Whether a body of this format, of ``size`` bytes, with such a picture, is decoded in a process of its own.

    | format | bytes over | or pixels over |
    |---|---|---|
    | SVG | 256 KiB | |
    | JPEG 2000, ICNS (may hold one) | 128 KiB | 250,000 |
    | WebP, AVIF | 32 MiB | 12 million |
    | SGI | 32 MiB | 5 million |
    | the rest | 32 MiB | 25 million |
    """
    return size > _BODY_BYTES.get(name, BODY_BYTES) or pixels > _PIXELS.get(name, PIXELS)


def decode(data: Text, name: str, memory: int) -> None:
    """As :func:`decode.decode`, with so much memory for pixels. Blocks. Raises ObjectError."""
    given: dict[str, Any] = {"input": data}
    if isinstance(data, Mapped):
        given = {"stdin": data.path.open("rb")}
    try:
        ended = subprocess.run(
            [*COMMAND, name, str(memory)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
            env={key: value for key, value in os.environ.items() if key in WITHOUT_CREDENTIALS}, **given,
        )  # fmt: skip
    finally:
        if "stdin" in given:
            given["stdin"].close()
    if ended.returncode == 0:
        if (said := json.loads(ended.stdout)) is not None:
            raise ObjectError(ErrorClass(said[0]), said[1])
        return
    if ended.returncode > 0 and ended.returncode != NO_MEMORY:
        raise RuntimeError(f"the process that decodes a body ended with exit code {ended.returncode}")
    raise ObjectError(
        ErrorClass.TOO_LARGE,
        f"the {name} takes too long, or too much memory, to decode ({seconds(name)} s, {memory // MIB:,} MB); "
        "`checks: image` accepts it by its structure",
    )


def seconds(name: str) -> int:
    return SVG_S if name == "SVG" else RASTER_S
