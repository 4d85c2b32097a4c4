# ruff: noqa: E501  (tables of words)
"""Fuzz tests of parsers for files: manifests in each format, and job files."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ferry.core.errors import UserError
from ferry.core.redaction import escaped
from ferry.job.columns import Columns
from ferry.job.model import Job
from ferry.job.templates import Template, finish_key, key_problem
from ferry.manifest.addresses import Addresses
from ferry.manifest.normalize import SCHEMA, Normaliser, _row_groups, with_ids
from ferry.manifest.open import open_manifest
from flows.cli.job_file.draft import draft
from tasks.job_file import load_job
from tests.faults.amount import some
from tests.faults.fuzzing import Fuzzer, try_all
from tests.faults.malformed import MALFORMED

Tried = Callable[..., None]
ROOT = Path(__file__).parents[2]
SECRET = "topsecret1"

URLS = [
    "https://a.example/x.jpg",
    "http://b.example:8080/ü/ä.png?sig=topsecret1",
    *MALFORMED.values(),
    "file:///etc/x",
    "s3://b/k",
    "4711",
]
HEADS = [
    "url,sku",
    "url;sku;key",
    "image_url\tid\tsize",
    "url|md5|sha256",
    "source,last_modified,content_type,etag",
    "sep=;\nurl;id",
]
CSVS = [
    head + "\n" + "".join(
        delimiter.join([url, f'"q""{n}"', "a/b.jpg", "12"][: 1 + head.rpartition("\n")[2].count(delimiter)]) + "\n"
        for n, url in enumerate(URLS)
    )
    for head in HEADS
    for delimiter in [max(",;\t|", key=head.rpartition("\n")[2].count)]
]  # fmt: skip
JSONLS = [
    "".join(f'{{"url": "{url}", "sku": {n}, "size": "1{n}", "md5": null}}\n' for n, url in enumerate(URLS)).replace(
        "\\", "\\\\"
    ),
    '{"id": 1, "src": "https://a.example/1"}\n{"id": true, "src": "\\u0041\\ud83d\\ude00"}\n{"src": 1.5e300}\n',
]
WORDS = [
    '"', '""', '"""', ",", ";", "\t", "|", "\n", "\r", "\r\n", "\n\n", " ", "\0", "\ufeff", "\u2028", "\x85", "\\", "'", "{", "}", "[", "]",
    ":", "null", "true", "NaN", "-Infinity", "1e999", "9" * 50, "\\ud800", "\\u0000", '"url":', "url", "sku", "key", "sep=;", "=1+1", "\x1b[2J",
    "https://", "http://127.0.0.1/", "../", "/", "{sha256}", "%00", "%2e%2e%2f", "a" * 300, "[" * 50, "text/html\r\nX: y", "-1", "1e3",
]  # fmt: skip


class Lists:
    """Reads a manifest as the planner does, to normalised rows. Only a UserError may be raised."""

    def __init__(self, folder: Path, fuzzer: Fuzzer) -> None:
        self._folder, self._rng, self._con = folder, fuzzer.rng, duckdb.connect()
        self.rows = 0
        self._secret = SECRET

    def judge(self, name: str, data: bytes, plain: bytes = b"") -> None:
        # A signature that lost its `?` is a part of the path, and Ferry cannot recognise it.
        recognisable = SECRET.encode() in plain and plain.count(SECRET.encode()) == plain.count(
            b"?sig=" + SECRET.encode()
        )
        self._secret = SECRET if recognisable else "\0"
        path = self._folder / "list"
        path.write_bytes(data)
        template = self._rng.choice((None, None, "{sku}/{source.name}", "{sha256}.{ext}", "{source.path}"))
        url = self._rng.choice((None, None, "https://img.example/{id}.jpg"))
        key = Template.parse(template) if template else None
        bad_lines: Any = self._rng.choice(("skip", "skip", "error"))
        for_directory = self._rng.random() < 0.5
        try:
            manifest = open_manifest(path, name, Columns(), key.needed if key else (), bad_lines, url)
            normaliser = Normaliser(
                addresses=Addresses(Template.parse_url(url) if url else None, ["s3://b/"], bare_hosts=False),
                key_template=key, prefix="p", for_directory=for_directory,
            )  # fmt: skip
            for table in _row_groups(normaliser, manifest.batches()):
                rows = with_ids(self._con, table)
                assert rows.schema.equals(SCHEMA)
                for row in rows.to_pylist():
                    self._check(row, for_directory=for_directory)
        except UserError as error:
            assert self._secret not in str(error)
            assert all(escaped(line) == line for line in str(error).splitlines()), str(error)
            assert len(str(error)) < 5000

    def _check(self, row: dict[str, Any], *, for_directory: bool) -> None:
        """Asserts that a row is unusable with a reason, or has a usable address and key."""
        self.rows += 1
        if row["error_class"] is not None:
            assert row["error_class"] in ("bad_line", "bad_url", "bad_key")
            assert escaped(row["message"]) == row["message"]
            assert self._secret not in row["message"]
            return
        assert row["source"].lower().startswith(("http://", "https://", "s3://b/"))
        key = finish_key(row["key"], "0" * 64, "jpeg") if row["deferred_key"] else row["key"]
        assert key_problem(key, for_directory=for_directory, prefix="p") is None
        assert not {".", "..", ""} & set(key.split("/"))


