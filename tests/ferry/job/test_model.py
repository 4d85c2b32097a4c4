"""The job model: what it accepts, what it refuses with which message, and what its fingerprints include."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ferry.job.limits import Limits
from ferry.job.model import Job
from ferry.job.validators import parse_budget
from tests.support.helpers import make_job

MINIMAL = {"name": "n", "manifest": "list.csv", "destination": "s3://bucket/p/"}


def refused(**given: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate({**MINIMAL, **given})
    return str(caught.value)


def test_three_keys_are_a_job() -> None:
    """Three keys are a valid job: all others have defaults, and a destination may be an address alone."""
    job = Job.model_validate(MINIMAL)
    assert job.destination.uri == "s3://bucket/p/"
    assert (job.checks, job.on_existing, job.chunk_rows, job.failure_budget) == ("image", "skip-same", "auto", "1%")
    assert job == Job.model_validate({**MINIMAL, "destination": {"uri": "s3://bucket/p/"}})
    assert Job.model_validate(job.model_dump(mode="json")) == job


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"delete_gone": True}, {"delete_removed": True}, "`delete_gone` is now called `delete_removed`"),
        (
            {"shorter_list": True},
            {"accept_shorter_manifest": True},
            "`shorter_list` is now called `accept_shorter_manifest`",
        ),
        ({"retry": {"timeout": {"nights": 5}}}, {"retry": {"timeout": {"runs": 5}}}, "`nights` is now called `runs`"),
    ],
)
def test_keys_by_their_old_names(old: dict[str, Any], new: dict[str, Any], words: str) -> None:
    """Old key names are accepted with a warning that names the new one, but not together with it."""
    with pytest.warns(FutureWarning, match=words):
        job = Job.model_validate({**MINIMAL, "delta": old})
    assert job == Job.model_validate({**MINIMAL, "delta": new})
    assert "nights" not in job.model_dump_json()
    if "retry" not in old:
        assert "both are given" in refused(delta={**old, **new})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"chekcs": "none"}, "unknown key `chekcs`; did you mean `checks`?"),
        ({"retries": {"attempt": 2}}, "did you mean `attempts`?"),
        ({"zzz": 1}, "unknown key `zzz`; known keys: name, manifest"),
        ({"name": "a/b"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "../x"}, "name"),
        ({"manifest": " "}, "manifest is empty"),
        ({"destination": "bucket/p"}, "is neither"),
        ({"destination": "s3://"}, "destination names no bucket: `s3://bucket/`"),
        ({"destination": "s3:///p"}, "destination names no bucket"),
        ({"destination": "file://relative/x"}, "is neither"),
        ({"checks": "pixels"}, "decode"),
        ({"chunk_rows": 0}, "chunk_rows"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"state": "gcs://b/x"}, "state is neither a directory nor `s3://bucket/prefix/`"),
        ({"state": "gs:/b/x"}, "state is neither"),
        ({"failure_budget": "101%"}, "neither a share"),
        ({"failure_budget": "some"}, "neither a share"),
        ({"failure_budget": -1}, "neither a share"),
        ({"failure_budget": "nan%"}, "neither a share"),
        ({"retries": {"attempts": 0}}, "attempts"),
        (
            {"destination": "s3://b/a#1/"},
            "destination holds '#', which ends the path of an address; name a parent of it",
        ),
        ({"destination": "file:///srv/a#1/"}, "destination holds '#', which ends the path of an address; write %23"),
        ({"destination": "file:///srv/a%00/"}, "destination holds %00"),
        ({"manifest": "s3://b/a?1/"}, "manifest holds '?'"),
        ({"manifest": "file:///srv/list?.csv"}, "write %3F"),
        ({"source": {"roots": ["s3://b/", "s3://b/a\tb/"]}}, "source.roots holds '\\t'"),
        ({"source": {"roots": ["s3://b//a/"]}}, "source.roots holds `//`, an empty path segment"),
        ({"state": "s3://b/a#1"}, "state holds '#'"),
        ({"columns": {"source": ["url", "cdn", "url"]}}, "columns.source names a column twice"),
        ({"columns": {"source": []}}, "columns.source"),
        ({"columns": {"source": ["url", ""]}}, "columns.source"),
        ({"columns": {"source": ["url", None]}}, "columns.source"),
        (
            {"columns": {"source": ["url", "cdn"], "split": ","}},
            "columns.split cannot be combined with several columns",
        ),
        ({"columns": {"key": ["a", "b"]}}, "columns.key"),
        (
            {"columns": {"source": ["url", "cdn"]}, "source": {"url": "https://h/{id}"}},
            "source.url cannot be combined with several columns",
        ),
        ({"columns": {"source": ["url", "cdn"]}, "manifest": "s3://b/p/"}, "apply only to a manifest file"),
    ],
)
def test_what_is_refused(given: dict[str, Any], words: str) -> None:
    """Each invalid value is refused with a message that names the problem."""
    assert words in refused(**given)


SECRETS: list[tuple[dict[str, Any], str]] = [
    ({"manifest": "https://user:topsecret@h.example/list.csv"}, "user name or password"),
    ({"manifest": "https://topsecret@h.example/list.csv"}, "user name or password"),
    ({"manifest": "https://h.example/l.csv?X-Amz-Signature=topsecret"}, "signature"),
    ({"manifest": "https://h.example/l.csv?a=b&x-amz-credential=topsecret"}, "signature"),
    ({"manifest": "https://h.example/l.csv?sig=topsecret"}, "signature"),
    ({"manifest": "https://shop.blob.core.windows.net/a/l.csv?sv=1&sp=r&sig=topsecret"}, "signature"),
    ({"state": "DefaultEndpointsProtocol=https;AccountName=shop;AccountKey=topsecret"}, "signature"),
    ({"manifest": "https://h.example/l.csv?Expires=1&Signature=topsecret"}, "signature"),
    ({"manifest": "https://h.example/l.csv?AWSAccessKeyId=topsecret"}, "signature"),
    ({"manifest": "https://h.example/l.csv?X-Goog-Signature=topsecret"}, "signature"),
    ({"manifest": "https://h.example/l.csv?shop=1&access_token=topsecret"}, "download the file first"),
    ({"manifest": "https:/me:topsecret@h.example/l.csv"}, "user name or password"),
    ({"source": {"url": "https://h/{id}?token=topsecret"}}, "add a column for it to the manifest"),
    ({"source": {"headers": {"Referer": "https://me:topsecret@h/"}}}, "user name or password"),
    ({"source": {"roots": ["https://me:topsecret@h/"]}}, "user name or password"),
    ({"source": {"allow_private_addresses": ["https://me:topsecret@h/"]}}, "neither"),
    ({"limits": {"hosts": {"https://me:topsecret@h/": {}}}}, "is not a host"),
    ({"failure_budget": "topsecret"}, "neither a share"),
    ({"state": "s3://me:topsecret@bucket/"}, "user name or password"),
    ({"source": {"url": "https://me:topsecret@h/{id}"}}, "user name or password"),
    ({"source": {"url": "https://h/{id}?sig=topsecret"}}, "signature"),
    ({"source": {"endpoint_url": "https://me:topsecret@h"}}, "user name or password"),
    ({"destination": {"uri": "s3://b", "endpoint_url": "https://me:topsecret@h"}}, "user name or password"),
    ({"source": {"headers": {"Authorization": "Bearer topsecret"}}}, "literal value"),
    ({"source": {"headers": {"X-Key": "env:"}}}, "literal value"),
    ({"source": {"headers": {"X-Key": "env:A topsecret"}}}, "literal value"),
    ({"source": {"credentials": "AKIA:topsecret"}}, "reference"),
    ({"destination": {"uri": "s3://b", "credentials": "topsecret"}}, "reference"),
]


@pytest.mark.parametrize(("given", "words"), SECRETS)
def test_a_job_carries_no_secret(given: dict[str, Any], words: str) -> None:
    """User names, passwords, signatures and literal header values are refused."""
    assert words in refused(**given)


@pytest.mark.parametrize("name", ["Accept", "accept-language", "REFERER", "User-Agent"])
def test_open_headers_may_be_literal(name: str) -> None:
    """Headers that hold no secret may have literal values."""
    Job.model_validate({**MINIMAL, "source": {"headers": {name: "plain text"}}})


SECRET_HEADER = {"Authorization": "env:TOKEN", "Accept": "image/*"}


@pytest.mark.parametrize(
    ("source", "recipients"),
    [
        ({"url": "https://img.example/{id}.jpg"}, ["https://img.example"]),
        ({"url": "http://img.example:8080/{id}.jpg"}, ["http://img.example:8080"]),
        ({"url": "https://img.example/{id}.jpg", "headers_for": ["*.example"]}, ["*.example"]),
        ({"headers_for": ["a.example", "http://[::1]:80", "*"]}, ["a.example", "http://[::1]:80", "*"]),
    ],
)
def test_who_gets_the_secrets(source: dict[str, Any], recipients: list[str]) -> None:
    """Secret headers go to the hosts of `headers_for`, else to the host of `source.url`."""
    job = Job.model_validate({**MINIMAL, "source": {**source, "headers": SECRET_HEADER}})
    assert job.source.recipients() == recipients


@pytest.mark.parametrize(
    "source", [{}, {"url": "https://{host}/{id}.jpg"}, {"url": "https://img.{zone}/x"}, {"url": "{a}"}]
)
def test_secrets_for_whatever_host_a_row_names(source: dict[str, Any]) -> None:
    """Secret headers without a fixed host or `headers_for` are refused, since a manifest may name any host."""
    assert "headers_for: [img.old.example]" in refused(source={**source, "headers": SECRET_HEADER})


@pytest.mark.parametrize(
    "entry", ["", "ftp://h", "https://h/x", "*:80", "h/x", "a@h", "h:", "h:123456", "*h", "*.", "**", "a b", "h:80:80"]
)
def test_what_is_no_recipient(entry: str) -> None:
    """An entry of `headers_for` that is not a host is refused."""
    assert "an entry of headers_for is a host" in refused(source={"headers_for": [entry]})


LOCATION_CHANGES: list[dict[str, Any]] = [
    {"source": {"url": "https://h/{id}"}},
    {"columns": {"id": "sku"}},
    {"key": "{sha256}"},
    {"destination": "s3://other/p/"},
    {"destination": {"uri": "s3://bucket/p/", "endpoint_url": "https://h"}},
]
RESULT_CHANGES: list[dict[str, Any]] = [
    {"checks": "decode"},
    {"on_existing": "skip"},
    {"max_bytes": 5},
    {"destination": {"uri": "s3://bucket/p/", "cache_control": "no-store"}},
    {"destination": {"uri": "s3://bucket/p/", "metadata": {"a": "b"}}},
    {"source": {"headers": {"Accept": "image/*"}}},
    {"source": {"headers": {"X-Key": "env:A"}, "headers_for": ["h"]}},
]
NEUTRAL_CHANGES: list[dict[str, Any]] = [
    {"name": "m"},
    {"manifest": "https://h/other.csv"},
    {"state": "elsewhere"},
    {"source": {"credentials": "profile:x", "region": "eu", "user_agent": "me"}},
    {"source": {"allow_private_addresses": ["10.0.0.0/8"]}},
    {"destination": {"uri": "s3://bucket/p/", "credentials": "anonymous", "region": "eu"}},
    {"concurrency": 5},
    {"limits": {"concurrency": 5, "hosts": {"h": {"requests_per_s": 1}}, "destination": {"bytes_per_s": "1MB"}}},
    {"timeouts": {"read_s": 5}},
    {"retries": {"attempts": 7}},
    {"failure_budget": 9},
    {"chunk_rows": 9},
    {"checks": "image", "on_existing": "skip-same"},
    {"destination": "s3://bucket/p"},
]


@pytest.mark.parametrize("change", LOCATION_CHANGES)
def test_where(change: dict[str, Any]) -> None:
    """Settings that define sources and keys change location_digests() and the fingerprint, not result_settings()."""
    before, after = Job.model_validate(MINIMAL), Job.model_validate({**MINIMAL, **change})
    assert before.location_digests() != after.location_digests()
    assert before.result_settings() == after.result_settings()
    assert before.fingerprint() != after.fingerprint()


@pytest.mark.parametrize("change", RESULT_CHANGES)
def test_how(change: dict[str, Any]) -> None:
    """Settings that change what is written change settings_digest() and the fingerprint, not location_digests()."""
    before, after = Job.model_validate(MINIMAL), Job.model_validate({**MINIMAL, **change})
    assert before.location_digests() == after.location_digests()
    assert before.settings_digest() != after.settings_digest()
    assert before.fingerprint() != after.fingerprint()


@pytest.mark.parametrize("change", NEUTRAL_CHANGES)
def test_what_changes_no_result(change: dict[str, Any]) -> None:
    """Names, paths, credentials, limits, retries, budget and explicit defaults keep the fingerprint."""
    assert Job.model_validate(MINIMAL).fingerprint() == Job.model_validate({**MINIMAL, **change}).fingerprint()


def test_several_columns_of_the_source() -> None:
    """The first one defines rows and keys. The others change results: failed rows are planned again with them."""
    one, *more = (make_job(columns={"source": given}) for given in ("url", ["url", "cdn"], ["url", "old"]))
    for job in more:
        assert job.location_digests() == one.location_digests()
    assert len({job.settings_digest() for job in (one, *more)}) == 3
    assert make_job(columns={"source": ["cdn", "url"]}).location_digests() != one.location_digests()
    assert make_job(columns={"source": ["url"]}) == one
    for job in (one, *more, make_job(), make_job(columns={"source": None})):
        assert Job.model_validate_json(job.model_dump_json()) == job


def test_a_header_counts_by_its_name() -> None:
    """A header's value, order and case do not change the fingerprint."""
    one = make_job(source={"headers": {"X-Key": "env:OLD", "Accept": "a"}, "headers_for": ["h", "i"]})
    two = make_job(source={"headers": {"accept": "b", "x-key": "secret:NEW"}, "headers_for": ["i", "h"]})
    assert one.fingerprint() == two.fingerprint()


