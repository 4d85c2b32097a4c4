"""Settings, existing objects, key templates and remote manifests, in complete runs."""

from __future__ import annotations

import hashlib

import pytest

from demo.images import make_image
from demo.origin import Origin
from tests.flows.project import Project, serve

pytestmark = pytest.mark.slow


def test_replan_and_changed_settings(project: Project, origin: Origin) -> None:
    """A changed key exits 2 with its name, --replan accepts it, and a changed check plans failed rows again."""
    rows, bodies = serve(origin, 12)
    rows.append({"sku": "leaflet", "url": origin.add("/doc/leaflet.pdf", b"%PDF-1.7\n%%EOF\n", "application/pdf")})
    project.manifest(rows)
    project.ferry("run", "job.yaml").expect(0)
    written, asked = project.written_at(), origin.total
    project.job(checks="length")
    relaxed = project.ferry("plan", "job.yaml", "--json").expect(0).json
    assert relaxed["todo"] == {"changed": 1}
    assert project.ferry("run", "job.yaml", "--json").expect(0).json["this_run"] == {"copied": 1}
    assert origin.total == asked + 1
    assert project.stored() == {**bodies, "doc/leaflet.pdf": b"%PDF-1.7\n%%EOF\n"}

    asked = origin.total
    project.job(checks="length", key="by-sku/{sku}.{source.ext}")
    refused = project.ferry("run", "job.yaml").expect(2)
    assert "`key` changed" in refused.stderr
    assert "--replan" in refused.stderr
    assert origin.total == asked
    project.ferry("run", "job.yaml", "--replan", "--json").expect(0)
    keys = {f"by-sku/{row['sku']}.{row['url'].rpartition('.')[2]}" for row in rows}
    assert keys <= set(project.stored()), "the run succeeded, and nothing lies under the new keys"
    now = project.written_at()
    assert {key: now[key] for key in written} == written, "nothing is deleted or written anew"


def test_replan_to_another_place(project: Project, origin: Origin) -> None:
    """After `--replan` for another destination the objects are there, and then all chunks are cached."""
    rows, bodies = serve(origin, 5)
    project.manifest(rows)
    project.ferry("run", "job.yaml").expect(0)
    project.prefix = "elsewhere/"
    project.job(destination=project.destination())
    project.ferry("run", "job.yaml", "--replan").expect(0)
    assert project.stored() == bodies
    asked = origin.total
    again = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert (again["this_run"], origin.total) == ({}, asked)


@pytest.fixture
def occupied(project: Project, origin: Origin) -> tuple[Project, dict[str, bytes], dict[str, bytes]]:
    """Ten rows; the bucket already has the first two with the same bytes, and the next two with others."""
    rows, bodies = serve(origin, 10)
    project.manifest(rows)
    keys = sorted(bodies)
    before = {keys[0]: bodies[keys[0]], keys[1]: bodies[keys[1]], keys[2]: b"other", keys[3]: bodies[keys[3]][::-1]}
    for key, body in before.items():
        project.client().put_object(Bucket=project.bucket, Key=project.prefix + key, Body=body)
    return project, bodies, before


@pytest.mark.parametrize(
    ("policy", "counts", "kept"),
    [
        ("skip-same", {"copied": 8, "unchanged": 2}, 2),
        ("skip", {"copied": 6, "skipped": 4}, 4),
        ("overwrite", {"copied": 10}, 0),
        ("fail", {"copied": 6, "unchanged": 2, "failed": 2}, 4),
    ],
)
def test_on_existing(
    occupied: tuple[Project, dict[str, bytes], dict[str, bytes]], policy: str, counts: dict[str, int], kept: int
) -> None:
    """Each value of `on_existing` has its documented effect on equal and on different objects."""
    project, bodies, before = occupied
    there = project.written_at()
    project.job(on_existing=policy)
    report = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert report["this_run"] == counts
    if policy == "fail":
        assert report["counts"]["classes"] == {"exists": 2}
    keys = sorted(bodies)
    left = {key: before[key] for key in keys[2:4]} if kept == 4 else {}
    assert project.stored() == {**bodies, **left}
    if kept:
        now = project.written_at()
        assert {project.prefix + k: now[project.prefix + k] for k in keys[:kept]} == dict(list(there.items())[:kept])


def test_key_templates(project: Project, origin: Origin) -> None:
    """{sha256}.{ext} stores equal content once, columns and source fields work, and collisions exit 2."""
    bodies = [make_image("png", n) for n in range(3)]
    rows = [{"sku": f"s{n}", "url": origin.add(f"/{n}/photo.jpg", bodies[n]), "folder": "a b"} for n in range(3)]
    rows.append({"sku": "twin", "url": origin.add("/9/photo.jpg", bodies[0]), "folder": "x"})
    project.manifest(rows)
    project.job(key="{sha256}.{ext}")
    counts = project.ferry("run", "job.yaml", "--json").expect(0).json["counts"]
    assert project.stored() == {f"{hashlib.sha256(body).hexdigest()}.png": body for body in bodies}
    assert (counts["copied"], counts["unchanged"], counts["planned"]) == (3, 1, 4)
    assert project.ferry("verify", "job.yaml", "--json").expect(0).json["ok"]

    project.prefix = "named/"
    project.job(key="{folder}/{sku}-{source.stem}.{ext}", destination=project.destination(), state="named")
    project.ferry("run", "job.yaml").expect(0)
    names = ["a b/s0-photo.png", "a b/s1-photo.png", "a b/s2-photo.png", "x/twin-photo.png"]
    assert project.stored() == dict(zip(names, [*bodies, bodies[0]], strict=True))

    project.job(key="{source.name}", state="collide")
    clash = project.ferry("run", "job.yaml").expect(2)
    assert "photo.jpg" in clash.stderr
    assert "`key`" in clash.stderr


