"""Redirects from old addresses to new ones, as files of web servers and services."""

from ferry.cutover.redirects.apache import Apache
from ferry.cutover.redirects.caddy import Caddy
from ferry.cutover.redirects.cloudflare import Cloudflare
from ferry.cutover.redirects.haproxy import HAProxy
from ferry.cutover.redirects.nginx import Nginx
from ferry.cutover.redirects.old_address import ascii_host
from ferry.cutover.redirects.pairs import LeftOut, Pair, Pairs, make_pairs
from ferry.cutover.redirects.s3 import S3
from ferry.cutover.redirects.sql import Sql
from ferry.cutover.redirects.target import Limit, Target

_ALL: tuple[Target, ...] = (Nginx(), Apache(), HAProxy(), Caddy(), Cloudflare(), S3(), Sql())
TARGETS = {target.name: target for target in _ALL}

__all__ = ["TARGETS", "LeftOut", "Limit", "Pair", "Pairs", "Target", "ascii_host", "make_pairs"]
