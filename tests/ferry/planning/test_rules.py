"""The decisions of planning, line by line of their tables."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.core.errors import Damaged, UserError
from ferry.core.records import AGAIN, Again, ErrorClass, Reason, Status
from ferry.core.revalidation import Revalidate
from ferry.job.model import OnExisting
from ferry.planning.existing_objects import how_to_find
from ferry.planning.rules import (
    Latest,
    Mode,
    auto_chunk_rows,
    check_locations,
    looks_truncated,
    reason_to_do,
    stays_in_plan,
)
from ferry.state.checksums import encode_checked_json
from ferry.state.parquet import SCHEMA_VERSION
from ferry.state.plan_file import (
    LOCATION_FILE,
    PLAN_FILE,
    ChunkRef,
    Plan,
    PlanLocation,
    read_location,
    read_plan,
    with_hints,
)
from tests.support.helpers import make_job

E, S = ErrorClass, Status
REF = ChunkRef("chunks/a.parquet", "a" * 64, 10, 0, "base", 1)


def known(status: Status, error: ErrorClass | None = None, code: int | None = None, **given: Any) -> Latest:
    return Latest(
        status, error, code, given.get("by_plan", False), given.get("same_settings", True), given.get("now", False)
    )


PLANNED_ONLY = known(S.FAILED, E.KEY_COLLISION, by_plan=True)

PLAIN: list[tuple[Latest | None, Reason | None]] = [
    (None, Reason.NEW),
    (PLANNED_ONLY, Reason.NEW),
    (known(S.SKIPPED, E.DUPLICATE, by_plan=True), Reason.NEW),
    (known(S.PENDING, E.MISSING), Reason.REPAIR),
    (known(S.PENDING, E.ALTERED), Reason.REPAIR),
    (known(S.COPIED), None),
    (known(S.COPIED, same_settings=False), None),
    (known(S.UNCHANGED), None),
    (known(S.UNCHANGED, same_settings=False), None),
    (known(S.FAILED, E.NOT_FOUND, 404, same_settings=False), Reason.CHANGED),
    (known(S.FAILED, E.TIMEOUT, same_settings=False), Reason.CHANGED),
    (known(S.FAILED, E.TIMEOUT), Reason.RETRY),
    (known(S.FAILED, E.UPLOAD_UNCONFIRMED), Reason.REPAIR),
    (known(S.FAILED, E.UPLOAD_UNCONFIRMED, same_settings=False), Reason.REPAIR),
    (known(S.FAILED, E.FORBIDDEN, 403), Reason.RETRY),
    (known(S.FAILED, E.INTERNAL), Reason.RETRY),
    (known(S.FAILED, E.NOT_FOUND, 404), None),
    (known(S.FAILED, E.EXISTS), None),
    (known(S.SKIPPED, E.EXISTS, same_settings=False), Reason.CHANGED),
    (known(S.SKIPPED, E.DUPLICATE, same_settings=False), None),
    (known(S.SKIPPED, E.EXISTS), None),
]


@pytest.mark.parametrize(("latest", "reason"), PLAIN)
def test_a_plain_run(latest: Latest | None, reason: Reason | None) -> None:
    """The plain lines of the table hold, and a row that a listed chunk has is not planned."""
    assert reason_to_do(latest, held=False, mode="plain") is reason
    assert reason_to_do(latest, held=True, mode="plain") is None


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"status": S.COPIED, "superseded": True}, Reason.CHANGED),
        ({"status": S.COPIED, "delta": True, "revalidate": Revalidate.HEAD}, Reason.REVALIDATE),
        ({"status": S.UNCHANGED, "delta": True, "revalidate": Revalidate.CONDITIONAL_GET}, Reason.REVALIDATE),
        ({"status": S.COPIED, "delta": True, "revalidate": Revalidate.GET, "other": True}, Reason.CHANGED),
        ({"status": S.COPIED, "delta": True, "revalidate": Revalidate.SKIP}, None),
        ({"status": S.COPIED, "delta": True, "revalidate": None, "other": True}, None),
        ({"status": S.COPIED, "delta": False, "revalidate": Revalidate.GET, "other": True}, None),
        ({"status": S.SKIPPED, "delta": True, "revalidate": Revalidate.GET, "other": True}, None),
        ({"status": S.FAILED, "error_class": E.NOT_FOUND, "delta": True, "due": True}, Reason.RETRY),
        ({"status": S.FAILED, "error_class": E.TIMEOUT, "delta": True, "due": False}, None),
        ({"status": S.FAILED, "error_class": E.UPLOAD_UNCONFIRMED, "delta": True, "due": True}, Reason.REPAIR),
        ({"status": S.FAILED, "error_class": None}, None),
    ],
)
def test_a_delta_and_rows_whose_key_was_written_by_another(facts: dict[str, Any], reason: Reason | None) -> None:
    """The lines of delta runs and of superseded rows hold."""
    values = {
        "error_class": None,
        "status_code": None,
        "by_plan": False,
        "same_settings": True,
        "this_run": False,
        **facts,
    }
    assert reason_to_do(Latest(**values), held=False, mode="plain") is reason
    assert reason_to_do(Latest(**values), held=True, mode="plain") is None


@pytest.mark.parametrize(
    ("latest", "classes", "wanted"),
    [
        (known(S.FAILED, E.NOT_FOUND, 404), (), True),
        (known(S.FAILED, E.NOT_FOUND, 404), ("not_found",), True),
        (known(S.FAILED, E.NOT_FOUND, 404), ("404", "timeout"), True),
        (known(S.FAILED, E.NOT_FOUND, 404), ("500",), False),
        (known(S.FAILED, E.TIMEOUT), ("None",), False),
        (known(S.FAILED, E.TIMEOUT), ("timeout",), True),
        (known(S.COPIED), (), False),
        (known(S.SKIPPED, E.EXISTS), ("exists",), False),
        (known(S.PENDING, E.MISSING), ("missing",), False),
        (PLANNED_ONLY, (), False),
        (None, (), False),
    ],
)
@pytest.mark.parametrize("held", [True, False])
def test_retry_failed(latest: Latest | None, classes: tuple[str, ...], wanted: bool, held: bool) -> None:
    """Failed rows of the given classes or codes are retried, whether a chunk has them or not."""
    assert reason_to_do(latest, held=held, mode="retry", classes=classes) is (Reason.RETRY if wanted else None)


@pytest.mark.parametrize(
    ("latest", "held", "reason", "in_repair"),
    [
        (None, True, Reason.REPAIR, Reason.REPAIR),
        (None, False, None, None),
        (PLANNED_ONLY, True, Reason.REPAIR, Reason.REPAIR),
        (known(S.PENDING, E.MISSING), True, Reason.REPAIR, Reason.REPAIR),
        (known(S.PENDING, E.MISSING), False, None, None),
        (known(S.FAILED, E.TIMEOUT, now=True), False, Reason.RETRY, None),
        (known(S.FAILED, E.TIMEOUT, now=True), True, Reason.RETRY, None),
        (known(S.FAILED, E.UPLOAD_UNCONFIRMED, now=True), False, Reason.REPAIR, None),
        (known(S.FAILED, E.TIMEOUT, now=False), False, None, None),
        (known(S.FAILED, E.NOT_FOUND, 404, now=False), True, Reason.RETRY, Reason.RETRY),
        (known(S.FAILED, E.UPLOAD_UNCONFIRMED, now=False), True, Reason.REPAIR, Reason.REPAIR),
        (known(S.COPIED, now=False), True, Reason.RETRY, Reason.RETRY),
        (known(S.FAILED, E.FORBIDDEN, 403, now=True), False, None, None),
        (known(S.FAILED, E.NOT_FOUND, 404, now=True), False, None, None),
        (known(S.COPIED, now=True), True, None, None),
        (known(S.SKIPPED, E.EXISTS, now=True), False, None, None),
    ],
)
def test_a_further_pass(latest: Latest | None, held: bool, reason: Reason | None, in_repair: Reason | None) -> None:
    """A pass retries this run's failures and rows whose chunk returned without them."""
    assert reason_to_do(latest, held=held, mode="pass") is reason
    assert reason_to_do(latest, held=held, mode="repair") is in_repair


