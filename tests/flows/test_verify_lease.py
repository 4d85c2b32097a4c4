"""A verification writes outcomes only under its lease, and reports earlier findings that it cannot clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from ferry.core.errors import Fatal
from ferry.core.records import Status
from ferry.job import Checks
from ferry.reconcile.verify import Verified
from ferry.state import lease
from tasks.verify import Verification
from tests.support.helpers import directory_state, make_outcome


@pytest.mark.parametrize("lost", [False, True])
def test_a_verification_that_lost_its_lease_writes_nothing(lost: bool, tmp_path: Path) -> None:
    """A verification writes its findings under its lease, and none after another run has taken it."""
    state = directory_state(tmp_path)
    with lease.hold_lease(state, "verify") as held:
        check = Verification(state, cast("Any", None), held, 1)
        if lost:
            state.write(lease.NAME, lease.this_process("other", 1e12).encode())
            held._renewed -= lease.LENGTH_S  # it was suspended meanwhile
        found = Verified(1, 0, 1, 0, [make_outcome(1, Status.PENDING)])
        if lost:
            with pytest.raises(Fatal, match="another run has taken the lease"):
                check.add(found)
        else:
            check.add(found)
    assert bool(state.list("outcomes")) is not lost


@pytest.mark.parametrize(
    ("content_type", "checks", "said"),
    [("image/jxl", Checks.IMAGE, "only its length"), ("image/jxl", Checks.LENGTH, ""), ("image/png", Checks.IMAGE, "")],
)
def test_which_check_a_row_got(content_type: str, checks: Checks, said: str, tmp_path: Path) -> None:
    """A verification says it by the job's `checks` and the row's type, as a run does."""
    check = Verification(directory_state(tmp_path), cast("Any", None), cast("Any", None), 1, checks)
    message = check.lesser_check(make_outcome(1, content_type=content_type))
    assert (message or "").startswith(said)
    assert bool(message) is bool(said)


@pytest.mark.parametrize(
    ("found", "proven", "said"),
    [
        (
            {"unproven": 2},
            False,
            "2 of them were wrong in an earlier verification, and their sizes and ETags are not proof",
        ),
        ({"right_again": [make_outcome(1)]}, True, "1 found wrong by an earlier verification now match the ledger"),
    ],
)
def test_what_an_earlier_verification_found(found: dict[str, Any], proven: bool, said: str, tmp_path: Path) -> None:
    """A size or an ETag does not clear objects that wait for a repair, and the exit code is 1."""
    state = directory_state(tmp_path)
    with lease.hold_lease(state, "verify") as held:
        check = Verification(state, cast("Any", None), held, 1)
        check.add(Verified(5, 0, 0, 0, [], **found))
    assert check.proven is proven
    assert said in check.message
