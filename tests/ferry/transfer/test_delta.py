"""Delta runs on a real origin and store: changed objects are written again, and others cost few requests."""

from __future__ import annotations

import email.utils
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo.images import make_image
from demo.origin import Fault, Origin, Trouble
from demo.s3 import S3Server
from demo.validators import Validators
from ferry.core.records import Checked, Outcome, Status
from ferry.cutover import export
from ferry.reconcile import finish
from ferry.reconcile.finish import finish_run
from ferry.state import old_schemas, parquet
from ferry.state.checksums import checked_name, decode_checked_json, encode_checked_json
from ferry.state.files import State
from ferry.storage.access import S3Access
from tests.servers.odd_s3 import Fault as StoreFault
from tests.servers.odd_s3 import OddS3
from tests.support import helpers
from tests.support.nights import World

pytestmark = pytest.mark.matrix

EARLIER, LATER = "Thu, 01 Jan 2026 00:00:00 GMT", "Fri, 02 Jan 2026 00:00:00 GMT"


@pytest.fixture
def world(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> World:
    return World(origin, s3, bucket, tmp_path)


NIGHTS: list[tuple[Validators, list[tuple[int, int]], list[Checked]]] = [
    # what it gives; requests and bodies in each night of one object that does not change; what is noted
    (Validators.BOTH, [(1, 0), (1, 0), (1, 0)], [Checked.CONDITION] * 3),
    (Validators.ETAG, [(1, 0), (1, 0), (1, 0)], [Checked.CONDITION] * 3),
    (Validators.WEAK, [(1, 0), (1, 0), (1, 0)], [Checked.CONDITION] * 3),
    (Validators.DATE, [(1, 0), (1, 0), (1, 0)], [Checked.CONDITION] * 3),
    (Validators.NONE, [(1, 0), (1, 0), (1, 0)], [Checked.HEAD] * 3),
    (Validators.WEAK_NO_CONDITIONS, [(1, 1), (1, 0), (1, 0)], [Checked.BODY_AGAIN, Checked.HEAD, Checked.HEAD]),
    (Validators.SERVERS, [(1, 1), (2, 1), (1, 0)], [Checked.BODY_AGAIN, Checked.SIZE, Checked.SIZE]),
    (Validators.SERVERS_DATE, [(1, 1), (2, 1), (1, 0)], [Checked.BODY_AGAIN, Checked.SIZE, Checked.SIZE]),
]


def test_what_does_not_change(world: World) -> None:
    """An unchanged object is checked in the cheapest way that its origin supports, and is not written."""
    expected = {f"{kind.name}.jpg": (costs, noted) for kind, costs, noted in NIGHTS}
    for seed, (kind, _, _) in enumerate(NIGHTS):
        world.put(f"{kind.name}.jpg", seed, kind=kind)
    assert {outcome.status for outcome in world.night().values()} == {Status.COPIED}
    first = helpers.stored(world.s3, world.bucket)
    written = written_at(world)
    for night in range(3):
        found = world.night()
        assert found.keys() == expected.keys()
        for key, (costs, noted) in expected.items():
            outcome = found[key]
            assert (outcome.status, outcome.checked_by) == (Status.UNCHANGED, noted[night]), key
            assert (world.origin.requests[f"/{key}"], world.origin.bodies[f"/{key}"]) == costs[night], key
            assert outcome.requests == costs[night][0], key
    assert helpers.stored(world.s3, world.bucket) == first
    assert written_at(world) == written


def written_at(world: World) -> dict[str, datetime]:
    listed = world.s3.client().list_objects_v2(Bucket=world.bucket)["Contents"]
    return {found["Key"]: found["LastModified"] for found in listed}


@pytest.mark.parametrize("quiet", [0, 2])
def test_what_changes(quiet: int, world: World) -> None:
    """A changed object is written once, after any number of runs without a change, whatever its origin gives."""
    kinds = {f"{kind.name}.jpg": kind for kind in Validators}
    for seed, (key, kind) in enumerate(kinds.items()):
        world.put(key, seed, kind=kind)
    for _ in range(quiet + 1):
        world.night()
    for seed, (key, kind) in enumerate(kinds.items()):
        world.bodies[key] = make_image("jpeg", 100 + seed, 31, 20)
        world.origin.add(f"/{key}", world.bodies[key], kind=kind, modified=LATER)
    assert {key: outcome.status for key, outcome in world.night().items()} == dict.fromkeys(kinds, Status.COPIED)
    world.is_true()
    assert {key: outcome.status for key, outcome in world.night().items()} == dict.fromkeys(kinds, Status.UNCHANGED)
    world.is_true()


def same_size(jpeg: bytes) -> bytes:
    """Returns another image of the same length."""
    other = bytearray(jpeg)
    other[other.index(b"\xff\xda") + 20] ^= 1
    return bytes(other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Validators.NONE, Validators.SERVERS])
