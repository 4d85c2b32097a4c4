"""A strict parser of URLs, which keeps their bytes and checks their hosts with the address filter."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from urllib.parse import unquote, urljoin

from yarl import URL

from ferry.core import ErrorClass, ObjectError
from ferry.http.address_filter import HOST_NAME, AddressFilter, parse_literal

_HOSTS_KEPT = 4096
_MAX_HOST = 1000  # characters, checked before the host is parsed; a valid name has at most 253
# User info ends at the last `@`. The host excludes `@`, else the match backtracks at each: seconds for 16,000 of them.
_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?:(?P<user>[^/?#\\]*)@)?(?P<host>\[[^\[\]/?#]*\]|[^\[\]/?#:@]*)(?::(?P<port>[0-9]{0,5}))?(?P<rest>[/?#].*)?",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TO_QUOTE = re.compile(r"[^\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Target:
    """The parsed URL of one request."""

    url: URL
    site: tuple[str, str, int]  # scheme, host, port; decides which headers are sent
    authorization: str | None  # from user info in the URL


class Targets:
    """Parses URLs for one address filter, and caches the results for their hosts."""

    def __init__(self, address_filter: AddressFilter) -> None:
        self._filter = address_filter
        self._hosts: dict[tuple[str, int], tuple[str, str | None]] = {}

    def read(self, text: str) -> Target:
        """Parse a URL. Raises ObjectError: bad_url, or blocked_address for a literal address or a port.

        Printable ASCII is sent unchanged, escapes included. Spaces and other characters are escaped as UTF-8. A host
        that is not ASCII becomes IDNA, and a literal address gets its usual spelling. The fragment is dropped, and yarl
        drops a `?` without a query.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise _bad_url("it is not an http:// or https:// URL")
        scheme, user, host, port_text, rest = match.groups()
        scheme = scheme.lower()
        default = 443 if scheme == "https" else 80
        port = int(port_text) if port_text else default
        if not 0 < port < 65536:
            raise _bad_url("its port is out of range")
        known = self._hosts.get((host, port))
        if known is None:
            known = self._check_host(host, port)
        host, blocked = known
        if blocked is not None:
            raise ObjectError(ErrorClass.BLOCKED_ADDRESS, blocked)
        rest = (rest or "/").partition("#")[0]
        if rest[:1] != "/":
            rest = "/" + rest
        if not rest.isascii() or not rest.isprintable() or " " in rest:
            rest = _quoted(rest)
        where = host if port == default else f"{host}:{port}"
        authorization = None if user is None else _basic(user)
        return Target(URL(f"{scheme}://{where}{rest}", encoded=True), (scheme, host, port), authorization)

    def redirected(self, base: URL, location: str, status: int) -> Target:
        """Parse a Location header against ``base``. The caller ignores its user info, which the job did not write."""
        if location.startswith("//"):
            location = f"{base.scheme}:{location}"
        elif not _ABSOLUTE.match(location):
            try:
                location = urljoin(str(base), location)
            except ValueError:  # brackets without a valid address, in a relative path
                raise ObjectError(
                    ErrorClass.BAD_URL,
                    "redirect target: this URL cannot be fetched: it is malformed",
                    status_code=status,
                ) from None
        try:
            return self.read(location)
        except ObjectError as exc:
            raise ObjectError(exc.error_class, f"redirect target: {exc.message}", status_code=status) from None

    def _check_host(self, text: str, port: int) -> tuple[str, str | None]:
        """Return the normalised host, and why its address or port is blocked, or None. The result is cached."""
        host = text.lower()
        if len(host) > _MAX_HOST:
            raise _bad_url("its host is not a host name")
        if not host.isascii():
            try:
                host = URL.build(scheme="http", host=host).raw_host or ""
            except ValueError:
                raise _bad_url("its host is not a host name") from None
        try:
            literal = parse_literal(host)
        except ValueError as exc:
            raise _bad_url(f"its host is not a host name ({exc})") from None
        blocked = None
        if literal is not None:
            blocked = self._filter.verdict(host, literal, port)
            host = f"[{literal}]" if literal.version == 6 else str(literal)
        elif not HOST_NAME.fullmatch(host.removesuffix(".")):
            raise _bad_url("its host is not a host name")
        blocked = blocked or self._filter.port_verdict(host, port)
        if len(self._hosts) >= _HOSTS_KEPT:
            self._hosts.clear()
        self._hosts[text, port] = (host, blocked)
        return host, blocked


def _bad_url(why: str) -> ObjectError:
    return ObjectError(ErrorClass.BAD_URL, f"this URL cannot be fetched: {why}")


def _quoted(rest: str) -> str:
    """Escape spaces and characters that are not ASCII; leave all other bytes unchanged.

    connection.py represents header bytes that are not UTF-8 as surrogates. Each is escaped as the byte that it was.
    """
    if _CONTROL.search(rest):
        raise _bad_url("it contains control characters")
    try:
        return _TO_QUOTE.sub(lambda m: "".join(f"%{b:02X}" for b in m[0].encode("utf-8", "surrogateescape")), rest)
    except UnicodeEncodeError:
        raise _bad_url("it is not valid Unicode") from None


def _basic(user: str) -> str:
    """Return the value of Authorization for the user info of a URL (Basic, RFC 7617)."""
    name, _, password = user.partition(":")
    try:
        return "Basic " + base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    except UnicodeEncodeError:
        raise _bad_url("it is not valid Unicode") from None
