"""Buckets of a job: which addresses, names and settings each provider has, and one provider on each side."""

from __future__ import annotations

from typing import Any

import pytest

from ferry.job.model import Job
from tests.ferry.job.test_model import MINIMAL, refused

GOOGLE, AZURE = "gs://bucket/p/", "az://shop/bucket/p/"


@pytest.mark.parametrize(
    "given",
    [
        {"destination": GOOGLE, "state": "gs://other/state"},
        {"destination": AZURE, "state": "az://shop/other/state", "manifest": "gs://bucket/list.csv"},
        {"destination": "file:///srv/x/", "state": AZURE},
        {"destination": "az://shop/$web"},
        {"manifest": "gs://old/images/", "include": ["*.jpg"], "source": {"roots": ["gs://other/", "file:///srv/"]}},
        {"manifest": "az://shop/old/", "source": {"roots": ["az://shop/other/"]}},
        {"destination": {"uri": GOOGLE, "credentials": "impersonate:me@project.iam.gserviceaccount.com"}},
        {"destination": {"uri": GOOGLE, "credentials": "env:JSON", "metadata": {"ean-code": "1"}}},
        {"destination": {"uri": AZURE, "credentials": "secret:sas", "metadata": {"ean_code": "1"}}},
        {"destination": {"uri": AZURE, "endpoint_url": "http://127.0.0.1:10000/shop"}},
        {"destination": {"uri": "s3://b/", "region": "eu-1", "credentials": "profile:x"}},
        {"destination": {"uri": "file:///srv/x/", "credentials": "profile:x"}},
    ],
)
def test_what_is_accepted(given: dict[str, Any]) -> None:
    """Each provider with its own settings."""
    job = Job.model_validate({**MINIMAL, **given})
    assert Job.model_validate(job.model_dump(mode="json")) == job


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"destination": "GS://bucket/"}, "destination is neither"),
        ({"destination": "gs:/bucket/"}, "destination is neither"),
        ({"destination": "https://shop.blob.core.windows.net/bucket/"}, "`az://account/container/prefix/` nor"),
        ({"destination": "gs://Bucket/"}, "destination has no valid bucket: Google's"),
        ({"destination": "az://shop"}, "destination names no container after the account"),
        ({"destination": "az://shop/"}, "destination names no container after the account"),
        ({"destination": "az://Shop/bucket/"}, "destination has no valid account"),
        (
            {"destination": "gs://bucket/a?b/"},
            "destination holds '?', which ends the path of an address; name a parent",
        ),
        ({"destination": "az://shop/bucket/a//b/"}, "destination holds `//`"),
        (
            {"destination": "az://shop/bucket/?sv=1&sig=topsecret"},
            "a job must not hold secrets; use `credentials` with",
        ),
        ({"manifest": "gcs://bucket/list.csv"}, "manifest is neither a path nor an address"),
        ({"manifest": "gs:/bucket/list.csv"}, "manifest is neither a path nor an address"),
        ({"manifest": "HTTPS://h.example/list.csv"}, "manifest is neither a path nor an address"),
        ({"manifest": "az://shop/"}, "manifest names no container"),
        ({"state": "az://shop/A/"}, "state has no valid container"),
        ({"source": {"roots": ["gs://b/"]}}, "source.roots has no valid bucket"),
        ({"source": {"roots": ["gcs://bucket/"]}}, "root `gcs://bucket/` is neither"),
        (
            {"source": {"roots": ["gs://bucket/", "s3://bucket/"]}},
            "source.roots is at `s3://`, but source.roots at `gs://`: Ferry opens both with `source.credentials`;",
        ),
        (
            {"source": {"roots": ["gs://bucket/"]}, "manifest": "s3://b/l.csv"},
            "source.roots is at `gs://`, but manifest",
        ),
        (
            {"source": {"roots": ["az://one1/abc/", "az://two2/abc/"]}},
            "is at `az://two2`, but source.roots at `az://one1`",
        ),
        (
            {"destination": AZURE, "state": "az://other/bucket/state"},
            "state is at `az://other`, but destination at `az://shop`: Ferry opens both with "
            "`destination.credentials`; set `state` to a directory",
        ),
        ({"destination": GOOGLE, "state": "s3://b/state"}, "state is at `s3://`, but destination at `gs://`"),
        ({"destination": {"uri": GOOGLE, "region": "eu"}}, "destination.region is a setting of `s3://` buckets"),
        ({"source": {"roots": [AZURE], "region": "eu"}}, "source.region is a setting of `s3://` buckets"),
        (
            {"destination": {"uri": GOOGLE, "credentials": "profile:x"}},
            "destination.credentials for `gs://` are",
        ),
        ({"destination": {"uri": AZURE, "credentials": "block:x"}}, "destination.credentials for `az://` are"),
        (
            {"destination": {"uri": AZURE, "credentials": "impersonate:a@b.iam.gserviceaccount.com"}},
            "for `az://` are",
        ),
        (
            {"destination": {"uri": "s3://b/", "credentials": "env:KEY"}},
            "destination.credentials for `s3://` are",
        ),
        (
            {"manifest": "gs://old/l.csv", "source": {"credentials": "block:x"}},
            "source.credentials for `gs://`",
        ),
        (
            {"destination": {"uri": GOOGLE, "credentials": "impersonate:another"}},
            "credentials must be a reference: of",
        ),
        ({"destination": {"uri": GOOGLE, "credentials": '{"type": "topsecret"}'}}, "credentials must be a reference"),
        (
            {"destination": {"uri": AZURE, "endpoint_url": "http://127.0.0.1:10000/other"}},
            "destination.endpoint_url has the path `/other`, but for `az://` it may have `/shop`, the account",
        ),
        ({"destination": {"uri": "s3://b/", "endpoint_url": "https://h/shop"}}, "but for `s3://` it has none"),
        ({"destination": {"uri": AZURE, "metadata": {"ean-code": "1"}}}, "Azure cannot hold the name `ean-code`"),
        ({"destination": {"uri": "file:///srv/", "metadata": {"a": "1"}}, "state": AZURE}, "a directory cannot store"),
    ],
)
def test_what_is_refused(given: dict[str, Any], words: str) -> None:
    """Before anything moves, with a sentence that names the setting and what to write."""
    assert words in refused(**given).replace("\n", " ")


@pytest.mark.parametrize(
    ("source", "destination", "is_one"),
    [
        ("gs://old/", {"uri": GOOGLE}, True),
        ("az://shop/old/", {"uri": AZURE}, True),
        ("s3://old/", {"uri": "s3://b/"}, True),
        ("s3://old/", {"uri": "s3://b/", "endpoint_url": "https://s3.example"}, False),
        ("az://other/old/", {"uri": AZURE}, False),
        ("gs://old/", {"uri": AZURE}, False),
        ("s3://old/", {"uri": GOOGLE}, False),
        ("file:///srv/old/", {"uri": GOOGLE}, False),
    ],
)
def test_one_store(source: str, destination: dict[str, str], is_one: bool) -> None:
    """A server copies only what it has itself: `ferry check` counts no traffic then."""
    assert Job.model_validate({**MINIMAL, "manifest": source, "destination": destination}).is_one_store() is is_one


def test_the_account_decides_where_the_destination_is() -> None:
    """Another account is another destination: the job's state does not hold for it."""
    one, two = (Job.model_validate({**MINIMAL, "destination": f"az://{name}/bucket/"}) for name in ("one1", "two2"))
    assert one.location_digests() != two.location_digests()
