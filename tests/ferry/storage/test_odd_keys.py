"""Keys with empty segments, `.`, `..` or a final `/`: whole runs from bucket to bucket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from demo.s3 import S3Server
from ferry.core.body import small_body
from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass, Outcome, Status
from ferry.storage.factory import open_store
from ferry.storage.provider import Got, Page
from ferry.storage.s3 import S3
from ferry.storage.store import Store
from tests.servers.odd_s3 import Fault, OddS3
from tests.support.helpers import access, directory_state, latest, make_job, run

KEYS = ["a//b.jpg", "./c.jpg", "d/../e.jpg", "/f.jpg", "g/", "h.jpg"]


def move(server: OddS3 | S3Server, old: str, new: str, folder: Path, **given: Any) -> dict[str, Outcome]:
    """Copies all listed objects, and returns the outcomes by key."""
    job = make_job(manifest=f"s3://{old}/", source={}, destination=f"s3://{new}/p/", **{"checks": "length", **given})
    state = directory_state(folder)
    run(job, state, access(server))
    return {outcome.key: outcome for outcome in latest(state).values()}


@pytest.mark.parametrize("checks", ["length", "none"])
def test_they_arrive_as_they_are(checks: str, tmp_path: Path) -> None:
    """A store that keeps such keys gets them, read and written by Ferry or copied by the server; one key is tried."""
    with OddS3() as server:
        server.make_bucket("new")
        for key in [*KEYS, "folder/"]:
            server.put("old", key, b"" if key == "folder/" else key.encode())
        outcomes = move(server, "old", "new", tmp_path, checks=checks)
        assert {key: outcome.status for key, outcome in outcomes.items()} == dict.fromkeys(KEYS, Status.COPIED)
        assert server.stored("new") == {f"p/{key}": key.encode() for key in KEYS}
        tried = [line for line in server.log if ".ferry-preflight-" in str(line) and "PutObject" in str(line)]
        assert len(tried) == 1


def test_a_store_that_changes_them_gets_none(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """SeaweedFS stores `a//b` as `a/b`: such rows fail, and the object of that name stays."""
    client = s3.client()
    client.put_object(Bucket=bucket, Key="p/a/b.jpg", Body=b"another object")
    with OddS3() as server:
        for key in KEYS:
            server.put("old", key, key.encode())
        job = make_job(
            manifest="s3://old/", source={"endpoint_url": server.endpoint_url}, checks="length",
            destination={"uri": f"s3://{bucket}/p/", "endpoint_url": s3.endpoint_url},
        )  # fmt: skip
        state = directory_state(tmp_path)
        run(job, state, access(s3), source=access(server))
    outcomes = {outcome.key: outcome for outcome in latest(state).values()}
    assert {key for key, outcome in outcomes.items() if outcome.error_class is ErrorClass.BAD_KEY} == set(KEYS[:-1])
    assert all("this store refuses or changes keys" in (outcomes[key].message or "") for key in KEYS[:-1])
    stored = {item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]}
    assert stored == {"p/a/b.jpg", "p/h.jpg"}
    assert client.get_object(Bucket=bucket, Key="p/a/b.jpg")["Body"].read() == b"another object"


def test_a_store_that_folds_them_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial's key is not in the listing: nothing is written under such a key."""

    real = S3.page

    async def folded(self: S3, prefix: str, side: str, **given: Any) -> Page:
        page = await real(self, prefix.replace("//", "/"), side, **given)
        return Page([found._replace(key=found.key.replace("//", "/")) for found in page.objects], page.token)

    monkeypatch.setattr(S3, "page", folded)

    async def go(store: Store) -> None:
        with pytest.raises(ObjectError, match="refuses or changes keys") as caught:
            await store.put("a//b.jpg", small_body(b"x"), {})
        assert caught.value.error_class is ErrorClass.BAD_KEY
        await store.put("b.jpg", small_body(b"x"), {})
        await store.close()

    with OddS3() as server:
        server.make_bucket("new")
        asyncio.run(go(open_store("s3://new/p/", access(server), tmp_path)))
        assert set(server.stored("new")) == {"p/b.jpg"}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("redirect", ("PutObject",), location="http://127.0.0.1:1/other", key="ferry-preflight"),
        Fault("status", ("PutObject",), status=403, code="SignatureDoesNotMatch", key="ferry-preflight"),
        Fault("status", ("PutObject",), status=403, code="AccessDenied", key="ferry-preflight"),
    ],
    ids=lambda fault: fault.what + fault.code,
)
def test_a_proxy_before_the_store_that_changes_them(fault: Fault, tmp_path: Path) -> None:
    """Servers that clean paths redirect such a request, or break its signature: the other rows are copied."""
    with OddS3() as server:
        server.make_bucket("new")
        for key in ("a//b.jpg", "h.jpg"):
            server.put("old", key, b"x")
        server.faults.append(fault)
        outcomes = move(server, "old", "new", tmp_path)
        assert outcomes["a//b.jpg"].error_class is ErrorClass.BAD_KEY
        assert outcomes["h.jpg"].status is Status.COPIED
        assert server.stored("new") == {"p/h.jpg": b"x"}


