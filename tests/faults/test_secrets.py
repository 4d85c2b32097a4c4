"""Secrets stay where they belong: canaries in everything that is secret, and afterwards every byte is searched."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from demo.images import make_image
from demo.origin import Fault, Origin, Trouble
from demo.s3 import S3Server
from flows.server.local import LocalServer
from tests.faults.amount import LONG
from tests.faults.canaries import Canaries, files, unpacked, where_found
from tests.faults.malformed import MALFORMED
from tests.flows.project import QUICK, Cli, Prefect, Project, wait_for

pytestmark = pytest.mark.slow

# Everything that says more when it is asked to.
DEBUG = {
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
    "PREFECT_LOGGING_SERVER_LEVEL": "DEBUG",
    "PREFECT_SERVER_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "boto3,botocore,urllib3",
    "PREFECT_DEBUG_MODE": "true",
    "PYTHONASYNCIODEBUG": "1",
    "RUST_LOG": "debug",
    "RUST_BACKTRACE": "1",
}
OUR_LINK = re.compile(r"\[[0-9a-f]{12}\]\(/runs/task-run/[0-9a-f-]{36}\)")  # from a chunk to its task run
BLOCKS = """
import json, sys
from prefect.blocks.system import Secret
from prefect_aws import AwsCredentials
given = json.load(sys.stdin)
Secret(value=given["header"]).save("old-token", overwrite=True)
AwsCredentials(
    aws_access_key_id=given["id"], aws_secret_access_key=given["secret"], region_name="us-east-1"
).save("new-store", overwrite=True)
"""


class DebugServer(LocalServer):
    """A Prefect server that logs all it can."""

    def _environment(self) -> dict[str, str]:
        return super()._environment() | DEBUG


@dataclass
class World:
    """Servers of its own, whose very keys are canaries; a job; and everything that anybody printed."""

    canaries: Canaries
    origin: Origin
    s3: S3Server
    prefect: LocalServer
    project: Project
    tmp: Path
    home: Path
    printed: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)

    def secret(self, name: str) -> str:
        return self.canaries.make(name)

    def row(self, name: str, url: str, **more: str) -> None:
        self.rows.append({"sku": name, "url": url, "key": "", "md5": "", **more})

    def add(self, name: str, fault: Fault | Trouble | None = None, **more: str) -> None:
        """An object behind a signed address."""
        path = f"/i/{name}.jpg?Expires=1&Signature={self.secret(f'query of {name}')}"
        self.row(name, self.origin.add(path, make_image("jpeg", len(self.rows), 40, 30), fault=fault), **more)

    def ferry(self, *arguments: str, code: int = 0) -> None:
        """A command; what it prints is kept. (At DEBUG level Prefect prints tracebacks of its own.)"""
        debug = DEBUG if arguments[0] in ("run", "verify") else {}  # the others have no log, and start faster without
        if debug and len(self.printed) % 2:  # both formats are searched
            debug = {**debug, "FERRY_LOG_FORMAT": "json"}
        ended = self.project.ferry(*arguments, env={**self.environment(), **debug})
        self.printed[f"{len(self.printed)}: ferry {' '.join(arguments)}"] = ended.text
        assert ended.code == code, ended.text[-4000:]

    def environment(self) -> dict[str, str | None]:
        return {
            "AWS_ACCESS_KEY_ID": None,
            "AWS_SECRET_ACCESS_KEY": None,
            "OLD_COOKIE": self.secret("a header from the environment"),
            "TMPDIR": str(self.tmp),
        }

    def everything(self) -> dict[str, bytes]:
        """All that was printed, and every file of state, Prefect, temporary directory and destination."""
        found = {f"printed {name}": text.encode("utf-8", "surrogateescape") for name, text in self.printed.items()}
        found |= {f"project/{name}": data for name, data in files(self.project.folder).items()}
        found |= {f"prefect/{name}": data for name, data in files(self.prefect.home).items()}
        found |= {f"tmp/{name}": data for name, data in files(self.tmp).items()}
        found |= {f"home/{name}": data for name, data in files(self.home).items()}
        client = self.s3.client()
        for key in self.project.stored():
            head = client.head_object(Bucket=self.project.bucket, Key=self.project.prefix + key)
            found[f"bucket/{key}"] = json.dumps(head, default=str).encode()
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    canaries = Canaries(seed=44)
    folder = tmp_path_factory.mktemp("secrets")
    tmp, home = folder / "tmp", folder / "home"
    for made_first in (tmp, home, folder / "project"):
        made_first.mkdir()
    s3 = S3Server(folder / "s3")
    s3.secret_key, s3.reader_secret = canaries.make("the destination's key"), canaries.make("the reader's key")
    with s3, Origin() as origin, DebugServer(folder / "prefect") as prefect:
        s3.make_bucket("secrets")
        cli = Cli(s3, prefect, home)
        try:
            made = World(canaries, origin, s3, prefect, Project(folder / "project", cli, "secrets"), tmp, home)
            _blocks(made)
            _lay(made)
            _work(made)
            yield made
        finally:
            cli.close()


def _blocks(w: World) -> None:
    """A Secret block and a credentials block, as a user saves them."""
    given = {"header": w.secret("a header from a block"), "id": w.s3.access_key, "secret": w.s3.secret_key}
    subprocess.run(
        [sys.executable, "-c", BLOCKS], input=json.dumps(given), text=True, check=True, timeout=120,
        env={**w.project.cli.environment, "PREFECT_API_URL": f"{w.prefect.url}/api"},
    )  # fmt: skip


def _lay(w: World) -> None:
    """Rows that end in every way there is, each with secrets of its own."""
    o = w.origin
    for number in range(6):
        w.add(f"fine-{number}")
    for trouble in (
        Trouble.NOT_FOUND, Trouble.GONE, Trouble.FORBIDDEN, Trouble.SERVER_ERROR, Trouble.FLAKY, Trouble.HTML_200,
        Trouble.JSON_200, Trouble.TRUNCATED_LENGTH, Trouble.TRUNCATED_CHUNKED, Trouble.TRUNCATED_CLOSE, Trouble.EMPTY,
        Trouble.REDIRECT_LOOP, Trouble.RESET, Trouble.GZIP, Trouble.RATE_LIMITED, Trouble.WRONG_TYPE,
    ):  # fmt: skip
        w.add(trouble.value, trouble)
    targets = {
        "to-a-signed-404": f"/none.jpg?Signature={w.secret('target: signed 404')}",
        "to-a-password": f"http://me:{w.secret('target: password')}@127.0.0.1:{o.port}/none.jpg",
        "to-metadata": f"http://169.254.169.254/?token={w.secret('target: metadata')}",
        "to-no-address": f"http://[{w.secret('target: no address')}/x.jpg",
        "to-no-port": f"http://127.0.0.1:{w.secret('target: no port')}/x.jpg",
        "to-no-host": f"http://{w.secret('target: no host')}_!/x.jpg",
        "to-another-scheme": f"ftp://me:{w.secret('target: another scheme')}@127.0.0.1/x.jpg",
    }
    for name, target in targets.items():
        w.add(name, Fault(Trouble.REDIRECT, target=target))
    w.add("other-digest", md5="0" * 32)
    w.add("no-digest", md5="nonsense")
    w.row("tls", f"https://127.0.0.1:{o.port}/x.jpg?sig={w.secret('query over TLS')}")
    w.row("refused", f"http://127.0.0.1:1/x.jpg?sig={w.secret('query to a closed port')}")
    w.row("a-key-that-is-an-address", o.url("/x.jpg"), key=f"https://h/x.jpg?sig={w.secret('key: an address')}")
    w.row("no-key", o.url(f"/a/../x.jpg?sig={w.secret('query with a bad key')}"))
    w.row(f"https://shop.example/p?sig={w.secret('id: an address')}", o.add("/id.jpg", make_image("jpeg", 77)))
    w.row("twice", w.rows[0]["url"])
    w.row("collides-1", o.url(f"/i/same.jpg?v={w.secret('query of a collision')}"))
    w.row("collides-2", o.url("/i/same.jpg?v=2"))
    for name, text in malformed(w.secret).items():
        w.row(name, text)
    for name in TRICKY:
        w.row(name, o.url("/none.jpg"), key=f"tricky/{name.replace('/', '|')}.jpg")


def malformed(secret: Callable[[str], str]) -> dict[str, str]:
    """Addresses with a password or a signature in them that are none, in the ways that people write them."""
    p = {name: secret(f"malformed: {name}") for name in MALFORMED}
    return {name: text.replace("PW", p[name]) for name, text in MALFORMED.items()}


# IDs and keys that want to be more than text: for terminals, HTML, Markdown, spreadsheets.
TRICKY = [
    "\x1b[2J\x1b[31mred", "\x9b2J", "a\u202egpj.exe", "a\u2066b", "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))", "| a | b |\n|---|---|", '=HYPERLINK("http://x.example","y")', "@SUM(1)",
    "a;=1+1", "`x`", "a\r\nb: c",
    "[bold]x[/bold]",
]  # fmt: skip


def _work(w: World) -> None:
    """A run with failures, and commands that show something of it: all of them in `make faults`."""
    w.project.manifest(w.rows)
    source = {
        "allow_private_addresses": ["127.0.0.1"],
        "headers": {"Authorization": "secret:old-token", "Cookie": "env:OLD_COOKIE", "Referer": "https://shop.example"},
        "headers_for": ["http://*"],
    }
    w.project.job(
        source=source, retries={**QUICK, "passes": 1}, destination=w.project.destination(credentials="block:new-store")
    )
    w.ferry("run", "job.yaml")
    if LONG:
        w.ferry("plan", "job.yaml")
        w.ferry("run", "job.yaml", "--retry-failed", "--json")
        w.s3.client().delete_object(Bucket="secrets", Key=w.project.prefix + "i/fine-0.jpg")
        w.s3.client().put_object(Bucket="secrets", Key=w.project.prefix + "i/fine-1.jpg", Body=b"other")
        w.ferry("verify", "job.yaml", code=1)
        w.ferry("failures", "job.yaml", "--json")
        w.ferry("status", "job.yaml")
        w.ferry("export", "job.yaml", "failures.parquet", "--what", "failures")
        w.ferry("export", "job.yaml", "failures.xlsx", "--what", "failures")
    w.ferry("failures", "job.yaml", "--limit", "1000")
    w.ferry("export", "job.yaml", "failures.csv", "--what", "failures")
    w.ferry("export", "job.yaml", "map.xlsx")


def belongs(name: str) -> bool:
    """Where an address may lie as it is: the user's own list, two folders of the state (docs/reference/state.md)."""
    parts = Path(name).parts
    return name == "project/products.csv" or (parts[:2] == ("project", ".ferry") and parts[3] in ("plan", "chunks"))


