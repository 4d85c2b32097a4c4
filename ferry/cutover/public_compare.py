"""The decision whether a visitor gets what the ledger says: status, bytes, Content-Type and Cache-Control."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from ferry.core import ErrorClass, ObjectError, redact
from ferry.images import describe, kind_of_type, sniff
from ferry.state import PLAIN_WORDS

FORBIDS_CACHING = frozenset({"no-store", "no-cache", "private"})  # RFC 9111, section 5.2.2
_DIRECTIVE = re.compile(r'([^\s,="]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^\s,]*))?')
_OWN_STATUS = {
    ErrorClass.NOT_FOUND: "not there",
    ErrorClass.GONE: "not there",
    ErrorClass.FORBIDDEN: "forbidden",
}


class What(StrEnum):
    """What is wrong with the answer to a visitor."""

    NO_ADDRESS = "no address"
    NOT_THERE = "not there"
    FORBIDDEN = "forbidden"
    OTHER_STATUS = "other status"
    OTHER_BYTES = "other bytes"
    OTHER_TYPE = "other type"
    OTHER_CACHING = "other caching"
    NOT_ANSWERED = "not answered"


class Expected(NamedTuple):
    """An object by the ledger, and the Cache-Control that the job sets; None: not known, and not compared."""

    size: int | None
    md5: str | None
    sha256: str | None
    content_type: str | None
    cache_control: str | None


class Answer(NamedTuple):
    """What a visitor gets, after redirects and with its Content-Encoding undone."""

    status: int
    size: int
    digest: str  # SHA-256, or MD5 if the ledger has only that
    content_type: str | None
    cache_control: str | None
    head: bytes  # the first bytes of the body
    redirected_to: str | None = None


class Difference(NamedTuple):
    """One thing in which an answer differs. Answers that differ alike have the same ``what`` and ``how``."""

    what: What
    how: str
    expected: str
    found: str


def differences(expected: Expected, answer: Answer) -> list[Difference]:
    """Returns all in which an answer differs from the ledger.

    | status | size, digest | media type | Cache-Control | differences |
    |---|---|---|---|---|
    | other than 200 | any | any | any | other status |
    | 200 | the ledger's | the ledger's | as set, or more | none |
    | 200 | the ledger's, which has no digest | the ledger's | as set, or more | none: compared by size |
    | 200 | another | the ledger's, or that of these bytes | as set, or more | other bytes |
    | 200 | another | another one | as set, or more | other bytes, other type |
    | 200 | the ledger's | another one | as set, or more | other type |
    | 200 | any | any | lacks a directive, has it otherwise, or forbids what is set | also other caching |

    Parameters of a media type (`charset`) are not compared.
    """
    after = f", after a redirect to {redact(answer.redirected_to)}" if answer.redirected_to else ""
    if answer.status != 200:
        return [Difference(What.OTHER_STATUS, str(answer.status), "200", f"{answer.status}{after}")]
    found = []
    digest = expected.sha256 or expected.md5
    same = expected.size in (None, answer.size) and digest in (None, answer.digest)
    if not same:
        here, there = _bytes_words(expected.size, digest), _bytes_words(answer.size, answer.digest)
        found.append(Difference(What.OTHER_BYTES, how_bytes_differ(expected, answer), here, there + after))
    wanted, type_ = essence(expected.content_type), essence(answer.content_type)
    kind = None if same else sniff(answer.head)
    if wanted and type_ != wanted and not (kind and type_ == kind.mime):
        found.append(
            Difference(
                What.OTHER_TYPE, f"{type_ or 'no Content-Type'} for {wanted}", expected.content_type or "",
                (answer.content_type or "") + after,
            )
        )  # fmt: skip
    if expected.cache_control and (how := how_caching_differs(expected.cache_control, answer.cache_control)):
        found.append(Difference(What.OTHER_CACHING, how, expected.cache_control, (answer.cache_control or "") + after))
    return found


def of_error(error: ObjectError) -> Difference:
    """Returns the difference for a request that gave no object, after its last try. The first line that fits decides:

    | error | what |
    |---|---|
    | 404, 410 | not there |
    | 401, 403, 407 | forbidden |
    | too_large, bad_encoding: the answer began | other bytes |
    | blocked_address, also of a redirect | not answered |
    | redirect_loop, bad_url of a redirect, any other status (429, 500, 206) | other status |
    | timeout, dns, tls, connection, truncated | not answered |
    """
    status, words = error.status_code, PLAIN_WORDS[error.error_class]
    said = error.message.replace("the origin", "the server")
    if error.error_class in _OWN_STATUS:
        return Difference(What(_OWN_STATUS[error.error_class]), str(status), "200", said)
    if error.error_class in (ErrorClass.TOO_LARGE, ErrorClass.BAD_ENCODING):
        how = "a larger body than max_bytes" if error.error_class is ErrorClass.TOO_LARGE else words
        return Difference(What.OTHER_BYTES, how, "", said)
    if status and error.error_class is not ErrorClass.BLOCKED_ADDRESS:
        redirect = error.error_class in (ErrorClass.REDIRECT_LOOP, ErrorClass.BAD_URL)
        how = "a redirect that leads nowhere" if redirect else str(status)
        return Difference(What.OTHER_STATUS, how, "200", said)
    return Difference(What.NOT_ANSWERED, words, "200", said)


def how_bytes_differ(expected: Expected, answer: Answer) -> str:
    """Returns how the bytes differ, in words that many objects share.

    | the ledger | the answer | how |
    |---|---|---|
    | image/jpeg | no byte | an empty body |
    | image/jpeg | WebP | a WebP image where the ledger has a JPEG image |
    | image/jpeg | HTML | an HTML page where the ledger has a JPEG image |
    | image/jpeg | JPEG of fewer bytes | a smaller JPEG image than the ledger's |
    | image/jpeg | JPEG of as many bytes | a JPEG image of the same size with other bytes |
    | text/x, or no type | neither an image nor known | a larger body than the ledger's |
    """
    if not answer.size:
        return "an empty body"
    kind, ours = sniff(answer.head), kind_of_type(essence(expected.content_type))
    if kind and kind == ours or not ours and not kind:
        noun = f"{kind.name} image" if kind else "body"
        if expected.size in (None, answer.size):
            return f"{_article(noun)} {noun} of the same size with other bytes"
        return f"a {'smaller' if answer.size < (expected.size or 0) else 'larger'} {noun} than the ledger's"
    noun = f"{kind.name} image" if kind else describe(answer.head).partition(" (")[0] or "a body of no known kind"
    there = f"{_article(noun)} {noun}" if kind else noun
    here = f"{ours.name} image" if ours else essence(expected.content_type)
    return f"{there} where the ledger has {_article(here)} {here}" if here else there


def how_caching_differs(wanted: str, given: str | None) -> str:
    """Returns how Cache-Control differs, "" if it has all that is wanted. A CDN may add directives.

    | wanted | given | how |
    |---|---|---|
    | public, max-age=60 | max-age=60, PUBLIC, stale-if-error=9 | |
    | public, max-age=60 | | no Cache-Control |
    | public, max-age=60 | public, max-age=5 | max-age=5 for max-age=60 |
    | public, max-age=60 | public, max-age=60, max-age=5 | max-age=60 and 5 for max-age=60 |
    | public, max-age=60 | max-age=60 | lacks public |
    | public, max-age=60 | public, max-age=60, no-cache | adds no-cache |
    """
    if not given:
        return "no Cache-Control"
    here, there = directives(wanted), directives(given)
    words = []
    for name, value in here.items():
        if name not in there:
            words.append(f"lacks {_directive(name, value)}")
        elif there[name] != value:
            words.append(f"{_directive(name, there[name])} for {_directive(name, value)}")
    words += [f"adds {name}" for name in sorted(FORBIDS_CACHING & there.keys() - here.keys())]
    return "; ".join(words)


def directives(header: str) -> dict[str, str]:
    """Returns the directives of a Cache-Control by name, in lower case (RFC 9111, section 5.2), without quotes.

    Of one with two values caches take the first or none (section 4.2.1), so it has both: `5 and 60`.
    """
    found: dict[str, str] = {}
    for name, quoted in _DIRECTIVE.findall(header):
        name, value = name.lower(), quoted.strip('"')
        found[name] = value if found.get(name, value) == value else f"{found[name]} and {value}"
    return found


def essence(content_type: str | None) -> str:
    """Returns the media type without its parameters, in lower case."""
    return (content_type or "").partition(";")[0].strip().lower()


def _directive(name: str, value: str) -> str:
    return f"{name}={value}" if value else name


def _bytes_words(size: int | None, digest: str | None) -> str:
    return f"{'unknown size' if size is None else f'{size} bytes'}{f' {digest}' if digest else ''}"


def _article(noun: str) -> str:
    return "an" if noun.startswith(("AVIF", "ICO", "ICNS", "SVG", "image", "application", "audio")) else "a"
