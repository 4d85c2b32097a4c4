"""Redaction of secrets in URLs, and escaping of text from untrusted sources."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

# Nearly all URLs: without user info, and without a password in place of the port.
_PLAIN = re.compile(r"https?://[^/\\@:\[\s\ufe6b\uff00-\uffef]+(?::[0-9]*)?(?:/[^@]*)?")
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?[/\\]*")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]|[/\\]{2}")
_SLASH = re.compile(r"[/\\]")
_AT = "@\ufe6b\uff20"  # also the small and full-width forms, which Chinese and Japanese keyboards produce
_NO_PORT = re.compile(r":(?![0-9]*\Z).*", re.DOTALL)
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.%]*\](:[0-9]*)?")


def in_any_case(words: str) -> str:
    """Return a case-insensitive regular expression for these words, without flags, which JSON schemas lack."""
    return "|".join(
        "".join(f"[{c}{c.upper()}]" if c.isalpha() else re.escape(c) for c in word) for word in words.split()
    )


# Query parameters that are credentials: signatures, tokens, keys (S3, GCS, Azure, CloudFront, Akamai and more). The
# field of a template, as in `token={token}`, is not a secret.
SECRET_PARAMETER = (
    r"[?&;]([A-Za-z0-9_.-]{0,64}("
    + in_any_case(
        "signature token secret passw credential apikey api_key accesskey access_key accountkey session hmac authoriz"
    )
    + r")[A-Za-z0-9_.-]{0,64}|"
    + in_any_case("sig pwd pass key sas jwt auth hdnea hdnts policy awsaccesskeyid")
    + "|("
    + in_any_case("x-amz- x-goog-")
    + r")[A-Za-z-]{1,64})=(?![{])"
)
_SECRET = re.compile(SECRET_PARAMETER)
_PRINTABLE_ASCII = bytes(range(0x20, 0x7F))


def is_printable_ascii(text: str) -> bool:
    """Return whether there are only the characters from space to `~`, in less than half the time of `isprintable`."""
    return text.isascii() and not text.encode().translate(None, _PRINTABLE_ASCII)


def escaped(text: str) -> str:
    """Return the text with control, format and private-use characters as escapes, safe for terminals and logs."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(text: str, most: int = 60) -> str:
    """Return the beginning of a value for a message: without query and password, unprintable characters escaped."""
    return escaped(redact(text.partition("?")[0])[:most])


def redact(source: str) -> str:
    """Return a URL without its secrets: scheme, host and path, and `?` with 8 hex digits in place of a query.

    The digits are the start of the query's SHA-256. They tell apart rows that differ only in their query, and reveal no
    signature. User info and fragment are removed, also from malformed URLs: text before an `@` counts as a path only
    after a host. A bare ID, or a URL without its scheme, is treated the same way.
    """
    base, _, query = source.partition("#")[0].partition("?")
    if not _PLAIN.fullmatch(base):
        base = _without_user(base)
    if query:
        base += "?" + hashlib.sha256(query.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return base


def redact_id(text: str) -> str:
    """Return a row's ID unchanged, or redacted if it is a URL or contains a credential parameter."""
    if "://" in text or _ADDRESS.match(text) or ("=" in text and _SECRET.search(text)):
        return redact(text)
    return text


def redact_ids(texts: Sequence[str | None]) -> list[str | None]:
    """Return many IDs as :func:`redact_id` does; if none has a sign of an address or a parameter, as they are."""
    joined = "\n".join(filter(None, texts))
    if not any(mark in joined for mark in (":", "//", "\\", "=")):
        return list(texts)
    return [text and redact_id(text) for text in texts]


def holds_secret(address: str) -> str:
    """Return which secret a URL contains: "a user name or password", "a signature or a token", or "" for none."""
    base = address.partition("#")[0].partition("?")[0]
    if _ADDRESS.match(base) and redact(base) != base:
        return "a user name or password"
    return "a signature or a token" if _SECRET.search(address) else ""


def _without_user(text: str) -> str:
    """Return a URL, malformed or not, without user info. Text without scheme and colon is an ID or a file name."""
    found = _SCHEME.match(text)
    assert found is not None
    scheme, rest = found.group(), text[found.end() :]
    if scheme.lower().startswith("file:///") or (not scheme and ":" not in rest):
        return text
    slash = _SLASH.search(rest)
    host, path = (rest[: slash.start()], rest[slash.start() :]) if slash else (rest, "")
    last = max(map(host.rfind, _AT))
    if last >= 0:
        host = host[last + 1 :]
    else:
        # User info may contain slashes. Then the part that looks like a host has an invalid port, or no `//` before it.
        last = max(map(path.rfind, _AT))
        if last >= 0 and (not _SLASH.search(scheme) or _NO_PORT.search(host)):
            return scheme + path[last + 1 :]
    if host.startswith("["):
        host = host if _IPV6.fullmatch(host) else "[…]"
    else:
        host = _NO_PORT.sub(":…", host)
    return scheme + host + path
