"""Which old addresses become redirects, and which are left out and counted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ferry.core import UserError
from ferry.cutover import export
from ferry.cutover.addresses import create_addresses, create_uncopied
from ferry.cutover.redirects import LeftOut, Pair, make_pairs
from ferry.cutover.redirects.nginx import hash_sizes
from ferry.cutover.redirects.old_address import Asked, asked
from ferry.cutover.redirects.pairs import Sight
from ferry.state.queries import folded_ledger
from tests.support.redirects import NEW, stored

AT = datetime(2026, 1, 2, tzinfo=UTC)
OLD = "https://old.example"
SIGHT = Sight(longest=1000, longest_new=1000)


@pytest.mark.parametrize(
    ("url", "merge", "expected"),
    [
        ("https://Old.Example:8443/a", True, Asked("old.example", "/a", "")),
        ("HTTP://old.example", True, Asked("old.example", "/", "")),
        ("https://old.example./%41%7e%c3%a4ä+%2B?%41=ä b#c", True,
         Asked("old.example", "/A~%C3%A4%C3%A4%2B%2B", "%41=%C3%A4%20b")),
        ("https://user:pw@old.example//a%2Fb/./../c/", True, Asked("old.example", "/a/c/", "")),
        ("https://old.example//a%2Fb/./../c/", False, Asked("old.example", "//a/c/", "")),
        ("https://old.example/a/..", True, Asked("old.example", "/", "")),
        ("https://old.example/a/.", False, Asked("old.example", "/a/", "")),
        ("https://old.example/../../.a", False, Asked("old.example", "/.a", "")),
        ("https://old.example/%ff%zz%?", True, Asked("old.example", "/%FF%25zz%25", "")),
        ("https://bücher.example/a", True, Asked("xn--bcher-kva.example", "/a", "")),
        ("https://[::1]:80/a?b?c", True, Asked("[::1]", "/a", "b?c")),
        ("s3://bucket/a", True, None),
        ("https://Old.Example.:80?", True, Asked("old.example", "/", "")),
        ("https:///a", True, None),
        ("https://a\n;}/a", True, None),
        ('https://a"b/a', True, None),
        ("https://ex\u200bample.com/a", True, None),
    ],
)  # fmt: skip
def test_what_a_server_knows_of_an_address(url: str, merge: bool, expected: Asked | None) -> None:
    """All spellings of a path are one; a query stays as it is sent."""
    assert asked(url, merge) == expected


def pairs(
    folder: Path, urls: list[str], sight: Sight = SIGHT, *, full: bool = False, **job: Any
) -> tuple[list[Pair], LeftOut]:
    """The redirects of rows with these addresses. The key of the n-th is n; `missing:` begins a row without a copy."""
    rows = [
        {"url": url.removeprefix("missing:"), "key": str(n), "id": url.partition(":")[0]} for n, url in enumerate(urls)
    ]
    state, made = stored(folder, rows, **job)
    with folded_ledger(state) as con:
        create_addresses(con, made)
        create_uncopied(con, made)
        found = make_pairs(con, made.name, AT, sight, full=full)
        return list(found.select()), found.left_out


def pair(path: str, number: int, query: str = "", twins: int | None = None) -> Pair:
    return Pair("old.example", path, query, f"{NEW}{number}", twins)


def test_a_row_with_a_copy_is_a_redirect(tmp_path: Path) -> None:
    """Rows without a copy are counted."""
    found = pairs(tmp_path, [f"{OLD}/a", f"missing:{OLD}/b", f"{OLD}/c?v=1"])
    assert found == ([pair("/a", 0), pair("/c", 2, "v=1")], LeftOut(without_copy=1))


def test_one_address_with_two_new_ones(tmp_path: Path) -> None:
    """Neither of them is chosen, also where only the spelling differs. A row without a copy does not count."""
    urls = [f"{OLD}/%61", f"{OLD}//a", f"{OLD}/b", f"missing:{OLD}/%62"]
    found = pairs(tmp_path, urls)
    assert found == ([pair("/b", 2)], LeftOut(without_copy=1, ambiguous=1, examples=("old.example/a",)))
    assert [each.path for each in pairs(tmp_path / "exact", urls, SIGHT._replace(merge_slashes=False))[0]] == [
        "/a", "//a", "/b",
    ]  # fmt: skip


def test_credentials_in_queries(tmp_path: Path) -> None:
    """The path alone is matched if no other row has it. Otherwise the row is left out; with `full` its query counts."""
    urls = [f"{OLD}/a?Signature=s1&v=1", f"{OLD}/b?Signature=s2", f"{OLD}/b?v=1", f"{OLD}/c?sig=3", f"missing:{OLD}/c"]
    found, left_out = pairs(tmp_path, urls)
    assert found == [pair("/a", 0), pair("/b", 2, "v=1")]
    assert left_out == LeftOut(without_copy=1, secret=2)
    found, left_out = pairs(tmp_path / "full", urls, full=True)
    assert [(each.path, each.query) for each in found] == [
        ("/a", "Signature=s1&v=1"), ("/b", "Signature=s2"), ("/b", "v=1"), ("/c", "sig=3"),
    ]  # fmt: skip
    assert left_out == LeftOut(without_copy=1)


def test_an_address_that_the_new_store_serves(tmp_path: Path) -> None:
    """A redirect of a new address would hide the object, or lead to itself."""
    urls = [f"{OLD}/p/0", f"{OLD}/p/0?v=1", f"{OLD}/a"]
    found, left_out = pairs(tmp_path, urls, public_url=f"{OLD}/p/{{key}}")
    assert [each.path for each in found] == ["/p/0", "/a"]
    assert [each.query for each in found] == ["v=1", ""]
    assert left_out == LeftOut(served=1)


@pytest.mark.parametrize("site", [OLD, "https://old.example.", "https://[2001:db8::1]"])
def test_a_new_address_with_a_query(site: str, tmp_path: Path) -> None:
    """A redirect for all queries would lead to itself, whatever the spelling of the host is."""
    found = pairs(tmp_path, [f"{site}/0", f"{OLD}/a"], public_url=f"{site}/{{key}}?v=1")
    assert found == ([Pair("old.example", "/a", "", f"{site}/1?v=1")], LeftOut(served=1))


def test_a_new_address_in_another_case(tmp_path: Path) -> None:
    """It is told apart where the target ignores case: the redirect would lead to itself."""
    urls = [f"{OLD}/P/0", f"{OLD}/p/1?V=1", f"{OLD}/b"]
    found, _ = pairs(tmp_path, urls, SIGHT._replace(ignore_case=True), public_url=f"{OLD}/p/{{key}}?v=1")
    assert [(each.path, each.twins) for each in found] == [("/P/0", 0), ("/p/1", 1), ("/b", None)]


@pytest.mark.parametrize(
    ("other", "left_out"),
    [
        (f"missing:{OLD}/a?v=1", LeftOut(without_copy=1, ambiguous=1, examples=("old.example/a",))),
        (f"{OLD}/a?sig=1", LeftOut(secret=1, ambiguous=1, examples=("old.example/a",))),
        (f"{OLD}/a?{'v' * 2000}", LeftOut(unfit=1, ambiguous=1, examples=("old.example/a",))),
    ],
)
def test_a_redirect_for_all_queries_hides_no_other_row(other: str, left_out: LeftOut, tmp_path: Path) -> None:
    """A visitor who asks for the other row would get this one's object."""
    assert pairs(tmp_path, [f"{OLD}/a", other]) == ([], left_out)
    urls = [f"{OLD}/A", other]
    assert {each.twins for each in pairs(tmp_path / "case", urls, SIGHT._replace(ignore_case=True))[0]} == {0}