def test_every_byte_is_searched(world: World, tried: Callable[..., None]) -> None:
    """After a run with failures of every kind, at DEBUG level, no secret is anywhere but where it belongs."""
    wait_for("the failures to be recorded at Prefect", lambda: b"redirect_loop" in _database(world.prefect.home))
    found = where_found(world.canaries, world.everything())
    leaks = {name: sorted(secrets) for name, secrets in found.items() if not belongs(name)}
    assert not leaks, "\n".join(f"{name}: {', '.join(secrets)}" for name, secrets in leaks.items())
    # the search sees what is there to be seen
    shown = set().union(*(secrets for name, secrets in found.items() if belongs(name) and ".ferry" in name))
    assert len([name for name in shown if name.startswith("malformed")]) == len(MALFORMED)
    assert len([name for name in shown if name.startswith("query of")]) > 20
    tried("secrets in credentials, headers, queries and passwords", len(world.canaries.values), lost=len(leaks))


def _database(home: Path) -> bytes:
    return b"".join(path.read_bytes() for path in home.glob("prefect.db*"))


def test_files_are_for_the_owner_alone(world: World) -> None:
    """The state, with the lists in it, and everything exported: no other user of the machine may read a byte."""
    state = world.project.state
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for folder in ("plan", "chunks"):
        held = [path for path in (state / folder).rglob("*.parquet") if path.parent.name != "hints"]
        assert held
        assert {stat.S_IMODE(path.stat().st_mode) for path in held} == {0o600}
    exported = [path for path in world.project.folder.iterdir() if path.stem in ("failures", "map")]
    assert len(exported) >= 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in exported} == {0o600}
    assert stat.S_IMODE(world.prefect.home.stat().st_mode) == 0o700
    assert not list((state / "spool").iterdir())


