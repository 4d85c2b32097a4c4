"""Is the destination there, and may we write to it? Asked before anything is downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ferry.core import Fatal, ObjectError, UserError
from ferry.storage.credentials import Access
from ferry.storage.errors import s3_code
from ferry.storage.s3_control import BucketControl

TIMEOUT_S = 30.0


def run_preflight(uri: str, access: Access, *, dry: bool = False) -> None:
    """Raises UserError when the destination is missing or does not let us write.

    A bucket is asked with HeadBucket, and for the right to write by starting a multipart upload and
    aborting it: that leaves no object behind, whatever happens. With ``dry`` nothing is begun or made.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file":
        _check_directory(Path(unquote(parts.path)), dry=dry)
    else:
        _check_bucket(parts.netloc, parts.path.strip("/"), access, dry=dry)


def _check_directory(directory: Path, *, dry: bool) -> None:
    try:
        if not dry:
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UserError(f"destination: cannot make the directory {directory}: {exc.strerror}") from None
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"destination: {there} is no directory")
    if not os.access(there, os.W_OK):
        raise UserError(f"destination: no right to write to {there}")


def _check_bucket(bucket: str, prefix: str, access: Access, *, dry: bool) -> None:
    where = f"destination bucket `{bucket}`" + (f" at {access.endpoint_url}" if access.endpoint_url else "")
    try:
        refusal = _ask_bucket(bucket, prefix, access, dry=dry)
    except Fatal as exc:  # a redirect
        raise UserError(str(exc)) from None
    except ObjectError as exc:
        raise UserError(f"{where} cannot be reached ({exc.message}). Check `endpoint_url` and the network") from None
    if refusal is not None:
        raise UserError(f"{where} {refusal}")


def _ask_bucket(bucket: str, prefix: str, access: Access, *, dry: bool) -> str | None:
    """What the bucket says against us, as the end of a sentence (S3 API: HeadBucket, CreateMultipartUpload).

    | answer | to HEAD of the bucket | to the start of an upload |
    |---|---|---|
    | 404 | does not exist | does not exist |
    | 401, 403 | refuses access | refuses writing |
    | 400 | another region? | answered ... |
    | other 4xx, 501, 505, 507 | answered ... | answered ... |

    Raises Fatal for a redirect, and ObjectError where five tries brought no answer, or another 5xx.
    """
    control = BucketControl(bucket, access, read_s=TIMEOUT_S)
    reply = control.head_bucket()
    if reply.status >= 300:
        return _refusal(reply.status, reply.body, "access")
    if dry:
        return None
    reply = control.may_write(prefix)
    return _refusal(reply.status, reply.body, "writing") if reply.status >= 300 else None


def _refusal(status: int, body: bytes, what: str) -> str:
    code = s3_code(body)
    said = f"HTTP {status}" + (f" {code}" if code else "")
    if status == 404:
        return "does not exist. Create it, or correct `destination`"
    if status in (401, 403):
        return f"refuses {what} with these credentials ({said}). Check `credentials` and the bucket's policy"
    if what == "access" and status == 400:
        return f"answered {said}: is `region` right, and the name?"
    return f"answered {said} when asked for {what}"
