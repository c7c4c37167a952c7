"""A dump as it was understood: its rows, what its columns hold; its records, streamed.

Nothing is silent: `understood` is shown. Who understands a file is `understanding`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danbooru_index.choices import Choice, Site
from danbooru_index.ingest.columns import Field, field_of
from danbooru_index.ingest.fields import parse_fields
from danbooru_index.ingest.mapping import RowMapping, flag_cell, unused
from danbooru_index.ingest.parquet import Located
from danbooru_index.ingest.rows import Cells, DumpRows, Row
from danbooru_index.ingest.tag_notes import TagNotes, is_tag_page
from danbooru_index.records import Record, Reject, RejectedError

HEADERS = 2  # rows below the first header that may be headers once more


class DumpKind(Choice):
    """What one row of a dump is."""

    RECORD = "record"  # with an id and a text of its own, which stay as they are
    ROW = "row"
    TAG_PAGE = "tag page"
    WIKI_PAGE = "wiki page"


@dataclass(frozen=True, slots=True)
class Dump:
    """A file as it was understood. `mapping` None: its records are read as they stand."""

    path: Path
    rows: DumpRows
    kind: DumpKind
    keys: tuple[str, ...]
    mapping: RowMapping | None = None
    site: Site | None = None  # None: no number of a category was seen

    @property
    def makes_text(self) -> bool:
        """Whether the project makes the texts, from what the columns hold."""
        return self.mapping is not None and self.mapping.makes_text

    @property
    def is_rated(self) -> bool:
        """Whether columns say what is not safe for work; JSON records may say it themselves."""
        return self.mapping is not None and self.mapping.is_rated

    def records(self, notes: TagNotes, rated: set[str] | None = None) -> Iterator[Located]:
        """Every record, or why there is none, with its place; a wiki page that is about no tag is
        noted and passed over. The dump is put into `rated` when one of its records says whether it
        is safe for work.
        """
        for place, row in enumerate(self.rows.read()):
            if isinstance(row.cells, RejectedError):
                yield row.number, self._reject(row, row.cells)
                continue
            if place < HEADERS and self._names_columns(row.cells):
                continue
            if self.kind is DumpKind.WIKI_PAGE and not _about_a_tag(row.cells):
                notes.passed_over += 1
                continue
            try:
                record = self._record(row.cells, notes)
            except RejectedError as error:
                yield row.number, self._reject(row, error)
                continue
            if rated is not None and self._rates(row.cells):
                rated.add(str(self.path))
            yield row.number, record

    def _names_columns(self, cells: Cells) -> bool:
        """Whether a row is a second header, or the rule below one: `|---|---|`."""
        if self.mapping is None or not self.rows.header or not self.rows.columns:
            return False
        fields = {name: of for of, names in self.mapping.columns.items() for name in names}
        filled = {
            name: value.strip()
            for name, value in cells.items()
            if isinstance(value, str) and value.strip() and name in fields
        }
        named = all(field_of(value) is fields[name] for name, value in filled.items())
        ruled = all(re.fullmatch(r":?-{2,}:?", value) for value in filled.values())
        return len(filled) > 1 and (named or ruled)

    def _rates(self, cells: Cells) -> bool:
        """Whether a record says if it is safe for work: by its columns, or where it has none that
        all records share, by its own keys.
        """
        by_columns = self.mapping is not None and bool(self.rows.columns)
        return self.is_rated or (not by_columns and says_nsfw(cells))

    def _record(self, cells: Cells, notes: TagNotes) -> Record:
        if self.mapping is not None:
            return parse_fields(self.mapping.fields(cells, notes))
        if type(cells.get("category")) is int:
            named = RowMapping({}, site=self.site or Site.DANBOORU).category(cells["category"])
            cells = {**cells, "category": named}
        return parse_fields(cells)

    def _reject(self, row: Row, error: RejectedError) -> Reject:
        return Reject(error.reason, str(self.path), row.number, error.detail, row.content)

    def describe_to(self, notes: TagNotes) -> int:
        """Add this dump's wiki pages to what is said of tags; how many there were."""
        mapping = self.mapping or RowMapping({})
        pages = 0
        for row in self.rows.read():
            if isinstance(row.cells, RejectedError) or not _about_a_tag(row.cells):
                notes.passed_over += 1
                continue
            try:
                body = mapping.names(row.cells, Field.DESCRIPTION, whole=True)
                names = mapping.names(row.cells, Field.ALIASES)
            except RejectedError:
                notes.passed_over += 1
                continue
            notes.describe(str(row.cells["title"]), names, "\n".join(body))
            pages += 1
        return pages

    def understood(self) -> dict[str, Any]:
        """What was understood, for the report."""
        mapping = self.mapping or RowMapping({})
        columns = mapping.columns or {of: (of.value,) for of in Field if of.value in self.keys}
        return {
            "file": str(self.path),
            "format": self.rows.format,
            "encoding": self.rows.encoding or None,
            "delimiter": self.rows.delimiter or None,
            "header": self.rows.header,
            "site": self.site.value if self.site else None,
            "columns": {name: of.value for of, names in columns.items() for name in names},
            "constants": {of.value: value for of, value in mapping.constants.items()},
            "left_out": list(unused(columns, self.keys)),
            "text": "made" if self.makes_text else "as it stands",
        }


def says_nsfw(cells: Cells) -> bool:
    """Whether a record says itself if it is safe for work; also in its `metadata`."""
    extra = cells.get("metadata")
    inner = extra if isinstance(extra, Mapping) else {}
    return any(
        where.get(name) not in (None, "") for where in (cells, inner) for name in ("nsfw", "rating")
    ) or (isinstance(extra, str) and ('"nsfw"' in extra or '"rating"' in extra))


def _about_a_tag(cells: Cells) -> bool:
    """Whether a wiki page has a tag for its title, and was not deleted."""
    title = cells.get("title")
    try:
        deleted = bool(flag_cell(cells.get("is_deleted"), "is_deleted"))
    except RejectedError:
        return False
    return isinstance(title, str) and bool(title.strip()) and is_tag_page(title, deleted=deleted)
