"""Raw rows of a list -> normalised rows in Parquet: source, key, digests and what is wrong with each."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from ferry.core import ErrorClass, redact, redact_id, short
from ferry.job import SOURCE_FIELDS, Template, decode_path, finish_key, key_problem, source_field
from ferry.manifest.columns import Batch
from ferry.manifest.sources import PLAIN_URL, address, normal_roots, trim

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
    ],
    metadata={"ferry_schema": "1"},
)
_BAD_LINE, _BAD_URL, _BAD_KEY = ErrorClass.BAD_LINE.value, ErrorClass.BAD_URL.value, ErrorClass.BAD_KEY.value
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+(?:\s*;[ -~]*)?", re.ASCII)
_NOTHING_READ = "0" * 64

Texts = Sequence[str | None]


@dataclass(frozen=True, slots=True)
class NormaliseResult:
    """``rows`` were written, those of ``problems`` (error class -> count) with an error; ``repeated`` are
    rows equal to an earlier one, ``late`` those whose key is known after the fetch only."""

    path: Path
    rows: int
    problems: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    late: int = 0


def base_row_id(source: str | None, key: str | None, id_: str | None) -> bytes:
    """SHA-256 of (source, key, id), each with its length in front, so that no two tuples read alike."""
    text = "".join([f"{len(part)}:{part}" if part is not None else "-" for part in (source, key, id_)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def row_id(base: bytes, n: int) -> str:
    """The ID of the n-th row (from 0) with this source, key and id."""
    return base.hex() if n == 0 else hashlib.sha256(base + b":%d" % n).hexdigest()


def read_digest(text: str, size: int) -> str | None:
    """Lower-case hex of a digest of ``size`` bytes written as hex or base64; None if it is neither."""
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
    """A length in bytes; None if it is no whole number that fits."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


