"""The mistakes in a job in words, each with its line in the job file."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ferry.core import short

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

Location = Sequence[str | int]  # keys and indexes, from the top of the job
LineOf = Callable[[Location], int | None]
# added by pydantic to an error's path to name the member of a union
_UNION_MEMBERS = {"int", "float", "str", "constrained-int", "literal['auto']", "(text)", "(mapping)"}


def lines_of(path: Path) -> LineOf:
    """Returns a function from a key's location to its line in a job file; None for a key that `--set` gave.

    The file is read when the function is first called.
    """

    @functools.cache
    def root() -> yaml.Node | None:
        try:
            return yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        except (OSError, ValueError, yaml.YAMLError):
            return None

    def line_of(location: Location) -> int | None:
        node, line = root(), None
        for part in location:
            found = None
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == part), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                found = (node.value[part], node.value[part])
            if found is None:
                break
            node, line = found[1], found[0].start_mark.line + 1
        return line

    return line_of


def problems(exc: ValidationError, line_of: LineOf = lambda _: None) -> list[str]:
    """Returns a line per mistake: where it is and what to write. Values are left out: they may be secret.

    They are in the order of the file. Mistakes without a line, such as missing keys, come last.
    """
    found: dict[str, tuple[int | None, list[str]]] = {}
    for error in exc.errors(include_url=False):
        location = [part for part in error["loc"] if part not in _UNION_MEMBERS]
        shown = location[:-1] if error["type"] == "unknown_key" else location
        key = ".".join(short(str(part)) for part in shown)
        # Each member of a union (`concurrency`: a number or `auto`) has its own error; one line has all of them.
        name = ".".join(map(str, location))
        line, words = found.setdefault(name, (line_of(location), []))
        words.append(f"{key}: {_in_words(error)}" if key and not words else _in_words(error))
        found[name] = line, words
    in_order = sorted(found.values(), key=lambda item: (item[0] is None, item[0] or 0))
    return [(f"line {line}: " if line else "") + "; or: ".join(words) for line, words in in_order]


def _in_words(error: ErrorDetails) -> str:
    """Returns what is wrong with one value, without the value, and how YAML may have misread it."""
    words = error["msg"].removeprefix("Value error, ")
    given = error["input"]
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "string_pattern_mismatch":
        return "must be 1 to 100 letters, digits, `.`, `_` or `-`, starting with a letter or digit"
    if error["type"] == "model_type":
        return "must be a mapping of keys, not a value (docs/reference/job.md lists the keys)"
    if error["type"] == "int_parsing":
        return "must be a whole number without a unit"
    if error["type"] in ("string_type", "enum", "literal_error") and not isinstance(given, str | dict | list):
        if isinstance(given, bool):
            return f"{words} (YAML reads yes, no, on and off as true or false: write one of the words, or use quotes)"
        if given is not None:
            return f"{words} (put the {'number' if isinstance(given, int | float) else type(given).__name__} in quotes)"
    if error["type"] in ("enum", "literal_error") and isinstance(given, str):
        near = get_close_matches(given, re.findall(r"'([^']+)'", words), n=1, cutoff=0.5)
        return f"{words}; did you mean `{near[0]}`?" if near else words
    return words
