"""A child process that reads the first sheet of a workbook: `python -m ferry.manifest.excel_process FILE BYTES`.

A workbook is a compressed archive. A file of a kilobyte can need more memory than the machine has: two cells at
opposite corners, a text that a million cells share, a part that decompresses to a thousand times its size. The library
then aborts its process. So a child with limits on memory and time reads the workbook, and the planner survives.

Each line on standard output is `[number of the row, [cells as text]]`. The last line may be `{"error": why}` or
`{"another": sheet}`.
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

MAX_BYTES = 4 << 30  # of memory; a full sheet (1,048,576 rows) of eight columns takes 2 GiB
MAX_CPU_S = 900
MAX_ROW_CHARS = 16 << 20
_MAX_XML_BYTES = 1 << 30  # decompressed, by the sizes in the archive
_ROOT = Path(__file__).resolve().parents[2]


class Unreadable(Exception):
    """Raised if the workbook cannot be read. The text is the reason."""


class AnotherSheet(Exception):
    """Raised if another sheet has the columns of the first one. The text is its name."""


def rows(path: Path) -> Iterator[tuple[int, list[str | None]]]:
    """Yields the first sheet's non-empty rows with their numbers. Raises Unreadable; at the end AnotherSheet."""
    reader = [*command("ferry.manifest.excel_process"), str(path.absolute()), str(MAX_BYTES)]
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
                raise Unreadable("the workbook reader failed")
            if code:  # the library aborts the process if it gets no memory
                raise Unreadable(
                    f"reading it takes more than {MAX_BYTES >> 20:,} MiB of memory or {MAX_CPU_S // 60} minutes"
                )
        finally:
            process.kill()


def cell_text(value: Any) -> str | None:
    """Returns a cell as text. Integral numbers have no fraction, because Excel and pandas store integers as floats."""
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
            xml_bytes = sum(part.file_size for part in archive.infolist())
        if xml_bytes > _MAX_XML_BYTES:
            yield {"error": f"it decompresses to {xml_bytes / 2**30:.1f} GiB; the limit is 1 GiB"}
            return
        header: list[str] = []
        with python_calamine.CalamineWorkbook.from_path(path) as book:
            for number, cells in enumerate(book.get_sheet_by_index(0).iter_rows(), 1):
                if any(value != "" for value in cells):
                    texts = [cell_text(value) for value in cells]
                    if sum(map(len, filter(None, texts))) > MAX_ROW_CHARS:
                        yield {"error": f"row {number:,} has more than {MAX_ROW_CHARS >> 20} million characters"}
                        return
                    header = header or _normal_header(cells)
                    yield number, texts
            for index, sheet in enumerate(book.sheets_metadata):
                visible = (python_calamine.SheetTypeEnum.WorkSheet, python_calamine.SheetVisibleEnum.Visible)
                if index and (sheet.typ, sheet.visible) == visible:  # a long manifest may be split by year
                    first = (
                        cells for cells in book.get_sheet_by_index(index).iter_rows() if any(c != "" for c in cells)
                    )
                    if _normal_header(next(first, [])) == header:
                        yield {"another": sheet.name}
                        return
    except (python_calamine.CalamineError, zipfile.BadZipFile, OSError, NotImplementedError, IndexError) as error:
        yield {"error": str(error).partition("\n")[0]}


def _normal_header(cells: list[Any]) -> list[str]:
    """Returns a header row in the form in which it is compared with that of another sheet."""
    return [text for value in cells if (text := str(value).strip().casefold())]


def main() -> None:
    """Prints the rows of the workbook. Arguments: its path, and bytes of memory."""
    max_bytes = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for line in _read(sys.argv[1]):
            sys.stdout.write(json.dumps(line) + "\n")
    except MemoryError:
        os.abort()


if __name__ == "__main__":
    main()