def test_a_host_that_no_visitor_asks_for(tmp_path: Path) -> None:
    """It cannot be in a configuration, and is counted."""
    found = pairs(tmp_path, [f"{OLD}/a", "https://ex\u200bample.com/a", "https://ex\u200bample.org/a"])
    assert found == ([pair("/a", 0)], LeftOut(unfit=2))


def test_no_secret_of_an_ambiguous_address_is_told(tmp_path: Path) -> None:
    """Neither in the examples, nor by a target with whole addresses."""
    urls = [f"{OLD}/a?sig=SECRET", f"{OLD}/a?sig=SECRET", f"{OLD}/b#access_token=SECRET", f"{OLD}/c"]
    found, left_out = pairs(tmp_path, urls, SIGHT._replace(as_written=True))
    assert [each.path for each in found] == [f"{OLD}/c"]
    assert (left_out.ambiguous, left_out.secret) == (1, 1)
    assert "SECRET" not in str(left_out.sentences())


def test_a_target_without_queries(tmp_path: Path) -> None:
    """For a target that does not compare queries, addresses that differ in them are one."""
    urls = [f"{OLD}/a?v=1", f"{OLD}/b?v=1", f"{OLD}/b?v=2"]
    found = pairs(tmp_path, urls, SIGHT._replace(queries=False))
    assert found == ([pair("/a", 0)], LeftOut(ambiguous=1, examples=("old.example/b",)))


