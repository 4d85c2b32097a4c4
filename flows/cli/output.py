"""Options and output that several commands share."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

from cyclopts import Parameter

Several = partial(Parameter, negative="", consume_multiple=False)  # an option that may be given several times
JsonFlag = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON document instead.")]


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=1, default=str))
