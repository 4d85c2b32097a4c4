"""What may be shown of addresses and other text that strangers wrote."""

from __future__ import annotations

import hashlib
import re

# Nearly all addresses: no user info in them, and no port that is a password.
_PLAIN = re.compile(r"https?://[^/\\@:\[\s\ufe6b\uff00-\uffef]+(?::[0-9]*)?(?:/[^@]*)?")
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?[/\\]*")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]|[/\\]{2}")
_SLASH = re.compile(r"[/\\]")
_AT = "@\ufe6b\uff20"  # as keyboards for Chinese and Japanese write it, too
_NO_PORT = re.compile(r":(?![0-9]*\Z).*", re.DOTALL)
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.%]*\](:[0-9]*)?")


def in_any_case(words: str) -> str:
    """As a regular expression without flags: a Prefect server and a browser read it too, in a job's schema."""
    return "|".join(
        "".join(f"[{c}{c.upper()}]" if c.isalpha() else re.escape(c) for c in word) for word in words.split()
    )


# Parameters that let whoever reads them in: signatures, tokens, keys (S3, GCS, Azure, CloudFront, Akamai and more). A
# value that is a field of a template, `{token}`, is none yet.
SECRET_PARAMETER = (
    r"[?&;]([A-Za-z0-9_.-]{0,64}("
    + in_any_case("signature token secret passw credential apikey api_key accesskey access_key session hmac authoriz")
    + r")[A-Za-z0-9_.-]{0,64}|"
    + in_any_case("sig pwd pass key sas jwt auth hdnea hdnts policy awsaccesskeyid")
    + "|("
    + in_any_case("x-amz- x-goog-")
    + r")[A-Za-z-]{1,64})=(?![{])"
)
_SECRET = re.compile(SECRET_PARAMETER)


def escaped(text: str) -> str:
    """Text that no terminal, log or table takes for orders: control, format and private characters as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(text: str, most: int = 60) -> str:
    """The beginning of a value, for a message: no query, no password, nothing unprintable."""
    return escaped(redact(text.partition("?")[0])[:most])


def redact(source: str) -> str:
    """An address without its secrets: scheme, host and path, and `?` with 8 hex digits for a query.

    The digits are the start of the query's SHA-256: two rows that differ only in their query stay
    apart, and nobody can sign with it. User info and fragment go entirely, also where the address is
    malformed: what stands before an `@` is no path unless a host stands before it. What is no address
    (a bare ID, or an address without its scheme) loses the same of these.
    """
    place, _, query = source.partition("#")[0].partition("?")
    if not _PLAIN.fullmatch(place):
        place = _without_user(place)
    if query:
        place += "?" + hashlib.sha256(query.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return place


def redact_id(text: str) -> str:
    """A row's own name, as it is, unless it is an address, or holds a parameter that lets in."""
    if "://" in text or _ADDRESS.match(text) or ("=" in text and _SECRET.search(text)):
        return redact(text)
    return text


def holds_secret(address: str) -> str:
    """What an address has that lets in: "a user name or password", "a signature or a token"; "" for nothing."""
    place = address.partition("#")[0].partition("?")[0]
    if _ADDRESS.match(place) and redact(place) != place:
        return "a user name or password"
    return "a signature or a token" if _SECRET.search(address) else ""


def _without_user(place: str) -> str:
    """An address in any disorder, or none. What has neither a scheme nor a colon is a bare ID or a file's name."""
    found = _SCHEME.match(place)
    assert found is not None
    scheme, rest = found.group(), place[found.end() :]
    if scheme.lower().startswith("file:///") or (not scheme and ":" not in rest):
        return place
    slash = _SLASH.search(rest)
    host, path = (rest[: slash.start()], rest[slash.start() :]) if slash else (rest, "")
    last = max(map(host.rfind, _AT))
    if last >= 0:
        host = host[last + 1 :]
    else:
        # User info may hold slashes: then what looks like the host ends in no port, or has no `//` before it.
        last = max(map(path.rfind, _AT))
        if last >= 0 and (not _SLASH.search(scheme) or _NO_PORT.search(host)):
            return scheme + path[last + 1 :]
    if host.startswith("["):
        host = host if _IPV6.fullmatch(host) else "[…]"
    else:
        host = _NO_PORT.sub(":…", host)
    return scheme + host + path
