"""Values of response headers that Ferry keeps."""

from __future__ import annotations

KEPT_HEADER_CHARS = 1024  # longest validator or media type that Ferry keeps


def printable_header(value: str | None) -> str | None:
    """Return a header value that the ledger can hold: one line of up to 1,024 printable characters, else None.

    Bytes that are not UTF-8 are surrogates in ``value``, which no file can hold. They are read as Latin-1, as HTTP does
    (RFC 9110 section 5.5).
    """
    if value is None or len(value) > KEPT_HEADER_CHARS:
        return None
    if not value.isprintable():
        value = value.encode("utf-8", "surrogateescape").decode("latin-1")
    return value if value.isprintable() else None


def media_type(value: str | None) -> str | None:
    """Return a Content-Type that a store accepts, which is ASCII (RFC 9110 section 8.3.1), else None."""
    text = printable_header(value)
    return text if text is not None and text.isascii() else None
