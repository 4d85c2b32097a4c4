"""The decision which proxy a request goes through, URLs of proxies, and files of certificates."""

from __future__ import annotations

import dataclasses
import json
import urllib.request
from pathlib import Path

import pytest

from ferry.core.errors import UserError
from ferry.http.network import Network, Proxy, context_for, proxy_at, proxy_for, tls
from tests.support.certificates import CertificateAuthority

PROXY = "http://proxy.corp:3128"
PLAIN = Network(PROXY, PROXY)


@pytest.mark.parametrize(
    ("network", "site", "proxied"),
    [
        (Network(), ("http", "img.old.example", 80), False),
        (PLAIN, ("http", "img.old.example", 80), True),
        (PLAIN, ("https", "img.old.example", 443), True),
        (Network(http_proxy=PROXY), ("https", "img.old.example", 443), False),
        (Network(https_proxy=PROXY), ("http", "img.old.example", 80), False),
        # this machine
        (PLAIN, ("http", "localhost", 80), False),
        (PLAIN, ("http", "LOCALHOST.", 80), False),
        (PLAIN, ("http", "a.localhost", 80), False),
        (PLAIN, ("http", "localhost.old.example", 80), True),
        (PLAIN, ("http", "127.0.0.1", 80), False),
        (PLAIN, ("http", "127.8.9.1", 80), False),
        (PLAIN, ("http", "0.0.0.0", 80), False),
        (PLAIN, ("http", "2130706433", 80), False),
        (PLAIN, ("https", "[::1]", 443), False),
        (PLAIN, ("https", "::1", 443), False),
        (PLAIN, ("https", "[::ffff:127.0.0.1]", 443), False),
        (PLAIN, ("http", "10.1.2.3", 80), True),
        # source.allow_private_addresses
        (Network(PROXY, PROXY, direct=("img.internal",)), ("http", "img.internal", 80), False),
        (Network(PROXY, PROXY, direct=("img.internal",)), ("http", "a.img.internal", 80), True),
        (Network(PROXY, PROXY, direct=("img.internal:8080",)), ("http", "img.internal", 8080), False),
        (Network(PROXY, PROXY, direct=("img.internal:8080",)), ("http", "img.internal", 80), True),
        (Network(PROXY, PROXY, direct=("10.1.0.0/16",)), ("http", "10.1.2.3", 80), False),
        (Network(PROXY, PROXY, direct=("10.1.0.0/16",)), ("http", "10.2.2.3", 80), True),
        (Network(PROXY, PROXY, direct=("10.1.2.3:81",)), ("http", "10.1.2.3", 81), False),
        (Network(PROXY, PROXY, direct=("10.1.2.3:81",)), ("http", "10.1.2.3", 80), True),
    ],
)
def test_which_requests_go_through_a_proxy(network: Network, site: tuple[str, str, int], proxied: bool) -> None:
    """The table of proxy_for: this machine and what the job allows is direct, all else has the scheme's proxy."""
    assert proxy_for(network, *site) == (Proxy("proxy.corp", 3128) if proxied else None)