def test_text_lists(tried: Tried, tmp_path: Path) -> None:
    """CSV with four delimiters, JSON Lines and plain text, compressed or not, are read or refused."""
    fuzzer = Fuzzer(411, [*CSVS, *JSONLS, "\n".join(URLS) + "\n"], WORDS)
    lists = Lists(tmp_path, fuzzer)

    def make() -> tuple[str, bytes, bytes]:
        text = fuzzer.text()
        name = fuzzer.rng.choice(("a.csv", "a.csv", "a.tsv", "a.jsonl", "a.txt"))
        match fuzzer.rng.randrange(8):
            case 0:
                data = text.encode("utf-16", "surrogatepass")
            case 1:
                data = text.encode("latin-1", "replace")
            case _:
                data = text.encode("utf-8", "surrogatepass")
        if fuzzer.rng.random() < 0.1:
            name, data = name + ".gz", gzip.compress(data, 1)[: fuzzer.rng.choice((None, -9))]
        return name, data, text.encode("utf-8", "surrogatepass")

    files = try_all(some(400, 40_000), make, lambda given: lists.judge(*given), KNOWN_LISTS)
    assert lists.rows > files
    tried("fuzzing: lists as text", files)
    tried("fuzzing: rows of those lists", lists.rows)


# Inputs that once failed.
KNOWN_LISTS: list[tuple[str, bytes]] = [
    ("a.csv", b"url,sku\nhttps://me:topsecret1@a.example/x.jpg,1\n" + b"https://a/?sig=topsecret1,\xe4\n"),
    ("a.csv", b"url,sku\n" + b'x",y,"\n' * 2000),
    ("a.jsonl", b'{"url": "u", ' + b", ".join(b'"k%d": 1' % n for n in range(20_000)) + b', "k9": 2}\n'),
    ("a.csv", b",".join(b"c%d" % n for n in range(100_000)) + b"\n"),
]


def _parquet(rows: list[str], **how: Any) -> bytes:
    out = io.BytesIO()
    table = pa.table({"url": rows, "sku": [str(n) for n in range(len(rows))], "size": list(range(len(rows)))})
    pq.write_table(table, out, **how)
    return out.getvalue()


def parquets() -> list[bytes]:
    rows = [*URLS, "", "x" * 500] * 4
    return [
        _parquet(rows), _parquet(rows, compression="zstd", use_dictionary=False, row_group_size=5),
        _parquet(rows, compression="gzip", data_page_version="2.0", data_page_size=64), _parquet(rows[:1], compression="none"),
    ]  # fmt: skip


def workbooks() -> list[bytes]:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in [("url", "sku"), *((url, n) for n, url in enumerate(URLS))]:
        book.active.append(row)
    out = io.BytesIO()
    book.save(out)
    return [out.getvalue()]


