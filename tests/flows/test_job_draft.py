"""`ferry init` writes jobs that fit the manifest, and whose comments a user can switch on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ferry.core.errors import UserError
from ferry.job import Job
from flows.cli.job_file.draft import draft, is_manifest, job_name, schema

URLS = "https://img.shop.example/a.jpg|https://img.shop.example/b.jpg"


def job_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)
    assert Job.model_validate(found).name == found["name"]
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "products.csv").write_text(f"sku,Bilder,size\n1,{URLS},38\n2,http://10.0.0.1/c.jpg,39\n")
    return tmp_path


def test_for_a_manifest(folder: Path) -> None:
    """What the list needs is set; what was seen stands beside it."""
    text = draft(Path("job.yaml"), "products.csv", "s3://new/p/")
    assert job_of(text) == {
        "name": "products", "manifest": "products.csv", "destination": "s3://new/p/",
        "columns": {"source": "Bilder", "split": "|"},
    }  # fmt: skip
    assert "# id = sku, such as 1\n" in text
    assert "# the column `size` is not read as the size" in text
    assert "# Hosts in the first 3 rows:\n#   img.shop.example: 2\n#   10.0.0.1: 1\n" in text
    assert "#   allow_private_addresses: [10.0.0.1] " in text
    assert text.startswith("# yaml-language-server: $schema=.ferry/job.schema.json\n")


def test_its_comments_are_settings(folder: Path) -> None:
    """Without their `#` they make a valid job, too."""
    text = draft(Path("job.yaml"), "products.csv", "s3://new/p/").partition("# source:\n")
    on = text[0] + re.sub("^# ?", "", text[1] + text[2], flags=re.MULTILINE)
    found = job_of(on)
    assert found["source"]["allow_private_addresses"] == ["10.0.0.1"]
    assert found["key"] == "{sku}-{n}.{source.ext}"
    assert found["public_url"] == "https://img.new.example/{key}"
    assert found["limits"] == {"hosts": {"img.shop.example": {"requests_per_s": 50}}}


@pytest.mark.parametrize("manifest", ["s3://old/images/", "https://old.example/list.csv", "file:///srv/images/"])
def test_a_manifest_elsewhere_is_not_read(manifest: str, folder: Path) -> None:
    """It is named as it is."""
    assert job_of(draft(Path("job.yaml"), manifest, "file:///new/"))["manifest"] == manifest


def test_a_job_in_another_folder(folder: Path) -> None:
    """Its manifest is named from there."""
    (folder / "jobs").mkdir()
    found = job_of(draft(Path("jobs/job.yaml"), "products.csv", "s3://new/p/"))
    assert found["manifest"] == str(folder / "products.csv")


def test_ids_get_an_address(folder: Path) -> None:
    """The address that is to be edited is no comment: without it the job copies nothing."""
    (folder / "ids.txt").write_text("1\n2\n")
    text = draft(Path("job.yaml"), "ids.txt", "s3://new/p/")
    assert job_of(text)["source"] == {"url": "https://img.old.example/{id}.jpg"}
    assert "correct the address" in text


def test_names_from_a_list_stay_comments(folder: Path) -> None:
    """A line break in a column's name or in a value begins no line of YAML."""
    (folder / "products.csv").write_text(
        '"sku\nstate: /etc",url\n"1\ndestination: s3://evil/","https://h.example/1.jpg"\n'
    )
    found = job_of(draft(Path("job.yaml"), "products.csv", "s3://new/p/"))
    assert found == {"name": "products", "manifest": "products.csv", "destination": "s3://new/p/"}
    (folder / "products.csv").write_text('"a: b\u2028state: x",sku\nhttps://h.example/1.jpg,1\n')
    found = job_of(draft(Path("job.yaml"), "products.csv", "s3://new/p/"))
    assert found["columns"] == {"source": "a: b\u2028state: x"}


def test_more_columns_with_addresses(folder: Path) -> None:
    """A comment says how to name them; the job itself reads the usual one."""
    (folder / "products.csv").write_text("sku,url,cdn_url\n1,https://h.example/1.jpg,https://cdn.example/1.jpg\n")
    text = draft(Path("job.yaml"), "products.csv", "s3://new/p/")
    assert "# columns: {source: [url, cdn_url]}\n" in text
    assert "columns" not in job_of(text)
    named = text.replace("# columns: {source", "columns: {source")
    assert job_of(named)["columns"] == {"source": ["url", "cdn_url"]}


def test_without_a_manifest(folder: Path) -> None:
    """An example, named after the file or its folder."""
    assert job_of(draft(Path("shop.yaml"))) == {
        "name": "shop", "manifest": "products.csv", "destination": "s3://new-bucket/products/"
    }  # fmt: skip
    assert job_of(draft(Path("job.yaml")))["name"] == job_name(folder.name, Path("job.yaml"))


@pytest.mark.parametrize(("wish", "name"), [("a b", "a-b"), ("ü", "job"), (".x.", "x"), ("p.2026", "p.2026")])
def test_names_of_jobs(wish: str, name: str) -> None:
    """What a name may not have is replaced."""
    assert job_name(wish, Path("/job/job.yaml")) == name


def test_a_destination_that_is_none(folder: Path) -> None:
    """It is refused before a file is written."""
    with pytest.raises(UserError, match="destination is neither"):
        draft(Path("job.yaml"), "products.csv", "new-bucket/products")


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        ("s3://new/p/", ["endpoint_url: https://s3.example", "credentials: profile:new", "or s3://bucket/prefix"]),
        ("gs://new/p/", ["credentials: env:GOOGLE_JSON", "or gs://bucket/prefix"]),
        ("az://shop/new/p/", ["credentials: env:STORAGE_SAS", "or az://shop/container/prefix"]),
        ("file:///srv/new/", ["endpoint_url: https://s3.example"]),
    ],
)
def test_the_settings_of_a_provider(folder: Path, destination: str, words: list[str]) -> None:
    """The comments have what this destination may need, and are a valid job without their `#`."""
    (folder / "products.csv").write_text("sku,url\n1,https://h.example/1.jpg\n")
    text = draft(Path("job.yaml"), "products.csv", destination)
    assert [each for each in words if each not in text] == []
    assert job_of(text)["destination"] == destination
    mapping = re.search(r"# +destination:\n(# +.*\n)+", text)
    assert mapping is not None
    given = yaml.safe_load(re.sub(r"^# {3}", "", mapping[0], flags=re.MULTILINE))["destination"]
    if not destination.startswith("file:"):
        assert Job.model_validate({**job_of(text), "destination": given}).destination.uri == destination
    state = re.search(r"^# state: .* # or (\S+)$", text, re.MULTILINE)
    assert state is not None
    assert Job.model_validate({**job_of(text), "state": state[1]}).state == state[1]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("products.csv", True), ("list.CSV.gz", True), ("s3://old/images/", True), ("job.yaml", False), ("job", False)],
)
def test_what_is_a_manifest(text: str, is_one: bool) -> None:
    """The first argument of `ferry init` is one, or the job file to write."""
    assert is_manifest(text) is is_one


def test_the_schema_knows_every_key() -> None:
    """An editor completes what the model has, and shows what it means."""
    found = json.loads(json.dumps(schema()))
    assert found["properties"].keys() == Job.model_fields.keys()
    assert "1%" in found["properties"]["failure_budget"]["description"]
    assert found["additionalProperties"] is False
