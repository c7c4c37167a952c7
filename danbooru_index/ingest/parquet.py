"""Parquet files of strangers: opened without running their code; rows -> records, rejects.

Used for dumps and for shards.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from danbooru_index.errors import InputError, first_line
from danbooru_index.ingest.fields import parse_fields
from danbooru_index.records import Reason, Record, Reject, RejectedError
from danbooru_index.storage.local import LocalStorage
from danbooru_index.storage.locate import locate

LONGEST_FOOTER = 64 << 20
NEEDED_FIELDS = ("id", "text")
USED_FIELDS = (
    "tag",
    "category",
    "explanation",
    "source",
    "post_count",
    "aliases",
    "nsfw",
    "rating",
    "deprecated",
)
KNOWN_FIELDS = frozenset((*NEEDED_FIELDS, *USED_FIELDS, "is_deprecated", "metadata"))
EXTENSION = b"ARROW:extension"


Located = tuple[int, Record | Reject]  # the line or row, from 1, and what stood there


@contextlib.contextmanager
def open_input(path: str | Path) -> Iterator[InputFile]:
    """Open a Parquet file once for all that is asked of it; `s3://` names an object. Raises
    `OSError`, or as `parquet`.
    """
    place = LocalStorage(path) if isinstance(path, Path) else locate(path)
    file, stamp = place.open_stamped()
    with file:
        yield InputFile(str(place), file, stamp)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A Parquet file that is open; its digest and its rows are read through the same handle.

    `stamp`: its size and time of change; in an object store a number of its e-tag.
    """

    path: str
    file: BufferedReader
    stamp: tuple[int, int]

    def digest(self) -> str:
        """SHA-256 of the file's content, in hex."""
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest()

    def parquet(self) -> pq.ParquetFile:
        """The file as Arrow reads it. Raises as `plain_parquet` does."""
        return plain_parquet(self.path, self.file)


def plain_parquet(path: str, file: BufferedReader) -> pq.ParquetFile:
    """A Parquet file that declares plain columns only.

    Arrow extension types are made while a file is opened, by whatever code is registered for them;
    Ray registers one that unpickles (measured: its values run code as soon as they are read).
    Raises `InputError` for a file that declares any, before Arrow sees it, and for one whose
    metadata is too long to be searched for them; OSError or ArrowException for one that is not
    whole.
    """
    footer = _footer(file)
    if footer is None:
        raise InputError(
            f"{path}: more than {LONGEST_FOOTER >> 20} MB of metadata; write it again without"
        )
    if _declares_extension_types(footer):
        raise InputError(
            f"{path}: declares Arrow extension types, which can run code when they are read; write"
            " it with plain columns"
        )
    file.seek(0)
    return pq.ParquetFile(file)


def _footer(file: BufferedReader) -> bytes | None:
    """The raw metadata of a Parquet file, by its length at the end; None: too long."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(8)[:4], "little")
    length = min(length, size)  # what a damaged file says may be anything
    if length > LONGEST_FOOTER:
        return None
    file.seek(max(0, size - 8 - length))
    return file.read(length)


def _declares_extension_types(footer: bytes) -> bool:
    """Whether the footer's Arrow schema (base64) declares extension types."""
    if EXTENSION in footer:
        return True
    for run in re.finditer(rb"[A-Za-z0-9+/]{32,}", footer):
        for shift in range(4):
            text = run.group()[shift:]
            if EXTENSION in base64.b64decode(text[: len(text) // 4 * 4]):
                return True
    return False


def parquet_columns(path: Path) -> tuple[str, ...]:
    """The names of a Parquet file's columns."""
    with _whole(path), open_input(path) as file:
        return tuple(file.parquet().schema_arrow.names)


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, object] | None]:
    """The rows of a Parquet file, as far as `columns` go; None for one that Python cannot take."""
    with _whole(path), open_input(path) as opened:
        file = opened.parquet()
        names = [name for name in file.schema_arrow.names if name in columns]
        if len(names) != len(set(names)):
            raise InputError(f"{path}: two columns have the same name; keep one")
        for batch in file.iter_batches(batch_size=4096, columns=names):
            yield from map(_decoded, _pylist(batch))


def _decoded(row: dict[str, object] | None) -> dict[str, object] | None:
    """A row with text where its columns hold bytes; None where these are not UTF-8."""
    if row is None or not any(isinstance(value, bytes) for value in row.values()):
        return row
    try:
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}
    except UnicodeDecodeError:
        return None


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: cannot be read to its end ({first_line(error)}); fetch or write it again"
        ) from None


def parse_rows(rows: pa.RecordBatch | pa.Table, source: str, offset: int) -> Iterator[Located]:
    """Arrow rows with `id` and `text` -> a record or a reject each; `offset` rows came before."""
    for number, fields in enumerate(_pylist(rows), start=offset + 1):
        try:
            if fields is None:
                raise RejectedError(
                    Reason.INVALID_UNICODE,
                    "the row holds bytes that are not UTF-8, or no such value",
                )
            yield number, parse_fields(fields)
        except RejectedError as error:
            content = (
                "" if fields is None else repr({k: fields.get(k) for k in ("id", "text")})[:2000]
            )
            content = content.encode(errors="replace").decode()
            yield number, Reject(error.reason, source, number, error.detail, content)


def _pylist(rows: pa.RecordBatch | pa.Table) -> list[dict[str, object] | None]:
    """The rows as dicts; None for one that Arrow cannot turn into Python strings."""
    try:
        return list(rows.to_pylist())
    except (ValueError, OverflowError):
        # bytes that are not UTF-8, a date that Python does not have
        if rows.num_rows == 1:
            return [None]
        return [item for at in range(rows.num_rows) for item in _pylist(rows.slice(at, 1))]