def in_a_process(what: str, seed: int, count: int) -> int:
    """Runs a fuzzer of this module in a child process, which a library in C or Rust may crash."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.test_fuzz_lists", what, str(seed), str(count)], cwd=ROOT, timeout=1200,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    errors = "\n".join(line[:300] for line in done.stderr.splitlines()[-60:])
    assert done.returncode == 0, f"{what}, seed {seed}: exit {done.returncode}\n{errors}"
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_parquet_lists(tried: Tried) -> None:
    """Damaged Parquet is refused or read, and crashes no process."""
    tried("fuzzing: lists as Parquet", in_a_process("parquet", 412, some(150, 20_000)))


@pytest.mark.slow
def test_workbooks(tried: Tried) -> None:
    """Damaged workbooks are refused or read."""
    tried("fuzzing: lists as workbooks", in_a_process("xlsx", 413, some(4, 400)))


JOBS = [
    "name: n\nmanifest: list.csv\ndestination: s3://bucket/p/\n",
    draft(Path("x.yaml")),
    draft(Path("x.yaml")).replace("# ", "").replace("#", " "),
    "name: n\nmanifest: s3://b/x/\ninclude: ['*.jpg']\ndestination: {uri: 'file:///srv/x/'}\nfailure_budget: 25\n",
    "name: n\nmanifest: l.csv\ndestination: {uri: 's3://b', endpoint_url: 'https://s3.example', metadata: {a: b}}\n"
    "source: {url: 'https://h/{id}', headers: {Authorization: 'env:A', Accept: x}, allow_private_addresses: [10.0.0.0/8]}\n"
    "limits: {hosts: {'*.h': {requests_per_s: 5, bytes_per_s: 10MB}}, destination: {concurrency: 5}}\ntimeouts: {read_s: 5}\n"
    "columns: {source: a, id: b}\nkey: '{sku}/{source.name}'\nconcurrency: 4\nchunk_rows: auto\nchecks: decode\n",
]
JOB_WORDS = [
    "&a ", "*a", "<<: *a\n", "<<: [*a, *a]\n", "? ", "- ", "{", "}", "[", "]", ": ", ":", "|\n  ", ">-\n  ", "\t", "\n", "\n  ", "---\n", "...\n",
    "%YAML 1.1\n", "!!python/object:os.system ", "!!python/name:os.system ", "!!binary ", "!!set ", "!!omap ", "!!timestamp ", "!!int ", "!!float ",
    "2001-99-99", "2001-12-14t21:59:43.10-05:00", "1e999", "0x", "0b", "1_000", "190:20:30", ".inf", ".nan", "~", "null", "yes", "off", "'", '"',
    "#", "@", "`", "\\x41", "\0", "\ufeff", "\u2028", "\ud800", "9" * 5000, "[" * 2000, "a: {" * 200, "=", "name: ", "destination: ", "limits: ",
    "https://me:pw@h/", "{id}", "{{", "../", "*", "**", "[a-", "{sha256}", "100%", "-1", "1e308", "env:", "secret:x y", "s3://", "file:///",
]  # fmt: skip


@pytest.mark.slow
def test_job_files(tried: Tried, tmp_path: Path) -> None:
    """A job file is read, or refused with lines that name the place; YAML tags create no objects."""
    fuzzer = Fuzzer(414, JOBS, JOB_WORDS)
    path = tmp_path / "job.yaml"

    def judge(text: str) -> None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            job = load_job(path)
        except UserError as error:
            assert all(escaped(line) == line for line in str(error).splitlines()), str(error)
            assert len(str(error)) < 20_000
        else:
            assert isinstance(job, Job)
            job.fingerprint()
            job.budget(100)
            Job.model_validate(job.model_dump(mode="json"))

    tried("fuzzing: job files", try_all(some(250, 25_000), fuzzer.text, judge, KNOWN_JOBS))


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
# Inputs that once failed.
KNOWN_JOBS = [
    *(LAUGHS + JOBS[0] + f"{key}: *a11\n" for key in ("failure_budget", "columns", "include", "state", "limits", "x")),
    JOBS[0] + "? [a, b]\n: c\n",
    JOBS[0] + "? {a: b}\n: c\n",
    JOBS[0] + "state: 2001-99-99\n",
    JOBS[0] + "max_bytes: " + "9" * 5000 + "\n",
    JOBS[0] + "state: !!binary 'x'\n",
    JOBS[0] + "state: !!int x\n",
    JOBS[0] + "state: " + "[" * 5000 + "\n",
    JOBS[0] + "x: &x [*x]\n",
    "&x [*x]",
    JOBS[0].replace("list", "~nobody-has-this-name"),
    JOBS[0] + "state: !!set v/x/'}\n",
    JOBS[0] + "state: !!omap x\n",
    "a" * 300_000,
    "",
]


def main(what: str, seed: int, count: int) -> int:
    """Runs a fuzzer of binary manifests, and returns the number of inputs."""
    import tempfile

    fuzzer = Fuzzer(seed, parquets() if what == "parquet" else workbooks(), ["PAR1", "PK\x03\x04", "\0" * 8, "url"])
    with tempfile.TemporaryDirectory() as folder:
        lists = Lists(Path(folder), fuzzer)
        return try_all(count, fuzzer.data, lambda data: lists.judge(f"a.{what}", data), mib=2200)


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
