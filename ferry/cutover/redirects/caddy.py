"""Caddy: a `map` from host and decoded path to the new address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import BinaryIO
from urllib.parse import unquote

from ferry.cutover.redirects.pairs import Pair, Pairs, Sight
from ferry.cutover.redirects.target import Limit, Target

PATH, QUERY = (
    "{http.request.host}{http.request.uri.path}",
    "{http.request.host}?{http.request.uri.query} {http.request.uri.path}",
)
CONFIGURE = (
    "In the site block of the old hosts:",
    "    import /etc/caddy/ferry-redirects",
    '    @ferry not vars {ferry_redirect} ""',
    "    redir @ferry {ferry_redirect} 301",
)
SLOW = 50_000  # redirects
# What a word between backticks cannot hold, or what Caddy replaces: `{$VARIABLE}`, `{placeholder}`, `\{`
_NOT_PLAIN = re.compile(r"[`\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff{]")


class Caddy(Target):
    """A snippet that defines `{ferry_redirect}`, empty for an address without a redirect.

    The path is decoded, and slashes are not merged. Caddy compares a request with each line, one after the other.
    """

    name = "caddy"
    ending = ".caddy"
    sight = Sight(longest=4_000, longest_new=4_000, merge_slashes=False, utf8=True)
    limits = (
        Limit(f"each request is compared with all redirects: use another server from {SLOW:,} on", "caddyhttp/map"),
        Limit("paths that are not UTF-8 are left out", "caddyfile/lexer.go"),
    )

    def write(self, pairs: Pairs, out: BinaryIO) -> Sequence[str]:
        """Writes the map of paths and, if an address has a query, that of queries."""
        notes = ["Caddy does not merge slashes: `//a` is not redirected as `/a` is"]
        if len(pairs) > SLOW:
            notes.append(
                f"Caddy compares each request with all {len(pairs):,} redirects, one after the other, which may take "
                "milliseconds. Put nginx, Apache or HAProxy in front for so many"
            )
        out.writelines(f"# {line}".rstrip().encode() + b"\n" for line in (*pairs.heading(), *CONFIGURE, *notes))
        queries = pairs.number("count(*)", "query <> ''") > 0
        self._map(pairs, out, PATH, "{ferry_path}" if queries else "{ferry_redirect}", "query = ''", "")
        if queries:
            self._map(pairs, out, QUERY, "{ferry_redirect}", "query <> ''", "{ferry_path}")
        return notes

    @staticmethod
    def _map(pairs: Pairs, out: BinaryIO, source: str, name: str, where: str, otherwise: str) -> None:
        out.write(f"map `{source}` {name} {{\n".encode())
        out.writelines(f"\t{_word(_key(pair))} `{pair.new}`\n".encode() for pair in pairs.select(where))
        out.write(f"\tdefault `{otherwise}`\n}}\n".encode())


def _key(pair: Pair) -> str:
    """Returns what Caddy compares. Neither a host nor a query holds a space, so no two addresses have one key."""
    path = unquote(pair.path, errors="strict")
    return f"{pair.host}?{pair.query} {path}" if pair.query else pair.host + path


def _word(value: str) -> str:
    """Returns the value between backticks, where nothing is special, or as a regular expression of Go's."""
    if not _NOT_PLAIN.search(value):
        return f"`{value}`"
    return "`~^" + "".join(c if c.isascii() and c.isalnum() else rf"\x{{{ord(c):x}}}" for c in value) + r"\z`"
