"""What a copy keeps beside its bytes: the same whether Ferry reads and writes, or the server copies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ferry.core.records import Status
from tests.servers.stores import Moto
from tests.stores.attributes import KMS_KEY, OBJECTS, put_all, shown
from tests.support.helpers import by_key, directory_state, make_job, run

pytestmark = pytest.mark.slow

WAYS = {"read-and-written": "image", "copied-by-the-server": "none"}  # and the job's `checks`
ENCRYPTED = [f"{name}.jpg" for name, given in OBJECTS.items() if "SSEKMSKeyId" in given]  # by a setting of the job


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """moto with the eleven objects in `old/`, and copies of them below the name of each way."""
    if (reason := Moto.missing()) is not None:
        pytest.skip(reason)
    with Moto() as server:
        server.make_bucket("library")
        put_all(server.s3, "library", "old/")
        for way, checks in WAYS.items():
            for which, settings in (("exclude", {}), ("include", {"encryption": {"kms_key": KMS_KEY}})):
                folder = tmp_path_factory.mktemp("job")
                job = make_job(
                    manifest="s3://library/old/", source={}, checks=checks,
                    destination={"uri": f"s3://library/{way}/", **settings}, **{which: ENCRYPTED},
                )  # fmt: skip
                run(job, state := directory_state(folder), server.access())
                outcomes = by_key(state).values()
                assert {outcome.status for outcome in outcomes} == {Status.COPIED}
                assert {bool(outcome.lost_attributes) for outcome in outcomes} == {False}
                read = {outcome.sha256 is not None for outcome in outcomes}
                assert read == {checks == "image"}, "each object went the way that is meant"
        yield server


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost(way: str, name: str, moto: Moto) -> None:
    """A copy has the bytes, headers, metadata, tags, class, encryption, redirect and checksum of its source.

    Of the checksum that Ferry sends with its bytes moto keeps nothing, as long as x-amz-sdk-checksum-algorithm does not
    come with it. With that header, which Amazon ignores, moto would return a wrong checksum as it was sent.
    """
    there, copy = shown(moto.s3, "library", f"old/{name}.jpg"), shown(moto.s3, "library", f"{way}/{name}.jpg")
    if way == "read-and-written":
        assert "ChecksumSHA256" not in copy
        there.pop("ChecksumSHA256", None)
    assert copy == there