def test_a_source_that_sends_the_object_of_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy such as nginx asks the source for `a/b` in place of `a//b`: its ETag is not the listed one."""
    real = S3.get

    async def merged(self: S3, key: str, side: str, **given: Any) -> Got:
        return await real(self, key.replace("//", "/"), side, **given)

    monkeypatch.setattr(S3, "get", merged)
    with OddS3() as server:
        server.make_bucket("new")
        server.put("old", "a//b.jpg", b"the odd one")
        server.put("old", "a/b.jpg", b"plain bytes")
        outcomes = move(server, "old", "new", tmp_path)
        assert outcomes["a//b.jpg"].error_class is ErrorClass.DIGEST_MISMATCH
        assert server.stored("new") == {"p/a/b.jpg": b"plain bytes"}


def test_a_store_that_takes_a_backslash_for_a_slash(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """SeaweedFS does: the row fails, and the object of the other key stays."""
    with OddS3() as server:
        server.put("old", "a\\b.jpg", b"with a backslash")
        server.put("old", "a/b.jpg", b"with a slash")
        job = make_job(
            manifest="s3://old/", source={"endpoint_url": server.endpoint_url}, checks="length",
            destination={"uri": f"s3://{bucket}/p/", "endpoint_url": s3.endpoint_url},
        )  # fmt: skip
        state = directory_state(tmp_path)
        run(job, state, access(s3), source=access(server))
    outcomes = {outcome.key: outcome for outcome in latest(state).values()}
    assert outcomes["a\\b.jpg"].error_class is ErrorClass.BAD_KEY
    assert s3.client().get_object(Bucket=bucket, Key="p/a/b.jpg")["Body"].read() == b"with a slash"


def test_a_trial_that_fails_is_made_again(tmp_path: Path) -> None:
    """A store that is busy at that moment is asked once more by the row's next attempt."""
    with OddS3() as server:
        server.make_bucket("new")
        server.put("old", KEYS[0], b"x")
        server.faults.append(Fault("status", ("PutObject",), times=1, key="ferry-preflight"))
        outcomes = move(server, "old", "new", tmp_path, retries={"attempts": 3, "backoff_s": 0.01, "max_backoff_s": 1})
        assert outcomes[KEYS[0]].status is Status.COPIED


def test_keys_of_a_list_are_refused(tmp_path: Path) -> None:
    """In a list such a key is a mistake, as an empty column of a template is."""
    with OddS3() as server:
        server.make_bucket("new")
        server.put("old", "a.jpg", b"x")
        (tmp_path / "list.csv").write_text("url,key\ns3://old/a.jpg,a//b.jpg\ns3://old/a.jpg,a.jpg\n")
        job = make_job(
            manifest=str(tmp_path / "list.csv"),
            source={"roots": ["s3://old/"]},
            destination="s3://new/",
            checks="length",
        )
        state = directory_state(tmp_path)
        run(job, state, access(server))
        assert [outcome.key for outcome in latest(state).values() if outcome.error_class is ErrorClass.BAD_KEY] == [
            "a//b.jpg"
        ]
        assert server.stored("new") == {"a.jpg": b"x"}
