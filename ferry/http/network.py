"""How requests leave this machine: through which proxy, and with which certificates (docs/decisions/0049)."""

from __future__ import annotations

import base64
import functools
import ipaddress
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ferry.core import UserError, short
from ferry.http.address_filter import HOST_NAME, AddressFilter, parse_literal
from ferry.http.address_ranges import Address, unmapped, unscoped
from ferry.http.header_hosts import Recipients

MOST_SHOWN = 10  # hosts without a proxy
_NOT_A_PROXY = (
    "names no proxy that Ferry can use: write `http://proxy.example:3128`, without a path, and special characters of a "
    "password as %XX"
)


@dataclass(frozen=True, slots=True)
class Network:
    """The network settings of a job, with references and the environment resolved. It may hold a password.

    ``http_proxy`` and ``https_proxy`` are URLs by the scheme of the request. ``no_proxy`` has the entries of NO_PROXY,
    ``direct`` those of `source.allow_private_addresses`. With ``local_names``, names are looked up here. The paths of
    ``ca_bundle``, ``certificate`` and ``key`` are those of PEM files; ``certificate_hosts`` receive the certificate.
    """

    http_proxy: str = field(default="", repr=False)
    https_proxy: str = field(default="", repr=False)
    no_proxy: tuple[str, ...] = ()
    direct: tuple[str, ...] = ()
    local_names: bool = False
    ca_bundle: str = ""
    certificate: str = ""
    key: str = ""
    certificate_hosts: tuple[str, ...] = ()

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> Network:
        """Return the Network of its ``dataclasses.asdict`` in JSON."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**fields)

    def proxies(self) -> dict[str, Proxy]:
        """Return the proxies by the scheme of the request."""
        given = {"http": self.http_proxy, "https": self.https_proxy}
        return {scheme: proxy_at(url) for scheme, url in given.items() if url}

    def describe(self) -> list[str]:
        """Return the proxies in a line for the user, without their passwords; nothing if there are none."""
        found = self.proxies()
        if not found:
            return []
        if len(found) == 2 and found["http"] == found["https"]:
            words = f"requests go through the proxy {found['http']}"
        else:
            words = " and ".join(f"{scheme}:// requests go through the proxy {found[scheme]}" for scheme in found)
        names = "are looked up here" if self.local_names else "are looked up by the proxy"
        direct = list(dict.fromkeys(("localhost", *self.direct, *self.no_proxy)))
        more = f", {len(direct) - MOST_SHOWN:,} more" if len(direct) > MOST_SHOWN else ""
        shown = ", ".join(map(short, direct[:MOST_SHOWN])) + more
        return [f"network: {words}; host names {names}; without a proxy: {shown}"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. ``credentials`` is the value of Proxy-Authorization, or empty."""

    host: str
    port: int
    credentials: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"http://{in_authority(self.host)}:{self.port}"

    @property
    def header(self) -> bytes:
        """The header line with the credentials, or nothing."""
        return f"Proxy-Authorization: {self.credentials}\r\n".encode() if self.credentials else b""


def in_authority(host: str) -> str:
    """Return the host as an authority has it: an IPv6 address in brackets, a name without a trailing dot."""
    host = host.strip("[]").removesuffix(".")
    return f"[{host}]" if ":" in host else host


