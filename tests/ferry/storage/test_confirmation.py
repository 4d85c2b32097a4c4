"""What `copied` rests on: the store's digest, the bytes read back, or their number alone. Whole jobs to odd stores."""

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
from ferry.state.files import DirectoryState
from ferry.storage import store as store_module
from ferry.storage.confirmation import Told, Trust, confirm, told
from ferry.storage.credentials import Access
from ferry.storage.object_info import Sent
from ferry.storage.store import Store, open_store
from tasks.reporting.text import outcome_table
from tests.servers import odd_s3
from tests.servers.odd_s3 import Fault, OddS3
from tests.support.helpers import by_key, counts_of, directory_state, make_body, make_job, run, write_list

ROWS = 80
MD5, SHA = "a" * 32, "b" * 64


def reach(server: OddS3) -> Access:
    return Access(server.endpoint_url, server.region, keys=(server.access_key, server.secret_key, None))


def job_for(
    origin: Origin, server: OddS3, folder: Path, rows: int = ROWS, **given: Any
) -> tuple[Job, dict[str, bytes]]:
    """A job of small images from the origin to an empty bucket of the server, and what must arrive."""
    server.make_bucket("bucket")
    bodies = {f"{n}.jpg": make_image("jpeg", n) for n in range(ROWS)}
    lines = [[origin.add(f"/{key}", body)] for key, body in bodies.items()]
    write_list(folder / "list.csv", lines)
    return make_job(manifest=str(folder / "list.csv"), concurrency=4, **given), bodies


def moved(
    origin: Origin, server: OddS3, folder: Path, **given: Any
) -> tuple[dict[str, Outcome], set[str], DirectoryState]:
    """Runs the job; the outcomes by key, and the keys whose bytes at the store are not the source's."""
    job, bodies = job_for(origin, server, folder, **given)
    state = directory_state(folder)
    run(job, state, reach(server))
    there = server.stored("bucket", "p/")
    return by_key(state), {key for key, body in bodies.items() if there.get(f"p/{key}") != body}, state


@pytest.mark.parametrize("checksums", [False, True], ids=["", "checksums"])
@pytest.mark.parametrize("etags", ["md5", "upper", "kms", "opaque", "none"])
def test_no_altered_object_is_called_confirmed(etags: Any, checksums: bool, origin: Origin, tmp_path: Path) -> None:
    """A store alters three of ten bodies after the 30th and answers for what it holds: each row that is said to be
    confirmed by a digest or by reading has its bytes, and what is copied with other bytes is by size alone."""
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
    if checksums or etags in ("md5", "upper"):  # the store says what it holds
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
    """A store answers 200 with an <Error>, or a proxy with a page of its own. An older object of the same size stands
    under the key: the answer without an ETag is noticed, and the object is sent again."""
    if answer == "a page":
        if etags == "none":
            pytest.skip("such a store's answers all look like that")
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
    """A bucket whose older objects have ETags of SSE-KMS, and whose new ones have MD5s: an ETag that is not the MD5 of
    the same bytes says nothing, and equal objects are unchanged under `fail`."""
    with OddS3(etags="kms") as server:
        for n in range(60, ROWS):
            server.put("bucket", f"p/{n}.jpg", make_image("jpeg", n))
        server.etags = "md5"
        outcomes, wrong, _ = moved(origin, server, tmp_path, on_existing="fail")
    assert Counter(str(o.status) for o in outcomes.values()) == {"copied": 60, "unchanged": 20}
    assert wrong == set()


@pytest.mark.parametrize("short_way", [True, False])
@pytest.mark.parametrize("where", ["bucket", "directory"])
def test_reading_back_moves(where: str, short_way: bool, tmp_path: Path) -> None:
    """Each piece that is read back is heard of: a large object that is read for longer than a run may stand still ends
    no run."""
    data, pieces = bytes(5 << 20), []
    body = make_body(data, tmp_path)
    body.moved = lambda: pieces.append(1)

    async def go(uri: str, access: Access) -> None:
        store = open_store(uri, access, tmp_path, create=True, short_way=short_way)
        try:
            await store.put("k", body, {})
            before = len(pieces)
            assert (await confirm(store, store.trust, "k", body, Sent(None))).how is Confirmed.READ_BACK
            assert len(pieces) - before >= 5
        finally:
            await store.close()

    with OddS3(etags="opaque") as server:
        server.make_bucket("bucket")
        uri = "s3://bucket/p/" if where == "bucket" else f"file://{tmp_path}/new/"
        asyncio.run(go(uri, reach(server)))


