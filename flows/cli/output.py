"""Options and JSON output that several commands share."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

from cyclopts import Parameter

Several = partial(Parameter, negative="", consume_multiple=False)  # an option that may be repeated
JsonFlag = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON document.")]


def print_json(data: Any) -> None:
    """Print ``data`` as one JSON document on standard output."""
    print(json.dumps(data, indent=1, default=str))