class Normaliser:
    """Turns batches into columns; what is wrong with a row is noted, and the row stays."""

    def __init__(
        self,
        *,
        url_template: Template | None,
        key_template: Template | None,
        roots: Sequence[str],
        prefix: str,
        for_directory: bool,
    ) -> None:
        self._url, self._key_template = url_template, key_template
        self._roots, self._prefix, self._for_directory = normal_roots(roots), prefix, for_directory
        self.problems: Counter[str] = Counter()
        self.late = 0

    def columns(self, batch: Batch) -> dict[str, list[object]]:
        """The batch's columns as SCHEMA has them; each row_id is that of the first such row."""
        rows = len(batch)
        none: list[str | None] = [None] * rows
        get = batch.values.get
        ids, key_column = get("id") or none, get("key") or none
        wrong: dict[int, tuple[str, str]] = {index: (_BAD_LINE, why) for index, why in batch.problems.items()}

        sources, paths = self._sources(batch, wrong)
        keys = self._keys(batch, sources, paths, key_column, wrong)
        # What the row wants, and not how the list says it: under another key it is another row.
        wanted = (key if key is not None else text for key, text in zip(keys, key_column, strict=True))
        late = self._key_template is not None and self._key_template.late
        out: dict[str, list[object]] = {
            "row_no": list(batch.row_no),
            "row_id": [base_row_id(*row).hex() for row in zip(sources, wanted, ids, strict=True)],
            "source": list(sources),
            "key": list(keys),
            "deferred_key": [late] * rows,
            "size": self._read(get("size"), rows, wrong, "size", None),
            "md5": self._read(get("md5"), rows, wrong, "md5", 16),
            "sha256": self._read(get("sha256"), rows, wrong, "sha256", 32),
            "etag": list(get("etag") or none),
            "last_modified": list(get("last_modified") or none),
            "content_type": self._media_types(get("content_type"), rows, wrong),
            "id": [id_ and redact_id(id_) for id_ in ids],  # it goes into every report
            "error_class": list(none),
            "message": list(none),
        }
        for index, (error_class, message) in wrong.items():
            out["error_class"][index], out["message"][index] = error_class, message
            self.problems[error_class] += 1
            if error_class == _BAD_KEY and "://" in (keys[index] or ""):
                out["key"][index] = redact(keys[index] or "")  # the wrong column was taken for the key
        self.late += rows if late else 0
        return out

    def _sources(self, batch: Batch, wrong: dict[int, tuple[str, str]]) -> tuple[list[str | None], list[str | None]]:
        """Each row's source and its default key (None where there is none)."""
        rows = len(batch)
        given: Texts = batch.values.get("source") or [None] * rows
        if self._url is not None:
            given = self._from_template(self._url, batch, given, wrong)
        sources: list[str | None] = []
        paths: list[str | None] = []
        match = PLAIN_URL.fullmatch
        for index, source in enumerate(given):
            plain = match(source) if source else None
            if plain is not None:
                sources.append(source)
                paths.append(decode_path(plain[1]).lstrip("/"))
                continue
            source = trim(source) if source else None
            sources.append(source or None)
            path, why = address(source, self._roots) if source else (None, f"{_where(batch, index)} has no URL")
            paths.append(path)
            if why is not None:
                wrong.setdefault(index, (_BAD_URL, why))
        return sources, paths

    def _from_template(self, url: Template, batch: Batch, given: Texts, wrong: dict[int, tuple[str, str]]) -> Texts:
        """Addresses for the rows whose source is not one already; a source without `://` stands in for {id}."""
        values = dict(batch.values)
        ids = values.get("id") or [None] * len(batch)
        values["id"] = [id_ or source for id_, source in zip(ids, given, strict=True)]
        built = url.render_many(values, len(batch))
        out: list[str | None] = []
        for index, (source, address_) in enumerate(zip(given, built, strict=True)):
            if source is not None and "://" in source:
                out.append(source)
                continue
            if address_ is None:
                why = url.missing({name: column[index] for name, column in values.items()})
                wrong.setdefault(index, (_BAD_URL, why.replace("the row", _where(batch, index), 1)))
            out.append(address_)
        return out

    def _keys(
        self, batch: Batch, sources: Texts, paths: Texts, key_column: Texts, wrong: dict[int, tuple[str, str]]
    ) -> list[str | None]:
        template, prefix, for_directory = self._key_template, self._prefix, self._for_directory
        if template is None:
            keys = [path if key is None else key.lstrip("/") for key, path in zip(key_column, paths, strict=True)]
            late = False
        else:
            late = template.late
            values: dict[str, Texts] = dict(batch.values)
            values["source"] = sources
            for name in template.fields & SOURCE_FIELDS:
                values[name] = [
                    None if path is None else source_field(name, source or "", path)
                    for source, path in zip(sources, paths, strict=True)
                ]
            keys = [key and key.lstrip("/") for key in template.render_many(values, len(batch))]
        for index, key in enumerate(keys):
            if key is None:
                if index not in wrong:
                    assert template is not None  # without a template a row with an address has a path
                    row = {name: column[index] for name, column in values.items()}
                    wrong[index] = (_BAD_KEY, template.missing(row))
                continue
            final = finish_key(key, _NOTHING_READ, "jpeg") if late else key
            why = key_problem(final, for_directory=for_directory, prefix=prefix)
            if why is not None:
                wrong.setdefault(index, (_BAD_KEY, f"{why}; set `key`, or give the row another one"))
        return keys

    @staticmethod
    def _read(
        column: Texts | None, rows: int, wrong: dict[int, tuple[str, str]], role: str, digest_bytes: int | None
    ) -> list[object]:
        """A column of sizes or digests; one that cannot be read is never silently ignored."""
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
                wrong.setdefault(index, (_BAD_LINE, f"{role} `{short(text)}` is not {form}"))
        return out

    @staticmethod
    def _media_types(column: Texts | None, rows: int, wrong: dict[int, tuple[str, str]]) -> list[object]:
        """Media types become headers: whatever could not be one is a problem of its row."""
        if column is None:
            return [None] * rows
        known: dict[str | None, str | None] = {None: None}
        for text in set(column):
            value = (text or "").strip()
            known[text] = value if _MEDIA_TYPE.fullmatch(value) else None
        for index, text in enumerate(column):
            if text and text.strip() and known[text] is None:
                wrong.setdefault(index, (_BAD_LINE, f"content_type `{short(text)}` is no media type (image/jpeg)"))
        return [known[text] for text in column]


