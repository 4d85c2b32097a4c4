"""Mutations are what a person would call wrong, in Python and in SQL, and leave the rest of the module as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutations.changes import changes, shown
from tests.mutations.targets import TARGETS

pytestmark = pytest.mark.matrix

ROOT = Path(__file__).parents[2]
SOURCE = '''"""A doc < of more."""


def decide(a: int, b: int) -> bool:
    """Not a < b here."""
    check(a)
    if a < b and not wanted(b):
        raise ValueError("a < b")
    return True


QUERY = f"SELECT key FROM latest ANTI JOIN gone USING (key) WHERE {'a AND b'} AND size = 1"
'''


def test_each_kind_of_change() -> None:
    """Comparisons, calls, raises, constants and SQL change; docstrings, messages and holes do not."""
    found = {change.what for change in changes(SOURCE)}
    assert found == {
        "< -> <=", "and -> or", "no not", "no call", "no raise", "if True", "if False", "True -> False",
        "SQL: ANTI JOIN -> SEMI JOIN", "SQL: AND -> OR", "SQL: = -> <>",
    }  # fmt: skip
    assert sum(change.what == "SQL: AND -> OR" for change in changes(SOURCE)) == 1
    assert sum(change.what == "no not" for change in changes("x = not (a or b)")) == 1
    assert changes("x = not (a or b)")[0].apply("x = not (a or b)") == "x =  (a or b)"
    (call,) = [change for change in changes(SOURCE) if change.what == "no call"]
    assert list(shown(SOURCE, call)) == ["- check(a)", "+ pass"]


@pytest.mark.parametrize("module", TARGETS)
def test_each_mutation_compiles(module: str) -> None:
    """A mutation that is no Python would count as noticed, whatever the tests."""
    source = (ROOT / module).read_text(encoding="utf-8")
    found = changes(source)
    assert found
    for change in found:
        compile(change.apply(source), module, "exec")


@pytest.mark.parametrize("module", TARGETS)
def test_its_tests_are_there(module: str) -> None:
    """Paths in targets.py are not checked by anything else."""
    assert all((ROOT / test).is_file() for test in TARGETS[module])
