"""Preflight check of the destination, before anything is downloaded: it exists, and Ferry may write to it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ferry.core import Fatal, ObjectError, UserError
from ferry.storage import s3_xml
from ferry.storage.credentials import Access
from ferry.storage.errors import s3_code
from ferry.storage.s3_control import BucketControl

TIMEOUT_S = 30.0


def run_preflight(uri: str, access: Access, *, dry: bool = False) -> None:
    """Checks the destination. Raises UserError if it does not exist or refuses writing.

    A bucket is checked by HeadBucket, then by creating and aborting a multipart upload, which never leaves an object.
    With ``dry`` the check creates neither an upload nor a directory.
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
        raise UserError(f"destination: cannot create the directory {directory}: {exc.strerror}") from None
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"destination: {there} is not a directory")
    if not os.access(there, os.W_OK):
        raise UserError(f"destination: this user may not write to {there}. Change its permissions")


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
    """Returns why the bucket cannot be used, as the end of a sentence, or None if it can.

    | status | of HeadBucket | of CreateMultipartUpload |
    |---|---|---|
    | 404 | does not exist | does not exist |
    | 401, 403 | refuses access | refuses writing |
    | 400 | answered ...: check the region | answered ... |
    | other 4xx, 501, 505, 507 | answered ... | answered ... |

    Raises Fatal for a redirect. Raises ObjectError if five attempts bring no response, or only other 5xx statuses.
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
    answer = f"HTTP {status}" + (f" {code}" if code else "")
    if status == 404:
        return "does not exist. Create it, or correct `destination`"
    if status in (401, 403):
        return f"refuses {what} with these credentials ({answer}). Check `credentials` and the bucket's policy"
    if what == "access" and status == 400:
        return f"answered {answer}. Check `region` and the bucket's name"
    return f"answered {answer} to the check of {what}. Check `destination` and the bucket's settings"


def bucket_setting(control: BucketControl, name: str, document: str, element: str, absent: str = "") -> str | None:
    """Returns an element's text of a setting of the bucket, such as `versioning`; "" if the setting is absent.

    ``document`` is the name of the response's root element, ``absent`` the error code of a bucket without the setting.
    Returns None if the store does not say: many know few of the settings and answer with something else, or allow these
    questions to the bucket's owner alone.
    """
    try:
        reply = control.ask("GET", query={name: ""}, ok=range(200, 600))
        if reply.status != 200:
            return "" if absent and s3_code(reply.body) == absent else None
        root = s3_xml.parse_document(reply.body, "destination")
    except (ObjectError, Fatal):
        return None
    elements = [(each.tag.rpartition("}")[2], each.text or "") for each in root.iter()]
    return next((text for tag, text in elements if tag == element), "") if elements[0][0] == document else None
