"""The files of an input: paths and folders of tag dumps, in order.

What is in a file says `understanding`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from danbooru_index.errors import InputError, UsageError
from danbooru_index.ingest.databases import WORKBOOK_SUFFIXES
from danbooru_index.ingest.readers import DATABASE_SUFFIXES, JSON_SUFFIXES
from danbooru_index.ingest.text_file import COMPRESSIONS
from danbooru_index.ingest.understanding import read_dump
from danbooru_index.records import Record

OWN_FILES = ("rejects.jsonl", "prepare.json")
IN_FOLDERS = (*JSON_SUFFIXES, ".csv", ".tsv", ".parquet")
# Read where they are named: in a folder they may be notes, archives, another program's database.
ALONE = (".txt", ".zip", *DATABASE_SUFFIXES, *WORKBOOK_SUFFIXES)


def list_inputs(paths: tuple[str, ...], leaving_out: Path | None = None) -> list[Path]:
    """The files behind the given paths, folders in name order, without those in the folder
    `leaving_out`; raise `InputError` for what is not there.
    """
    found: list[Path] = []
    for word in paths:
        path = Path(word)
        if path.is_dir():
            inside = [
                p
                for p in files_in(path, leaving_out)
                if _kind(p) in IN_FOLDERS and p.name not in OWN_FILES
            ]
            if not inside:
                raise InputError(f"{path}: no .jsonl, .csv, .tsv or .parquet file in this folder")
            found += inside
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        elif not _kind(path):
            raise UsageError(
                f"{path}: unknown kind of file; known are .jsonl, .json, .csv, .tsv, .txt (each"
                " also .gz, .zst), .parquet, .sqlite, .xlsx and .zip"
            )
        else:
            found.append(path)
    return found


def valid_records(paths: tuple[str, ...]) -> Iterator[Record]:
    """The valid records of files and folders of dumps, in order."""
    for path in list_inputs(paths):
        yield from (item for _, item in read_dump(path) if isinstance(item, Record))


def files_in(folder: Path, leaving_out: Path | None = None) -> list[Path]:
    """The files in a folder and its folders, in name order, links followed; not what is hidden (a
    name that begins with `.` or `_`), nor what is in an index. Raises `InputError` for a link to
    nothing.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(place)
        is_index = "generations" in folders and not {"CURRENT.json", ".owner.lock"}.isdisjoint(
            names
        )
        left_out = leaving_out is not None and place != str(folder) and Path(here) == leaving_out
        if here in seen or is_index or left_out:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += [Path(place, name) for name in names if not name.startswith((".", "_"))]
    if broken := [path for path in found if _kind(path) and not path.exists()]:
        raise InputError(
            f"{broken[0]}: a link to a file that is not there; remove the link, or bring the file"
            " back"
        )
    return sorted(path for path in found if path.is_file())


def _kind(path: Path) -> str:
    """The suffix that says what a file is, without `.gz`, `.zst` and `.zip`; empty: not known."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return last if last in (*IN_FOLDERS, *ALONE) else ""
