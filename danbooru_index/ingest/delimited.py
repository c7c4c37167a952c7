"""Delimited text: which delimiter, whether the first row is a header, what each column holds."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from danbooru_index.ingest.columns import Field, recognise
from danbooru_index.ingest.text_file import LONGEST_LINE

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe"}
MOSTLY = 0.5  # share of the cells from which on a column is of a kind
NUMBER = re.compile(r"-?\d{1,18}(\.0{1,9})?|\d{1,3}(,\d{3}){1,5}")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uff66-\uff9d]")

csv.field_size_limit(LONGEST_LINE)


def split(line: str, delimiter: str) -> list[str]:
    """One row of delimited text; raise `csv.Error` for an open or a misplaced quote.

    Between tabs a quote that does not enclose a cell is one of the tag's own: `"love"_live!`.
    """
    try:
        rows = list(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        if delimiter != "\t":
            raise
        return line.split("\t")
    return rows[0] if rows and rows[0] else [""]


def detect_delimiter(lines: Sequence[str]) -> str:
    """The delimiter that most lines hold, the same number of times; empty for lines of one name
    each, though a few names hold one.
    """
    best = max(DELIMITERS, key=lambda delimiter: _fitness(lines, delimiter))
    return best if _fitness(lines, best)[0] > MOSTLY else ""


def preamble(lines: Sequence[str]) -> tuple[int, str]:
    """(how many lines stand before the table, the delimiter that they name): `sep=;`, as Excel
    reads it, and comments (`# from ...`: a tag has no space after its `#`).
    """
    delimiter = ""
    for number, line in enumerate(lines):
        named = re.fullmatch(r'"?sep=(.)"?', line.strip("\ufeff\r\n "), re.IGNORECASE)
        if named and number == 0:
            delimiter = named[1] if named[1] in DELIMITERS else ""
        elif not line.startswith("# "):
            return number, delimiter
    return len(lines), delimiter


def whole_name(line: str) -> str:
    """A line that is one name: without quotes, if they enclose all of it."""
    cells = try_split(line, ",")
    return cells[0] if isinstance(cells, list) and len(cells) == 1 else line


def _fitness(lines: Sequence[str], delimiter: str) -> tuple[float, float, int]:
    """(share of lines that it divides, share that have the usual number of cells, that number)."""
    counts: Counter[int] = Counter()
    for line in lines:
        try:
            counts[len(split(line, delimiter))] += 1
        except csv.Error:
            counts[1] += 1
    divided = {cells: count for cells, count in counts.items() if cells > 1}
    if not divided:
        return 0.0, 0.0, 0
    usual, times = max(divided.items(), key=lambda one: (one[1], one[0]))
    return sum(divided.values()) / len(lines), times / len(lines), usual


def has_header(rows: Sequence[Sequence[str]], wanted: Sequence[str] = ()) -> bool:
    """Whether the first row names columns: it has a name of the tag's column, several known names,
    a column that the user names (`wanted`), or words above numbers, or another script than all
    below. A tag called `name` has a number beside it.
    """
    first, body = rows[0], rows[1:]
    named = [cell.strip() for cell in first if cell.strip()]
    if any(is_number(cell) for cell in named):
        return False
    known = recognise(named)
    if Field.TAG in known or len(known) > 1 or not set(wanted).isdisjoint(named):
        return True
    for place, cell in enumerate(first):
        if share_of(body, place, is_number) > MOSTLY:
            return True
        others = share_of(body, place, lambda one: CJK.search(one) is not None)
        if len(body) > 1 and CJK.search(cell) and not others and Field.TAG not in known:
            return len(first) > 1
    return False


def is_number(cell: str) -> bool:
    """Whether a cell is an integer, also `900,000` and `12.0`."""
    return NUMBER.fullmatch(cell.strip()) is not None


def filled_cells(rows: Sequence[Sequence[str]], place: int) -> list[str]:
    """The cells of a column that hold something."""
    return [row[place].strip() for row in rows if place < len(row) and row[place].strip()]


def share_of(rows: Sequence[Sequence[str]], place: int, kind: object) -> float:
    """The share of a column's filled cells that are of a kind, a function of a cell."""
    cells = filled_cells(rows, place)
    return sum(map(kind, cells)) / len(cells) if cells and callable(kind) else 0.0


def join_open_quotes(
    rows: Iterator[tuple[int, str]], delimiter: str, usual: int, ahead: int = 50
) -> Iterator[tuple[int, str, list[str] | csv.Error]]:
    """(number, text, cells) of each row. A quoted cell may hold line ends: lines are joined while
    its quote is open and if the row then has its `usual` cells; a quote that never closes spoils
    its own line only.
    """
    waiting: list[tuple[int, str]] = []
    while True:
        if not waiting:
            following = next(rows, None)
            if following is None:
                return
            waiting.append(following)
        number, text = waiting.pop(0)
        cells = try_split(text, delimiter)
        if isinstance(cells, csv.Error) and "unexpected end of data" in str(cells):
            joined = text
            for taken in range(1, ahead + 1):
                if taken > len(waiting):
                    following = next(rows, None)
                    if following is None:
                        break
                    waiting.append(following)
                joined = f"{joined}\n{waiting[taken - 1][1]}"
                whole = try_split(joined, delimiter)
                if not isinstance(whole, csv.Error):
                    if len(whole) == usual:
                        text, cells = joined, whole
                        del waiting[:taken]
                    break
                if "unexpected end of data" not in str(whole):
                    break
        yield number, text, cells


def try_split(text: str, delimiter: str) -> list[str] | csv.Error:
    """One row of delimited text, or what is wrong with it."""
    try:
        return split(text, delimiter)
    except csv.Error as error:
        return error