@pytest.mark.parametrize(
    ("entry", "host", "port", "direct"),
    [
        ("old.example", "old.example", 80, True),
        ("old.example", "img.old.example", 80, True),
        ("old.example", "bold.example", 80, False),
        (".old.example", "img.old.example", 80, True),
        (".old.example", "old.example", 80, True),
        ("OLD.Example", "img.old.example.", 80, True),
        ("old.example:8080", "img.old.example", 8080, True),
        ("old.example:8080", "img.old.example", 80, False),
        ("*", "old.example", 80, True),
        ("*", "10.1.2.3", 80, True),
        ("*,old.example", "new.example", 80, False),
        ("a.example, old.example", "old.example", 80, True),
        (".", "old.example", 80, False),
        ("example", "old.example", 80, True),
        ("10.1.2.3", "10.1.2.3", 80, True),
        ("10.1.2.3", "10.1.2.4", 80, False),
        ("10.1.2.3:81", "10.1.2.3", 81, True),
        ("10.1.2.3:81", "10.1.2.3", 80, False),
        ("10.0.0.0/8", "10.9.8.7", 80, True),
        ("10.0.0.5/8", "10.9.8.7", 80, True),
        ("10.0.0.0/8", "11.9.8.7", 80, False),
        ("10.0.0.0/8", "ten.example", 80, False),
        ("10.0.0.0/8", "0x0a090807", 80, True),
        ("fd00::/8", "[fd12::1]", 80, True),
        ("fd00::/8", "[2001:4860::1]", 80, False),
        ("[fd12::1]:81", "[fd12::1]", 81, True),
        ("fd12::1", "[fd12::1]", 443, True),
        ("10.0.0.0/99", "10.0.0.1", 80, False),
        ("2.3", "10.1.2.3", 80, False),
    ],
)
def test_entries_of_no_proxy(entry: str, host: str, port: int, direct: bool) -> None:
    """Entries mean what urllib makes of them, and networks count for addresses that a URL spells."""
    entries = tuple(each.strip() for each in entry.split(","))
    for scheme in ("http", "https"):
        assert (proxy_for(dataclasses.replace(PLAIN, no_proxy=entries), scheme, host, port) is None) is direct


def test_urllib_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """For names, NO_PROXY has the effect that urllib gives it."""
    bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    names = ("old.example", "img.old.example", "bold.example", "example", "img.example:8080", "img.example")
    for no_proxy in ("old.example", ".old.example", "*", "img.example:8080", "x.example,example", "", " old.example "):
        entries = tuple(filter(None, (each.strip() for each in no_proxy.split(","))))
        for name in names:
            host, _, port = name.partition(":")
            expected = bool(bypass(name, {"no": no_proxy}))
            found = proxy_for(dataclasses.replace(PLAIN, no_proxy=entries), "http", host, int(port or 80)) is None
            assert found is expected, (no_proxy, name)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy.corp:3128", Proxy("proxy.corp", 3128)),
        ("http://proxy.corp:3128/", Proxy("proxy.corp", 3128)),
        ("proxy.corp:3128", Proxy("proxy.corp", 3128)),
        ("HTTP://Proxy.Corp", Proxy("proxy.corp", 80)),
        ("http://10.0.0.1:3128", Proxy("10.0.0.1", 3128)),
        ("http://[fd00::1]:3128", Proxy("fd00::1", 3128)),
        ("http://me:p%40ss%3Aword@proxy.corp:3128", Proxy("proxy.corp", 3128, "Basic bWU6cEBzczp3b3Jk")),
        ("me:pass@proxy.corp:3128", Proxy("proxy.corp", 3128, "Basic bWU6cGFzcw==")),
    ],
)
def test_urls_of_proxies(url: str, proxy: Proxy) -> None:
    """A proxy's URL with or without scheme, port and user; percent-encoding is undone in the credentials."""
    assert proxy_at(url) == proxy
    assert "Basic" not in repr(proxy)
    assert "pass" not in f"{proxy} {proxy!r} {Network(url, url)!r}"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://proxy.corp:3128", "another scheme than http://"),
        ("socks5://me:topsecret@proxy.corp:1080", "another scheme than http://"),
        ("http://me:topsecret@:3128", "write `http://proxy.example:3128`"),
        ("http://me:topsecret@proxy.corp:port", "write `http://proxy.example:3128`"),
        ("http://me:topsecret@proxy.corp:99999", "write `http://proxy.example:3128`"),
        ("http://me:top/secret@proxy.corp:3128", "%XX"),
        ("http://proxy.corp:3128/path", "without a path"),
        ("http://pro xy:3128", "write `http://proxy.example:3128`"),
        ("http://[fd00::1:3128", "write `http://proxy.example:3128`"),
    ],
)
def test_unusable_urls_of_proxies(url: str, words: str) -> None:
    """Each is refused with what to write, and without a part of the URL, which may be its password."""
    with pytest.raises(UserError) as caught:
        proxy_at(url)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_is_said() -> None:
    """A line names the proxies without passwords, and what is direct; without a proxy, nothing is shown."""
    assert Network(no_proxy=("old.example",)).describe() == []
    both = Network(
        "http://me:topsecret@p:3128", "http://me:topsecret@p:3128", no_proxy=(".corp",), direct=("10.0.0.0/8",)
    )
    assert both.describe() == [
        "network: requests go through the proxy http://p:3128; host names are looked up by the proxy; "
        "without a proxy: localhost, 10.0.0.0/8, .corp"
    ]
    many = dataclasses.replace(both, no_proxy=("localhost", *(f"{n}.corp" for n in range(20))))
    assert many.describe()[0].endswith(
        "localhost, 10.0.0.0/8, " + ", ".join(f"{n}.corp" for n in range(8)) + ", 12 more"
    )
    (one,) = Network(https_proxy="p:3128", local_names=True).describe()
    assert one.startswith(
        "network: https:// requests go through the proxy http://p:3128; host names are looked up here"
    )


