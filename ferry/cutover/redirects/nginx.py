"""nginx: maps from `$host$uri` to the new address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from ferry.cutover.redirects.pairs import Pair, Pairs, Sight
from ferry.cutover.redirects.target import Limit, Target

GROUPS_A_MAP = 16  # a request tries the regular expressions of so many groups of twins at most
MANY_MAPS = 50  # the default variables_hash, 1,024 buckets of 64 bytes, holds so many; nginx warns of more, and works
PATH, QUERY = b'"$host$uri"', b'"$host?$args $uri"'
CONFIGURE = (
    "In nginx.conf, in `http { }` and before its first `map`:",
    "    include /etc/nginx/ferry-redirects.conf;",
    "In each `server { }` of an old host:",
    "    if ($ferry_redirect) { return 301 $ferry_redirect; }",
)
_MAX_BUCKET = 65_536 - 64
_REGEX = re.compile(rb"[][\\^$.|?*+(){}#]")


class Nginx(Target):
    """A file to include in `http { }`. It defines `$ferry_redirect`, empty for an address without a redirect.

    `$uri` is decoded, its slashes are merged, and `map` ignores the case of its keys in a hash (nginx documentation of
    ngx_http_map_module). Regular expressions would tell case apart, but nginx tries them one after the other. So the
    hash has all addresses, and where two differ in case only, it leads to a small map of their expressions.
    """

    name = "nginx-map"
    ending = ".conf"
    # A word of the configuration fits into a buffer of 4,096 bytes. An escaped expression is up to thrice as long.
    sight = Sight(longest=1_300, longest_new=4_000, ignore_case=True)
    limits = (
        Limit("an old address has 1,300 bytes at most, a new one 4,000", "ngx_conf_file.c, NGX_CONF_BUFFER"),
        Limit("the hash needs map_hash_max_size and map_hash_bucket_size, which the file sets", "ngx_hash.c"),
    )

    def write(self, pairs: Pairs, out: BinaryIO) -> Sequence[str]:
        """Writes the maps: `$ferry_path`, `$ferry_query` if an address has a query, and those of twins."""
        size, bucket = hash_sizes(len(pairs), pairs.number("max(length(host) + length(path) + length(query))") + 2)
        queries = pairs.number("count(*)", "query <> ''")
        notes = [
            f"It sets map_hash_max_size {size} and map_hash_bucket_size {bucket}. If your configuration sets them "
            "already, raise them there and delete these two lines in the file",
            "nginx ignores the case of letters: an address that differs in case only is redirected, too, unless the "
            "list has it",
        ]
        maps = -(-pairs.number("max(twins) + 1") // GROUPS_A_MAP)
        if maps > MANY_MAPS:
            size = max(2_048, 1 << (4 * maps - 1).bit_length())
            notes.append(
                f"nginx warns of its variables_hash, since the file has {maps:,} maps. `variables_hash_max_size "
                f"{size}; variables_hash_bucket_size 256;` in `http {{ }}`, before the include, avoids the warning"
            )
        heading = [*pairs.heading(), "", *CONFIGURE, "", *notes]
        out.writelines(f"# {line}".rstrip().encode() + b"\n" for line in heading)
        out.write(f"map_hash_max_size {size};\nmap_hash_bucket_size {bucket};\n".encode())
        if not queries:
            self._maps(pairs, out, "redirect", PATH, "query = ''")
            return notes
        self._maps(pairs, out, "path", PATH, "query = ''")
        self._maps(pairs, out, "query", QUERY, "query <> ''")
        out.write(b'map $ferry_query $ferry_redirect {\n"" $ferry_path;\ndefault $ferry_query;\n}\n')
        return notes

    def _maps(self, pairs: Pairs, out: BinaryIO, name: str, source: bytes, where: str) -> None:
        """Writes the map of a hash and, before it, those of its twins."""
        groups: dict[int, bytes] = {}  # group of twins -> its key in the hash
        twins = pairs.select(f"{where} AND twins IS NOT NULL")
        for number, members in groupby(twins, key=lambda pair: (pair.twins or 0) // GROUPS_A_MAP):
            out.write(b"map %s $ferry_%s_%d {\n" % (source, name.encode(), number))
            for pair in members:
                groups[pair.twins or 0] = _key(pair)
                out.write(b'"~^%s\\z" "%s";\n' % (_word(_REGEX.sub(rb"\\\g<0>", _key(pair))), pair.new.encode()))
            out.write(b"}\n")
        out.write(b"map %s $ferry_%s {\n" % (source, name.encode()))
        out.writelines(
            b'"%s" $ferry_%s_%d;\n' % (_word(key), name.encode(), group // GROUPS_A_MAP)
            for group, key in groups.items()
        )
        plain = pairs.select(f"{where} AND twins IS NULL")
        out.writelines(b'"%s" "%s";\n' % (_word(_key(pair)), pair.new.encode()) for pair in plain)
        out.write(b"}\n")


def _key(pair: Pair) -> bytes:
    """Returns what nginx compares. Neither a host nor a query holds a space, so no two addresses have one key."""
    path = unquote_to_bytes(pair.path)
    return f"{pair.host}?{pair.query} ".encode() + path if pair.query else pair.host.encode() + path


def _word(value: bytes) -> bytes:
    """Returns the value as a word between double quotes (ngx_conf_file.c, ngx_conf_read_token)."""
    return value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def hash_sizes(keys: int, longest: int) -> tuple[int, int]:
    """Returns `map_hash_max_size` and `map_hash_bucket_size` for so many keys, the longest of so many bytes.

    An element takes 8 bytes for its value and its key with a length of 2 bytes, rounded up to 8 (ngx_hash.c). nginx
    looks for a number of buckets in which no bucket is overfull, from 1,000 below the maximum. With twice as many
    buckets as keys, and room for eight of the longest, the first number does.
    """
    size = max(2_048, 1 << (2 * keys - 1).bit_length())
    element = 8 + (longest + 2 + 7) // 8 * 8
    bucket = min(-(-(8 * element + 8) // 64) * 64, _MAX_BUCKET)
    return size, bucket
