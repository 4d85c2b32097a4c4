"""Uploads in parts that a stopped run left: the next run sends what is missing, and whatever has changed meanwhile, the
object ends whole and right."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Fault as OriginFault
from demo.origin import Origin, Trouble
from demo.validators import Validators
from ferry.core import memory_budget
from ferry.core.errors import ChunkIncomplete, ObjectError
from ferry.core.records import Confirmed, Outcome, Status
from ferry.core.retry import Tries
from ferry.job.model import OnExisting
from ferry.job.retries import Timeouts
from ferry.ratelimit.permit import Permit
from ferry.state.bucket import open_state
from ferry.state.files import DirectoryState
from ferry.state.plan_file import set_plan_aside
from ferry.storage import store as store_module
from ferry.storage.s3 import bucket as s3_bucket
from ferry.transfer import chunk as chunk_module
from ferry.transfer.chunk import run_chunk
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(180)]

MIB = 1024 * 1024
DATA = random.Random(9).randbytes(12 * MIB + 5)  # thirteen parts
OTHER = random.Random(10).randbytes(12 * MIB + 5)
PARTS = 13
SENT = 6  # parts before the first run is stopped


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ONE_PUT_BYTES", MIB)
    monkeypatch.setattr(s3_bucket, "PART_BYTES", MIB)
    monkeypatch.setattr(memory_budget, "PARTS_AT_ONCE", 1)  # so that it is known which parts have arrived
    monkeypatch.setattr(chunk_module, "GRACE_S", 0.1)


class World:
    """One large object at an origin that sends ranges, and a run that was stopped once SENT parts had arrived."""

    def __init__(self, odd: OddS3, origin: Origin, folder: Path, **given: Any) -> None:
        self.odd, self.origin = odd, origin
        origin.sends_ranges = True
        self.state = DirectoryState(folder / "state")
        url = given.pop("url", None) or origin.add("/large.bin", DATA, kind=given.pop("kind", Validators.BOTH))
        self.list = helpers.write_list(folder / "list.csv", [[url]])
        self.job = helpers.make_job(manifest=str(self.list), **{"checks": "none", **given})
        self.run_no = 0

    def stop_half_way(self, after: int = SENT) -> None:
        """One run that is stopped; what it wrote to its state and to the store is what SIGKILL would leave."""
        self.run_no += 1
        planned = helpers.plan(self.job, self.state, self.run_no, server=helpers.access(self.odd))
        self.odd.faults.append(silence := Fault("silence", ("UploadPart",), after=after))
        with helpers.engine(self.job, self.state, helpers.access(self.odd), self.run_no) as runtime:

            def work() -> None:
                with contextlib.suppress(ChunkIncomplete):
                    run_chunk(runtime, planned.chunks[0])

            thread = threading.Thread(target=work)
            thread.start()
            while silence.struck == 0:
                time.sleep(0.01)
            runtime.request_stop("the test")
            thread.join()
        self.odd.faults.remove(silence)
        self.odd.requests.clear()
        self.origin.bytes_sent.clear()

    @property
    def upload(self) -> Any:
        (upload,) = self.odd.uploads.values()
        return upload

    @property
    def note(self) -> Path:
        (note,) = (self.state.root / "uploads").glob("*.json")
        return note

    def run(self, data: bytes = DATA, **changed: Any) -> Outcome:
        """One more run: the object is there, whole and confirmed, and nothing is left. Returns the row's outcome."""
        self.run_no += 1
        job = self.job.model_copy(update=changed)
        helpers.run(job, self.state, helpers.access(self.odd), self.run_no)
        (outcome,) = helpers.latest(self.state).values()
        assert outcome.status is Status.COPIED, outcome
        assert outcome.sha256 == hashlib.sha256(data).hexdigest()
        assert self.odd.stored("bucket") == {"p/large.bin": data}
        self.check_clean()
        return outcome

    def check_clean(self) -> None:
        assert self.odd.uploads == {}
        assert self.state.list("uploads") == []
        assert not list(self.state.spool_dir.glob("body-*"))

    @property
    def sent(self) -> int:
        return self.odd.requests["UploadPart"]

    @property
    def fetched(self) -> int:
        return self.origin.bytes_sent["/large.bin"]


@pytest.fixture
def odd() -> Iterator[OddS3]:
    with OddS3() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture
def world(odd: OddS3, origin: Origin, tmp_path: Path) -> World:
    return World(odd, origin, tmp_path)


