"""Decisions about attributes: what is carried, what a provider cannot hold, and the digest of what was written."""

from __future__ import annotations

import pytest

from ferry.core.attributes import (
    HEADERS,
    HOLDS,
    KMS_KEY,
    REDIRECT,
    TAGS,
    TIER,
    WORDS,
    AttributeRules,
    attributes_digest,
    carried,
    name_of,
    split,
    word_of,
)
from ferry.storage.s3.attributes import attribute_headers

FOUND = {"Cache-Control": "no-cache", "Content-Encoding": "gzip", "Expires": "0", TAGS: "a=1", TIER: "IA", "sku": "A"}
DATE = "Thu, 01 Jan 1970 00:01:40 GMT"
KEPT = {"Content-Encoding": "gzip"}  # under every rule: without it the bytes could not be read


def rules(keep: str | None = None, drop: str = "", **values: str) -> AttributeRules:
    return AttributeRules(None if keep is None else frozenset(keep.split()), frozenset(drop.split()), values)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (rules(), FOUND),
        (rules(drop="Expires tags"), {n: v for n, v in FOUND.items() if n not in ("Expires", TAGS)}),
        (rules(drop="metadata storage_class"), {n: v for n, v in FOUND.items() if n not in ("sku", TIER)}),
        (rules(drop="metadata.sku"), {n: v for n, v in FOUND.items() if n != "sku"}),
        (rules(drop="metadata.other"), FOUND),
        (rules(drop="sku"), FOUND),
        (rules(keep=""), KEPT),
        (rules(keep="Expires"), {**KEPT, "Expires": "0"}),
        (rules(keep="metadata"), {**KEPT, "sku": "A"}),
        (rules(keep="metadata.sku tags"), {**KEPT, "sku": "A", TAGS: "a=1"}),
        (rules(keep="metadata", drop="metadata.sku"), KEPT),
        (rules(keep="Last-Modified"), {**KEPT, "mtime": "100"}),
        (rules(sku="B", Expires="1"), {**FOUND, "sku": "B", "Expires": "1"}),
        (rules(drop="Expires", Expires="1"), {**FOUND, "Expires": "1"}),
    ],
)
def test_what_is_carried_from_a_store(given: AttributeRules, expected: dict[str, str]) -> None:
    """Each case of the table of `carried`, for a bucket."""
    assert carried(FOUND, DATE, given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (rules(), {}),
        (rules(Expires="1"), {"Expires": "1"}),
        (rules(keep="Cache-Control Last-Modified"), {"Cache-Control": "no-cache", "mtime": "100"}),
        (rules(keep="Content-Disposition"), {}),
    ],
)
def test_what_is_carried_from_an_origin(given: AttributeRules, expected: dict[str, str]) -> None:
    """From an HTTP origin nothing is carried that is not named; its coding is undone."""
    assert carried({"Cache-Control": "no-cache", "Content-Encoding": "gzip"}, DATE, given, web=True) == expected


def test_what_no_source_may_say() -> None:
    """Not the key to encrypt with, nor an empty header, nor bytes that are not UTF-8, nor line ends."""
    found = {KMS_KEY: "k", "Cache-Control": " ", "Content-Encoding": "", TAGS: "", "n": "k\udce4se\r\nx: y"}
    assert carried(found, None, rules()) == {TAGS: "", "n": "k\xe4se x: y"}


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_names_of_metadata_that_are_lost(scheme: str) -> None:
    """Over S3 a name is a part of a header's; at Google one with a colon before it would be Ferry's own."""
    names = ["dc:title", "a b", "\xe4", "::kms-key"]
    assert split(dict.fromkeys(names, "x"), HOLDS[scheme])[1] == tuple(sorted(names) if scheme == "s3" else names[3:])


@pytest.mark.parametrize(
    ("date", "mtime"),
    [
        ("2026-11-29T10:30:05+00:00", "1795948205"),
        ("Sun, 29 Nov 2026 10:30:05 GMT", "1795948205"),
        ("2026-11-29T10:30:05", None),  # in which zone?
        ("yesterday", None),
        (None, None),
    ],
)
def test_a_date_becomes_metadata(date: str | None, mtime: str | None) -> None:
    """The seconds since 1970 of a source's date; a date that cannot be read is not carried."""
    assert carried({}, date, rules(keep="Last-Modified")).get("mtime") == mtime


@pytest.mark.parametrize(
    ("scheme", "lost"),
    [
        ("s3", set()),
        ("gs", {"Expires", TAGS, REDIRECT, TIER}),
        ("az", {"Expires", REDIRECT, KMS_KEY, TIER, "ean-code"}),
        ("file", {*HEADERS, *WORDS, "sku", "ean-code"} - {"Content-Type"}),
    ],
)
def test_what_a_provider_cannot_hold(scheme: str, lost: set[str]) -> None:
    """Of everything that an object of S3 can have; the type does not count as lost, since a file's bytes show it."""
    everything = {**dict.fromkeys((*HEADERS, *WORDS), "x"), "sku": "A 1", "ean-code": "4"}
    held, names = split(everything, HOLDS[scheme])
    assert set(names) == lost
    assert held == {name: value for name, value in everything.items() if name not in lost}


@pytest.mark.parametrize(
    ("scheme", "tier", "held", "lost"),
    [
        ("s3", "STANDARD_IA", True, False),
        ("s3", "STANDARD", False, False),  # what it gives anyway
        ("s3", "Hot", False, False),
        ("s3", "Cool", True, False),  # the server decides: RGW has names of its own
        ("gs", "STANDARD", True, False),  # a bucket may have another default
        ("gs", "NEARLINE", True, False),
        ("gs", "STANDARD_IA", False, True),
        ("gs", "Hot", False, False),
        ("az", "Hot", True, False),
        ("az", "STANDARD", False, False),
        ("az", "GLACIER", False, True),
        ("file", "STANDARD", False, False),
        ("file", "GLACIER", False, True),
    ],
)
def test_tiers(scheme: str, tier: str, held: bool, lost: bool) -> None:
    """A tier by another provider's name is lost, unless it is the standard one."""
    assert split({TIER: tier}, HOLDS[scheme]) == ({TIER: tier} if held else {}, (TIER,) if lost else ())


