"""Cells with several addresses: each address becomes a row (`columns.split`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ferry.manifest.columns import Batch

NUMBER = "n"  # the field of key templates with an address's number in its cell
OF_ONE_OBJECT = frozenset({"size", "md5", "sha256", "etag", "last_modified", "content_type"})


def split_cells(batches: Iterable[Batch], separator: str) -> Iterator[Batch]:
    """Yields the batches with a row for each address of the source column.

    Rows get new numbers; ``line_no`` stays that of the cell. Values that describe one object, such as a size, are
    dropped where a cell has several. ``values`` also has each address's number in its cell, from 1.
    """
    row_no = 1
    for batch in batches:
        cells = batch.values.get("source") or [None] * len(batch)
        parts = [_parts(cell, separator) for cell in cells]
        at = [index for index, found in enumerate(parts) for _ in found]
        several = [len(found) > 1 for found in parts]
        values = {
            name: [None if name in OF_ONE_OBJECT and several[index] else column[index] for index in at]
            for name, column in batch.values.items()
        }
        values["source"] = [part for found in parts for part in found]
        values[NUMBER] = [str(number) for found in parts for number in range(1, len(found) + 1)]
        first = {index: new for new, index in reversed(list(enumerate(at)))}
        lines = batch.row_no if batch.line_no is None else batch.line_no
        yield Batch(
            range(row_no, row_no + len(at)), [lines[index] for index in at], values,
            {first[index]: why for index, why in batch.problems.items()},
        )  # fmt: skip
        row_no += len(at)


def _parts(cell: str | None, separator: str) -> list[str | None]:
    """Returns the addresses in a cell, [None] if it has none."""
    if cell is None:
        return [None]
    found: list[str | None] = [part.strip() for part in cell.split(separator) if part.strip()]
    return found or [None]
