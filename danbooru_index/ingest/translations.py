"""Files of translations: columns in any order, JSON maps -> what is said of each tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from danbooru_index.errors import InputError
from danbooru_index.ingest.columns import Columns, Field, recognise
from danbooru_index.ingest.mapping import RowMapping, unused
from danbooru_index.ingest.names import name_key
from danbooru_index.ingest.readers import open_rows
from danbooru_index.ingest.rows import DumpRows, Row, RowOptions
from danbooru_index.ingest.tag_notes import TagNotes
from danbooru_index.records import RejectedError

EXPLAINING = (Field.EXPLANATION, Field.TEXT, Field.DESCRIPTION, Field.ALIASES)


@dataclass(frozen=True, slots=True)
class TranslationsRead:
    """What a file of translations held: its tags in their normal form, the first of them as it
    stands, rows that could not be read, columns that were, and those that nothing was made of.
    """

    path: str
    tags: frozenset[str]
    first: str
    left_out: int
    columns: tuple[tuple[str, str], ...]
    unused: tuple[str, ...] = ()


def read_translations(path: str, encoding: str | None, notes: TagNotes) -> TranslationsRead:
    """Add a file's explanations to the notes of its tags. A row that cannot be read, such as one
    with an open quote, is left out by itself. Raises `InputError`.
    """
    rows = open_rows(Path(path), RowOptions(encoding))
    columns = _tag_and_text(path, rows)
    mapping = RowMapping(columns)
    tag = columns[Field.TAG][0]
    tags: set[str] = set()
    first, left_out = "", 0
    for row in rows.read():
        name = _name(row, tag)
        texts = _explanations(row, mapping) if name else []
        if not texts:
            left_out += isinstance(row.cells, RejectedError)
            continue
        first = first or name
        tags.add(notes.translate(name, texts))
    named = tuple((column, of.value) for of, names in columns.items() for column in names)
    others = unused(columns, rows.columns)
    return TranslationsRead(path, frozenset(tags), first, left_out, named, others)


def _name(row: Row, column: str) -> str:
    value = None if isinstance(row.cells, RejectedError) else row.cells.get(column)
    return str(value).strip() if isinstance(value, (str, int)) else ""


def _explanations(row: Row, mapping: RowMapping) -> list[str]:
    if isinstance(row.cells, RejectedError):
        return []
    try:
        return mapping.names(row.cells, Field.EXPLANATION, whole=True)
    except RejectedError:
        return []


def _tag_and_text(path: str, rows: DumpRows) -> Columns:
    """Which column holds the tags and which the explanations. Raises `InputError`."""
    keys = rows.columns
    if not keys:
        cells = [row.cells for row in rows.sample() if not isinstance(row.cells, RejectedError)]
        keys = tuple(dict.fromkeys(key for one in cells for key in one))
    known = rows.guessed or (recognise(keys) if rows.header else _in_order(keys))
    explaining = next((known[of] for of in EXPLAINING if known.get(of)), ())
    if not known.get(Field.TAG) or not explaining:
        raise InputError(
            f"{path}: two columns are needed, the tags and their explanations; it has"
            f" {', '.join(keys[:8])}: name them tag and zh in a first row"
        )
    return {Field.TAG: known[Field.TAG], Field.EXPLANATION: explaining}


def _in_order(keys: Sequence[str]) -> Columns:
    """Two columns of the same script: the tag comes first, as in `tag,text`."""
    if len(keys) != 2:
        return {}
    return {Field.TAG: (keys[0],), Field.EXPLANATION: (keys[1],)}


def read_tag_list(path: str, encoding: str | None = None) -> frozenset[str]:
    """A list of tags (`--nsfw-tags`) in their normal form; raise `InputError`."""
    rows = open_rows(Path(path), RowOptions(encoding))
    known = rows.guessed or {}
    columns = known.get(Field.TAG) or rows.columns or ("name",)  # without a plan: every cell
    flag = RowMapping({Field.NSFW: known[Field.NSFW]}) if known.get(Field.NSFW) else None
    names: set[str] = set()
    for row in rows.read():
        try:
            chosen = flag is None or flag.marked(row.cells)
        except RejectedError as error:
            raise InputError(f"{path}:{row.number}: {error.detail}") from None
        if chosen:
            names |= {_name(row, column) for column in columns}
    names.discard("")
    if not names:
        raise InputError(f"{path}: holds no tag")
    return frozenset(map(name_key, names))
