"""Understanding a dump by its first rows: what its columns hold, whose category numbers it has.

What is not plain is refused, by one line that says what to add.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from danbooru_index.choices import Site
from danbooru_index.errors import InputError, UsageError
from danbooru_index.ingest.asked_mapping import AskedMapping, rename
from danbooru_index.ingest.columns import Columns, Field, recognise
from danbooru_index.ingest.dumps import Dump, DumpKind
from danbooru_index.ingest.guess import values_of_a_map
from danbooru_index.ingest.mapping import RowMapping, lookup, separator_of
from danbooru_index.ingest.parquet import Located
from danbooru_index.ingest.readers import open_rows
from danbooru_index.ingest.rows import Cells, DumpRows, RowOptions
from danbooru_index.ingest.sites import detect_site, site_of_frequent_tags
from danbooru_index.ingest.tag_notes import TagNotes
from danbooru_index.records import RejectedError

TAG_PAGE_KEYS = frozenset(("is_deprecated", "words", "related_tags", "is_locked", "ambiguous"))
SHORT_NUMBER = re.compile(r"(-?[0-9]{1,9})(\.0+)?")
MOST_ROWS = 0.5  # share of the first rows


@dataclass(frozen=True, slots=True)
class DumpOptions:
    """What a user says about dumps that they do not say themselves."""

    asked: AskedMapping = field(default_factory=AskedMapping)
    site: Site | None = None
    encoding: str | None = None
    table: str | None = None

    @property
    def rows(self) -> RowOptions:
        """What of it concerns the form of a file."""
        columns = self.asked.columns.values()
        return RowOptions(self.encoding, self.table, tuple(n for names in columns for n in names))


DEFAULT_OPTIONS = DumpOptions()


def open_dump(path: Path, options: DumpOptions = DEFAULT_OPTIONS) -> Dump:
    """Understand a file by its first rows. Raises `InputError` where that is not plain."""
    rows = open_rows(path, options.rows)
    sample = [row.cells for row in rows.sample() if not isinstance(row.cells, RejectedError)]
    keys = rows.columns or tuple(dict.fromkeys(key for cells in sample for key in cells))
    known = None if rows.guessed is None else rows.guessed or recognise(keys)
    own = not options.asked.columns and not options.asked.constants
    if own and _brings_records(rows, keys, known or {}):
        numbers = _category_numbers({Field.CATEGORY: ("category",)}, sample)
        site = options.site or site_of_frequent_tags(numbers) or Site.DANBOORU
        return Dump(path, rows, DumpKind.RECORD, keys, site=site if numbers else options.site)
    if known is None and own:
        raise InputError(_not_plain(path, sample))
    _check_asked(path, keys, options.asked)
    columns = rename(_text_or_explanation(known or {}, sample), options.asked)
    if not columns.get(Field.TAG) and not columns.get(Field.TEXT):
        raise InputError(
            f"{path}: which column holds the tags? it has {_listed(keys)}: say it by --map"
            " tag=COLUMN"
        )
    if rows.format == "JSON" and keys[:1] == ("name",) and own:
        columns = values_of_a_map(columns, sample) or {}
        if not columns:
            raise InputError(
                f"{path}: its numbers may be categories or counts: say which by --map"
                " tag=name,category=value or --map tag=name,post_count=value"
            )
    kind = _page_kind(keys)
    if kind is not DumpKind.ROW:  # a page's id is the page's: the record's is its tag
        columns = {of: names for of, names in columns.items() if of is not Field.ID}
    numbers = _category_numbers(columns, sample)
    site = _site(path, numbers, options.site)
    mapping = RowMapping(
        columns,
        options.asked.constants,
        {name: separator_of(_strings(sample, name)) for name in columns.get(Field.ALIASES, ())},
        site,
    )
    return Dump(path, rows, kind, keys, mapping, site if numbers else None)


def _site(path: Path, numbers: Sequence[tuple[str, int]], asked: Site | None) -> Site:
    """Whose category numbers these are; raise `InputError` where that is not plain."""
    site = asked or detect_site(numbers)
    if site is None:
        seen = _listed(sorted({number for _, number in numbers}))
        raise InputError(
            f"{path}: its category numbers ({seen}) are not plainly one site's: say which by --site"
            f" {'|'.join(one.value for one in Site)}, or leave them out by --map category=-"
        )
    return site


def _listed(names: Sequence[object]) -> str:
    shown = ", ".join(map(str, names[:12]))
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def _brings_records(rows: DumpRows, keys: Sequence[str], known: Columns) -> bool:
    """Whether a dump's rows are records already: with `text`, and `id` or nothing else to name
    them; or nothing in it can be read at all, which its rejects then say.
    """
    if not rows.format.startswith(("JSON", "Parquet")):
        return False
    return ("text" in keys and ("id" in keys or Field.TAG not in known)) or not keys


def _not_plain(path: Path, sample: Sequence[Cells]) -> str:
    first = " | ".join(str(cell)[:30] for cell in (sample[0].values() if sample else ()))
    return (
        f"{path}: what its columns hold is not plain (its first row: {first}): say it by their"
        " places, such as --map tag=1,explanation=2; if its first row names them, by these names"
    )


def _check_asked(path: Path, keys: Sequence[str], asked: AskedMapping) -> None:
    """Raise `UsageError` for a column that the dump does not have."""
    for of, names in asked.columns.items():
        for name in names:
            if name not in keys and name.split(".")[0] not in keys:
                raise UsageError(
                    f"--map {of.value}={name}: {path} has no such column; it has {_listed(keys)}"
                )


def _text_or_explanation(columns: Columns, sample: Sequence[Cells]) -> Columns:
    """A column `text` beside a tag is what is embedded if it names the tag, else an explanation."""
    if Field.TEXT not in columns or Field.TAG not in columns or Field.ID in columns:
        return columns
    text, tag = columns[Field.TEXT][0], columns[Field.TAG][0]
    naming = sum(str(cells.get(tag)) in str(cells.get(text)) for cells in sample)
    if naming > MOST_ROWS * len(sample):
        return columns
    explained = (*columns.get(Field.EXPLANATION, ()), text)
    kept: Columns = {of: names for of, names in columns.items() if of is not Field.TEXT}
    return {**kept, Field.EXPLANATION: explained}


def _page_kind(keys: Sequence[str]) -> DumpKind:
    """Whether rows are the pages of a site's interface, by their keys."""
    if "name" in keys and not TAG_PAGE_KEYS.isdisjoint(keys):
        return DumpKind.TAG_PAGE
    if "title" in keys and "name" not in keys and ("body" in keys or "other_names" in keys):
        return DumpKind.WIKI_PAGE
    return DumpKind.ROW


def _category_numbers(columns: Columns, sample: Sequence[Cells]) -> list[tuple[str, int]]:
    """(tag, category number) of the first rows."""
    if Field.CATEGORY not in columns:
        return []
    column, tag = columns[Field.CATEGORY][0], columns.get(Field.TAG, ("",))[0]
    found = ((str(cells.get(tag)), str(lookup(cells, column)).strip()) for cells in sample)
    matched = ((name, SHORT_NUMBER.fullmatch(number)) for name, number in found)
    return [(name, int(match[1])) for name, match in matched if match]


def _strings(sample: Sequence[Cells], column: str) -> list[str]:
    values = (lookup(cells, column) for cells in sample)
    return [value for value in values if isinstance(value, str)]


def read_dump(path: Path, options: DumpOptions = DEFAULT_OPTIONS) -> Iterator[Located]:
    """Every record of one file by itself, in order; one that cannot be used comes as a `Reject`."""
    yield from open_dump(path, options).records(TagNotes())
