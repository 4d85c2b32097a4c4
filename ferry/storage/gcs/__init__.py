"""Google Cloud Storage through its JSON API (docs/decisions/0051)."""

from ferry.storage.gcs.bucket import Gcs
from ferry.storage.gcs.tokens import Anonymous, GoogleTokens, endpoint_of, tokens_for

__all__ = ["Anonymous", "Gcs", "GoogleTokens", "endpoint_of", "tokens_for"]
