"""A check on a real origin and real stores: what it finds, what it predicts, and that it leaves nothing."""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Fault as OriginFault
from demo.origin import Origin, Trouble
from demo.s3 import S3Server
from demo.validators import Validators
from ferry.core import Confirmed, UserError
from ferry.job import Job
from ferry.preflight import CheckResult, Engine, check_job, sample_run
from ferry.storage import Access, S3Access
from ferry.transfer import chunk
from tasks.reporting.check_text import describe_check, verdict
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers


@dataclasses.dataclass
class Shop:
    """A list of images at an origin, and the job that copies it."""

    origin: Origin
    folder: Path
    sources: list[str] = dataclasses.field(default_factory=list)

    def add(self, count: int, fault: OriginFault | None = None, **given: Any) -> None:
        for number in range(len(self.sources), len(self.sources) + count):
            self.origin.add(f"/{number}.jpg", make_image("jpeg", number, 40, 30), fault=fault, **given)
            self.sources.append(self.origin.url(f"/{number}.jpg"))

    def job(self, destination: Any, **given: Any) -> Job:
        helpers.write_list(self.folder / "list.csv", [[source] for source in self.sources])
        return helpers.make_job(manifest=str(self.folder / "list.csv"), destination=destination, **given)

    def check(self, job: Job, access: Access, rows: int = 200, **given: Any) -> CheckResult:
        folder = self.folder / f"check-{secrets.token_hex(4)}"  # as the command, which has another one each time
        state = helpers.directory_state(self.folder)
        planned = helpers.plan(job, state, 0, server=access, dry=True, sample=rows, sample_folder=str(folder))
        return check_job(job, planned, folder, Engine(access, access, {}), plan_s=1.0, processes=1, **given)


@pytest.fixture
def shop(origin: Origin, tmp_path: Path) -> Shop:
    return Shop(origin, tmp_path)


@pytest.fixture
def bucket_uri(s3: S3Server, bucket: str) -> dict[str, Any]:
    return {"uri": f"s3://{bucket}/p/", "endpoint_url": s3.endpoint_url}


def test_a_check_leaves_nothing(shop: Shop, s3: S3Server, bucket: str, bucket_uri: dict[str, Any]) -> None:
    """The sample is copied and deleted again, and all that a user asks is answered."""
    shop.add(40)
    shop.add(10, OriginFault(Trouble.NOT_FOUND))
    found = shop.check(shop.job(bucket_uri), helpers.access(s3))
    assert helpers.stored(s3, bucket) == {}
    assert (found.sampled, found.copied, found.unfinished, found.left_objects) == (50, 40, {}, 0)
    assert found.wrote_sample
    assert found.formats == {"image/jpeg": 40}
    (failure,) = found.failures
    assert (failure.error_class, failure.status_code, failure.sampled) == ("not_found", 404, 10)
    assert (failure.rows.low, failure.rows.value, failure.rows.high) == pytest.approx((10, 10, 10))  # all were tried
    assert len(failure.examples) == 3
    facts = found.destination
    assert (facts.conditional_writes, facts.confirmed_by, facts.md5_etags) == ("yes", Confirmed.DIGEST, True)
    assert facts.listed
    assert facts.deletes
    (host,) = found.hosts
    assert (host.encrypted, host.conditions, host.redirects) == (False, True, 0)
    expected = found.prediction
    assert (expected.rows, round(expected.failures.value), expected.budget) == (50, 10, 1)
    assert expected.seconds is not None
    assert expected.seconds.low > 0
    assert (found.existing.asked, found.existing.same) == (40, 0)
    assert expected.money_per_month > 0
    assert found.exit_code == 1


def test_ready(shop: Shop, s3: S3Server, bucket_uri: dict[str, Any]) -> None:
    """Without failures the check succeeds, and bytes and requests are those of a run."""
    shop.add(60)
    found = shop.check(shop.job(bucket_uri), helpers.access(s3), rows=20)
    assert (found.exit_code, found.failures, found.sampled) == (0, [], 60)  # 20 to judge, and 40 to measure the rate
    sizes = sum(len(make_image("jpeg", number, 40, 30)) for number in range(60))
    assert found.prediction.bytes.value == pytest.approx(sizes, rel=0.01)
    assert (found.prediction.source_requests, found.prediction.destination_requests) == (60, 60)


