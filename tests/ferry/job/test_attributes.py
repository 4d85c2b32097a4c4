"""Attributes in a job: what they mean, and what is refused in a sentence before anything moves."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ferry.core import KMS_KEY, TAGS, TIER, AttributeRules
from ferry.job.attributes import refuse_unheld
from ferry.job.model import Job
from ferry.job.validators import METADATA_NAME
from tests.support.helpers import make_job


def job(uri: str = "s3://bucket/p/", **destination: Any) -> Job:
    return make_job(destination={"uri": uri, **destination})


def test_the_default_keeps_everything() -> None:
    """Without a setting all is kept, and digests of settings are those of jobs without these keys."""
    plain = job()
    assert plain.destination.attribute_rules() == AttributeRules()
    assert plain.settings_digest() == job(attributes={"keep": "all"}).settings_digest()
    assert plain.result_settings().keys() == {
        "checks", "on_existing", "max_bytes", "cache_control", "metadata", "headers",
    }  # fmt: skip


def test_all_settings_become_rules() -> None:
    """Names are those of headers in any case, metadata has a prefix, and the short forms are the same as `set`."""
    rules = job(
        attributes={
            "keep": ["cache-control", "Metadata", "metadata.Sku", "last-modified"],
            "set": {"expires": "0", "metadata.Team": "shop", "tags": "a=1"},
            "drop": ["TAGS", "metadata.secret"],
        },
        cache_control="no-cache", metadata={"Via": "ferry"}, storage_class="STANDARD_IA", encryption={"kms_key": "k"},
    ).destination.attribute_rules()  # fmt: skip
    assert rules.keep == frozenset({"Cache-Control", "metadata", "metadata.sku", "Last-Modified"})
    assert rules.drop == {"tags", "metadata.secret"}
    assert rules.set == {
        "Expires": "0", "team": "shop", TAGS: "a=1", "Cache-Control": "no-cache", "via": "ferry",
        TIER: "STANDARD_IA", KMS_KEY: "k",
    }  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        {"attributes": {"drop": ["tags"]}},
        {"attributes": {"keep": []}},
        {"attributes": {"set": {"Expires": "0"}}},
        {"storage_class": "GLACIER"},
        {"encryption": {"kms_key": "k"}},
    ],
)
def test_each_setting_plans_failed_rows_again(given: dict[str, Any]) -> None:
    """Rows that failed under other rules are planned again."""
    assert job(**given).settings_digest() != job().settings_digest()
    assert make_job(on_lost_attribute="fail").settings_digest() != make_job().settings_digest()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"attributes": {"keep": ["Cache-Contol"]}},
            "`Cache-Contol` is not an attribute; did you mean `Cache-Control`?",
        ),
        ({"attributes": {"drop": ["sku"]}}, "`sku` is not an attribute; known: `Cache-Control`, "),
        ({"attributes": {"set": {"metadata": "x"}}}, "`metadata` cannot be set: name one, such as `metadata.sku`"),
        ({"attributes": {"set": {"metadata.a b": "x"}}}, "`metadata.a b` is not a valid name of metadata"),
        ({"attributes": {"set": {"Content-Type": "x"}}}, "`Content-Type` cannot be set: Ferry takes it from the bytes"),
        ({"attributes": {"set": {"Content-Encoding": "br"}}}, "it says how the bytes are stored"),
        ({"attributes": {"set": {"Last-Modified": "x"}}}, "the store sets it"),
        ({"attributes": {"set": {"storage_class": "IA"}}}, "set `destination.storage_class` instead"),
        ({"attributes": {"set": {"Expires": "süß"}}}, "destination.attributes.set.Expires holds characters"),
        ({"attributes": {"set": {"tags": "shop"}}}, "tags are written as `team=shop&season=summer`"),
        ({"attributes": {"set": {"tags": "a=1&a=2"}}}, "at most ten tags, each with a name of its own"),
        ({"attributes": {"set": {"tags": "&".join(f"t{n}=1" for n in range(11))}}}, "at most ten tags"),
        ({"attributes": {"drop": ["content-encoding"]}}, "cannot be dropped: without it the bytes could not be read"),
        ({"attributes": {"kep": "all"}}, "did you mean `keep`?"),
        ({"attributes": {"set": {"Cache-Control": "x"}}, "cache_control": "x"}, "`Cache-Control` is set twice"),
        ({"attributes": {"set": {"metadata.sku": "x"}}, "metadata": {"Sku": "x"}}, "`metadata.sku` is set twice"),
        ({"metadata": {"a": "x" * 2048}}, "the metadata has more than the 2,048 bytes that an object can have"),
        ({"encryption": {"kms_key": ""}}, "encryption.kms_key"),
        ({"encryption": {}}, "encryption.kms_key"),
    ],
)
def test_what_is_refused(given: dict[str, Any], words: str) -> None:
    """Each mistake says what is wrong, and what to write instead."""
    with pytest.raises(ValidationError) as caught:
        job(**given)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"cache_control": "no-cache"},
        {"metadata": {"a": "b"}},
        {"attributes": {"set": {"tags": "a=1"}}},
        {"storage_class": "IA"},
        {"encryption": {"kms_key": "k"}},
    ],
)
def test_a_directory_holds_none(given: dict[str, Any]) -> None:
    """What each object is to have, a file cannot; what is only kept where it can be is no mistake."""
    with pytest.raises(ValidationError, match="a directory cannot store attributes of objects"):
        job("file:///d/", **given)
    for keep in ("all", ["metadata"]):
        job("file:///d/", attributes={"keep": keep, "drop": ["tags"]})


@pytest.mark.parametrize(
    ("uri", "values", "words"),
    [
        ("az://c/", {"ean-code": "4"}, "Azure cannot hold the name `ean-code`; use letters, digits and _, and begin"),
        ("az://c/", {TIER: "GLACIER"}, "storage_class `GLACIER` does not exist there; it has Archive, Cold, Cool, Hot"),
        ("az://c/", {KMS_KEY: "k"}, "az:// objects cannot have `encryption`; remove it"),
        ("az://c/", {TAGS: "a=%40"}, "`tags`: Azure allows only letters, digits, blanks and"),
        ("az://c/", {"Cache-Control": "\xe4"}, "`Cache-Control`: Azure allows only characters of ASCII"),
        ("gs://b/", {TAGS: "a=1"}, "gs:// objects cannot have `tags`; remove it"),
        ("gs://b/", {"Expires": "0"}, "gs:// objects cannot have `Expires`; remove it"),
        ("gs://b/", {TIER: "Cool"}, "storage_class `Cool` does not exist there; it has ARCHIVE, COLDLINE, NEARLINE"),
    ],
)
def test_what_other_providers_refuse(uri: str, values: dict[str, str], words: str) -> None:
    """A name or class that does not exist at the destination concerns the whole job."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (words has the text)
        refuse_unheld(AttributeRules(set=values), uri)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "values"),
    [
        ("s3://b/", {TIER: "GOLD", "ean-code": "4", TAGS: "a=1", KMS_KEY: "k", "Expires": "0"}),  # RGW has own classes
        ("az://c/", {TIER: "Cool", "ean": "4", TAGS: "a=1"}),
        ("gs://b/", {TIER: "STANDARD", "ean-code": "4", KMS_KEY: "k"}),
    ],
)
def test_what_other_providers_take(uri: str, values: dict[str, str]) -> None:
    refuse_unheld(AttributeRules(set=values), uri)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_all_names_of_metadata(scheme: str) -> None:
    """S3 and Google hold each name that a job may set: only Azure has a rule of its own, which its message names."""
    for name in ("a.b", "-a", "9", "_", ".", "ean-code", "x" * 60):
        assert METADATA_NAME.match(name)
        refuse_unheld(AttributeRules(set={name: "1"}), f"{scheme}://bucket/")
