"""Tag dumps: JSON lines, the autocomplete CSV, Parquet, compressed -> records and rejects.

In: paths of files and folders. Out: a stream of `Record` and `Reject` in input order. Called by
`shards.prepare`.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from danbooru_index.errors import InputError, UsageError, first_line
from danbooru_index.ingest.fields import parse_csv_row, parse_line
from danbooru_index.ingest.parquet import Located, parquet_records
from danbooru_index.records import Reason, Reject, RejectedError

LINE_SUFFIXES = (".jsonl", ".json", ".ndjson")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
LONGEST_LINE = 16 << 20
OWN_FILES = ("rejects.jsonl", "prepare.json")
UTF8_BOM = b"\xef\xbb\xbf"

csv.field_size_limit(LONGEST_LINE)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a text file, without its line end; None if longer than `LONGEST_LINE`."""

    number: int
    content: bytes | None


def list_inputs(paths: tuple[str, ...], leaving_out: Path | None = None) -> list[Path]:
    """The files behind the given paths, folders in name order, without those in the folder
    `leaving_out`; raise `InputError` for what is not there.
    """
    found: list[Path] = []
    for word in paths:
        path = Path(word)
        if path.is_dir():
            inside = [
                p for p in files_in(path, leaving_out) if _kind(p) and p.name not in OWN_FILES
            ]
            if not inside:
                raise InputError(f"{path}: no .jsonl, .csv or .parquet file in this folder")
            found += inside
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        elif not _kind(path):
            raise UsageError(
                f"{path}: unknown kind of file; known are .jsonl, .csv (each also .gz, .zst) and"
                " .parquet"
            )
        else:
            found.append(path)
    return found


def files_in(folder: Path, leaving_out: Path | None = None) -> list[Path]:
    """The files in a folder and its folders, in name order, links followed; not what is hidden (a
    name that begins with `.` or `_`), nor what is in an index. Raises `InputError` for a link to
    nothing.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(place)
        is_index = "generations" in folders and not {"CURRENT.json", ".owner.lock"}.isdisjoint(
            names
        )
        left_out = leaving_out is not None and place != str(folder) and Path(here) == leaving_out
        if here in seen or is_index or left_out:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += [Path(place, name) for name in names if not name.startswith((".", "_"))]
    if broken := [path for path in found if _kind(path) and not path.exists()]:
        raise InputError(
            f"{broken[0]}: a link to a file that is not there; remove the link, or bring the file"
            " back"
        )
    return sorted(path for path in found if path.is_file())


def read_dump(path: Path, translations: dict[str, str]) -> Iterator[Located]:
    """Every record of one file, in order; a record that cannot be used comes as a `Reject`."""
    kind = _kind(path)
    try:
        if kind == ".parquet":
            yield from parquet_records(path)
        elif kind == ".csv":
            yield from _read_csv(path, translations)
        else:
            yield from _read_jsonl(path)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: cannot be read to its end ({first_line(error)}); fetch or write it again"
        ) from None


def read_translations(path: str | None) -> dict[str, str]:
    """The `--translations` file, `tag,text` a row -> {tag: text}; later rows win."""
    if path is None:
        return {}
    table: dict[str, str] = {}
    try:
        for line in _lines(Path(path)):
            row = _csv_row(line, path)
            if len(row) < 2 or any(cell.strip() for cell in row[2:]):
                raise InputError(
                    f"{path}:{line.number}: two columns are needed, tag,text; there are {len(row)}"
                )
            table[row[0].strip()] = row[1].strip()
    except RejectedError as error:
        raise InputError(
            f"{path}:{line.number}: {error.detail or error.reason.value}: --translations takes CSV"
            " in UTF-8, tag,text"
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
                    f"{path}: a JSON array; one record a line is needed: jq -c '.[]' {path.name} >"
                    f" {path.stem}.jsonl"
                ) from None
            yield line.number, _reject(error, path, line)


def _read_csv(path: Path, translations: dict[str, str]) -> Iterator[Located]:
    for line in _lines(path):
        try:
            row = _csv_row(line, str(path))
            if line.number == 1 and _is_header(row):
                continue
            if (
                line.number == 1
                and len(row) > 2
                and all(re.fullmatch(r"[^\d\s]+", cell) for cell in row[1:3])
            ):
                raise InputError(
                    f"{path}:1: the columns must be name,category,post_count,aliases, in this"
                    f" order; the first row is {','.join(row)[:80]}"
                )
            yield line.number, parse_csv_row(row, translations.get(row[0].strip()))
        except RejectedError as error:
            yield line.number, _reject(error, path, line)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The number and text of each line of a text file, also .gz and .zst, but for empty ones; raise
    `InputError` for one that cannot be read.
    """
    try:
        for line in _lines(path):
            yield line.number, _decode(line)
    except RejectedError as error:
        raise InputError(f"{path}: cannot be read ({error.detail})") from None
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None


def _lines(path: Path) -> Iterator[Line]:
    """The lines of a text file, decompressed, without BOM and line ends, none empty."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    with path.open("rb") as file:
        plain = pa.CompressedInputStream(pa.PythonFile(file), compression) if compression else file
        stream = io.BufferedReader(plain, buffer_size=1 << 20)
        start = stream.peek(4)[:4]
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(
                f"{path}: UTF-16 text; UTF-8 is needed: iconv -f UTF-16 -t UTF-8 {path.name}"
            )
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
        raise RejectedError(
            Reason.INVALID_UNICODE, f"{error.reason} at byte {error.start}"
        ) from None


def _csv_row(line: Line, source: str) -> list[str]:
    """One line is one row: an unclosed quote spoils its own row, not the rest of the file."""
    try:
        rows = list(csv.reader([_decode(line)], strict=True))
    except csv.Error as error:
        raise RejectedError(Reason.UNPARSABLE_LINE, f"{source}:{line.number}: {error}") from None
    return rows[0] if rows and rows[0] else [""]


def _is_header(row: list[str]) -> bool:
    """Whether a first row names columns: a tag called `name` has a number in its second column."""
    return (
        len(row) > 1 and row[0].strip().lower() in ("name", "tag") and not row[1].strip().isdigit()
    )


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
