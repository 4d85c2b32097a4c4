"""Job files give a job with absolute paths, or errors that name the key but no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ferry.core.errors import UserError
from flows.cli.job_file.draft import draft
from tasks.job_file import load_job, parse_job
from tests.ferry.job.test_model import SECRETS

TEXT = "name: n\nmanifest: list.csv\ndestination: s3://bucket/p/\n"


def write(folder: Path, text: str | bytes, name: str = "job.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_paths_are_those_of_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of manifest and state start at the job file's folder, in any working directory."""
    (tmp_path / "jobs").mkdir()
    write(tmp_path / "jobs", TEXT + "state: st\n")
    monkeypatch.chdir(tmp_path)
    job = load_job(Path("jobs/job.yaml"))
    assert job.manifest == str(tmp_path / "jobs/list.csv")
    assert job.state == str(tmp_path / "jobs/st")
    write(tmp_path / "jobs", TEXT)
    assert load_job(Path("jobs/job.yaml")).state == str(tmp_path / "jobs/.ferry/n")


@pytest.mark.parametrize("value", ["/abs/list.csv", "s3://b/list.csv", "https://h/list.csv", "file:///srv/x/"])
def test_absolute_places_stay(value: str, tmp_path: Path) -> None:
    """Addresses and absolute paths do not change."""
    path = write(tmp_path, f"name: n\nmanifest: {value}\ndestination: s3://bucket\nstate: s3://b/state\n")
    job = load_job(path)
    assert (job.manifest, job.state) == (value, "s3://b/state")


