"""Normalised rows of a manifest as Parquet: source, key, digests, and the problem of each unusable row."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ferry.core import TIER, ErrorClass, redact, redact_ids, short
from ferry.job import SOURCE_FIELDS, Template, are_plain_keys, finish_key, key_problem, source_field
from ferry.manifest.addresses import Addresses, Problems, Texts
from ferry.manifest.columns import Batch

if TYPE_CHECKING:
    import duckdb

ROW_GROUP = 65_536
SCHEMA = pa.schema(
    [
        pa.field("row_no", pa.int64(), nullable=False),
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("key", pa.string()),
        pa.field("deferred_key", pa.bool_(), nullable=False),
        pa.field("size", pa.int64()),
        *(pa.field(n, pa.string()) for n in ("md5", "sha256", "etag", "last_modified", "content_type", "id")),
        pa.field("error_class", pa.string()),
        pa.field("message", pa.string()),
        pa.field("line_no", pa.int64()),  # of the manifest's file; null for listings
        pa.field("alternatives", pa.list_(pa.string())),  # further addresses, in order; null if there are none
        pa.field("storage_class", pa.string()),  # of a listing
    ],
    metadata={"ferry_schema": "1"},
)
# What a batch has: IDs are added when it is written. They are made of texts that two columns may not show.
_WITHOUT_IDS = pa.schema(
    [field for field in SCHEMA if field.name != "row_id"]
    + [pa.field("key_text", pa.string()), pa.field("whole_id", pa.string())]
)
_PARTS = ("source", "coalesce(key_text, key)", "coalesce(whole_id, id)")
_BASE_ROW_IDS = "SELECT sha256(concat(" + ", ".join(  # which leaves out what is NULL
    f"coalesce(length({part}) || ':', '-'), {part}" for part in _PARTS
) + ")) AS row_id FROM rows ORDER BY row_no"  # fmt: skip
_BAD_LINE, _BAD_KEY = ErrorClass.BAD_LINE.value, ErrorClass.BAD_KEY.value
MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+(?:\s*;[ -~]*)?", re.ASCII)
_ANY_SHA256 = "0" * 64


@dataclass(frozen=True, slots=True)
class NormaliseResult:
    """The file and the counts of its rows."""

    path: Path
    rows: int
    problems: dict[str, int] = field(default_factory=dict)  # error class -> unusable rows
    duplicates: int = 0  # rows with the source, key and id of an earlier one
    deferred: int = 0  # rows whose key is known only after the download
    repairs: dict[str, int] = field(default_factory=dict)  # `blanks`, `schemes` -> rows whose source was completed
    ignored: dict[str, int] = field(default_factory=dict)  # one of several source columns -> cells without an address


def base_row_id(source: str | None, key: str | None, id_: str | None) -> bytes:
    """Returns the SHA-256 of (source, key, id). Each has its length in front, so that different tuples differ.

    _BASE_ROW_IDS computes those of many rows.
    """
    text = "".join([f"{len(part)}:{part}" if part is not None else "-" for part in (source, key, id_)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def row_id(base: bytes, n: int) -> str:
    """Returns the ID of the n-th row (from 0) with this source, key and id."""
    return base.hex() if n == 0 else hashlib.sha256(base + b":%d" % n).hexdigest()


def read_digest(text: str, size: int) -> str | None:
    """Returns a digest of ``size`` bytes, written as hex or base64, as lower-case hex; None if it is neither."""
    text = text.strip()
    if len(text) == 2 * size:
        try:
            return bytes.fromhex(text).hex() if text.isalnum() else None
        except ValueError:
            return None
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw.hex() if len(raw) == size else None


def read_size(text: str) -> int | None:
    """Returns a length in bytes; None if the text is not an integer from 0 to 10^18 - 1."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


