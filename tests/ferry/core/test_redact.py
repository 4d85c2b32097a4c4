"""Redaction: a URL stays recognisable, and none of its secrets is shown."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.core.redaction import escaped, redact, redact_id, redact_ids, short
from ferry.manifest.text import excerpt
from tests.faults.malformed import MALFORMED

DIGITS = hashlib.sha256(b"x=1").hexdigest()[:8]
PASSWORD = "CanaryPassword0123456789abcdef"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://h.example/a/b.jpg", "https://h.example/a/b.jpg"),
        ("http://h.example:8080/a.jpg", "http://h.example:8080/a.jpg"),
        ("http://[2001:db8::1]:8080/a.jpg", "http://[2001:db8::1]:8080/a.jpg"),
        ("https://h.example/img@2x.jpg", "https://h.example/img@2x.jpg"),
        ("https://h.example:8080/a:b@2x.jpg", "https://h.example:8080/a:b@2x.jpg"),
        ("https://h.example/a.jpg?x=1", f"https://h.example/a.jpg?{DIGITS}"),
        ("https://h.example/a.jpg?x=1#top", f"https://h.example/a.jpg?{DIGITS}"),
        ("https://h.example/a.jpg#top?x=1", "https://h.example/a.jpg"),
        ("https://me:pw@h.example/a.jpg", "https://h.example/a.jpg"),
        ("https://me:a/b@h.example/a.jpg", "https://h.example/a.jpg"),
        ("https://h.example:pw/a.jpg", "https://h.example:…/a.jpg"),
        ("https://[pw/a.jpg", "https://[…]/a.jpg"),
        ("me:pw@h.example/a.jpg", "me:h.example/a.jpg"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("az://shop/$web/a@b.jpg", "az://shop/$web/a@b.jpg"),
        ("az://shop/images/a.jpg?x=1", f"az://shop/images/a.jpg?{DIGITS}"),
        ("file:///srv@home/a:b@c.jpg", "file:///srv@home/a:b@c.jpg"),
        ("sku-4711", "sku-4711"),
        ("folder/img@2x.jpg", "folder/img@2x.jpg"),
        ("C:\\images\\a.jpg", "C:\\images\\a.jpg"),
        ("", ""),
    ],
)
def test_what_is_shown(source: str, shown: str) -> None:
    """redact keeps scheme, host, path and a digest of the query, and removes user info from any text."""
    assert redact(source) == shown


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_addresses_keep_their_passwords(name: str) -> None:
    """The password of a malformed URL appears in no report, message or excerpt of the manifest."""
    source = MALFORMED[name].replace("PW", PASSWORD)
    for text in (redact(source), short(source, 500)):
        assert PASSWORD not in text
    if "no scheme" not in name and "no slash" not in name:  # `a:b@c` is an ID like any other
        assert PASSWORD not in redact_id(source)
    for line in (source, f"a,{source},b", f'{{"url": "{source}", "sku": 1}}', f"x\t{source}"):
        assert PASSWORD not in excerpt(line)
        assert PASSWORD[:8] not in excerpt(line)


@given(st.text(max_size=40), st.sampled_from(["http", "https", "ftp", "s3"]))
def test_what_was_shown_is_shown_again_alike(text: str, scheme: str) -> None:
    """Redacting twice changes nothing, and escaped text is printable."""
    once = redact(f"{scheme}://{text}")
    assert redact(once).partition("?")[0] == once.partition("?")[0]
    assert escaped(once).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sku-4711", "sku-4711"),
        ("a@b.example", "a@b.example"),
        ("shoe?colour=red", "shoe?colour=red"),
        ("https://h.example/p?sku=1", "https://h.example/p?8f30ca6f"),
        ("p?token=1", "p?8f4b3b5b"),
        ("p?X-Amz-Signature=1", "p?47dc16b7"),
    ],
)
def test_ids_are_the_users_own(text: str, shown: str) -> None:
    """An ID is shown unchanged unless it is a URL or contains a credential parameter."""
    assert redact_id(text)[:2] == shown[:2]
    assert len(redact_id(text)) == len(shown)


PIECES = st.sampled_from(
    ["sku", "7", "a@b", "https:", "HTTP:", "//", "/", "\\", "?", "=", "token=", "&sig=1", "\n", " ", "é"]
)


@given(st.lists(st.none() | st.lists(PIECES, max_size=5).map("".join), max_size=4))
def test_many_ids_are_shown_as_single_ones(texts: list[str | None]) -> None:
    """Whatever the IDs beside it are, an ID is redacted if it is so alone."""
    assert redact_ids(texts) == [text and redact_id(text) for text in texts]
