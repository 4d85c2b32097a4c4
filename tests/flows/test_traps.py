"""Special cases of single objects, in one job with a test for each case."""

from __future__ import annotations

import io
import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from PIL import Image

from demo.images import make_image
from demo.origin import Fault, Origin, Trouble
from tests.flows.project import Cli, Ended, Prefect, Project, processes_with

SECRET = "sIgNaTuRe0123456789"
MAX_BYTES = 11_000_000
PART_BYTES = 8 * 1024 * 1024  # over it an upload has several parts, if its key is one that clients write differently

# the path at the origin, as a manifest writes it, and the key that it must become
ODD_KEYS = {
    "plus": ("/odd/a+b.jpg", "odd/a+b.jpg"),
    "plus-escaped": ("/odd/c%2Bd.jpg", "odd/c+d.jpg"),
    "percent": ("/odd/50%25.jpg", "odd/50%.jpg"),
    "percent-twice": ("/odd/%2541.jpg", "odd/%41.jpg"),
    "hash": ("/odd/%23tag.jpg", "odd/#tag.jpg"),
    "question": ("/odd/what%3F.jpg", "odd/what?.jpg"),
    "space": ("/odd/front%20view.jpg", "odd/front view.jpg"),
    "space-at-the-end": ("/odd/end.jpg%20", "odd/end.jpg "),
    "nbsp": ("/odd/a%C2%A0b.jpg", "odd/a\u00a0b.jpg"),
    "nfc": ("/odd/gr%C3%BCn.jpg", "odd/gr\u00fcn.jpg"),
    "nfd": ("/odd/gru%CC%88n.jpg", "odd/gru\u0308n.jpg"),
    "not-utf-8": ("/odd/gr%FCn.jpg", "odd/gr%FCn.jpg"),
    "quotes": ("/odd/it's%22.jpg", "odd/it's\".jpg"),
    "brackets": ("/odd/%5B1%5D%7Bid%7D.jpg", "odd/[1]{id}.jpg"),
    "ampersand": ("/odd/a&b=c;d.jpg", "odd/a&b=c;d.jpg"),
    "emoji": ("/odd/%F0%9F%93%B7.jpg", "odd/\U0001f4f7.jpg"),
}
LONG = "/".join("d" * 200 for _ in range(5))  # 1,004 bytes; with the prefix `products/` 1,013


@dataclass
class Traps:
    """The parts of the job, and its results."""

    project: Project
    origin: Origin
    rows: list[dict[str, str]] = field(default_factory=list)
    bodies: dict[str, bytes] = field(default_factory=dict)  # row -> what its object must be
    paths: dict[str, str] = field(default_factory=dict)  # row -> path at the origin
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    plan: Any = None
    ended: Ended = field(default_factory=lambda: Ended((), -1, "", ""))

    def add(
        self, name: Any, path: str, fault: Fault | Trouble | None = None, body: bytes | None = None, **more: Any
    ) -> None:
        """Add a row for an object at the origin."""
        body = make_image("jpeg", len(self.rows), 40, 30) if body is None else body
        self.url(name, self.origin.add(path, body, fault=fault, **more))
        self.bodies[name], self.paths[name] = body, path

    def url(self, name: str, url: str) -> None:
        """Add a row with this URL, without an object."""
        self.rows.append({"sku": name, "url": url})

    def failed(self, name: str, error_class: str) -> dict[str, Any]:
        """Returns the outcome of a row that must have failed with this class, without an object."""
        outcome = self.outcomes[name]
        assert (outcome["status"], outcome["error_class"]) == ("failed", error_class), outcome
        assert outcome["message"]
        assert outcome["key"] not in self.stored
        return outcome

    def copied(self, name: str) -> dict[str, Any]:
        """Returns the outcome of a row that must have been copied, byte for byte."""
        outcome = self.outcomes[name]
        assert (outcome["status"], outcome["error_class"]) == ("copied", None), outcome
        assert self.stored[outcome["key"]] == self.bodies[name]
        return outcome

    def asked(self, name: str) -> int:
        """Returns the number of requests for the row's path at the origin."""
        return self.origin.requests[self.paths[name]]