def test_late_collisions(project: Project, origin: Origin) -> None:
    """Of two rows with equal deferred keys and different bytes, at most one is copied; the other fails."""
    rows = [{**row, "name": row["sku"]} for row in serve(origin, 40)[0]]
    first, second = make_image("jpeg", 1001), make_image("jpeg", 1002)
    rows.append({"sku": "one", "url": origin.add("/c/1.jpg", first), "name": "same"})
    rows.append({"sku": "two", "url": origin.add("/c/2.jpg", second), "name": "same"})
    project.manifest(rows)
    project.job(key="{name}.{ext}")
    project.ferry("run", "job.yaml", "--json").expect(0)
    ledger = project.ledger()
    good = {row["sku"] for row in rows if ledger[row["sku"]]["status"] == "copied"}
    claimed = {name: ledger[name]["sha256"] for name in ("one", "two") if name in good}
    stored = {key: hashlib.sha256(body).hexdigest() for key, body in project.stored().items()}
    assert all(stored["same.jpg"] == digest for digest in claimed.values()), "a row is called copied and is not there"
    assert {ledger[name]["error_class"] for name in ("one", "two") if name not in good} == {"key_collision"}
    assert len(good) in (40, 41)
    assert project.ferry("verify", "job.yaml", "--json").expect(0).json["ok"]


def test_listed_manifests(project: Project, origin: Origin) -> None:
    """A prefix and a directory are copied to a bucket with their metadata, with include and exclude."""
    client = project.client()
    bodies = {f"{n % 2}/p {n}+é.jpg": make_image("jpeg", n) for n in range(8)}
    for key, body in bodies.items():
        client.put_object(
            Bucket=project.bucket, Key=f"old/{key}", Body=body, ContentType="image/x-odd", Metadata={"a": "b"}
        )
    client.put_object(Bucket=project.bucket, Key="old/readme.txt", Body=b"no image")
    client.put_object(Bucket=project.bucket, Key="older/p.jpg", Body=b"not under old/")
    source = {"endpoint_url": project.cli.s3.endpoint_url}
    project.job(manifest=f"s3://{project.bucket}/old/", source=source, exclude=["*.txt"])
    counts = project.ferry("run", "job.yaml", "--json").expect(0).json["counts"]
    assert (counts["planned"], counts["copied"]) == (8, 8)
    assert project.stored() == bodies
    head = client.head_object(Bucket=project.bucket, Key=project.prefix + min(bodies))
    assert (head["ContentType"], head["Metadata"]) == ("image/jpeg", {"a": "b"})
    client.put_object(Bucket=project.bucket, Key="old/new.jpg", Body=make_image("jpeg", 77))
    second = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert second["this_run"] == {"copied": 1}
    assert second["cached"] == 1

    tree = project.folder / "tree"
    for key, body in bodies.items():
        (tree / key).parent.mkdir(parents=True, exist_ok=True)
        (tree / key).write_bytes(body)
    (tree / "readme.txt").write_text("no image")
    (tree / "leads-out.jpg").symlink_to("/etc/passwd")
    project.prefix = "from-tree/"
    project.job(
        manifest=f"file://{tree}/", destination=project.destination(), source=None, state="tree", include=["0/*"]
    )
    project.ferry("run", "job.yaml", "--json").expect(0)
    assert project.stored() == {key: body for key, body in bodies.items() if key.startswith("0/")}
    project.job(
        manifest=f"file://{tree}/", destination=project.destination(), source=None, state="tree2", include=["*.gif"]
    )
    assert "no object under" in project.ferry("run", "job.yaml").expect(2).stderr


def test_manifests_from_elsewhere(project: Project, origin: Origin) -> None:
    """A manifest may be at http:// (behind the address filter) or in a bucket; a missing one exits 2."""
    rows, bodies = serve(origin, 5)
    project.manifest(rows)
    text = (project.folder / "products.csv").read_bytes()
    url = origin.add("/lists/products.csv?v=2", text, "text/csv")
    project.job(manifest=url)
    project.ferry("run", "job.yaml").expect(0)
    assert project.stored() == bodies
    project.job(manifest=url, source={"allow_private_addresses": ["10.1.2.3"]}, state="b")
    assert "allow_private_addresses" in project.ferry("run", "job.yaml").expect(2).stderr
    project.job(manifest=origin.url("/lists/none.csv"), state="c")
    assert "HTTP 404" in project.ferry("run", "job.yaml").expect(2).stderr

    project.client().put_object(Bucket=project.bucket, Key="lists/products.csv", Body=text)
    project.prefix = "second/"
    source = {"endpoint_url": project.cli.s3.endpoint_url, "allow_private_addresses": ["127.0.0.1"]}
    project.job(
        manifest=f"s3://{project.bucket}/lists/products.csv",
        source=source,
        destination=project.destination(),
        state="d",
    )
    project.ferry("run", "job.yaml").expect(0)
    assert project.stored() == bodies
    project.job(manifest=f"s3://{project.bucket}/lists/none.csv", source=source, state="e")
    assert "none.csv" in project.ferry("run", "job.yaml").expect(2).stderr
