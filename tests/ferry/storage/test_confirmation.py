"""Confirmation of uploads by digest, by reading back or by size, in whole jobs against unusual stores."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from demo.images import make_image
from demo.origin import Origin, Trouble
from ferry.core.errors import Fatal, ObjectError
from ferry.core.records import Confirmed, ErrorClass, Outcome, Status
from ferry.job.model import Job
from ferry.state.counts import outcome_table
from ferry.state.files import DirectoryState
from ferry.storage import store as store_module
from ferry.storage.access import Access
from ferry.storage.confirmation import Comparison, ReadBackPolicy, compare_digests, confirm
from ferry.storage.factory import open_store
from ferry.storage.object_info import Sent
from ferry.storage.store import Store
from tests.servers import odd_s3
from tests.servers.odd_s3 import Fault, OddS3
from tests.support.helpers import access, by_key, counts_of, directory_state, make_body, make_job, run, write_list

pytestmark = pytest.mark.matrix

ROWS = 80
MD5, SHA = "a" * 32, "b" * 64


def job_for(
    origin: Origin, server: OddS3, folder: Path, rows: int = ROWS, **given: Any
) -> tuple[Job, dict[str, bytes]]:
    """Returns a job of small images from the origin to an empty bucket of the server, and the expected bodies."""
    server.make_bucket("bucket")
    bodies = {f"{n}.jpg": make_image("jpeg", n) for n in range(ROWS)}
    lines = [[origin.add(f"/{key}", body)] for key, body in bodies.items()]
    write_list(folder / "list.csv", lines)
    return make_job(manifest=str(folder / "list.csv"), concurrency=4, **given), bodies


def moved(
    origin: Origin, server: OddS3, folder: Path, **given: Any
) -> tuple[dict[str, Outcome], set[str], DirectoryState]:
    """Runs the job. Returns the outcomes by key, the keys whose stored bytes are wrong, and the state."""
    job, bodies = job_for(origin, server, folder, **given)
    state = directory_state(folder)
    run(job, state, access(server))
    there = server.stored("bucket", "p/")
    return by_key(state), {key for key, body in bodies.items() if there.get(f"p/{key}") != body}, state


@pytest.mark.parametrize("checksums", [False, True], ids=["", "checksums"])
@pytest.mark.parametrize("etags", ["md5", "upper", "kms", "opaque", "none"])
def test_no_altered_object_is_called_confirmed(etags: Any, checksums: bool, origin: Origin, tmp_path: Path) -> None:
    """Altered bodies are never confirmed by digest or by reading back, only by size."""
    fault = Fault("alter", ("PutObject",), after=30, probability=0.3)
    with OddS3(etags=etags, checksums=checksums, faults=[fault], seed=5) as server:
        outcomes, wrong, _ = moved(origin, server, tmp_path)
    assert fault.struck > 5
    copied = {key: o.confirmed for key, o in outcomes.items() if o.status is Status.COPIED}
    failed = {key: o.error_class for key, o in outcomes.items() if o.status is Status.FAILED}
    assert len(copied) + len(failed) == ROWS
    by_size = {key for key, how in copied.items() if how is Confirmed.SIZE}
    assert wrong & set(copied) <= by_size
    assert set(failed.values()) <= {ErrorClass.UPLOAD_UNCONFIRMED}
    if checksums or etags in ("md5", "upper"):  # the store returns a digest
        assert not by_size
        assert wrong == set(failed)
    else:
        assert len(by_size) > 15
        assert Confirmed.DIGEST not in copied.values()


@pytest.mark.parametrize("etags", ["md5", "kms", "opaque", "none"])
@pytest.mark.parametrize("answer", ["error in 200", "a page"])
def test_a_put_that_was_not_carried_out(
    answer: str, etags: Any, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PUT that was answered 200 but stored nothing is noticed, and the object is sent again."""
    if answer == "a page":
        if etags == "none":
            pytest.skip("such a store's responses never have an ETag")
        monkeypatch.setattr(odd_s3, "_error", lambda *_: web.Response(text="<html>Welcome</html>"))
    fault = Fault("error in 200", ("PutObject",), after=30, times=20)
    with OddS3(etags=etags, faults=[fault]) as server:
        for n in range(ROWS):
            server.put("bucket", f"p/{n}.jpg", make_image("jpeg", n)[:-1] + b"x")
        outcomes, wrong, _ = moved(origin, server, tmp_path, on_existing="overwrite", retries={"attempts": 9})
    assert fault.struck == 20
    assert {o.status for o in outcomes.values()} == {Status.COPIED}
    assert wrong == set()


