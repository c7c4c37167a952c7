"""Tag dumps as users have them: JSON lines, the autocomplete CSV, Parquet, plain or compressed -> records and rejects.

In: paths of files and folders. Out: a stream of `Record` and `Reject` in input order. Called by `shards.prepare`.
"""

from __future__ import annotations

import base64
import csv
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from danbooru_index.errors import InputError, UsageError, first_line
from danbooru_index.records import (
    Reason,
    Record,
    Reject,
    RejectedError,
    parse_csv_row,
    parse_fields,
    parse_line,
)

LINE_SUFFIXES = (".jsonl", ".json", ".ndjson")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
LONGEST_LINE = 16 << 20
LONGEST_FOOTER = 64 << 20
NEEDED_FIELDS = ("id", "text")
USED_FIELDS = ("tag", "category", "explanation", "source", "post_count", "aliases", "nsfw", "rating", "deprecated")
KNOWN_FIELDS = frozenset((*NEEDED_FIELDS, *USED_FIELDS, "is_deprecated", "metadata"))
OWN_FILES = ("rejects.jsonl", "prepare.json")
EXTENSION = b"ARROW:extension"
UTF8_BOM = b"\xef\xbb\xbf"

csv.field_size_limit(LONGEST_LINE)


Located = tuple[int, Record | Reject]  # the line or row, from 1, and what stood there


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a text file, without its line end; None where it is longer than `LONGEST_LINE`."""

    number: int
    content: bytes | None


def list_inputs(paths: tuple[str, ...], leaving_out: Path | None = None) -> list[Path]:
    """The files behind the given paths, folders in name order, without those in the folder `leaving_out`; raise
    `InputError` for what is not there."""
    found: list[Path] = []
    for word in paths:
        path = Path(word)
        if path.is_dir():
            inside = [p for p in files_in(path, leaving_out) if _kind(p) and p.name not in OWN_FILES]
            if not inside:
                raise InputError(f"{path}: no .jsonl, .csv or .parquet file in this folder")
            found += inside
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        elif not _kind(path):
            raise UsageError(f"{path}: unknown kind of file; known are .jsonl, .csv (each also .gz, .zst) and .parquet")
        else:
            found.append(path)
    return found


def files_in(folder: Path, leaving_out: Path | None = None) -> list[Path]:
    """The files in a folder and its folders, in name order, links followed; not what is hidden (a name that begins with
    `.` or `_`), nor what is in an index. Raises `InputError` for a link to nothing."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(place)
        is_index = "generations" in folders and not {"CURRENT.json", ".owner.lock"}.isdisjoint(names)
        left_out = leaving_out is not None and place != str(folder) and Path(here) == leaving_out
        if here in seen or is_index or left_out:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += [Path(place, name) for name in names if not name.startswith((".", "_"))]
    if broken := [path for path in found if _kind(path) and not path.exists()]:
        raise InputError(f"{broken[0]}: a link to a file that is not there; remove the link, or bring the file back")
    return sorted(path for path in found if path.is_file())


def read_records(path: Path, translations: dict[str, str]) -> Iterator[Located]:
    """Every record of one file, in order; a record that cannot be used comes as a `Reject`."""
    kind = _kind(path)
    try:
        if kind == ".parquet":
            yield from _read_parquet(path)
        elif kind == ".csv":
            yield from _read_csv(path, translations)
        else:
            yield from _read_jsonl(path)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read to its end ({first_line(error)}); fetch or write it again") from None


