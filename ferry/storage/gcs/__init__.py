"""Google Cloud Storage through its JSON API (docs/decisions/0051)."""

from ferry.storage.gcs.bucket import Gcs
from ferry.storage.gcs.tokens import Anonymous, GoogleAccess, GoogleTokens, endpoint_of, tokens_for

__all__ = ["Anonymous", "Gcs", "GoogleAccess", "GoogleTokens", "endpoint_of", "tokens_for"]
