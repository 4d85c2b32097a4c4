"""reports/predicted.json: the time that `ferry check` predicted, which the end of the run is compared with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ferry.state.files import State

NAME = "reports/predicted.json"
SAME_ROWS = 0.02  # a run of more or fewer rows than predicted is another one


@dataclass(frozen=True, slots=True)
class Predicted:
    """The predicted seconds of a run of ``rows`` rows."""

    rows: int
    low_s: float
    high_s: float

    def is_of(self, rows: int) -> bool:
        """Returns whether a run that had outcomes for ``rows`` rows is the one that was predicted."""
        return self.rows > 0 and abs(rows - self.rows) <= SAME_ROWS * self.rows


def write_predicted(state: State, predicted: Predicted) -> None:
    """Records what was predicted, in place of an earlier prediction."""
    state.write(NAME, json.dumps(asdict(predicted)).encode())


def read_predicted(state: State) -> Predicted | None:
    """Returns the last prediction, None if there is none that can be read."""
    try:
        return Predicted(**json.loads(state.read(NAME)))
    except (FileNotFoundError, ValueError, TypeError):
        return None
