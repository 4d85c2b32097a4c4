"""What single values of a job must look like; each rule raises ValueError with what to write instead."""

from __future__ import annotations

import re

OPEN_HEADERS = frozenset({"accept", "accept-language", "referer", "user-agent"})
_SIGNATURE = re.compile(r"[?&]((x-amz|x-goog)-(signature|credential)|signature|sig|awsaccesskeyid)=", re.IGNORECASE)
_SENDABLE = re.compile(r"[\x20-\x7e]*\Z")  # in a header: what every server and store gives back as it was sent
METADATA_NAME = re.compile(r"[A-Za-z0-9._-]+\Z")
SECRET_REF = re.compile(r"(secret|env):\S+\Z")


def endpoint(value: str | None, key: str) -> str | None:
    """An S3 endpoint: http or https, a host, no secret."""
    if value is None:
        return None
    if not re.match(r"https?://[^/\s]+/?\Z", value):
        raise ValueError(f"{key} is not an address such as `https://s3.example` or `http://127.0.0.1:9000`")
    return no_secret_in_address(value, key)


def no_secret_in_address(text: str, key: str) -> str:
    host = text.partition("://")[2].partition("/")[0]
    if "@" in host:
        raise ValueError(
            f"{key} holds a user name or password; use `headers` or `credentials` with a reference instead"
        )
    if _SIGNATURE.search(text):
        raise ValueError(
            f"{key} holds a signature; a job carries no secrets. Use `credentials`, or download the file first"
        )
    return text


def sendable(value: str | None, key: str) -> str | None:
    if value is not None and not _SENDABLE.match(value):
        raise ValueError(
            f"{key} holds characters that a header cannot carry; plain ASCII without line breaks can be sent"
        )
    return value


def credentials_reference(value: str | None) -> str | None:
    if value is None or value == "anonymous" or re.match(r"(profile|block):\S+\Z", value):
        return value
    raise ValueError(
        "credentials are a reference: `profile:NAME`, `block:NAME` or `anonymous`; "
        "leave the key out for boto3's own chain"
    )


def parse_budget(value: int | float | str) -> tuple[float | None, int | None]:
    """``(share, None)`` or ``(None, count)``. Raises ValueError with what to write instead."""
    text = str(value).strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
        elif re.fullmatch(r"\d+", text):
            return None, int(text)
        else:
            share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"failure_budget `{value}` is neither a share (`1%`, `0.01`) nor a count of rows (`25`)")
    return share, None
