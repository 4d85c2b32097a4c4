"""HAProxy: a map file from host, encoded path and query to the new address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes

from ferry.cutover.redirects.pairs import Pair, Pairs, Sight
from ferry.cutover.redirects.target import Limit, Target

_HOST, _MAP = "req.hdr(host),host_only,lower,concat(,txn.ferry_path)", "map_str(/etc/haproxy/ferry-redirects.map)"
CONFIGURE = (
    "In the frontend of the old hosts (HAProxy 2.6 or newer):",
    "    http-request set-var(txn.ferry_path) path,url_dec,regsub(//+,/,g),url_enc",
    "    http-request set-var(txn.ferry_query) query",
    f"    http-request set-var(txn.ferry) {_HOST},{_MAP}",
    f"    http-request set-var(txn.ferry) {_HOST},concat(?,txn.ferry_query),{_MAP}",
    "    http-request redirect location %[var(txn.ferry)] code 301 if { var(txn.ferry) -m found }",
)


class HAProxy(Target):
    """A map file. Its keys have the whole path encoded as `url_enc` does, since whitespace ends a key."""

    name = "haproxy-map"
    ending = ".map"
    sight = Sight(longest=4_000, longest_new=4_000)
    limits = (Limit("an address fits into a buffer (tune.bufsize, 16,384 bytes)", "HAProxy configuration manual"),)

    def write(self, pairs: Pairs, out: BinaryIO) -> Sequence[str]:
        """Writes a line for each pair."""
        out.writelines(f"# {line}".rstrip().encode() + b"\n" for line in (*pairs.heading(), *CONFIGURE))
        out.writelines(f"{_key(pair)} {pair.new}\n".encode() for pair in pairs.select())
        return ()


def _key(pair: Pair) -> str:
    path = quote(unquote_to_bytes(pair.path), safe="")
    return f"{pair.host}{path}?{pair.query}" if pair.query else f"{pair.host}{path}"
