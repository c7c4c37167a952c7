"""A dump as rows: cells by the name of their column, each with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from danbooru_index.ingest.columns import Columns
from danbooru_index.records import RejectedError

SAMPLE_ROWS = 1000
Cells = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its line, item or row number, from 1; its cells by column, or why it has none; what
    stands in the file, for the file of rejects.
    """

    number: int
    cells: Cells | RejectedError
    content: str = ""


@dataclass(frozen=True, slots=True)
class DumpRows:
    """A dump as rows. `columns`: those that it has in every row, empty for JSON, whose records may
    differ. `guessed`: what the columns of a table hold, by their names and by what stands in them;
    None: that is not plain.
    """

    format: str
    read: Callable[[], Iterator[Row]]
    columns: tuple[str, ...] = ()
    encoding: str = ""
    delimiter: str = ""
    header: bool = True
    guessed: Columns | None = field(default_factory=dict)

    def sample(self) -> list[Row]:
        """The first rows."""
        return list(islice(self.read(), SAMPLE_ROWS))


@dataclass(frozen=True, slots=True)
class RowOptions:
    """What a user says about a file's form: its encoding, the table of a database, and columns
    that are wanted though their names are not known.
    """

    encoding: str | None = None
    table: str | None = None
    wanted: tuple[str, ...] = ()


def shown(value: object) -> str:
    """What a row holds, for the file of rejects, as valid UTF-8."""
    return repr(value)[:2000].encode(errors="replace").decode()
