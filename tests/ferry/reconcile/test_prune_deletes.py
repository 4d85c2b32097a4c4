"""The deletion of copies: which requests are made, and what the result says of each copy."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ferry.core.records import ErrorClass, Outcome, Status
from ferry.reconcile import prune
from ferry.state import ledger
from ferry.state.files import State
from tests.ferry.reconcile.test_prune_needed import Listed, pruned, results
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers
from tests.support.helpers import by_key

pytestmark = pytest.mark.slow

GONE = [f"a/{n:03}.jpg" for n in range(30)]
DELTA: dict[str, Any] = {
    "delete_removed": True,
    "max_delete": "50%",
    "delete_after": 1,
    "accept_shorter_manifest": True,
}


class Noted(Listed):
    """A listed source that records how many outcomes each step of pruning wrote."""

    def __init__(self, server: OddS3, folder: Path) -> None:
        super().__init__(server, folder)
        self.noted: list[int] = []


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Noted]:
    """Returns a copy of 60 objects, 30 of which a test removes from the source."""
    append = ledger.append_outcomes

    def noting(state: State, outcomes: Sequence[Outcome], run_no: int, chunk: str, part: int) -> str:
        if chunk == "prune":
            made.noted.append(len(outcomes))
        return append(state, outcomes, run_no, chunk, part)

    for module, name in helpers.bindings(append):
        monkeypatch.setattr(module, name, noting)
    monkeypatch.setattr(prune, "BETWEEN_TRIES_S", 0.01)
    with OddS3() as server:
        made = Noted(server, tmp_path)
        yield made
        assert made.there() >= set(made.keys) - set(GONE)


def lose(odd: Noted, keys: list[str] = GONE) -> None:
    for key in keys:
        del odd.server.objects["old"][key]


def counts(odd: Noted) -> tuple[int, int, int, int]:
    found = pruned(odd)
    return found.removed, found.deleted, found.untracked, found.failed


def test_sixteen_at_once(odd: Noted) -> None:
    """At most 16 checks and deletions run at once, and each copy is listed with its facts."""
    odd.night(delta=DELTA)
    assert (pruned(odd).file, odd.noted) == ("", [])
    known = by_key(odd.state)
    lose(odd)
    odd.server.delay_s = 0.02
    odd.server.at_once.clear()
    odd.night(delta=DELTA)
    assert counts(odd) == (30, 30, 0, 0)
    assert odd.server.at_once["DeleteObject"] <= 16
    assert odd.server.at_once["HeadObject"] <= 16
    assert odd.noted == [30, 30]
    ends = by_key(odd.state)
    assert {ends[key].status for key in GONE} == {Status.REMOVED}
    assert all(ends[key].attempt == known[key].attempt + 2 for key in GONE), "one begun and one done"
    lines = list(csv.DictReader(io.StringIO(odd.state.read(pruned(odd).file).decode())))
    assert {line["key"] for line in lines} == set(GONE)
    for line in lines:
        before = known[line["key"]]
        assert (line["result"], line["source"], line["size"]) == ("deleted", before.source, str(before.size))
        assert (line["sha256"], line["dest_etag"]) == (before.sha256, before.dest_etag)
        assert datetime.fromisoformat(line["recorded_at"]) == before.recorded_at


def test_nothing_is_noted_where_all_stay(odd: Noted) -> None:
    """If the source still has all objects, nothing is deleted or recorded."""
    odd.night(delta=DELTA)
    odd.server.hidden = set(GONE)
    odd.night(delta=DELTA)
    assert (pruned(odd).kept, counts(odd), odd.noted) == (30, (30, 0, 0, 0), [])


def test_some_that_are_refused(odd: Noted) -> None:
    """Deletions refused for some keys fail after one try, and the others succeed."""
    odd.night(delta=DELTA)
    lose(odd)
    odd.server.faults = [
        Fault("status", ("DeleteObject",), status=403, code="AccessDenied", key="p/a/00[0-8]"),
        Fault("slow", ("DeleteObject",), delay_s=0.3),
    ]
    odd.night(delta=DELTA)
    assert counts(odd) == (30, 21, 0, 9)
    assert odd.server.requests["DeleteObject"] == 30
    assert not pruned(odd).succeeded
    odd.server.faults = []
    odd.night(delta=DELTA)
    assert (counts(odd), pruned(odd).succeeded) == ((9, 9, 0, 0), True)


def test_all_that_are_refused(odd: Noted) -> None:
    """After ten refused deletions and no success the rest is not tried."""
    odd.night(delta=DELTA)
    lose(odd)
    odd.server.faults = [Fault("status", ("DeleteObject",), status=403, code="AccessDenied")]
    odd.night(delta=DELTA)
    assert (pruned(odd).deleted, pruned(odd).untracked, odd.there()) == (0, 0, set(odd.keys))
    assert "nothing can be deleted at the destination" in pruned(odd).stop_reason
    assert 10 <= odd.server.requests["DeleteObject"] <= 10 + 16
    assert pruned(odd).failed == 30
    assert all(what.startswith("not deleted: ") for what in results(odd).values())
    assert len(results(odd)) == 30


def test_a_destination_that_ends_everything(odd: Noted) -> None:
    """A fatal error stops all further deletions."""
    odd.night(delta=DELTA)
    lose(odd)
    odd.server.faults = [
        Fault("redirect", ("DeleteObject",), location="http://b.localhost:9", times=1),
        Fault("slow", ("DeleteObject",), delay_s=0.3),
    ]
    odd.night(delta=DELTA)
    assert pruned(odd).stop_reason
    assert odd.server.requests["DeleteObject"] <= 16
    assert pruned(odd).failed == 30 - pruned(odd).deleted


@pytest.mark.parametrize(("times", "after"), [(2, (1, 1, 0, 0)), (3, (1, 0, 0, 1))])
def test_a_hiccup_is_outlived(times: int, after: Any, odd: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion is tried three times, and then left for the next run."""
    odd.night(delta=DELTA)
    lose(odd, GONE[:1])
    monkeypatch.setattr(prune, "_delete_one", _counting := Counting(prune._delete_one))
    odd.server.faults = [Fault("status", ("DeleteObject",), times=times)]
    odd.night(delta=DELTA)
    assert _counting.times == 1
    assert counts(odd) == after
    assert odd.server.requests["DeleteObject"] == 3


