"""Pages: whatever a value holds is shown, never obeyed, and a page asks no host for anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import jinja2
import pytest

from ferry.pages import CLIPPED, render
from tests.support.page_parser import Page

HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=https://evil.example/x onerror=alert(1)>", "' onmouseover='alert(1)",
    "]]>-->", "</style></title></textarea>", "{{ 7 * 7 }}{% include 'base.html' %}", "a\x00b\x1b[31m\x07c\r\nd",
    "exe\u202egpj.\u2066\u200b", "\ud800 alone", "&lt;b&gt;&amp;", "javascript:alert(1)", "x" * 5000,
]  # fmt: skip


def page(name: str = "name", address: str = "https://new.example/a", **changes: Any) -> str:
    values = {"share": 0.5, "moment": datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)} | changes
    return render("tests.ferry.pages", "sample.html", name=name, address=address, **values)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_text(name: str) -> None:
    """In elements, attributes, headings, captions and links; what is not printable is shown as an escape."""
    harmless, parsed = Page(page()), Page(page(name, address=name))
    assert parsed.tags - {"span"} == harmless.tags - {"a"} - {"span"}
    assert {name for _, name, _ in parsed.attributes} == {name for _, name, _ in harmless.attributes}
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    assert parsed.text.count(shown) >= 8
    assert shown in parsed.values("title")
    assert not [c for c in page(name) if not c.isprintable() and c != "\n"]
    page(name).encode()


def test_only_web_addresses_are_links() -> None:
    """And the page that a link opens learns nothing of this one."""
    for address in (
        "javascript:alert(1)",
        "file:///etc/passwd",
        "s3://bucket/key",
        " https://a.example",
        "//a.example",
    ):
        assert "a" not in Page(page(address=address)).tags, address
    parsed = Page(page(address="https://a.example/?a=1&b=2"))
    assert "https://a.example/?a=1&b=2" in parsed.values("href")
    assert parsed.values("rel") == ["icon", "noreferrer noopener"]


def test_a_page_loads_nothing() -> None:
    """It names no other file, and its policy forbids what a list could smuggle in."""
    parsed = Page(page())
    assert parsed.loaded() == []
    (policy,) = [value for value in parsed.values("content") if "default-src" in value]
    assert {"default-src 'none'", "base-uri 'none'", "form-action 'none'"} <= set(policy.split("; "))
    assert "script" not in policy
    assert "script" not in parsed.tags


def test_filters() -> None:
    text = Page(page("x" * (CLIPPED + 1))).text
    assert "1,234,567" in text
    assert "1.5 kB" in text
    assert "1:01:01" in text
    assert f"{'x' * CLIPPED}… ({CLIPPED + 1} characters)" in text
    berlin = datetime(2026, 2, 3, 5, 5, 6, tzinfo=timezone(timedelta(hours=1)))
    assert "2026-02-03 04:05:06 UTC" in Page(page(moment=berlin)).text


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0%"), (1e-9, "under 0.1%"), (0.0123, "1.2%"), (0.99999, "99.9%"), (1, "100%")],
)
def test_a_share_is_not_rounded_to_all_or_nothing(share: float, shown: str) -> None:
    """ "100%" of an unfinished migration would be a lie."""
    assert f"\n{shown} 2026" in Page(page(share=share)).text


def test_a_value_that_was_not_given_is_an_error() -> None:
    """A page with a hole looks complete."""
    with pytest.raises(jinja2.UndefinedError, match="'name' is undefined"):
        render("tests.ferry.pages", "sample.html")
