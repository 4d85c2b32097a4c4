"""An HTTP/1.1 client behind an address filter. It knows nothing of jobs, buckets or images."""

from ferry.http.address_filter import AddressFilter, SystemResolver
from ferry.http.connection import Answer, Upload, media_type, said
from ferry.http.errors import died_unanswered, from_origin
from ferry.http.header_hosts import OPEN_HEADERS, recipient, site_of_template
from ferry.http.origin import USER_AGENT, Fetched, Origin, OriginOptions, Told
from ferry.http.pool import Connections, tls
from ferry.http.read_body import Algorithm, Arriving, Hashing, Reader, pour, pour_plain
from ferry.http.retry_after import parse_retry_after

__all__ = [
    "OPEN_HEADERS",
    "USER_AGENT",
    "AddressFilter",
    "Algorithm",
    "Answer",
    "Arriving",
    "Connections",
    "Fetched",
    "Hashing",
    "Origin",
    "OriginOptions",
    "Reader",
    "SystemResolver",
    "Told",
    "Upload",
    "died_unanswered",
    "from_origin",
    "media_type",
    "parse_retry_after",
    "pour",
    "pour_plain",
    "recipient",
    "said",
    "site_of_template",
    "tls",
]