class Counting:
    def __init__(self, inner: Any) -> None:
        self._inner, self.times = inner, 0

    async def __call__(self, *given: Any) -> Any:
        self.times += 1
        return await self._inner(*given)


def test_a_store_that_says_to_come_back_later_is_left_alone(odd: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Retry-After of more than a minute leaves the copy for the next run."""
    from aiohttp import web

    odd.night(delta=DELTA)
    lose(odd, GONE[:1])
    carry_out, asked = OddS3._carry_out, []

    def busy(self: OddS3, operation: str, *given: Any) -> Any:
        if operation != "DeleteObject":
            return carry_out(self, operation, *given)
        asked.append(operation)
        return web.Response(status=503, headers={"Retry-After": "61"})

    monkeypatch.setattr(OddS3, "_carry_out", busy)
    odd.night(delta=DELTA)
    assert (counts(odd), len(asked)) == ((1, 0, 0, 1), 1)


@pytest.mark.parametrize(
    ("first", "then", "result"),
    [
        ("none", "md5", prune.NO_ETAG),
        ("md5", "none", prune.NO_ETAG),
        ("md5", "gone", prune.ABSENT),
        ("md5", "another", prune.ANOTHER),
        ("md5", "md5", prune.DELETED),
    ],
)
def test_what_is_not_known_to_be_ours_is_left(first: Any, then: str, result: str, odd: Noted) -> None:
    """A copy without a matching ETag is not deleted, and not counted again."""
    odd.server.etags = first
    odd.night(delta=DELTA)
    lose(odd, GONE[:1])
    key = f"p/{GONE[0]}"
    there = odd.server.objects["new"]
    if then == "gone":
        del there[key]
    elif then == "another":
        odd.server.put("new", key, b"of another program")
    elif then != first:
        there[key].etag = "e" if then == "md5" else ""
    odd.night(delta=DELTA)
    deleted = result == prune.DELETED
    assert (results(odd), counts(odd)) == ({GONE[0]: result}, (1, int(deleted), int(not deleted), 0))
    assert (key in there) is (result not in (prune.DELETED, prune.ABSENT))
    odd.night(delta=DELTA)
    assert pruned(odd).removed == 0


@pytest.mark.parametrize(("error_class", "there"), [(None, 1), (ErrorClass.ALTERED, 0)])
def test_a_copy_that_is_pending(error_class: ErrorClass | None, there: int, odd: Noted) -> None:
    """A copy whose deletion had begun is deleted; one that verify found wrong is not."""
    odd.night(delta=DELTA)
    known = by_key(odd.state)[GONE[0]]
    pending = known._replace(status=Status.PENDING, error_class=error_class, attempt=known.attempt + 1)
    ledger.append_outcomes(odd.state, [pending], 1, "x", 0)
    lose(odd, GONE[:1])
    odd.night(delta=DELTA)
    assert counts(odd) == (there, there, 0, 0)


def test_a_row_that_never_had_a_copy_leaves_nothing(odd: Noted) -> None:
    """A removed row without a copy causes no request to the destination."""
    odd.server.faults = [
        Fault("status", ("GetObject", "CopyObject"), status=403, code="AccessDenied", key=r"a/000\.jpg")
    ]
    odd.night(delta=DELTA)
    assert odd.there() == set(odd.keys) - set(GONE[:1])
    odd.server.faults = []
    lose(odd, GONE[:1])
    odd.night(delta=DELTA)
    assert (counts(odd), pruned(odd).file) == ((0, 0, 0, 0), "")
    assert odd.server.requests["DeleteObject"] == 0
