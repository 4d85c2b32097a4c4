"""Verification: reads the destination back and compares it with the ledger."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

from ferry.core import (
    TAGS,
    Confirmed,
    ErrorClass,
    Fatal,
    ObjectError,
    Outcome,
    Progress,
    Status,
    attributes_digest,
    short,
)
from ferry.http import Algorithm
from ferry.state import State, append_outcomes
from ferry.storage import ObjectInfo, Store, same_etag

AT_ONCE = 32
BETWEEN_TRIES_S = 1.0
PAUSED_S = 0.5  # between two checks whether the pause has ended
UNREAD_IN_A_ROW = 50  # after so many unreadable objects in a row, the destination is the problem
CHUNK = "verify"  # of an outcome for an object that is right again; planning would take "" for its own


class Evidence(StrEnum):
    """The fact by which an object was compared with the ledger."""

    DIGEST = "digest"
    ETAG = "ETag"
    SIZE = "size"
    ATTRIBUTES = "attributes"


class Verdict(NamedTuple):
    """The result of comparing one object."""

    wrong: ErrorClass | None  # `missing` or `altered`; None if the object is right
    by: Evidence = Evidence.SIZE


class Reading(NamedTuple):
    """What a verification found out about a row that the ledger does not have."""

    row_id: str
    sha256: str | None  # of the bytes at the destination; None for an object that could not be read
    md5: str | None
    size: int | None


@dataclass(slots=True)
class Verified:
    """The result of verifying some objects.

    Rows of ``unread`` and ``unproven`` objects stay as they are.
    """

    checked: int
    bytes: int
    missing: int
    altered: int
    wrong: list[Outcome]  # they make their rows pending
    right_again: list[Outcome] = field(default_factory=list)  # of objects that an earlier verification found wrong
    unproven: int = 0  # objects that were found wrong earlier, and look right by evidence that does not disprove that
    unread: int = 0  # objects that could not be read
    unread_first: str = ""  # key and error of the first one
    by: Counter[Evidence] = field(default_factory=Counter)  # number of compared objects by evidence
    readings: list[Reading] = field(default_factory=list)  # of unread rows, and with ``both`` of rows without digests


def verdict(
    outcome: Outcome,
    size: int | None,
    md5: str | None,
    sha256: str | None,
    etag: str | None = None,
    *,
    same_attributes: bool = True,
) -> Verdict:
    """Returns whether the object at the destination is the one in the ledger; ``size`` is None for a missing object.

    | size | a digest on both sides | an ETag on both sides | verdict | compared by |
    |---|---|---|---|---|
    | None | | | missing | size |
    | differs | | | altered | size |
    | same | sha256 or md5 differs | | altered | digest |
    | same | all on both sides agree | | right | digest |
    | same | no | differs | altered | ETag |
    | same | no | the same | right | ETag |
    | same | no | no | right | size |

    Right bytes with other attributes than the ledger's are altered, compared by attributes.
    """
    found = _verdict(outcome, size, md5, sha256, etag)
    if found.wrong is None and not same_attributes:
        return Verdict(ErrorClass.ALTERED, Evidence.ATTRIBUTES)
    return found


def _verdict(outcome: Outcome, size: int | None, md5: str | None, sha256: str | None, etag: str | None) -> Verdict:
    if size is None:
        return Verdict(ErrorClass.MISSING)
    if outcome.size is not None and size != outcome.size:
        return Verdict(ErrorClass.ALTERED)
    known = [(here, there) for here, there in ((outcome.sha256, sha256), (outcome.md5, md5)) if here and there]
    if known:
        same = all(here == there for here, there in known)
        return Verdict(None if same else ErrorClass.ALTERED, Evidence.DIGEST)
    if outcome.dest_etag and etag:
        return Verdict(None if same_etag(outcome.dest_etag, etag) else ErrorClass.ALTERED, Evidence.ETAG)
    return Verdict(None)


async def read_back(
    store: Store,
    outcomes: Sequence[Outcome],
    run_no: int,
    progress: Progress,
    lesser_check: Callable[[Outcome], str | None] = lambda _: None,
    *,
    both: bool = False,
) -> Verified:
    """Reads each object completely and compares the digest of its bytes, or its ETag if the ledger has no digest.

    ``lesser_check`` returns the message of a row that is right again: which check it got, if that was less than asked.
    With ``both``, rows to which the ledger has not both digests get them as readings.
    An object that cannot be read in three tries is counted as unread. Raises Fatal, also after UNREAD_IN_A_ROW unread
    objects in a row.
    """
    result = Verified(0, 0, 0, 0, [])
    queue = iter(outcomes)
    in_a_row = 0

    async def worker() -> None:
        nonlocal in_a_row
        for outcome in queue:
            while progress.paused:  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(PAUSED_S)
            try:
                size, md5, sha256, etag, same = await _digests(store, outcome, both=both)
            except ObjectError as error:
                result.unread += 1
                result.readings.append(Reading(outcome.row_id, None, None, None))
                result.unread_first = result.unread_first or f"{outcome.key}: {error}"
                progress.add(Status.PENDING, error.error_class, 0)
                in_a_row += 1
                if in_a_row >= UNREAD_IN_A_ROW:
                    raise Fatal(
                        f"{in_a_row} objects in a row could not be read from the destination, the last one "
                        f"{outcome.key}: {error}. Run `ferry verify` again when the destination responds"
                    ) from None
                continue
            in_a_row = 0
            found = verdict(outcome, size, md5, sha256, etag, same_attributes=same)
            wrong = _record(result, outcome, found, run_no, etag)
            if wrong is None and outcome.status is Status.PENDING:
                _record_right_again(result, outcome, found, run_no, etag, lesser_check(outcome))
            if wrong is None and md5 and sha256:
                result.readings.append(Reading(outcome.row_id, sha256, md5, size))
            result.bytes += size or 0
            progress.add(Status.FAILED if wrong else Status.UNCHANGED, wrong, size or 0)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return result


async def _digests(
    store: Store, outcome: Outcome, *, both: bool = False
) -> tuple[int | None, str | None, str | None, str | None, bool]:
    """Returns size, MD5, SHA-256 and ETag of an object, all None for a missing one, and whether its attributes are
    those of the ledger.

    Of the digests only one is computed: SHA-256, or MD5 if that is the only digest in the ledger. With ``both``, both
    are computed if the ledger has not both.
    """
    algorithm: Algorithm = "md5" if outcome.md5 and not outcome.sha256 else "sha256"
    if both and not (outcome.md5 and outcome.sha256):
        algorithm = "sha256+md5"
    for left in (2, 1, 0):
        try:
            digest, found, attributes = await store.digest_and_attributes(
                outcome.key, max_bytes=1 << 62, algorithm=algorithm
            )
            same = await _same_attributes(store, outcome, attributes)
        except ObjectError as error:
            # a key collision means that a directory has the key, so the file cannot exist
            if error.error_class in (ErrorClass.NOT_FOUND, ErrorClass.KEY_COLLISION):
                return None, None, None, None, True
            if not left:
                raise
            await asyncio.sleep(BETWEEN_TRIES_S)
            continue
        sha256, md5 = {"md5": ("", digest), "sha256": (digest, "")}.get(algorithm, (digest[:64], digest[64:]))
        return found.size, md5 or None, sha256 or None, found.etag, same
    raise AssertionError("unreachable")


async def _same_attributes(store: Store, outcome: Outcome, attributes: dict[str, str]) -> bool:
    """Returns whether an object has the attributes that Ferry wrote, as far as the store shows them.

    Without the right to see tags, S3 does not say that an object has some. So it is asked if the rest does not match.
    """
    written = outcome.attributes_sha256
    tagged = attributes.pop(TAGS, None) is not None
    if written is None or (not tagged and attributes_digest(attributes) == written):
        return True
    tags = await store.tags(outcome.key)
    return tags is None or attributes_digest({**attributes, TAGS: tags} if tags else attributes) == written


def compare_with_listing(
    outcomes: Sequence[Outcome], listed: dict[str, ObjectInfo], run_no: int, progress: Progress
) -> Verified:
    """Compares sizes and ETags of a listing with the ledger (`--list`); no object is read.

    An ETag that equals the ledger's MD5 is right even if it has changed. A listing does not disprove what an earlier
    verification found, since the bytes may differ under the same ETag.
    """
    result = Verified(0, 0, 0, 0, [])
    for outcome in outcomes:
        found = listed.get(outcome.key)
        size, etag = (found.size, found.etag) if found else (None, None)
        expected = outcome
        if found is not None and outcome.md5 is not None and found.known_md5 == outcome.md5:
            expected = outcome._replace(dest_etag=etag)
        wrong = _record(result, outcome, verdict(expected, size, None, None, etag), run_no, etag, listed=True)
        result.unproven += wrong is None and outcome.status is Status.PENDING
        progress.add(Status.FAILED if wrong else Status.UNCHANGED, wrong, 0)
    return result


def _record(
    result: Verified, outcome: Outcome, found: Verdict, run_no: int, etag: str | None, *, listed: bool = False
) -> ErrorClass | None:
    """Counts an object, adds an outcome if it is wrong, and returns what is wrong."""
    result.checked += 1
    wrong = found.wrong
    if wrong is not ErrorClass.MISSING:
        result.by[found.by] += 1
    if wrong is None:
        return None
    if wrong is ErrorClass.MISSING:
        result.missing += 1
        text = "the destination's listing lacks this object" if listed else "the destination no longer has this object"
    else:
        result.altered += 1
        text = "the object at the destination has other bytes than the ledger says"
        if found.by is Evidence.ATTRIBUTES:
            text = "the object at the destination has other headers, metadata or tags than Ferry wrote"
        if found.by is Evidence.ETAG:
            current, recorded = short(etag or "", 80), short(outcome.dest_etag or "", 80)
            text = (
                f"the object's ETag is {current}, the ledger has {recorded}: the object was written again, with other "
                "bytes or with other settings (encryption, parts)"
            )
    now = datetime.now(UTC)
    result.wrong.append(
        outcome._replace(
            status=Status.PENDING,
            error_class=wrong,
            status_code=None,
            message=text,
            retryable=True,
            requests=1,
            started_at=now,
            recorded_at=now,
            run_no=run_no,
            chunk="",
        )
    )
    return wrong


def _record_right_again(
    result: Verified, outcome: Outcome, found: Verdict, run_no: int, etag: str | None, message: str | None
) -> None:
    """Adds an outcome for an object that an earlier verification found wrong, unless only its size was compared."""
    if found.by is Evidence.SIZE:
        result.unproven += 1
        return
    now = datetime.now(UTC)
    result.right_again.append(
        outcome._replace(
            status=Status.UNCHANGED, error_class=None, message=message, retryable=False, requests=1, started_at=now,
            recorded_at=now, run_no=run_no, chunk=CHUNK, dest_etag=etag or outcome.dest_etag,
            confirmed=Confirmed.READ_BACK if found.by is Evidence.DIGEST else outcome.confirmed,
        )
    )  # fmt: skip


def note_verified(state: State, result: Verified, run_no: int, part: int) -> None:
    """Writes the outcomes of wrong objects, which the next run repairs, and of those that are right again."""
    if outcomes := [*result.wrong, *result.right_again]:
        append_outcomes(state, outcomes, run_no, "verify", part)