def test_the_fingerprint_is_written_down() -> None:
    """The fingerprint of a job is stable, so that cached chunks stay valid."""
    assert Job.model_validate(MINIMAL).fingerprint() == Job.model_validate(MINIMAL).fingerprint()
    assert len(Job.model_validate(MINIMAL).fingerprint()) == 64
    metadata = [{"a": "1", "b": "2"}, {"b": "2", "a": "1"}]
    one, two = (make_job(destination={"uri": "s3://b", "metadata": given}) for given in metadata)
    assert one.fingerprint() == two.fingerprint()


def test_where_shows_no_setting() -> None:
    """location_digests() are SHA-256 digests, so that plan.json shows no address with a token."""
    job = make_job(source={"url": "https://h/{id}?w=abc"})
    assert all(len(value) == 64 for value in job.location_digests().values())


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1%", (0.01, None)), ("0.5 %", (0.005, None)), (25, (None, 25)), ("25", (None, 25)), (0.25, (0.25, None)),
     ("0.25", (0.25, None)), (0, (None, 0)), (0.0, (0.0, None)), ("100%", (1.0, None)), (1, (None, 1)),
     (1.0, (1.0, None))],
)  # fmt: skip
def test_budgets(value: int | float | str, expected: tuple[float | None, int | None]) -> None:
    """Whole numbers are counts, fractions and percentages are shares."""
    share, count = parse_budget(value)
    assert (None if share is None else pytest.approx(share), count) == expected