def read_translations(path: str | None) -> dict[str, str]:
    """The `--translations` file, `tag,text` a row -> {tag: text}; later rows win."""
    if path is None:
        return {}
    table: dict[str, str] = {}
    try:
        for line in _lines(Path(path)):
            row = _csv_row(line, path)
            if len(row) < 2 or any(cell.strip() for cell in row[2:]):
                raise InputError(f"{path}:{line.number}: two columns are needed, tag,text; there are {len(row)}")
            table[row[0].strip()] = row[1].strip()
    except RejectedError as error:
        raise InputError(
            f"{path}:{line.number}: {error.detail or error.reason.value}: --translations takes CSV in UTF-8, tag,text"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None
    return {tag: text for tag, text in table.items() if text}


def _read_jsonl(path: Path) -> Iterator[Located]:
    for line in _lines(path):
        try:
            yield line.number, parse_line(_decode(line))
        except RejectedError as error:
            if line.number == 1 and line.content and line.content.lstrip()[:1] == b"[":
                raise InputError(
                    f"{path}: a JSON array; one record a line is needed: jq -c '.[]' {path.name} > {path.stem}.jsonl"
                ) from None
            yield line.number, _reject(error, path, line)


def _read_csv(path: Path, translations: dict[str, str]) -> Iterator[Located]:
    for line in _lines(path):
        try:
            row = _csv_row(line, str(path))
            if line.number == 1 and _is_header(row):
                continue
            if line.number == 1 and len(row) > 2 and all(re.fullmatch(r"[^\d\s]+", cell) for cell in row[1:3]):
                raise InputError(
                    f"{path}:1: the columns must be name,category,post_count,aliases, in this order; the first row is "
                    f"{','.join(row)[:80]}"
                )
            yield line.number, parse_csv_row(row, translations.get(row[0].strip()))
        except RejectedError as error:
            yield line.number, _reject(error, path, line)


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


def _read_parquet(path: Path) -> Iterator[Located]:
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


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The number and text of each line of a text file, also .gz and .zst, but for empty ones; raise `InputError` for one
    that cannot be read."""
    try:
        for line in _lines(path):
            yield line.number, _decode(line)
    except RejectedError as error:
        raise InputError(f"{path}: cannot be read ({error.detail})") from None
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None


def _lines(path: Path) -> Iterator[Line]:
    """The lines of a text file, decompressed, without BOM and line ends; empty lines are passed over."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    with path.open("rb") as file:
        plain = pa.CompressedInputStream(pa.PythonFile(file), compression) if compression else file
        stream = io.BufferedReader(plain, buffer_size=1 << 20)
        start = stream.peek(4)[:4]
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{path}: UTF-16 text; UTF-8 is needed: iconv -f UTF-16 -t UTF-8 {path.name}")
        if start.startswith(UTF8_BOM):
            stream.read(len(UTF8_BOM))
        number = 0
        while content := stream.readline(LONGEST_LINE):
            number += 1
            if len(content) == LONGEST_LINE and not content.endswith(b"\n"):
                while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield Line(number, None)
                continue
            content = content.rstrip(b"\r\n")
            if content.strip():
                yield Line(number, content)


def _decode(line: Line) -> str:
    if line.content is None:
        raise RejectedError(Reason.TEXT_TOO_LONG, f"a line of more than {LONGEST_LINE} bytes")
    try:
        return line.content.decode()
    except UnicodeDecodeError as error:
        raise RejectedError(Reason.INVALID_UNICODE, f"{error.reason} at byte {error.start}") from None


def _csv_row(line: Line, source: str) -> list[str]:
    """One line is one row: an unclosed quote spoils its own row, not the rest of the file."""
    try:
        rows = list(csv.reader([_decode(line)], strict=True))
    except csv.Error as error:
        raise RejectedError(Reason.UNPARSABLE_LINE, f"{source}:{line.number}: {error}") from None
    return rows[0] if rows and rows[0] else [""]


def _is_header(row: list[str]) -> bool:
    """Whether a first row names columns: a tag called `name` has a number in its second column."""
    return len(row) > 1 and row[0].strip().lower() in ("name", "tag") and not row[1].strip().isdigit()


def _reject(error: RejectedError, path: Path, line: Line) -> Reject:
    content = (line.content or b"")[:2000].decode(errors="replace")
    return Reject(error.reason, str(path), line.number, error.detail, content)


def _kind(path: Path) -> str:
    """`.jsonl`, `.csv`, `.parquet`, or empty for a file of another kind."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        last = suffixes[-1] if suffixes else ""
        return ".jsonl" if last in LINE_SUFFIXES else last if last == ".csv" else ""
    last = suffixes[-1] if suffixes else ""
    return ".jsonl" if last in LINE_SUFFIXES else last if last in (".csv", ".parquet") else ""
