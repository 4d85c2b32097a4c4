"""Proofs of real copies, which sha256sum and bagit.py accept, and in which they find each fault."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin
from ferry.core.errors import Fatal, UserError
from ferry.core.records import ErrorClass, Status
from ferry.job.model import Job
from ferry.proof import Readings
from ferry.proof.bag import write_manifests
from ferry.proof.objects import create_objects
from ferry.reconcile.sample import EVERYTHING
from ferry.state import ledger
from ferry.state.files import DirectoryState
from ferry.storage.access import Access
from ferry.storage.factory import open_store
from ferry.storage.store import Store
from tests.servers.odd_s3 import Fault, OddS3
from tests.support.helpers import access, by_key, directory_state, latest, make_job, plan, run, write_list
from tests.support.proofs import bagit, downloaded, prove, sums

ROOT = Path(__file__).parents[3]
ODD = (
    "plain.jpg",
    "e\u0301.jpg",
    "a b.jpg",
    "back\\slash.jpg",
    "ü/日本.jpg",
    "  leading.jpg",
    "plus+.jpg",
    "#hash.jpg",
    "a/b/c&d;e.jpg",
)


def copied(
    folder: Path, keys: tuple[str, ...] = ("1.jpg", "2.jpg", "3.jpg"), **given: Any
) -> tuple[Job, DirectoryState, Store]:
    """A job that has copied a directory, one file for each key."""
    for n, key in enumerate(keys):
        path = folder / "old" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{n}: {key}".encode())
    job = make_job(
        manifest=f"file://{folder}/old/",
        destination=f"file://{folder}/new/",
        source={},
        **{"checks": "length", **given},
    )
    (folder / "new").mkdir()
    state = directory_state(folder)
    run(job, state, Access())
    return job, state, open_store(job.destination.uri, Access(), state.spool_dir)


def test_a_proof_that_tools_accept(tmp_path: Path) -> None:
    """Odd keys and all: sha256sum, md5sum and bagit.py accept a downloaded copy; the document adds up."""
    job, state, store = copied(tmp_path, ODD)
    proof = prove(job, state, store)
    assert (proof.reasons, proof.message.partition(".")[0]) == ([], "The proof is complete")
    folder = downloaded(tmp_path / "state" / proof.name, tmp_path / "new", tmp_path / "bag")
    assert (bagit(folder), sums(folder), sums(folder, "md5")) == ("", "", "")
    assert (folder / "bagit.txt").read_text().startswith("BagIt-Version: 1.0\n")
    told = json.loads((folder / "proof.json").read_text())
    assert told["rows"]["planned"] == told["rows"]["copied"] == len(ODD)
    assert told["digest_of_digests"] == hashlib.sha256((folder / "manifest-sha256.txt").read_bytes()).hexdigest()
    names = [line.split("  data/", 1)[1] for line in (folder / "manifest-sha256.txt").read_text().splitlines()]
    assert names == sorted(ODD, key=str.encode)
    assert set(told["files"]) == {path.name for path in (tmp_path / "state" / proof.name).iterdir()}


def test_the_digest_of_digests_in_a_few_lines(tmp_path: Path) -> None:
    """The program of docs/how-to/proof.md finds it in the objects themselves, and in a manifest in any order."""
    job, state, store = copied(tmp_path, ODD)
    proof = prove(job, state, store)
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "how-to" / "proof.md").read_text(), re.DOTALL)
    assert sum(map(bool, map(str.strip, program.splitlines()))) <= 15
    manifest = tmp_path / "manifest"
    lines = (tmp_path / "state" / proof.name / "manifest-sha256.txt").read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(reversed(lines)))
    for place in (tmp_path / "new", manifest):
        command = [sys.executable, "-c", program, str(place)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        assert said == proof.document["digest_of_digests"]


def test_percent_signs_are_written_as_they_are(tmp_path: Path) -> None:
    """BagIt 1.0 wants `%25`, which none of the tools decodes; with 0.97 the names are as they are."""
    job, state, store = copied(tmp_path, ("a%41.jpg", "100%.jpg", "a%2Fb.jpg"))
    proof = prove(job, state, store)
    folder = downloaded(tmp_path / "state" / proof.name, tmp_path / "new", tmp_path / "bag")
    assert (bagit(folder), sums(folder)) == ("", "")
    assert (folder / "bagit.txt").read_text().startswith("BagIt-Version: 0.97\n")
    assert "  data/a%41.jpg\n" in (folder / "manifest-sha256.txt").read_text()


@pytest.mark.parametrize(
    ("fault", "by_bagit", "by_sums"),
    [
        ("altered", "sha256 validation failed", "1.jpg: FAILED"),
        ("missing", "exists in manifest but was not found on filesystem", "1.jpg: FAILED open or read"),
        ("extra", "exists on filesystem but is not in the manifest", ""),
    ],
)
def test_tools_find_what_is_wrong(fault: str, by_bagit: str, by_sums: str, tmp_path: Path) -> None:
    """bagit.py finds a wrong byte, a missing and an extra object; sha256sum finds all but the extra one."""
    job, state, store = copied(tmp_path)
    proof = prove(job, state, store)
    folder = downloaded(tmp_path / "state" / proof.name, tmp_path / "new", tmp_path / "bag")
    path = folder / "data" / "1.jpg"
    if fault == "altered":
        path.write_bytes(b"1" + path.read_bytes()[1:])
    elif fault == "missing":
        path.unlink()
    else:
        (folder / "data" / "extra.jpg").write_bytes(b"x")
    without_oxum = (folder / "bag-info.txt").read_text().replace("Payload-Oxum", "Was-Oxum")
    assert bagit(folder), "by number and bytes, or by digest"
    (folder / "bag-info.txt").write_text(without_oxum)
    (folder / "tagmanifest-sha256.txt").unlink()
    assert by_bagit in bagit(folder)
    assert by_sums in sums(folder)
    assert bool(sums(folder)) == (fault != "extra")


def test_a_changed_document_is_found(tmp_path: Path) -> None:
    """The tag manifest has the digests of all other files, the page and the document included."""
    job, state, store = copied(tmp_path)
    folder = downloaded(tmp_path / "state" / prove(job, state, store).name, tmp_path / "new", tmp_path / "bag")
    (folder / "proof.json").write_text((folder / "proof.json").read_text().replace('"failed": 0', '"failed": 1'))
    assert "proof.json sha256 validation failed" in bagit(folder)


def document(tmp_path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "state" / name / "proof.json").read_text())
    return found


def table(tmp_path: Path, name: str, file: str) -> list[dict[str, str]]:
    with (tmp_path / "state" / name / file).open(newline="") as lines:
        return list(csv.DictReader(lines))


def forget(state: DirectoryState, row: str, **known: Any) -> None:
    """Writes the outcome of the row with this key again, with other values."""
    later = {"attempt": 2, "recorded_at": datetime.now(UTC), **known}
    ledger.append_outcomes(state, [by_key(state)[row]._replace(**later)], 1, "c", 0)


@pytest.mark.parametrize("missing", [("sha256", "md5"), ("md5",), ("sha256",)])
def test_objects_without_digests_get_them_while_they_are_read(missing: tuple[str, ...], tmp_path: Path) -> None:
    """Both digests are in the proof, counted and listed apart, and not in the ledger."""
    job, state, store = copied(tmp_path)
    before = by_key(state)["2.jpg"]
    forget(state, "2.jpg", **dict.fromkeys(missing))
    proof = prove(job, state, store)
    assert proof.reasons == []
    folder = downloaded(tmp_path / "state" / proof.name, tmp_path / "new", tmp_path / "bag")
    assert (bagit(folder), sums(folder), sums(folder, "md5")) == ("", "", "")
    told = document(tmp_path, proof.name)
    assert (told["objects"]["in_manifests"], told["objects"]["digests_read_now"]) == (3, 1)
    (line,) = table(tmp_path, proof.name, "digests-read-now.csv")
    assert line == {"key": "2.jpg", "size": str(before.size), "md5": before.md5, "sha256": before.sha256}
    assert [getattr(by_key(state)["2.jpg"], name) for name in missing] == [None] * len(missing)
    by_size = 1 if len(missing) == 2 else 0
    assert told["confirmed"] == {"digest": 0, "read_back": 3 - by_size, "size": by_size}


@pytest.mark.parametrize("how", [{"list_only": True}, {"sample": 3}])
def test_objects_that_the_manifests_do_not_cover(how: dict[str, Any], tmp_path: Path) -> None:
    """What nothing has read has no digests: a file of its own, and a number."""
    job, state, store = copied(tmp_path)
    forget(state, "2.jpg", sha256=None)
    proof = prove(job, state, store, **how)
    told = document(tmp_path, proof.name)
    covered = 3 if "sample" in how else 2  # the sample has read all three
    assert (told["objects"]["in_manifests"], told["objects"]["without_digests"]) == (covered, 3 - covered)
    if covered == 2:
        (line,) = table(tmp_path, proof.name, "objects-without-digests.csv")
        assert (line["key"], line["sha256"], line["md5"]) == ("2.jpg", "", by_key(state)["2.jpg"].md5)
        assert told["confirmed"] == {"digest": 0, "read_back": 0, "size": 3}
    assert proof.reasons == []


def test_a_sample(tmp_path: Path) -> None:
    """The three numbers are of the rows that were read and of the others; the document bounds what was missed."""
    job, state, store = copied(tmp_path, tuple(f"{n}.jpg" for n in range(40)))
    forget(state, "0.jpg", confirmed="digest")
    told = document(tmp_path, prove(job, state, store, sample=10).name)
    assert told["verification"]["kind"] == "sample"
    assert told["verification"]["sample"] == {
        "seed": 7, "drawn_from": 40, "read": 10, "wrong": 0, "not_read": 30, "wrong_at_most": {"95%": 9, "99%": 12},
    }  # fmt: skip
    assert told["confirmed"]["read_back"] == 10
    assert sum(told["confirmed"].values()) == 40
    assert told["objects"]["in_manifests"] == 40


def test_a_wrong_object(tmp_path: Path) -> None:
    """An altered object makes the proof incomplete, is in no manifest, and is named among the others."""
    job, state, store = copied(tmp_path)
    (tmp_path / "new" / "2.jpg").write_bytes(b"x")
    (tmp_path / "new" / "3.jpg").unlink()
    (tmp_path / "new" / "more.jpg").write_bytes(b"more")
    proof = prove(job, state, store)
    assert proof.reasons == [
        "2 rows pending; the next `ferry run` takes them",
        "1 object missing, 1 altered",
    ]
    told = document(tmp_path, proof.name)
    assert (told["verdict"], told["objects"]["in_manifests"], told["listing"]["others"]) == ("incomplete", 1, 2)
    assert [(line["key"], line["row"]) for line in table(tmp_path, proof.name, "others.csv")] == [
        ("2.jpg", "pending"),
        ("more.jpg", ""),
    ]


def test_a_listing_finds_what_a_sample_did_not_read(tmp_path: Path) -> None:
    """An object that is missing, or has another size, outside the sample."""
    job, state, store = copied(tmp_path)
    for path in (tmp_path / "new").iterdir():
        path.write_bytes(b"longer than before")
    (tmp_path / "new" / "1.jpg").unlink()
    told = document(tmp_path, prove(job, state, store, sample=1, pages=store.list).name)
    assert told["listing"]["not_listed"] + told["listing"]["other_size"] == 2
    assert told["verdict"] == "incomplete"


def test_listing_refused(tmp_path: Path) -> None:
    """Without the right to list, the proof says so, and is complete all the same."""
    job, state, store = copied(tmp_path)

    def refuse() -> Any:
        raise UserError("destination: AccessDenied")

    proof = prove(job, state, store, pages=refuse)
    assert (proof.reasons, document(tmp_path, proof.name)["listing"]) == ([], {"refused": "destination: AccessDenied"})
    assert not (tmp_path / "state" / proof.name / "others.csv").exists()


def test_a_store_with_opaque_etags_that_refuses_to_list(origin: Origin, tmp_path: Path) -> None:
    """Digests are those of the bytes, whatever ETags say; the store's refusal of the listing is in the document."""
    images = {f"{n}.jpg": make_image("jpeg", n) for n in range(3)}
    write_list(tmp_path / "list.csv", [[origin.add(f"/{key}", body)] for key, body in images.items()])
    with OddS3(etags="opaque") as odd:
        odd.make_bucket("bucket")
        job = make_job(manifest=str(tmp_path / "list.csv"), on_existing="overwrite")
        state = directory_state(tmp_path)
        run(job, state, access(odd))
        odd.faults.append(Fault("status", ("ListObjectsV2",), status=403, code="AccessDenied"))
        proof = prove(job, state, open_store(job.destination.uri, access(odd), state.spool_dir))
    told = document(tmp_path, proof.name)
    assert (proof.reasons, told["confirmed"]["read_back"], told["objects"]["in_manifests"]) == ([], 3, 3)
    assert "AccessDenied" in told["listing"]["refused"]
    lines = (tmp_path / "state" / proof.name / "manifest-sha256.txt").read_text().splitlines()
    assert lines == [f"{hashlib.sha256(body).hexdigest()}  data/{key}" for key, body in sorted(images.items())]


