"""Keys: the default, templates, and which keys are refused or survive a store byte for byte."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferry.core.errors import UserError
from ferry.job.templates import MissingValue, Template, are_plain_keys, default_key, finish_key, join_key, key_problem
from ferry.storage.directory.directory import walk
from ferry.storage.directory.files import Folder

SHA = "ab" * 32
RESERVED = "a path segment of the key begins with `.ferry-parts`, which Ferry reserves for unfinished files"
ODD_KEYS = st.text(st.one_of(st.sampled_from("/.#%+ ?*\\~{}|^[]:A\u00a01"), st.characters()), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("https://h.example/a/b.jpg", "a/b.jpg"),
        ("https://h.example/a/b.jpg?w=1#top", "a/b.jpg"),
        ("https://h.example/a%20b%2Bc.jpg", "a b+c.jpg"),
        ("https://h.example/a+b.jpg", "a+b.jpg"),
        ("https://h.example/%2520.jpg", "%20.jpg"),
        ("https://h.example/%E4.jpg", "%E4.jpg"),
        ("https://h.example/%C3%A4/%E4.jpg", "%C3%A4/%E4.jpg"),
        ("https://h.example/%zz.jpg", "%zz.jpg"),
        ("https://h.example/e%CC%81.jpg", "e\u0301.jpg"),
        ("https://h.example/ä.jpg", "ä.jpg"),
        ("https://h.example//a.jpg", "a.jpg"),
        ("https://h.example/a;v=1.jpg", "a;v=1.jpg"),
        ("https://h.example", ""),
        ("s3://bucket/a b%20?c#d.jpg", "a b%20?c#d.jpg"),
        ("file:///srv/a%20b.jpg", "srv/a%20b.jpg"),
        ("gs://bucket/a b%20?c#d.jpg", "a b%20?c#d.jpg"),
        ("az://shop/bucket/a b%20?c#d.jpg", "a b%20?c#d.jpg"),
        ("az://shop/bucket", ""),
    ],
)
def test_default_key(source: str, key: str) -> None:
    """The default key is the URL path without leading slash and query, percent-decoded once if it is UTF-8."""
    assert default_key(source) == key


@pytest.mark.parametrize(
    ("key", "directory", "problem"),
    [
        ("a/b.jpg", True, None),
        ("a+b %#?*~\\{}|^[]\u00a0é.jpg", True, None),
        (".hidden/...", True, None),
        ("", False, "the key is empty"),
        ("a\x00b", False, "the key holds a control character (0x00)"),
        ("a\x7f", False, "the key holds a control character (0x7f)"),
        ("a\ud800", False, "the key holds an unpaired surrogate, which is not valid text"),
        ("/a", False, "the key begins with `/`"),
        ("a/", False, "the key ends in `/`, so it names no object"),
        ("a//b", False, "the key holds `//`, an empty path segment"),
        ("a/../b", False, "the key holds `.` or `..` as a path segment"),
        ("./a", True, "the key holds `.` or `..` as a path segment"),
        ("ä" * 512, False, None),
        ("ä" * 513, False, "the key is 1,026 bytes long with its prefix; 1,024 are allowed"),
        ("d" * 255 + "/" + "f" * 255, True, None),
        ("d" * 256 + "/f", True, "a path segment of the key is longer than 255 bytes, the limit of file systems"),
        ("f" * 256, True, "a path segment of the key is longer than 255 bytes, the limit of file systems"),
        ("f" * 256, False, None),
        ("a#1", True, None),
        ("C:", True, None),
        ("CON", True, None),
        (".ferry-parts/x", True, RESERVED),
        (".ferry-parts/x", False, None),
        ("a/.Ferry-PARTS-1", True, RESERVED),
        ("a#1", False, None),
    ],
)  # fmt: skip
def test_key_problem(key: str, directory: bool, problem: str | None) -> None:
    """A key that the store cannot hold is refused with the reason."""
    assert key_problem(key, for_directory=directory) == problem


def test_prefix_counts() -> None:
    """The limit of 1,024 bytes applies to prefix and key together."""
    assert key_problem("a" * 1020, for_directory=False, prefix="p/") is None
    assert "1,024 are allowed" in (key_problem("a" * 1020, for_directory=False, prefix="pppp/") or "")


def test_accepted_keys_survive_a_directory(tmp_path: Path) -> None:
    """Each accepted key is one file of a directory, at exactly that path."""
    root = tmp_path / "root"
    folder = Folder(root, "mark", create=True)

    async def all_of_them() -> None:
        @settings(max_examples=200, deadline=None)
        @given(ODD_KEYS)
        def check(key: str) -> None:
            keys.append(key)

        check()
        for key in keys:
            if key_problem(key, for_directory=True) is None:
                await folder.put(key, key.encode(), create=False)
                assert [found.key for page in walk(root) for found in page] == [key]
                assert (root / key).read_bytes() == key.encode()
                (root / key).unlink()
                for above in (root / key).relative_to(root).parents:
                    if above != Path():
                        (root / above).rmdir()

    keys: list[str] = []
    asyncio.run(all_of_them())
    folder.close()


@pytest.mark.parametrize(
    ("prefix", "key", "joined"),
    [("p", "k", "p/k"), ("p/", "/k", "p/k"), ("", "k", "k"), ("/", "k", "k"), ("a/b//", "k", "a/b/k")],
)
def test_join_key(prefix: str, key: str, joined: str) -> None:
    """Prefix and key are joined by exactly one slash."""
    assert join_key(prefix, key) == joined


def values(**more: str | None) -> dict[str, str | None]:
    return {"id": "7", "sku": "S{1}", "source.name": "b.jpg", **more}


@pytest.mark.parametrize(
    ("text", "key", "late"),
    [
        ("{sku}/{source.name}", "S{1}/b.jpg", False),
        ("{{x}}/{id}", "{x}/7", False),
        ("100%/{id}%s", "100%/7%s", False),
        ("{{x}}/{sku}/{sha256}.{ext}", f"{{x}}/S{{1}}/{SHA}.jpg", True),
        ("{id}.{ext}", "7.jpg", True),
        ("{id:06d}/{id:02}/{ id:03 | upper }", "000007/07/007", False),
        ("{sku|lower}{source.name|upper}", "s{1}B.JPG", False),
        ("{sku|lower}/{id:03d}.{ext}", "s{1}/007.jpg", True),
        ("fixed", "fixed", False),
    ],
)
def test_render(text: str, key: str, late: bool) -> None:
    """Fields are replaced, and literal braces survive, also through a deferred key."""
    template = Template.parse(text, ["id", "sku"])
    rendered = template.render(values())
    assert template.late is late
    assert (finish_key(rendered, SHA, "jpg") if late else rendered) == key


@given(
    st.text(st.sampled_from("{}ab%s256hext"), min_size=1, max_size=12),
    st.text(st.sampled_from("{}sha256ext%"), min_size=1),
)
def test_late_round_trip(literal: str, value: str) -> None:
    """No value or literal text is mistaken for a deferred field."""
    escaped = literal.replace("{", "{{").replace("}", "}}")
    rendered = Template.parse(escaped + "{id}{sha256}", ["id"]).render({"id": value})
    assert finish_key(rendered, SHA, "jpg") == literal + value + SHA


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{skuu}", "key template names {skuu}; the columns are id, sku; did you mean {sku}?"),
        ("{source.nam}", "key template names {source.nam}; the source fields are {source.ext}, {source.host}"),
        ("{id", "has an unbalanced brace"),
        ("id}", "has an unbalanced brace"),
        ("{a{id}}", "has an unbalanced brace"),
        ("{}", "has empty braces"),
        ("/", "the key template is empty"),
        ("{sha256|upper}", "key template `{sha256|upper}`: write {sha256} without a format"),
    ],
)
def test_bad_template(text: str, message: str) -> None:
    """Unknown fields and unbalanced braces are errors with a hint."""
    with pytest.raises(UserError) as caught:
        Template.parse(text, ["id", "sku"])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://h/x", "names no column"),
        ("https://h/{source.name}", "taken from the URL itself"),
        ("https://h/{sha256}", "source.url names {sha256}; the columns are id, sku"),
    ],
)
def test_bad_url_template(text: str, message: str) -> None:
    """A source.url template accepts only columns."""
    with pytest.raises(UserError) as caught:
        Template.parse_url(text, ["id", "sku"])
    assert message in str(caught.value)


def test_url_values_are_encoded() -> None:
    """Values in source.url are percent-encoded except slashes; the template's text stays unchanged."""
    template = Template.parse_url("https://h/{id}.jpg?v=%20{sku}")
    assert template.render({"id": " a/b ?&é%", "sku": "1"}) == "https://h/a/b%20%3F%26%C3%A9%25.jpg?v=%201"


