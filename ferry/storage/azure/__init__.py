"""Azure Blob Storage: one container as a Provider, and what authorises its requests."""

from ferry.storage.azure.authority import authority_of, end_of
from ferry.storage.azure.container import AzureContainer
from ferry.storage.azure.keys import Authority, Sas, SharedKey
from ferry.storage.azure.tokens import Tokens, managed_identity, service_principal, workload_identity

__all__ = [
    "Authority",
    "AzureContainer",
    "Sas",
    "SharedKey",
    "Tokens",
    "authority_of",
    "end_of",
    "managed_identity",
    "service_principal",
    "workload_identity",
]