def test_objects_that_another_encryption_wrote(origin: Origin, tmp_path: Path) -> None:
    """Equal objects with ETags of SSE-KMS are unchanged, even if new objects have MD5 ETags."""
    with OddS3(etags="kms") as server:
        for n in range(60, ROWS):
            server.put("bucket", f"p/{n}.jpg", make_image("jpeg", n))
        server.etags = "md5"
        outcomes, wrong, _ = moved(origin, server, tmp_path, on_existing="fail")
    assert Counter(str(o.status) for o in outcomes.values()) == {"copied": 60, "unchanged": 20}
    assert wrong == set()


@pytest.mark.parametrize("where", ["bucket", "directory"])
def test_reading_back_moves(where: str, tmp_path: Path) -> None:
    """Each block that is read back counts as progress, so that a long read does not end the run."""
    data, pieces = bytes(5 << 20), []
    body = make_body(data, tmp_path)
    body.on_progress = lambda: pieces.append(1)

    async def go(uri: str, access: Access) -> None:
        store = open_store(uri, access, tmp_path, create=True)
        try:
            await store.put("k", body, {})
            before = len(pieces)
            assert (await confirm(store, store.read_back_policy, "k", body, Sent(None))).method is Confirmed.READ_BACK
            assert len(pieces) - before >= 5
        finally:
            await store.close()

    with OddS3(etags="opaque") as server:
        server.make_bucket("bucket")
        uri = "s3://bucket/p/" if where == "bucket" else f"file://{tmp_path}/new/"
        asyncio.run(go(uri, access(server)))


@pytest.mark.parametrize("policy", ["skip-same", "skip", "fail", "overwrite"])
@pytest.mark.parametrize("etags", ["md5", "kms"])
def test_an_upload_whose_answer_was_lost_is_a_copy(etags: Any, policy: str, origin: Origin, tmp_path: Path) -> None:
    """If the response to an upload is lost, the row is copied, since this run wrote the object."""
    fault = Fault("lost answer", ("PutObject",), after=3, times=5)
    retries = {"attempts": 3, "backoff_s": 0.01, "max_backoff_s": 1.0}
    with OddS3(etags=etags, faults=[fault]) as server:
        outcomes, wrong, _ = moved(origin, server, tmp_path, on_existing=policy, retries=retries)
    assert fault.struck == 5
    assert not wrong
    assert {outcome.status for outcome in outcomes.values()} == {Status.COPIED}
    assert all(outcome.confirmed is not None for outcome in outcomes.values())


def test_what_was_there_before_is_unchanged(origin: Origin, tmp_path: Path) -> None:
    """An equal object from before the run is unchanged, with the method that confirmed it."""
    stores: list[tuple[Any, Confirmed]] = [("md5", Confirmed.DIGEST), ("kms", Confirmed.READ_BACK)]
    for etags, how in stores:
        with OddS3(etags=etags) as server:
            _, bodies = job_for(origin, server, tmp_path)
            for key, body in bodies.items():
                server.put("bucket", f"p/{key}", body)
            folder = tmp_path / etags
            folder.mkdir()
            outcomes, _, _ = moved(origin, server, folder)
            assert {(o.status, o.confirmed) for o in outcomes.values()} == {(Status.UNCHANGED, how)}
            assert server.requests["PutObject"] == 0


