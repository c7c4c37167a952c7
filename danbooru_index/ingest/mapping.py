"""From the cells of a row to the fields of a record."""

from __future__ import annotations

import ast
import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from danbooru_index.choices import Site
from danbooru_index.ingest.columns import Columns, Field
from danbooru_index.ingest.compose import compose_explanation, compose_text
from danbooru_index.ingest.sites import CATEGORY_NAMES
from danbooru_index.ingest.tag_notes import TagNotes
from danbooru_index.records import Reason, RejectedError, is_blank

MISSING = ("", "nan", "null", "none", "n/a", "na", "-", "\\n")  # as exports write nothing
FLAGS = {
    **dict.fromkeys(("1", "1.0", "true", "t", "yes", "y", "是", "はい"), True),
    **dict.fromkeys(("0", "0.0", "false", "f", "no", "n", "否", "いいえ"), False),
}
POSTGRES = ",{}"  # `{one,"two, three"}`
NAME_SEPARATORS = (",，", "|", "、", ";；")  # what may separate names in a cell; one kind a column
NO_TEXT = ("", "nan", "null", "none", "n/a", "<na>", "\\n")  # in any text but the tag itself
LONGEST_LIST = 100_000  # characters
MOST_DIGITS = 18
THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+(\.0+)?")


@dataclass(frozen=True, slots=True)
class RowMapping:
    """What each column of one dump holds, and how a row of it becomes the fields of a record.

    `makes_text`: no column holds the text, so it is made. `separators`: between the names in a
    cell, by column.
    """

    columns: Columns
    constants: Mapping[Field, str] = field(default_factory=dict)
    separators: Mapping[str, str] = field(default_factory=dict)
    site: Site = Site.DANBOORU

    @property
    def makes_text(self) -> bool:
        return not self._has(Field.TEXT)

    @property
    def is_rated(self) -> bool:
        """Whether the dump says itself what is not safe for work."""
        return self._has(Field.NSFW) or self._has(Field.RATING)

    def _has(self, of: Field) -> bool:
        return bool(self.columns.get(of)) or of in self.constants

    def fields(self, row: Mapping[str, Any], notes: TagNotes) -> dict[str, Any]:
        """A row's cells, and what other files say of its tag, as the fields of a record; raise
        `RejectedError`.
        """
        tag = self._text(row, Field.TAG).strip()
        record_id = self._value(row, Field.ID)
        fields: dict[str, Any] = {
            "id": tag if record_id in (None, "") else record_id,
            "tag": tag,
            "category": self.category(self._value(row, Field.CATEGORY)),
            "post_count": _post_count(self._value(row, Field.POST_COUNT)),
            "source": self._text(row, Field.SOURCE) or self.site.value,
            "nsfw": flag_cell(self._value(row, Field.NSFW), "nsfw"),
            "rating": self._value(row, Field.RATING),
            "deprecated": flag_cell(self._value(row, Field.DEPRECATED), "deprecated"),
            "metadata": self._value(row, Field.METADATA),
        }
        said = notes.of(tag)
        aliases = dict.fromkeys([*self.names(row, Field.ALIASES), *said.names])
        fields["aliases"] = [alias for alias in aliases if alias != tag]
        if self._has(Field.TEXT):
            fields["text"] = self._value(row, Field.TEXT)
            return {name: value for name, value in fields.items() if value not in (None, "")}
        if is_blank(tag):
            fields["text"] = tag
            return fields
        explanation = compose_explanation(
            tag,
            [*self.names(row, Field.EXPLANATION, whole=True), *said.translations],
            fields["aliases"],
            "\n".join(self.names(row, Field.DESCRIPTION, whole=True)) or said.description,
        )
        fields["explanation"] = explanation
        fields["text"] = compose_text(fields["category"], tag, explanation)
        return fields

    def marked(self, row: Mapping[str, Any] | RejectedError) -> bool:
        """Whether a row's own column says that it is not safe for work."""
        if isinstance(row, RejectedError):
            return False
        return bool(flag_cell(self._value(row, Field.NSFW), "nsfw"))

    def category(self, value: Any) -> str:
        """A category's name; of the numbers that the site has for them, what they mean. Raises
        `RejectedError` for a number that it does not have.
        """
        if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
            raise RejectedError(
                Reason.WRONG_TYPE, f"category is a {type(value).__name__}, not a string"
            )
        word = "" if value is None or _says_nothing(str(value)) else str(value).strip()
        number = word.removesuffix(".0")
        if not re.fullmatch(r"-?\d+", number):
            return word
        # a longer number is no category's, and Python refuses to parse one of 4,300 digits
        name = CATEGORY_NAMES[self.site].get(int(number[:MOST_DIGITS]))
        if name is None:
            raise RejectedError(
                Reason.UNKNOWN_CATEGORY,
                f"{self.site.value} has no category {number[:20]}; --site names another site",
            )
        return name

    def names(self, row: Mapping[str, Any], of: Field, *, whole: bool = False) -> list[str]:
        """The names in all columns of a field; `whole`: a cell is one, however it is separated."""
        found: list[str] = [self.constants[of]] if of in self.constants else []
        for column in self.columns.get(of, ()):
            value = lookup(row, column)
            if isinstance(value, int) and not isinstance(value, bool):
                found.append(str(value))
            elif isinstance(value, str):
                found += [value] if whole else split_names(value, self.separators.get(column, ","))
            elif isinstance(value, (list, tuple)):
                there = [
                    str(name) if type(name) is int else name for name in value if name is not None
                ]
                if not all(isinstance(name, str) for name in there):
                    raise RejectedError(Reason.WRONG_TYPE, f"{column} is not a list of strings")
                found += there
            elif value is not None:
                raise RejectedError(
                    Reason.WRONG_TYPE, f"{column} is a {type(value).__name__}, not names"
                )
        return [name.strip() for name in found if not _says_nothing(name)]

    def _value(self, row: Mapping[str, Any], of: Field) -> Any:
        if of in self.constants:
            return self.constants[of]
        columns = self.columns.get(of, ())
        return lookup(row, columns[0]) if columns else None

    def _text(self, row: Mapping[str, Any], of: Field) -> str:
        value = self._value(row, of)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise RejectedError(
                Reason.WRONG_TYPE, f"{of.value} is a {type(value).__name__}, not a string"
            )
        return str(value)


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """A cell by its column's name; `a.b` is looked for in the object `a`, where there is none."""
    if column in row or "." not in column:
        return row.get(column)
    outer, _, inner = column.partition(".")
    value = row.get(outer)
    return lookup(value, inner) if isinstance(value, Mapping) else None


