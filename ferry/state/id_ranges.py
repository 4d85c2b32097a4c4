"""Ranges of row IDs, for work on manifests and ledgers of any length in bounded memory.

Row IDs are SHA-256 digests in hexadecimal (ferry.manifest.normalize), so ranges of equal width have about as many rows.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS_AT_ONCE = 1_000_000  # rows of one range, on average
_DIGITS = 4  # hexadecimal digits of a range's ends


@dataclass(frozen=True, slots=True)
class RowRange:
    """The row IDs from ``low`` to ``high``, which is excluded; an empty end is open."""

    low: str = ""
    high: str = ""

    def condition(self, column: str = "row_id") -> str:
        """Returns the SQL condition for a column of row IDs."""
        above = f"{column} >= '{self.low}'" if self.low else "true"
        return f"{above} AND {column} < '{self.high}'" if self.high else above


EVERY_ROW = RowRange()


def row_ranges(rows: int, at_once: int = ROWS_AT_ONCE) -> list[RowRange]:
    """Returns ranges in order that together have every row ID, for ``rows`` rows; their number is a power of two."""
    number = 1
    while rows > number * at_once and number < 16**_DIGITS:
        number *= 2
    ends = [f"{16**_DIGITS * index // number:0{_DIGITS}x}" for index in range(1, number)]
    return [RowRange(low, high) for low, high in zip(["", *ends], [*ends, ""], strict=True)]