def test_missing_value() -> None:
    """A row without a value for a field raises MissingValue, which names the field."""
    with pytest.raises(MissingValue, match=r"the row has no \{sku\} for the key template"):
        Template.parse("{sku}/{sha256}").render({"sku": ""})


@pytest.mark.parametrize(
    ("value", "padded"),
    [("7", "007"), (" 42 ", "042"), ("1234", "1234"), ("000007", "000007"), ("A7", None), ("7.5", None), ("-7", None)],
)
def test_numbers_get_their_zeros(value: str, padded: str | None) -> None:
    """A value that is not a number is the row's problem, which names column, value and format."""
    template = Template.parse("{id:03d}")
    if padded is not None:
        assert template.render({"id": value}) == padded
        return
    with pytest.raises(MissingValue) as caught:
        template.render({"id": value})
    assert (
        str(caught.value) == f"the row's id is `{value}`, not a whole number, as {{id:03d}} in the key template needs"
    )


def test_formats_in_an_address() -> None:
    """source.url has them as well; values are encoded after that."""
    template = Template.parse_url("https://h/{sku|upper}/{id:04d}.jpg")
    assert template.needed == {"sku", "id"}
    assert template.render({"sku": "é a", "id": "7"}) == "https://h/%C3%89%20A/0007.jpg"
    assert template.render_many({"sku": ["a", "b", None], "id": ["7", "x", "7"]}, 3) == [
        "https://h/A/0007.jpg",
        None,
        None,
    ]