def test_what_is_on_disk_is_data(world: World) -> None:
    """State files are JSON, Parquet, Markdown or HTML; Prefect stores no result of its own, and no pickle anywhere."""
    for name, data in world.project.files().items():
        if name.endswith(".parquet"):
            assert data.startswith(b"PAR1"), name
        elif name.endswith((".json", ".jsonl")):
            json.loads(data)
        else:
            assert name.endswith((".md", ".html", ".lock")), name
            data.decode()
    assert not [path for path in (world.prefect.home / "storage").rglob("*") if path.is_file()]
    pickled = [b"\x80\x04\x95", b"\x80\x05\x95", base64.b64encode(b"\x80\x04\x95"), base64.b64encode(b"\x80\x05\x95")]
    for name, data in world.everything().items():
        for text in unpacked(data):
            assert not [mark for mark in pickled if text.startswith(mark) or b'"' + mark in text], name


def test_what_strangers_wrote_is_only_shown(world: World) -> None:
    """Control characters are escapes in terminal, log, CSV, Markdown and HTML; markup is text; no cell a formula."""
    for name, text in world.printed.items():
        assert not set("\x1b\x9b\u202e\u2066") & set(text), name
    summaries = [data.decode() for name, data in world.project.files().items() if name.endswith((".md", ".html"))]
    assert any("<html" in text for text in summaries)
    assert not [
        text for text in summaries if "<html" in text and re.search(r"<(script|img|b|a href=.?javascript)\b", text)
    ]
    rows = [*csv.reader(io.StringIO((world.project.folder / "failures.csv").read_text()))]
    assert len(rows) > len(TRICKY)
    for text in [*summaries, *(cell for row in rows for cell in row)]:
        assert not set("\x1b\x9b\u202e\u2066") & set(text)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@")) or ";=" in cell]
    shown = next(text for name, text in world.printed.items() if name.endswith("--limit 1000"))
    assert "\\x1b[2J\\x1b[31mred" in shown
    assert "[bold]x[/bold]" in shown
    asked = {"artifacts": {"key": {"like_": world.project.name}}, "sort": "CREATED_DESC"}
    artifacts = Prefect(world.prefect.url, world.prefect.home).post("artifacts/filter", asked)
    assert {artifact["type"] for artifact in artifacts} == {"markdown", "table", "progress"}
    for artifact in artifacts:
        data = str(artifact["data"])
        if artifact["key"].endswith("-report"):
            assert re.fullmatch(r"\[(file:///[^\]()<>\s]+/report\.html)\]\(\1\)", data), data
            continue
        cells = [data] if artifact["type"] != "table" else [str(c) for row in json.loads(data) for c in row.values()]
        for cell in cells:
            cell = OUR_LINK.sub("", cell)
            assert not set("\x1b\x9b\u202e\u2066") & set(cell)
            assert not re.search(r"(?<!\\)<", cell), cell
            assert not re.search(r"(?<!\\)\]\(", cell), cell