@given(
    status=st.sampled_from([*Status, None]),
    error=st.sampled_from(list(ErrorClass)),
    by_plan=st.booleans(),
    same_settings=st.booleans(),
    now=st.booleans(),
    held=st.booleans(),
)
def test_a_row_is_held_planned_or_settled_and_never_two(
    status: Status | None, error: ErrorClass, by_plan: bool, same_settings: bool, now: bool, held: bool
) -> None:
    """A held row is not planned, an open row always is, and a copied row never."""
    latest = None
    if status is not None:
        latest = Latest(status, error, None, by_plan, same_settings, now)
    reason = reason_to_do(latest, held=held, mode="plain")
    if held:
        assert reason is None
    elif latest is None or by_plan or status is Status.PENDING:
        assert reason in (Reason.NEW, Reason.REPAIR)
    elif status in (Status.COPIED, Status.UNCHANGED):
        assert reason is None
    elif status is Status.FAILED and same_settings:
        assert (reason is None) == (AGAIN[error] is Again.NEVER)
    modes: tuple[Mode, ...] = ("retry", "pass", "repair")
    for mode in modes:
        lost = held and not now and mode != "retry"  # its chunk was to do it once more, and returned without it
        good = status in (Status.COPIED, Status.UNCHANGED, Status.SKIPPED)
        if latest is not None and not by_plan and good and not lost:
            assert reason_to_do(latest, held=held, mode=mode) is None


