"""What a file of an input is, by its name and first lines: its format, its encoding, its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from danbooru_index.errors import InputError
from danbooru_index.ingest.columns import field_of
from danbooru_index.ingest.databases import WORKBOOK_SUFFIXES, sheet_rows, table_rows
from danbooru_index.ingest.json_rows import is_json, json_dump
from danbooru_index.ingest.parquet import parquet_columns, parquet_rows
from danbooru_index.ingest.rows import SAMPLE_ROWS, Cells, DumpRows, Row, RowOptions, shown
from danbooru_index.ingest.table_rows import table_dump
from danbooru_index.ingest.text_encoding import detect_encoding
from danbooru_index.ingest.text_file import first_lines, inner_name
from danbooru_index.records import Reason, RejectedError

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
DATABASE_SUFFIXES = (".sqlite", ".sqlite3", ".db")


def suffix_of(path: Path) -> str:
    """The suffix that says what a file is, without `.gz`, `.zst` or `.zip`; in lower case."""
    return Path(inner_name(path)).suffix.lower()


def open_rows(path: Path, options: RowOptions) -> DumpRows:
    """What a file is, and its rows. Raises `InputError`."""
    suffix = suffix_of(path)
    packed = path.suffix.lower() in (".gz", ".zst", ".zip")
    if suffix in (".parquet", *DATABASE_SUFFIXES, *WORKBOOK_SUFFIXES):
        if packed:
            raise InputError(f"{path}: unpack it first: a {suffix} file is not read as a stream")
        if suffix == ".parquet":
            return _parquet(path, options.wanted)
        source = sheet_rows if suffix in WORKBOOK_SUFFIXES else table_rows
        kind, columns, read = source(path, options.table)
        return DumpRows(kind, lambda: _numbered(read()), columns)
    encoding = detect_encoding(path, options.encoding)
    lines = first_lines(path, encoding, SAMPLE_ROWS)
    if not lines:
        raise InputError(f"{path}: empty: no usable record in it")
    if suffix in JSON_SUFFIXES or is_json(path, encoding, lines):
        return json_dump(path, encoding, lines)
    return table_dump(path, encoding, lines, suffix, options.wanted)


def _parquet(path: Path, wanted: tuple[str, ...]) -> DumpRows:
    """A Parquet file; columns of no concern are not read."""
    names = parquet_columns(path)
    asked = {name.split(".")[0] for name in wanted}
    read = [name for name in names if name in asked or field_of(name) is not None]
    return DumpRows("Parquet", lambda: _numbered(parquet_rows(path, read)), names)


def _numbered(rows: Iterator[Cells | None]) -> Iterator[Row]:
    for number, cells in enumerate(rows, start=1):
        if cells is None:
            problem = "the row holds bytes that are not UTF-8, or no such value"
            yield Row(number, RejectedError(Reason.INVALID_UNICODE, problem))
        else:
            yield Row(number, cells, shown({k: cells[k] for k in list(cells)[:4]}))
