"""What the `ferry` command prints, called in this process."""

from __future__ import annotations

import pytest

from ferry.state import Counts
from flows.cli import terminal


@pytest.mark.parametrize("lesser", [0, 1, 3])
def test_status_counts_lesser_checks(lesser: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Only if there are any."""
    terminal.status("job", Counts(planned=9, copied=9, lesser_checks=lesser), None)
    printed = capsys.readouterr().out
    assert "9 of 9 rows done (100.0%)" in printed
    assert ("1 of them was checked by length or structure alone" in printed) == (lesser == 1)
    assert ("3 of them were checked by length or structure alone" in printed) == (lesser == 3)
