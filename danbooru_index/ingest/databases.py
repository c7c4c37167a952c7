"""Tables of SQLite databases and sheets of workbooks, as rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from danbooru_index.errors import InputError, as_error, first_line
from danbooru_index.ingest.columns import Field, recognise
from danbooru_index.ingest.table_rows import refuse_twice

WORKBOOK_SUFFIXES = (".xlsx", ".xlsm")
Source = tuple[str, tuple[str, ...], Callable[[], Iterator[dict[str, Any]]]]


def table_rows(path: Path, asked: str | None) -> Source:
    """(format, columns, rows) of the one table in a SQLite database that holds tags, or of the one
    asked for. Raises `InputError`.
    """
    try:
        with closing(_connect(path)) as database:
            found = database.execute(
                "select name from sqlite_master where type in ('table', 'view')"
                " and name not like 'sqlite_%' order by name"
            )
            names = [name for (name,) in found]
            columns = {name: _column_names(database, name) for name in names}
    except sqlite3.Error as error:
        raise InputError(f"{path}: cannot be read as SQLite ({first_line(error)})") from None
    table = _choose(path, "table", columns, asked)

    def rows() -> Iterator[dict[str, Any]]:
        try:
            with closing(_connect(path)) as database:
                for values in database.execute(f"select * from {_quoted(table)}"):
                    yield dict(zip(columns[table], values, strict=True))
        except sqlite3.Error as error:
            raise InputError(
                f"{path}: table {table}: cannot be read to its end ({first_line(error)})"
            ) from None

    return f"SQLite table {table}", columns[table], rows


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _column_names(database: sqlite3.Connection, table: str) -> tuple[str, ...]:
    described = database.execute(f"select * from {_quoted(table)} limit 0").description
    return tuple(column[0] for column in described)


def sheet_rows(path: Path, asked: str | None) -> Source:
    """(format, columns, rows) of the one sheet of a workbook that holds tags, or of the one asked
    for; its first row names the columns. Raises `InputError`.
    """
    columns = {name: _header(rows) for name, rows in _sheets(path)}
    sheet = _choose(path, "sheet", columns, asked)
    refuse_twice(f"{path}: sheet {sheet}", columns[sheet])
    if not recognise(columns[sheet]):
        raise InputError(
            f"{path}: the first row of sheet {sheet} names no column that is known"
            f" ({', '.join(columns[sheet][:6])}): name them there: tag, zh, count ..."
        )

    def rows() -> Iterator[dict[str, Any]]:
        for name, values in _sheets(path):
            if name != sheet:
                continue
            next(values, None)
            for row in values:
                if any(cell is not None for cell in row):
                    yield dict(zip(columns[sheet], map(_cell, row), strict=False))

    return f"workbook sheet {sheet}", columns[sheet], rows


def _sheets(path: Path) -> Iterator[tuple[str, Iterator[Sequence[Any]]]]:
    """(name, rows) of each sheet, one after the other."""
    try:
        import openpyxl
    except ImportError:
        raise InputError(
            f"{path}: workbooks need openpyxl: pip install 'danbooru_index[xlsx]', or save the"
            " sheet as CSV in UTF-8"
        ) from None
    problem = f"{path}: cannot be read as a workbook ({{}}); save the sheet as CSV in UTF-8"
    with (
        as_error(InputError, problem),
        closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as book,
    ):
        for sheet in book.worksheets:
            yield sheet.title, iter(sheet.iter_rows(values_only=True))


def _header(rows: Iterator[Sequence[Any]]) -> tuple[str, ...]:
    return tuple(
        str(cell).strip() if cell is not None else str(place)
        for place, cell in enumerate(next(rows, ()), start=1)
    )


def _cell(cell: Any) -> Any:
    """A cell's value: a workbook keeps whole numbers as decimals."""
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell


def _choose(path: Path, kind: str, columns: dict[str, tuple[str, ...]], asked: str | None) -> str:
    """The table that is meant: the one asked for, the only one, or the only one with tags."""
    if asked is not None:
        if asked not in columns:
            raise InputError(f"{path}: no {kind} {asked}; there are {', '.join(columns)}")
        return asked
    if not columns:
        raise InputError(f"{path}: holds no {kind}")
    known = {name: recognise(named) for name, named in columns.items()}
    holding = [name for name, fields in known.items() if Field.TAG in fields and len(fields) > 1]
    fitting = list(columns) if len(columns) == 1 else holding
    if len(fitting) != 1:
        raise InputError(
            f"{path}: holds several {kind}s: say which by --table: {', '.join(columns)}"
        )
    return fitting[0]
