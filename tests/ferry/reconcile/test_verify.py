"""Verification finds missing and altered objects, and the next run repairs them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from demo.images import make_image
from demo.origin import Origin
from demo.s3 import S3Server
from ferry.core.errors import Fatal, ObjectError, UserError
from ferry.core.memory_budget import Budget
from ferry.core.progress import Progress
from ferry.core.records import Confirmed, ErrorClass, Outcome, Reason, Status
from ferry.job.model import Job
from ferry.reconcile import beside_listing, verify
from ferry.reconcile import sample as samples
from ferry.reconcile.sample import Sample, count_expected, draw_sample, expected_rows, sample_rows
from ferry.reconcile.verify import Evidence
from ferry.state import folded_ledger, ledger, outcomes_of, row_ranges
from ferry.state.files import DirectoryState
from ferry.storage.access import Access
from ferry.storage.factory import open_store
from ferry.storage.object_info import ObjectInfo
from ferry.storage.store import Store
from tests.servers.odd_s3 import Fault, OddS3
from tests.support.helpers import (
    access,
    by_key,
    chunk_rows,
    directory_state,
    expected_objects,
    make_job,
    make_outcome,
    plan,
    run,
    stored,
    write_list,
)

pytestmark = pytest.mark.matrix

MD5, SHA = "a" * 32, "b" * 64


@pytest.mark.parametrize(
    ("ledger_says", "size", "md5", "sha256", "expected"),
    [
        ({"size": 10}, None, None, None, ErrorClass.MISSING),
        ({"size": 0}, None, None, None, ErrorClass.MISSING),
        ({"size": 10}, 11, None, None, ErrorClass.ALTERED),
        ({"size": 0}, 1, None, None, ErrorClass.ALTERED),
        ({"size": 10}, 0, None, None, ErrorClass.ALTERED),
        ({"size": 10, "md5": MD5, "sha256": SHA}, 10, MD5, SHA, None),
        ({"size": 10, "md5": MD5, "sha256": SHA}, 10, MD5, "c" * 64, ErrorClass.ALTERED),
        ({"size": 10, "md5": MD5, "sha256": SHA}, 10, "c" * 32, SHA, ErrorClass.ALTERED),
        ({"size": 10, "md5": MD5}, 10, "c" * 32, SHA, ErrorClass.ALTERED),
        ({"size": 10, "md5": MD5}, 10, None, None, None),
        ({"size": 10}, 10, MD5, SHA, None),
        ({"size": None, "md5": MD5}, 10, MD5, None, None),
        ({"size": None, "md5": MD5}, 10, "c" * 32, None, ErrorClass.ALTERED),
    ],
)
def test_the_verdict(
    ledger_says: dict[str, Any],
    size: int | None,
    md5: str | None,
    sha256: str | None,
    expected: ErrorClass | None,
) -> None:
    """The table of verdict() holds."""
    assert verify.verdict(make_outcome(1, **ledger_says), size, md5, sha256).wrong is expected


@pytest.mark.parametrize(
    ("ledger_says", "there", "expected"),
    [
        ({"sha256": SHA, "dest_etag": '"a"'}, (None, SHA, '"b"'), (None, Evidence.DIGEST)),
        ({"sha256": SHA, "dest_etag": '"a"'}, (None, "c" * 64, '"a"'), (ErrorClass.ALTERED, Evidence.DIGEST)),
        ({"dest_etag": '"a"'}, (MD5, SHA, "a"), (None, Evidence.ETAG)),
        ({"dest_etag": '"a"'}, (MD5, SHA, 'W/"a"'), (None, Evidence.ETAG)),
        ({"dest_etag": '"a"'}, (MD5, SHA, '"b"'), (ErrorClass.ALTERED, Evidence.ETAG)),
        ({"dest_etag": '"a"'}, (MD5, SHA, '"A"'), (ErrorClass.ALTERED, Evidence.ETAG)),
        ({"dest_etag": MD5.upper()}, (None, None, f'"{MD5}"'), (None, Evidence.ETAG)),
        ({"dest_etag": '"a"'}, (MD5, SHA, None), (None, Evidence.SIZE)),
        ({"dest_etag": None}, (MD5, SHA, '"a"'), (None, Evidence.SIZE)),
        ({"dest_etag": ""}, (None, None, ""), (None, Evidence.SIZE)),
    ],
)
def test_what_a_verdict_rests_on(
    ledger_says: dict[str, Any], there: tuple[str | None, str | None, str | None], expected: tuple[Any, Evidence]
) -> None:
    """A digest counts before an ETag and an ETag before the size, and the verdict names which."""
    md5, sha256, etag = there
    assert verify.verdict(make_outcome(1, size=10, **ledger_says), 10, md5, sha256, etag) == expected


def moved(folder: Path, origin: Origin, s3: S3Server, bucket: str, **given: str) -> tuple[Job, DirectoryState, Store]:
    """Returns a state and store with five copied images."""
    lines = [[origin.add(f"/{n}.jpg", make_image("jpeg", n))] for n in range(5)]
    write_list(folder / "list.csv", lines)
    job = make_job(manifest=str(folder / "list.csv"), destination=f"s3://{bucket}/p/", **given)
    state = directory_state(folder)
    run(job, state, access(s3))
    assert {o.status for o in by_key(state).values()} == {Status.COPIED}
    return job, state, open_store(job.destination.uri, access(s3), state.spool_dir)


def damage(s3: S3Server, bucket: str) -> None:
    """Deletes object 0, lengthens object 1, and changes bytes of object 2."""
    client = s3.client()
    body = make_image("jpeg", 2)
    client.delete_object(Bucket=bucket, Key="p/0.jpg")
    client.put_object(Bucket=bucket, Key="p/1.jpg", Body=make_image("jpeg", 1) + b"x")
    client.put_object(Bucket=bucket, Key="p/2.jpg", Body=body[:-1] + bytes([body[-1] ^ 1]))


def check(state: DirectoryState, store: Store, how: str, run_no: int) -> verify.Verified:
    whole = verify.Verified(0, 0, 0, 0, [])

    def results() -> Iterator[verify.Verified]:
        if how == "list":
            for outcomes, listed in beside_listing(state, store.list(), 2):
                yield verify.compare_with_listing(outcomes, listed, run_no, Progress())
            return
        for part in expected_rows(state, 2):
            yield asyncio.run(verify.read_back(store, list(outcomes_of(part)), run_no, Progress()))

    for part, result in enumerate(results()):
        verify.note_verified(state, result, run_no, part)
        whole.checked += result.checked
        whole.missing += result.missing
        whole.altered += result.altered
        whole.wrong += result.wrong
        whole.right_again += result.right_again
        whole.unproven += result.unproven
        whole.by += result.by
    return whole


@pytest.mark.parametrize("how", ["read", "list"])
def test_what_is_well_is_well(how: str, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Verifying intact objects compares each one once and writes nothing."""
    _, state, store = moved(tmp_path, origin, s3, bucket)
    result = check(state, store, how, 2)
    assert (result.checked, result.missing, result.altered, result.wrong) == (5, 0, 0, [])
    assert state.list("outcomes") == []


