"""Errors of a store that only a setting of the job, or of the bucket, can change."""

from __future__ import annotations

import re
from typing import Literal

from tasks.engine.errors import Fatal, ObjectError, Refused
from tasks.engine.objects import ErrorClass

_ADDRESS = re.compile(r"(https?)://([A-Za-z0-9.-]+(?::[0-9]+)?)(?:/|\Z)")
_REGION = re.compile(r"[a-z0-9-]{1,40}")


def no_condition() -> Fatal:
    """The error of a store that answers 501 to a PUT that must not replace anything."""
    return Fatal(
        "the destination does not know the condition If-None-Match of a PUT (HTTP 501), which `on_existing: skip` and "
        "`on_existing: fail` need. Set `on_existing: skip-same` or `on_existing: overwrite`, and run the job again"
    )


def redirected(status: int, location: str | None, region: str | None, bucket: str, side: str) -> Fatal:
    """The error of a store that answers that its bucket is elsewhere (S3 API: PermanentRedirect, TemporaryRedirect).

    Ferry does not follow: a request signed for a host that only the answer names would hand it a valid signature. It
    says what to set instead, once for the run.
    """
    advice = "Correct `endpoint_url` and `region`"
    if found := _ADDRESS.match(location or ""):
        named = f"{found[1]}://{found[2].removeprefix(f'{bucket}.')}"
        advice = f"It names {named}: set `endpoint_url` to that, if you trust it"
    if region and _REGION.fullmatch(region):
        advice = f"Set `region: {region}`, and the `endpoint_url` of that region if you set one"
    return Fatal(f"the {side} answered HTTP {status}: the bucket {bucket} is at another endpoint. {advice}")


def key_refused(refused: Refused, kind: Literal["head", "read", "write"]) -> ObjectError:
    """The destination takes other keys: it is this one that it does not let us write, or read."""
    verb, hint = "have this key written", "is the object locked there, or the key left out by the bucket's policy?"
    if kind != "write":
        verb = "show this key"
        hint = (
            "is it encrypted with a key of another account? Without the right to list the bucket, S3 answers so of "
            "what is not there, too"
        )
    said = f"the destination refuses to {verb} ({refused.said}), and takes others: {hint}"
    return ObjectError(ErrorClass.FORBIDDEN, said, status_code=403)
