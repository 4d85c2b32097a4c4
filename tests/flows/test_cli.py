"""The `ferry` command as a user runs it, in its own process, with a real S3 server and Prefect server."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow.parquet as pq
import pytest
import yaml

from demo.images import make_image
from demo.origin import Fault, Origin, Trouble
from demo.ports import free_ports
from tests.flows.project import Cli, Prefect, Project, fold, processes_with, serve, wait_for

pytestmark = pytest.mark.slow
TOKEN = "t0ken-of-the-0rigin-5521"


def test_three_lines_are_a_job(project: Project, origin: Origin) -> None:
    """name, manifest and destination make a job, and --json agrees with the exit code."""
    rows, bodies = serve(origin, 3)
    project.manifest(rows)
    target = project.folder / "out"
    lines = f"name: three\nmanifest: products.csv\ndestination: file://{target}/\n"
    (project.folder / "job.yaml").write_text(lines)
    ended = project.ferry("run", "job.yaml", "--json").expect(1)  # the origin is on loopback: blocked, over budget
    assert ended.json["counts"]["classes"] == {"blocked_address": 3}
    assert ended.json["exit_code"] == 1
    assert origin.total == 0
    (project.folder / "job.yaml").write_text(lines + "source: {allow_private_addresses: [127.0.0.1]}\n")
    report = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert report["counts"]["copied"] == 3
    assert {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()} == bodies
    assert (project.folder / ".ferry" / "three" / "plan" / "plan.json").exists()


def test_plan_run_and_run_again(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """A second run is Cached and requests nothing; new rows get chunks of their own."""
    rows, bodies = serve(origin, 60)
    project.job(chunk_rows=20)
    project.manifest(rows)
    planned = project.ferry("plan", "job.yaml", "--json").expect(0).json
    assert planned["todo"] == {"new": 60}
    assert planned["recognised"] == {"source": "url", "id": "sku"}
    assert planned["mappings"][0] == [
        rows[0]["url"],
        f"{project.destination()['uri'].rstrip('/')}/{next(iter(bodies))}",
    ]
    assert project.ferry("run", "job.yaml", "--dry-run", "--json").expect(0).json == planned
    assert "leave out --limit" in project.ferry("run", "job.yaml", "--dry-run", "--limit", "3").expect(2).stderr
    assert "leave out --on" in project.ferry("run", "job.yaml", "--dry-run", "--on", "migrate/prod").expect(2).stderr
    assert origin.total == 0
    assert project.stored() == {}

    first = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert (first["counts"]["copied"], first["chunks"], first["cached"]) == (60, 3, 0)
    assert project.stored() == bodies
    asked, written, files = origin.total, project.written_at(), project.files()
    text = project.ferry("plan", "job.yaml").expect(0).stdout
    assert "60 rows: 0 to do, 60 done" in text
    assert project.files() == files

    again = project.ferry("run", "job.yaml").expect(0)
    assert "nothing to do" in again.stdout
    assert "3 chunks, 3 of them cached" in again.stdout
    assert origin.total == asked
    assert project.written_at() == written
    runs = prefect_api.runs(project.name)
    assert [run["state_type"] for run in runs] == ["COMPLETED", "COMPLETED"]
    assert [prefect_api.chunk_states(run) for run in runs] == [["Completed"] * 3, ["Cached"] * 3]

    more, more_bodies = serve(origin, 10, "more")
    project.manifest([*more, *reversed(rows)])
    third = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert (third["counts"]["copied"], third["chunks"], third["cached"]) == (70, 4, 3)
    assert third["this_run"] == {"copied": 10}
    assert origin.total == asked + 10
    assert project.stored() == {**bodies, **more_bodies}
    assert {key: at for key, at in project.written_at().items() if key in written} == written

    project.manifest(rows[:5])  # rows that left the list are ignored, and nothing is deleted
    fourth = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert (fourth["counts"]["planned"], fourth["counts"]["copied"]) == (5, 5)
    assert project.stored() == {**bodies, **more_bodies}


def test_plan_writes_nothing(project: Project, origin: Origin) -> None:
    """`plan` adds and changes no file of the state, before and after the first run."""
    rows, _ = serve(origin, 3)
    project.manifest(rows)
    project.ferry("plan", "job.yaml").expect(0)
    before_first = set(project.files())
    assert not project.state.exists()
    refused = project.ferry("plan", "job.yaml", env={"AWS_ACCESS_KEY_ID": "nobody"}).expect(2)
    assert "refuses access" in refused.stderr
    assert not project.state.exists()
    project.ferry("run", "job.yaml").expect(0)
    files = project.files()
    project.manifest([*rows, {"sku": "more", "url": origin.url("/more.jpg")}])
    assert project.ferry("plan", "job.yaml", "--json").expect(0).json["todo"] == {"new": 1}
    assert project.files() == files
    assert before_first == set()


def test_plan_asks_for_the_destination(project: Project, tmp_path: Path) -> None:
    """`plan` fails for a destination that would stop a run, and creates nothing there."""
    project.manifest([{"sku": "1", "url": "https://img.example/1.jpg"}])
    folder = tmp_path / "new" / "folder"
    project.job(destination=f"file://{folder}/")
    project.ferry("plan", "job.yaml").expect(0)
    assert not folder.parent.exists()
    folder.parent.write_text("a file")
    assert "is not a directory" in project.ferry("plan", "job.yaml").expect(2).stderr
    project.job(destination={"uri": "s3://no-such-bucket/", "endpoint_url": project.cli.s3.endpoint_url})
    assert "does not exist" in project.ferry("plan", "job.yaml").expect(2).stderr


def test_limit_and_status(project: Project, origin: Origin) -> None:
    """--limit copies that many rows and exits 0, the counts of status add up, the next run copies the rest."""
    rows, bodies = serve(origin, 25)
    project.manifest(rows)
    before = project.ferry("status", "job.yaml", "--json").expect(0).json
    assert (before["planned_yet"], before["planned"]) == (False, 0)
    project.ferry("run", "job.yaml", "--limit", "10", "--json").expect(0)
    assert len(project.stored()) == origin.total == 10
    status = project.ferry("status", "job.yaml", "--json").expect(0).json
    parts = [status[name] for name in ("copied", "unchanged", "skipped", "failed", "pending")]
    assert all(type(part) is int for part in [*parts, status["planned"], status["bytes"]])
    assert status["planned"] == sum(parts) == 25
    assert (status["copied"], status["pending"]) == (10, 15)
    assert status["bytes"] == sum(len(body) for body in project.stored().values())
    project.ferry("run", "job.yaml", "--json").expect(0)
    assert project.stored() == bodies
    assert origin.total == 25


def test_failures_and_retries(project: Project, origin: Origin) -> None:
    """Failures are listed as text, CSV and JSON; --retry-failed takes all, a class or a status code."""
    rows, _ = serve(origin, 40)
    for number, trouble in enumerate((Trouble.NOT_FOUND, Trouble.NOT_FOUND, Trouble.HTML_200, Trouble.GONE)):
        origin.add(f"/bad/{number}.jpg", make_image("jpeg", number), fault=trouble)
        rows.append({"sku": f"bad-{number}", "url": origin.url(f"/bad/{number}.jpg")})
    origin.add("/bad/5.jpg", make_image("jpeg", 5), fault=Fault(Trouble.SERVER_ERROR))
    rows.append({"sku": "=cmd|'/c calc'!A1", "url": origin.url("/bad/5.jpg")})
    rows.append({"sku": "\x1b[31mred[/red]\x07", "url": "no address"})
    project.job(failure_budget="1%")
    project.manifest(rows)
    first = project.ferry("run", "job.yaml")
    first.expect(1)
    assert "6 failed (budget 1)" in first.stdout
    assert "ferry failures job.yaml" in first.stdout

    found = project.ferry("failures", "job.yaml", "--json").expect(0).json
    assert found["total"] == len(found["failures"]) == 6
    assert {line["error_class"]: line["retryable"] for line in found["failures"]} == {
        "not_found": False, "not_image": False, "gone": False, "server_error": True, "bad_url": False,
    }  # fmt: skip
    only = project.ferry("failures", "job.yaml", "--class", "404", "--class", "gone", "--format", "json").expect(0).json
    assert sorted(line["id"] for line in only["failures"]) == ["bad-0", "bad-1", "bad-3"]
    table = list(csv.DictReader(io.StringIO(project.ferry("failures", "job.yaml", "--format", "csv").expect(0).stdout)))
    assert len(table) == 6
    assert "'=cmd|'/c calc'!A1" in [line["id"] for line in table]
    text = project.ferry("failures", "job.yaml").expect(0).stdout
    assert text.startswith("6 failed rows: 1 that the next run tries again, 5 permanent\n")
    assert "\n2  not found (404)  at 127.0.0.1:" in text
    assert "\nline 42  not_found  http" in text
    assert "what to do: open one address; correct the manifest, or accept them with failure_budget" in text
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b[31mred[/red]\\x07" in text
    assert "... and 4 more" in project.ferry("failures", "job.yaml", "--limit", "2").expect(0).stdout

    asked = origin.requests.copy()
    plain = project.ferry("run", "job.yaml", "--json").expect(1).json  # a plain run: the retryable one alone
    assert {path for path in origin.requests if origin.requests[path] > asked[path]} == {"/bad/5.jpg"}
    assert plain["this_run"] == {"failed": 1}
    origin.mend("/bad/0.jpg")
    asked = origin.requests.copy()
    some = project.ferry("run", "job.yaml", "--retry-failed=404", "--json").expect(1).json
    assert {path for path in origin.requests if origin.requests[path] > asked[path]} == {"/bad/0.jpg", "/bad/1.jpg"}
    assert some["this_run"] == {"copied": 1, "failed": 1}
    asked = origin.requests.copy()
    project.ferry("run", "job.yaml", "--retry-failed=not_image", "--json").expect(1)
    assert {path for path in origin.requests if origin.requests[path] > asked[path]} == {"/bad/2.jpg"}
    for path in ("/bad/1.jpg", "/bad/2.jpg", "/bad/3.jpg", "/bad/5.jpg"):
        origin.mend(path)
    last = project.ferry("run", "job.yaml", "--retry-failed", "--json").expect(0).json
    assert last["this_run"] == {"copied": 4}
    assert (last["counts"]["copied"], last["counts"]["failed"], last["budget"]) == (45, 1, 1)
    unknown = project.ferry("run", "job.yaml", "--retry-failed=not_fuond")
    unknown.expect(2)
    assert "not_found" in unknown.stderr


def test_init(project: Project) -> None:
    """`init` writes a job that loads, overwrites no file, and prints its path with --json."""
    (project.folder / "job.yaml").unlink()
    assert project.ferry("init", "--json").expect(0).json == {"file": "job.yaml"}
    assert "products.csv does not exist" in project.ferry("plan", "job.yaml").expect(2).stderr
    before = (project.folder / "job.yaml").read_text()
    assert "already exists" in project.ferry("init").expect(2).stderr
    nowhere = project.ferry("init", "no/such/folder/x.yaml").expect(2)
    assert "no/such/folder/x.yaml cannot be written: No such file or directory" in nowhere.stderr
    spaced = project.ferry("init", "my job.yaml").expect(0)
    assert "ferry plan 'my job.yaml'" in spaced.stdout
    assert (project.folder / "job.yaml").read_text() == before
    project.manifest([{"nr": "1", "Bilder": "https://img.example/1.jpg|https://img.example/2.jpg"}])
    copies = (project.folder / "copies").as_uri() + "/"
    assert "needs its destination: ferry init products.csv" in project.ferry("init", "products.csv").expect(2).stderr
    assert "`x.yaml` is not a manifest" in project.ferry("init", "x.yaml", copies).expect(2).stderr
    project.ferry("init", "products.csv", copies, "--out", "new.yaml").expect(0)
    assert project.ferry("plan", "new.yaml", "--json").expect(0).json["rows"] == 2
    kept = json.loads((project.folder / ".ferry" / "job.schema.json").read_text())
    assert project.ferry("schema").expect(0).json == kept


def test_export(project: Project, origin: Origin) -> None:
    """The map is written as CSV, Parquet and xlsx, with query strings only for --full."""
    rows, bodies = serve(origin, 4)
    path = "/images/signed.jpg?Signature=s1gned"
    bodies["images/signed.jpg"] = make_image("jpeg", 99)
    rows.append({"sku": "=1+1", "url": origin.add(path, bodies["images/signed.jpg"])})
    project.manifest(rows)
    assert "nothing is planned yet" in project.ferry("export", "job.yaml", "map.csv").expect(2).stderr
    assert not (project.folder / "map.csv").exists()
    project.ferry("run", "job.yaml").expect(0)
    wanted = {key: hashlib.sha256(body).hexdigest() for key, body in bodies.items()}
    assert project.ferry("export", "job.yaml", "map.csv", "--json").expect(0).json == {
        "file": "map.csv", "format": "csv", "rows": 5, "left_out": {"without_copy": 0}, "notes": [],
    }  # fmt: skip
    with (project.folder / "map.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["key"]: line["sha256"] for line in lines} == wanted
    assert [line["id"] for line in lines] == [*(row["sku"] for row in rows[:-1]), "'=1+1"]
    assert "s1gned" not in (project.folder / "map.csv").read_text()
    project.ferry("export", "job.yaml", "map.parquet", "--full").expect(0)
    table = pq.read_table(project.folder / "map.parquet").to_pylist()
    assert [line["source"] for line in table] == [row["url"] for row in rows]
    project.ferry("export", "job.yaml", "map.xlsx").expect(0)
    sheet = openpyxl.load_workbook(project.folder / "map.xlsx").active
    assert sheet is not None
    cells = list(sheet.iter_rows(values_only=True))
    assert {str(line[cells[0].index("key")]) for line in cells[1:]} == set(bodies)
    assert not [cell for line in sheet.iter_rows() for cell in line if cell.data_type == "f"]
    assert ".csv, .parquet or .xlsx" in project.ferry("export", "job.yaml", "map.ods").expect(2).stderr
    assert project.ferry("export", "job.yaml", "no/such/folder/map.csv").expect(2).stderr
    redirects = ("export", "job.yaml", "redirects.conf", "--format", "nginx-map")
    assert "set `public_url` in the job" in project.ferry(*redirects).expect(2).stderr
    project.job(public_url="https://img.new.example/{key}")
    written = project.ferry(*redirects, "--json").expect(0).json
    assert written["rows"] == 5
    assert written["left_out"] == dict.fromkeys(
        ("without_copy", "unknown", "ambiguous", "secret", "served", "unfit"), 0
    )
    text = (project.folder / "redirects.conf").read_text()
    assert '127.0.0.1/images/signed.jpg" "https://img.new.example/images/signed.jpg";' in text
    assert "map_hash_max_size" in project.ferry(*redirects, "--overwrite").expect(0).stdout


def test_verify_and_repair(project: Project, origin: Origin) -> None:
    """verify finds missing and altered objects (exit 1), and exits 0 after a run has repaired them."""
    rows, bodies = serve(origin, 12)
    project.manifest(rows)
    project.ferry("run", "job.yaml").expect(0)
    good = project.ferry("verify", "job.yaml", "--json").expect(0)
    assert good.json["ok"] is True
    assert "Warning" not in good.stderr
    keys = sorted(bodies)
    client = project.client()
    altered = bodies[keys[1]][:-1] + b"\x00"
    assert len(altered) == len(bodies[keys[1]])
    client.delete_object(Bucket=project.bucket, Key=project.prefix + keys[0])
    client.put_object(Bucket=project.bucket, Key=project.prefix + keys[1], Body=altered)
    ended = project.ferry("verify", "job.yaml")
    ended.expect(1)
    assert "2 of 12 objects do not match the ledger: 1 missing, 1 altered" in ended.text
    status = project.ferry("status", "job.yaml", "--json").expect(0).json
    assert (status["copied"], status["pending"]) == (10, 2)
    asked = origin.requests.copy()
    repaired = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert repaired["this_run"] == {"copied": 2}
    assert {p for p in origin.requests if origin.requests[p] > asked[p]} == {"/" + keys[0], "/" + keys[1]}
    assert project.stored() == bodies
    listed = project.ferry("verify", "job.yaml", "--list", "--json").expect(0).json
    assert listed["message"].startswith("12 objects at the destination match the ledger")
    client.delete_object(Bucket=project.bucket, Key=project.prefix + keys[2])
    client.put_object(Bucket=project.bucket, Key=project.prefix + keys[3], Body=altered)
    assert "1 missing, 1 altered" in project.ferry("verify", "job.yaml", "--list", "--json").expect(1).json["message"]


def test_one_run_at_a_time(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """A second run exits 3 and names the holder of the lease; with --wait it waits for it."""
    rows, bodies = serve(origin, 60)
    origin.latency_s = 3.0  # it lasts 45 s, until it is told to hurry
    project.job(concurrency=4)
    project.manifest(rows)
    first = project.fork("run", "job.yaml", "--json")
    wait_for("the first run's lease", lambda: (project.state / "lease.json").exists() or first.poll() is not None)
    unreachable: dict[str, str | None] = {"PREFECT_API_URL": f"http://127.0.0.1:{free_ports(1)[0]}/api"}
    refused = project.ferry("run", "job.yaml", env=unreachable)
    refused.expect(3)
    assert f"process {first.pid}" in refused.stderr
    assert "another run" in project.ferry("verify", "job.yaml", env=unreachable).expect(3).stderr
    assert "sample `200%`" in project.ferry("verify", "job.yaml", "--sample", "200%", env=unreachable).expect(2).stderr
    assert "--wait" in refused.stderr
    assert first.poll() is None
    project.ferry("plan", "job.yaml", "--json").expect(0)  # a plan beside a run does it no harm
    waiting = project.fork("run", "job.yaml", "--wait", "--json")
    assert "another run" in project.ferry("run", "job.yaml", "--replan").expect(3).stderr
    assert first.poll() is None
    origin.latency_s = 0.0
    told = Cli.end(first, ("run",)).expect(0).stderr
    assert told.startswith(f"{project.name}: connecting to the Prefect server at http://127.0.0.1:")
    after = Cli.end(waiting, ("run", "--wait")).expect(0)
    assert after.json["this_run"] == {}
    assert project.stored() == bodies
    assert max(origin.requests.values()) == 1
    assert {run["state_type"] for run in prefect_api.runs(project.name)} == {"COMPLETED"}


def test_secrets(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """A literal header is refused without being shown; a reference reaches the origin and no record."""
    rows, bodies = serve(origin, 3)
    rows.append({"sku": "none", "url": origin.url("/none.jpg")})
    project.manifest(rows)
    source: dict[str, Any] = {"allow_private_addresses": ["127.0.0.1"], "headers": {"Authorization": f"Bearer {TOKEN}"}}
    source["headers_for"] = [origin.url("")]
    project.job(source=source)
    refused = project.ferry("run", "job.yaml").expect(2)
    assert "Authorization" in refused.stderr
    assert "env:NAME" in refused.stderr
    assert TOKEN not in refused.text
    source["headers"] = {"Authorization": "env:OLD_TOKEN", "Referer": "https://shop.example/"}
    project.job(source=source)
    missing = project.ferry("run", "job.yaml").expect(2)
    assert "OLD_TOKEN" in missing.stderr
    assert origin.total == 0
    ended = project.ferry("run", "job.yaml", env={"OLD_TOKEN": f"Bearer {TOKEN}"}).expect(0)
    assert project.stored() == bodies
    for path in (*(f"/{key}" for key in bodies), "/none.jpg"):
        assert origin.last_headers[path]["authorization"] == f"Bearer {TOKEN}"
        assert origin.last_headers[path]["referer"] == "https://shop.example/"
    secrets = [TOKEN, project.cli.s3.secret_key]
    parquet = json.dumps(list(fold(project.state).values()), default=str)
    for secret in secrets:
        assert secret not in ended.text
        assert secret not in parquet
        assert not [name for name, data in project.files().items() if secret.encode() in data]
        assert secret.encode() not in prefect_api.database()
    assert b"OLD_TOKEN" in prefect_api.database()


def test_state_in_a_bucket(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """With its state in a bucket, a job runs, is cached and can be queried, and leaves no local file."""
    rows, bodies = serve(origin, 6)
    rows.append({"sku": "none", "url": origin.url("/none.jpg")})
    project.job(state=f"s3://{project.bucket}/state/{project.name}")
    project.manifest(rows)
    tmp = {"TMPDIR": str(project.folder / "tmp")}
    (project.folder / "tmp").mkdir()
    project.ferry("run", "job.yaml", "--json", env=tmp).expect(0)
    asked = origin.total
    again = project.ferry("run", "job.yaml", "--json", env=tmp).expect(0).json
    assert (again["chunks"], again["cached"]) == (1, 1)
    assert origin.total == asked
    assert project.stored() == bodies
    status = project.ferry("status", "job.yaml", "--json", env=tmp).expect(0).json
    assert (status["copied"], status["failed"], status["running"]) == (6, 1, None)
    assert project.ferry("failures", "job.yaml", "--json", env=tmp).expect(0).json["failures"][0]["id"] == "none"
    assert not (project.folder / ".ferry").exists()
    assert project.cli.s3.secret_key.encode() not in prefect_api.database()


def test_ui(project: Project, origin: Origin) -> None:
    """The local server outlives the run: the next one uses it, its pages stay, `ferry server` stops it."""
    alone: dict[str, str | None] = {"PREFECT_API_URL": None, "PREFECT_HOME": None}
    rows, bodies = serve(origin, 40)
    project.job(chunk_rows=5)
    project.manifest(rows)
    assert "no runs are recorded" in project.ferry("ui", env=alone).expect(2).stderr
    assert project.ferry("server", "status", "job.yaml", "--json", env=alone).expect(0).json["running"] is False
    first = project.ferry("run", "job.yaml", env=alone).expect(0)
    assert "starting a local Prefect server" in first.stderr
    assert not processes_with(str(project.folder))
    known = project.ferry("server", "status", "job.yaml", "--json", env=alone).expect(0).json
    assert (known["running"], known["in_use"], known["idle_s"]) == (True, False, 1800.0)
    second = project.ferry("run", "job.yaml", env=alone).expect(0)
    assert f"connecting to the local Prefect server at {known['url']}" in second.stderr
    assert not processes_with(str(project.folder))
    assert project.stored() == bodies
    assert max(origin.requests.values()) == 1

    process = project.start("ui", "job.yaml", "--json", env=alone)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        url = json.loads("".join(lines))["url"]
        assert url == known["url"]
        refused = project.ferry("server", "stop", "job.yaml", env=alone).expect(2)
        assert f"a running command uses the Prefect server at {url}" in refused.stderr
        api = Prefect(url, project.folder)
        runs = api.runs(project.name)
        assert [run["state_type"] for run in runs] == ["COMPLETED", "COMPLETED"]
        assert [api.chunk_states(run) for run in runs] == [["Completed"] * 8, ["Cached"] * 8]
        assert [run["tags"] for run in runs] == [["ferry", "full", project.name]] * 2
        total = api.post("task_runs/count", {})
        ended = api.post("task_runs/count", {"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}})
        assert total == ended == 2 * (8 + 3)  # plan, reconcile and report beside the chunks
        assert api.post("logs/filter", {"limit": 1})
        with urllib.request.urlopen(url + "/", timeout=10) as page:
            assert b"<html" in page.read().lower()
        with urllib.request.urlopen(url + "/ui-settings", timeout=10) as answer:
            assert json.load(answer)["api_url"] == "/api"  # else the pages ask port 4200, and show nothing
    finally:
        os.killpg(process.pid, signal.SIGINT)
        ended_ui = Cli.end(process, ("ui",), 30)
    ended_ui.expect(0)
    shown = project.ferry("server", "status", "job.yaml", env=alone).expect(0).stdout
    assert f"Prefect UI: {url}   (unused for 0:" in shown
    assert f"stopped the Prefect server at {url}" in project.ferry("server", "stop", "job.yaml", env=alone).stdout
    assert not processes_with(str(project.folder), servers=True)
    assert "no Prefect server runs" in project.ferry("server", "stop", "job.yaml", env=alone).expect(0).stdout
    again = project.ferry("server", "start", "job.yaml", "--idle", "2h", env=alone).expect(0).stdout
    assert again == f"Prefect UI: {url}   (ends after 2:00:00 without use)\n"


def test_wrong_commands(project: Project) -> None:
    """A missing job, an invalid job and an unknown option end with a message and an error code."""
    missing = project.ferry("run", "none.yaml").expect(2)
    assert "the job file none.yaml does not exist" in missing.stderr
    for text in ("just text", "", "name: ["):
        (project.folder / "bad.yaml").write_text(text)
        ended = project.ferry("status", "bad.yaml").expect(2)
        assert "bad.yaml" in ended.stderr, text
    assert project.ferry("run", "job.yaml", "--lmit", "3").code != 0
    assert project.ferry("run", "job.yaml", "--limit", "-3").code != 0
    assert yaml.safe_load((project.folder / "job.yaml").read_text())["name"] == project.name


def test_errors_as_json(project: Project) -> None:
    """With --json every error is one JSON document."""
    for command in ("run", "status"):
        answer = project.ferry(command, "none.yaml", "--json").expect(2)
        assert "none.yaml" in answer.stdout + answer.stderr
        assert "none.yaml" in answer.json["error"]


def test_a_sample_comes_first(project: Project, origin: Origin) -> None:
    """--sample copies random rows of the whole manifest; the next run copies the others, each once."""
    rows, bodies = serve(origin, 60)
    project.manifest(rows)
    assert "leave one of them out" in project.ferry("run", "job.yaml", "--sample", "5", "--limit", "5").expect(2).stderr
    assert "--sample 0: it must be at least 1" in project.ferry("run", "job.yaml", "--sample", "0").expect(2).stderr
    report = project.ferry("run", "job.yaml", "--sample", "20", "--json").expect(0).json
    assert (report["this_run"], report["counts"]["pending"]) == ({"copied": 20}, 40)
    assert "The other 40 rows would " in report["message"]
    assert report["verdict"] == "Completed: 40 rows are left, since --sample was reached"
    first = list(bodies)[:20]
    assert len(project.stored()) == 20
    assert set(project.stored()) != set(first)
    project.ferry("run", "job.yaml", "--json").expect(0)
    assert project.stored() == bodies
    assert set(origin.requests.values()) == {1}
