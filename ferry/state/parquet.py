"""The Parquet files of the state: schemas, writing and reading. Columns: docs/reference/state.md."""

from __future__ import annotations

import hashlib
import importlib.abc
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ferry.core import Checked, Confirmed, Damaged, ErrorClass, NewerVersion, Outcome, Reason, Row, Status
from ferry.state.old_schemas import renamed_table


class _NoPandas(importlib.abc.MetaPathFinder):
    """Keeps pandas from being found. At its first array pyarrow loads it, where it is installed, to know its types:
    0.2 s and 50 MB in each process, for what Ferry never hands it. Whoever calls `to_pandas` later loads it then."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not needed here")


sys.meta_path.insert(0, _NoPandas())
pa.array([0])
del sys.meta_path[0]

SCHEMA_VERSION = 4
_META = {b"ferry_schema": str(SCHEMA_VERSION).encode()}
_S, _I = pa.string(), pa.int64()
_TIME = pa.timestamp("us", tz="UTC")

CHUNK_SCHEMA = pa.schema(
    [
        ("row_id", _S), ("source", _S), ("key", _S), ("deferred_key", pa.bool_()), ("size", _I), ("md5", _S),
        ("sha256", _S), ("content_type", _S), ("etag", _S), ("last_modified", _S), ("id", _S),
        ("reason", _S), ("attempt", _I), ("consecutive_failures", _I),
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
        ("bytes_read_at", _TIME), ("consecutive_failures", _I), ("confirmed", _S),
    ],
    metadata=_META,
)  # fmt: skip
HINT_SCHEMA = pa.schema(
    [
        ("row_id", _S), ("done", pa.bool_()), ("dest_size", _I), ("dest_etag", _S),
        # what the ledger knows of a row that is looked at again; ``revalidate`` is null for all others
        ("revalidate", _S), ("key", _S), ("size", _I), ("md5", _S), ("sha256", _S), ("content_type", _S), ("etag", _S),
        ("last_modified", _S), ("known_etag", _S), ("bytes_read_at", _TIME), ("confirmed", _S),
    ],
    metadata=_META,
)  # fmt: skip

HISTORY_SCHEMA = pa.schema(
    [
        ("row_id", _S), ("source", _S), ("key", _S), ("id", _S), ("size", _I), ("md5", _S), ("sha256", _S),
        ("content_type", _S), ("source_etag", _S), ("source_last_modified", _S), ("dest_etag", _S),
        ("recorded_at", _TIME), ("run_no", _I), ("replaced_at", _TIME), ("replaced_by", _I),
    ],
    metadata=_META,
)  # fmt: skip

assert CHUNK_SCHEMA.names == list(Row._fields)
assert OUTCOME_SCHEMA.names == list(Outcome._fields)
_REASONS = {reason.value: reason for reason in Reason}


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table as ``schema`` has it. What has its types already takes no cast, and so no `pyarrow.compute` (50 ms)."""
    return table.replace_schema_metadata(schema.metadata) if table.schema.equals(schema) else table.cast(schema)


def to_bytes(table: pa.Table) -> bytes:
    """A Parquet file in memory. The same table gives the same bytes, with one pyarrow version."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def digest_of(data: bytes) -> str:
    """The name of an immutable file: SHA-256 of its bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def encode_outcomes(outcomes: Sequence[Outcome]) -> bytes:
    columns = list(zip(*outcomes, strict=True)) or [()] * len(OUTCOME_SCHEMA)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, OUTCOME_SCHEMA, strict=True)]
    return to_bytes(pa.Table.from_arrays(arrays, schema=OUTCOME_SCHEMA))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One state file. Raises NewerVersion, or Damaged when it is no Parquet file (any more)."""
    try:
        with pq.ParquetFile(path) as file:
            check_version((file.schema_arrow.metadata or {}).get(b"ferry_schema"), str(path))
            return renamed_table(file.read(columns=list(columns) if columns else None))
    except pa.ArrowInvalid as exc:
        raise Damaged(f"state file {path} is damaged ({str(exc).splitlines()[0]})") from None


def check_version(found: bytes | int | None, what: str) -> None:
    """Refuses what a newer Ferry wrote."""
    if found is not None and int(found) > SCHEMA_VERSION:
        raise NewerVersion(
            f"{what} was written by a newer version of Ferry (schema {int(found)}; this one reads up to "
            f"{SCHEMA_VERSION}). Update Ferry here, or use another `state`"
        )


def manifest_digest_of(row: Row) -> str | None:
    """What the list says of an object, as 16 hex digits to compare; None where it says nothing. In SQL: SAID."""
    if row.size is None and row.md5 is None and row.sha256 is None and row.etag is None and row.last_modified is None:
        return None
    parts = ("" if row.size is None else str(row.size), row.md5, row.sha256, row.etag, row.last_modified)
    return hashlib.md5("\x1f".join(part or "" for part in parts).encode(), usedforsecurity=False).hexdigest()[:16]


MANIFEST_DIGEST = """CASE WHEN coalesce({m}.size::VARCHAR, {m}.md5, {m}.sha256, {m}.etag, {m}.last_modified) IS NOT NULL
    THEN md5(concat_ws(chr(31), coalesce({m}.size::VARCHAR, ''), coalesce({m}.md5, ''), coalesce({m}.sha256, ''),
                       coalesce({m}.etag, ''), coalesce({m}.last_modified, '')))[:16] END"""


def whole_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table that an earlier version wrote, with the columns that it had not."""
    for field in schema:
        if field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def rows_of(table: pa.Table) -> list[Row]:
    table = whole_schema(table, CHUNK_SCHEMA)
    columns = [table.column(name).to_pylist() for name in Row._fields]
    at = Row._fields.index("reason")
    columns[at] = [_REASONS[value] for value in columns[at]]
    at = Row._fields.index("consecutive_failures")
    columns[at] = [value or 0 for value in columns[at]]
    return [Row._make(values) for values in zip(*columns, strict=True)]


def outcomes_of(table: pa.Table) -> Iterable[Outcome]:
    for line in whole_schema(table, OUTCOME_SCHEMA).select(Outcome._fields).to_pylist():
        values: dict[str, Any] = dict(line)
        values["status"] = Status(values["status"])
        values["reason"] = Reason(values["reason"])
        values["error_class"] = ErrorClass(values["error_class"]) if values["error_class"] else None
        values["checked_by"] = Checked(values["checked_by"]) if values["checked_by"] else None
        values["consecutive_failures"] = values["consecutive_failures"] or 0
        values["confirmed"] = Confirmed(values["confirmed"]) if values["confirmed"] else None
        yield Outcome(**values)


def concat(parts: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables([whole_schema(part, OUTCOME_SCHEMA) for part in parts])