@functools.lru_cache
def proxy_at(url: str) -> Proxy:
    """Return the proxy of a URL, with or without `http://`. Raises UserError, whose text holds no part of the URL."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname or "", parts.port or 80
        known = parse_literal(f"[{host}]" if ":" in host else host) is not None or HOST_NAME.fullmatch(host)
    except ValueError:
        raise UserError(_NOT_A_PROXY) from None
    if parts.scheme != "http":
        raise UserError("names a proxy with another scheme than http://, and Ferry does not connect to such proxies")
    if not known or parts.path.strip("/") or parts.query or parts.fragment:
        raise UserError(_NOT_A_PROXY)
    if parts.username is None:
        return Proxy(host, port)
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(host, port, "Basic " + base64.b64encode(user.encode()).decode())


@functools.lru_cache(maxsize=4096)
def proxy_for(network: Network, scheme: str, host: str, port: int) -> Proxy | None:
    """Return the proxy for requests to a host, None for a direct connection. The first row that fits decides:

    | host | proxy |
    |---|---|
    | `localhost`, `*.localhost`, a loopback address, `0.0.0.0`, `::` | None |
    | an entry of `source.allow_private_addresses` | None |
    | an entry of NO_PROXY | None |
    | any other | that of the scheme, None if there is none |

    Entries of NO_PROXY have the meaning that urllib gives them, and networks that of requests. Names are not looked up.

    | entry | hosts |
    |---|---|
    | `*`, as the only entry | all |
    | `old.example`, `.old.example` | `old.example` and all hosts below it |
    | `old.example:8080` | the same, with this port |
    | `10.1.2.3`, `10.0.0.0/8`, `fd00::/8` | addresses in the URL |
    """
    url = network.https_proxy if scheme == "https" else network.http_proxy
    if not url:
        return None
    name, address = host.lower().strip("[]").removesuffix("."), _literal(host)
    if name.rpartition(".")[2] == "localhost" or (address and (address.is_loopback or address.is_unspecified)):
        return None
    if AddressFilter(network.direct).allows_host(host, port) or network.no_proxy == ("*",):
        return None
    return None if any(_matches(entry, name, address, port) for entry in network.no_proxy) else proxy_at(url)


def _literal(host: str) -> Address | None:
    try:
        found = parse_literal(f"[{host}]" if ":" in host and not host.startswith("[") else host)
    except ValueError:
        return None
    return unmapped(unscoped(found)) if found is not None else None


def _matches(entry: str, name: str, address: Address | None, port: int) -> bool:
    entry = entry.strip().lower()
    if address is not None:
        for text in _without_port(entry, port):
            try:
                if address in ipaddress.ip_network(text.strip("[]"), strict=False):
                    return True
            except ValueError:
                continue
        return False
    return any(f".{name}".endswith(f".{text.lstrip('.')}") for text in _without_port(entry, port) if text.lstrip("."))


def _without_port(entry: str, port: int) -> Iterator[str]:
    """Yield the host of an entry, unless it has another port."""
    yield entry
    host, colon, given = entry.rpartition(":")
    if colon and given == str(port):
        yield host


def strict(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context, set to ignore the common name of certificates.

    Only the subjectAltName extension names the host (RFC 9110 section 4.3.4).
    """
    context.hostname_checks_common_name = False
    return context


@functools.lru_cache
def tls(ca_bundle: str = "", certificate: str = "", key: str = "") -> ssl.SSLContext:
    """Return a TLS context with the system's certificates, those of a bundle, and a client certificate.

    Loading them takes 20 ms, so it is done once. Raises UserError for a file that cannot be used.
    """
    context = strict(ssl.create_default_context())
    if ca_bundle:
        try:
            folder = Path(ca_bundle).is_dir()  # as OpenSSL has them: a file for each certificate
            context.load_verify_locations(None if folder else ca_bundle, ca_bundle if folder else None)
        except OSError as exc:  # ssl.SSLError is one
            raise UserError(f"the CA bundle {short(ca_bundle, 300)} {_file_problem(exc)}") from None
    if certificate:
        try:
            Path(certificate).open("rb").close()
        except OSError as exc:
            raise UserError(f"the client certificate {short(certificate, 300)} {_file_problem(exc)}") from None
        try:
            context.load_cert_chain(certificate, key or None, _refuse_passphrase)
        except OSError as exc:
            what = (
                f"the key {short(key, 300)}"
                if key
                else f"the client certificate {short(certificate, 300)} with its key"
            )
            raise UserError(f"{what} {_file_problem(exc)}") from None
    return context


def _refuse_passphrase() -> str:
    raise UserError("the client certificate's key has a passphrase, for which Ferry does not ask. Store it without one")


def _file_problem(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        if exc.reason == "KEY_VALUES_MISMATCH":
            return "does not belong to the certificate"
        return "holds no valid PEM"
    return "does not exist" if isinstance(exc, FileNotFoundError) else f"cannot be read: {exc.strerror}"


def context_for(network: Network, host: str, port: int) -> ssl.SSLContext:
    """Return the TLS context for a host: with the client certificate if the job names the host for it."""
    if network.certificate and Recipients(network.certificate_hosts).include("https", host, port):
        return tls(network.ca_bundle, network.certificate, network.key)
    return tls(network.ca_bundle)