def split_names(cell: str, separators: str) -> list[str]:
    """The names in one cell; a list as JSON, Python or Postgres write it is one."""
    stripped = cell.strip()
    if stripped.startswith("[") and stripped.endswith("]"):
        listed = _list_in(stripped)
        if listed is not None:
            return listed
    if separators == POSTGRES and stripped.startswith("{") and stripped.endswith("}"):
        return next(csv.reader([stripped[1:-1]]), [])
    for mark in separators[1:]:
        cell = cell.replace(mark, separators[0])
    return cell.split(separators[0])


def _list_in(cell: str) -> list[str] | None:
    """The names in a list that was written as text; None where it is none."""
    if len(cell) > LONGEST_LIST:
        return None
    for parse in (json.loads, ast.literal_eval):  # literals only, nothing is run
        try:
            names = parse(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    return None


def _says_nothing(value: Any) -> bool:
    """Whether a cell is empty, or says so as databases and pandas do."""
    return isinstance(value, str) and value.strip().casefold() in NO_TEXT


def separator_of(cells: Sequence[str]) -> str:
    """What separates the names in a column: the kind that most of its cells hold, else a comma."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    arrays = sum(cell.startswith("{") and cell.endswith("}") for cell in filled)
    if filled and arrays == len(filled):
        return POSTGRES
    held = {
        kind: sum(any(mark in cell for mark in kind) for cell in cells) for kind in NAME_SEPARATORS
    }
    return max(NAME_SEPARATORS, key=lambda kind: held[kind])


def unused(columns: Columns, names: Sequence[str]) -> tuple[str, ...]:
    """The columns that no field takes."""
    used = [name for taken in columns.values() for name in taken]
    taken = {*used, *(name.split(".")[0] for name in used)}
    return tuple(name for name in names if name not in taken)


def _post_count(value: Any) -> Any:
    """A number of posts as a cell writes it: `900,000`, `12.0`, nothing."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if not isinstance(value, str):
        return value
    word = value.strip()
    if word.casefold() in MISSING:
        return None
    return word.replace(",", "") if THOUSANDS.fullmatch(word) else word


def flag_cell(value: Any, name: str) -> Any:
    """True, false or nothing as a cell writes it; raise `RejectedError`."""
    if not isinstance(value, str):
        return value
    word = value.strip().casefold()
    if word in MISSING:
        return None
    if word not in FLAGS:
        raise RejectedError(Reason.WRONG_TYPE, f"{name} is {value[:40]!r}, not true or false")
    return FLAGS[word]