@given(share=st.floats(0.0001, 1.0), rows=st.integers(0, 10**7))
def test_a_budget_lies_within_its_share(share: float, rows: int) -> None:
    """The allowed failures are at most the share rounded up, and at least one."""
    allowed = make_job(failure_budget=share).budget(rows)
    assert max(1, rows * share - 0.001) <= allowed <= max(1, rows * share + 1)


# --- limits


@pytest.mark.parametrize(
    ("given", "expected"),
    [(5000, 5000), ("5000", 5000), ("10MB", 10_000_000), ("10 MB/s", 10_000_000), ("10MiB", 10 * 2**20),
     ("1.5GB", 1_500_000_000), ("64KiB", 65536), ("64kB", 64000), (2e6, 2_000_000), (None, None)],
)  # fmt: skip
def test_bytes_per_s(given: Any, expected: int | None) -> None:
    """bytes_per_s is a number, alone or with a unit, and survives a round trip."""
    limits = make_job(limits={"bytes_per_s": given, "destination": {"bytes_per_s": given}}).limits
    assert limits.bytes_per_s == limits.destination.bytes_per_s == expected
    assert Limits.model_validate(limits.model_dump(mode="json")) == limits


PAUSE = "to pause a run, use `ferry pause`"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"concurrency": 0}, f"concurrency of 0 allows no request: {PAUSE}; otherwise write a whole number from 1"),
        ({"concurrency": -3}, PAUSE),
        ({"concurrency": 4097}, "above the maximum of 4,096"),
        ({"concurrency": True}, "concurrency is not a number; write a whole number from 1 to 4096"),
        ({"concurrency": 2.5}, "not a whole number"),
        ({"concurrency": "many"}, "concurrency is not a number"),
        ({"requests_per_s": 0}, PAUSE),
        ({"requests_per_s": -0.5}, PAUSE),
        ({"requests_per_s": 0.0001}, f"below the minimum of 0.001: {PAUSE}"),
        ({"requests_per_s": 2e6}, "above the maximum of 1,000,000; write a number from 0.001"),
        ({"requests_per_s": float("nan")}, "not a finite number"),
        ({"requests_per_s": float("inf")}, "not a finite number"),
        ({"requests_per_s": False}, "not a number"),
        ({"bytes_per_s": 0}, PAUSE),
        ({"bytes_per_s": "0MB"}, PAUSE),
        ({"bytes_per_s": 999}, "below the minimum of 1,000"),
        ({"bytes_per_s": 10**13}, "above the maximum of 1,000,000,000,000"),
        ({"bytes_per_s": "10Mb"}, "bytes, not bits; write at least"),
        ({"bytes_per_s": "10Mbit/s"}, "bytes, not bits"),
        ({"bytes_per_s": "fast"}, "neither a number nor a number with a unit"),
        ({"bytes_per_s": "-10MB"}, "neither a number"),
        ({"bytes_per_s": True}, "not a number"),
        ({"requests": 5}, "unknown key `requests`; did you mean `requests_per_s`?"),
        ({"hosts": {"https://h.example/": {}}}, "is not a host; write `img.example.com`"),
        ({"hosts": {"h.example/x": {}}}, "is not a host"),
        ({"hosts": {"*": {}}}, "is not a host"),
        ({"hosts": {"": {}}}, "is not a host"),
        ({"hosts": {"h.example": {"requests_per_s": 0}}}, "requests_per_s of 0 allows no request"),
        ({"hosts": {"h.example": {"hosts": {}}}}, "unknown key `hosts`"),
        ({"destination": {"concurrency": 0}}, "destination.concurrency"),
    ],
)
def test_limits_that_are_refused(given: dict[str, Any], words: str) -> None:
    """Limits that are zero, negative, out of range or not numbers are refused with a hint."""
    assert words in refused(limits=given)