def test_it_crosses_to_other_processes() -> None:
    """It comes back from JSON as the same value, which may be a key of a dict."""
    network = Network(PROXY, "", ("a", "b"), ("c",), True, "/ca", "/cert", "/key", ("h",))
    decoded = Network.decode(json.loads(json.dumps(dataclasses.asdict(network))))
    assert decoded == network
    assert hash(decoded) == hash(network)


def test_certificates(tmp_path: Path) -> None:
    """A bundle adds to the system's certificates, and the client certificate goes to its hosts only."""
    ca = CertificateAuthority(tmp_path)
    certificate, key = ca.issue("client")
    system = len(tls().get_ca_certs())
    assert len(tls(str(ca.file)).get_ca_certs()) == system + 1
    network = Network(
        ca_bundle=str(ca.file), certificate=str(certificate), key=str(key), certificate_hosts=("img.old.example",)
    )
    assert context_for(network, "img.old.example", 443) is tls(str(ca.file), str(certificate), str(key))
    for host, port in (("img.old.example", 8443), ("other.example", 443)):
        assert context_for(network, host, port) is tls(str(ca.file))
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    tls(certificate=str(both))
    (tmp_path / "folder").mkdir()
    tls(str(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("bundle", "certificate", "key", "words"),
    [
        ("missing.pem", "", "", "the CA bundle {}/missing.pem does not exist"),
        ("text.pem", "", "", "the CA bundle {}/text.pem holds no valid PEM"),
        ("empty.pem", "", "", "the CA bundle {}/empty.pem holds no valid PEM"),
        ("", "missing.pem", "one.key", "the client certificate {}/missing.pem does not exist"),
        ("", "one.pem", "missing.key", "the key {}/missing.key does not exist"),
        ("", "one.pem", "two.key", "the key {}/two.key does not belong to the certificate"),
        ("", "text.pem", "one.key", "the key {}/one.key holds no valid PEM"),
        ("", "one.pem", "text.pem", "the key {}/text.pem holds no valid PEM"),
        ("", "one.pem", "", "the client certificate {}/one.pem with its key holds no valid PEM"),
        ("", "locked.pem", "locked.key", "the client certificate's key has a passphrase"),
    ],
)
def test_unusable_certificates(bundle: str, certificate: str, key: str, words: str, tmp_path: Path) -> None:
    """Each file that cannot be used is named, with the reason."""
    ca = CertificateAuthority(tmp_path)
    for name in ("one", "two"):
        ca.issue(name)
    ca.issue("locked", passphrase="topsecret")
    (tmp_path / "text.pem").write_text("hello")
    (tmp_path / "empty.pem").touch()
    with pytest.raises(UserError) as caught:
        tls(*(str(tmp_path / name) if name else "" for name in (bundle, certificate, key)))
    assert words.format(tmp_path) in str(caught.value)