def test_a_home_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` stands for the user's home directory."""
    monkeypatch.setenv("HOME", "/home/me")
    job = load_job(write(tmp_path, TEXT.replace("list.csv", "~/list.csv") + "state: ~/st\n"))
    assert (job.manifest, job.state) == ("/home/me/list.csv", "/home/me/st")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a job file"),
        ("- a\n", "is not a job file"),
        ("just text", "is not a job file"),
        ("name: [\n", "line 2, column 1"),
        ("name: n\n\tmanifest: x\n", "line 2"),
        ("a: 'b\n", "not valid YAML"),
        (b"name: \xff\n", "cannot be read"),
        (b"name: \x01\n", "not valid YAML"),
        ("name: !!python/object:os.system x\n", "not valid YAML"),
        ("name: n\n", "manifest: is missing"),
        (TEXT + "chekcs: none\n", "did you mean `checks`?"),
        (TEXT + "retries:\n  attempts: many\n", "retries.attempts: "),
        (TEXT + "chunk_rows: many\n", "chunk_rows: "),
        (TEXT + "failure_budget: [1]\n", "failure_budget: "),
        (TEXT.replace("s3://bucket/p/", "{uri: s3://b, metadata: {internal: [1]}}"), "destination.metadata.internal: "),
        (
            TEXT + "source: {allow_private_addresses: [127.0.0.1/33]}\n",
            "source.allow_private_addresses: `127.0.0.1/33`",
        ),
        (TEXT + "source: {allow_private_addresses: [127.0.0.1/8]}\n", "write `127.0.0.0/8`"),
        (TEXT + "checks: no\n", "checks: Input should be 'none', 'length', 'image' or 'decode' (YAML reads yes, no"),
        (TEXT.replace("name: n", "name: 2024"), "name: Input should be a valid string (put the number in quotes)"),
        (TEXT.replace("name: n", "name: 2024-01-02"), "name: Input should be a valid string (put the date in quotes)"),
        (TEXT.replace("name: n", "name: a b"), "name: must be 1 to 100 letters, digits"),
        (TEXT + "retries: 3\n", "retries: must be a mapping of keys, not a value"),
        (TEXT + "max_bytes: 1Mbit\n", "the unit is bytes, not bits; write bytes, or `20MB`, `1GiB`"),
        (
            TEXT + "timeouts: {read_s: 5x}\n",
            "line 4: timeouts.read_s: `5x` is not a duration; write a number of",
        ),
        (TEXT + "max_bytes: 10MB/s\n", "line 4: max_bytes: max_bytes is neither a number nor"),
        (TEXT + "chunk_rows: 1k\n", "line 4: chunk_rows: must be a whole number without a unit"),
        (TEXT + "checks: images\n", "'image' or 'decode'; did you mean `image`?"),
        (
            TEXT + "endpoint_url: https://s3.example\n",
            "did you mean `destination.endpoint_url` or `source.endpoint_url`?",
        ),
        (TEXT.replace("s3://bucket/p/", '{uri: s3://b, cache_control: "a\\nX: y"}'), "cache_control holds characters"),
        (TEXT.replace("s3://bucket/p/", "{uri: s3://b, metadata: {käse: x}}"), "is not a valid name"),
        (TEXT.replace("s3://bucket/p/", "{uri: s3://b, metadata: {v: süß}}"), "metadata.v holds characters"),
        (
            TEXT.replace("s3://bucket/p/", "{uri: 'file:///d/', metadata: {v: x}}"),
            "cannot store attributes of objects (metadata.v)",
        ),
        (TEXT + 'source: {user_agent: "a\\nb"}\n', "source.user_agent holds characters"),
        (TEXT.replace("list.csv", "file:///d/") + "columns: {source: x}\n", "apply only to a manifest file"),
        (TEXT + "state: s3://user:pass@b/c\n", "state holds a user name or password"),
        (
            TEXT + "concurrency: 0\n",
            "concurrency: Input should be greater than or equal to 1; or: Input should be",
        ),
        (TEXT + "name: m\n", "line 4, column 1: not valid YAML (the key `name` is given twice)"),
        (TEXT + "source: {url: a, url: b}\n", "the key `url` is given twice"),
        (TEXT + "source: {headers: {int-key: literal}}\n", "source.headers: "),
    ],
)
def test_what_is_wrong_is_said(text: str | bytes, words: str, tmp_path: Path) -> None:
    """The error names the file, and the key or the line."""
    with pytest.raises(UserError) as caught:
        load_job(write(tmp_path, text))
    assert words in str(caught.value)
    assert "job.yaml" in str(caught.value)


MISTAKES = """\
name: x
manifst: list.csv
destination:
  uri: s3://b/x/
  regin: eu
checks: images
limits:
  hosts:
    a.example: {concurrency: 0}
source:
  roots: [s3://a/, nonsense]
concurency: 3
"""


def test_all_mistakes_are_said_with_their_lines(tmp_path: Path) -> None:
    """One line for each mistake, at all levels, in the order of the file. A misspelt key is not missing as well."""
    with pytest.raises(UserError) as caught:
        load_job(write(tmp_path, MISTAKES))
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines[0] == "line 2: unknown key `manifst`; did you mean `manifest`?"
    assert lines[1] == "line 5: destination: unknown key `regin`; did you mean `region`?"
    assert lines[2].startswith("line 6: checks: Input should be ")
    assert lines[3].startswith("line 9: limits.hosts.a.example.concurrency: ")
    assert lines[4].startswith("line 11: source.roots.1: root `nonsense` is neither ")
    assert lines[5] == "line 12: unknown key `concurency`; did you mean `concurrency`?"
    assert len(lines) == 6


def test_mistakes_of_settings_have_no_line(tmp_path: Path) -> None:
    """What `--set` gave is in no line of the file."""
    with pytest.raises(UserError) as caught:
        load_job(write(tmp_path, TEXT + "retries:\n  attempts: 0\n"), ["timeouts.read_s=x", "retrys=1"])
    assert [line.partition(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "line 5", "timeouts.read_s", "unknown key `retrys`; did you mean `retries`?"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_bytes=20MB", 20_000_000), ("max_bytes=1GiB", 2**30), ("max_bytes=5TB", 5 * 10**12),
        ("max_bytes=off", 2**50), ("max_bytes=5", 5), ("timeouts.total_s=5m", 300.0),
        ("timeouts.read_s=45", 45.0), ("timeouts.total_s=1e3", 1000.0), ("retries.chunk_delay_s=90s", 90.0),
    ],
)  # fmt: skip
def test_units(setting: str, value: float, tmp_path: Path) -> None:
    """Sizes and times may have a unit."""
    found: Any = load_job(write(tmp_path, TEXT), [setting])
    for part in setting.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value


def test_each_key_is_named_once_and_by_its_path(tmp_path: Path) -> None:
    """Each line is `key: problem`, without pydantic's names for the members of a union."""
    with pytest.raises(UserError) as caught:
        parse_job(
            {"name": "n", "manifest": "x", "destination": "s3://b", "chunk_rows": "many", "failure_budget": []}, "x"
        )
    places = {line.strip().partition(":")[0] for line in str(caught.value).splitlines()[1:]}
    assert places == {"chunk_rows", "failure_budget"}


def test_no_file_and_no_right_to_read(tmp_path: Path) -> None:
    """The error for a missing or unreadable job file says what to do, or the reason."""
    with pytest.raises(UserError, match="ferry init"):
        load_job(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_job(tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        {"manifest": "https://me:topsecret@h/list.csv"},
        {"destination": "https://me:topsecret@h/x"},
        {"destination": {"uri": "s3://b", "credentials": "topsecret"}},
        {"source": {"headers": {"Authorization": "Bearer topsecret"}}},
        {"source": {"url": "https://h/{id}?sig=topsecret"}},
        {"name": "topsecret/"},
        {"checks": "topsecret"},
        *(given for given, _ in SECRETS),
    ],
)
def test_no_value_is_shown(given: dict[str, Any]) -> None:
    """Errors name only keys, since a misplaced value may be a secret."""
    with pytest.raises(UserError) as caught:
        parse_job({"name": "n", "manifest": "x", "destination": "s3://b", **given}, "job.yaml")
    assert "topsecret" not in str(caught.value)


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    """A job file may have a byte order mark and Windows line ends."""
    assert load_job(write(tmp_path, b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())).name == "n"


def test_the_template_is_a_job(tmp_path: Path) -> None:
    """The job of `ferry init` loads, also with its commented settings enabled."""
    text = draft(Path("shop.yaml"))
    assert load_job(write(tmp_path, text)).name == "shop"
    for line in text.splitlines():
        setting = line.removeprefix("# ")
        if line.startswith(("# key:", "# checks:", "# on_existing:", "# failure_budget:", "# state:")):
            load_job(write(tmp_path, f"{text}\n{setting}\n"))
    start = text.index("# source:")
    block = text[start : text.index("\n\n", start)]
    live = "\n".join(line.removeprefix("# ") for line in block.splitlines())
    assert load_job(write(tmp_path, text.replace(block, live))).source.user_agent is not None
