"""Keys that stores and clients treat differently, by name. Each is valid at Amazon, Google and Azure."""

from __future__ import annotations

from tests.servers.stores import StoreServer
from tests.servers.stores.known import KeyIs

ODD_KEYS = {
    "double slash": "a//b.jpg",
    "dot segment": "a/./b.jpg",
    "two-dot segment": "a/../b.jpg",
    "three dots": "a/.../b.jpg",
    "slash at the end": "folder/",
    "slash at the start": "/a.jpg",
    "0x01": "a\x01b.jpg",
    "newline": "a\nb.jpg",
    "tab": "a\tb.jpg",
    "?&=#%+;": "a?b&c=d#e%f+g;h.jpg",
    "%2F": "a%2Fb%252F.jpg",
    "blanks": " a  b ",
    "backslash": "a\\b.jpg",
    "XML": "<a>&amp;\"b'.jpg",
    "NFC": "gr\u00fcn.jpg",
    "NFD": "gru\u0308n.jpg",
    "emoji": "\U0001f600/\U0001f468\u200d\U0001f469.jpg",
    "900 bytes": "k" * 896 + ".jpg",
}


def what_becomes_of(server: StoreServer, bucket: str, key: str) -> KeyIs:
    """Writes an object under ``key`` into an empty bucket, by another client than Ferry, and returns what is there."""
    try:
        server.put(bucket, key, b"an image")
    except Exception:  # each client has its own
        return "refused"
    try:
        keys = server.keys(bucket)
    except AssertionError:
        return "unlisted"
    return "kept" if keys == [key] and server.get(bucket, key) == b"an image" else "folded"