def test_what_nothing_tells_of(kind: Validators, world: World) -> None:
    """A change that nothing shows is found once `revalidate_after` has passed."""
    world.put("a.jpg", 1, kind=kind)
    for _ in range(4):
        world.night()
    world.bodies["a.jpg"] = same_size(world.bodies["a.jpg"])
    world.origin.add("/a.jpg", world.bodies["a.jpg"], kind=kind)
    assert world.night()["a.jpg"].status is Status.UNCHANGED
    assert world.night(delta={"revalidate_after": 0})["a.jpg"].status is Status.COPIED
    world.is_true()


def test_an_origin_is_taken_at_its_word(world: World, tmp_path: Path) -> None:
    """A changed object with its old date is not noticed; a new state replaces it."""
    world.put("a.jpg", 1, kind=Validators.DATE)
    world.night()
    world.put("a.jpg", 2, kind=Validators.DATE)
    assert world.night(delta={"revalidate_after": 0})["a.jpg"].checked_by is Checked.CONDITION
    world.state, world.run_no = helpers.directory_state(tmp_path, "another"), 0
    assert world.night()["a.jpg"].status is Status.COPIED
    world.is_true()


def test_a_plain_run_believes_the_ledger(world: World) -> None:
    """Only a delta run rechecks copies."""
    world.put("a.jpg", 1)
    world.night()
    assert world.night(mode="full") == {}
    assert world.asked == 0


@pytest.mark.parametrize("column", ["etag", "md5", "last_modified"])
def test_what_the_list_proves(column: str, world: World) -> None:
    """Rows whose version in the manifest is the same cause no request, and others are read."""

    def says(key: str) -> str:
        digest = hashlib.md5(world.bodies[key]).hexdigest()
        return f"2026-01-01T00:00:{int(digest, 16) % 59 + 1:02}Z" if column == "last_modified" else digest

    for n in range(4):
        world.put(f"{n}.jpg", n)
    copied = world.night().values()
    assert len(copied) == 4
    assert not [outcome for outcome in copied if outcome.status is not Status.COPIED]
    first = world.night({column: [says(key) for key in world.bodies]})
    assert not [outcome for outcome in first.values() if outcome.status is not Status.UNCHANGED]
    assert world.night({column: [says(key) for key in world.bodies]}) == {}
    assert world.asked == 0
    world.put("2.jpg", 77)
    looked = world.night({column: [says(key) for key in world.bodies]})
    assert {key: outcome.status for key, outcome in looked.items()} == {"2.jpg": Status.COPIED}
    assert world.asked == 1
    world.is_true()
    assert world.night({column: [says(key) for key in world.bodies]}) == {}


@pytest.mark.slow
def test_a_list_of_days(world: World) -> None:
    """A change on the day that the manifest names is found, and the day counts once it is over."""
    today = datetime.now(UTC).date().isoformat()
    for n in range(5):
        world.put(f"{n}.jpg", n)
    said = {"last_modified": [today] * 5}
    world.night(said)
    world.put("3.jpg", 77)
    looked = world.night(said)
    assert [key for key, outcome in looked.items() if outcome.status is Status.COPIED] == ["3.jpg"]
    assert (len(looked), world.read) == (5, 1)
    world.is_true()
    assert {outcome.checked_by for outcome in world.night(said).values()} == {Checked.CONDITION}
    long_ago = {"last_modified": ["2026-01-01"] * 5}
    world.night(long_ago)
    assert world.night(long_ago) == {}


def test_a_list_s_date_that_cannot_be_read(world: World) -> None:
    """A date that cannot be parsed is compared, and proves nothing."""
    world.put("a.jpg", 1)
    world.night({"last_modified": ["1.1.2026"]})
    world.put("a.jpg", 2)
    assert world.night({"last_modified": ["1.1.2026"]})["a.jpg"].status is Status.COPIED
    world.is_true()


