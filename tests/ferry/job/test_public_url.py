"""Templates of public addresses: what is refused, and which address a row gets."""

from __future__ import annotations

from urllib.parse import quote

import duckdb
import pytest

from ferry.core import UserError
from ferry.job import PublicUrl
from tests.support.helpers import make_job


def address(template: str, key: str | None, id_: str | None = None) -> str | None:
    """The address that DuckDB makes of a row."""
    con = duckdb.connect()
    con.execute("CREATE TABLE l AS SELECT ?::VARCHAR AS key, ?::VARCHAR AS id", [key, id_])
    sql = PublicUrl.parse(template).sql({"key": "l.key", "id": "l.id"})
    found: str | None = con.execute(f"SELECT {sql} FROM l").fetchall()[0][0]
    return found


@pytest.mark.parametrize(
    ("template", "key", "id_", "expected"),
    [
        ("https://n.example/{key}", "a b/ü+%41.jpg", None, "https://n.example/a%20b/%C3%BC%2B%2541.jpg"),
        ("https://n.example/p/{key.name}", "a/b.tar.gz", None, "https://n.example/p/b.tar.gz"),
        ("https://n.example/{key.stem}.webp", "a/b.tar.gz", None, "https://n.example/b.tar.webp"),
        ("https://n.example/{key.stem}.{key.ext}", ".hidden", None, None),
        ("https://n.example/{key.stem}/{key.ext}", "x/.a.png", None, "https://n.example/.a/png"),
        ("https://n.example/i?f={key}&w=1", "a&b=c.jpg", None, "https://n.example/i?f=a%26b%3Dc.jpg&w=1"),
        ("https://n.example/{id:06d}.jpg", "x", " 42 ", "https://n.example/000042.jpg"),
        ("https://n.example/{id:02d}.jpg", "x", "12345", "https://n.example/12345.jpg"),
        ("https://n.example/{id:06d}.jpg", "x", "A1", None),
        ("https://n.example/{id|lower}", "x", "ÄB 1", "https://n.example/%C3%A4b%201"),
        ("https://n.example/{id}", "x", None, None),
        ("https://n.example/it's/{{{key}}}", "a", None, "https://n.example/it's/{a}"),
    ],
)
def test_the_address_of_a_row(template: str, key: str, id_: str | None, expected: str | None) -> None:
    """Values are encoded after their format; a row without a value has no address."""
    assert address(template, key, id_) == expected


def test_every_character_is_encoded_as_python_does() -> None:
    """DuckDB's encoding is that of RFC 3986: everything but unreserved characters, and `/`."""
    key = "".join(map(chr, [*range(1, 300), 0x20AC, 0x1F600]))
    assert address("https://n.example/{key}", key) == f"https://n.example/{quote(key, safe='/')}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("img.new.example/{key}", "not the template of a web address"),
        ("ftp://img.new.example/{key}", "not the template of a web address"),
        ("https://{key}/a", "not the template of a web address"),
        ("https://n.example/ä/{key}", "percent-encoded"),
        ("https://n.example/a b/{key}", "percent-encoded"),
        ("https://n.example/all.jpg", "every object the same address"),
        ("https://n.example/all.{key.ext}", "every object the same address"),
        ("https://n.example/{sku}", "the fields are {key}"),
        ("https://n.example/{key", "unbalanced brace"),
        ("https://n.example/#{key}", "browsers do not send"),
        ("https://user:pass@n.example/{key}", "a user name or password"),
        ("https://n.example/{key}?X-Amz-Signature=abc", "must not hold secrets"),
    ],
)
@pytest.mark.parametrize("setting", ["public_url", "source.public_url"])
def test_refused(setting: str, template: str, why: str) -> None:
    """A job says what is wrong with the template, and how to write it."""
    given = {"public_url": template} if setting == "public_url" else {"source": {"public_url": template}}
    with pytest.raises(ValueError, match=why):
        make_job(**given)


def test_a_public_address_changes_no_plan() -> None:
    """Where visitors get an object has nothing to do with how it is transferred."""
    plain, public = make_job(), make_job(public_url="https://n.example/{key}")
    assert plain.fingerprint() == public.fingerprint()


def test_the_template_alone() -> None:
    """Callers of the library get Ferry's error."""
    with pytest.raises(UserError, match="public_url names"):
        PublicUrl.parse("https://n.example/{x}")
