"""Reads the first sheet of a workbook in a process of its own: `python -m ferry.manifest.excel_process FILE BYTES`.

A workbook is a packed archive, and a file of a kilobyte can ask for more memory than there is (two cells at opposite
corners, a text that a million cells share, a part that unpacks a thousandfold). The library that reads it ends its
process then. So the process has bounds, and the list's planning has none of that.

Each line on standard output is `[number of the row, [cells as text]]`, or `{"error": why}` or `{"another": sheet}` as
the last one.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ferry.core import WITHOUT_CREDENTIALS, command

MOST_BYTES = 4 << 30  # of memory; a full sheet (1,048,576 rows) of eight columns takes 2 GiB
MOST_SECONDS = 900  # of a core
MOST_ROW_CHARACTERS = 16 << 20
_MOST_UNPACKED = 1 << 30  # of XML, as the archive itself says
_ROOT = Path(__file__).resolve().parents[2]


class Unreadable(Exception):
    """The workbook cannot be read; the text says why."""


class AnotherSheet(Exception):
    """The list goes on in another sheet; the text is its name."""


def rows(path: Path) -> Iterator[tuple[int, list[str | None]]]:
    """Rows of the first sheet that hold anything, with their numbers. Raises Unreadable, at the end AnotherSheet."""
    reader = [*command("ferry.manifest.excel_process"), str(path.absolute()), str(MOST_BYTES)]
    with subprocess.Popen(
        reader, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        encoding="utf-8", env={name: value for name, value in os.environ.items() if name in WITHOUT_CREDENTIALS},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:
                found = json.loads(line)
                if isinstance(found, dict) and "another" in found:
                    raise AnotherSheet(found["another"])
                if isinstance(found, dict):
                    raise Unreadable(found["error"])
                yield found[0], found[1]
            code = process.wait()
            if code > 0:
                raise Unreadable("what reads workbooks failed on it")
            if code:  # the library ends its process where it gets no memory
                raise Unreadable(
                    f"reading it takes more than {MOST_BYTES >> 20:,} MiB of memory or {MOST_SECONDS // 60} minutes"
                )
        finally:
            process.kill()


def cell(value: Any) -> str | None:
    """A cell as text: whole numbers without a fraction (Excel and pandas hold integers as floats)."""
    if value is None:
        return None
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 1e17 else repr(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    return str(value)


def _read(path: str) -> Iterator[Any]:
    import python_calamine

    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > _MOST_UNPACKED:
            yield {"error": f"it unpacks to {unpacked / 2**30:.1f} GiB, and 1 GiB is read at most"}
            return
        header: list[str] = []
        with python_calamine.CalamineWorkbook.from_path(path) as book:
            for number, cells in enumerate(book.get_sheet_by_index(0).iter_rows(), 1):
                if any(value != "" for value in cells):
                    texts = [cell(value) for value in cells]
                    if sum(map(len, filter(None, texts))) > MOST_ROW_CHARACTERS:
                        yield {"error": f"row {number:,} holds over {MOST_ROW_CHARACTERS >> 20} million characters"}
                        return
                    header = header or _names(cells)
                    yield number, texts
            for index, sheet in enumerate(book.sheets_metadata):
                plain = (python_calamine.SheetTypeEnum.WorkSheet, python_calamine.SheetVisibleEnum.Visible)
                if index and (sheet.typ, sheet.visible) == plain:  # a long list may be split by year
                    first = (
                        cells for cells in book.get_sheet_by_index(index).iter_rows() if any(c != "" for c in cells)
                    )
                    if _names(next(first, [])) == header:
                        yield {"another": sheet.name}
                        return
    except (python_calamine.CalamineError, zipfile.BadZipFile, OSError, NotImplementedError, IndexError) as error:
        yield {"error": str(error).partition("\n")[0]}


def _names(cells: list[Any]) -> list[str]:
    """A header row as it is compared with another sheet's."""
    return [text for value in cells if (text := str(value).strip().casefold())]


def main() -> None:
    most_bytes = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for line in _read(sys.argv[1]):
            sys.stdout.write(json.dumps(line) + "\n")
    except MemoryError:
        os.abort()


if __name__ == "__main__":
    main()
