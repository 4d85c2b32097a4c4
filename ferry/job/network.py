"""The job's `network`: proxies, and certificates beside those of the system."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ferry.core import holds_secret
from ferry.http import recipient
from ferry.job.base import Model

_PROXY = r"env|none|env:\S+"


def _proxy(value: str) -> str:
    if re.fullmatch(_PROXY, value):
        return value
    found = holds_secret(value if "://" in value else f"http://{value}")
    what = f"holds {found}, but a job must not hold secrets" if found else "is neither `env`, `none` nor `env:NAME`"
    raise ValueError(
        f"proxy {what}. Put the proxy's URL into an environment variable on the machine of the run, and write "
        "`env:NAME` with its name"
    )


def _file(value: str) -> str:
    if not value.strip() or "://" in value:
        raise ValueError("is not the path of a file")
    return value


PemFile = Annotated[str, AfterValidator(_file)]


class ClientCertificate(Model):
    """A certificate by which servers recognise Ferry (mutual TLS)."""

    certificate: PemFile
    """PEM file with the certificate, and with those between it and its CA."""
    key: PemFile | None = None
    """PEM file with the key, without a passphrase. Default: the key is in the file of the certificate."""
    hosts: Annotated[list[Annotated[str, AfterValidator(partial(recipient, key="hosts"))]], Field(min_length=1)]
    """Hosts that receive the certificate, with entries as those of `source.headers_for`: `img.old.example`, `*.old.example`, `img.old.example:8443`."""


class JobNetwork(Model):
    """Proxies and certificates, for origins, lists, APIs and stores alike (docs/how-to/networks.md)."""

    proxy: Annotated[str, AfterValidator(_proxy), Field(json_schema_extra={"pattern": f"^({_PROXY})$"})] = "env"
    """`env` (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY), `none`, or `env:NAME`: a variable that holds the URL of a proxy, with user and password if it asks for them. Hosts of NO_PROXY and of `source.allow_private_addresses` are connected to directly, and so is this machine."""
    proxy_names: Literal["proxy", "local"] = "proxy"
    """`proxy`: the proxy looks up host names. `local`: Ferry looks them up, checks the addresses, and has the proxy connect to an address."""
    ca_bundle: PemFile | None = None
    """PEM file, or directory of OpenSSL, with certificates that are trusted in addition to those of the system. Default: AWS_CA_BUNDLE, else REQUESTS_CA_BUNDLE."""
    client_certificate: ClientCertificate | None = None
    """A client certificate, for servers that ask for one."""
