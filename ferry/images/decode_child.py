"""Decodes one body in a process of its own (decode_process.py): `python -m ferry.images.decode_child FORMAT BYTES`."""

from __future__ import annotations

import json
import mmap
import os
import resource
import stat
import sys

from ferry.core import ObjectError, die_with_parent
from ferry.images import decode_process, svg


def main() -> None:
    decode_input(sys.argv[1], int(sys.argv[2]))


def decode_input(name: str, memory: int) -> None:
    """Decodes standard input, and answers with null or [error class, message]."""
    die_with_parent()
    is_file = stat.S_ISREG(os.fstat(0).st_mode)
    data = mmap.mmap(0, 0, access=mmap.ACCESS_READ) if is_file else sys.stdin.buffer.read()
    addresses = memory if name == "SVG" else memory + len(data) + decode_process.ADDRESSES
    for limit, most in ((resource.RLIMIT_CPU, decode_process.seconds(name)), (resource.RLIMIT_AS, addresses)):
        resource.setrlimit(limit, (most, most))
    try:
        if name == "SVG":
            svg.parse_svg(data)
        else:
            from ferry.images.decode import decode_here  # with Pillow, which an SVG does without

            decode_here(data, name, memory)
        answer = None
    except ObjectError as error:
        answer = [error.error_class, error.message]
    except MemoryError:
        sys.exit(decode_process.NO_MEMORY)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