def test_a_key_of_limits_at_the_wrong_place() -> None:
    """A key of `limits` one level too high gets a hint with its full path."""
    assert "did you mean `limits.requests_per_s`?" in refused(requests_per_s=5)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("img.old.example", "img.old.example"), ("img.old.example:8080", "img.old.example:8080"),
     ("img.old.example:81", "img.old.example"), ("a.old.example", "*.old.example"),
     ("a.b.old.example:9", "*.old.example"), ("old.example", "*.example"), ("example", ""),
     ("evilold.example", "*.example"), ("old-images", "old-images"),
     ("[::1]:80", "[::1]"), ("other.test", "")],
)  # fmt: skip
def test_the_most_exact_entry_counts(host: str, expected: str) -> None:
    """The most specific entry applies: host with port, host, then the longest wildcard; case is ignored."""
    names = ["IMG.old.example", "img.old.example:8080", "*.old.example", "*.example", "old-images", "[::1]"]
    hosts = {name: {"concurrency": n + 1} for n, name in enumerate(names)}
    key, limits = make_job(limits={"hosts": hosts}).limits.of_host(host)
    assert key == expected
    assert limits.concurrency == ([name.lower() for name in names].index(expected) + 1 if expected else None)


def test_limits_in_the_schema() -> None:
    """The JSON schema accepts sizes as numbers and text, since a Prefect server checks parameters by it."""
    schema = Job.model_json_schema()["$defs"]["HostLimits"]["properties"]
    kinds = {kind["type"] for kind in schema["bytes_per_s"]["anyOf"]}
    assert kinds == {"integer", "string", "null"}


