"""Rows with several addresses of one object: which one is tried when, and what the ledger says of it.

Two real origins; they are two hosts, since limits, circuits and secret headers count by host and port.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo.images import make_image
from demo.origin import Fault, Origin, Trouble
from demo.s3 import S3Server
from demo.validators import Validators
from ferry.core.errors import ChunkIncomplete
from ferry.core.records import Checked, ErrorClass, Outcome, Reason, Status
from ferry.cutover import export
from ferry.job.model import Job
from ferry.reconcile.finish import finish_run
from ferry.state import ledger
from ferry.state.failures import FailureFilter, failure_groups, select_failures
from ferry.state.queries import folded_ledger
from ferry.transfer.chunk import run_chunk
from tests.support import helpers

pytestmark = pytest.mark.matrix

BOTH = ["url", "cdn_url"]
LATER = "Fri, 02 Jan 2026 00:00:00 GMT"


class Shop:
    """A list with two addresses of each image, and the origins of both."""

    def __init__(self, first: Origin, second: Origin, s3: S3Server, bucket: str, folder: Path) -> None:
        self.first, self.second, self.s3, self.bucket, self.folder = first, second, s3, bucket, folder
        self.state, self.run_no = helpers.directory_state(folder), 0
        self.figures: dict[str, int] | None = None

    def job(self, **given: Any) -> Job:
        uri = {"uri": f"s3://{self.bucket}/p/", "endpoint_url": self.s3.endpoint_url}
        given = {"manifest": str(self.folder / "list.csv"), "destination": uri, "columns": {"source": BOTH}, **given}
        return helpers.make_job(**given)

    def list(self, *rows: tuple[str, str], header: tuple[str, ...] = ("id", "url", "cdn_url")) -> None:
        """Writes the list; a path that begins with `/` is one of the column's origin."""
        bases = (self.first.base_url, self.second.base_url)
        lines = [
            [str(n), *(base + cell if cell[:1] == "/" else cell for base, cell in zip(bases, row, strict=True))]
            for n, row in enumerate(rows, 1)
        ]
        helpers.write_list(self.folder / "list.csv", lines, header)

    def run(self, **given: Any) -> dict[str, Outcome]:
        """One run. Returns its outcomes by the row's id."""
        self.first.requests, self.second.requests = Counter(), Counter()
        self.first.bodies, self.second.bodies = Counter(), Counter()
        self.run_no += 1
        job = self.job(**given)
        helpers.run(job, self.state, helpers.access(self.s3), self.run_no)
        self.figures = finish_run(job, self.state, self.run_no)["delta"]
        return {str(o.id): o for o in helpers.latest(self.state).values() if o.run_no == self.run_no}

    def left_pending(self, why: str, limit: int | None = None, **given: Any) -> None:
        """Plans, and runs one attempt at the chunk, which leaves rows pending because of ``why``."""
        job, server = self.job(**{"concurrency": 5, **given}), helpers.access(self.s3)
        (ref,) = helpers.plan(job, self.state, server=server).chunks
        with helpers.engine(job, self.state, server, limit=limit) as runtime, pytest.raises(ChunkIncomplete, match=why):
            run_chunk(runtime, ref)
        self.run_no = 1

    @property
    def asked(self) -> tuple[int, int]:
        """The requests to both origins in the last run."""
        return sum(self.first.requests.values()), sum(self.second.requests.values())

    @property
    def read(self) -> tuple[int, int]:
        """The whole bodies that both origins sent in the last run."""
        return sum(self.first.bodies.values()), sum(self.second.bodies.values())

    def stored(self) -> dict[str, bytes]:
        return helpers.stored(self.s3, self.bucket, "p/")


