"""Rules for a row's source: an http(s) URL, or an object under one of the job's roots."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from ferry.core import BUCKET_SCHEMES
from ferry.job import default_key

# Matches nearly all URLs: printable ASCII, a plain host, no port, no user info, no fragment. Group 1 is the path.
PLAIN_URL = re.compile(
    r"https?://[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"/([!-\"$->@-~]*)(?:\?[!-\"$-~]*)?"
)
# An address without its scheme: a host with a dot and a path. A file name such as `a.b.jpg` has no `/` after its dots.
_BARE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}(?::[0-9]{1,5})?/\S.*")
_ANOTHER = re.compile(r"\s[A-Za-z]{2,5}://|[,;|][A-Za-z]{2,5}://")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SIGNED = re.compile(r"(?i)[?&](?:sig|x-amz-signature|x-goog-signature)=")  # of a SAS, of a presigned URL
SIGNED = (
    "the address of an object in a bucket ends in a query with a signature; remove the query and set "
    "`source.credentials`, or write the https URL that has this signature"
)
_BAD_HOST = re.compile(r"[^A-Za-z0-9._\-\u0080-\U0010ffff]")
_MAX_HOST = 253
_WITH_ROOTS = {"file", *(scheme.removesuffix("://") for scheme in BUCKET_SCHEMES)}


def normal_roots(roots: Sequence[str]) -> list[str]:
    """Returns the roots with a final `/`. The longest is first, because the nearest root gives a row's key."""
    return sorted((root.rstrip("/") + "/" for root in roots), key=lambda root: (-len(root), root))


def trim(source: str) -> str:
    """Returns a source without white space around it. In a bucket and in `file://` a final space is part of the key."""
    if source.lstrip()[:5].lower().startswith((*BUCKET_SCHEMES, "file:")):
        return source.lstrip().rstrip("\t\r\n")
    return source.strip()


def is_bare_address(text: str) -> bool:
    """Returns whether a text is an address without a scheme.

    | text | |
    |---|---|
    | `cdn.old.example/shoes/1.jpg`, `old.example:8443/1.jpg` | yes |
    | `//cdn.old.example/1.jpg`, `https://cdn.old.example/1.jpg` | no: it has no host before its first `/` |
    | `shoes/1.jpg`, `1.jpg`, `cdn.old.example` | no |
    """
    return _BARE.fullmatch(text.strip()) is not None


def is_address(text: str) -> bool:
    """Returns whether a text is an address with its scheme, or without it (`//cdn.old.example/1.jpg` as well)."""
    return "://" in text or is_bare_address(text.strip().removeprefix("//"))


def repaired(source: str, *, bare: bool) -> str:
    """Returns a web address with the scheme and the percent-encoded blanks that the manifest lacks.

    | source | ``bare`` | result |
    |---|---|---|
    | `//cdn.old.example/1.jpg` | | `https://cdn.old.example/1.jpg` (RFC 3986, section 4.2: on a page served by https) |
    | `cdn.old.example/1.jpg` | yes | `https://cdn.old.example/1.jpg` |
    | `https://a.example/my photo.jpg` | | `https://a.example/my%20photo.jpg` |
    | `https://a.example/1.jpg, https://a.example/2.jpg` | | as it is: several addresses |
    | any other | | as it is |
    """
    if source.startswith("//") and is_bare_address(source[2:]):
        source = f"https:{source}"
    elif bare and is_bare_address(source):
        source = f"https://{source}"
    if " " in source and source[:8].lower().startswith(("http://", "https://")) and not _ANOTHER.search(source):
        source = source.replace(" ", "%20")
    return source


def key_or_problem(source: str, roots: Sequence[str], *, as_listed: bool = False) -> tuple[str | None, str | None]:
    """Returns the source's default key and None, or None and the problem as a sentence.

    ``roots`` are the result of :func:`normal_roots`. ``as_listed``: a listing has shown that the object has this name.
    """
    scheme, mark, rest = source.partition("://")
    if not mark:
        return None, "the source is not a URL; write https://..., or set `source.url` if it is an ID"
    kind = scheme.lower()
    if kind in _WITH_ROOTS and kind != "file" and not as_listed and _SIGNED.search(rest):
        return None, SIGNED  # its key, which logs and reports show, would hold the signature
    if kind in _WITH_ROOTS:
        return _under_root(source, kind, roots)
    if kind not in ("http", "https"):
        what = f"has the scheme `{kind}`" if re.fullmatch(r"[a-z][a-z0-9+.-]{0,20}", kind) else "is not a URL"
        return None, f"the source {what}; Ferry downloads only http and https URLs"
    if found := _UNPRINTABLE.search(source):
        char = found.group()
        if char in "\r\n":
            return None, "the URL contains a line break; check the manifest for a missing quote"
        if char == " ":
            return (
                None,
                "the cell contains several URLs; set `columns: {split: ...}` to what separates them, or keep one",
            )
        return None, f"the URL contains a control character (0x{ord(char):02x})"
    if _SURROGATE.search(source):
        return None, "the URL contains an unpaired surrogate, which is not valid text"
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in netloc:
        return None, "the URL contains a user name or password; use `source.headers` with a reference"
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
            return "the URL's host is not an IPv6 address"
        return None
    if _BAD_HOST.search(host) or ".." in host or host.startswith(".") or len(host) > _MAX_HOST:
        return "the URL's host cannot be read"
    return None


def _under_root(source: str, kind: str, roots: Sequence[str]) -> tuple[str | None, str | None]:
    for root in roots:
        if source.startswith(root):
            key = source[len(root) :]
            if not key:
                return None, "the source is a root itself, not an object"
            if not key.isascii() and _SURROGATE.search(key):
                return None, "the source contains an unpaired surrogate, which is not valid text"
            if kind == "file" and key.endswith("/"):
                return None, "the source ends in `/`, so it is not a file"
            if kind == "file" and any(part in (".", "..") for part in key.split("/")):
                return None, "the source contains `.` or `..`, which could leave its root"
            return key.lstrip("/"), None
    if not roots:
        return None, f"`{kind}` sources are read only under a root: set `source.roots`"
    return None, f"the source is under none of the roots ({', '.join(f'`{root}`' for root in sorted(roots))})"