@pytest.mark.parametrize("kind", [Validators.DATE, Validators.WEAK_DATE])
def test_another_image_of_the_same_date(kind: Validators, world: World) -> None:
    """An origin's date that was not over at the download makes the object be read again."""
    date = email.utils.format_datetime(datetime.now(UTC).replace(hour=0, minute=0, second=0), usegmt=True)
    world.put("a.jpg", 1, kind=kind, modified=date)
    world.night()
    world.put("a.jpg", 2, kind=kind, modified=date)
    assert world.night()["a.jpg"].status is Status.COPIED
    world.is_true()


@pytest.mark.slow
def test_an_etag_that_was_stable_and_changes(world: World) -> None:
    """A changed ETag shows a change at an origin that ignores conditions, even with the old date."""
    world.put("a.jpg", 1, kind=Validators.NO_CONDITIONS)
    assert [world.night()["a.jpg"].checked_by for _ in range(3)] == [Checked.BODY, Checked.BODY_AGAIN, Checked.HEAD]
    world.bodies["a.jpg"] = same_size(world.bodies["a.jpg"])
    world.origin.add("/a.jpg", world.bodies["a.jpg"], kind=Validators.NO_CONDITIONS)
    assert world.night()["a.jpg"].status is Status.COPIED
    world.is_true()


@pytest.mark.slow
def test_a_size_proves_difference_alone(world: World) -> None:
    """An equal size in the manifest leads to a recheck, and another one to a download."""
    for n in range(3):
        world.put(f"{n}.jpg", n)
    sizes = [str(len(body)) for body in world.bodies.values()]
    world.night({"size": sizes})
    assert {outcome.checked_by for outcome in world.night({"size": sizes}).values()} == {Checked.CONDITION}
    world.bodies["1.jpg"] = make_image("jpeg", 9, 31, 21)
    world.origin.add("/1.jpg", world.bodies["1.jpg"])
    sizes = [str(len(body)) for body in world.bodies.values()]
    assert world.night({"size": sizes})["1.jpg"].status is Status.COPIED
    world.is_true()


@pytest.mark.parametrize(
    "trouble", [Trouble.SERVER_ERROR, Trouble.HTML_200, Trouble.NOT_FOUND, Trouble.TRUNCATED_LENGTH]
)
def test_a_look_that_fails_leaves_the_copy(trouble: Trouble, world: World) -> None:
    """A failed recheck keeps the copy and its facts, and the row is failed until it succeeds."""
    world.put("a.jpg", 1, kind=Validators.WEAK_NO_CONDITIONS)
    world.put("b.jpg", 2)
    copied = world.night()["a.jpg"]
    world.origin.add("/a.jpg", world.bodies["a.jpg"], fault=Fault(trouble), kind=Validators.WEAK_NO_CONDITIONS)
    failed = world.night()["a.jpg"]
    assert (failed.status, failed.consecutive_failures) == (Status.FAILED, 1)
    assert "the earlier copy is still at the destination" in (failed.message or "")
    assert (failed.md5, failed.dest_etag, failed.bytes_read_at) == (copied.md5, copied.dest_etag, copied.bytes_read_at)
    world.is_true()
    assert world.night()["a.jpg"].consecutive_failures == 2
    world.origin.mend("/a.jpg")
    again = world.night()["a.jpg"]
    assert (again.status, again.consecutive_failures, again.md5) == (Status.UNCHANGED, 0, copied.md5)
    world.is_true()


def test_a_look_that_fails_after_an_upload_that_may_have_arrived(origin: Origin, tmp_path: Path) -> None:
    """After an upload with a lost response the ledger does not have the old copy."""
    old, new = make_image("jpeg", 1), make_image("jpeg", 2)
    listed = helpers.write_list(tmp_path / "list.csv", [[origin.url("/a.jpg")]])
    state = helpers.directory_state(tmp_path)
    with OddS3() as server:
        server.make_bucket("bucket")
        access = S3Access(server.endpoint_url, server.region, keys=(server.access_key, server.secret_key, None))
        job = helpers.make_job(mode="delta", manifest=str(listed), destination="s3://bucket/p/")

        def night(run_no: int, image: bytes, modified: str) -> Outcome:
            origin.add("/a.jpg", image, modified=modified)
            helpers.run(job, state, access, run_no)
            return helpers.by_key(state)["a.jpg"]

        assert night(1, old, EARLIER).status is Status.COPIED
        server.faults = [
            StoreFault("lost answer", ("PutObject",), times=1),
            StoreFault("status", ("PutObject", "HeadObject", "GetObject"), status=500, code="InternalError"),
        ]
        failed = night(2, new, LATER)
        assert server.stored("bucket") == {"p/a.jpg": new}
        assert failed.status is Status.FAILED
        assert (failed.md5, failed.dest_etag, failed.source_etag) == (None, None, None)
        assert "the earlier copy is still at the destination" not in (failed.message or "")
        server.faults = []
        assert night(3, old, EARLIER).status is Status.COPIED
        assert server.stored("bucket") == {"p/a.jpg": old}


