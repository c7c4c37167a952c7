"""Parquet files of strangers: opened without running code that they name, their rows -> records and rejects.

Used for dumps and for shards.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from danbooru_index.errors import InputError
from danbooru_index.ingest.fields import parse_fields
from danbooru_index.records import Reason, Record, Reject, RejectedError

LONGEST_FOOTER = 64 << 20
NEEDED_FIELDS = ("id", "text")
USED_FIELDS = ("tag", "category", "explanation", "source", "post_count", "aliases", "nsfw", "rating", "deprecated")
KNOWN_FIELDS = frozenset((*NEEDED_FIELDS, *USED_FIELDS, "is_deprecated", "metadata"))
EXTENSION = b"ARROW:extension"


Located = tuple[int, Record | Reject]  # the line or row, from 1, and what stood there


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """Open a Parquet file that declares plain columns only.

    Arrow extension types are made while a file is opened, by whatever code is registered for them; Ray registers one
    that unpickles (measured: its values run code as soon as they are read). Raises `InputError` for a file that
    declares any, before Arrow sees it, and for one whose metadata is too long to be searched for them; OSError or
    ArrowException for one that is not whole.
    """
    footer = _footer(Path(path))
    if footer is None:
        raise InputError(f"{path}: more than {LONGEST_FOOTER >> 20} MB of metadata; write it again without")
    if _declares_extension_types(footer):
        raise InputError(
            f"{path}: declares Arrow extension types, which can run code when they are read; write it with plain columns"
        )
    return pq.ParquetFile(path)


def _footer(path: Path) -> bytes | None:
    """The metadata of a Parquet file, as it is: what stands before its length and the last four bytes; None: too long."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(8)[:4], "little")
        length = min(length, size)  # what a damaged file says may be anything
        if length > LONGEST_FOOTER:
            return None
        file.seek(max(0, size - 8 - length))
        return file.read(length)


def _declares_extension_types(footer: bytes) -> bool:
    """Arrow keeps its schema in the footer, in base64; what stands before it may look like base64, too."""
    if EXTENSION in footer:
        return True
    for run in re.finditer(rb"[A-Za-z0-9+/]{32,}", footer):
        for shift in range(4):
            text = run.group()[shift:]
            if EXTENSION in base64.b64decode(text[: len(text) // 4 * 4]):
                return True
    return False


def parquet_records(path: Path) -> Iterator[Located]:
    """Every row of a Parquet file with `id` and `text`, as a record or a reject, in order."""
    file = open_parquet(path)
    missing = {"id", "text"} - set(file.schema_arrow.names)
    if missing:
        raise InputError(
            f"{path}: no column {' and '.join(sorted(missing))}; it has {', '.join(file.schema_arrow.names)}"
        )
    number = 0
    known = [name for name in file.schema_arrow.names if name in KNOWN_FIELDS]
    if len(known) != len(set(known)):
        raise InputError(f"{path}: two columns have the same name; keep one")
    for batch in file.iter_batches(batch_size=4096, columns=known):
        yield from parse_rows(batch, str(path), number)
        number += batch.num_rows


def parse_rows(rows: pa.RecordBatch | pa.Table, source: str, offset: int) -> Iterator[Located]:
    """Arrow rows with `id` and `text` -> a record or a reject each; `offset` rows of `source` came before."""
    for number, fields in enumerate(_pylist(rows), start=offset + 1):
        try:
            if fields is None:
                raise RejectedError(Reason.INVALID_UNICODE, "the row holds bytes that are not UTF-8, or no such value")
            yield number, parse_fields(fields)
        except RejectedError as error:
            content = "" if fields is None else repr({k: fields.get(k) for k in ("id", "text")})[:2000]
            content = content.encode(errors="replace").decode()
            yield number, Reject(error.reason, source, number, error.detail, content)


def _pylist(rows: pa.RecordBatch | pa.Table) -> list[dict[str, object] | None]:
    """The rows as dicts; None for one that Arrow cannot turn into Python strings."""
    try:
        return list(rows.to_pylist())
    except (ValueError, OverflowError):  # bytes that are not UTF-8, a date that Python does not have
        if rows.num_rows == 1:
            return [None]
        return [item for at in range(rows.num_rows) for item in _pylist(rows.slice(at, 1))]