@pytest.mark.parametrize("place", ["s3://b/a%23b/", "s3://b", "file:///srv/a%23b/", "file:////srv//x/", "s3://b/ä b/"])
def test_places_that_are_what_they_say(place: str) -> None:
    """Percent-encoded characters and spaces in addresses are accepted unchanged."""
    job = Job.model_validate({**MINIMAL, "destination": place, "source": {"roots": [place]}, "state": "a#b?c//d"})
    assert (job.destination.uri, job.source.roots) == (place, [place])


def test_parts_that_are_left_out() -> None:
    """An empty `source:` equals its defaults, and is optional in the JSON schema."""
    parts = ["source", "columns", "delta", "limits", "retries", "timeouts"]
    assert Job.model_validate({**MINIMAL, **dict.fromkeys(parts)}) == Job.model_validate(MINIMAL)
    schema = Job.model_json_schema()["properties"]
    for name in parts:
        assert schema[name]["default"] is None
        assert {"type": "null"} in schema[name]["anyOf"]
        assert schema[name]["description"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "state"),
        ({"state": "/srv/ferry/x"}, "state"),
        ({"state": "s3://b/ferry", "destination": "file:///srv/new/"}, "destination"),
        ({"state": "s3://b/ferry", "manifest": "file:///srv/old/"}, "source.roots or manifest"),
        ({"state": "s3://b/ferry", "source": {"roots": ["file:///srv/old/"]}}, "source.roots or manifest"),
    ],
)
def test_what_other_machines_do_not_see(settings: dict[str, Any], named: str) -> None:
    """Directories of this machine are refused with `machines`, and are good without."""
    given = {"name": "x", "manifest": "x.csv", "destination": "s3://b/p/", **settings}
    Job.model_validate(given)
    with pytest.raises(ValidationError, match=f"machines: 3 needs a bucket for {named},"):
        Job.model_validate({**given, "machines": 3})
    known = {**given, "state": "s3://b/ferry", "destination": "s3://b/p/", "source": {}, "manifest": "x.csv"}
    assert Job.model_validate({**known, "machines": 3}).fingerprint() == Job.model_validate(known).fingerprint()