class Normaliser:
    """Makes normalised columns of batches. An unusable row stays, with its problem."""

    def __init__(
        self,
        *,
        addresses: Addresses,
        key_template: Template | None,
        prefix: str,
        for_directory: bool,
        as_listed: bool = False,
        unread: Collection[str] = (),
    ) -> None:
        """``unread``: roles without a column; a batch may have a column of that name for a template."""
        self._as_listed = as_listed
        self._addresses, self._key_template = addresses, key_template
        self._prefix, self._for_directory, self._unread = prefix, for_directory, frozenset(unread)
        self.problems: Counter[str] = Counter()
        self.deferred = 0

    def columns(self, batch: Batch) -> dict[str, list[object]]:
        """Returns the batch's columns as in _WITHOUT_IDS."""
        rows = len(batch)
        none: list[str | None] = [None] * rows
        get = {role: values for role, values in batch.values.items() if role not in self._unread}.get
        ids, key_column = get("id") or none, get("key") or none
        problems: Problems = {index: (_BAD_LINE, why) for index, why in batch.problems.items()}

        sources, default_keys = self._addresses.sources(batch, problems)
        alternatives = self._addresses.alternatives(batch, sources, default_keys, problems)
        keys = self._keys(batch, sources, default_keys, key_column, problems)
        # A row's identity has the resulting key, not the manifest's text: with another key it is another row.
        key_texts = [text if key is None else None for key, text in zip(keys, key_column, strict=True)]
        shown_ids = redact_ids(ids)  # reports show them
        deferred = self._key_template is not None and self._key_template.late
        out: dict[str, list[object]] = {
            "row_no": list(batch.row_no),
            "source": list(sources),
            "key": list(keys),
            "deferred_key": [deferred] * rows,
            "size": self._parse(get("size"), rows, problems, "size", None),
            "md5": self._parse(get("md5"), rows, problems, "md5", 16),
            "sha256": self._parse(get("sha256"), rows, problems, "sha256", 32),
            "etag": list(get("etag") or none),
            "last_modified": list(get("last_modified") or none),
            "content_type": self._media_types(get("content_type"), rows, problems),
            "id": list(shown_ids),
            "error_class": list(none),
            "message": list(none),
            "line_no": [None] * rows if batch.line_no is None else list(batch.line_no),
            "alternatives": alternatives,
            "storage_class": list(get(TIER) or none),
            "key_text": list(key_texts),
            "whole_id": [None if shown == id_ else id_ for shown, id_ in zip(shown_ids, ids, strict=True)],
        }
        for index, (error_class, message) in problems.items():
            out["error_class"][index], out["message"][index] = error_class, message
            self.problems[error_class] += 1
            if error_class == _BAD_KEY and "://" in (keys[index] or ""):
                # a column of addresses was taken for the key
                out["key_text"][index], out["key"][index] = keys[index], redact(keys[index] or "")
        self.deferred += rows if deferred else 0
        return out

    def _keys(
        self, batch: Batch, sources: Texts, default_keys: Texts, key_column: Texts, problems: Problems
    ) -> list[str | None]:
        """Returns each row's key: by the template, else from the key column, else the default key."""
        template, prefix, for_directory = self._key_template, self._prefix, self._for_directory
        if template is None:
            keys = [
                default if key is None else key if self._as_listed else key.lstrip("/")
                for key, default in zip(key_column, default_keys, strict=True)
            ]
            deferred = False
        else:
            deferred = template.late
            values: dict[str, Texts] = dict(batch.values)
            values["source"] = sources
            for name in template.fields & SOURCE_FIELDS:
                values[name] = [
                    None if default is None else source_field(name, source or "", default)
                    for source, default in zip(sources, default_keys, strict=True)
                ]
            keys = [key and key.lstrip("/") for key in template.render_many(values, len(batch))]
        if not deferred and None not in keys and are_plain_keys(cast("list[str]", keys), prefix):
            return keys
        for index, key in enumerate(keys):
            if key is None:
                if index not in problems:
                    assert template is not None  # without a template, a row with an address has a default key
                    row = {name: column[index] for name, column in values.items()}
                    problems[index] = (_BAD_KEY, template.missing(row))
                continue
            final = finish_key(key, _ANY_SHA256, "jpeg") if deferred else key
            why = key_problem(final, for_directory=for_directory, prefix=prefix, as_listed=self._as_listed)
            if why is not None:
                problems.setdefault(index, (_BAD_KEY, f"{why}; set `key`, or give the row another one"))
        return keys

    @staticmethod
    def _parse(
        column: Texts | None, rows: int, problems: Problems, role: str, digest_bytes: int | None
    ) -> list[object]:
        """Returns a column of sizes or digests. An invalid value is a problem of its row."""
        if column is None:
            return [None] * rows
        out: list[object] = []
        for index, text in enumerate(column):
            if text is None or not text.strip():
                out.append(None)
                continue
            value = read_size(text) if digest_bytes is None else read_digest(text, digest_bytes)
            out.append(value)
            if value is None:
                form = "a whole number of bytes" if digest_bytes is None else (
                    f"{2 * digest_bytes} hex digits or base64 of {digest_bytes} bytes")  # fmt: skip
                problems.setdefault(index, (_BAD_LINE, f"{role} `{short(text)}` is not {form}"))
        return out

    @staticmethod
    def _media_types(column: Texts | None, rows: int, problems: Problems) -> list[object]:
        """Returns a column of media types, which become headers. An invalid value is a problem of its row."""
        if column is None:
            return [None] * rows
        known: dict[str | None, str | None] = {None: None}
        for text in set(column):
            value = (text or "").strip()
            known[text] = value if MEDIA_TYPE.fullmatch(value) else None
        for index, text in enumerate(column):
            if text and text.strip() and known[text] is None:
                problems.setdefault(
                    index, (_BAD_LINE, f"content_type `{short(text)}` is not a media type such as image/jpeg")
                )
        return [known[text] for text in column]


