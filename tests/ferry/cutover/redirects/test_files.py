"""Files of redirects that services and databases read: Cloudflare's list, S3's rules, SQL."""

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest

from ferry.core import UserError
from ferry.cutover import export
from ferry.cutover.files import FORMATS, Exported
from ferry.cutover.redirects import TARGETS, apache, caddy, haproxy, nginx
from ferry.cutover.redirects.sql import literal
from flows.cli.export import Format
from tests.support import webservers
from tests.support.postgres import Postgres, find_programs
from tests.support.proxies import find
from tests.support.redirects import NEW, odd_addresses, stored

AT = datetime(2026, 1, 2, tzinfo=UTC)
ODD = "it's \\ a \"b\" \\' ~|~ ä😀 %s ?1 :x $1 -- ;\n\t"


def write(folder: Path, form: str, rows: list[dict[str, str]], *, full: bool = False, **job: Any) -> Exported:
    state, made = stored(folder, rows, **job)
    return export(state, made, folder / "out", at=AT, form=form, full=full)


def listed(*urls: str, key: str = "{n}") -> list[dict[str, str]]:
    return [{"url": url, "key": key.format(n=n), "id": str(n)} for n, url in enumerate(urls)]


def test_the_command_names_all_formats() -> None:
    assert get_args(Format) == FORMATS


@pytest.mark.parametrize("form", TARGETS)
def test_limits_have_their_source(form: str) -> None:
    """Each target says what it cannot hold, and where that is written."""
    assert all(limit.text and limit.source for limit in TARGETS[form].limits)
    assert TARGETS[form].limits


@pytest.mark.parametrize("form", TARGETS)
def test_comments_say_what_is_left_out(form: str, tmp_path: Path) -> None:
    """The first lines name the job, the time and the counts, where the format has comments."""
    rows = [
        *listed("https://old.example/a/1", key="a/1"),
        {"url": "https://old.example/b", "key": "b", "id": "missing"},
    ]
    written = write(tmp_path, form, rows)
    assert written.left_out["without_copy"] == 1
    assert written.notes[0] == "1 row left out: without a copy. `ferry failures` says why"
    text = (tmp_path / "out").read_text()
    if form not in ("cloudflare-bulk-redirects", "s3-routing"):
        first, second, *_ = text.splitlines()
        assert first.endswith("1 redirect of the job test, by `ferry export` at 2026-01-02 00:00:00 UTC")
        assert second.endswith(written.notes[0])


# --- Cloudflare


def test_cloudflare(tmp_path: Path) -> None:
    """Seven columns without a header, no scheme and no query in a source, each source once."""
    odd = odd_addresses(1_000, 1_000)
    written = write(tmp_path, "cloudflare-bulk-redirects", odd.rows)
    with (tmp_path / "out").open(newline="") as file:
        lines = list(csv.reader(file))
    assert len(lines) == written.rows > 500
    assert {len(line) for line in lines} == {7}
    assert {tuple(line[2:]) for line in lines} == {("301", "FALSE", "FALSE", "FALSE", "FALSE")}
    sources = [line[0] for line in lines]
    assert len(set(sources)) == len(sources)
    assert not any("?" in source or "://" in source or not source.isascii() for source in sources)
    locations = {visit.location for visit in odd.visits}
    assert all(line[1] in locations for line in lines)
    assert any("which the plan Free allows" in note for note in written.notes)


def test_cloudflare_without_queries(tmp_path: Path) -> None:
    """A row without a copy and another query may be another object, so the path is left out."""
    old = "https://old.example"
    rows = listed(f"{old}/a?v=1", f"{old}/b?id=1", f"{old}/c?Signature=x")
    rows.append({"url": f"{old}/b?id=2", "key": "x", "id": "missing"})
    written = write(tmp_path, "cloudflare-bulk-redirects", rows)
    assert [line.split(",")[0] for line in (tmp_path / "out").read_text().splitlines()] == [
        "old.example/a", "old.example/c",
    ]  # fmt: skip
    assert written.left_out["ambiguous"] == 1


