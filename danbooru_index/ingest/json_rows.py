"""Rows of JSON: a record a line, arrays, pages of a site's interface, a map of names."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from danbooru_index.errors import InputError
from danbooru_index.ingest.columns import field_of
from danbooru_index.ingest.json_text import LISTS, BrokenJsonError, parse_object, read_values
from danbooru_index.ingest.rows import Cells, DumpRows, Row, shown
from danbooru_index.ingest.sites import KNOWN_WORDS
from danbooru_index.ingest.text_file import UTF8, Line, open_plain, read_errors, read_lines
from danbooru_index.records import Reason, RejectedError


def is_json(path: Path, encoding: str, lines: list[Line]) -> bool:
    """Whether a file of another name is JSON: it begins like it, and can be parsed so."""
    if (lines[0].content or b"").lstrip()[:1] not in (b"[", b"{"):
        return False
    if is_json_object(lines[0]):
        return True
    try:
        first = list(islice(_json_values(path, encoding), 3))
    except InputError:
        return False
    return any(not isinstance(row.cells, RejectedError) for row in first)


def is_json_object(line: Line) -> bool:
    """Whether a line is one JSON object with something in it."""
    if line.content is None or line.content.lstrip()[:1] != b"{":
        return False
    try:
        return bool(_object_of(line))
    except RejectedError:
        return False


def _object_of(line: Line) -> dict[str, Any]:
    return parse_object(line.decode())


def json_dump(path: Path, encoding: str, lines: list[Line]) -> DumpRows:
    """JSON: a record a line where the first lines are, else arrays, pages or a map."""
    start = (lines[0].content or b"").lstrip()[:1]
    if start not in b"[{" or (start == b"{" and _is_record_a_line(lines)):
        return DumpRows("JSON lines", lambda: _json_lines(path, encoding), encoding=encoding)
    return DumpRows("JSON", lambda: _json_values(path, encoding), encoding=encoding)


def _is_record_a_line(lines: list[Line]) -> bool:
    """Whether records stand a line each: not one object over many lines, nor a map of names, nor
    pages that hold a list of records.
    """
    if not is_json_object(lines[0]):
        return len(lines) > 1 and is_json_object(lines[1])
    first = _object_of(lines[0])
    for name in LISTS:
        value = first.get(name)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return False
    return len(lines) > 1 or _is_record(first)


def _is_record(value: dict[str, Any]) -> bool:
    """Whether an object is one record and not a map of names: half of its keys are known, or some
    but not all of its values are objects. Neither is an error of the site, nor pandas' columns.
    """
    if "success" in value and ("error" in value or "message" in value):
        return False
    if all(isinstance(one, dict) and "0" in one for one in value.values()):
        return False
    fields = [name for name in value if field_of(name) is not None]
    kinds = {isinstance(one, dict) for one in value.values()}
    return len(kinds) > 1 or 2 * len(fields) >= len(value)


def _json_lines(path: Path, encoding: str) -> Iterator[Row]:
    with read_errors(path):
        for line in read_lines(path, encoding):
            try:
                yield Row(line.number, _object_of(line), line.shown)
            except RejectedError as error:
                yield Row(line.number, error, line.shown)


def _json_values(path: Path, encoding: str) -> Iterator[Row]:
    """The records of arrays, pages and maps. Raises `InputError` where the JSON breaks."""
    try:
        with read_errors(path), open_plain(path) as stream:
            name = "utf-8-sig" if encoding == UTF8 else encoding
            for line, value in read_values(io.TextIOWrapper(stream, name), _is_record):
                _refuse_shape(path, value)
                yield Row(line, _as_cells(value), shown(value))
    except BrokenJsonError as error:
        raise InputError(f"{path}: broken JSON: {error}; fetch or write it again") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not {encoding} ({error.reason} at byte {error.start} of a block); name its"
            " encoding by --encoding"
        ) from None


def _refuse_shape(path: Path, value: Any) -> None:
    """Raise `InputError` for what holds tags in a shape that is not read, or is an error."""
    name, of_it = value if isinstance(value, tuple) else ("", None)
    if name == "success" and of_it is False:
        raise InputError(f"{path}: an error that the site answered, not a dump; ask it again")
    if name.casefold() in KNOWN_WORDS and isinstance(of_it, (list, dict)):
        raise InputError(
            f"{path}: tags under the names of their categories ({name} ...): write a record for"
            ' each, such as {"name": "solo", "category": "general"}'
        )
    if isinstance(value, list) or (name and isinstance(of_it, dict) and "0" in of_it):
        raise InputError(
            f"{path}: rows or columns without names: write records, as pandas does by"
            " to_json(orient='records')"
        )


def _as_cells(value: Any) -> Cells | RejectedError:
    """One value as a row: an object, or a name and what a map says of it."""
    if isinstance(value, dict):
        return value
    if isinstance(value, tuple):
        name, of_it = value
        if isinstance(of_it, dict):
            return {"name": name, **of_it}
        if isinstance(of_it, str) or of_it is None:
            return {"name": name, "translation": of_it}
        if isinstance(of_it, list):
            return {"name": name, "other_names": of_it}
        if isinstance(of_it, int) and not isinstance(of_it, bool):
            return {"name": name, "value": of_it}
        value = of_it
    if isinstance(value, str):
        return {"name": value}
    return RejectedError(
        Reason.UNPARSABLE_LINE, f"a JSON object is needed, not {type(value).__name__}"
    )
