"""Options and JSON output that several commands share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any

from cyclopts import Parameter

from ferry.core import UserError, class_problem

Several = partial(Parameter, negative="", consume_multiple=False)  # an option that may be repeated
JsonFlag = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON document.")]


def print_json(data: Any) -> None:
    """Print ``data`` as one JSON document on standard output."""
    print(json.dumps(data, indent=1, default=str))


def split_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the single names of options such as `--class not_found,404`, which may be repeated."""
    return tuple(part.strip() for name in names for part in name.split(",") if part.strip())


def check_classes(names: Iterable[str]) -> None:
    """Raises UserError for an unknown error class, which would silently select no row."""
    for name in names:
        if problem := class_problem(name):
            raise UserError(problem)
