"""Books what the fault experiments tried."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from tests.faults.amount import book


@pytest.fixture
def tried() -> Callable[..., None]:
    """``tried(fault, times, lost=0)`` at the end of a test: a line of the table that `make faults` prints."""
    return book


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """An experiment that failed has a line of its own."""
    report: Any = yield
    if report.failed:
        book(item.nodeid.removeprefix("tests/faults/"), failed=True)
    return report