def _noise(size: int) -> bytes:
    """Returns an incompressible PNG, a little larger than ``size`` bytes."""
    side = int((size / 3) ** 0.5) + 8
    out = io.BytesIO()
    pixels = random.Random(7).randbytes(side * side * 3)
    Image.frombytes("RGB", (side, side), pixels).save(out, "PNG", compress_level=0)
    return out.getvalue()


def _lay(traps: Traps) -> None:
    """Add every case and its row to the origin."""
    t = traps
    for number in range(60):
        t.add(f"healthy-{number}", f"/healthy/{number:03d}.jpg")
    t.add("html", "/bad/html.jpg", Trouble.HTML_200)
    t.add("json", "/bad/json.jpg", Trouble.JSON_200)
    t.add("pdf", "/bad/leaflet.pdf", body=b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF\n", content_type="application/pdf")
    t.add("truncated-length", "/bad/length.jpg", Trouble.TRUNCATED_LENGTH)
    t.add("truncated-chunked", "/bad/chunked.jpg", Trouble.TRUNCATED_CHUNKED)
    t.add("truncated-close", "/bad/close.jpg", Trouble.TRUNCATED_CLOSE)
    t.add("truncated-once", "/bad/once.jpg", Fault(Trouble.TRUNCATED_LENGTH, times=1))
    t.add("empty", "/bad/empty.jpg", Trouble.EMPTY)
    t.add("endless", "/bad/endless.jpg", Trouble.ENDLESS)
    t.add("not-found", f"/bad/gone.jpg?token={SECRET}", Trouble.NOT_FOUND)
    t.add("reset-for-ever", f"/bad/reset.jpg?token={SECRET}", Trouble.RESET)
    t.add("loop", f"/bad/loop.jpg?token={SECRET}", Trouble.REDIRECT_LOOP)
    t.add("gzip", "/good/gzip.jpg", Trouble.GZIP)
    t.add("redirect", "/good/redirect.jpg", Trouble.REDIRECT)
    t.add("flaky", "/good/flaky.jpg", Trouble.FLAKY)
    t.add("limited", "/good/limited.jpg", Fault(Trouble.RATE_LIMITED, seconds=2))
    t.add("reset-once", "/good/reset.jpg", Fault(Trouble.RESET, times=2))
    t.add("slow", "/good/slow.jpg", Fault(Trouble.SLOW, seconds=1.5))
    t.add("stall-once", "/good/stall.jpg", Fault(Trouble.STALL, times=1))
    t.add("wrong-type", "/good/type.jpg", Trouble.WRONG_TYPE)
    t.add("png-as-jpg", "/good/really-png.jpg", body=make_image("png", 1))
    t.add("big", "/good/big+one.png", body=_noise(PART_BYTES + 500_000), content_type="image/png")
    t.add("signed", f"/good/signed.jpg?Expires=1&name=a%2Fb+c%20d&Signature={SECRET}~%3D&x=%c3%BC")
    for name, (path, _) in ODD_KEYS.items():
        t.add(f"odd-{name}", path)
    t.add("leading-slash", "//slash/lead.jpg")
    t.add("case-1", "/case/Shoe.jpg")
    t.add("case-2", "/case/shoe.jpg")
    fits = 1024 - len("products/")
    t.add("long-fits", "/" + (LONG + "/").ljust(fits - 4, "x") + ".jpg")
    t.add("long", "/" + (LONG + "/").ljust(fits - 3, "x") + ".jpg")
    t.add("dots", "/up/../secret.jpg")
    t.add("dots-escaped", "/up/%2e%2e/secret.jpg")
    t.add("no-name", "/up/folder/")
    t.add("control", "/up/a%00b.jpg")
    t.add("twice", "/same/twice.jpg")
    t.url("twice-again", t.rows[-1]["url"])
    t.add("collision-1", "/same/cover.jpg?v=1")
    t.add("collision-2", "/same/cover.jpg?v=2")
    t.url("blank", "")
    t.url("no-address", "just some words")
    t.url("ftp", "ftp://127.0.0.1/a.jpg")
    t.url("file", "file:///etc/passwd")
    t.url("user-info", f"http://someone:{SECRET}@127.0.0.1:{t.origin.port}/healthy/000.jpg")
    t.url("bad-port", "http://127.0.0.1:0/a.jpg")
    t.url("several", ", ".join(t.origin.url(f"/healthy/{name}.jpg?token={SECRET}") for name in "ab"))
    t.url("metadata", f"http://169.254.169.254/latest/meta-data/iam?token={SECRET}")
    t.url("metadata-number", "http://2852039166/latest/number")
    t.url("metadata-ipv6", "http://[::ffff:169.254.169.254]/latest/ipv6")
    t.url("other-loopback", f"http://127.0.0.2:{t.origin.port}/healthy/other.jpg")
    t.add("to-metadata", "/to/meta.jpg", Fault(Trouble.REDIRECT, target=f"http://169.254.169.254/?token={SECRET}"))
    t.add("to-file", "/to/file.jpg", Fault(Trouble.REDIRECT, target="file:///etc/passwd"))
    t.add("to-nothing", "/to/404.jpg", Fault(Trouble.REDIRECT, target=f"/nowhere.jpg?Signature={SECRET}"))


@pytest.fixture(scope="module")
def traps(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traps]:
    """The job after one run, with `plan --json` before it."""
    bucket = f"traps-{secrets.token_hex(4)}"
    cli.s3.make_bucket(bucket)
    with Origin() as origin:
        laid = Traps(Project(tmp_path_factory.mktemp("traps"), cli, bucket), origin)
        _lay(laid)
        laid.project.job(
            source={"allow_private_addresses": ["127.0.0.1"], "user_agent": "traps, ops@shop.example"},
            retries={"attempts": 3, "backoff_s": 0.05, "max_backoff_s": 5, "chunk_delay_s": 0.2, "passes": 0},
            timeouts={"read_s": 2},
            max_bytes=MAX_BYTES,
        )
        laid.project.manifest(laid.rows)
        laid.plan = laid.project.ferry("plan", "job.yaml", "--json").expect(0).json
        laid.ended = laid.project.ferry("run", "job.yaml", "--json")
        laid.outcomes = laid.project.ledger()
        laid.stored = laid.project.stored()
        yield laid


def test_one_bad_row_does_not_stop_the_rest(traps: Traps) -> None:
    """Every row has an outcome, all healthy rows are copied, and the counts add up."""
    counts = traps.ended.expect(0).json["counts"]
    assert {row["sku"] for row in traps.rows} == set(traps.outcomes)
    for number in range(60):
        traps.copied(f"healthy-{number}")
    assert counts["planned"] == len(traps.rows)
    assert counts["pending"] == 0
    assert counts["planned"] == sum(counts[s] for s in ("copied", "unchanged", "skipped", "failed", "pending"))
    for status in ("copied", "skipped", "failed"):
        assert counts[status] == sum(o["status"] == status for o in traps.outcomes.values())
    assert not any(o["error_class"] == "internal" for o in traps.outcomes.values())


def test_the_bucket_holds_what_was_copied_and_nothing_else(traps: Traps) -> None:
    """The bucket has exactly the copied rows' keys, each with the origin's body, byte for byte."""
    copied = {o["key"]: name for name, o in traps.outcomes.items() if o["status"] == "copied"}
    assert set(traps.stored) == set(copied)
    for key, name in copied.items():
        assert traps.stored[key] == traps.bodies[name], name


@pytest.mark.parametrize("name", ["html", "json", "pdf", "empty"])
def test_no_image(traps: Traps, name: str) -> None:
    """A page, a JSON error, a PDF or an empty body with status 200 is not_image, permanent, requested once."""
    outcome = traps.failed(name, "not_image")
    assert not outcome["retryable"]
    assert traps.asked(name) == 1


def test_a_pdf_is_told_how_to_pass(traps: Traps) -> None:
    """The message for a PDF names the setting that accepts it."""
    assert "checks: length" in traps.failed("pdf", "not_image")["message"]


@pytest.mark.parametrize("name", ["truncated-length", "truncated-chunked", "truncated-close"])
def test_truncated(traps: Traps, name: str) -> None:
    """A truncated body is found with Content-Length, chunked, or neither; it is retryable and was retried."""
    outcome = traps.failed(name, "truncated")
    assert outcome["retryable"]
    assert traps.asked(name) == outcome["requests"] == 4  # three tries and the one at the chunk's end


def test_truncated_once(traps: Traps) -> None:
    """A body that is truncated once is copied completely in the end."""
    assert traps.copied("truncated-once")["requests"] == 2


def test_gzip_is_undone(traps: Traps) -> None:
    """An unrequested Content-Encoding is decoded: the object, its digests and size are the image's."""
    outcome = traps.copied("gzip")
    assert outcome["size"] == len(traps.bodies["gzip"])
    assert traps.origin.last_headers["/good/gzip.jpg"]["accept-encoding"] == "identity"
    head = traps.project.client().head_object(Bucket=traps.project.bucket, Key="products/good/gzip.jpg")
    assert "ContentEncoding" not in head or not head["ContentEncoding"]


def test_a_redirect_does_not_change_the_key(traps: Traps) -> None:
    """The key comes from the manifest, not from a redirect's target."""
    assert traps.copied("redirect")["key"] == "good/redirect.jpg"
    assert traps.origin.requests["/-moved/good/redirect.jpg"] == 1


def test_500_twice_then_fine(traps: Traps) -> None:
    """A third try succeeds after two server errors."""
    assert traps.copied("flaky")["requests"] == traps.asked("flaky") == 3


def test_retry_after_is_obeyed(traps: Traps) -> None:
    """After a 429 with Retry-After: 2, the next request is at least two seconds later."""
    outcome = traps.copied("limited")
    assert outcome["requests"] == traps.asked("limited") == 2
    assert (outcome["recorded_at"] - outcome["started_at"]).total_seconds() >= 2


def test_reset(traps: Traps) -> None:
    """A reset connection is retried; one that is always reset is `connection`, retryable."""
    assert traps.copied("reset-once")
    outcome = traps.failed("reset-for-ever", "connection")
    assert outcome["retryable"]
    assert traps.asked("reset-for-ever") == outcome["requests"]


def test_redirect_loop(traps: Traps) -> None:
    """An endless redirect is redirect_loop, permanent, and takes at most ten hops."""
    assert not traps.failed("loop", "redirect_loop")["retryable"]
    assert traps.asked("loop") + traps.origin.requests["/-loop" + traps.paths["loop"]] <= 11


def test_endless(traps: Traps) -> None:
    """An endless body is stopped at max_bytes, permanent, and requested once."""
    outcome = traps.failed("endless", "too_large")
    assert not outcome["retryable"]
    assert "max_bytes" in outcome["message"]
    assert traps.asked("endless") == 1


def test_slow(traps: Traps) -> None:
    """A slow body is completed; a stalled one ends after read_s and is retried."""
    outcome = traps.copied("slow")
    assert outcome["requests"] == 1
    assert (outcome["recorded_at"] - outcome["started_at"]).total_seconds() >= 1.4
    assert traps.copied("stall-once")["requests"] == 2


def test_content_type_is_what_the_bytes_are(traps: Traps) -> None:
    """The destination's Content-Type follows the bytes, not the origin's header or the extension."""
    client = traps.project.client()
    for name, wanted in (("wrong-type", "image/jpeg"), ("png-as-jpg", "image/png"), ("healthy-1", "image/jpeg")):
        key = "products/" + traps.copied(name)["key"]
        assert client.head_object(Bucket=traps.project.bucket, Key=key)["ContentType"] == wanted, name


def test_a_large_body_under_an_odd_key_is_one_request(traps: Traps) -> None:
    """Its ETag is the MD5 of the ledger."""
    outcome = traps.copied("big")
    assert len(traps.bodies["big"]) > PART_BYTES
    assert outcome["dest_etag"].strip('"') == outcome["md5"]


@pytest.mark.parametrize("name", ODD_KEYS)
def test_odd_keys_round_trip(traps: Traps, name: str) -> None:
    """The path is percent-decoded once for the key, and requested as the manifest writes it."""
    assert traps.copied(f"odd-{name}")["key"] == ODD_KEYS[name][1]
    assert traps.asked(f"odd-{name}") == 1


def test_a_leading_slash_goes(traps: Traps) -> None:
    """Leading slashes of a path are not part of the key."""
    assert traps.copied("leading-slash")["key"] == "slash/lead.jpg"


def test_case_twins_are_both_copied_and_noted(traps: Traps) -> None:
    """Keys that differ in case or Unicode form are distinct, and the plan mentions them."""
    traps.copied("case-1")
    traps.copied("case-2")
    assert [note for note in traps.plan["notes"] if note.startswith("2 groups of keys differ only in case")]


def test_1024_bytes(traps: Traps) -> None:
    """A key of 1,024 bytes with its prefix is accepted; a longer one is bad_key, without a request."""
    assert len("products/" + traps.copied("long-fits")["key"]) == 1024
    assert "1,024" in traps.failed("long", "bad_key")["message"]
    assert traps.asked("long") == 0


@pytest.mark.parametrize("name", ["dots", "dots-escaped", "no-name", "control"])
def test_impossible_keys(traps: Traps, name: str) -> None:
    """`..`, a key without a name and control characters are bad_key, without a request."""
    traps.failed(name, "bad_key")
    assert traps.asked(name) == 0


def test_duplicates(traps: Traps) -> None:
    """A duplicate row is skipped and names the first row, which is copied once."""
    traps.copied("twice")
    again = traps.outcomes["twice-again"]
    assert (again["status"], again["error_class"]) == ("skipped", "duplicate")
    first = 1 + next(n for n, row in enumerate(traps.rows) if row["sku"] == "twice")
    assert f"row {first}" in again["message"]
    assert traps.asked("twice") == 1


def test_collisions(traps: Traps) -> None:
    """Two rows with a key collision are not copied, and each names the other."""
    numbers = {row["sku"]: n for n, row in enumerate(traps.rows, 1)}
    for name, other in (("collision-1", "collision-2"), ("collision-2", "collision-1")):
        assert f"row {numbers[other]} " in traps.failed(name, "key_collision")["message"]
        assert traps.asked(name) == 0


@pytest.mark.parametrize("name", ["blank", "no-address", "ftp", "file", "user-info", "bad-port", "several"])
def test_unusable_addresses(traps: Traps, name: str) -> None:
    """What is not one http URL, or has a password, is bad_url with a reason, without a request."""
    outcome = traps.failed(name, "bad_url")
    assert not outcome["retryable"]
    assert outcome["requests"] == 0


@pytest.mark.parametrize("name", ["metadata", "metadata-number", "metadata-ipv6", "other-loopback", "to-metadata"])
def test_private_addresses(traps: Traps, name: str) -> None:
    """Metadata services and addresses that the job does not allow are blocked, also after a redirect."""
    outcome = traps.failed(name, "blocked_address")
    assert outcome["retryable"]  # the next run may have a job that allows it
    wanted = "allow_private_addresses" if name == "other-loopback" else "metadata address"
    assert wanted in outcome["message"]
    assert SECRET not in outcome["message"]


def test_a_redirect_to_a_file_is_not_followed(traps: Traps) -> None:
    """A redirect to file:// is not followed; one to a 404 is not_found."""
    traps.failed("to-file", "bad_url")
    traps.failed("to-nothing", "not_found")


def test_user_agent(traps: Traps) -> None:
    """Every request has the job's User-Agent."""
    agents = {headers["user-agent"] for headers in traps.origin.last_headers.values()}
    assert agents == {"traps, ops@shop.example"}


def test_a_signed_query_arrives_byte_for_byte(traps: Traps) -> None:
    """The query reaches the origin as the manifest writes it, with escapes in either case."""
    traps.copied("signed")
    assert traps.asked("signed") == 1
    assert traps.outcomes["signed"]["key"] == "good/signed.jpg"


def test_no_signature_in_the_output(traps: Traps) -> None:
    """Standard output and the log have no query string, also for failed rows."""
    assert SECRET not in traps.ended.text
    assert traps.outcomes["signed"]["source"].rpartition("?")[0] == traps.origin.url("/good/signed.jpg")


def _texts(path: Path) -> Iterator[str]:
    """Returns all text of a Parquet file."""
    for line in pq.read_table(path).to_pylist():
        yield from (value for value in line.values() if isinstance(value, str))


def test_no_signature_in_the_state(traps: Traps) -> None:
    """Only the normalised manifest and the chunk files have query strings, readable for the owner alone."""
    with_secret = set()
    for path in traps.project.state.rglob("*"):
        if not path.is_file():
            continue
        text = "\n".join(_texts(path)) if path.suffix == ".parquet" else path.read_bytes().decode(errors="replace")
        if SECRET in text:
            folder = path.relative_to(traps.project.state).parts[0]
            assert folder == "chunks" or path.name.startswith("manifest"), path
            assert path.stat().st_mode & 0o077 == 0, path
            with_secret.add(folder)
    assert with_secret == {"plan", "chunks"}


def test_no_signature_at_prefect(traps: Traps, prefect_api: Prefect) -> None:
    """Prefect's database has the job and its failures, but no query string."""
    data = prefect_api.database()
    assert traps.project.name.encode() in data
    assert b"redirect_loop" in data
    assert SECRET.encode() not in data
    assert quote(SECRET).encode() not in data


@pytest.mark.slow
def test_a_second_state_finds_everything_unchanged(traps: Traps) -> None:
    """With another state, skip-same finds every object unchanged and writes none."""
    before = traps.project.written_at()
    traps.project.job(**{**traps.project.settings, "state": "other-state", "on_existing": "skip-same"})
    ended = traps.project.ferry("run", "job.yaml", "--json")
    counts = ended.json["counts"]
    assert counts["unchanged"] == len(traps.stored)
    assert counts["copied"] == 0
    assert traps.project.written_at() == before


@pytest.mark.slow
def test_a_list_cannot_reach_this_machine(cli: Cli, bucket: str, tmp_path: Path, origin: Origin) -> None:
    """Without allow_private_addresses, every spelling of loopback is blocked before a connection."""
    project = Project(tmp_path, cli, bucket)
    project.job(source=None)
    origin.add("/a.jpg", make_image("jpeg", 1))
    spellings = ["127.0.0.1", "localhost", "LocalHost", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "[::1]",
                 "[::ffff:127.0.0.1]", "0.0.0.0", "127.0.0.1."]  # fmt: skip
    rows = [{"sku": host, "url": f"http://{host}:{origin.port}/{n}/a.jpg"} for n, host in enumerate(spellings)]
    project.manifest([*rows, {"sku": "10/8", "url": "http://10.0.0.1/a.jpg"}])
    project.ferry("run", "job.yaml", "--json").expect(0)
    ledger = project.ledger()
    assert {name: (o["status"], o["error_class"]) for name, o in ledger.items()} == dict.fromkeys(
        [*spellings, "10/8"], ("failed", "blocked_address")
    )
    assert origin.total == 0
    assert not processes_with(str(tmp_path))


@pytest.mark.slow
def test_a_directory_takes_odd_names_and_refuses_to_be_left(
    cli: Cli, bucket: str, tmp_path: Path, origin: Origin
) -> None:
    """A file:// destination stores odd names byte for byte; `..` and absolute keys write nothing outside it."""
    project = Project(tmp_path, cli, bucket)
    target = tmp_path / "target"
    project.job(destination=f"file://{target}/")
    body = make_image("jpeg", 3)
    url = origin.add("/a.jpg", body)
    keys = ["a+b%41#?.jpg", "sub/ü \u00a0.jpg", "../escape.jpg", "x/../../escape.jpg", "/abs.jpg", "a/./b.jpg"]
    project.manifest([{"sku": str(n), "url": f"{url}", "key": key} for n, key in enumerate(keys)])
    project.ferry("run", "job.yaml", "--json").expect(0)
    outcomes = project.ledger()
    found = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    assert found == {"a+b%41#?.jpg": body, "sub/ü \u00a0.jpg": body, "abs.jpg": body}
    assert [outcomes[n]["error_class"] for n in ("2", "3", "5")] == ["bad_key"] * 3
    assert not list(tmp_path.rglob("escape.jpg"))