def normalise(
    con: duckdb.DuckDBPyConnection,
    batches: Iterable[Batch],
    *,
    url_template: Template | None,
    key_template: Template | None,
    roots: Sequence[str] = (),
    prefix: str = "",
    for_directory: bool,
    as_listed: bool = False,
    unread: Collection[str] = (),
    bare_hosts: bool = False,
    sources: Sequence[str] = (),
    out_path: Path,
) -> NormaliseResult:
    """Writes all rows, in their order, to one Parquet file. Memory does not grow with the manifest.

    ``con`` finds duplicate rows, within its own limit on memory. ``roots``: sources in buckets and directories must be
    under one of them. ``prefix``: the destination's, for the limit on a key's length; keys are written without it.
    ``as_listed``: the rows are the objects of a listing, and a bucket gets their keys as they are. ``bare_hosts``:
    sources are addresses without a scheme. ``unread``: roles that no column has, although a batch may have values of
    that name for a template. ``sources``: columns with addresses of one object. The file gets its name
    when it is complete. Raises what ``batches`` raises, and OSError if the file cannot be written.
    """
    addresses = Addresses(url_template, roots, bare_hosts=bare_hosts, columns=sources, as_listed=as_listed)
    normaliser = Normaliser(
        addresses=addresses, key_template=key_template, prefix=prefix, for_directory=for_directory,
        as_listed=as_listed, unread=unread,
    )  # fmt: skip
    unfinished = out_path.with_name(out_path.name + ".unfinished")
    try:
        with _writer(unfinished) as writer:
            rows = _write(con, writer, _row_groups(normaliser, batches))
        unfinished.chmod(0o600)  # it contains sources with their signatures
        duplicates = _number_duplicates(con, unfinished)
        unfinished.replace(out_path)
    finally:
        unfinished.unlink(missing_ok=True)
    return NormaliseResult(
        out_path, rows, dict(normaliser.problems), duplicates, normaliser.deferred, dict(addresses.repairs),
        dict(addresses.ignored),
    )  # fmt: skip


def _writer(path: Path) -> pq.ParquetWriter:
    # In nearly all columns each value occurs once: a dictionary would cost time and memory and save nothing.
    few = ["content_type", "error_class", "message", "storage_class"]
    return pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=few)


