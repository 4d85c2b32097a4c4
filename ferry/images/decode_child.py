"""The child process that decodes bodies, one after the other: `python -m ferry.images.decode_child BYTES SECONDS`.

Pillow opens a body only as the format that its signature says, and never as EPS, which would start Ghostscript. Of a
PSD the merged picture is decoded, of CUR and ICNS the largest one, of other formats every frame. Damage that decoders
tolerate passes: libjpeg decodes a JPEG with damaged coded data as far as it can, and Pillow leaves rows empty that a
PNG's correctly ended compressed stream lacks.

Each request on standard input is a line, `[name, decoder, path or null, bytes]`, followed by the body if the path is
null. Each response on standard output is a line, `null` or `[error class, message]`. A body that needs too much memory
or time ends the process.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import AvifImagePlugin, IcoImagePlugin, Image, PsdImagePlugin, UnidentifiedImageError

from ferry.core import ErrorClass, ObjectError
from ferry.images import decode, svg
from ferry.images.web import corrupt, truncated

BYTES_PER_PIXEL = 24  # peak of any decoder, measured: OpenJPEG 22, libwebp 17, libavif 9, a progressive JPEG 9
_NO_MEMORY = ("out of memory", "could not create decoder object")  # in messages of libraries that got no memory
# Exceptions of Pillow, its decoders and its parsers for a damaged file. The fuzz test fails on any other.
_PILLOW_ERRORS = (
    OSError,  # also UnidentifiedImageError
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ArithmeticError,  # OverflowError, and ZeroDivisionError for an AVIF whose time scale is zero
    RuntimeError,
    struct.error,
    zlib.error,
)


def main() -> None:
    """Answers requests until standard input ends. Arguments: bytes of memory, and seconds for each body."""
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # memory is the limit
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    address_space = memory + _used_address_space()
    for limit, value in ((resource.RLIMIT_AS, address_space), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (value, value))
    try:
        while line := sys.stdin.buffer.readline():
            name, decoder, path, size = json.loads(line)
            with Path(path).open("rb") if path else io.BytesIO(sys.stdin.buffer.read(size)) as file:
                cpu_limit_s = int(time.process_time()) + 1 + seconds
                resource.setrlimit(resource.RLIMIT_CPU, (cpu_limit_s, resource.RLIM_INFINITY))
                signal.alarm(decode.WAIT_S)
                response = verdict(file, name, decoder, memory)
                signal.alarm(0)
            sys.stdout.write(json.dumps(response) + "\n")
            sys.stdout.flush()
    except MemoryError:
        sys.exit(decode.EXIT_NO_MEMORY)


def _used_address_space() -> int:
    """Returns the bytes of address space that the process uses before its first body, mainly for libraries."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def verdict(file: BinaryIO, name: str, decoder: str, memory: int) -> tuple[ErrorClass, str] | None:
    """Decodes a body. Returns None if it is complete, or the error. Raises MemoryError."""
    try:
        if decoder == "SVGZ":
            svg.parse_svg(svg.gunzip(file.read()))
        elif decoder == "SVG":
            svg.parse_svg(file.read())
        else:
            _decode_raster(file, name, decoder, memory)
    except ObjectError as error:
        return error.error_class, error.message
    return None


def _decode_raster(file: BinaryIO, name: str, decoder: str, memory: int) -> None:
    """Decodes every pixel of every frame. Raises ObjectError, or MemoryError if the cause may be a lack of memory."""
    pixels = 0
    try:
        with Image.open(file, formats=[decoder]) as image:
            for width, height in _frames(image):
                pixels = width * height
                if pixels * len(image.getbands()) > decode.TOTAL_BYTES:  # without trying it twice
                    raise ObjectError(ErrorClass.TOO_LARGE, f"the {name} has too many pixels to decode ({pixels:,})")
                image.load()
    except _PILLOW_ERRORS as exc:
        text = str(exc).lower()
        if isinstance(exc, EOFError) or "truncated" in text:
            raise truncated(name, "its last pixel") from None
        if pixels * BYTES_PER_PIXEL > memory or any(part in text for part in _NO_MEMORY):
            raise MemoryError from None
        if isinstance(exc, UnidentifiedImageError):
            raise corrupt(name, "Pillow cannot read its header") from None
        raise corrupt(name, "its pixels do not decode") from None


def _frames(image: Image.Image) -> Iterator[tuple[int, int]]:
    """Selects each picture of the image in turn, and yields its width and height."""
    if isinstance(image, IcoImagePlugin.IcoImageFile):
        for size in sorted(image.info["sizes"]):
            image.size = size
            yield size
        return
    frames = 1 if isinstance(image, PsdImagePlugin.PsdImageFile) else getattr(image, "n_frames", 1)
    for number in range(frames):
        if number:
            image.seek(number)
        yield image.size


if __name__ == "__main__":
    main()