# --- S3


def test_s3_rules(tmp_path: Path) -> None:
    """A few prefixes are a few rules, the longest first."""
    rows = [
        {"url": "https://old.example/img/a/1.jpg", "key": "a/1.jpg", "id": "1"},
        {"url": "https://old.example/img/ä b/2.jpg", "key": "ä b/2.jpg", "id": "2"},
        {"url": "https://old.example/img/x/3.jpg", "key": "other/3.jpg", "id": "3"},
        {"url": "https://old.example/4.jpg", "key": "top/4.jpg", "id": "4"},
    ]
    written = write(tmp_path, "s3-routing", rows)
    assert json.loads((tmp_path / "out").read_text()) == {
        "IndexDocument": {"Suffix": "index.html"},
        "RoutingRules": [
            {"Condition": {"KeyPrefixEquals": old}, "Redirect": redirect(new)} if old else {"Redirect": redirect(new)}
            for old, new in (("img/x/", "p/other/"), ("img/", "p/"), ("", "p/top/"))
        ],
    }
    assert any("also those of rows without a copy" in note for note in written.notes)


def redirect(new: str) -> dict[str, str]:
    return {
        "Protocol": "https", "HostName": "img.new.example", "ReplaceKeyPrefixWith": new, "HttpRedirectCode": "301",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([(f"{n}/x", f"new{n}/x") for n in range(51)], "more than the 50 routing rules"),
        ([("a/x", "b/y")], "ends otherwise"),
        ([("a/b/x", "p/x"), ("a/b/c/y", "q/b/c/y")], "to a wrong address"),
    ],
)
def test_what_s3_cannot_express(pairs: list[tuple[str, str]], why: str, tmp_path: Path) -> None:
    """The message says why, and names a better way. Nothing is written."""
    rows = [{"url": f"https://old.example/{old}", "key": new, "id": new} for old, new in pairs]
    with pytest.raises(UserError, match=rf"{why}.*x-amz-website-redirect-location"):
        write(tmp_path, "s3-routing", rows)
    assert not (tmp_path / "out").exists()


def test_fifty_rules_are_not_too_many(tmp_path: Path) -> None:
    rows = [{"url": f"https://old.example/{n}/x", "key": f"new{n}/x", "id": str(n)} for n in range(50)]
    write(tmp_path, "s3-routing", rows)
    assert len(json.loads((tmp_path / "out").read_text())["RoutingRules"]) == 50


# --- SQL


@pytest.mark.parametrize("value", ["", "a", "'", "\\", "\\\\'", ODD, "|", "|~|\\", None])
def test_a_literal_in_sqlite(value: str | None) -> None:
    assert sqlite3.connect(":memory:").execute(f"SELECT {literal(value)}").fetchone() == (value,)


def test_a_literal_without_a_zero_byte() -> None:
    """PostgreSQL has none in a text."""
    assert literal("a\x00b") == "'ab'"


def test_sqlite_reads_the_file(tmp_path: Path) -> None:
    """All rows are in the table, byte for byte; addresses with credentials only with --full."""
    odd = odd_addresses(1_100, 1_000)
    signed = {"url": "https://old.example/a?Signature=x", "key": "signed", "id": ODD}
    written = write(tmp_path, "sql", [*odd.rows, signed])
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600
    database = sqlite3.connect(":memory:")
    database.executescript((tmp_path / "out").read_text())
    found = database.execute("SELECT old_url, new_url, id, object_key FROM ferry_redirects").fetchall()
    wanted = {
        (row["url"], visit.location, row["id"], row["key"])
        for row, visit in zip(odd.rows, odd.visits, strict=True)
        if visit.location
    }
    assert set(found) == wanted
    assert len(found) == len(wanted) == written.rows
    assert written.left_out["secret"] == 1
    assert "Signature" not in (tmp_path / "out").read_text()
    write(tmp_path / "full", "sql", [signed], full=True)
    assert (tmp_path / "full" / "out").read_text().count("https://old.example/a?Signature=x") == 1


