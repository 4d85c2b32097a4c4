"""Decisions of a delta run: whether and how the object of a done row is rechecked."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from demo.validators import LAST_MODIFIED
from ferry.core.records import AGAIN, Again, Checked, ErrorClass, Row
from ferry.core.redaction import redact
from ferry.core.revalidation import KnownCopy, Revalidate, date_over_at, head_matches, how_to_revalidate, opaque
from ferry.job.delta import RULES, Delta, RetryRule
from ferry.job.model import Job
from ferry.job.units import duration
from ferry.state.parquet import MANIFEST_DIGEST, manifest_digest_of
from tests.support.helpers import make_job

FACTS = {"claim": "nothing", "proof": False, "validators": "strong", "web": True, "checked": Checked.BODY, "old": False}


@pytest.mark.parametrize(
    ("given", "look"),
    [
        ({}, Revalidate.CONDITIONAL_GET),
        ({"checked": None}, Revalidate.CONDITIONAL_GET),
        ({"checked": Checked.CONDITION}, Revalidate.CONDITIONAL_GET),
        ({"old": True}, Revalidate.CONDITIONAL_GET),
        ({"validators": "weak"}, Revalidate.CONDITIONAL_GET),
        ({"validators": "weak", "old": True}, Revalidate.GET),
        ({"validators": "none"}, Revalidate.HEAD),
        ({"validators": "none", "old": True}, Revalidate.GET),
        ({"checked": Checked.BODY_AGAIN}, Revalidate.HEAD),
        ({"checked": Checked.HEAD}, Revalidate.HEAD),
        ({"checked": Checked.SIZE}, Revalidate.HEAD_SIZE),
        ({"checked": Checked.SIZE, "old": True}, Revalidate.GET),
        ({"checked": Checked.HEAD, "old": True}, Revalidate.GET),
        ({"web": False}, Revalidate.HEAD),
        ({"web": False, "old": True}, Revalidate.HEAD),
        ({"web": False, "validators": "none", "old": True}, Revalidate.GET),
        ({"claim": "same"}, Revalidate.CONDITIONAL_GET),
        ({"validators": "racy"}, Revalidate.GET),
        ({"validators": "racy", "claim": "same"}, Revalidate.GET),
        ({"validators": "racy", "checked": Checked.HEAD}, Revalidate.GET),
        ({"validators": "racy", "web": False}, Revalidate.GET),
    ],
)
def test_how_to_look(given: dict[str, Any], look: Revalidate) -> None:
    """how_to_revalidate follows each row of its truth table."""
    assert how_to_revalidate(**{**FACTS, **given}) is look


def test_the_list_decides_first() -> None:
    """A manifest that proves no change skips the check, and one that shows a change forces a GET, in all cases."""
    rest = itertools.product(("none", "weak", "racy", "strong"), (False, True), (None, *Checked), (False, True))
    for validators, web, checked, old in rest:
        facts: Any = {"validators": validators, "web": web, "checked": checked, "old": old}
        assert how_to_revalidate(claim="same", proof=True, **facts) is Revalidate.SKIP
        for proof in (False, True):
            assert how_to_revalidate(claim="other", proof=proof, **facts) is Revalidate.GET
        assert how_to_revalidate(claim="nothing", proof=False, **facts) is not Revalidate.SKIP
        if old and validators == "none":  # weak evidence expires
            assert how_to_revalidate(claim="same", proof=False, **facts) is Revalidate.GET


def known(look: Revalidate = Revalidate.HEAD, **given: Any) -> KnownCopy:
    values: dict[str, Any] = {
        "revalidate": look, "key": "k", "size": 10, "md5": "m", "sha256": "s", "content_type": None, "etag": '"a"',
        "last_modified": LAST_MODIFIED, "dest_etag": "d", "bytes_read_at": None, **given,
    }  # fmt: skip
    return KnownCopy(**values)


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (known(), (10, '"a"', LAST_MODIFIED), True),
        (known(), (11, '"a"', LAST_MODIFIED), False),
        (known(), (None, '"a"', None), True),
        (known(), (10, 'W/"a"', None), True),
        (known(), (10, '"b"', LAST_MODIFIED), False),
        (known(), (10, 'W/"b"', LAST_MODIFIED), False),
        (known(), (10, None, LAST_MODIFIED), True),
        (known(etag=None), (10, '"b"', LAST_MODIFIED), True),
        (known(Revalidate.HEAD_SIZE), (10, '"b"', LAST_MODIFIED), True),
        (known(), (10, '"b"', "Fri, 02 Jan 2026 00:00:00 GMT"), False),
        (known(), (10, '"b"', None), False),
        (known(), (10, None, "Fri, 02 Jan 2026 00:00:00 GMT"), False),
        (known(), (10, None, None), True),
        (known(), (None, None, None), False),
        (known(size=None), (10, None, None), False),
        (known(Revalidate.HEAD_SIZE), (10, '"b"', None), True),
        (known(Revalidate.HEAD_SIZE), (11, '"a"', None), False),
        (known(Revalidate.HEAD_SIZE), (10, '"a"', "Fri, 02 Jan 2026 00:00:00 GMT"), False),
        (known(Revalidate.HEAD_SIZE), (None, '"a"', None), False),
    ],
)
def test_head_matches(before: KnownCopy, now: tuple[int | None, str | None, str | None], same: bool) -> None:
    """head_matches follows each row of its truth table."""
    assert head_matches(before, *now) is same


def test_evidence_belongs_to_its_address() -> None:
    """At an address that did not give the bytes, neither a condition nor a HEAD decides."""
    here = known(Revalidate.CONDITIONAL_GET)
    assert here.at("https://h/1.jpg", is_source=True) is here
    other = here.at("https://h/2.jpg", is_source=False)
    assert (other.revalidate, other.etag, other.last_modified) == (Revalidate.GET, None, None)
    assert (other.sha256, other.size, other.dest_etag) == (here.sha256, here.size, here.dest_etag)
    there = known(address=redact("https://h/2.jpg?sig=1"))
    assert there.at("https://h/2.jpg?sig=1", is_source=False) is there
    assert there.at("https://h/2.jpg?sig=1", is_source=True) is there
    for address in ("https://h/2.jpg?sig=2", "https://h/2.jpg", "https://h/1.jpg"):
        assert there.at(address, is_source=True).revalidate is Revalidate.GET


SECOND = datetime(2026, 11, 29, 10, 30, 5, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 29, tzinfo=UTC)
HALF_A_DAY = timedelta(hours=12)


@pytest.mark.parametrize(
    ("date", "over"),
    [
        ("2026-11-29T10:30:05.123456Z", SECOND + timedelta(microseconds=133_456)),
        ("2026-11-29T10:30:05.123+00:00", SECOND + timedelta(microseconds=133_000)),
        ("2026-11-29T10:30:05.3Z", SECOND + timedelta(microseconds=400_000)),
        ("2026-11-29T10:30:05.000Z", SECOND + timedelta(seconds=1)),
        ("2026-11-29T10:30:05Z", SECOND + timedelta(seconds=1)),
        ("2026-11-29T12:30:05+02:00", SECOND + timedelta(seconds=1)),
        (" 2026-11-29 10:30:05Z ", SECOND + timedelta(seconds=1)),
        ("Sun, 29 Nov 2026 10:30:05 GMT", SECOND + timedelta(seconds=1)),
        ("1795948205", SECOND + timedelta(seconds=1)),
        ("1795948205.25", SECOND + timedelta(microseconds=260_000)),
        ("1795948205000", SECOND + timedelta(seconds=1)),
        ("2026-11-29 10:30:00Z", SECOND.replace(second=0) + timedelta(minutes=1)),
        ("2026-11-29T10:30Z", SECOND.replace(second=0) + timedelta(minutes=1)),
        ("2026-11-29T10:00:00Z", MIDNIGHT + timedelta(hours=11)),
        ("2026-11-29T00:00:00Z", MIDNIGHT + timedelta(days=1)),
        ("2026-11-29T02:00:00+02:00", MIDNIGHT + timedelta(hours=1)),
        ("Sun, 29 Nov 2026 00:00:00 GMT", MIDNIGHT + timedelta(days=1)),
        ("2026-11-29T10:30:05", SECOND + timedelta(seconds=1) + HALF_A_DAY),
        ("2026-11-29", MIDNIGHT + timedelta(days=1) + HALF_A_DAY),
        ("20261129", MIDNIGHT + timedelta(days=1) + HALF_A_DAY),
    ],
)
def test_when_a_date_is_over(date: str, over: datetime) -> None:
    """The interval that a date names ends according to the precision of the date."""
    assert date_over_at(date) == pytest.approx(over.timestamp(), abs=5e-7)


@pytest.mark.parametrize(
    "date",
    ["", "29.11.2026", "11/29/2026", "v17", "Sun, 29 Now 2026 10:30:05 GMT", "Sun, 31 Feb 2026 10:30:05 GMT",
     "2026-13-01", "2026-11", "12", "99999999999999999999", "9999999999999", "d" * 32, "9999-12-31"],
)  # fmt: skip
def test_what_is_no_date_is_never_over(date: str) -> None:
    """A date that Ferry cannot parse, or one far in the future, proves nothing."""
    assert date_over_at(date) > datetime(2200, 1, 1, tzinfo=UTC).timestamp()


def test_what_cannot_be_read_is_over_at_no_time() -> None:
    """A date that Ferry cannot parse never ends."""
    assert date_over_at("v17") == math.inf


def test_weak_comparison() -> None:
    """ETags compare weakly as in the table of RFC 9110 section 8.8.3.2."""
    assert opaque('W/"1"') == opaque('W/"1"') == opaque('"1"')
    assert opaque('W/"1"') != opaque('W/"2"')


def row(**given: Any) -> Row:
    return Row("r", "https://img.example/1.jpg", "1.jpg", **given)


def test_what_the_list_says_is_compared_alike_here_and_in_sql() -> None:
    """Python and SQL give the same digest; each field changes it, and a row without fields has none."""
    import duckdb

    values: list[dict[str, Any]] = [
        {}, {"size": 1}, {"size": 11}, {"md5": "a" * 32}, {"sha256": "a" * 32}, {"etag": "a" * 32},
        {"last_modified": "a" * 32}, {"etag": "ä", "size": 0}, {"etag": ""}, {"id": "x", "content_type": "image/png"},
    ]  # fmt: skip
    con = duckdb.connect()
    con.execute("CREATE TABLE m (size BIGINT, md5 VARCHAR, sha256 VARCHAR, etag VARCHAR, last_modified VARCHAR)")
    seen = []
    for given in values:
        made = row(**given)
        con.execute("DELETE FROM m")
        con.execute(
            "INSERT INTO m VALUES (?, ?, ?, ?, ?)", [made.size, made.md5, made.sha256, made.etag, made.last_modified]
        )
        (in_sql,) = con.execute(f"SELECT {MANIFEST_DIGEST.format(m='m')} FROM m").fetchall()[0]
        assert manifest_digest_of(made) == in_sql
        seen.append(in_sql)
    assert seen[0] is seen[-1] is None
    assert len(set(seen[1:-1])) == len(seen) - 2


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (90, 90),
        ("90", 90),
        ("90s", 90),
        ("30m", 1800),
        ("20h", 72_000),
        ("7d", 604_800),
        (" 1.5 D ", 129_600),
        ("2w", 1_209_600),
        (0, 0),
    ],
)
def test_durations(given: Any, seconds: float) -> None:
    """Each spelling of a duration is read in seconds."""
    assert duration(given) == seconds


@pytest.mark.parametrize(
    "given", ["", "d", "7 days", "-1d", -1, True, float("nan"), float("inf"), 1e12, None, [], "1e3"]
)
def test_what_is_no_duration(given: Any) -> None:
    """Any other value is rejected with a message that says duration."""
    with pytest.raises(ValueError, match="duration"):
        duration(given)


def test_which_failures_are_tried_again() -> None:
    """Retryable failures are retried for 30 runs, failures that may end by themselves for 7, or as the job says."""
    delta = Delta(retry={ErrorClass.NOT_FOUND: RetryRule(after="20h", runs=2)})
    assert delta.rule(ErrorClass.NOT_FOUND) == RetryRule(after=72_000, runs=2)
    assert delta.rule(ErrorClass.TIMEOUT).runs == 30
    assert delta.rule(ErrorClass.NOT_IMAGE).runs == 7
    assert delta.rule(ErrorClass.BAD_KEY).runs == 0
    assert {error for error, again in AGAIN.items() if again is not Again.NEVER} <= set(RULES)


def test_the_mode_changes_no_fingerprint() -> None:
    """The mode does not change the fingerprint, so a delta run finds its chunks done."""
    assert make_job().fingerprint() == make_job(mode="delta", delta={"revalidate_after": "7d"}).fingerprint()
    assert isinstance(make_job(mode="delta"), Job)