@pytest.mark.parametrize("status", [400, 501])
def test_a_store_that_refuses_the_checksum_is_asked_without_it(status: int, origin: Origin, tmp_path: Path) -> None:
    """If a store refuses the checksum header, uploads omit it and are confirmed by their ETags."""
    with OddS3(checksums=status) as server:
        outcomes, wrong, _ = moved(origin, server, tmp_path)
        puts = server.requests["PutObject"]
    assert not wrong
    assert {(o.status, o.confirmed) for o in outcomes.values()} == {(Status.COPIED, Confirmed.DIGEST)}
    assert ROWS < puts <= ROWS + 4


def test_an_error_of_a_store_that_takes_checksums_is_not_the_checksums(origin: Origin, tmp_path: Path) -> None:
    """After an upload succeeds, a 400 is retried, and later objects keep their checksum."""
    fault = Fault("status", ("PutObject",), after=20, times=1, status=400)
    with OddS3(etags="kms", checksums=True, faults=[fault]) as server:
        outcomes, _, _ = moved(origin, server, tmp_path)
        assert server.requests["PutObject"] == ROWS + 1
    assert {(o.status, o.confirmed) for o in outcomes.values()} == {(Status.COPIED, Confirmed.DIGEST)}


LARGE = 9 * 1024 * 1024


def in_parts(
    origin: Origin, server: OddS3, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Outcome], set[str]]:
    """Transfers three bodies of two parts each. Returns outcomes and wrong keys as :func:`moved` does."""
    monkeypatch.setattr(store_module, "ONE_PUT_BYTES", 1024 * 1024)
    server.make_bucket("bucket")
    bodies = {f"{n}.bin": bytes([n]) * LARGE for n in range(3)}
    write_list(folder / "list.csv", [[origin.add(f"/{key}", body)] for key, body in bodies.items()])
    state = directory_state(folder)
    run(make_job(manifest=str(folder / "list.csv"), checks="length"), state, access(server))
    assert server.requests["UploadPart"] >= 6
    there = server.stored("bucket", "p/")
    return by_key(state), {key for key, body in bodies.items() if there.get(f"p/{key}") != body}


