"""A state of ten rows, with names that spreadsheets and terminals misread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ferry.core.records import ErrorClass, Status
from ferry.state import ledger
from ferry.state.files import DirectoryState
from tests.support.helpers import chunk_rows, directory_state, make_job, make_outcome, plan

SIGNED = "https://img.example/0.jpg?Signature=topsecret"
NASTY = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "plain", "ends\x0b", 'comma, "quote"', "ä日😀", ""]


def ten_rows(tmp_path: Path) -> DirectoryState:
    """Returns a state of ten rows with the IDs of NASTY: 0-3 copied, 4-5 unchanged, 6-8 failed, 9 pending."""
    state = directory_state(tmp_path)
    frame = pd.DataFrame(
        {"url": [SIGNED, *(f"https://img.example/{n}.jpg" for n in range(1, 10))], "id": [*NASTY[:9], "last"]}
    )
    frame.to_parquet(tmp_path / "list.parquet")
    (ref,) = plan(make_job(manifest=str(tmp_path / "list.parquet")), state).chunks
    ends: list[tuple[Status, dict[str, Any]]] = [
        *[(Status.COPIED, {"size": 5, "md5": "a" * 32, "sha256": "b" * 64, "content_type": "image/jpeg"})] * 4,
        *[(Status.UNCHANGED, {"size": None})] * 2,
        (Status.FAILED, {"error_class": ErrorClass.NOT_FOUND, "status_code": 404, "message": "=cmd|' /C calc'!A0"}),
        (Status.FAILED, {"error_class": ErrorClass.FORBIDDEN, "status_code": 403, "retryable": True}),
        (Status.FAILED, {"error_class": ErrorClass.TIMEOUT, "retryable": True}),
    ]
    outcomes = [
        make_outcome(row.row_id, status, key=row.key, id=row.id, source=f"redacted/{row.key}", **given)
        for row, (status, given) in zip(chunk_rows(state, ref), ends, strict=False)
    ]
    stranger = make_outcome("0" * 64, Status.FAILED, error_class=ErrorClass.GONE)
    ledger.append_outcomes(state, [*outcomes, stranger], 1, "c", 0)
    return state
