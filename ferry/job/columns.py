"""The job's `columns`: which column of the manifest has which role."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from ferry.job.base import Model as _Model

ROLES = ("source", "key", "size", "md5", "sha256", "etag", "last_modified", "content_type", "id")
OFF = ""  # the column of a role that the job switches off with null
Column = Annotated[str | None, BeforeValidator(lambda given: OFF if given is None else given)]


class Columns(_Model):
    """Manifest columns by role. A role without a column here is recognised by common column names. `null` switches a role off: with `size: null` no column is read as the size."""

    source: Column = None
    """The object's URL, or an ID for `source.url`."""
    key: Column = None
    """The destination key."""
    size: Column = None
    """The object's size in bytes."""
    md5: Column = None
    """The object's MD5, hex or base64."""
    sha256: Column = None
    """The object's SHA-256, hex or base64."""
    etag: Column = None
    """The origin's ETag."""
    last_modified: Column = None
    """The date of the object's last change."""
    content_type: Column = None
    """The object's media type."""
    id: Column = None
    """Your name for the row, which all reports show."""
    split: Annotated[str | None, Field(min_length=1)] = None
    """What separates several addresses in one cell of the source column, such as `", "` or `"|"`. Each address becomes a row, and key templates may name its number: `{sku}-{n}.{source.ext}`."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omits keys that the job does not have: null means something else."""
        return {role: column for role, column in serialise(self).items() if column is not None}