@pytest.mark.parametrize("write", [True, False])
def test_a_directory(write: bool, shop: Shop, tmp_path: Path) -> None:
    """Directories that did not exist before the check do not exist after it."""
    shop.add(5)
    target = tmp_path / "made" / "here"
    found = shop.check(shop.job(target.as_uri() + "/"), Access(), write=write)
    assert (found.exit_code, found.copied, found.wrote_sample) == (0, 5, write)
    assert not target.parent.exists()
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    shop.check(shop.job(target.as_uri() + "/"), Access(), write=write)
    assert [path.name for path in target.rglob("*")] == ["mine.txt"]


def test_what_the_origins_support(shop: Shop, s3: S3Server, bucket_uri: dict[str, Any]) -> None:
    with Origin() as bare, Origin() as redirecting:
        image = make_image("jpeg", 1, 40, 30)
        bare.add("/a.jpg", image, kind=Validators.NONE)
        redirecting.add("/b.jpg", image, fault=OriginFault(Trouble.REDIRECT))
        shop.sources += [bare.url("/a.jpg"), redirecting.url("/b.jpg")]
        found = shop.check(shop.job(bucket_uri), helpers.access(s3))
        hosts = {facts.host: facts for facts in found.hosts}
        assert len(hosts) == 2
        first, second = (hosts[source.split("/")[2]] for source in shop.sources)
        assert (first.conditions, first.redirects) == (None, 0)
        assert second.redirects == 1


def test_hosts_in_capitals(shop: Shop, s3: S3Server, bucket_uri: dict[str, Any]) -> None:
    """A host is counted once, however it is written."""
    shop.add(4)
    shop.sources[0] = shop.sources[0].replace("127.0.0.1", "LOCALHOST")
    shop.sources[1] = shop.sources[1].replace("127.0.0.1", "localhost")
    allowed = {"allow_private_addresses": ["127.0.0.1", "localhost"]}
    found = shop.check(shop.job(bucket_uri, source=allowed), helpers.access(s3))
    assert (found.copied, len(found.hosts), found.planned.sample and len(found.planned.sample.hosts)) == (4, 2, 2)


def test_blocked_addresses_and_a_dead_host(shop: Shop, s3: S3Server, bucket_uri: dict[str, Any]) -> None:
    """Without one copied row the check ends with 2, and says why."""
    shop.add(3)
    blocked = shop.check(shop.job(bucket_uri, source={}), helpers.access(s3))
    assert (blocked.exit_code, blocked.copied) == (2, 0)
    assert [failure.error_class for failure in blocked.failures] == ["blocked_address"]
    assert shop.origin.total == 0


def test_what_earlier_runs_left(shop: Shop, s3: S3Server, bucket_uri: dict[str, Any]) -> None:
    """Failures of earlier runs count against the budget; only what is to do is sampled."""
    shop.add(30)
    shop.add(5, OriginFault(Trouble.NOT_FOUND))
    job = shop.job(bucket_uri)
    helpers.run(job, helpers.directory_state(shop.folder), helpers.access(s3))
    stored = helpers.stored(s3, bucket_uri["uri"].split("/")[2])
    shop.add(2, OriginFault(Trouble.NOT_FOUND))
    found = shop.check(shop.job(bucket_uri), helpers.access(s3))
    assert (found.sampled, found.copied, found.prediction.known_failures) == (2, 0, 5)
    assert (round(found.prediction.failures.value), found.exit_code) == (7, 1)
    assert helpers.stored(s3, bucket_uri["uri"].split("/")[2]) == stored
    assert shop.check(shop.job(bucket_uri, failure_budget=7), helpers.access(s3)).exit_code == 0