@pytest.mark.parametrize("etags", ["md5", "upper", "kms", "opaque"])
def test_a_part_that_was_altered_is_found(
    etags: Any, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A composite ETag that does not match the parts causes a read back, which finds an altered part."""
    fault = Fault("alter", ("UploadPart",), key="1.bin")
    with OddS3(etags=etags, faults=[fault]) as server:
        outcomes, wrong = in_parts(origin, server, tmp_path, monkeypatch)
    assert fault.struck
    assert wrong == {"1.bin"}
    assert (outcomes["1.bin"].status, outcomes["1.bin"].error_class) == (Status.FAILED, ErrorClass.UPLOAD_UNCONFIRMED)
    how = Confirmed.DIGEST if etags in ("md5", "upper") else Confirmed.READ_BACK
    assert {outcomes[key].confirmed for key in ("0.bin", "2.bin")} == {how}


@pytest.mark.parametrize(
    ("sent", "parts", "expected"),
    [
        (Sent("x", SHA), None, Comparison.EQUAL),
        (Sent(MD5, "c" * 64), None, Comparison.DIFFERENT),
        (Sent(MD5), None, Comparison.EQUAL),
        (Sent(f'"{MD5.upper()}"'), None, Comparison.EQUAL),
        (Sent("c" * 32), None, Comparison.MAYBE_DIFFERENT),
        (Sent("opaque"), None, Comparison.UNKNOWN),
        (Sent(None), None, Comparison.UNKNOWN),
        (Sent(f'"{MD5}-2"', in_parts=True), f"{MD5}-2", Comparison.EQUAL),
        (Sent(f"{MD5.upper()}-2", in_parts=True), f"{MD5}-2", Comparison.EQUAL),
        (Sent(f"{MD5}-3", in_parts=True), f"{MD5}-2", Comparison.DIFFERENT),
        (Sent(MD5, in_parts=True), f"{MD5}-2", Comparison.DIFFERENT),
        (Sent("opaque", in_parts=True), f"{MD5}-2", Comparison.DIFFERENT),
        (Sent(None, in_parts=True), None, Comparison.DIFFERENT),
    ],
)
def test_what_an_answer_tells(sent: Sent, parts: str | None, expected: Comparison) -> None:
    """compare_digests() follows the table in its docstring."""
    assert compare_digests(sent, MD5, SHA, parts) is expected


def test_what_is_read_back() -> None:
    """must_read_back() follows its table, and chooses the same one in twenty objects each time."""
    keys = [f"i/{n}.jpg" for n in range(20_000)]
    trust = ReadBackPolicy()
    assert all(trust.must_read_back(what, "k") for what in Comparison)
    trust.matches = 7
    assert trust.must_read_back(Comparison.UNKNOWN, "k")
    trust.matches = 8
    drawn = [key for key in keys if trust.must_read_back(Comparison.UNKNOWN, key)]
    assert len(drawn) == pytest.approx(1000, abs=40)
    assert drawn == [key for key in keys if trust.must_read_back(Comparison.MAYBE_DIFFERENT, key)]
    assert all(trust.must_read_back(Comparison.DIFFERENT, key) for key in keys)
    trust.etags_are_md5 = True
    assert all(trust.must_read_back(Comparison.MAYBE_DIFFERENT, key) for key in keys)
    assert drawn == [key for key in keys if trust.must_read_back(Comparison.UNKNOWN, key)]
    trust.mismatch_found = True
    assert all(trust.must_read_back(Comparison.UNKNOWN, key) for key in keys)


def test_a_store_that_gave_md5s_once_is_read_back_where_it_gives_others(tmp_path: Path) -> None:
    """Once an ETag was an MD5, each ETag like another MD5 causes a read back."""

    async def how(store: Store, number: int) -> Confirmed:
        body = make_body(make_image("jpeg", number), tmp_path)
        sent = await store.put(f"{number}.jpg", body, {})
        return (await store.confirm(f"{number}.jpg", body, sent)).method

    async def go(server: OddS3) -> None:
        store = open_store("s3://bucket/p/", access(server), tmp_path)
        ends: list[list[Confirmed]] = []
        stages: list[tuple[Any, int]] = [("kms", 40), ("md5", 1), ("kms", 40)]
        for server.etags, count_ in stages:
            ends.append([await how(store, 100 * len(ends) + number) for number in range(count_)])
        await store.close()
        assert Confirmed.SIZE in ends[0]
        assert ends[1] == [Confirmed.DIGEST]
        assert set(ends[2]) == {Confirmed.READ_BACK}

    with OddS3() as server:
        server.make_bucket("bucket")
        asyncio.run(go(server))


@pytest.mark.parametrize("etags", ["opaque", "kms"])
@pytest.mark.parametrize(
    ("instead", "by_size", "why", "wrong"),
    [
        (None, False, "does not have the object", False),
        (b"other bytes.", False, "bytes differ", True),
        (b"short", False, "bytes differ", True),
        (b"far more than was sent", False, "bytes differ", True),
        (None, True, "does not have the object", False),
        (b"short", True, "has 5 bytes where 12 were sent", False),
        (b"far more than was sent", True, "has 22 bytes where 12 were sent", False),
    ],
)
def test_what_is_found_in_place_of_the_object(
    instead: bytes | None, by_size: bool, why: str, wrong: bool, etags: Any, tmp_path: Path
) -> None:
    """An upload is not confirmed if the object is missing or has other bytes; store errors are raised unchanged."""

    async def go(server: OddS3) -> None:
        store = open_store("s3://bucket/p/", access(server), tmp_path)
        store.read_back_policy.matches = 8 if by_size else 0
        key = next(
            key
            for key in (f"{n}.bin" for n in range(99))
            if store.read_back_policy.must_read_back(Comparison.UNKNOWN, key) is not by_size
        )
        body = make_body(b"twelve bytes", tmp_path)
        sent = await store.put(key, body, {})
        if instead is None:
            del server.objects["bucket"][f"p/{key}"]
        else:
            server.put("bucket", f"p/{key}", instead)
        with pytest.raises(ObjectError, match=why) as caught:
            await store.confirm(key, body, sent)
        assert caught.value.error_class is ErrorClass.UPLOAD_UNCONFIRMED
        assert store.read_back_policy.mismatch_found is wrong
        server.faults = [Fault("status", ("GetObject", "HeadObject"), status=403, code="AccessDenied")]
        with pytest.raises((ObjectError, Fatal), match="403"):
            await store.confirm(key, body, sent)
        await store.close()

    with OddS3(etags=etags) as server:
        server.make_bucket("bucket")
        asyncio.run(go(server))


@pytest.mark.parametrize(("shown", "how"), [(f"{MD5}-2", Confirmed.DIGEST), ("opaque", Confirmed.READ_BACK)])
def test_an_upload_in_parts_whose_etag_only_a_head_shows(shown: str, how: Confirmed, tmp_path: Path) -> None:
    """A multipart upload without an ETag in the response is confirmed by the ETag of a HEAD (Ceph's RGW)."""

    async def go(server: OddS3) -> None:
        store = open_store("s3://bucket/p/", access(server), tmp_path)
        body = make_body(bytes(LARGE), tmp_path)
        server.put("bucket", "p/k.bin", bytes(LARGE))
        server.objects["bucket"]["p/k.bin"].etag = shown
        proof = await store.confirm("k.bin", body, Sent(None, in_parts=True, parts_etag=f"{MD5}-2"))
        assert (proof.method, (proof.etag or "").strip('"')) == (how, shown)
        assert server.requests["HeadObject"] == 1
        await store.close()

    with OddS3() as server:
        asyncio.run(go(server))


def test_an_alteration_that_begins_late_is_found(origin: Origin, tmp_path: Path) -> None:
    """Alterations that begin late are found by the sample, and the objects before them count as by size."""
    fault = Fault("alter", ("PutObject",), after=40)
    with OddS3(etags="opaque", faults=[fault]) as server:
        outcomes, wrong, state = moved(origin, server, tmp_path)
    by_size = {key for key, outcome in outcomes.items() if outcome.confirmed is Confirmed.SIZE}
    lost = {key for key in wrong if outcomes[key].status is Status.COPIED}
    assert lost <= by_size
    assert sum(o.error_class is ErrorClass.UPLOAD_UNCONFIRMED for o in outcomes.values()) >= 5
    counts = counts_of(state)
    assert counts.by_size == {"copied": len(by_size)}
    assert ("copied", "uploaded, confirmed by size alone", len(by_size)) in outcome_table(counts.as_dict())
    assert sum(rows for _, _, rows in outcome_table(counts.as_dict())) == ROWS


def test_how_a_copy_was_confirmed_outlives_a_delta(origin: Origin, tmp_path: Path) -> None:
    """A delta run keeps how each copy was confirmed, also for rows whose check failed."""
    with OddS3(etags="opaque") as server:
        job, _ = job_for(origin, server, tmp_path)
        state = directory_state(tmp_path)
        run(job, state, access(server))
        before = {key: outcome.confirmed for key, outcome in by_key(state).items()}
        assert set(before.values()) == {Confirmed.READ_BACK, Confirmed.SIZE}
        origin.add("/3.jpg", make_image("jpeg", 3), fault=Trouble.SERVER_ERROR)
        run(job.model_copy(update={"mode": "delta"}), state, access(server), 2)
        after = by_key(state)
    assert {key: outcome.confirmed for key, outcome in after.items()} == before
    assert {outcome.status for outcome in after.values()} == {Status.UNCHANGED, Status.FAILED}