def _write(con: duckdb.DuckDBPyConnection, writer: pq.ParquetWriter, tables: Iterable[pa.Table]) -> int:
    """Writes tables with their rows' IDs, and returns the number of rows.

    Digests and compression take as long as the next table in Python, so a thread does them meanwhile.
    """
    rows = 0
    with con.cursor() as own, ThreadPoolExecutor(1) as thread:
        writing: Future[None] | None = None
        for table in tables:
            if writing is not None:
                writing.result()
            writing = thread.submit(lambda table: writer.write_table(with_ids(own, table), ROW_GROUP), table)
            rows += table.num_rows
        if writing is not None:
            writing.result()
    return rows


def with_ids(con: duckdb.DuckDBPyConnection, table: pa.Table) -> pa.Table:
    """Returns rows as in SCHEMA from rows as in _WITHOUT_IDS. Each row_id is that of the first such row."""
    con.register("rows", table)
    ids = con.sql(_BASE_ROW_IDS).to_arrow_table().column("row_id")
    return pa.table([ids if name == "row_id" else table.column(name) for name in SCHEMA.names], SCHEMA)


def _row_groups(normaliser: Normaliser, batches: Iterable[Batch]) -> Iterator[pa.Table]:
    """Yields tables of one row group each, as in _WITHOUT_IDS."""
    pending: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        columns = normaliser.columns(batch)
        arrays = [_array(columns[field.name], field.type) for field in _WITHOUT_IDS]
        pending.append(pa.RecordBatch.from_arrays(arrays, schema=_WITHOUT_IDS))
        count += len(batch)
        while count >= ROW_GROUP:
            table = pa.Table.from_batches(pending)
            yield table.slice(0, ROW_GROUP)
            pending = table.slice(ROW_GROUP).to_batches()
            count -= ROW_GROUP
    if pending:
        yield pa.Table.from_batches(pending)


def _array(values: list[object], kind: pa.DataType) -> pa.Array:
    if values and values[0] is None and values.count(None) == len(values):  # as most columns are
        return pa.nulls(len(values), kind)
    return pa.array(values, kind)


def find_duplicates(con: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Fills `duplicates` with the number of each row that has the ID of an earlier one, and returns how many there are.

    Whether any ID occurs twice is told by hashes first: to number all rows takes three times as long.
    """
    con.execute("CREATE OR REPLACE TEMP TABLE duplicates (row_no BIGINT, n BIGINT)")
    given = {"path": str(path)}
    repeated = "SELECT 1 FROM read_parquet($path) GROUP BY hash(row_id) HAVING count(*) > 1 LIMIT 1"
    if con.execute(repeated, given).fetchall():
        con.execute(
            "INSERT INTO duplicates SELECT row_no, row_number() OVER (PARTITION BY row_id ORDER BY row_no) - 1 AS n "
            "FROM read_parquet($path) QUALIFY n > 0",
            given,
        )
    (count,) = con.execute("SELECT count(*) FROM duplicates").fetchall()[0]
    return int(count)


def _number_duplicates(con: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Gives each duplicate row an ID of its own. Returns their number; if it is 0, the file is not written again."""
    count = find_duplicates(con, path)
    if not count:
        return 0
    renumbered = path.with_name(path.name + ".2")
    try:
        with pq.ParquetFile(path) as file, _writer(renumbered) as writer:
            renumbered.chmod(0o600)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group).replace_schema_metadata(SCHEMA.metadata)
                writer.write_table(_with_own_ids(con, table), row_group_size=ROW_GROUP)
        renumbered.replace(path)
    finally:
        renumbered.unlink(missing_ok=True)
        con.execute("DROP TABLE duplicates")
    return count


def _with_own_ids(con: duckdb.DuckDBPyConnection, table: pa.Table) -> pa.Table:
    first, last = table["row_no"][0].as_py(), table["row_no"][-1].as_py()
    found = con.execute("SELECT row_no, n FROM duplicates WHERE row_no BETWEEN ? AND ?", [first, last]).fetchall()
    if not found:
        return table
    ids = table["row_id"].to_pylist()
    for row_no, n in found:
        ids[row_no - first] = row_id(bytes.fromhex(ids[row_no - first]), n)
    column = SCHEMA.get_field_index("row_id")
    return table.set_column(column, SCHEMA.field(column), pa.array(ids, pa.string()))