def test_a_list_that_takes_its_word_back(world: World) -> None:
    """A row whose recheck failed is read again, even if the manifest says that it is the same."""
    world.put("a.jpg", 1)
    md5 = hashlib.md5(world.bodies["a.jpg"]).hexdigest()
    world.night({"md5": [md5]})
    world.origin.add("/a.jpg", world.bodies["a.jpg"], fault=Trouble.SERVER_ERROR)
    assert world.night({"md5": ["0" * 32]})["a.jpg"].status is Status.FAILED
    world.origin.mend("/a.jpg")
    again = world.night({"md5": [md5]})["a.jpg"]
    assert (again.status, again.error_class, again.checked_by) == (Status.UNCHANGED, None, Checked.BODY)
    world.is_true()


def test_what_nobody_has_looked_at_is_pending(world: World) -> None:
    """Rows that an interrupted delta run has not rechecked are pending."""
    for n in range(5):
        world.put(f"{n}.jpg", n)
    world.night()
    job, server = world.job(), helpers.access(world.s3)
    planned = helpers.plan(job, world.state, 2, server=server)
    assert planned.todo == {"revalidate": 5}
    assert finish_run(job, world.state, 2)["counts"]["pending"] == 5
    world.run_no = 2
    assert {outcome.status for outcome in world.night().values()} == {Status.UNCHANGED}


@pytest.mark.parametrize("listed", [True, False])
def test_files_tell_by_their_dates(listed: bool, world: World, tmp_path: Path) -> None:
    """Files are rechecked by their dates, and only changed ones are read."""
    old = tmp_path / "old"
    old.mkdir()
    for n in range(4):
        (old / f"{n}.jpg").write_bytes(make_image("jpeg", n, 30, 20))
    helpers.write_list(tmp_path / "list.csv", [[f"file://{old}/{n}.jpg"] for n in range(4)])
    given: dict[str, Any] = {"source": {} if listed else {"roots": [f"file://{old}/"]}}
    if listed:
        given["manifest"] = f"file://{old}/"
    job, server = world.job(**given), helpers.access(world.s3)
    helpers.run(job, world.state, server, 1)
    assert helpers.run(job, world.state, server, 2).todo == ({} if listed else {"revalidate": 4})
    (old / "2.jpg").write_bytes(make_image("jpeg", 77, 31, 20))
    helpers.run(job, world.state, server, 3)
    looked = [outcome for outcome in helpers.latest(world.state).values() if outcome.run_no == 3]
    copied = [outcome.key for outcome in looked if outcome.status is Status.COPIED]
    assert copied == ["2.jpg"]
    assert {outcome.checked_by for outcome in looked} == ({Checked.BODY} if listed else {Checked.BODY, Checked.HEAD})
    assert helpers.stored(world.s3, world.bucket, "p/") == {
        f"p/{path.name}": path.read_bytes() for path in old.iterdir()
    }


@pytest.mark.slow
def test_how_often_a_failure_is_tried(world: World) -> None:
    """A failed row is retried in as many runs as its class allows, and not sooner."""
    world.put("a.jpg", 1)
    world.put("gone.jpg", 2, fault=Trouble.NOT_FOUND)
    job: dict[str, Any] = {"delta": {"retry": {"not_found": {"runs": 3}}}}
    assert ["gone.jpg" in world.night(**job) for _ in range(5)] == [True, True, True, False, False]
    job = {"delta": {"retry": {"not_found": {"runs": 9, "after": "1d"}}}}
    assert "gone.jpg" not in world.night(**job)
    job = {"delta": {"retry": {"not_found": {"runs": 9}}}}
    assert "gone.jpg" in world.night(**job)
    world.origin.mend("/gone.jpg")
    assert world.night(**job)["gone.jpg"].status is Status.COPIED
    world.is_true()


@pytest.mark.slow
def test_replaced_whatever_the_policy_for_objects_of_others(world: World) -> None:
    """A copy that the job wrote is replaced under every `on_existing` policy."""
    world.put("a.jpg", 1)
    for policy in ("skip", "fail"):
        world.night(on_existing=policy)
        world.put("a.jpg", 5 if policy == "skip" else 6)
        assert world.night(on_existing=policy)["a.jpg"].status is Status.COPIED
        world.is_true()


