"""The check of a body before it is stored: the job's level, and the manifest's size and digests."""

from __future__ import annotations

from functools import partial

from ferry.core import Body, ErrorClass, ObjectError, Row, StreamedBody
from ferry.images import Kind, check_image, decode_image, lesser_check, level_of, sniff
from ferry.job import Checks
from ferry.transfer.source import Fetch


def check_body(row: Row, fetch: Fetch, checks: Checks) -> Kind | None:
    """Applies the checks, and returns the image type, if known. It may block, for as long as decoding takes.

    Each level includes those before it. A body with a Content-Encoding of its bucket is stored as it is, so its bytes
    are not checked as an image. Raises ObjectError: ``truncated``, ``digest_mismatch``, ``not_image``, ``too_large``.
    """
    body = fetch.body
    _check_size(row, body, checks)
    is_checked = _is_checked(fetch, checks)
    with body.buffer() as data:
        kind = check_image(data) if is_checked else sniff(data)
    _check_digests(row, body)
    length_known = fetch.length_known or row.size is not None or row.md5 or row.sha256
    if is_checked and kind is not None and not length_known:
        _refuse_unknown_length(kind, decode=checks is Checks.DECODE)
    if checks is Checks.DECODE and kind is not None:
        with body.buffer() as data:
            decode_image(data, kind)
    return kind


def check_start(row: Row, fetch: Fetch, body: StreamedBody, checks: Checks) -> Kind | None:
    """Applies the checks to a body of which the first part is there, and returns the image type, if known.

    Its digests are compared before its last part is sent. Raises ObjectError as :func:`check_body` does; ``too_large``
    also for a type whose check needs the whole file.
    """
    _check_size(row, body, checks)
    with body.first.buffer() as data:
        kind = sniff(data)
        if _is_checked(fetch, checks):
            if kind is None:
                check_image(data)  # says what it is instead
            elif (level := level_of(kind, decode=checks is Checks.DECODE)) != "length":
                raise ObjectError(
                    ErrorClass.TOO_LARGE,
                    f"`checks: {level}` needs all of a {kind.name} at once, and the spool cannot hold {body.size:,} "
                    "bytes: raise `spool_bytes`, free disk space, or set `checks: length`; then run with "
                    "--retry-failed=too_large",
                )
    body.check = partial(_check_digests, row, body)
    return kind


def _is_checked(fetch: Fetch, checks: Checks) -> bool:
    return checks in (Checks.IMAGE, Checks.DECODE) and "Content-Encoding" not in fetch.attributes


def _check_size(row: Row, body: Body, checks: Checks) -> None:
    if checks is not Checks.NONE and row.size is not None and row.size != body.size:
        raise ObjectError(
            ErrorClass.TRUNCATED if body.size < row.size else ErrorClass.DIGEST_MISMATCH,
            f"the source sent {body.size:,} bytes, and the manifest has {row.size:,}",
        )


def _check_digests(row: Row, body: Body) -> None:
    for name, expected, actual in (("md5", row.md5, body.md5), ("sha256", row.sha256, body.sha256)):
        if expected is not None and expected != actual:
            raise ObjectError(
                ErrorClass.DIGEST_MISMATCH, f"the bytes have the {name} {actual}, and the manifest has {expected}"
            )


def lesser_check_of(kind: Kind | None, checks: Checks) -> str | None:
    """Returns which check a body of this type got, if that is less than the job asks for."""
    if kind is None or checks not in (Checks.IMAGE, Checks.DECODE):
        return None
    return lesser_check(kind, decode=checks is Checks.DECODE)


def _refuse_unknown_length(kind: Kind, *, decode: bool) -> None:
    """Raises ObjectError for a type of which neither the structure nor the length shows that the body is cut."""
    if level_of(kind, decode=decode) == "length":
        raise ObjectError(
            ErrorClass.TRUNCATED,
            "the origin gave no length of the body (no Content-Length, not chunked), and Ferry does not check the "
            f"structure of a {kind.name}: it may be cut. Add its size or a digest to the manifest",
        )
