"""The job's `columns`: which column of the manifest has which role."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ferry.job.base import Model as _Model

ROLES = ("source", "key", "size", "md5", "sha256", "etag", "last_modified", "content_type", "id")
OFF = ""  # the column of a role that the job switches off with null
Column = Annotated[str | None, BeforeValidator(lambda given: OFF if given is None else given)]


def _one_or_more(given: str | list[str] | None) -> str | list[str] | None:
    """Returns a list of several columns, or the only column. Raises ValueError for a column that is named twice."""
    if not isinstance(given, list):
        return given
    if len(set(given)) < len(given):
        raise ValueError("columns.source names a column twice; remove one of the two")
    return given[0] if len(given) == 1 else given


# Prefect's form shows titles as the names of the choices
_Several = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, title="columns, in order")]
SourceColumns = Annotated[
    Annotated[str, Field(title="column")] | _Several | None,
    BeforeValidator(lambda given: OFF if given is None else given),
    AfterValidator(_one_or_more),
]


class Columns(_Model):
    """Manifest columns by role. A role without a column here is recognised by common column names. `null` switches a role off: with `size: null` no column is read as the size."""

    source: SourceColumns = None
    """The object's URL, or an ID for `source.url`. A list of columns, such as `[url, cdn_url]`, has several addresses of one object: Ferry requests the next one after a permanent failure."""
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

    @model_validator(mode="after")
    def _split_one_column(self) -> Columns:
        if self.split is not None and self.more_sources:
            raise ValueError(
                "columns.split cannot be combined with several columns in columns.source: its addresses are different "
                "objects, and those are one object's. Remove one of the two"
            )
        return self

    def of(self, role: str) -> str | None:
        """Returns the column that the job names for a role, the first of several; OFF if the role is switched off."""
        column: str | list[str] | None = getattr(self, role)
        return column[0] if isinstance(column, list) else column

    @property
    def more_sources(self) -> list[str]:
        """The columns with further addresses of the row's object, in order."""
        return self.source[1:] if isinstance(self.source, list) else []

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omits keys that the job does not have: null means something else."""
        return {role: column for role, column in serialise(self).items() if column is not None}
