"""What a row's source may be: an http(s) address, or an object under one of the job's roots."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from ferry.job import default_key

# Nearly all addresses: printable ASCII, a plain host, no port, no user info, no fragment. Group 1 is the path.
PLAIN_URL = re.compile(
    r"https?://[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"/([!-\"$->@-~]*)(?:\?[!-\"$-~]*)?"
)
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_BAD_HOST = re.compile(r"[^A-Za-z0-9._\-\u0080-\U0010ffff]")
_MAX_HOST = 253


def normal_roots(roots: Sequence[str]) -> list[str]:
    """Each root with its final `/`; the longest first, so that the nearest one names a row's key."""
    return sorted((root.rstrip("/") + "/" for root in roots), key=lambda root: (-len(root), root))


def trim(source: str) -> str:
    """An address without blanks around it. In `s3://` and `file://` sources a final space belongs to the key."""
    if source.lstrip()[:5].lower().startswith(("s3://", "file:")):
        return source.lstrip().rstrip("\t\r\n")
    return source.strip()


def address(source: str, roots: Sequence[str]) -> tuple[str | None, str | None]:
    """``(default key, None)``, or ``(None, why not)`` as a sentence. ``roots`` come from normal_roots()."""
    scheme, mark, rest = source.partition("://")
    if not mark:
        return None, "the source is no URL; write https://..., or set `source.url` if it is an ID"
    kind = scheme.lower()
    if kind in ("s3", "file"):
        return _under_root(source, kind, roots)
    if kind not in ("http", "https"):
        known = "http and https" if re.fullmatch(r"[a-z][a-z0-9+.-]{0,20}", kind) else "http and https URLs"
        what = f"`{kind}` addresses are" if known == "http and https" else "this is"
        return None, f"{what} not fetched, only {known}"
    if found := _UNPRINTABLE.search(source):
        char = found.group()
        if char in "\r\n":
            return None, "the URL holds a line break; is a quote missing in the list?"
        if char == " ":
            return None, "the URL holds a space; write %20"
        return None, f"the URL holds a control character (0x{ord(char):02x})"
    if _SURROGATE.search(source):
        return None, "the URL holds half of a surrogate pair, which is no text"
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in netloc:
        return None, "the URL holds a user name or password; use `source.headers` with a reference"
    try:
        parts = urlsplit(source)
    except ValueError:
        return None, "the URL's host cannot be read"
    if why := _host_problem(netloc, parts.hostname or ""):
        return None, why
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or netloc.endswith(":"):
        return None, "the URL's port is not a number from 1 to 65535"
    return default_key(source), None


def _host_problem(netloc: str, host: str) -> str | None:
    if not host:
        return "the URL has no host"
    if netloc.startswith("["):
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            return "the URL's host is no IPv6 address"
        return None
    if _BAD_HOST.search(host) or ".." in host or host.startswith(".") or len(host) > _MAX_HOST:
        return "the URL's host cannot be read"
    return None


def _under_root(source: str, kind: str, roots: Sequence[str]) -> tuple[str | None, str | None]:
    for root in roots:
        if source.startswith(root):
            key = source[len(root) :]
            if not key:
                return None, "the source is a root itself, and names no object"
            if not key.isascii() and _SURROGATE.search(key):
                return None, "the source holds half of a surrogate pair, which is no text"
            if key.endswith("/"):  # a store's client would ask for the object without it
                return None, "the source ends in `/`, so it names no object"
            if kind == "file" and any(part in (".", "..") for part in key.split("/")):
                return None, "the source holds `.` or `..`, which could leave its root"
            return key.lstrip("/"), None
    if not roots:
        return None, f"`{kind}` sources are read only under a root: set `source.roots`"
    return None, f"the source lies under none of the roots ({', '.join(f'`{root}`' for root in sorted(roots))})"
