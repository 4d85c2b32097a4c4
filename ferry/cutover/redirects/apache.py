"""Apache: a RewriteMap from host, escaped path and query to the new address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes

from ferry.cutover.redirects.pairs import Pair, Pairs, Sight
from ferry.cutover.redirects.target import Limit, Target

# `int:escape` leaves these characters as they are, and writes escapes in lower case (server/gen_test_char.c,
# T_OS_ESCAPE_PATH, and util.c, c2x)
_UNESCAPED = "$-_.+!*'(),:;@&=/~"
_PATH = "${ferry:%{SERVER_NAME}${escape:%{REQUEST_URI}}}"
_QUERY = "${ferry:%{SERVER_NAME}${escape:%{REQUEST_URI}}?%{QUERY_STRING}}"
CONFIGURE = (
    "In each <VirtualHost> of an old host (mod_rewrite; UseCanonicalName Off, the default):",
    "    AllowEncodedSlashes On",
    "    RewriteEngine On",
    "    RewriteMap escape int:escape",
    "    RewriteMap ferry dbm=db:/etc/apache2/ferry-redirects.db",
    f"    RewriteCond {_QUERY} ^(.+)$ [OR]",
    f"    RewriteCond {_PATH} ^(.+)$",
    "    RewriteRule ^ %1 [R=301,L,NE,QSD]",
    "Make the database with: httxt2dbm -f db -i FILE -o /etc/apache2/ferry-redirects.db",
)


class Apache(Target):
    """A text map. Its keys are the escaped path, since whitespace ends a key."""

    name = "apache-rewritemap"
    ending = ".txt"
    sight = Sight(longest=1_000, longest_new=1_000, longest_pair=1_020)
    limits = (
        Limit("old and new address have 1,020 bytes at most together", "mod_rewrite.c, REWRITE_MAX_TXT_MAP_LINE"),
        Limit("Apache reads a text map from its beginning for each new address; use a database", "mod_rewrite.c"),
    )

    def write(self, pairs: Pairs, out: BinaryIO) -> Sequence[str]:
        """Writes a line for each pair."""
        out.writelines(f"# {line}".rstrip().encode() + b"\n" for line in (*pairs.heading(), *CONFIGURE))
        out.writelines(f"{_key(pair)} {pair.new}\n".encode() for pair in pairs.select())
        return ()


def _key(pair: Pair) -> str:
    path = _lower_escapes(quote(unquote_to_bytes(pair.path), safe=_UNESCAPED))
    return f"{pair.host}{path}?{pair.query}" if pair.query else f"{pair.host}{path}"


def _lower_escapes(text: str) -> str:
    first, *rest = text.split("%")
    return first + "".join(f"%{part[:2].lower()}{part[2:]}" for part in rest)
