"""The check of a body before it is stored: the job's level, and the manifest's size and digests."""

from __future__ import annotations

from ferry.core import ErrorClass, ObjectError, Row
from ferry.images import Kind, check_image, decode_image, lesser_check, level_of, sniff
from ferry.job import Checks
from ferry.transfer.source import Fetch


def check_body(row: Row, fetch: Fetch, checks: Checks) -> Kind | None:
    """Applies the checks, and returns the image type, if known. It may block, for as long as decoding takes.

    Each level includes those before it. A body with a Content-Encoding of its bucket is stored as it is, so its bytes
    are not checked as an image. Raises ObjectError: ``truncated``, ``digest_mismatch``, ``not_image``, ``too_large``.
    """
    body = fetch.body
    if checks is not Checks.NONE and row.size is not None and row.size != body.size:
        raise ObjectError(
            ErrorClass.TRUNCATED if body.size < row.size else ErrorClass.DIGEST_MISMATCH,
            f"the source sent {body.size:,} bytes, and the manifest has {row.size:,}",
        )
    is_checked = checks in (Checks.IMAGE, Checks.DECODE) and "Content-Encoding" not in fetch.attributes
    with body.buffer() as data:
        kind = check_image(data) if is_checked else sniff(data)
    for name, expected, actual in (("md5", row.md5, body.md5), ("sha256", row.sha256, body.sha256)):
        if expected is not None and expected != actual:
            raise ObjectError(
                ErrorClass.DIGEST_MISMATCH, f"the bytes have the {name} {actual}, and the manifest has {expected}"
            )
    length_known = fetch.length_known or row.size is not None or row.md5 or row.sha256
    if is_checked and kind is not None and not length_known:
        _refuse_unknown_length(kind, decode=checks is Checks.DECODE)
    if checks is Checks.DECODE and kind is not None:
        with body.buffer() as data:
            decode_image(data, kind)
    return kind


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
