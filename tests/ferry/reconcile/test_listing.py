"""A listing is compared with a ledger of any length, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ferry.core.records import ErrorClass, Outcome, Status
from ferry.reconcile import beside_listing, count_expected, listing
from ferry.state.ledger import append_outcomes, compact_ledger
from ferry.storage.object_info import ObjectInfo
from tests.support.helpers import by_key, chunk_rows, directory_state, make_job, make_outcome, plan, write_list


@pytest.mark.parametrize("at_once", [7, 250_000])
def test_each_row_once_beside_its_object(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row that should have an object is yielded once, with what is listed under its key, whatever is written
    meanwhile. Rows that failed, and those that the manifest no longer has, are not."""
    monkeypatch.setattr(listing, "ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(listing, "LINES", 3)
    state = directory_state(tmp_path)
    write_list(tmp_path / "list.csv", [[f"https://img.example/{n}.jpg"] for n in range(40)])
    job = make_job(manifest=str(tmp_path / "list.csv"), destination=f"file://{tmp_path}/out/")
    planned = plan(job, state)
    done = [row for ref in planned.chunks for row in chunk_rows(state, ref)]
    outcomes = [make_outcome(row.row_id, key=row.key, dest_etag="e") for row in done]
    outcomes[0] = outcomes[0]._replace(status=Status.FAILED, error_class=ErrorClass.NOT_FOUND)
    outcomes[1] = outcomes[1]._replace(status=Status.PENDING, error_class=ErrorClass.MISSING)
    append_outcomes(state, [*outcomes, make_outcome("gone", key="gone.jpg")], 1, "c", 0)
    compact_ledger(state, 1)
    expected = {outcome.key: outcome for outcome in outcomes[1:]}
    there = {key: ObjectInfo(key, n, f"etag-{n}", None, f"md5-{n}") for n, key in enumerate(sorted(expected)) if n % 3}
    assert count_expected(state) == len(expected) == 39

    def pages() -> Iterator[list[ObjectInfo]]:
        yield [*there.values(), ObjectInfo("other.jpg", 1, None, None)]

    found: list[Outcome] = []
    listed: dict[str, ObjectInfo] = {}
    for part, (rows, objects) in enumerate(beside_listing(state, pages(), 4)):
        assert len(rows) <= 4
        assert set(objects) <= {row.key for row in rows}
        found += rows
        listed |= objects
        append_outcomes(state, [row._replace(status=Status.FAILED, run_no=2) for row in rows], 2, "verify", part)
    assert len(found) == 39
    assert {row.key: row for row in found} == expected
    assert listed == there
    assert by_key(state)[found[0].key].status is Status.FAILED