@pytest.mark.parametrize(
    ("how", "policy"),
    [("read", "skip-same"), ("read", "skip"), ("read", "fail"), ("list", "skip-same"), ("list", "overwrite")],
)
def test_what_is_wrong_is_found_and_repaired_by_the_next_run(
    how: str, policy: str, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Missing and altered rows become pending, and a plain run repairs them."""
    job, state, store = moved(tmp_path, origin, s3, bucket, on_existing=policy)
    damage(s3, bucket)
    result = check(state, store, how, 2)
    assert (result.checked, result.missing, result.altered) == (5, 1, 2)
    said = by_key(state)
    assert {key: (o.status, o.error_class) for key, o in said.items()} == {
        "0.jpg": (Status.PENDING, ErrorClass.MISSING),
        "1.jpg": (Status.PENDING, ErrorClass.ALTERED),
        "2.jpg": (Status.PENDING, ErrorClass.ALTERED),
        "3.jpg": (Status.COPIED, None),
        "4.jpg": (Status.COPIED, None),
    }
    asked = origin.total
    planned = run(job, state, access(s3), 3)
    assert planned.todo == {"repair": 3}
    (again,) = [ref for ref in planned.chunks if ref.kind == "retry"]
    assert {(row.reason, row.attempt) for row in chunk_rows(state, again)} == {(Reason.REPAIR, 2)}
    assert origin.total == asked + 3
    assert stored(s3, bucket) == {f"p/{n}.jpg": make_image("jpeg", n) for n in range(5)}
    assert {o.status for o in by_key(state).values()} <= {Status.COPIED, Status.UNCHANGED}
    assert check(state, store, how, 4).wrong == []


def test_a_repair_is_planned_until_it_is_done(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """After a second verification or an interrupted repair the row is planned once."""
    job, state, store = moved(tmp_path, origin, s3, bucket)
    damage(s3, bucket)
    check(state, store, "read", 2)
    assert check(state, store, "read", 3).checked == 5  # what was wrong stays wrong until a run repaired it
    assert plan(job, state, 4, server=access(s3)).todo == {"repair": 3}
    again = plan(job, state, 5, server=access(s3))
    assert (again.todo, again.pending) == ({}, 3)


@pytest.mark.slow
@pytest.mark.parametrize("digests", ["both", "md5", "none"])
@pytest.mark.parametrize("found", ["read", "list"])
def test_what_was_repaired_by_hand_is_right_again(
    found: str, digests: str, origin: Origin, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """A repaired object is right again by digest or ETag, but not by a listing."""
    job, state, store = moved(tmp_path, origin, s3, bucket)
    known: dict[str, Any] = {"both": {}, "md5": {"sha256": None}, "none": {"sha256": None, "md5": None}}[digests]
    ledger.append_outcomes(state, [o._replace(attempt=2, **known) for o in by_key(state).values()], 1, "c", 0)
    damage(s3, bucket)
    assert len(check(state, store, found, 2).wrong) == 3
    for n in range(3):
        s3.client().put_object(Bucket=bucket, Key=f"p/{n}.jpg", Body=make_image("jpeg", n))
    listed = check(state, store, "list", 3)
    assert (listed.wrong, listed.right_again, listed.unproven) == ([], [], 3)
    assert plan(job, state, 4, server=access(s3), dry=True).todo == {"repair": 3}
    read = check(state, store, "read", 5)
    assert (read.wrong, len(read.right_again), read.unproven) == ([], 3, 0)
    assert {(o.status, o.error_class) for o in by_key(state).values()} <= {
        (Status.COPIED, None), (Status.UNCHANGED, None),
    }  # fmt: skip
    assert plan(job, state, 6, server=access(s3)).todo == {}
    assert check(state, store, "list", 7).unproven == 0


def test_a_size_alone_clears_nothing() -> None:
    """An object that was found missing is not right again by its size alone."""
    wrong = make_outcome(1, Status.PENDING, key="k", size=4, error_class=ErrorClass.MISSING)
    result = asyncio.run(verify.read_back(alike(None), [wrong], 2, Progress()))
    assert (result.wrong, result.right_again, result.unproven) == ([], [], 1)


@pytest.mark.parametrize("digest", [{"sha256": SHA}, {"md5": MD5}])
def test_what_is_right_again_has_a_new_etag(digest: dict[str, str]) -> None:
    """An object that is right by its digest gets its new ETag recorded."""
    wrong = make_outcome(1, Status.PENDING, key="k", size=4, dest_etag='"a"', error_class=ErrorClass.ALTERED, **digest)
    (right,) = asyncio.run(verify.read_back(alike('"b"'), [wrong], 2, Progress())).right_again
    assert (right.status, right.dest_etag, right.confirmed) == (Status.UNCHANGED, '"b"', Confirmed.READ_BACK)


def test_what_is_right_again_still_says_which_check_it_got() -> None:
    """The message of a lesser check, which the verification's finding replaced, is back."""
    wrong = make_outcome(
        1, Status.PENDING, key="k", size=4, sha256=SHA, error_class=ErrorClass.ALTERED, message="other"
    )
    whole = asyncio.run(verify.read_back(alike(None), [wrong], 2, Progress(), lambda outcome: f"lesser: {outcome.key}"))
    assert [right.message for right in whole.right_again] == ["lesser: k"]
    assert asyncio.run(verify.read_back(alike(None), [wrong], 2, Progress())).right_again[0].message is None


def alike(etag: str | None) -> Any:
    """Returns a destination whose objects have the same bytes."""

    class Alike:
        async def digest_and_attributes(
            self, key: str, *, algorithm: str, **_: Any
        ) -> tuple[str, ObjectInfo, dict[str, str]]:
            return MD5 if algorithm == "md5" else SHA, ObjectInfo(key, 4, etag, None), {}

    return Alike()


def test_reading_takes_no_memory_for_bodies(tmp_path: Path) -> None:
    """A large object is read in pieces, and is neither in memory nor on disk as a whole."""
    (tmp_path / "new").mkdir()
    data = bytes(200 << 20)
    (tmp_path / "new" / "k").write_bytes(data)
    budget = Budget()
    store = open_store(f"file://{tmp_path}/new/", Access(), tmp_path / "spool", budget=budget)
    said = make_outcome(1, key="k", size=len(data), sha256=hashlib.sha256(data).hexdigest())
    budget.memory.resize(0)
    budget.files.resize(0)
    result = asyncio.run(asyncio.wait_for(verify.read_back(store, [said], 2, Progress()), 60))
    assert (result.checked, result.wrong, (tmp_path / "spool").exists()) == (1, [], False)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [8, 1_000_000])