def test_pending_and_failed_rows(tmp_path: Path) -> None:
    """Pending rows and too many failures make it incomplete; failures are named with their reasons."""
    job, state, store = copied(tmp_path, failure_budget=0)
    forget(state, "1.jpg", status=Status.PENDING)
    failed = {"status": Status.FAILED, "error_class": ErrorClass.NOT_FOUND, "status_code": 404, "message": "=404"}
    forget(state, "2.jpg", **failed)
    proof = prove(job, state, store)
    assert proof.reasons == [
        "1 row pending; the next `ferry run` takes them",
        "1 row failed, more than the 0 that failure_budget allows",
    ]
    told = document(tmp_path, proof.name)
    assert {name: told["rows"][name] for name in ("planned", "copied", "failed", "pending", "classes")} == {
        "planned": 3, "copied": 1, "failed": 1, "pending": 1, "classes": {"not_found": 1},
    }  # fmt: skip
    (line,) = table(tmp_path, proof.name, "failures.csv")
    assert (line["key"], line["error_class"], line["message"]) == ("2.jpg", "not_found", "'=404")
    assert document(tmp_path, proof.name)["failures"][0]["rows"] == 1
    within = job.model_copy(update={"failure_budget": 1})
    forget(state, "1.jpg", status=Status.COPIED)
    assert prove(within, state, store).reasons == []