def test_needed() -> None:
    """Only fields that a manifest can have are needed columns."""
    assert Template.parse("{sku}/{source.stem}-{md5}.{ext}").needed == {"sku", "md5"}
    assert Template.parse("{sku|lower}/{id:06d}/{source.ext|lower}").needed == {"sku", "id"}


PIECES = st.sampled_from(["a", "b.jpg", "/", ".", "..", "\n", "\x7f", "\x1f", " ", "é", "\\", "x" * 120])


@given(st.lists(st.lists(PIECES, max_size=4).map("".join), min_size=1, max_size=3), st.sampled_from(["", "p" * 100]))
def test_many_keys_are_plain_if_each_one_is(keys: list[str], prefix: str) -> None:
    """Keys that are plain together have no problem, and keys are plain together if each one is plain alone."""
    together = are_plain_keys(keys, prefix)
    assert together == all(are_plain_keys([key], prefix) for key in keys)
    for key in keys if together else ():
        for directory in (False, True):
            assert key_problem(key, for_directory=directory, prefix=prefix) is None


def test_most_keys_are_plain() -> None:
    assert are_plain_keys(["a.jpg", "2024/05/a b-1.jpg", "x" * 250], "")
    assert not are_plain_keys(["a.jpg", "x" * 251], "")
    assert are_plain_keys([], "")  # of a batch without rows