def test_parts_cover_every_row_once(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row that should have an object is in exactly one part, and each part but the last is full."""
    monkeypatch.setattr(samples, "row_ranges", partial(row_ranges, at_once=at_once))
    state = directory_state(tmp_path)
    lines = [[f"https://img.example/{n}.jpg"] for n in range(50)]
    write_list(tmp_path / "list.csv", lines)
    job = make_job(manifest=str(tmp_path / "list.csv"))
    (ref,) = plan(job, state).chunks
    rows = chunk_rows(state, ref)
    outcomes = [make_outcome(row.row_id, Status.COPIED if n % 3 else Status.FAILED) for n, row in enumerate(rows)]
    ledger.append_outcomes(state, [*outcomes, make_outcome("f" * 64)], 1, "c", 0)
    wanted = sorted(o.row_id for o in outcomes if o.status is Status.COPIED)
    for rows_each in (1, 7, 33, 1000):
        parts = list(expected_rows(state, rows_each))
        assert sorted(row_id for part in parts for row_id in part["row_id"].to_pylist()) == wanted
        assert {part.num_rows for part in parts[:-1]} <= {rows_each}
        assert len(parts) == -(-len(wanted) // rows_each)


def test_the_ledger_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a verification notes of one part, and a fold of it, change nothing about the next parts."""
    monkeypatch.setattr(samples, "row_ranges", partial(row_ranges, at_once=8))
    opened = Mock(side_effect=folded_ledger)
    monkeypatch.setattr(samples, "folded_ledger", opened)
    state = directory_state(tmp_path)
    write_list(tmp_path / "list.csv", [[f"https://img.example/{n}.jpg"] for n in range(50)])
    (ref,) = plan(make_job(manifest=str(tmp_path / "list.csv")), state).chunks
    outcomes = [make_outcome(row.row_id, Status.COPIED) for row in chunk_rows(state, ref)]
    ledger.append_outcomes(state, outcomes, 1, "c", 0)
    found: list[str] = []
    for number, part in enumerate(expected_rows(state, 10)):
        found += part["row_id"].to_pylist()
        failed = [outcome._replace(status=Status.FAILED, attempt=9) for outcome in outcomes]
        ledger.append_outcomes(state, failed, 2, "d", number)
        ledger.compact_ledger(state, 2)
    assert sorted(found) == sorted(outcome.row_id for outcome in outcomes)
    assert opened.call_count == 1


@pytest.mark.parametrize(
    ("sample", "rows"),
    [
        ("2%", 5), ("0.1%", 1), ("100%", 250), (20, 20), ("20", 20), (1000, 250),
        *((wrong, None) for wrong in ("0%", "101%", "-1", "1.5", "some", "", 0, True, "1 2")),
    ],
)  # fmt: skip
def test_how_large_a_sample_is(sample: str | int, rows: int | None) -> None:
    """The table of sample_rows() holds."""
    if rows is None:
        with pytest.raises(UserError, match="neither a share"):
            sample_rows(sample, 250)
    else:
        assert sample_rows(sample, 250) == rows


def sampled(state: DirectoryState, sample: Sample, rows_each: int = 60) -> list[str]:
    found = [row_id for part in expected_rows(state, rows_each, sample) for row_id in part["row_id"].to_pylist()]
    assert len(found) == len(set(found)) == count_expected(state, sample)
    return sorted(found)


@pytest.mark.slow
def test_a_sample_is_drawn(tmp_path: Path) -> None:
    """A sample has the requested size, is the same for the same seed, and differs without one."""
    state = directory_state(tmp_path)
    write_list(tmp_path / "list.csv", [[f"https://img.example/{n}.jpg"] for n in range(200)])
    (ref,) = plan(make_job(manifest=str(tmp_path / "list.csv")), state).chunks
    rows = chunk_rows(state, ref)
    outcomes = [make_outcome(row.row_id, Status.COPIED if n % 4 else Status.FAILED) for n, row in enumerate(rows)]
    ledger.append_outcomes(state, outcomes, 1, "c", 0)
    there = {o.row_id for o in outcomes if o.status is Status.COPIED}
    for asked, expected in (("10%", 15), (40, 40), ("100%", 150), (999, 150)):
        sample = draw_sample(state, asked, 7)
        assert (sample.seed, sample.of) == (7, 150)
        first = sampled(state, sample)
        assert len(first) == expected
        assert set(first) <= there
        assert sampled(state, draw_sample(state, asked, 7), 25) == first
    drawn = [sampled(state, draw_sample(state, "60%"), 200) for _ in range(5)]
    assert len(set(map(tuple, drawn))) == 5
    assert len(set().union(*drawn)) > 140, "five weeks of 60% read nearly all: 1 - 0.4 ** 5"


def test_a_sample_of_nothing(tmp_path: Path) -> None:
    """A sample of a destination without objects is empty."""
    state = directory_state(tmp_path)
    write_list(tmp_path / "list.csv", [["https://img.example/1.jpg"]])
    plan(make_job(manifest=str(tmp_path / "list.csv")), state)
    assert sampled(state, draw_sample(state, "1%")) == []


def outcome(data: bytes, etag: str | None) -> Outcome:
    md5 = hashlib.md5(data).hexdigest()
    return make_outcome(1, key="k", size=len(data), md5=md5, sha256=SHA, dest_etag=etag)


@pytest.mark.parametrize(
    ("written", "now", "altered"),
    [
        ("md5", "md5", False),
        ("md5", "other", True),
        ("md5", "composite", True),
        ("kms", "kms", False),
        ("kms", "other", True),
        ("kms", "md5", False),
        ("composite", "md5", False),
        (None, "md5", False),
        (None, "other", False),
    ],
)
def test_the_etag_is_that_of_the_upload(written: str | None, now: str, altered: bool) -> None:
    """A changed ETag is reported with both values, unless it equals the MD5 in the ledger."""
    etags = {
        "md5": hashlib.md5(b"data").hexdigest(), "other": "c" * 32, "kms": "d" * 32,
        "composite": "e" * 32 + "-2", None: None,
    }  # fmt: skip
    said = outcome(b"data", etags[written])
    result = verify.compare_with_listing([said], {"k": ObjectInfo("k", 4, etags[now], None)}, 2, Progress())
    assert result.altered == altered
    if altered:
        (wrong,) = result.wrong
        assert str(etags[now]) in str(wrong.message)
        assert str(etags[written]) in str(wrong.message)


def test_a_wrong_outcome_keeps_what_the_row_is() -> None:
    """An outcome of a wrong object keeps the row's key, digests and attempt."""
    said = make_outcome(1, attempt=3, md5=MD5, sha256=SHA, chunk="c")
    (wrong,) = verify.compare_with_listing([said], {}, 9, Progress()).wrong
    assert wrong == said._replace(
        status=Status.PENDING, error_class=ErrorClass.MISSING, message=wrong.message, retryable=True,
        started_at=wrong.started_at, recorded_at=wrong.recorded_at, run_no=9, chunk="",
    )  # fmt: skip


def test_refused_credentials_make_no_row_missing(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A destination that refuses the credentials raises Fatal, and no object counts as missing."""
    job, state, _ = moved(tmp_path, origin, s3, bucket)
    unknown = replace(access(s3), keys=("AKIAUNKNOWN", "x", None))
    store = open_store(job.destination.uri, unknown, state.spool_dir)
    with pytest.raises(Fatal):
        asyncio.run(verify.read_back(store, expected_objects(state), 2, Progress()))


class PartlyBroken:
    """A destination that answers 500 for some objects."""

    def __init__(self, store: Store, broken: Callable[[str], bool]) -> None:
        self.store, self.broken = store, broken

    async def digest_and_attributes(self, key: str, **how: Any) -> Any:
        if self.broken(key):
            raise ObjectError(ErrorClass.STORE_ERROR, "the destination answered 500", status_code=500)
        return await self.store.digest_and_attributes(key, **how)


def test_an_object_that_cannot_be_read_is_counted(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreadable object is counted, its row stays copied, and the others are read."""
    monkeypatch.setattr(verify, "BETWEEN_TRIES_S", 0)
    _, state, store = moved(tmp_path, origin, s3, bucket)
    damage(s3, bucket)
    flaky: Any = PartlyBroken(store, lambda key: key == "3.jpg")
    result = asyncio.run(verify.read_back(flaky, expected_objects(state), 2, Progress()))
    assert (result.checked, result.missing, result.altered, result.unread) == (4, 1, 2, 1)
    assert result.unread_first.startswith("3.jpg: ")
    assert "3.jpg" not in {outcome.key for outcome in result.wrong}


def test_a_destination_that_answers_nothing_ends_the_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no object can be read, the verification ends with Fatal after a limited number."""
    monkeypatch.setattr(verify, "BETWEEN_TRIES_S", 0)
    asked: list[str] = []

    def broken(key: str) -> bool:
        asked.append(key)
        return True

    dead: Any = PartlyBroken(open_store(f"file://{tmp_path}", Access(), tmp_path), broken)
    with pytest.raises(Fatal, match="50 objects in a row"):
        asyncio.run(verify.read_back(dead, [make_outcome(n, key=f"{n}") for n in range(5_000)], 2, Progress()))
    assert len(set(asked)) < 50 + verify.AT_ONCE


def test_a_paused_verification_reads_nothing(
    origin: Origin, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A paused verification reads nothing until it is resumed."""
    monkeypatch.setattr(verify, "PAUSED_S", 0.01)
    _, state, store = moved(tmp_path, origin, s3, bucket)
    outcomes, progress = expected_objects(state), Progress()
    progress.pause(True)

    async def pause_and_go_on() -> verify.Verified:
        reading = asyncio.create_task(verify.read_back(store, outcomes, 2, progress))
        await asyncio.sleep(0.3)
        assert progress.snapshot().done == 0
        progress.pause(False)
        return await reading

    assert asyncio.run(pause_and_go_on()).checked == len(outcomes)


def test_in_a_directory(origin: Origin, tmp_path: Path) -> None:
    """A missing file is one missing object, and not a missing destination."""
    write_list(tmp_path / "list.csv", [[origin.add(f"/{n}.jpg", make_image("jpeg", n))] for n in range(3)])
    job = make_job(manifest=str(tmp_path / "list.csv"), destination=f"file://{tmp_path}/new/")
    state = directory_state(tmp_path)
    run(job, state, Access())
    (tmp_path / "new" / "1.jpg").unlink()
    store = open_store(job.destination.uri, Access(), state.spool_dir)
    result = check(state, store, "read", 2)
    assert (result.checked, result.missing, result.altered, result.unread) == (3, 1, 0, 0)


@pytest.mark.parametrize(
    ("change", "altered"),
    [
        ({}, False),
        ({"CacheControl": "no-cache"}, True),
        ({"Metadata": {"sku": "B"}}, True),
        ({"Metadata": {}}, True),
        ({"Tagging": "team=other"}, True),
        ({"Tagging": ""}, True),
        ({"ContentType": "image/png"}, True),
    ],
)
def test_altered_attributes(change: dict[str, Any], altered: bool, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Equal bytes with other headers, metadata or tags are altered, and the next run writes them again."""
    given: dict[str, Any] = {
        "ContentType": "image/jpeg", "CacheControl": "max-age=60", "Metadata": {"sku": "A 1"}, "Tagging": "team=shop",
    }  # fmt: skip
    client, image = s3.client(), make_image("jpeg", 1)
    client.put_object(Bucket=bucket, Key="old/a.jpg", Body=image, **given)
    client.put_object(Bucket=bucket, Key="old/plain.jpg", Body=make_image("jpeg", 2))
    job = make_job(manifest=f"s3://{bucket}/old/", source={}, destination=f"s3://{bucket}/p/")
    state = directory_state(tmp_path)
    run(job, state, access(s3))
    client.put_object(Bucket=bucket, Key="p/a.jpg", Body=image, **{**given, **change})
    store = open_store(job.destination.uri, access(s3), state.spool_dir)
    result = check(state, store, "read", 2)
    assert (result.checked, result.altered) == (2, int(altered))
    if not altered:
        return
    assert result.by[Evidence.ATTRIBUTES] == 1
    assert "other headers, metadata or tags than Ferry wrote" in (result.wrong[0].message or "")
    assert check(state, store, "list", 3).unproven == 1, "a listing shows no attributes"
    run(job, state, access(s3), 4)
    assert by_key(state)["a.jpg"].status is Status.COPIED
    assert check(state, store, "read", 5).altered == 0


def test_tags_that_are_not_shown_are_not_compared(tmp_path: Path) -> None:
    """Without the right to see tags S3 does not say that there are some. So nothing is altered, and one is asked."""
    with OddS3() as server:
        for n in range(3):
            headers = {"Content-Type": "image/jpeg", "x-amz-tagging": "a=1"}
            server.put("b", f"old/{n}.jpg", make_image("jpeg", n), headers)
        job = make_job(manifest="s3://b/old/", source={}, destination="s3://b/p/")
        state = directory_state(tmp_path)
        run(job, state, access(server))
        asked = server.requests["GetObjectTagging"]
        server.shows_tags = False
        fault = Fault("status", ("GetObjectTagging",), status=403, code="AccessDenied")
        server.faults.append(fault)
        store = open_store(job.destination.uri, access(server), state.spool_dir)
        outcomes = [outcome for _, outcome in sorted(by_key(state).items())]
        assert all(outcome.attributes_sha256 for outcome in outcomes)
        result = asyncio.run(verify.read_back(store, outcomes, 2, Progress()))
        assert (result.checked, result.altered) == (3, 0)
        assert server.requests["GetObjectTagging"] - asked <= 3
        server.faults.clear()
        store = open_store(job.destination.uri, access(server), state.spool_dir)
        assert asyncio.run(verify.read_back(store, outcomes, 2, Progress())).altered == 0, "asked, they are the same"


def test_attributes_that_are_not_known_are_not_compared(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Of an object that was there, and of one that the server copied, the ledger has no digest of attributes."""
    client, image = s3.client(), make_image("jpeg", 1)
    client.put_object(Bucket=bucket, Key="old/a.jpg", Body=image, CacheControl="max-age=60")
    client.put_object(Bucket=bucket, Key="p/a.jpg", Body=image)
    job = make_job(manifest=f"s3://{bucket}/old/", source={}, destination=f"s3://{bucket}/p/")
    state = directory_state(tmp_path)
    run(job, state, access(s3))
    assert by_key(state)["a.jpg"].attributes_sha256 is None
    assert check(state, open_store(job.destination.uri, access(s3), state.spool_dir), "read", 2).altered == 0


@pytest.mark.parametrize(
    ("ledger_says", "size", "expected"),
    [
        ({"sha256": SHA}, 10, (ErrorClass.ALTERED, Evidence.ATTRIBUTES)),
        ({"sha256": "c" * 64}, 10, (ErrorClass.ALTERED, Evidence.DIGEST)),
        ({}, 10, (ErrorClass.ALTERED, Evidence.ATTRIBUTES)),
        ({}, None, (ErrorClass.MISSING, Evidence.SIZE)),
    ],
)
def test_other_attributes_count_last(ledger_says: dict[str, Any], size: int | None, expected: Any) -> None:
    """Bytes that are wrong are the reason, whatever the attributes are."""
    outcome = make_outcome(1, size=10, **ledger_says)
    assert verify.verdict(outcome, size, None, SHA, same_attributes=False) == expected
