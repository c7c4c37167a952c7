"""What the columns of a table without a header hold, by what stands in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danbooru_index.ingest.columns import Columns, Field
from danbooru_index.ingest.delimited import CJK, MOSTLY, filled_cells, is_number, share_of
from danbooru_index.ingest.sites import KNOWN_WORDS, MARKERS

NEARLY_ALL = 0.9
LARGEST_CATEGORY = 15
SOME = 0.3
MACHINE = re.compile(r"(?i)https?://.*|\d{4}-\d\d-\d\d.*|true|false|[0-9a-f]{32,}")
SEPARATORS = ",，|、;；"


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
    machine: float  # dates, addresses, true and false
    zeros: float  # among its numbers
    marked: bool  # by the numbers of frequent tags, a category

    @property
    def is_number(self) -> bool:
        return self.numbers >= MOSTLY

    @property
    def is_category(self) -> bool:
        return (self.is_number and self.small) or self.words >= NEARLY_ALL

    @property
    def is_surely_category(self) -> bool:
        """Whether small numbers are categories though no count stands beside them."""
        alike = self.filled > 1 and self.distinct * self.filled < 1.5
        return self.words >= NEARLY_ALL or self.zeros >= SOME or alike or self.marked

    @property
    def is_text(self) -> bool:
        plain = not self.is_number and not self.is_category and self.machine < MOSTLY
        return bool(self.filled) and plain


def _look(rows: Sequence[Sequence[str]], place: int) -> _Column:
    cells = filled_cells(rows, place)
    numbers = [int(cell.replace(",", "").split(".")[0]) for cell in cells if is_number(cell)]
    return _Column(
        name=str(place + 1),
        filled=len(cells),
        numbers=len(numbers) / len(cells) if cells else 0.0,
        small=all(-1 <= number <= LARGEST_CATEGORY for number in numbers),
        words=share_of(rows, place, lambda cell: cell.casefold() in KNOWN_WORDS),
        cjk=share_of(rows, place, lambda cell: CJK.search(cell) is not None),
        sentences=share_of(rows, place, lambda cell: " " in cell and "_" not in cell),
        lists=share_of(rows, place, lambda cell: any(mark in cell for mark in SEPARATORS)),
        distinct=len(set(cells)) / len(cells) if cells else 0.0,
        machine=share_of(rows, place, lambda cell: MACHINE.fullmatch(cell) is not None),
        zeros=numbers.count(0) / len(numbers) if numbers else 0.0,
        marked=_has_frequent_tags(rows, place),
    )


def _has_frequent_tags(rows: Sequence[Sequence[str]], place: int) -> bool:
    """Whether frequent tags of a site stand in some column beside their category's number."""
    for row in rows:
        number = row[place].strip() if place < len(row) else ""
        if number and len(number) < 3 and is_number(number):
            for cell in row:
                if any(known.get(cell) == int(number) for known in MARKERS.values()):
                    return True
    return False


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
    if len(counts) > 1 or (category and not counts and not category.is_surely_category):
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


def fill_in(columns: Columns, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Columns:
    """Columns whose names are known, and those of texts beside them whose names are not: what
    explains a tag in whatever language is not lost for its header.
    """
    taken = {name for known in columns.values() for name in known}
    found = {field: list(known) for field, known in columns.items()}
    unknown = [place for place, name in enumerate(names) if name not in taken]
    for place in unknown:
        column = _look(rows, place)
        if column.is_text and Field.TAG in found:
            field = _text_field(column, found)
            if field in (Field.EXPLANATION, Field.DESCRIPTION) or len(names) == 2:
                found.setdefault(field or Field.EXPLANATION, []).append(names[place])
    return {field: tuple(known) for field, known in found.items()}


def values_of_a_map(columns: Columns, sample: Sequence[Mapping[str, Any]]) -> Columns | None:
    """What the values of a JSON map are: texts, or numbers of posts or categories written as texts;
    None for numbers that may be either.
    """
    texts = [str(cells["translation"]) for cells in sample if cells.get("translation")]
    if texts and len(texts) == len(sample):
        kept: Columns = {of: names for of, names in columns.items() if of is not Field.EXPLANATION}
        if all(map(is_number, texts)):
            return {**kept, Field.POST_COUNT: ("translation",)}
        if all(text.strip().casefold() in KNOWN_WORDS for text in texts):
            return {**kept, Field.CATEGORY: ("translation",)}
    numbers = [
        cells["value"]
        for cells in sample
        if set(cells) == {"name", "value"} and type(cells["value"]) is int
    ]
    if not numbers or len(numbers) < len(sample):
        return columns
    if len(numbers) > 1 and max(numbers) <= LARGEST_CATEGORY:
        return None
    return {**columns, Field.POST_COUNT: ("value",)}