def _where(batch: Batch, index: int) -> str:
    return f"row {batch.row_no[index]}" if batch.line_no is None else f"the row in line {batch.line_no[index]}"


def normalise(
    con: duckdb.DuckDBPyConnection,
    batches: Iterable[Batch],
    *,
    url_template: Template | None,
    key_template: Template | None,
    roots: Sequence[str] = (),
    prefix: str = "",
    for_directory: bool,
    out_path: Path,
) -> NormaliseResult:
    """Write every row of the list, in its order, to one Parquet file; memory does not grow with the list.

    ``con`` finds the rows that are equal to an earlier one, within its own limit on memory.
    ``roots``: where `s3://` and `file://` sources may lie. ``prefix``: the destination's, for the limit on
    a key's length; keys are written without it. The file appears under its name when it is whole.
    Raises what ``batches`` raises, and OSError where the file cannot be written.
    """
    work = Normaliser(
        url_template=url_template, key_template=key_template, roots=roots, prefix=prefix, for_directory=for_directory
    )
    unfinished = out_path.with_name(out_path.name + ".unfinished")
    rows = 0
    try:
        with _writer(unfinished) as writer:
            for table in _groups(work, batches):
                writer.write_table(table, row_group_size=ROW_GROUP)
                rows += table.num_rows
        unfinished.chmod(0o600)  # it holds sources byte for byte
        repeated = _number_repeated(con, unfinished)
        unfinished.replace(out_path)
    finally:
        unfinished.unlink(missing_ok=True)
    return NormaliseResult(out_path, rows, dict(work.problems), repeated, work.late)


def _writer(path: Path) -> pq.ParquetWriter:
    # Nearly all columns hold a value once: a dictionary of them costs time and memory and saves nothing.
    return pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=["content_type", "error_class", "message"])


def _groups(work: Normaliser, batches: Iterable[Batch]) -> Iterator[pa.Table]:
    """Tables of one row group each."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        columns = work.columns(batch)
        arrays = [pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names]
        held.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        count += len(batch)
        while count >= ROW_GROUP:
            table = pa.Table.from_batches(held)
            yield table.slice(0, ROW_GROUP)
            held = table.slice(ROW_GROUP).to_batches()
            count -= ROW_GROUP
    if held:
        yield pa.Table.from_batches(held)


_REPEATED = """
    CREATE OR REPLACE TEMP TABLE repeated AS
    SELECT row_no, row_number() OVER (PARTITION BY row_id ORDER BY row_no) - 1 AS n FROM read_parquet(?) QUALIFY n > 0
"""


def _number_repeated(con: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Give rows that are equal to an earlier one an ID of their own. A list without any is not written again."""
    con.execute(_REPEATED, [str(path)])
    (repeated,) = con.execute("SELECT count(*) FROM repeated").fetchall()[0]
    if not repeated:
        return 0
    again = path.with_name(path.name + ".2")
    try:
        with pq.ParquetFile(path) as file, _writer(again) as writer:
            again.chmod(0o600)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group).replace_schema_metadata(SCHEMA.metadata)
                writer.write_table(_with_own_ids(con, table), row_group_size=ROW_GROUP)
        again.replace(path)
    finally:
        again.unlink(missing_ok=True)
        con.execute("DROP TABLE repeated")
    return int(repeated)


def _with_own_ids(con: duckdb.DuckDBPyConnection, table: pa.Table) -> pa.Table:
    first, last = table["row_no"][0].as_py(), table["row_no"][-1].as_py()
    found = con.execute("SELECT row_no, n FROM repeated WHERE row_no BETWEEN ? AND ?", [first, last]).fetchall()
    if not found:
        return table
    ids = table["row_id"].to_pylist()
    for row_no, n in found:
        ids[row_no - first] = row_id(bytes.fromhex(ids[row_no - first]), n)
    column = SCHEMA.get_field_index("row_id")
    return table.set_column(column, SCHEMA.field(column), pa.array(ids, pa.string()))
