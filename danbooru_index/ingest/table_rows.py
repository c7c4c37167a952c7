"""Rows of delimited text: dialect and columns from the first lines, cells by column."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from danbooru_index.errors import InputError
from danbooru_index.ingest.columns import recognise
from danbooru_index.ingest.delimited import (
    DELIMITERS,
    detect_delimiter,
    has_header,
    join_open_quotes,
    preamble,
    try_split,
    whole_name,
)
from danbooru_index.ingest.guess import fill_in, guess_columns
from danbooru_index.ingest.rows import Cells, DumpRows, Row
from danbooru_index.ingest.text_file import Line, read_errors, read_lines
from danbooru_index.records import Reason, RejectedError

FEW_ROWS = 0.02  # share of the rows, below which their number of cells is not the table's


def table_dump(
    path: Path, encoding: str, lines: list[Line], suffix: str, wanted: tuple[str, ...] = ()
) -> DumpRows:
    """Delimited text: its delimiter and columns, from its first lines."""
    texts = [(line.content or b"").decode(errors="replace") for line in lines]
    before, said = preamble(texts)
    texts = texts[before:]
    if not texts:
        raise InputError(f"{path}: no usable record: nothing follows its first {before} lines")
    delimiter = said or detect_delimiter(texts)
    if suffix == ".tsv" and any("\t" in text for text in texts):
        delimiter = "\t"
    sample, begins = _sample(texts, delimiter, suffix)
    if not sample:
        raise InputError(f"{path}: no row of it can be parsed: its quotes do not close")
    header = begins and has_header(sample, wanted)
    if header and len(sample) == 1:
        raise InputError(f"{path}: a header and no usable record")
    width = len(sample[0]) if header else usual_width(sample)
    places = tuple(str(place) for place in range(1, width + 1))
    names = places
    if header:
        cells = (" ".join(cell.split()) for cell in sample[0])
        names = tuple(cell or place for cell, place in zip(cells, places, strict=True))
        refuse_twice(f"{path}:1", names)
    body = [row[:width] for row in sample[header:]]
    return DumpRows(
        "names" if width == 1 else "delimited text",
        lambda: _table_rows(
            path, encoding, delimiter, suffix, names, lines[before].number, header=header
        ),
        names,
        encoding,
        DELIMITERS.get(delimiter, "") if width > 1 else "",
        header,
        fill_in(recognise(names), names, body) if header else guess_columns(body),
    )


def _sample(texts: list[str], delimiter: str, suffix: str) -> tuple[list[list[str]], bool]:
    """The rows of the first lines, and whether the first of them begins the file."""
    if not delimiter:
        return [_name_of(text, suffix) for text in texts], True
    plain = [row for row in (try_split(text, delimiter) for text in texts) if isinstance(row, list)]
    usual = usual_width(plain) if plain else 0
    joined = join_open_quotes(iter(list(enumerate(texts))), delimiter, usual)
    rows = [(number, cells) for number, _, cells in joined if isinstance(cells, list)]
    return [cells for _, cells in rows], bool(rows) and rows[0][0] == 0


def usual_width(rows: list[list[str]]) -> int:
    """How many cells the rows of a table have; a few rows with more do not count."""
    counts = Counter(map(len, rows))
    usual = [cells for cells, count in counts.items() if count >= FEW_ROWS * len(rows)]
    return max(usual or counts)


def _name_of(text: str, suffix: str) -> list[str]:
    """A line that is one name, quotes and all where it is no CSV."""
    return [text if suffix == ".txt" else whole_name(text)]


def refuse_twice(where: str, names: tuple[str, ...]) -> None:
    """Raise `InputError` for columns of one name."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: two columns are called {twice}; keep one")


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
            else ((number, text, _name_of(text, suffix)) for number, text in texts())
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
