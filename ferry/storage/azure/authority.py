"""What authorises the requests of a job: an account key, a SAS, or tokens."""

from __future__ import annotations

from datetime import datetime

from ferry.storage.access import AzureAccess
from ferry.storage.azure.keys import Authority, Sas, SharedKey
from ferry.storage.azure.tokens import Tokens, managed_identity, service_principal, workload_identity


def authority_of(account: str, access: AzureAccess) -> Authority:
    """Returns what authorises requests to an account. The first matching row decides:

    | `anonymous` | `secret` | `settings` | authorised by |
    |---|---|---|---|
    | yes | | | nothing: public containers |
    | no | with `sig=` | | the SAS |
    | no | any other | | the account's key |
    | no | | client_secret | the service principal |
    | no | | token_file_path | the workload identity |
    | no | | client_id, or nothing | the managed identity |

    Raises UserError for a secret that is neither, and if azure-identity is needed and missing.
    """
    if access.anonymous:
        return Authority()
    if access.secret:
        return Sas(access.secret) if "sig=" in access.secret else SharedKey(account, access.secret)
    settings = dict(access.settings)
    if "client_secret" in settings:
        return Tokens(service_principal(access.network, **settings))
    if "token_file_path" in settings:
        return Tokens(workload_identity(access.network, **settings))
    return Tokens(managed_identity(access.network, **settings))


def end_of(access: AzureAccess) -> datetime | None:
    """Returns when the credentials end and cannot be renewed: the end of a SAS that has one."""
    return Sas(access.secret).ends_at if access.secret and "sig=" in access.secret else None