@pytest.mark.parametrize("policy", ["skip-same", "skip", "fail", "overwrite"])
@pytest.mark.parametrize("etags", ["md5", "kms"])
def test_an_upload_whose_answer_was_lost_is_a_copy(etags: Any, policy: str, origin: Origin, tmp_path: Path) -> None:
    """The next try finds the object with the right bytes: this run has put it there, so the row is `copied`."""
    fault = Fault("lost answer", ("PutObject",), after=3, times=5)
    retries = {"attempts": 3, "backoff_s": 0.01, "max_backoff_s": 1.0}
    with OddS3(etags=etags, faults=[fault]) as server:
        outcomes, wrong, _ = moved(origin, server, tmp_path, on_existing=policy, retries=retries)
    assert fault.struck == 5
    assert not wrong
    assert {outcome.status for outcome in outcomes.values()} == {Status.COPIED}
    assert all(outcome.confirmed is not None for outcome in outcomes.values())


def test_what_was_there_before_is_unchanged(origin: Origin, tmp_path: Path) -> None:
    """An object with the right bytes that no upload of this run can have put there stays `unchanged`, and says how it
    was compared; one that is skipped says nothing."""
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
    """Each object arrives, the ETags confirm it, and only what was on its way meanwhile is sent twice."""
    with OddS3(checksums=status) as server:
        outcomes, wrong, _ = moved(origin, server, tmp_path)
        puts = server.requests["PutObject"]
    assert not wrong
    assert {(o.status, o.confirmed) for o in outcomes.values()} == {(Status.COPIED, Confirmed.DIGEST)}
    assert ROWS < puts <= ROWS + 4


def test_an_error_of_a_store_that_takes_checksums_is_not_the_checksums(origin: Origin, tmp_path: Path) -> None:
    """A 400 after an upload went well is sent once more by the retry alone, and later objects keep their checksum."""
    fault = Fault("status", ("PutObject",), after=20, times=1, status=400)
    with OddS3(etags="kms", checksums=True, faults=[fault]) as server:
        outcomes, _, _ = moved(origin, server, tmp_path)
        assert server.requests["PutObject"] == ROWS + 1
    assert {(o.status, o.confirmed) for o in outcomes.values()} == {(Status.COPIED, Confirmed.DIGEST)}


LARGE = 9 * 1024 * 1024


def in_parts(
    origin: Origin, server: OddS3, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Outcome], set[str]]:
    """Three bodies that go up in two parts each; as :func:`moved`."""
    monkeypatch.setattr(store_module, "ONE_PUT_BYTES", 1024 * 1024)
    server.make_bucket("bucket")
    bodies = {f"{n}.bin": bytes([n]) * LARGE for n in range(3)}
    write_list(folder / "list.csv", [[origin.add(f"/{key}", body)] for key, body in bodies.items()])
    state = directory_state(folder)
    run(make_job(manifest=str(folder / "list.csv"), checks="length"), state, reach(server))
    assert server.requests["UploadPart"] >= 6
    there = server.stored("bucket", "p/")
    return by_key(state), {key for key, body in bodies.items() if there.get(f"p/{key}") != body}


