"""The Parquet files that a build is to read, and what each says of its records."""

from __future__ import annotations

import glob
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from danbooru_index.errors import InputError, first_line
from danbooru_index.ingest.nsfw import MarkSource
from danbooru_index.ingest.parquet import KNOWN_FIELDS, InputFile
from danbooru_index.ingest.sources import files_in
from danbooru_index.storage.base import Storage
from danbooru_index.storage.locate import locate

MARKS_KEY = b"danbooru_index.nsfw_marks"  # in a shard's schema: how its `nsfw` was made


def find_parquet(spec: str) -> list[Path | str]:
    """The Parquet files of a folder, a glob or a path, or of `s3://bucket/prefix`, by names that
    hold in every working directory; raise `InputError` for none.
    """
    if "://" in spec:
        return [str(place) for place in _objects(spec)]
    path = Path(spec)
    if path.is_dir():
        files = [p for p in files_in(path) if p.suffix.lower() == ".parquet"]
        if not files:
            raise InputError(f"{spec}: no .parquet file in this folder; {_prepare_first(spec)}")
        return [file.resolve() for file in files]
    files = [path] if path.is_file() else sorted(Path(p) for p in glob.glob(spec, recursive=True))
    if not files:
        raise InputError(f"{spec}: no such file or folder")
    if folders := [file for file in files if file.is_dir()]:
        raise InputError(
            f"{folders[0]}: a folder among the files of {spec}: name the folder above, or *.parquet"
        )
    if dumps := [
        file for file in files if file.suffix.lower() != ".parquet" and not _is_parquet(file)
    ]:
        raise InputError(f"{dumps[0]}: a tag dump, not Parquet shards; {_prepare_first(spec)}")
    return [file.resolve() for file in files]


def _objects(spec: str) -> list[Storage]:
    """The Parquet objects under a prefix, in name order, hidden ones left out; or one object."""
    place = locate(spec)
    try:
        if place.name and place.exists():
            return [place]
        names = sorted(place.sizes())
    except OSError as error:
        raise InputError(f"{spec}: {error.strerror or first_line(error)}") from None
    found = [
        place / name
        for name in names
        if name.lower().endswith(".parquet")
        and not any(part.startswith((".", "_")) for part in name.split("/"))
    ]
    if not found:
        raise InputError(f"{spec}: no .parquet object under this prefix; {_prepare_first('DUMP')}")
    return found


def _prepare_first(spec: str) -> str:
    """The commands that make shards of a dump and build them."""
    dump = shlex.quote(spec)
    return (
        f"run danbooru-index prepare {dump} --out data/shards, then danbooru-index build"
        " data/shards --index ..."
    )


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def noted_marks(file: pq.ParquetFile) -> str:
    """How `prepare` says that it marked a file's records; empty for a file of another program."""
    noted = (file.schema_arrow.metadata or {}).get(MARKS_KEY, b"")
    return str(noted.decode(errors="replace"))


def nsfw_marks(file: pq.ParquetFile, *, by_words: bool) -> str:
    """How a file's records are marked as not safe for work: as `prepare` noted, by its own columns,
    or by words where it has none.
    """
    noted = noted_marks(file)
    if noted:
        return noted
    if not {"nsfw", "rating", "metadata"}.isdisjoint(file.schema_arrow.names):
        return MarkSource.INPUT.value
    return MarkSource.WORDS.value if by_words else MarkSource.NONE.value


def checked_parquet(opened: InputFile) -> pq.ParquetFile:
    """A Parquet file with the columns that a build needs; raise `InputError` for another one."""
    path = opened.path
    try:
        file = opened.parquet()
    except (OSError, pa.ArrowException) as error:
        reason = first_line(error, 160)
        raise InputError(
            f"{path}: not a whole Parquet file ({reason}); write or fetch it again"
        ) from None
    names = file.schema_arrow.names  # made anew each time that it is asked for
    if missing := {"id", "text"} - set(names):
        raise InputError(
            f"{path}: no column {' and '.join(sorted(missing))}; it has"
            f" {', '.join(names)}; {_prepare_first(path)}"
        )
    for column in sorted(KNOWN_FIELDS):
        if names.count(column) > 1:
            raise InputError(f"{path}: two columns are called {column}; keep one")
    return file