def test_twins(tmp_path: Path) -> None:
    """Addresses that differ in case are twins where the target ignores it, also of a row without a copy."""
    urls = [f"{OLD}/a", f"{OLD}/A", f"missing:{OLD}/B", f"{OLD}/b", f"{OLD}/c", f"{OLD}/Ä", f"{OLD}/ä"]
    found, _ = pairs(tmp_path, urls, SIGHT._replace(ignore_case=True))
    assert {each.path: each.twins for each in found} == {
        "/a": 0, "/A": 0, "/b": 1, "/c": None, "/%C3%84": None, "/%C3%A4": None,
    }  # fmt: skip
    assert {each.twins for each in pairs(tmp_path / "exact", urls)[0]} == {None}


def test_what_a_target_cannot_hold(tmp_path: Path) -> None:
    """Addresses that are too long, or hold %00, are counted."""
    urls = [f"{OLD}/" + "a" * 988, f"{OLD}/" + "a" * 989, f"{OLD}/%00"]
    found, left_out = pairs(tmp_path, urls)
    assert len(found) == 1
    assert left_out == LeftOut(unfit=2)
    assert pairs(tmp_path / "new", [f"{OLD}/a"], SIGHT._replace(longest_new=len(NEW)))[1] == LeftOut(unfit=1)
    assert pairs(tmp_path / "both", [f"{OLD}/a"], SIGHT._replace(longest_pair=len(NEW) + 13))[1] == LeftOut(unfit=1)
    assert pairs(tmp_path / "utf8", [f"{OLD}/%FF", f"{OLD}/%C3%A4"], SIGHT._replace(utf8=True))[1] == LeftOut(unfit=1)


def test_limits_are_told_where_they_are_met(tmp_path: Path) -> None:
    state, job = stored(
        tmp_path, [{"url": f"{OLD}/{path}", "key": path[0], "id": path[0]} for path in ("a", "b" * 1300)]
    )
    written = export(state, job, tmp_path / "r", at=AT, form="nginx-map")
    assert written.left_out["unfit"] == 1
    assert any("1,300 bytes" in note for note in written.notes)


def test_a_source_that_visitors_did_not_ask(tmp_path: Path) -> None:
    """Rows of a bucket have no old address, until source.public_url says it."""
    rows = [{"url": "s3://old/images/ä.jpg", "key": "1", "id": "1"}]
    state, job = stored(tmp_path, rows, source={"roots": ["s3://old/images/"]})
    with pytest.raises(UserError, match=r"1 old address left out: .* Set `source\.public_url`"):
        export(state, job, tmp_path / "r", at=AT, form="nginx-map")
    assert not (tmp_path / "r").exists()
    with_address = job.model_copy(
        update={"source": job.source.model_copy(update={"public_url": "https://cdn.example/x/{key}"})}
    )
    assert export(state, with_address, tmp_path / "r", at=AT, form="nginx-map").rows == 1
    assert 'cdn.example/x/ä.jpg" ' in (tmp_path / "r").read_text()


def test_rows_that_are_not_addresses(tmp_path: Path) -> None:
    """A row that could not be read is one without a copy, and stops no export."""
    urls = [f"{OLD}/a", "missing:https://[bad/x", "missing:no address", "missing:https:///x"]
    for folder, public in (("own", None), ("cdn", "https://cdn.example/{key}")):
        found, left_out = pairs(tmp_path / folder, urls, source={"public_url": public})
        assert [each.path for each in found] == ["/a"]
        assert left_out == LeftOut(without_copy=3)


def test_a_public_address_of_two_keys(tmp_path: Path) -> None:
    """The export is refused, and a file that was there stays as it was."""
    rows = [{"url": f"{OLD}/{n}", "key": f"{n}/same", "id": n} for n in "ab"]
    state, job = stored(tmp_path, rows, public_url="https://n.example/{key.name}")
    (tmp_path / "r").write_text("before")
    for form in ("nginx-map", "csv"):
        with pytest.raises(UserError, match="`a/same` and `b/same` one address"):
            export(state, job, tmp_path / "r", at=AT, form=form)
    assert (tmp_path / "r").read_text() == "before"


@pytest.mark.parametrize(
    ("keys", "longest", "sizes"),
    [(1, 10, (2048, 256)), (1024, 10, (2048, 256)), (1025, 10, (4096, 256)), (250_000, 100, (524_288, 960)),
     (10, 9_000, (2048, 65_472))],
)  # fmt: skip
def test_sizes_of_a_hash(keys: int, longest: int, sizes: tuple[int, int]) -> None:
    """Twice as many buckets as keys, each for eight of the longest keys."""
    assert hash_sizes(keys, longest) == sizes
