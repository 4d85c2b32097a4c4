"""Schemas of the state's Parquet files, and functions to write and read them (columns: docs/reference/state.md)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ferry.core import Checked, Confirmed, Damaged, ErrorClass, NewerVersion, Outcome, Reason, Row, Status
from ferry.state.old_schemas import renamed_table

SCHEMA_VERSION = 6
SORTED_BY = b"ferry_sorted_by"  # metadata of a file whose lines are sorted by this column, and have each value once
_META = {b"ferry_schema": str(SCHEMA_VERSION).encode()}
_S, _I = pa.string(), pa.int64()
_TIME = pa.timestamp("us", tz="UTC")

CHUNK_SCHEMA = pa.schema(
    [
        ("row_id", _S), ("source", _S), ("key", _S), ("deferred_key", pa.bool_()), ("size", _I), ("md5", _S),
        ("sha256", _S), ("content_type", _S), ("etag", _S), ("last_modified", _S), ("id", _S),
        ("reason", _S), ("attempt", _I), ("consecutive_failures", _I), ("alternatives", pa.list_(_S)),
        ("storage_class", _S),
    ],
    metadata=_META,
)  # fmt: skip
OUTCOME_SCHEMA = pa.schema(
    [
        ("row_id", _S), ("source", _S), ("key", _S), ("id", _S), ("status", _S), ("error_class", _S),
        ("status_code", _I), ("message", _S), ("retryable", pa.bool_()), ("reason", _S), ("attempt", _I),
        ("requests", _I), ("size", _I), ("md5", _S), ("sha256", _S), ("content_type", _S), ("source_etag", _S),
        ("source_last_modified", _S), ("dest_etag", _S), ("started_at", _TIME), ("recorded_at", _TIME),
        ("run_no", _I), ("chunk", _S), ("settings_digest", _S), ("manifest_digest", _S), ("checked_by", _S),
        ("bytes_read_at", _TIME), ("consecutive_failures", _I), ("confirmed", _S), ("address", _S),
        ("copy_of", _S),
        ("attributes_sha256", _S), ("lost_attributes", pa.list_(_S)),
    ],
    metadata=_META,
)  # fmt: skip
FOLD_SCHEMA = OUTCOME_SCHEMA.with_metadata({**_META, SORTED_BY: b"row_id"})
HINT_SCHEMA = pa.schema(
    [
        ("row_id", _S), ("done", pa.bool_()), ("dest_size", _I), ("dest_etag", _S),
        # what the ledger knows of a copy that is to be rechecked; if ``revalidate`` is null, of another row's copy with
        # the digest that the manifest has for this row
        ("revalidate", _S), ("key", _S), ("size", _I), ("md5", _S), ("sha256", _S), ("content_type", _S), ("etag", _S),
        ("last_modified", _S), ("known_etag", _S), ("bytes_read_at", _TIME), ("confirmed", _S), ("address", _S),
        ("attributes_sha256", _S), ("lost_attributes", pa.list_(_S)),
    ],
    metadata=_META,
)  # fmt: skip

HISTORY_SCHEMA = pa.schema(
    [
        ("row_id", _S), ("source", _S), ("key", _S), ("id", _S), ("size", _I), ("md5", _S), ("sha256", _S),
        ("content_type", _S), ("source_etag", _S), ("source_last_modified", _S), ("dest_etag", _S),
        ("recorded_at", _TIME), ("run_no", _I), ("replaced_at", _TIME), ("replaced_by", _I), ("address", _S),
    ],
    metadata=_META,
)  # fmt: skip

assert CHUNK_SCHEMA.names == list(Row._fields)
assert OUTCOME_SCHEMA.names == list(Outcome._fields)
_REASONS = {reason.value: reason for reason in Reason}


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the table with the types and metadata of ``schema``.

    A table that has the types already is not cast, which saves the import of `pyarrow.compute` (50 ms).
    """
    return table.replace_schema_metadata(schema.metadata) if table.schema.equals(schema) else table.cast(schema)


def to_bytes(table: pa.Table) -> bytes:
    """Returns a table as the bytes of a Parquet file, the same for the same table and pyarrow version."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def digest_of(data: bytes) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hex digits; chunk files have it as their name."""
    return hashlib.sha256(data).hexdigest()