def test_metadata_that_is_too_long() -> None:
    """Of over 2 KB of metadata S3 gets the names that fit, always the same ones; more fits elsewhere."""
    metadata = {f"n{n}": "x" * 998 for n in range(4)}
    assert split(metadata, HOLDS["s3"])[1] == ("n2", "n3")
    assert split(metadata, HOLDS["az"])[1] == ()
    assert split({"ab": "x" * 2046}, HOLDS["s3"])[1] == ()
    assert split({"ab": "x" * 2047}, HOLDS["s3"])[1] == ("ab",)
    for characters, lost in ((762, ()), (763, ("a",))):  # sent as a word of RFC 2047
        given = {"a": "ü" * characters}
        assert (sum(map(len, attribute_headers(given).values())) + 1 > 2048) == bool(lost)
        assert split(given, HOLDS["s3"])[1] == lost


@pytest.mark.parametrize("scheme", ["s3", "az", "gs"])
def test_names_that_differ_in_case(scheme: str) -> None:
    """S3 and Azure give them back in lower case, so that the digest has them so, and one of two is lost."""
    given = {"SKU": "1", "sku": "2", "firstToken": "3", "N": "4", "n": "5"}
    held, lost = split(given, HOLDS[scheme])
    assert (held, lost) == (
        (given, ()) if scheme == "gs" else ({"sku": "2", "firsttoken": "3", "n": "5"}, ("N", "SKU"))
    )
    assert split({"aB": "1", "Ab": "2"}, HOLDS["s3"]) == ({"ab": "2"}, ("aB",))


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        (TAGS, "owner=me%40example.com", False),
        (TAGS, "a=1&b+c=%2B-.%2F%3A%3D_", True),
        (TAGS, "a=", True),
        (TAGS, "=a", False),
        (TAGS, "a=" + "x" * 257, False),
        (TAGS, "&".join(f"a{n}=1" for n in range(10)), True),
        (TAGS, "&".join(f"a{n}=1" for n in range(11)), False),
        ("Content-Disposition", 'attachment; filename="k\xe4se.jpg"', False),
        ("Content-Disposition", 'attachment; filename="kaese.jpg"', True),
        ("n", "k\xe4se", True),
    ],
)
def test_values_that_azure_refuses(name: str, value: str, fits: bool) -> None:
    """They are lost, instead of failing the row or being stored as other texts."""
    assert split({name: value}, HOLDS["az"]) == (({name: value}, ()) if fits else ({}, (name,)))


def test_tags_that_are_not_shown() -> None:
    """They are lost, while a header without a text is one."""
    assert split({TAGS: "", "Cache-Control": ""}, HOLDS["s3"]) == ({"Cache-Control": ""}, (TAGS,))


def test_the_digest_is_of_what_was_written() -> None:
    """Each name and value changes it, but not their order, nor the forms in which stores return the same values."""
    one = {"Cache-Control": "no-cache", "sku": "A 1", TAGS: "a=1&b=+2", "Content-Type": "image/jpeg"}
    same = attributes_digest(one)
    assert len(same) == 64
    for name in one:
        assert attributes_digest({**one, name: "other=1"}) != same
        assert attributes_digest({other: value for other, value in one.items() if other != name}) != same
    assert attributes_digest({**one, TAGS: "b=%202&a=1", "Content-Type": "Image/JPEG"}) == same
    assert attributes_digest(dict(reversed(one.items()))) == same
    assert attributes_digest({**one, "sku": "A  1"}) == same, "blanks are signed as one"
    assert attributes_digest({"t": "=?UTF-8?B?Z3LDvG4=?="}) == attributes_digest({"t": "grün"})
    assert attributes_digest({"t": "=?no-such-charset?B?Z3LDvG4=?="}) != attributes_digest({"t": "grün"})
    assert attributes_digest({"expires": "1"}) != attributes_digest({"Expires": "1"})
    assert attributes_digest({TAGS: "a=&b=1"}) != attributes_digest({TAGS: "b=1"})


def test_what_the_digest_leaves_out() -> None:
    """The bucket's own rules change tiers and keys, and a store gives a type to an object without one."""
    assert attributes_digest({TIER: "GLACIER", KMS_KEY: "k", "Content-Type": "binary/octet-stream"}) == (
        attributes_digest({})
    )


@pytest.mark.parametrize("name", [*HEADERS, *WORDS, "sku", "expires"])
def test_names_in_jobs_and_reports(name: str) -> None:
    """A report's name of an attribute is that of a job, in any case."""
    assert name_of(word_of(name)) == name_of(word_of(name).upper()) == name


@pytest.mark.parametrize("word", ["sku", "metadata", "metadata.", "x-amz-tagging", ""])
def test_words_that_name_none(word: str) -> None:
    assert name_of(word) is None


@pytest.mark.parametrize(
    ("given", "may"),
    [
        (rules(), True),
        (rules(drop="tags"), False),
        (rules(keep="tags"), False),
        (rules(Expires="1"), False),
        (AttributeRules(set={TIER: "GLACIER", KMS_KEY: "k"}), True),
    ],
)
def test_whether_the_server_may_copy(given: AttributeRules, may: bool) -> None:
    """It copies all attributes or none, and takes a class and a key with the request."""
    assert given.server_may_copy == may