@pytest.fixture
def shop(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> Iterator[Shop]:
    with Origin() as second:
        yield Shop(origin, second, s3, bucket, tmp_path)


def image(seed: int) -> bytes:
    return make_image("jpeg", seed, 30, 20)


PERMANENT = (
    Trouble.NOT_FOUND, Trouble.GONE, Trouble.FORBIDDEN, Trouble.HTML_200, Trouble.JSON_200, Trouble.EMPTY,
    Trouble.REDIRECT_LOOP,
)  # fmt: skip


def test_the_next_address_gives_the_bytes(shop: Shop) -> None:
    """After a failure that no further try of this run can heal, the next address is requested; a rerun does nothing."""
    for fault in PERMANENT:
        shop.first.add(f"/{fault}.jpg", image(1), fault=fault)
        shop.second.add(f"/cdn/{fault}", image(1))
    shop.list(*((f"/{fault}.jpg", f"/cdn/{fault}") for fault in PERMANENT))
    outcomes = shop.run()
    for outcome, fault in zip((outcomes[str(n)] for n in range(1, len(PERMANENT) + 1)), PERMANENT, strict=True):
        assert (outcome.status, outcome.error_class, outcome.message) == (Status.COPIED, None, None), fault
        assert (outcome.source, outcome.address) == (
            shop.first.url(f"/{fault}.jpg"),
            shop.second.url(f"/cdn/{fault}"),
        )
        assert outcome.key == f"{fault}.jpg"  # that of the first address
        assert shop.first.requests[f"/{fault}.jpg"] == 1
    assert shop.asked[1] == len(PERMANENT)
    assert shop.stored() == {f"p/{fault}.jpg": image(1) for fault in PERMANENT}
    assert shop.run() == {}
    assert shop.asked == (0, 0)


def test_the_first_address_is_enough(shop: Shop) -> None:
    """Without a failure the other address is not requested, and the outcome has none."""
    shop.first.add("/1.jpg", image(1))
    shop.second.add("/1.jpg", image(2))
    shop.list(("/1.jpg", "/1.jpg"))
    assert shop.run()["1"].address is None
    assert shop.asked == (1, 0)
    assert shop.stored() == {"p/1.jpg": image(1)}


def test_a_blocked_address_costs_no_request(shop: Shop) -> None:
    """A private address that the job does not allow is passed over; if the other one fails, the next run tries both."""
    shop.second.add("/1.jpg", image(1))
    shop.list(("http://10.0.0.1/1.jpg", "/1.jpg"), ("http://10.0.0.1/2.jpg", "/2.jpg"))
    found = shop.run()
    assert found["1"].status is Status.COPIED
    assert (found["2"].error_class, found["2"].retryable) == (ErrorClass.BLOCKED_ADDRESS, True)
    shop.second.add("/2.jpg", image(2))
    assert shop.run()["2"].status is Status.COPIED


def test_all_addresses_fail(shop: Shop) -> None:
    """The row fails with the first address's failure, names the others, and is not tried again."""
    shop.first.add("/1.jpg", b"", fault=Trouble.GONE)
    shop.second.add("/1.jpg", image(1), fault=Trouble.HTML_200)
    shop.list(("/1.jpg", "/1.jpg?sig=secret"))
    shop.second.add("/1.jpg?sig=secret", image(1), fault=Trouble.HTML_200)
    outcome = shop.run()["1"]
    digits = hashlib.sha256(b"sig=secret").hexdigest()[:8]
    assert (outcome.status, outcome.error_class, outcome.status_code) == (Status.FAILED, ErrorClass.GONE, 410)
    assert (outcome.retryable, outcome.address, outcome.requests) == (False, None, 2)
    assert outcome.message == (
        "the origin says that the object was removed permanently (HTTP 410); 2 addresses were tried, also "
        f"{shop.second.url('/1.jpg')}?{digits} (not_image)"
    )
    assert shop.run() == {}
    assert shop.asked == (0, 0)


def test_a_retryable_failure_stays_at_its_address(shop: Shop) -> None:
    """5xx is tried again at the same address, and after the last try the row fails retryable; the next run goes on."""
    shop.first.add("/1.jpg", image(1), fault=Trouble.SERVER_ERROR)
    shop.first.add("/2.jpg", image(2), fault=Trouble.FLAKY)
    for n in (1, 2):
        shop.second.add(f"/{n}.jpg", image(9))
    shop.list(("/1.jpg", "/1.jpg"), ("/2.jpg", "/2.jpg"))
    found = shop.run(retries={**helpers.QUICK, "attempts": 3})
    assert shop.asked == (4 + 3, 0)  # three tries and the one at the end of the chunk; two faults and the object
    assert (found["1"].error_class, found["1"].retryable) == (ErrorClass.SERVER_ERROR, True)
    assert found["1"].message == "the origin reports a server error (HTTP 500)"
    shop.first.mend("/1.jpg")
    found = shop.run()
    assert (found["1"].status, found["1"].address, shop.asked) == (Status.COPIED, None, (1, 0))
    assert shop.stored() == {"p/1.jpg": image(1), "p/2.jpg": image(2)}


def test_each_address_has_all_its_tries(shop: Shop) -> None:
    """Tries at one address do not count for the next one, and neither does the last try at the end of the chunk."""
    flaky = Fault(Trouble.SERVER_ERROR, times=3)
    shop.first.add("/1.jpg", b"", fault=flaky)  # then an empty body, which is not an image
    shop.second.add("/1.jpg", image(1), fault=flaky)
    shop.list(("/1.jpg", "/1.jpg"))
    outcome = shop.run(retries={**helpers.QUICK, "attempts": 3})["1"]
    assert (outcome.status, outcome.requests) == (Status.COPIED, 8)
    assert shop.asked == (4, 4)


def test_the_second_address_fails_for_now(shop: Shop) -> None:
    """The row is retryable and counts for the host that failed; the next run begins with the first address."""
    shop.first.add("/1.jpg", b"", fault=Trouble.NOT_FOUND)
    shop.second.add("/1.jpg", image(1), fault=Trouble.SERVER_ERROR)
    shop.list(("/1.jpg", "/1.jpg"))
    outcome = shop.run()["1"]
    assert (outcome.error_class, outcome.retryable) == (ErrorClass.SERVER_ERROR, True)
    assert (outcome.source, outcome.address) == (shop.first.url("/1.jpg"), shop.second.url("/1.jpg"))
    assert outcome.message == (
        f"the origin reports a server error (HTTP 500) at {shop.second.url('/1.jpg')}; 2 addresses were tried, also "
        f"{shop.first.url('/1.jpg')} (not_found)"
    )
    with folded_ledger(shop.state) as con:
        (group,) = failure_groups(con, FailureFilter())
        assert group.host == f"127.0.0.1:{shop.second.port}"
        assert len(select_failures(con, FailureFilter(host=group.host))) == 1
        assert not select_failures(con, FailureFilter(host=f"127.0.0.1:{shop.first.port}"))
    shop.first.add("/1.jpg", image(2))
    outcome = shop.run()["1"]
    assert (outcome.status, outcome.reason, outcome.address) == (Status.COPIED, Reason.RETRY, None)
    assert shop.asked == (1, 0)


def test_a_refusal_is_not_hidden_by_a_404(shop: Shop) -> None:
    """If one of the addresses may be allowed by the next run, the row is tried again then."""
    for n, (one, two) in enumerate([("FORBIDDEN", "NOT_FOUND"), ("NOT_FOUND", "FORBIDDEN")], 1):
        shop.first.add(f"/{n}.jpg", image(n), fault=Trouble[one])
        shop.second.add(f"/{n}.jpg", image(n), fault=Trouble[two])
    shop.list(("/1.jpg", "/1.jpg"), ("/2.jpg", "/2.jpg"))
    found = shop.run()
    assert {(o.error_class, o.retryable) for o in found.values()} == {(ErrorClass.FORBIDDEN, True)}
    assert (found["1"].address, found["2"].address) == (None, shop.second.url("/2.jpg"))
    shop.second.mend("/2.jpg")
    assert shop.run()["2"].status is Status.COPIED


def test_digests_of_the_list_hold_for_each_address(shop: Shop) -> None:
    """Other bytes than the list's are fetched twice at each address, and never stored."""
    shop.first.add("/1.jpg", image(8))
    shop.second.add("/1.jpg", image(1))
    shop.first.add("/2.jpg", image(8))
    shop.second.add("/2.jpg", image(9))
    lines = [[shop.first.url(f"/{n}.jpg"), shop.second.url(f"/{n}.jpg")] for n in (1, 2)]
    md5s = [[hashlib.md5(image(n)).hexdigest(), str(n)] for n in (1, 2)]
    lines = [[*line, *more] for line, more in zip(lines, md5s, strict=True)]
    helpers.write_list(shop.folder / "list.csv", lines, ("url", "cdn_url", "md5", "id"))
    found = shop.run()
    assert found["1"].status is Status.COPIED
    assert found["2"].error_class is ErrorClass.DIGEST_MISMATCH
    assert (shop.first.requests["/1.jpg"], shop.second.requests["/1.jpg"]) == (2, 1)
    assert (shop.first.requests["/2.jpg"], shop.second.requests["/2.jpg"]) == (2, 2)
    assert shop.stored() == {"p/1.jpg": image(1)}


def test_failures_of_the_destination_request_no_other_address(shop: Shop) -> None:
    """`on_existing: fail` is about the key: the next address is not tried, and the object stays."""
    shop.s3.client().put_object(Bucket=shop.bucket, Key="p/1.jpg", Body=b"another one")
    shop.first.add("/1.jpg", image(1))
    shop.second.add("/1.jpg", b"another one")
    shop.list(("/1.jpg", "/1.jpg"))
    outcome = shop.run(on_existing="fail", checks="none")["1"]
    assert (outcome.error_class, shop.asked) == (ErrorClass.EXISTS, (1, 0))
    assert shop.stored() == {"p/1.jpg": b"another one"}


def test_empty_cells_and_cells_without_an_address(shop: Shop) -> None:
    """A row's first usable address is its source, which gives its key; equal addresses are one."""
    for seed, path in enumerate(("/a/2.jpg", "/a/3.jpg", "/a/5.jpg")):
        shop.second.add(path, image(seed))
    shop.first.add("/1.jpg", image(7))
    same = shop.first.url("/6.jpg")
    shop.list(("/1.jpg", ""), ("", "/a/2.jpg"), ("n/a", "/a/3.jpg"), ("", ""), ("ftp://h/5.jpg", "n/a"), (same, same))
    found = shop.run()
    assert {id_: o.error_class for id_, o in found.items()} == {
        "1": None, "2": None, "3": None, "4": ErrorClass.BAD_URL, "5": ErrorClass.BAD_URL, "6": ErrorClass.NOT_FOUND
    }  # fmt: skip
    assert {o.address for o in found.values()} == {None}
    assert found["4"].message == "the row in line 5 has no URL"
    assert "scheme `ftp`" in (found["5"].message or "")
    assert (found["6"].requests, "addresses" in (found["6"].message or "")) == (1, False)
    assert set(shop.stored()) == {"p/1.jpg", "p/a/2.jpg", "p/a/3.jpg"}


def test_a_row_waits_in_the_queue_of_its_next_host(shop: Shop) -> None:
    """Limits of the second host hold for rows that come from the first one."""
    for n in range(30):
        shop.second.add(f"/{n}.jpg", image(1))
    shop.first.latency_s = shop.second.latency_s = 0.02
    shop.list(*((f"/{n}.jpg", f"/{n}.jpg") for n in range(30)))
    limits = {"hosts": {f"127.0.0.1:{shop.second.port}": {"concurrency": 2}}}
    found = shop.run(limits=limits, concurrency=20)
    assert {o.status for o in found.values()} == {Status.COPIED}
    assert shop.first.most_at_once > 2
    assert shop.second.most_at_once <= 2


def test_open_circuits_hold_their_rows(shop: Shop) -> None:
    """A host that refuses all requests keeps its rows pending: they move to no other address, and none is lost."""
    for n in range(120):
        shop.first.add(f"/{n}.jpg", image(1), fault=Trouble.FORBIDDEN)
        shop.second.add(f"/{n}.jpg", image(1))
    shop.list(*((f"/{n}.jpg", f"/{n}.jpg") for n in range(120)))
    shop.left_pending(f"127.0.0.1:{shop.first.port} refused 50 requests in a row")
    done = len(helpers.latest(shop.state))
    assert 40 <= done <= 60
    assert sum(shop.second.requests.values()) == done
    counts = helpers.counts_of(shop.state)
    assert (counts.copied, counts.pending) == (done, 120 - done)


def test_the_circuit_of_the_second_host(shop: Shop) -> None:
    """Rows of an open circuit that come from another host stay pending as well."""
    for n in range(120):
        shop.second.add(f"/{n}.jpg", image(1), fault=Trouble.FORBIDDEN)
    shop.list(*((f"/{n}.jpg", f"/{n}.jpg") for n in range(120)))
    shop.left_pending(f"127.0.0.1:{shop.second.port} refused 50 requests in a row")
    assert sum(shop.second.requests.values()) <= 60
    assert helpers.counts_of(shop.state).pending >= 60


def test_a_limit_counts_a_row_once(shop: Shop) -> None:
    """`--limit 3` begins three rows, whatever number of addresses they need."""
    for n in range(9):
        shop.second.add(f"/{n}.jpg", image(n))
    shop.list(*((f"/{n}.jpg", f"/{n}.jpg") for n in range(9)))
    shop.left_pending("--limit", limit=3)
    assert len(shop.stored()) == 3
    assert shop.asked == (3, 3)


def test_secret_headers_go_to_the_named_host_alone(shop: Shop) -> None:
    """The second address is another recipient: it gets a secret only if `headers_for` names its host."""
    shop.first.add("/1.jpg", b"", fault=Trouble.NOT_FOUND)
    shop.second.add("/1.jpg", image(1))
    shop.list(("/1.jpg", "/1.jpg"))
    source = {
        "allow_private_addresses": ["127.0.0.1"], "headers": {"X-Token": "env:T"},
        "headers_for": [f"http://127.0.0.1:{shop.first.port}"],
    }  # fmt: skip
    job, server = shop.job(source=source), helpers.access(shop.s3)
    planned = helpers.plan(job, shop.state, server=server)
    with helpers.engine(job, shop.state, server, headers={"X-Token": "hidden"}) as runtime:
        assert run_chunk(runtime, planned.chunks[0]).counts == {"copied": 1}
    assert shop.first.last_headers["/1.jpg"]["x-token"] == "hidden"
    assert "x-token" not in shop.second.last_headers["/1.jpg"]


# --- delta runs

KINDS = [kind for kind in Validators if kind not in (Validators.SERVERS, Validators.SERVERS_DATE)]


def test_validators_belong_to_their_address(shop: Shop) -> None:
    """The address that gave the copy is rechecked by its validators; another one gets none, and its bytes decide."""
    rows = {str(n): kind for n, kind in enumerate(KINDS, 1)}
    for n, kind in rows.items():
        shop.second.add(f"/{n}.jpg", image(int(n)), kind=kind)
    shop.list(*((f"/{n}.jpg", f"/{n}.jpg") for n in rows))
    for outcome in shop.run(mode="delta").values():
        assert outcome.address == shop.second.url(f"/{outcome.id}.jpg")
    outcomes = shop.run(mode="delta")
    for n, kind in rows.items():
        outcome = outcomes[n]
        assert (outcome.status, outcome.address) == (Status.UNCHANGED, shop.second.url(f"/{n}.jpg")), kind
        expected = {Validators.NONE: Checked.HEAD}.get(kind, Checked.CONDITION)
        if kind in (Validators.WEAK_NO_CONDITIONS, Validators.NO_CONDITIONS):
            expected = Checked.BODY_AGAIN
        assert outcome.checked_by is expected, kind
    assert shop.asked == (len(rows), len(rows))
    # The first address appears with another image, and with the validators of the copy.
    for n, kind in rows.items():
        shop.first.add(f"/{n}.jpg", same_size(image(int(n))), kind=kind)
        shop.first._objects[f"/{n}.jpg"].etag = shop.second._objects[f"/{n}.jpg"].etag
    outcomes = shop.run(mode="delta")
    for n, kind in rows.items():
        outcome = outcomes[n]
        assert (outcome.status, outcome.address, outcome.checked_by) == (Status.COPIED, None, Checked.BODY), kind
        assert not {"if-none-match", "if-modified-since"} & shop.first.last_headers[f"/{n}.jpg"].keys(), kind
    assert (shop.asked, shop.read) == ((len(rows), 0), (len(rows), 0))
    assert shop.stored() == {f"p/{n}.jpg": same_size(image(int(n))) for n in rows}
    assert {outcome.status for outcome in shop.run(mode="delta").values()} == {Status.UNCHANGED}
    assert shop.asked == (len(rows), 0)


def same_size(jpeg: bytes) -> bytes:
    """Returns another image of the same length."""
    other = bytearray(jpeg)
    other[other.index(b"\xff\xda") + 20] ^= 1
    return bytes(other)


def test_the_first_address_appears_with_the_same_bytes(shop: Shop) -> None:
    """Nothing is written, and from then on the first address is rechecked by what it gave itself."""
    shop.second.add("/1.jpg", image(1))
    shop.list(("/1.jpg", "/1.jpg"))
    shop.run(mode="delta")
    shop.first.add("/1.jpg", image(1), kind=Validators.DATE)
    outcome = shop.run(mode="delta")["1"]
    assert (outcome.status, outcome.address, outcome.source_etag) == (Status.UNCHANGED, None, None)
    outcome = shop.run(mode="delta")["1"]
    assert (outcome.checked_by, shop.asked, shop.read) == (Checked.CONDITION, (1, 0), (0, 0))


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_failed_recheck_keeps_what_is_known(which: str, shop: Shop) -> None:
    """A copy keeps the validators and the address that gave them, whichever address failed; the next run uses them."""
    shop.second.add("/1.jpg", image(1))
    shop.first.add("/1.jpg", b"", fault=Trouble.NOT_FOUND)
    shop.list(("/1.jpg", "/1.jpg"))
    before = shop.run(mode="delta")["1"]
    failing = getattr(shop, which)
    failing.trouble = Fault(Trouble.SERVER_ERROR)
    outcome = shop.run(mode="delta")["1"]
    assert (outcome.status, outcome.error_class) == (Status.FAILED, ErrorClass.SERVER_ERROR)
    assert "the earlier copy is still at the destination" in (outcome.message or "")
    assert (outcome.address, outcome.source_etag) == (before.address, before.source_etag)
    failing.trouble = None
    outcome = shop.run(mode="delta")["1"]
    assert (outcome.status, outcome.checked_by) == (Status.UNCHANGED, Checked.CONDITION)
    assert shop.read == (0, 0)


def test_a_copy_whose_address_left_the_list(shop: Shop) -> None:
    """Without the address that gave the copy, its validators count for nothing."""
    shop.second.add("/1.jpg", image(1), kind=Validators.DATE)
    shop.list(("/1.jpg", "/1.jpg"))
    shop.run(mode="delta")
    shop.list(("/1.jpg", "/2.jpg"))
    for path, where in (("/2.jpg", shop.second), ("/1.jpg", shop.first)):
        where.add(path, same_size(image(1)) if path == "/2.jpg" else image(3), kind=Validators.DATE)
        outcome = shop.run(mode="delta")["1"]
        assert (outcome.status, outcome.checked_by) == (Status.COPIED, Checked.BODY)
    assert shop.stored() == {"p/1.jpg": image(3)}


def test_the_list_s_etag_is_of_the_first_address(shop: Shop) -> None:
    """An ETag in the list does not prove a copy from another address, whether it came later or stays the same."""
    shop.second.add("/1.jpg", image(1))
    shop.list(("/1.jpg", "/1.jpg"))
    etag = shop.run(mode="delta")["1"].source_etag or ""
    line = ["1", shop.first.url("/1.jpg"), shop.second.url("/1.jpg"), etag.strip('"')]
    helpers.write_list(shop.folder / "list.csv", [line], ("id", "url", "cdn_url", "etag"))
    for _ in range(2):
        assert shop.run(mode="delta")["1"].checked_by is Checked.CONDITION
    shop.first.add("/1.jpg", image(2))
    assert shop.run(mode="delta")["1"].address is None
    assert shop.run(mode="delta") == {}  # now the list says the same as when this copy was made


# --- columns that are added later, exports


def test_a_column_that_is_added_later(shop: Shop) -> None:
    """Failed rows are tried again with their new address, pending ones get it, and copied ones stay."""
    shop.first.add("/1.jpg", image(1))
    for n in (2, 3):
        shop.second.add(f"/{n}.jpg", image(n))
    shop.list(*((f"/{n}.jpg", f"/{n}.jpg") for n in (1, 2, 3)))
    shop.left_pending("--limit", limit=2, columns={"source": "url"})
    ledger.compact_ledger(shop.state, 1)
    assert sorted(o.status for o in helpers.latest(shop.state).values()) == [Status.COPIED, Status.FAILED]
    found = shop.run()
    assert {id_: (o.status, o.reason) for id_, o in found.items()} == {
        "2": (Status.COPIED, Reason.CHANGED), "3": (Status.COPIED, Reason.NEW)
    }  # fmt: skip
    assert shop.first.requests["/1.jpg"] == 0
    assert shop.stored() == {f"p/{n}.jpg": image(n) for n in (1, 2, 3)}


def test_chunks_of_an_earlier_schema(shop: Shop) -> None:
    """Chunk files without the column are read, and their rows get their addresses."""
    shop.second.add("/1.jpg", image(1))
    shop.list(("/1.jpg", "/1.jpg"))
    (chunk,) = helpers.plan(shop.job(), shop.state, server=helpers.access(shop.s3)).chunks
    path = shop.state.local(chunk.uri)
    assert pq.read_table(path).column("alternatives").to_pylist() == [[shop.second.url("/1.jpg")]]
    shop.run_no = 1
    without_column(shop, chunk.uri)
    assert shop.run()["1"].address == shop.second.url("/1.jpg")


def without_column(shop: Shop, uri: str) -> None:
    """Rewrites a chunk file, and the plan that names it, as schema 4 had it."""
    from ferry.state import parquet
    from ferry.state.checksums import decode_checked_json, encode_checked_json

    table = pq.read_table(shop.state.local(uri)).drop_columns(["alternatives", "storage_class"])
    data = parquet.to_bytes(table.replace_schema_metadata({b"ferry_schema": b"4"}))
    plan = decode_checked_json(shop.state.read("plan/plan.json"))
    (chunk,) = plan["chunks"]
    chunk["digest"] = parquet.digest_of(data)
    chunk["uri"] = f"chunks/{chunk['digest']}.parquet"
    shop.state.write(chunk["uri"], data)
    shop.state.write("plan/plan.json", encode_checked_json({**plan, "ferry_schema": 4}))


@pytest.mark.parametrize("full", [False, True])
def test_an_export_says_which_address_gave(full: bool, shop: Shop, tmp_path: Path) -> None:
    """The map has the row's source, and the other address where that gave the bytes; also for duplicates."""
    shop.first.add("/1.jpg", image(1))
    shop.second.add("/2.jpg?sig=topsecret", image(2))
    two = ("/2.jpg", "/2.jpg?sig=topsecret")
    shop.list(("/1.jpg", "/1.jpg"), two, two)
    shop.run()
    export(shop.state, shop.job(), tmp_path / "map.csv", at=helpers.NOW, full=full)
    with (tmp_path / "map.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["source"] for line in lines] == [shop.first.url(f"/{n}.jpg") for n in (1, 2, 2)]
    digits = "sig=topsecret" if full else hashlib.sha256(b"sig=topsecret").hexdigest()[:8]
    assert [line["address"] for line in lines] == ["", *[f"{shop.second.url('/2.jpg')}?{digits}"] * 2]


def test_a_source_in_a_bucket(shop: Shop, s3: S3Server, tmp_path: Path) -> None:
    """Addresses of one row may be of different kinds: a missing object in a bucket, then a web server."""
    shop.second.add("/1.jpg", image(1))
    shop.s3.client().put_object(Bucket=shop.bucket, Key="old/2.jpg", Body=image(2))
    root = f"s3://{shop.bucket}/old/"
    shop.list((f"{root}1.jpg", "/1.jpg"), ("/2.jpg", f"{root}2.jpg"))
    source = {
        "roots": [root], "endpoint_url": s3.endpoint_url, "allow_private_addresses": ["127.0.0.1"]
    }  # fmt: skip
    found = shop.run(source=source, mode="delta")
    assert {id_: o.address for id_, o in found.items()} == {"1": shop.second.url("/1.jpg"), "2": f"{root}2.jpg"}
    assert shop.stored() == {"p/1.jpg": image(1), "p/2.jpg": image(2)}
    found = shop.run(source=source, mode="delta")
    assert {o.checked_by for o in found.values()} == {Checked.HEAD, Checked.CONDITION}
