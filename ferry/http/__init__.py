"""An HTTP/1.1 client behind an address filter. It does not depend on jobs, buckets or images."""

from ferry.http.address_filter import AddressFilter, Resolver, SystemResolver
from ferry.http.auth import RETRY_S, Auth, Token, TokenRequest, basic
from ferry.http.connection import Response, Upload
from ferry.http.dial import AnyAddress
from ferry.http.errors import closed_before_response, from_origin
from ferry.http.exchange import USER_AGENT, Fetched, NotModified, OriginOptions, Rest
from ferry.http.header_hosts import OPEN_HEADERS, Recipients, recipient, site_of_template
from ferry.http.headers import media_type, printable_header
from ferry.http.network import Network, Proxy, context_for, proxy_at, proxy_for, tls
from ferry.http.origin import Origin
from ferry.http.pool import Connections
from ferry.http.read_body import Algorithm, Arriving, Hashing, Reader, new_hash, stream_body
from ferry.http.retry_after import parse_retry_after
from ferry.http.urls import Targets

__all__ = [
    "OPEN_HEADERS",
    "RETRY_S",
    "USER_AGENT",
    "AddressFilter",
    "Algorithm",
    "AnyAddress",
    "Arriving",
    "Auth",
    "Connections",
    "Fetched",
    "Hashing",
    "Network",
    "NotModified",
    "Origin",
    "OriginOptions",
    "Proxy",
    "Reader",
    "Recipients",
    "Resolver",
    "Response",
    "Rest",
    "SystemResolver",
    "Targets",
    "Token",
    "TokenRequest",
    "Upload",
    "basic",
    "closed_before_response",
    "context_for",
    "from_origin",
    "media_type",
    "new_hash",
    "parse_retry_after",
    "printable_header",
    "proxy_at",
    "proxy_for",
    "recipient",
    "site_of_template",
    "stream_body",
    "tls",
]
