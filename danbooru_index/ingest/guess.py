"""What the columns of a table without a header hold, by what stands in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from danbooru_index.ingest.columns import Columns, Field
from danbooru_index.ingest.delimited import CJK, MOSTLY, filled_cells, is_number, share_of
from danbooru_index.ingest.sites import KNOWN_WORDS

NEARLY_ALL = 0.9
LARGEST_CATEGORY = 15
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