@pytest.mark.parametrize("etags", ["md5", "upper", "kms", "opaque"])
def test_a_part_that_was_altered_is_found(
    etags: Any, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A composite ETag that the parts do not make confirms nothing, nor does the size: the bytes are read back."""
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
        (Sent("x", SHA), None, Told.SAME),
        (Sent(MD5, "c" * 64), None, Told.OTHER),
        (Sent(MD5), None, Told.SAME),
        (Sent(f'"{MD5.upper()}"'), None, Told.SAME),
        (Sent("c" * 32), None, Told.MAYBE_OTHER),
        (Sent("opaque"), None, Told.NOTHING),
        (Sent(None), None, Told.NOTHING),
        (Sent(f'"{MD5}-2"', in_parts=True), f"{MD5}-2", Told.SAME),
        (Sent(f"{MD5.upper()}-2", in_parts=True), f"{MD5}-2", Told.SAME),
        (Sent(f"{MD5}-3", in_parts=True), f"{MD5}-2", Told.OTHER),
        (Sent(MD5, in_parts=True), f"{MD5}-2", Told.OTHER),
        (Sent("opaque", in_parts=True), f"{MD5}-2", Told.OTHER),
        (Sent(None, in_parts=True), None, Told.OTHER),
    ],
)
def test_what_an_answer_tells(sent: Sent, parts: str | None, expected: Told) -> None:
    """The table of told()."""
    assert told(sent, MD5, SHA, parts) is expected


def test_what_is_read_back() -> None:
    """The table of Trust.reads_back(); of many objects one in twenty, and the same ones each time."""
    keys = [f"i/{n}.jpg" for n in range(20_000)]
    trust = Trust()
    assert all(trust.reads_back(what, "k") for what in Told)
    trust.right = 7
    assert trust.reads_back(Told.NOTHING, "k")
    trust.right = 8
    drawn = [key for key in keys if trust.reads_back(Told.NOTHING, key)]
    assert len(drawn) == pytest.approx(1000, abs=40)
    assert drawn == [key for key in keys if trust.reads_back(Told.MAYBE_OTHER, key)]
    assert all(trust.reads_back(Told.OTHER, key) for key in keys)
    trust.md5_etags = True
    assert all(trust.reads_back(Told.MAYBE_OTHER, key) for key in keys)
    assert drawn == [key for key in keys if trust.reads_back(Told.NOTHING, key)]
    trust.wrong = True
    assert all(trust.reads_back(Told.NOTHING, key) for key in keys)


def test_a_store_that_gave_md5s_once_is_read_back_where_it_gives_others(tmp_path: Path) -> None:
    """ETags that look like MD5s are believed to be of SSE-KMS for as long as none of them was an MD5, and no longer."""

    async def how(store: Store, number: int) -> Confirmed:
        body = make_body(make_image("jpeg", number), tmp_path)
        sent = await store.put(f"{number}.jpg", body, {})
        return (await store.confirm(f"{number}.jpg", body, sent)).how

    async def go(server: OddS3) -> None:
        store = open_store("s3://bucket/p/", reach(server), tmp_path)
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
        (None, False, "does not show the object", False),
        (b"other bytes.", False, "holds other bytes", True),
        (b"short", False, "holds other bytes", True),
        (b"far more than was sent", False, "holds other bytes", True),
        (None, True, "does not show the object", False),
        (b"short", True, "shows 5 bytes where 12 were sent", False),
        (b"far more than was sent", True, "shows 22 bytes where 12 were sent", False),
    ],
)
def test_what_is_found_in_place_of_the_object(
    instead: bytes | None, by_size: bool, why: str, wrong: bool, etags: Any, tmp_path: Path
) -> None:
    """Nothing, other bytes, fewer or more of them: the upload is not confirmed, and the next one is read back if other
    bytes were read. An error of the store is raised as it is."""

    async def go(server: OddS3) -> None:
        store = open_store("s3://bucket/p/", reach(server), tmp_path)
        store.trust.right = 8 if by_size else 0
        key = next(
            key for key in (f"{n}.bin" for n in range(99)) if store.trust.reads_back(Told.NOTHING, key) is not by_size
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
        assert store.trust.wrong is wrong
        server.faults = [Fault("status", ("GetObject", "HeadObject"), status=403, code="AccessDenied")]
        with pytest.raises((ObjectError, Fatal), match="403"):
            await store.confirm(key, body, sent)
        await store.close()

    with OddS3(etags=etags) as server:
        server.make_bucket("bucket")
        asyncio.run(go(server))


@pytest.mark.parametrize(("shown", "how"), [(f"{MD5}-2", Confirmed.DIGEST), ("opaque", Confirmed.READ_BACK)])
def test_an_upload_in_parts_whose_etag_only_a_head_shows(shown: str, how: Confirmed, tmp_path: Path) -> None:
    """Ceph's RGW answers the end of an upload without one."""

    async def go(server: OddS3) -> None:
        store = open_store("s3://bucket/p/", reach(server), tmp_path)
        body = make_body(bytes(LARGE), tmp_path)
        server.put("bucket", "p/k.bin", bytes(LARGE))
        server.objects["bucket"]["p/k.bin"].etag = shown
        proof = await store.confirm("k.bin", body, Sent(None, in_parts=True, parts_etag=f"{MD5}-2"))
        assert (proof.how, (proof.etag or "").strip('"')) == (how, shown)
        assert server.requests["HeadObject"] == 1
        await store.close()

    with OddS3() as server:
        asyncio.run(go(server))


def test_an_alteration_that_begins_late_is_found(origin: Origin, tmp_path: Path) -> None:
    """Every body after the 40th is altered under an honest opaque ETag: the sample finds one, the run reads all of the
    rest back, and what it believed before is counted apart, in the report as in the ledger."""
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
    """A row that is looked at and unchanged keeps what its copy was confirmed by, also where the look failed."""
    with OddS3(etags="opaque") as server:
        job, _ = job_for(origin, server, tmp_path)
        state = directory_state(tmp_path)
        run(job, state, reach(server))
        before = {key: outcome.confirmed for key, outcome in by_key(state).items()}
        assert set(before.values()) == {Confirmed.READ_BACK, Confirmed.SIZE}
        origin.add("/3.jpg", make_image("jpeg", 3), fault=Trouble.SERVER_ERROR)
        run(job.model_copy(update={"mode": "delta"}), state, reach(server), 2)
        after = by_key(state)
    assert {key: outcome.confirmed for key, outcome in after.items()} == before
    assert {outcome.status for outcome in after.values()} == {Status.UNCHANGED, Status.FAILED}