def test_an_unread_object(tmp_path: Path) -> None:
    """An object that cannot be read stays in the manifests by the ledger, and makes the proof incomplete."""
    job, state, store = copied(tmp_path)
    row = by_key(state)["1.jpg"].row_id
    proof = prove(job, state, Unreadable(store, "1.jpg"))  # type: ignore[arg-type]
    assert [reason.partition(" (")[0] for reason in proof.reasons] == ["1 object could not be read"]
    told = document(tmp_path, proof.name)
    assert told["objects"]["in_manifests"] == 3
    assert told["confirmed"] == {"digest": 0, "read_back": 2, "size": 1}
    assert latest(state)[row].status is Status.COPIED


class Unreadable:
    """A store in front of a real one, which cannot read one key."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self.list = store.list

    async def digest_and_attributes(self, key: str, **given: Any) -> Any:
        if key == self._key:
            from ferry.core.errors import ObjectError

            raise ObjectError(ErrorClass.STORE_ERROR, "the disk does not answer")
        return await self._store.digest_and_attributes(key, **given)


def test_rows_that_share_an_object(tmp_path: Path) -> None:
    """One line for each key, however many rows have it."""
    job, state, store = copied(tmp_path)
    first = by_key(state)["1.jpg"]
    forget(state, "3.jpg", key="1.jpg", size=first.size, md5=first.md5, sha256=first.sha256, status=Status.UNCHANGED)
    (tmp_path / "new" / "3.jpg").unlink()
    proof = prove(job, state, store)
    folder = downloaded(tmp_path / "state" / proof.name, tmp_path / "new", tmp_path / "bag")
    assert (proof.reasons, bagit(folder), sums(folder)) == ([], "", "")
    told = document(tmp_path, proof.name)
    assert (told["objects"]["in_manifests"], sum(told["confirmed"].values())) == (2, 3)


def test_nothing_secret(tmp_path: Path) -> None:
    """No file of a proof has a signature of an address."""
    job, state, store = copied(tmp_path)
    secret = {
        "manifest": "https://list.example/list.csv?v=geheim",
        "source": {"url": "https://o.example/{id}?v=geheim"},
    }
    told = Job.model_validate({**job.model_dump(), **secret})
    proof = prove(told, state, store)
    for path in (tmp_path / "state" / proof.name).iterdir():
        assert b"geheim" not in path.read_bytes(), path.name
    assert document(tmp_path, proof.name)["list"]["address"].startswith("https://list.example/list.csv?")


def test_a_job_that_never_ran(tmp_path: Path) -> None:
    """A sentence, and no folder."""
    state = directory_state(tmp_path)
    with pytest.raises(UserError, match="nothing is planned yet"):
        prove(make_job(), state, open_store(f"file://{tmp_path}/", Access(), state.spool_dir))
    assert state.list("proofs") == []


def test_rows_that_wait_for_a_recheck(tmp_path: Path) -> None:
    """A done row that a delta run has planned again is pending: its object may be replaced at any moment."""
    job, state, store = copied(tmp_path)
    (tmp_path / "old" / "2.jpg").write_bytes(b"another image")
    plan(job.model_copy(update={"mode": "delta"}), state, 2)
    proof = prove(job, state, store)
    assert " pending" in proof.reasons[0]
    told = document(tmp_path, proof.name)
    assert told["rows"]["pending"] + told["objects"]["in_manifests"] == 3
    assert "2.jpg" in [line["key"] for line in table(tmp_path, proof.name, "others.csv")]


def test_two_proofs_within_a_second(tmp_path: Path) -> None:
    """Each has its own folder, however fast one follows the other."""
    job, state, store = copied(tmp_path)
    first, second = prove(job, state, store).name, prove(job, state, store).name
    assert first < second


def test_a_lost_lease(tmp_path: Path) -> None:
    """Another run has begun while the destination was listed: nothing is in the state, and the spool is empty."""
    job, state, store = copied(tmp_path)

    def lost() -> None:
        raise Fatal("another run has taken the lease")

    with pytest.raises(Fatal, match="taken the lease"):
        prove(job, state, store, keep_lease=lost)
    assert state.list("proofs") == []
    assert not list(state.spool_dir.glob("ferry-proof-*"))


def test_only_whole_proofs_have_a_tag_manifest(tmp_path: Path) -> None:
    """The verdict is written after the lists, and the tag manifest after all: what ends early is not a proof."""
    job, state, store = copied(tmp_path)
    names: list[str] = []
    write_file = state.write_file

    def write(name: str, path: Path) -> None:
        names.append(name.rpartition("/")[2])
        write_file(name, path)

    state.write_file = write  # type: ignore[method-assign]
    prove(job, state, store)
    assert names[-2:] == ["proof.json", "tagmanifest-sha256.txt"]
    assert len(names) > 5


@pytest.mark.slow
def test_a_million_rows_fit_into_the_memory(tmp_path: Path) -> None:
    """A ledger without digests, so that the verification has a reading for each row: the largest tables."""
    rows, readings = 1_000_000, Readings(tmp_path / "readings.csv").path
    with contextlib.closing(ledger.connect(tmp_path / "spool")) as con:
        con.execute(
            f"""
            CREATE VIEW made AS
            SELECT md5(n::VARCHAR) AS row_id, 'products/' || n || '.jpg' AS key, 9 AS size, 'e' || n AS dest_etag,
                   now() AS recorded_at, NULL::VARCHAR AS sha256, NULL::VARCHAR AS md5, 'copied' AS status,
                   'size' AS confirmed FROM range({rows}) t(n)
            """
        )
        for name in ("latest", "manifest"):
            con.execute(f"COPY (SELECT * FROM made) TO '{tmp_path}/{name}' (FORMAT parquet)")
            con.from_parquet(f"{tmp_path}/{name}").create_view(name)
        con.execute(f"COPY (SELECT row_id, row_id || row_id, row_id, 9 FROM made) TO '{readings}' (FORMAT csv, HEADER)")
        con.execute("CREATE TABLE waiting (row_id VARCHAR)")
        create_objects(con, readings, EVERYTHING, read=True)
        found = write_manifests(con, tmp_path)
    assert (found.objects, found.read_now, found.without_digests) == (rows, rows, 0)


def test_line_breaks_in_keys(tmp_path: Path) -> None:
    """They are encoded, so that none adds a line of its own to a manifest. Of several rows the last outcome counts."""
    with contextlib.closing(ledger.connect(tmp_path / "spool")) as con:
        con.execute(
            """
            CREATE TABLE done AS SELECT *, 1 AS size, NULL AS etag, false AS read_now FROM (VALUES
                ('x' || chr(10) || '00  data/y', 'aa', 'a', 1), ('c' || chr(13), 'bb', 'b', 1),
                ('same', 'old', 'old', 1), ('same', 'new', 'new', 3), ('same', 'old', 'old', 2)
            ) t(key, sha256, md5, recorded_at)
            """
        )
        assert write_manifests(con, tmp_path).objects == 3
    manifest = (tmp_path / "manifest-sha256.txt").read_bytes()
    assert manifest == b"bb  data/c%0D\nnew  data/same\naa  data/x%0A00  data/y\n"
    assert (tmp_path / "manifest-md5.txt").read_bytes() == manifest.replace(b"aa ", b"a ").replace(b"bb ", b"b ")


@pytest.mark.parametrize("missing", ["md5", "sha256"])
def test_an_object_with_one_digest_is_in_neither_manifest(missing: str, tmp_path: Path) -> None:
    """RFC 8493, section 2.1.3: a manifest lists every file. Its cells are safe in a spreadsheet."""
    job, state, store = copied(tmp_path, ("=1.jpg", "2.jpg"))
    forget(state, "=1.jpg", **{missing: None})
    proof = prove(job, state, store, list_only=True)
    assert document(tmp_path, proof.name)["objects"]["without_digests"] == 1
    for name in ("manifest-sha256.txt", "manifest-md5.txt"):
        assert "=1.jpg" not in (tmp_path / "state" / proof.name / name).read_text()
    (line,) = table(tmp_path, proof.name, "objects-without-digests.csv")
    assert (line["key"], line[missing]) == ("'=1.jpg", "")


def test_what_no_spreadsheet_may_compute(tmp_path: Path) -> None:
    """Keys of objects that were read now, and of others, begin with an apostrophe where a formula would."""
    job, state, store = copied(tmp_path, ("=1.jpg", "2.jpg"))
    forget(state, "=1.jpg", md5=None)
    (tmp_path / "new" / "=more.jpg").write_bytes(b"more")
    proof = prove(job, state, store)
    for file, key in (("digests-read-now.csv", "'=1.jpg"), ("others.csv", "'=more.jpg")):
        assert [line["key"] for line in table(tmp_path, proof.name, file)] == [key]


def test_a_name_of_several_lines_adds_no_tag(tmp_path: Path) -> None:
    """A bag's information has one line for each tag."""
    job, state, store = copied(tmp_path)
    proof = prove(job.model_copy(update={"name": "one\nPayload-Oxum: 0.0"}), state, store)
    lines = (tmp_path / "state" / proof.name / "bag-info.txt").read_text().splitlines()
    assert len([line for line in lines if line.startswith("Payload-Oxum")]) == 1
    assert any(line.startswith("External-Identifier: one\\nPayload-Oxum") for line in lines)


def test_an_object_of_unknown_size(tmp_path: Path) -> None:
    """Payload-Oxum is left out unless the size of each object is known, such as by reading it."""
    job, state, store = copied(tmp_path)
    forget(state, "1.jpg", size=None)
    listed = prove(job, state, store, list_only=True)
    assert "Payload-Oxum" not in (tmp_path / "state" / listed.name / "bag-info.txt").read_text()
    forget(state, "1.jpg", size=None, md5=None)
    read = prove(job, state, store)
    oxum = f"Payload-Oxum: {sum(path.stat().st_size for path in (tmp_path / 'new').iterdir())}.3\n"
    assert oxum in (tmp_path / "state" / read.name / "bag-info.txt").read_text()