@pytest.mark.parametrize(
    ("rows", "chunk"),
    [(0, 500), (1, 500), (250_000, 500), (250_499, 500), (250_500, 501), (1_000_000, 2000), (49_999_999, 99_999),
     (50_000_000, 100_000), (10**9, 100_000)],
)  # fmt: skip
def test_auto_chunk_rows(rows: int, chunk: int) -> None:
    """The size is rows / 500, at least 500 and at most 100,000."""
    assert auto_chunk_rows(rows) == chunk


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, []),
        ({"destination": "s3://bucket/p"}, []),
        ({"name": "other", "manifest": "x.csv", "state": "y", "concurrency": 3, "chunk_rows": 7}, []),
        ({"checks": "none", "on_existing": "fail", "max_bytes": 1}, []),
        ({"key": "{id}"}, ["key"]),
        ({"destination": "s3://bucket/q/", "columns": {"id": "a"}}, ["columns", "destination.uri"]),
        ({"destination": {"uri": "s3://bucket/p/", "endpoint_url": "http://x"}}, ["destination.endpoint_url"]),
        ({"source": {"url": "https://h/{id}"}}, ["source.url"]),
    ],
)
def test_check_locations(change: dict[str, Any], names: list[str]) -> None:
    """A changed location raises UserError with each setting's name; other changes do not."""
    plan = Plan(make_job().location_digests(), 500, 1, {}, 1)
    if not names:
        check_locations(plan, make_job(**change))
        return
    with pytest.raises(UserError) as caught:
        check_locations(plan, make_job(**change))
    assert [word for word in str(caught.value).split("`") if word in make_job().location_digests()] == names


def test_which_chunks_stay() -> None:
    """Base chunks stay; retry chunks stay until done and settled, and those of the newest run also do."""
    for kind, done, run_no, settled in itertools.product(("base", "retry"), (0, 9, 10), (1, 5), (False, True)):
        chunk = ChunkRef("u", "d", 10, 0, kind, run_no, done, settled=settled)  # type: ignore[arg-type]
        assert stays_in_plan(chunk, 5) is (kind == "base" or done < 10 or run_no == 5 or not settled)


@pytest.mark.parametrize(
    ("rows", "expected", "truncated"), [(0, 0, False), (9, 10, True), (10, 10, False), (11, 10, False)]
)
def test_whether_a_list_looks_cut_off(rows: int, expected: int, truncated: bool) -> None:
    """A manifest looks truncated if it has fewer rows than expected; an older plan expects none."""
    assert looks_truncated(rows, expected) is truncated


class Files(dict[str, bytes]):
    """A read-only state in memory."""

    def read(self, name: str) -> bytes:
        if name not in self:
            raise FileNotFoundError(name)
        return self[name]


def test_a_plan_of_an_earlier_version() -> None:
    """Fields that an older plan lacks have their defaults."""
    chunk = {"uri": "c", "digest": "d", "rows": 1, "bytes": 0, "kind": "base", "run_no": 1}
    plan = {"where": {}, "chunk_rows": 500, "rows": 1, "manifest": {}, "last_run": 1, "chunks": [chunk]}
    state = Files({PLAN_FILE: encode_checked_json({"ferry_schema": SCHEMA_VERSION, **plan})})
    read = read_plan(state)
    assert read is not None
    assert (read.since_run, read.expected_rows, read.usable) == (0, 0, 0)
    assert read.chunks == [ChunkRef("c", "d", 1, 0, "base", 1, 0, "unknown", "")]
    assert read_location(
        Files({LOCATION_FILE: encode_checked_json({"location_digests": {}, "since_run": 3})})
    ) == PlanLocation({}, 3, 0)
    assert (read_plan(Files()), read_location(Files())) == (None, None)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"nonsense", encode_checked_json({}), encode_checked_json({"location_digests": 1, "since_run": 1})],
)
def test_a_damaged_plan_or_place_is_said_to_be(raw: bytes) -> None:
    """A damaged plan or location raises Damaged."""
    with pytest.raises(Damaged, match="plan"):
        read_plan(Files({PLAN_FILE: raw}))
    with pytest.raises(Damaged, match="location"):
        read_location(Files({LOCATION_FILE: raw}))


def test_hints_change_nothing_else() -> None:
    """New hints change nothing else of a chunk's reference."""
    chunk = with_hints(REF, 3, "listed", "plan/hints/a.parquet")
    assert (chunk.done, chunk.existing, chunk.digest, chunk.uri) == (3, "listed", REF.digest, REF.uri)
    assert (chunk.hints, with_hints(chunk, 3, "head").hints) == ("plan/hints/a.parquet", "")


@pytest.mark.parametrize(
    ("policy", "rows", "how"),
    [
        (OnExisting.OVERWRITE, 0, "unknown"),
        (OnExisting.OVERWRITE, 10**6, "unknown"),
        *((policy, rows, how) for policy in (OnExisting.SKIP, OnExisting.SKIP_SAME, OnExisting.FAIL)
          for rows, how in ((0, "unknown"), (1, "head"), (500, "head"), (501, "listed"))),
    ],
)  # fmt: skip
def test_how_existing_objects_are_found(policy: OnExisting, rows: int, how: str) -> None:
    """The table of how_to_find holds, and each way has a text."""
    found, words = how_to_find(policy, rows)
    assert found == how
    assert words
