"""Access to a store: its endpoint and credentials, by provider.

Built where the work runs; never written to disk or logged. Processes of one run send it each other as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ferry.http import Network


@dataclass(frozen=True, slots=True)
class Access:
    """What all providers share. On its own it is the access to a directory."""

    endpoint_url: str | None = None
    anonymous: bool = field(default=False, kw_only=True)
    network: Network = field(default_factory=Network, kw_only=True)
    provider: str = field(default="file", init=False, kw_only=True)

    @staticmethod
    def decode(data: Mapping[str, Any]) -> Access:
        """Returns the Access of the JSON form of its ``dataclasses.asdict``."""
        kind = _BY_PROVIDER[data["provider"]]
        given = {name: value for name, value in data.items() if name != "provider"}
        return kind(**{**given, "network": Network.decode(data["network"])})


@dataclass(frozen=True, slots=True)
class S3Access(Access):
    """A bucket of an S3 store. Without keys boto3's chain looks for them, with ``profile`` there alone."""

    region: str | None = None
    profile: str | None = None
    keys: tuple[str, str, str | None] | None = field(default=None, repr=False)  # id, secret, session token
    provider: str = field(default="s3", init=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.keys is not None:  # JSON has a list
            object.__setattr__(self, "keys", tuple(self.keys))


@dataclass(frozen=True, slots=True)
class GoogleAccess(Access):
    """A bucket of Google Cloud Storage.

    ``info`` is the content of a credentials file, ``key_file`` its path. Without them google-auth looks where Google's
    own libraries look (Application Default Credentials). ``impersonate`` is a service account's address.
    """

    key_file: str | None = None
    info: Mapping[str, Any] | None = field(default=None, repr=False)
    impersonate: str | None = None
    provider: str = field(default="gs", init=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class AzureAccess(Access):
    """Containers of an Azure storage account.

    ``secret`` is the account's key or a SAS. Without it azure-identity gives tokens: those of ``settings``
    (tenant_id, client_id and client_secret of a service principal), of a workload identity, or of a managed identity.
    """

    secret: str | None = field(default=None, repr=False)
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    provider: str = field(default="az", init=False, kw_only=True)


_BY_PROVIDER = {kind().provider: kind for kind in (Access, S3Access, GoogleAccess, AzureAccess)}
