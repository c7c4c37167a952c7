"""Delimited text: which delimiter, whether the first row is a header, what each column holds."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from danbooru_index.ingest.columns import TAG_ALONE, Columns, Field, normal_name, recognise
from danbooru_index.ingest.sites import KNOWN_WORDS
from danbooru_index.ingest.text_file import LONGEST_LINE

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe"}
MOSTLY = 0.5  # share of the cells from which on a column is of a kind
NEARLY_ALL = 0.9
LARGEST_CATEGORY = 15
NUMBER = re.compile(r"-?\d{1,18}(\.0{1,9})?|\d{1,3}(,\d{3}){1,5}")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uff66-\uff9d]")
SEPARATORS = ",，|、;；"

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


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names columns. A tag called `name` has a number beside it."""
    first, body = rows[0], rows[1:]
    named = [cell for cell in first if cell.strip()]
    if any(is_number(cell) for cell in named):
        return False
    if len(first) == 1:
        return bool(body) and normal_name(first[0]) in TAG_ALONE
    known = recognise(first)
    if len({column for columns in known.values() for column in columns}) > 1:
        return True
    below = [place for place in range(len(first)) if _share(body, place, is_number) > MOSTLY]
    return bool(body) and bool(below)  # a word above a column of numbers


def is_number(cell: str) -> bool:
    """Whether a cell is an integer, also `900,000` and `12.0`."""
    return NUMBER.fullmatch(cell.strip()) is not None


def _cells(rows: Sequence[Sequence[str]], place: int) -> list[str]:
    return [row[place].strip() for row in rows if place < len(row) and row[place].strip()]


def _share(rows: Sequence[Sequence[str]], place: int, kind: object) -> float:
    """The share of a column's filled cells that are of a kind, a function of a cell."""
    cells = _cells(rows, place)
    return sum(map(kind, cells)) / len(cells) if cells and callable(kind) else 0.0


@dataclass(frozen=True, slots=True)
class _Column:
    """What the cells of a column without a name look like. Shares of its filled cells."""

    name: str  # its place, from 1
    filled: int
    numbers: float
    small: bool  # every number could be a category's
    words: float  # category names
    cjk: float
    sentences: float  # cells of several words
    lists: float  # cells with a separator
    distinct: float

    @property
    def is_number(self) -> bool:
        return self.numbers >= MOSTLY

    @property
    def is_category(self) -> bool:
        return (self.is_number and self.small) or self.words >= NEARLY_ALL

    @property
    def is_text(self) -> bool:
        return bool(self.filled) and not self.is_number and not self.is_category


def _look(rows: Sequence[Sequence[str]], place: int) -> _Column:
    cells = _cells(rows, place)
    numbers = [int(cell.replace(",", "").split(".")[0]) for cell in cells if is_number(cell)]
    return _Column(
        name=str(place + 1),
        filled=len(cells),
        numbers=len(numbers) / len(cells) if cells else 0.0,
        small=all(-1 <= number <= LARGEST_CATEGORY for number in numbers),
        words=_share(rows, place, lambda cell: cell.casefold() in KNOWN_WORDS),
        cjk=_share(rows, place, lambda cell: CJK.search(cell) is not None),
        sentences=_share(rows, place, lambda cell: " " in cell and "_" not in cell),
        lists=_share(rows, place, lambda cell: any(mark in cell for mark in SEPARATORS)),
        distinct=len(set(cells)) / len(cells) if cells else 0.0,
    )


def guess_columns(rows: Sequence[Sequence[str]]) -> Columns | None:
    """What the columns of a table without a header hold, by what stands in them; their names are
    their places, from 1. None where that is not plain.
    """
    columns = [_look(rows, place) for place in range(max(map(len, rows)))]
    texts = [column for column in columns if column.is_text]
    plain = [column for column in texts if column.cjk < MOSTLY]
    if not texts:
        return None
    tag = (plain or texts)[0]
    found: dict[Field, list[str]] = {Field.TAG: [tag.name]}
    at = columns.index(tag)
    if not _place_numbers(columns[:at], columns[at + 1 :], found):
        return None
    for column in texts:
        if column is not tag:
            field = _text_field(column, found)
            if field is None:
                return None
            found.setdefault(field, []).append(column.name)
    return {field: tuple(names) for field, names in found.items()}


def _place_numbers(
    before: list[_Column], after: list[_Column], found: dict[Field, list[str]]
) -> bool:
    """Columns of numbers: an id before the tag; after it a category and a count, in either order.
    Whether that was plain.
    """
    for column in before:
        if column.is_number:
            if Field.ID in found or column.distinct < 1:
                return False
            found[Field.ID] = [column.name]
    numbers = [column for column in after if column.is_number or column.is_category]
    category = next((column for column in numbers if column.is_category), None)
    counts = [column for column in numbers if column is not category]
    if len(counts) > 1:
        return False
    if category is not None:
        found[Field.CATEGORY] = [category.name]
    if counts:
        found[Field.POST_COUNT] = [counts[0].name]
    return True


def _text_field(column: _Column, found: dict[Field, list[str]]) -> Field | None:
    """What a column of texts beside the tag holds; None where it could be anything."""
    autocompletion = Field.CATEGORY in found and Field.POST_COUNT in found
    if autocompletion and Field.ALIASES not in found and not column.sentences >= MOSTLY:
        return Field.ALIASES  # name, category, count, aliases: in any script
    if column.cjk >= MOSTLY:
        return Field.EXPLANATION
    if column.sentences >= MOSTLY:
        return Field.DESCRIPTION
    return Field.ALIASES if column.lists and Field.ALIASES not in found else None


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
