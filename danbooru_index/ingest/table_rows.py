"""Rows of delimited text: dialect and columns from the first lines, cells by column."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from danbooru_index.errors import InputError
from danbooru_index.ingest.delimited import (
    DELIMITERS,
    detect_delimiter,
    has_header,
    join_open_quotes,
    preamble,
    try_split,
    whole_name,
)
from danbooru_index.ingest.guess import guess_columns
from danbooru_index.ingest.rows import Cells, DumpRows, Row
from danbooru_index.ingest.text_file import Line, read_errors, read_lines
from danbooru_index.records import Reason, RejectedError

FEW_ROWS = 0.02  # share of the rows, below which their number of cells is not the table's


def table_dump(path: Path, encoding: str, lines: list[Line], suffix: str) -> DumpRows:
    """Delimited text: its delimiter and columns, from its first lines."""
    texts = [(line.content or b"").decode(errors="replace") for line in lines]
    before, said = preamble(texts)
    texts = texts[before:]
    if not texts:
        raise InputError(f"{path}: no usable record: nothing follows its first {before} lines")
    delimiter = said or detect_delimiter(texts)
    if suffix == ".tsv" and any("\t" in text for text in texts):
        delimiter = "\t"
    parsed = [_cells_of(text, delimiter, suffix) for text in texts]
    sample = [row for row in parsed if not isinstance(row, csv.Error)]
    if not sample:
        raise InputError(f"{path}: no row of it can be parsed: its quotes do not close")
    header = sample[0] is parsed[0] and has_header(sample)
    if header and len(sample) == 1:
        raise InputError(f"{path}: a header and no usable record")
    counts = Counter(map(len, sample))
    usual = max(cells for cells, rows in counts.items() if rows >= FEW_ROWS * len(sample))
    width = len(sample[0]) if header else usual
    names = tuple(str(place) for place in range(1, width + 1))
    if header:
        named = (cell.strip() for cell in sample[0])
        names = tuple(name or place for name, place in zip(named, names, strict=True))
        _refuse_twice(path, names)
    return DumpRows(
        "names" if width == 1 else "delimited text",
        lambda: _table_rows(
            path, encoding, delimiter, suffix, names, lines[before].number, header=header
        ),
        names,
        encoding,
        DELIMITERS.get(delimiter, "") if width > 1 else "",
        header,
        {} if header else guess_columns([row[:width] for row in sample]),
    )


def _cells_of(text: str, delimiter: str, suffix: str) -> list[str] | csv.Error:
    """One row; of a list of names, the name, quotes and all where it is no CSV."""
    if delimiter:
        return try_split(text, delimiter)
    return [text if suffix == ".txt" else whole_name(text)]


def _refuse_twice(path: Path, names: tuple[str, ...]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}:1: two columns are called {twice}; keep one")


def _table_rows(
    path: Path,
    encoding: str,
    delimiter: str,
    suffix: str,
    names: tuple[str, ...],
    first: int,
    *,
    header: bool,
) -> Iterator[Row]:
    """The rows from line `first` on, without the header; a row with more cells than there are
    columns has none.
    """
    bad: dict[int, tuple[Line, RejectedError]] = {}

    def texts() -> Iterator[tuple[int, str]]:
        for line in read_lines(path, encoding):
            if line.number < first:
                continue
            try:
                yield line.number, line.decode()
            except RejectedError as error:
                bad[line.number] = line, error
                yield line.number, ""

    with read_errors(path):
        rows = (
            join_open_quotes(texts(), delimiter, len(names))
            if delimiter
            else ((number, text, _cells_of(text, "", suffix)) for number, text in texts())
        )
        for at, (number, text, cells) in enumerate(rows):
            if number in bad:
                line, error = bad.pop(number)
                yield Row(number, error, line.shown)
            elif isinstance(cells, csv.Error):
                problem = RejectedError(Reason.UNPARSABLE_LINE, f"{path}:{number}: {cells}")
                yield Row(number, problem, text[:2000])
            elif not (header and at == 0):
                yield Row(number, _named(cells, names), text[:2000])


def _named(cells: list[str], names: tuple[str, ...]) -> Cells | RejectedError:
    if any(cell.strip() for cell in cells[len(names) :]):
        return RejectedError(
            Reason.UNPARSABLE_LINE,
            f"{len(cells)} cells for {len(names)} columns: a cell with a delimiter needs quotes",
        )
    return dict(zip(names, cells, strict=False))