def test_the_update_of_the_comment(tmp_path: Path) -> None:
    """The statement that the file shows replaces addresses, and leaves others alone."""
    write(tmp_path, "sql", listed("https://old.example/a"))
    text = (tmp_path / "out").read_text()
    lines = [line[3:] for line in text.splitlines() if line.startswith("--    ")]
    database = sqlite3.connect(":memory:")
    database.executescript(text)
    database.executescript(
        "CREATE TABLE products (image_url TEXT); INSERT INTO products VALUES ('https://old.example/a'), ('x')"
    )
    database.executescript("\n".join(lines))
    assert database.execute("SELECT image_url FROM products").fetchall() == [(f"{NEW}0",), ("x",)]


@pytest.mark.slow
def test_postgresql_reads_the_file(tmp_path: Path) -> None:
    """PostgreSQL reads the same values as SQLite."""
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed; `./deployments/postgresql.sh` installs it as root, or says how")
    rows = [*odd_addresses(600, 1_000).rows, {"url": "https://old.example/\\a'", "key": "k'\\", "id": ODD.strip()}]
    write(tmp_path, "sql", rows)
    database = sqlite3.connect(":memory:")
    text = (tmp_path / "out").read_text()
    database.executescript(text)
    joined = "old_url || ' ' || new_url || ' ' || id || ' ' || object_key"
    wanted = {cell for (cell,) in database.execute(f"SELECT hex({joined}) FROM ferry_redirects")}
    with Postgres() as postgres:
        postgres.query(text)
        found = postgres.query(f"SELECT upper(encode(convert_to({joined}, 'UTF8'), 'hex')) FROM ferry_redirects")
    assert {cell for (cell,) in found} == wanted
    assert len(wanted) > 500


@pytest.mark.parametrize("lines", [apache.CONFIGURE, caddy.CONFIGURE, haproxy.CONFIGURE, nginx.CONFIGURE])
def test_the_page_has_the_lines_of_the_files(lines: tuple[str, ...]) -> None:
    """The how-to shows the configuration that the files' comments have, and that the tests of servers use."""
    page = (Path(__file__).parents[4] / "docs/how-to/redirects.md").read_text()
    shown = [line.strip() for line in lines if line.startswith("    ")]
    assert shown
    assert [line for line in shown if f"\n{line}\n" not in page] == []


# --- nginx


def test_many_maps_of_twins(tmp_path: Path) -> None:
    """nginx warns of its hash of variables, and takes the file; with the note's setting it does not warn."""
    if find("nginx") is None:
        pytest.skip(webservers.missing("nginx"))
    twins = [f"https://old.example/{name}/{n}" for n in range(900) for name in "aA"]
    written = write(tmp_path, "nginx-map", listed(*twins))
    (note,) = (note for note in written.notes if "variables_hash" in note)
    assert "57 maps" in note
    setting = note.split("`")[1]
    for given, warned in (("", True), (setting, False)):
        server = "server { listen 127.0.0.1:1; if ($ferry_redirect) { return 301 $ferry_redirect; } }"
        include = f"{given} include {tmp_path}/out; access_log off;"
        (tmp_path / "conf").write_text(f"pid {tmp_path}/pid; events {{ }} http {{ {include} {server} }}")
        names = ["-p", str(tmp_path), "-c", str(tmp_path / "conf"), "-e", str(tmp_path / "log")]
        tested = subprocess.run([str(find("nginx")), "-t", *names], capture_output=True, text=True, check=True)
        assert ("variables_hash" in tested.stderr) is warned
    assert not any("variables_hash" in note for note in write(tmp_path / "few", "nginx-map", listed(*twins[:99])).notes)
