"""What single values of a job must look like; each rule raises ValueError with what to write instead."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator

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


_STOP = "to stop a job for a while, do not run it"
_LIMITS = {  # least, most, what else to write
    "concurrency": (1, 4096, "write a whole number from 1 to 4096, or leave it out"),
    "requests_per_s": (0.001, 1e6, "write a number from 0.001 to 1000000, or leave it out"),
    "bytes_per_s": (1000, 10**12, "write bytes from 1000 on, or `10MB`, `10MiB`, `1GB`; or leave it out"),
}
_UNITS = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_BYTES = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)(?:/s)?\s*\Z")
_HOST_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?(:[0-9]{1,5})?\Z|\[[0-9a-f:.]+\](:[0-9]{1,5})?\Z")


def limit(value: Any, key: str) -> Any:
    """A bound of `limits:`; ``key`` is its name. None: there is none."""
    least, most, instead = _LIMITS[key]
    if value is None:
        return None
    if key == "bytes_per_s" and isinstance(value, str):
        value = _bytes(value, instead)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is no number; {instead}")
    if not math.isfinite(value):
        raise ValueError(f"{key} is no finite number; {instead}")
    if value <= 0:
        raise ValueError(f"{key} of {value} would let nothing through: {_STOP}; else {instead}")
    if value < least:
        raise ValueError(f"{key} of {value:g} is too little for any work: {_STOP}; else {instead}")
    if value > most:
        raise ValueError(f"{key} of {value:g} is more than any host serves, so it bounds nothing; {instead}")
    if key == "requests_per_s":
        return float(value)
    if value != int(value):
        raise ValueError(f"{key} is no whole number; {instead}")
    return int(value)


def _bytes(text: str, instead: str) -> float:
    found = _BYTES.match(text)
    if found is None or found[2] not in _UNITS:
        hint = "bits are not meant here; " if found and found[2].lower().endswith(("b", "bit")) else ""
        raise ValueError(f"bytes_per_s is neither a number nor a number with a unit; {hint}{instead}")
    return round(float(found[1]) * _UNITS[found[2]])


Places = Annotated[int | None, BeforeValidator(partial(limit, key="concurrency"))]
PerSecond = Annotated[float | None, BeforeValidator(partial(limit, key="requests_per_s"))]
BytesPerSecond = Annotated[int | str | None, BeforeValidator(partial(limit, key="bytes_per_s"))]


def host_pattern(name: str) -> str:
    """A key of `limits.hosts`, in lower case."""
    lower = name.strip().lower()
    if not _HOST_NAME.match(lower):
        raise ValueError(
            f"`{name}` in limits.hosts is no host; write `img.example.com`, `img.example.com:8080`, `*.example.com` "
            "or a bucket's name, without `https://` and without a path"
        )
    return lower


def patterns_for(host: str) -> list[str]:
    """The keys of `limits.hosts` that mean a host, the most exact one first.

    | host | keys |
    |---|---|
    | a.b.com:80 | a.b.com:80, a.b.com, *.b.com:80, *.b.com, *.com:80, *.com |
    | a.b.com | a.b.com, *.b.com, *.com |
    | a bucket | its name |
    """
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name, port = host, ""
    wanted = [name]
    if not name.startswith("["):
        parts = name.split(".")
        wanted += ["*." + ".".join(parts[n:]) for n in range(1, len(parts))]
    return [key for pattern in wanted for key in ([f"{pattern}:{port}", pattern] if port else [pattern])]