@pytest.mark.parametrize(
    ("odd", "conditional", "confirmed"),
    [
        ({"conditions": "ignored"}, "ignored", Confirmed.DIGEST),
        ({"conditions": "501"}, "refused", Confirmed.DIGEST),
        ({"etags": "opaque"}, "yes", Confirmed.READ_BACK),
        ({"etags": "none"}, "yes", Confirmed.READ_BACK),
        ({"delete_many": False, "page_keys": 7, "listings": "no token"}, "yes", Confirmed.DIGEST),
    ],
)
def test_odd_stores(odd: dict[str, Any], conditional: str, confirmed: Confirmed, shop: Shop) -> None:
    """Stores with opaque ETags, without conditional writes, and with listings that end early keep nothing, too."""
    shop.add(30)
    with OddS3(**odd) as store:
        store.make_bucket("b")
        store.put("b", "p/mine.jpg", b"mine")
        job = shop.job({"uri": "s3://b/p/", "endpoint_url": store.endpoint_url})
        found = shop.check(job, odd_access(store))
        assert store.stored("b") == {"p/mine.jpg": b"mine"}
    assert (found.exit_code, found.copied, found.left_objects) == (0, 30, 0)
    assert (found.destination.conditional_writes, found.destination.confirmed_by) == (conditional, confirmed)
    assert found.destination.versioning == "unknown"  # it answers each question with a listing
    assert any("conditional writes" in text for text in found.warnings) is (conditional != "yes")


def odd_access(store: OddS3) -> Access:
    return S3Access(store.endpoint_url, store.region, keys=(store.access_key, store.secret_key, None))


def test_a_store_that_refuses_deletes(shop: Shop) -> None:
    """Only the probe stays, since the sample is then copied to this machine."""
    shop.add(30)
    refusal = Fault("status", ("DeleteObject", "DeleteObjects"), status=403, code="AccessDenied")
    with OddS3(faults=[refusal]) as store:
        store.make_bucket("b")
        found = shop.check(shop.job({"uri": "s3://b/p/", "endpoint_url": store.endpoint_url}), odd_access(store))
        assert len(store.stored("b")) == 1
    assert (found.exit_code, found.copied, found.wrote_sample, found.left_objects) == (0, 30, False, 1)
    assert found.prefix in found.warnings[-1]
    assert any("speed of uploads was not measured" in text for text in found.warnings)


def test_a_bucket_with_versions(shop: Shop, s3: S3Server, bucket: str, bucket_uri: dict[str, Any]) -> None:
    """Deleted objects would stay there as versions, so the sample is copied to this machine."""
    shop.add(3)
    s3.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    found = shop.check(shop.job(bucket_uri), helpers.access(s3))
    assert (found.exit_code, found.copied, found.wrote_sample, found.destination.versioning) == (0, 3, False, "on")
    assert helpers.stored(s3, bucket) == {}
    assert any("keeps versions" in text for text in found.warnings)