@pytest.mark.slow
def test_nights_leave_nothing_behind(world: World) -> None:
    """The state grows per run only by a report and the history of replaced copies.

    Rows are compared, not bytes: Parquet's size varies.
    """
    for n in range(30):
        world.put(f"{n}.jpg", n)
    world.put("gone.jpg", 99, fault=Trouble.NOT_FOUND)
    sizes = []
    for n in range(8):
        world.put(f"{n}.jpg", 100 + n)
        world.night(chunk_rows=10, delta={"retry": {"not_found": {"runs": 100}}})
        names = [name for name in world.state.list("") if not name.startswith(("reports/", "history/"))]
        files = [world.state.root / name for name in names]
        rows = sum(pq.read_metadata(path).num_rows for path in files if path.suffix == ".parquet")
        sizes.append((len(files), rows, sum(path.stat().st_size for path in files if path.suffix != ".parquet")))
    del world.bodies["gone.jpg"]
    world.is_true()
    settled = sizes[2:]  # what a night planned is let go by the one after the next
    assert len({(files, rows) for files, rows, _ in settled}) == 1, sizes
    assert settled[-1][2] < settled[0][2] * 1.05, sizes


def test_what_is_listed_tells_by_itself(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """A listed bucket's ETags and dates show which objects to read."""
    client, state = s3.client(), helpers.directory_state(tmp_path)
    bodies = {f"{n}.jpg": make_image("jpeg", n, 30, 20) for n in range(5)}
    for key, body in bodies.items():
        client.put_object(Bucket=bucket, Key=f"old/{key}", Body=body)
    job = helpers.make_job(
        manifest=f"s3://{bucket}/old/", mode="delta", source={"endpoint_url": s3.endpoint_url},
        destination={"uri": f"s3://{bucket}/new/", "endpoint_url": s3.endpoint_url},
    )  # fmt: skip
    server = helpers.access(s3)
    helpers.run(job, state, server, 1)
    bodies["3.jpg"] = make_image("jpeg", 77, 31, 20)
    client.put_object(Bucket=bucket, Key="old/3.jpg", Body=bodies["3.jpg"])
    assert helpers.run(job, state, server, 2).todo == {"changed": 1}
    assert helpers.run(job, state, server, 3).todo == {}
    assert helpers.stored(s3, bucket, "new/") == {f"new/{key}": body for key, body in bodies.items()}
    (replaced,) = [outcome for outcome in helpers.latest(state).values() if outcome.run_no == 2]
    assert (replaced.key, replaced.status) == ("3.jpg", Status.COPIED)


ATTRIBUTES = {"attributes_sha256", "lost_attributes"}
LATER_COLUMNS = {  # which the schemas before that had not
    1: {"manifest_digest", "checked_by", "bytes_read_at", "consecutive_failures", "confirmed", "address", *ATTRIBUTES},
    2: {"confirmed", "address", *ATTRIBUTES},
    3: {"address", *ATTRIBUTES},
    4: {"address", *ATTRIBUTES},
    5: ATTRIBUTES,
}


@pytest.mark.parametrize("schema", LATER_COLUMNS)
def test_a_state_of_an_earlier_schema(schema: int, world: World) -> None:
    """A state of an earlier schema is read with today's names, and no row is copied again."""
    for n in range(3):
        world.put(f"{n}.jpg", n)
    world.night()
    downgrade(world.state, schema)
    before = helpers.latest(world.state)
    assert export(world.state, world.job(), world.folder / "map.csv", at=helpers.NOW, full=True).rows == 3
    assert world.night(mode="full") == {}
    assert {outcome.checked_by for outcome in world.night().values()} == {Checked.CONDITION}
    assert world.read == 0
    world.is_true()
    assert {name: row.status for name, row in helpers.latest(world.state).items()} == dict.fromkeys(
        before, Status.UNCHANGED
    )


def downgrade(state: State, schema: int) -> None:
    """Rewrites ledger, chunks, manifest and plan as a Ferry of this schema had them."""
    renamed = schema < old_schemas.RENAMED_IN
    names = {new: old for old, new in old_schemas.COLUMNS.items()} if renamed else {}
    of_rows = ["storage_class"] if schema == 5 else ["alternatives", "storage_class"]
    for name in [name for folder in ("ledger", "outcomes") for name in state.list(folder)]:
        table = pq.read_table(state.local(name)).drop_columns(sorted(LATER_COLUMNS[schema]))
        table = table.rename_columns([names.get(column, column) for column in table.column_names])
        data = parquet.to_bytes(table.replace_schema_metadata({b"ferry_schema": str(schema).encode()}))
        state.delete([name])
        state.write(checked_name(name.rpartition("-")[0], data), data)
    plan = decode_checked_json(state.read("plan/plan.json"))
    chunks = {}
    for chunk in plan["chunks"]:
        table = pq.read_table(state.local(chunk["uri"])).drop_columns(of_rows)
        table = table.rename_columns([names.get(column, column) for column in table.column_names])
        data = parquet.to_bytes(table.replace_schema_metadata({b"ferry_schema": str(schema).encode()}))
        chunks[chunk["digest"]] = parquet.digest_of(data)
        state.delete([chunk["uri"]])
        kind = "again" if renamed and chunk["kind"] == "retry" else chunk["kind"]
        chunk.update(digest=chunks[chunk["digest"]], kind=kind)
        chunk["uri"] = f"chunks/{chunk['digest']}.parquet"
        state.write(chunk["uri"], data)
    manifest = pq.read_table(state.local(plan["manifest"]["file"])).drop_columns(of_rows)
    manifest = manifest.rename_columns([names.get(column, column) for column in manifest.column_names])
    data = parquet.to_bytes(manifest)
    state.delete([plan["manifest"]["file"]])
    plan["manifest"]["file"] = checked_name("plan/manifest-000001", data)
    state.write(plan["manifest"]["file"], data)
    keys = {new: old for old, new in old_schemas.KEYS.items()} if renamed else {}
    plan = {keys.get(key, key): value for key, value in plan.items()}
    state.write("plan/plan.json", encode_checked_json({**plan, "ferry_schema": schema}))
    location = {keys.get(key, key): v for key, v in decode_checked_json(state.read("plan/location.json")).items()}
    state.write("plan/place.json" if renamed else "plan/location.json", encode_checked_json(location))
    state.delete([*(["plan/location.json"] if renamed else []), *state.list("reports")])


def test_what_a_night_came_to(world: World) -> None:
    """Each figure of a delta run's report matches the changes at the origin."""
    for n in range(6):
        world.put(f"{n}.jpg", n)
    world.put("late.jpg", 50, fault=Trouble.NOT_FOUND)
    world.night()
    nothing = dict.fromkeys(finish.FIGURES, 0)
    assert world.figures == {**nothing, "new": 6, "failed": 1, "requests": 7}
    world.put("new.jpg", 60)
    world.put("1.jpg", 61)
    del world.bodies["5.jpg"]
    world.night()
    same = sum(len(world.bodies[f"{n}.jpg"]) for n in (0, 2, 3, 4))
    looked = {"new": 1, "changed": 1, "unchanged": 4, "failed": 1, "failed_again": 1, "requests": 7}
    assert world.figures == {**nothing, **looked, "bytes_saved": same, "removed": 1}
    world.origin.mend("/late.jpg")
    world.night()
    assert world.figures is not None
    assert (world.figures["new"], world.figures["failed"], world.figures["removed"]) == (1, 0, 1)


@pytest.mark.slow
def test_what_was_replaced_stays_in_the_history(world: World) -> None:
    """The history has each replaced copy with its digests, its time and the run that replaced it."""
    import pandas as pd

    world.put("a.jpg", 1)
    world.put("b.jpg", 2)
    copied = world.night()["a.jpg"]
    world.origin.add("/a.jpg", b"", fault=Trouble.SERVER_ERROR)
    world.night()
    world.put("a.jpg", 3)
    second = world.night()["a.jpg"]
    world.night()
    world.put("a.jpg", 1)
    world.night()
    files = sorted((world.state.root / "history").iterdir())
    versions = pd.concat([pd.read_parquet(path) for path in files])
    assert list(versions["key"]) == ["a.jpg", "a.jpg"]
    assert list(versions["sha256"]) == [copied.sha256, second.sha256]
    assert list(versions["replaced_by"]) == [3, 5]
    assert list(versions["size"]) == [copied.size, second.size]


def test_a_first_migration_has_no_history(world: World) -> None:
    """A first full run has neither history nor delta figures."""
    for n in range(3):
        world.put(f"{n}.jpg", n)
    world.night(mode="full")
    assert world.figures is None
    assert not (world.state.root / "history").exists()