def test_only_what_is_missing_is_fetched_and_sent(world: World) -> None:
    """The second run fetches the bytes from the first missing part on, sends these parts, and proves the whole."""
    world.stop_half_way()
    assert len(world.upload.parts) == SENT
    assert world.note.stat().st_mode & 0o777 == 0o600
    assert "127.0.0.1" not in world.note.read_text(), "the source's address may hold a signature"
    outcome = world.run()
    assert (world.sent, world.fetched) == (PARTS - SENT, len(DATA) - SENT * MIB)
    assert outcome.confirmed is Confirmed.DIGEST
    assert outcome.size == len(DATA)
    assert outcome.source_etag == f'"{outcome.md5}"'
    assert world.odd.requests["CreateMultipartUpload"] == 0


def test_it_may_be_stopped_again(world: World) -> None:
    """A resumed upload that is stopped is resumed again, from where the second run came to."""
    world.stop_half_way()
    (upload_id,) = world.odd.uploads
    world.stop_half_way(3)
    assert list(world.odd.uploads) == [upload_id]
    world.run()
    assert (world.sent, world.fetched) == (PARTS - SENT - 3, len(DATA) - (SENT + 3) * MIB)


def _lose(world: World) -> None:
    del world.upload.parts[3]


def _alter(world: World) -> None:
    world.upload.parts[3] = bytes([world.upload.parts[3][0] ^ 1]) + world.upload.parts[3][1:]


@pytest.mark.parametrize("what", [_lose, _alter])
def test_parts_that_the_store_lost_or_altered_are_sent_again(what: Callable[[World], None], world: World) -> None:
    """The first of them is where the row goes on; parts after it that are right stay."""
    world.stop_half_way()
    what(world)
    outcome = world.run()
    assert (world.sent, world.fetched) == (PARTS - SENT + 1, len(DATA) - 2 * MIB)
    assert outcome.confirmed is Confirmed.DIGEST


def test_all_parts_there_but_the_end_is_missing(world: World) -> None:
    """The source is asked for the last part all the same: it may have changed."""
    world.stop_half_way()
    world.upload.parts.update({n + 1: DATA[n * MIB : (n + 1) * MIB] for n in range(PARTS)})
    world.run()
    assert (world.sent, world.fetched) == (1, 5)


def _changed(world: World) -> None:
    world.origin.add("/large.bin", OTHER)


def _changed_under_its_etag(world: World) -> None:
    world.origin._objects["/large.bin"].body = OTHER


def _grew(world: World) -> None:
    found = world.origin._objects["/large.bin"]
    found.body = OTHER + b"more"


def _gone(world: World) -> None:
    world.odd.uploads.clear()


def _damaged(world: World) -> None:
    note = json.loads(world.note.read_text())
    digest = note["upload"]["sha256"]
    note["upload"]["sha256"] = digest[::-1]
    world.note.write_text(json.dumps(note))


def _cut(world: World) -> None:
    world.note.write_text(world.note.read_text()[:-40])


def _no_ranges(world: World) -> None:
    world.origin.sends_ranges = False


AFRESH = [
    pytest.param(_changed, OTHER, id="the source has changed"),
    pytest.param(_changed_under_its_etag, OTHER, id="it has changed under its ETag"),
    pytest.param(_grew, OTHER + b"more", id="it has grown under its ETag"),
    pytest.param(_gone, DATA, id="the store has ended the upload"),
    pytest.param(_damaged, DATA, id="a digest in the note is another"),
    pytest.param(_no_ranges, DATA, id="the origin sends no ranges any more"),
]