def test_rows_without_time_for_all_tries(
    shop: Shop, s3: S3Server, bucket_uri: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures that are tried again are judged by the rows that had time for that, not by all that were begun."""
    monkeypatch.setattr(sample_run, "MEASURE_S", 0.5)
    for _ in range(60):
        shop.add(9)
        shop.add(1, OriginFault(Trouble.SERVER_ERROR))
    retries = {"attempts": 2, "backoff_s": 1.0, "max_backoff_s": 1.0}
    found = shop.check(shop.job(bucket_uri, retries=retries), helpers.access(s3), rows=200)
    # 60 in truth, with a standard deviation of 10; judged by all rows that were begun it would be 20
    assert 25 < found.prediction.failures.value < 100
    assert found.exit_code == 1


def test_a_host_that_never_answers(
    shop: Shop, s3: S3Server, bucket_uri: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows do not count as successes: the check is not ready, names it, and still has a time for the others."""
    monkeypatch.setattr(sample_run, "SAMPLE_S", 1.5)
    monkeypatch.setattr(chunk, "GRACE_S", 0.2)
    shop.add(30)
    with Origin(latency_s=60.0) as silent:
        shop.sources += [silent.add(f"/s{n}.jpg", make_image("jpeg", n, 40, 30)) for n in range(20)]
        found = shop.check(shop.job(bucket_uri, concurrency=4, failure_budget="10%"), helpers.access(s3))
        host = silent.url("").removeprefix("http://")
    assert (found.copied, found.unfinished) == (30, {host: 20})
    assert found.exit_code == 1
    assert found.prediction.failures.high >= 15
    assert found.prediction.seconds is not None
    assert "had no outcome in the time of the check" in verdict(found)


def test_objects_that_are_there(shop: Shop, s3: S3Server, bucket: str, bucket_uri: dict[str, Any]) -> None:
    """What is under the keys of the sample is said, with what a run does to it, and stays as it is."""
    shop.add(6)
    client, image = s3.client(), make_image("jpeg", 0, 40, 30)
    client.put_object(Bucket=bucket, Key="p/0.jpg", Body=image)
    client.put_object(Bucket=bucket, Key="p/1.jpg", Body=b"mine")
    before = helpers.stored(s3, bucket)
    found = shop.check(shop.job(bucket_uri), helpers.access(s3))
    assert (found.existing.asked, found.existing.same, found.existing.other) == (6, 1, 1)
    assert any("objects with other bytes are REPLACED" in line for line in describe_check(found))
    refused = shop.check(shop.job(bucket_uri, on_existing="fail", failure_budget=0), helpers.access(s3))
    assert (refused.exit_code, round(refused.prediction.failures.value)) == (1, 1)
    assert helpers.stored(s3, bucket) == before


def test_a_store_that_refuses_writes(shop: Shop) -> None:
    shop.add(3)
    refusal = Fault("status", ("PutObject",), status=403, code="AccessDenied")
    with OddS3(faults=[refusal]) as store:
        store.make_bucket("b")
        with pytest.raises(UserError, match="destination"):
            shop.check(shop.job({"uri": "s3://b/p/", "endpoint_url": store.endpoint_url}), odd_access(store))
    assert shop.origin.total == 0


def test_a_store_that_changes_bytes(shop: Shop) -> None:
    shop.add(3)
    with OddS3(faults=[Fault("alter", ("PutObject",))], etags="opaque") as store:
        store.make_bucket("b")
        with pytest.raises(UserError, match="differ"):
            shop.check(shop.job({"uri": "s3://b/p/", "endpoint_url": store.endpoint_url}), odd_access(store))


@pytest.mark.parametrize("key", [None, "{sha256}.{ext}"])
def test_a_store_that_refuses_listings(key: str | None, shop: Shop) -> None:
    """It is reported, and the sample's objects are deleted by their keys, also by those of their digests."""
    shop.add(3)
    with OddS3(faults=[Fault("status", ("ListObjectsV2",), status=403, code="AccessDenied")]) as store:
        store.make_bucket("b")
        job = shop.job({"uri": "s3://b/p/", "endpoint_url": store.endpoint_url}, key=key)
        found = shop.check(job, odd_access(store))
        assert store.stored("b") == {}
    assert (found.exit_code, found.destination.listed, found.left_objects) == (0, False, 0)
    assert any("listing is refused" in text for text in found.warnings)


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("write", [True, False])
def test_lost_attributes_of_the_sample(
    write: bool, fail: bool, shop: Shop, s3: S3Server, bucket: str, bucket_uri: dict[str, Any], tmp_path: Path
) -> None:
    """They are those of the job's destination, also where the sample is copied to this machine."""
    for number in range(3):
        s3.client().put_object(
            Bucket=bucket, Key=f"old/{number}.jpg", Body=make_image("jpeg", number), CacheControl="no-cache",
            Tagging="a=1" if number else "",
        )  # fmt: skip
    policy = {"on_lost_attribute": "fail"} if fail else {}
    for target, lost in ((bucket_uri, {}), ((tmp_path / "new").as_uri() + "/", {"Cache-Control": 3, "tags": 2})):
        job = helpers.make_job(manifest=f"s3://{bucket}/old/", source={}, destination=target, **policy)
        found = shop.check(job, helpers.access(s3), write=write)
        assert found.lost_attributes == ({} if fail else lost)
        assert [each.error_class for each in found.failures] == (["lost_attribute"] if lost and fail else [])
        said = "Attributes that the destination cannot hold: Cache-Control (3 rows), tags (2 rows)"
        assert (said in "\n".join(describe_check(found))) == bool(lost and not fail)