def encode_outcomes(outcomes: Sequence[Outcome]) -> bytes:
    """Returns outcomes as the bytes of a Parquet file."""
    columns = list(zip(*outcomes, strict=True)) or [()] * len(OUTCOME_SCHEMA)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, OUTCOME_SCHEMA, strict=True)]
    return to_bytes(pa.Table.from_arrays(arrays, schema=OUTCOME_SCHEMA))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns the content of a Parquet file with today's names. Raises NewerVersion, and Damaged if it is not Parquet.

    ``columns`` limits what is read; None reads all.
    """
    try:
        with pq.ParquetFile(path) as file:
            check_version((file.schema_arrow.metadata or {}).get(b"ferry_schema"), str(path))
            return renamed_table(file.read(columns=list(columns) if columns else None))
    except pa.ArrowInvalid as exc:
        raise Damaged(f"state file {path} is damaged ({str(exc).splitlines()[0]})") from None


def check_version(found: bytes | int | None, what: str, newest: int = SCHEMA_VERSION) -> None:
    """Raises NewerVersion for ``what`` if the schema ``found`` is newer than this Ferry's."""
    if found is not None and int(found) > newest:
        raise NewerVersion(
            f"{what} was written by a newer version of Ferry (schema {int(found)}; this one reads up to "
            f"{newest}). Update Ferry here, or use another `state`"
        )


def manifest_digest_of(row: Row) -> str | None:
    """Returns 16 hex digits of what the manifest says of the object, or None if it says nothing.

    MANIFEST_DIGEST is the same in SQL.
    """
    if row.size is None and row.md5 is None and row.sha256 is None and row.etag is None and row.last_modified is None:
        return None
    parts = ("" if row.size is None else str(row.size), row.md5, row.sha256, row.etag, row.last_modified)
    return hashlib.md5("\x1f".join(part or "" for part in parts).encode(), usedforsecurity=False).hexdigest()[:16]


MANIFEST_DIGEST = """CASE WHEN coalesce({m}.size::VARCHAR, {m}.md5, {m}.sha256, {m}.etag, {m}.last_modified) IS NOT NULL
    THEN md5(concat_ws(chr(31), coalesce({m}.size::VARCHAR, ''), coalesce({m}.md5, ''), coalesce({m}.sha256, ''),
                       coalesce({m}.etag, ''), coalesce({m}.last_modified, '')))[:16] END"""


def add_missing_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the table with an empty column for each one of ``schema`` that an earlier version did not write."""
    for field in schema:
        if field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def rows_of(table: pa.Table) -> list[Row]:
    """Returns the rows of a chunk file's table."""
    table = add_missing_columns(table, CHUNK_SCHEMA)
    columns = [table.column(name).to_pylist() for name in Row._fields]
    at = Row._fields.index("reason")
    columns[at] = [_REASONS[value] for value in columns[at]]
    at = Row._fields.index("consecutive_failures")
    columns[at] = [value or 0 for value in columns[at]]
    return [Row._make(values) for values in zip(*columns, strict=True)]


def outcomes_of(table: pa.Table) -> Iterable[Outcome]:
    """Yields the outcomes of a ledger or outcomes file's table."""
    for line in add_missing_columns(table, OUTCOME_SCHEMA).select(Outcome._fields).to_pylist():
        values: dict[str, Any] = dict(line)
        values["status"] = Status(values["status"])
        values["reason"] = Reason(values["reason"])
        values["error_class"] = ErrorClass(values["error_class"]) if values["error_class"] else None
        values["checked_by"] = Checked(values["checked_by"]) if values["checked_by"] else None
        values["consecutive_failures"] = values["consecutive_failures"] or 0
        values["confirmed"] = Confirmed(values["confirmed"]) if values["confirmed"] else None
        yield Outcome(**values)


def concat(parts: Sequence[pa.Table]) -> pa.Table:
    """Returns the lines of several outcomes tables as one table."""
    return pa.concat_tables([add_missing_columns(part, OUTCOME_SCHEMA) for part in parts])