@pytest.mark.parametrize(("what", "data"), AFRESH)
def test_else_the_row_starts_afresh(what: Callable[[World], None], data: bytes, world: World) -> None:
    """Whatever is not as the note has it, the whole object is fetched and sent, and the old upload is aborted."""
    world.stop_half_way()
    what(world)
    world.run(data)
    assert world.sent == -(-len(data) // MIB)
    assert world.fetched >= len(data)


def test_a_note_that_is_cut_names_no_upload(world: World) -> None:
    """The row starts afresh. The old upload is left to the bucket's rule for unfinished ones: nothing names it."""
    world.stop_half_way()
    _cut(world)
    world.run_no += 1
    helpers.run(world.job, world.state, helpers.access(world.odd), world.run_no)
    assert world.odd.stored("bucket") == {"p/large.bin": DATA}


@pytest.mark.parametrize("what", ["nothing", "the source", "the first part"])
def test_a_source_in_a_bucket(what: str, odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """Its ETag is the condition, and the attributes of its object are those that the first run has read."""
    odd.put("old", "a/large.bin", DATA, {"Content-Type": "image/x-large", "x-amz-meta-sku": "A 1"})
    source = {"roots": ["s3://old/a/"]}
    world = World(odd, origin, tmp_path, url="s3://old/a/large.bin", source=source, checks="length")
    world.stop_half_way()
    changed = what == "the source"
    if changed:
        odd.put("old", "a/large.bin", OTHER, {"Content-Type": "image/x-other", "x-amz-meta-sku": "B 2"})
    if what == "the first part":
        del world.upload.parts[1]
    odd.log.clear()
    outcome = world.run(OTHER if changed else DATA)
    gets = [status for operation, _, status in odd.log if operation == "GetObject"]
    afresh = {"the source": [412, 200], "the first part": [200]}
    assert (world.sent, gets) == ((PARTS, afresh[what]) if what in afresh else (PARTS - SENT, [206]))
    stored = odd.objects["bucket"]["p/large.bin"].headers
    assert stored["x-amz-meta-sku"] == ("B 2" if changed else "A 1")
    assert outcome.source_etag == f'"{outcome.md5}"'
    assert outcome.content_type == stored["Content-Type"] == ("image/x-other" if changed else "image/x-large")


@pytest.mark.parametrize("kind", [Validators.WEAK, Validators.DATE, Validators.NONE])
def test_a_source_without_a_strong_etag(kind: Validators, odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """Nothing else shows that a part is of the same bytes: the row starts afresh."""
    world = World(odd, origin, tmp_path, kind=kind)
    world.stop_half_way()
    assert json.loads(world.note.read_text())["upload"] is None
    world.run()
    assert (world.sent, world.fetched) == (PARTS, len(DATA))


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (501, "NotImplemented")])
def test_a_store_that_lists_no_parts(status: int, code: str, world: World) -> None:
    """Credentials may allow writing and not listing: the row starts afresh, and the run goes on."""
    world.stop_half_way()
    world.odd.faults.append(fault := Fault("status", ("ListParts",), status=status, code=code))
    world.run()
    assert fault.struck >= 1
    assert (world.sent, world.fetched) == (PARTS, len(DATA))


def test_a_store_that_is_away_keeps_the_upload(world: World) -> None:
    """Two lists that fail are tried again."""
    world.stop_half_way()
    world.odd.faults.append(Fault("status", ("ListParts",), times=2))
    world.run()
    assert (world.sent, world.fetched) == (PARTS - SENT, len(DATA) - SENT * MIB)


@pytest.mark.parametrize("etags", ["kms", "opaque", "none"])
def test_a_store_whose_etags_are_not_digests(etags: Any, origin: Origin, tmp_path: Path) -> None:
    """It does not show which bytes its parts have, so none of them stays."""
    with OddS3(etags=etags) as server:
        server.make_bucket("bucket")
        world = World(server, origin, tmp_path)
        world.stop_half_way()
        world.run()
        assert (world.sent, world.fetched) == (PARTS, len(DATA))


def test_a_body_that_one_request_may_not_carry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload in parts after a 413 is resumed as such: its rest is never put as the object."""
    monkeypatch.setattr(store_module, "ONE_PUT_BYTES", 100 * MIB)
    world.odd.faults.append(Fault("status", ("PutObject",), times=1, status=413, code="EntityTooLarge"))
    world.stop_half_way()
    world.run()
    assert (world.sent, world.odd.requests["PutObject"]) == (PARTS - SENT, 0)


def test_other_settings_start_afresh(world: World) -> None:
    """The attributes of the upload that was begun are those of its job."""
    world.stop_half_way()
    destination = world.job.destination.model_copy(update={"cache_control": "max-age=7"})
    world.run(destination=destination)
    assert world.sent == PARTS
    assert world.odd.objects["bucket"]["p/large.bin"].headers["Cache-Control"] == "max-age=7"


def test_another_place_starts_afresh(world: World) -> None:
    """`--replan` to another prefix of the bucket: the parts that were sent are of another object."""
    world.stop_half_way()
    set_plan_aside(world.state)
    destination = world.job.destination.model_copy(update={"uri": "s3://bucket/q"})
    job = world.job.model_copy(update={"destination": destination})
    helpers.run(job, world.state, helpers.access(world.odd), 2)
    (outcome,) = helpers.latest(world.state).values()
    assert (outcome.status, outcome.sha256) == (Status.COPIED, hashlib.sha256(DATA).hexdigest())
    assert world.odd.stored("bucket") == {"q/large.bin": DATA}


def test_a_refused_rest_is_not_sent_without_its_tags(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """A 403 may be about the tags, but the rest of a body is not sent again, to another upload: the row starts afresh.

    The right is there again then, so the object has its tags.
    """
    odd.put("old", "a/large.bin", DATA, {"Content-Type": "image/x-large", "x-amz-tagging": "sku=1"})
    source = {"roots": ["s3://old/a/"]}
    world = World(odd, origin, tmp_path, url="s3://old/a/large.bin", source=source, checks="length")
    world.job = world.job.model_copy(update={"retries": world.job.retries.model_copy(update={"attempts": 2})})
    world.stop_half_way()
    odd.faults.append(fault := Fault("status", ("UploadPart",), times=1, status=403, code="AccessDenied"))
    world.run()
    assert fault.struck == 1
    assert odd.objects["bucket"]["p/large.bin"].headers["x-amz-tagging"] == "sku=1"


def test_a_run_without_its_row_keeps_the_upload(world: World) -> None:
    """A run that plans nothing, or other rows, ends no upload of a row that is pending."""
    world.stop_half_way()
    with helpers.engine(world.job, world.state, helpers.access(world.odd), 2):
        pass
    world.run()
    assert world.sent == PARTS - SENT


@pytest.mark.parametrize(
    "planted",
    [{"about": None}, {"parts": 7}, {"size": "1"}, {"id": None}, {"where": "gs:// "}, {"about": {"row_id": []}}],
)
def test_a_note_of_another_kind_names_no_upload(planted: dict[str, Any], world: World) -> None:
    """Whatever stands in a note, the run goes on, and the row starts afresh."""
    world.stop_half_way()
    note = json.loads(world.note.read_text())
    note["upload"].update(planted)
    world.note.write_text(json.dumps({name: value for name, value in note.items() if name != "sha256"}))
    world.run()
    assert world.sent == PARTS


@pytest.mark.parametrize(
    "planted", [{"etag": 1}, {"attributes": None}, {"attributes": {"a": 1}}, {"version": None}, {"known": None}]
)
def test_a_note_whose_outcome_is_of_another_kind(planted: dict[str, Any], world: World) -> None:
    """So it is if what a note says of the row's outcome is not what Ferry writes."""
    world.stop_half_way()
    note = json.loads(world.note.read_text())
    note["upload"]["about"].update(planted)
    world.note.write_text(json.dumps({name: value for name, value in note.items() if name != "sha256"}))
    world.run()
    assert world.sent == PARTS


@pytest.mark.parametrize("digest", [hashlib.sha256(DATA).hexdigest(), None])
def test_a_state_in_a_bucket(digest: str | None, odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """Others may write notes there. So only a digest of the manifest proves the whole, and all of it is read back."""
    odd.make_bucket("state")
    world = World(odd, origin, tmp_path)
    world.state = open_state("s3://state/of/job", helpers.access(odd), tmp_path)  # type: ignore[assignment]
    if digest is not None:
        url = world.list.read_text().split()[1]
        helpers.write_list(world.list, [[url, digest]], header=("url", "sha256"))
    world.stop_half_way()
    outcome = world.run()
    assert world.sent == (PARTS if digest is None else PARTS - SENT)
    assert outcome.confirmed is (Confirmed.DIGEST if digest is None else Confirmed.READ_BACK)


def test_an_upload_that_began_without_its_tags_starts_afresh(odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """The first run's store refused the tags. The next run does not know it, and would call them written."""
    odd.put("old", "a/large.bin", DATA, {"Content-Type": "image/x-large", "x-amz-tagging": "sku=1"})
    source = {"roots": ["s3://old/a/"]}
    world = World(odd, origin, tmp_path, url="s3://old/a/large.bin", source=source, checks="length")
    world.job = world.job.model_copy(update={"retries": world.job.retries.model_copy(update={"attempts": 2})})
    refusal = Fault("status", ("CreateMultipartUpload",), times=1, status=403, code="AccessDenied")
    odd.faults.append(refusal)
    world.stop_half_way()
    assert refusal.struck == 1
    world.run()
    assert odd.objects["bucket"]["p/large.bin"].headers["x-amz-tagging"] == "sku=1"


@pytest.mark.parametrize("fault", [Fault("status", ("ListParts",), status=500), Fault("error in 200", ("ListParts",))])
def test_a_store_whose_list_of_parts_always_fails(fault: Fault, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has answered, and takes writes: the row starts afresh."""
    monkeypatch.setattr(Tries, "_pause_s", lambda *_: 0.0)
    world.stop_half_way()
    world.odd.faults.append(fault)
    world.run()
    assert fault.struck >= 5
    assert (world.sent, world.fetched) == (PARTS, len(DATA))


@pytest.mark.slow
def test_a_destination_that_is_silent_slows_no_source(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failure is reported to its own limit alone: the source has not been asked for anything."""
    world.stop_half_way()
    reported: list[ObjectError] = []
    monkeypatch.setattr(Permit, "failed", lambda _, error, __: reported.append(error))
    world.job = world.job.model_copy(update={"timeouts": Timeouts(read_s=0.3)})
    world.odd.faults.append(silence := Fault("silence", ("ListParts",)))
    helpers.run(world.job, world.state, helpers.access(world.odd), 2)
    (outcome,) = helpers.latest(world.state).values()
    assert (outcome.error_class, outcome.message) == ("timeout", "the destination did not answer in time")
    assert (silence.struck > 0, world.fetched, reported) == (True, 0, [])


def test_a_row_that_left_the_list_leaves_no_upload(world: World) -> None:
    """An upload whose row has left the plan is aborted at the end of the run."""
    world.stop_half_way()
    url = world.origin.add("/small.bin", b"small")
    helpers.write_list(world.list, [[url]])
    helpers.run(world.job, world.state, helpers.access(world.odd), 2)
    assert world.odd.stored("bucket") == {"p/small.bin": b"small"}
    world.check_clean()


def test_a_source_that_does_not_answer_keeps_the_upload(world: World) -> None:
    """The row is tried again, and goes on then."""
    world.stop_half_way()
    world.job = world.job.model_copy(update={"retries": world.job.retries.model_copy(update={"attempts": 3})})
    world.origin._objects["/large.bin"].fault = OriginFault(Trouble.RESET, times=2)
    world.run()
    assert (world.sent, world.fetched) == (PARTS - SENT, len(DATA) - SENT * MIB)


def test_an_object_that_appears_meanwhile_stays(world: World) -> None:
    """With `on_existing: fail`, a key that another client has written since is not replaced by a resumed upload."""
    world.job = world.job.model_copy(update={"on_existing": OnExisting.FAIL})
    world.stop_half_way()
    world.odd.put("bucket", "p/large.bin", b"theirs")
    helpers.run(world.job, world.state, helpers.access(world.odd), 2)
    (outcome,) = helpers.latest(world.state).values()
    assert (outcome.status, outcome.error_class) == (Status.FAILED, "exists")
    assert world.odd.stored("bucket") == {"p/large.bin": b"theirs"}
    world.check_clean()


@pytest.mark.parametrize("known", [True, False])
def test_an_equal_object_that_is_stored_meanwhile(known: bool, odd: OddS3, origin: Origin, tmp_path: Path) -> None:
    """With `dedupe: true` the server copies it in place of the missing parts, and the row's upload is aborted.

    Without a digest in the list, the rest is fetched first, which proves the bytes.
    """
    world = World(odd, origin, tmp_path, dedupe=True)
    digest, header = hashlib.sha256(DATA).hexdigest() if known else "", ("url", "sha256", "content_type")
    large = [origin.url("/large.bin"), digest, "image/x-large"]
    helpers.write_list(world.list, [large], header)
    world.stop_half_way()
    equal = [origin.add("/equal.bin", DATA), digest, "image/x-large"]
    helpers.write_list(world.list, [large, equal], header)
    planned = helpers.plan(world.job, world.state, 2, server=helpers.access(odd))
    with helpers.engine(world.job, world.state, helpers.access(odd), 2) as runtime:
        for ref in sorted(planned.chunks, key=lambda ref: -ref.run_no):
            run_chunk(runtime, ref)
        runtime.abandon_uploads()
    outcome = helpers.by_key(world.state)["large.bin"]
    assert (outcome.status, outcome.sha256) == (Status.COPIED, hashlib.sha256(DATA).hexdigest())
    assert (outcome.copy_of, outcome.confirmed) == ("equal.bin", Confirmed.DIGEST)
    assert (world.sent, world.fetched) == (PARTS, 0 if known else len(DATA) - SENT * MIB)
    assert odd.stored("bucket") == {"p/large.bin": DATA, "p/equal.bin": DATA}
    assert odd.objects["bucket"]["p/large.bin"].headers == odd.objects["bucket"]["p/equal.bin"].headers
    world.check_clean()
