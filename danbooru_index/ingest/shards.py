"""Shards: slices of the input that are done or not done as a whole, identified by their content.

`list_shards` lists the shards of a folder, a glob or a Parquet file (cutting files that are too large by rows);
`mark_duplicates` finds ids that occur twice; `read_shard` reads one shard. Rows keep the input's order all the way.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from danbooru_index.config import MAX_TEXT_BYTES
from danbooru_index.errors import InputError, first_line
from danbooru_index.ingest.duplicates import DuplicateFilter, IdHashes
from danbooru_index.ingest.parquet import KNOWN_FIELDS, open_parquet, parse_rows
from danbooru_index.ingest.sources import files_in
from danbooru_index.records import VISIBLE, Reason, Record, Reject

RECORD_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("tag", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("explanation", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("post_count", pa.int64()),
        pa.field("aliases", pa.list_(pa.string()), nullable=False),
        pa.field("nsfw", pa.bool_(), nullable=False),
        pa.field("deprecated", pa.bool_(), nullable=False),
    ]
)
LARGEST_SHARD_ROWS = 16_384
LARGEST_SHARD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows `start` to `start + rows` of one Parquet file; `id` comes from the file's content and the range.

    `stamp` is the file's size and time of change. `drop` holds the rows, counted from the shard's first, whose id
    occurred earlier in the input.
    """

    id: str
    path: str
    start: int
    rows: int
    digest: str
    stamp: tuple[int, int] = (0, 0)
    drop: tuple[int, ...] = ()


def to_table(records: list[Record]) -> pa.Table:
    """Records -> an Arrow table of `RECORD_SCHEMA`."""
    columns = {name: [getattr(record, name) for record in records] for name in RECORD_SCHEMA.names}
    return pa.table(columns, schema=RECORD_SCHEMA)


def list_shards(spec: str) -> list[Shard]:
    """The shards of a folder, a glob or one Parquet file, in name order.

    Raises `InputError` for a path that is not there, a folder without Parquet, a file that is not whole or has no
    `id` and `text`. Every file is hashed, so that a changed file is another shard.
    """
    shards: list[Shard] = []
    seen: Counter[str] = Counter()
    for path in _parquet_files(spec):
        file = _open_parquet(path)
        digest = file_digest(path)
        seen[digest] += 1
        copy = f"-copy{seen[digest]}" if seen[digest] > 1 else ""
        ranges = list(_ranges(file))
        for start, rows in ranges:
            part = f"-r{start}-{rows}" if len(ranges) > 1 else ""
            shards.append(Shard(f"{digest[:32]}{part}{copy}", str(path), start, rows, digest, _stamp(path)))
    if not shards:
        raise InputError(f"{spec}: the Parquet files hold no row")
    return shards


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _parquet_files(spec: str) -> list[Path]:
    """Absolute paths: a worker's working directory is not the driver's."""
    return [path.resolve() for path in find_parquet(spec)]


def find_parquet(spec: str) -> list[Path]:
    """The Parquet files that a folder, a glob or a path means; raise `InputError` where there are none."""
    path = Path(spec)
    if path.is_dir():
        files = [p for p in files_in(path) if p.suffix.lower() == ".parquet"]
        if not files:
            raise InputError(f"{spec}: no .parquet file in this folder; {_prepare_first(spec)}")
        return files
    files = [path] if path.is_file() else sorted(Path(p) for p in glob.glob(spec, recursive=True))
    if not files:
        raise InputError(f"{spec}: no such file or folder")
    if folders := [file for file in files if file.is_dir()]:
        raise InputError(f"{folders[0]}: a folder among the files of {spec}: name the folder above, or *.parquet")
    if dumps := [file for file in files if file.suffix.lower() != ".parquet" and not _is_parquet(file)]:
        raise InputError(f"{dumps[0]}: a tag dump, not Parquet shards; {_prepare_first(spec)}")
    return files


def _prepare_first(spec: str) -> str:
    """The commands that make shards of a dump and build them."""
    dump = shlex.quote(spec)
    return f"run danbooru-index prepare {dump} --out data/shards, then danbooru-index build data/shards --index ..."


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        file = open_parquet(path)
    except (OSError, pa.ArrowException) as error:
        reason = first_line(error, 160)
        raise InputError(f"{path}: not a whole Parquet file ({reason}); write or fetch it again") from None
    missing = {"id", "text"} - set(file.schema_arrow.names)
    if missing:
        raise InputError(
            f"{path}: no column {' and '.join(sorted(missing))}; it has {', '.join(file.schema_arrow.names)}; "
            "build needs id and text: make shards with danbooru-index prepare"
        )
    for column in sorted(KNOWN_FIELDS):
        if file.schema_arrow.names.count(column) > 1:
            raise InputError(f"{path}: two columns are called {column}; keep one")
    return file


def _ranges(file: pq.ParquetFile) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each shard of a file: the whole file, else runs of row groups, else rows of a large one."""
    start = rows = size = 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        too_large = rows + group.num_rows > LARGEST_SHARD_ROWS or size + group.total_byte_size > LARGEST_SHARD_BYTES
        if rows and too_large:
            yield start, rows
            start, rows, size = start + rows, 0, 0
        rows, size = rows + group.num_rows, size + group.total_byte_size
        while rows > LARGEST_SHARD_ROWS:
            yield start, LARGEST_SHARD_ROWS
            start, rows, size = start + LARGEST_SHARD_ROWS, rows - LARGEST_SHARD_ROWS, 0
    if rows:
        yield start, rows


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_rows(shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """The rows of a shard, as they are in its file."""
    try:
        file = open_parquet(shard.path)
        groups: list[int] = []
        first = at = 0
        for number in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            if at < shard.start + shard.rows and at + rows > shard.start:
                first = first if groups else at
                groups.append(number)
            at += rows
        known = columns or [name for name in file.schema_arrow.names if name in KNOWN_FIELDS]
        return file.read_row_groups(groups, columns=known).slice(shard.start - first, shard.rows)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{shard.path}: cannot be read ({first_line(error, 160)})") from None


def read_shard(shard: Shard) -> tuple[pa.Table, list[Reject]]:
    """The records of a shard (`RECORD_SCHEMA`) and its rejects; raise `InputError` where the file has changed."""
    try:
        changed = _stamp(Path(shard.path)) != shard.stamp
        if not changed and shard.stamp[0] < LARGEST_SHARD_BYTES:
            changed = file_digest(shard.path) != shard.digest
    except OSError as error:
        raise InputError(f"{shard.path}: cannot be read on {os.uname().nodename} ({error.strerror})") from None
    if changed:
        raise InputError(f"{shard.path}: changed since the build began; run the build again")
    rows = read_rows(shard)
    if not shard.drop and is_prepared(rows):
        return rows.select(RECORD_SCHEMA.names).cast(RECORD_SCHEMA), []
    records: list[Record] = []
    rejects: list[Reject] = []
    dropped = set(shard.drop)
    for line, item in parse_rows(rows, shard.path, shard.start):
        row = line - shard.start - 1
        if isinstance(item, Record) and row in dropped:
            item = Reject(Reason.DUPLICATE_ID, shard.path, line, item.id, item.text[:2000])
        if isinstance(item, Reject):
            rejects.append(item)
        else:
            records.append(item)
    return to_table(records), rejects


def is_prepared(rows: pa.Table) -> bool:
    """Whether `prepare` could have written these rows: its columns and types, and every id and text usable."""
    if not set(RECORD_SCHEMA.names) <= set(rows.column_names):
        return False
    chosen = rows.select(RECORD_SCHEMA.names)
    if any(chosen.schema.field(f.name).type != f.type for f in RECORD_SCHEMA):
        return False
    if any(chosen[f.name].null_count for f in RECORD_SCHEMA if not f.nullable):
        return False
    if pc.list_flatten(chosen["aliases"]).null_count:
        return False
    try:
        chosen.validate(full=True)
    except pa.ArrowException:
        return False
    visible = all(pc.all(pc.match_substring_regex(rows[name], VISIBLE)).as_py() is not False for name in ("id", "text"))
    too_long = pc.max(pc.binary_length(rows["text"])).as_py() or 0
    return visible and too_long <= MAX_TEXT_BYTES


def mark_duplicates(shards: list[Shard]) -> list[Shard]:
    """The same shards, each knowing which of its rows repeat the id of an earlier record.

    Reads the id column of everything once; only where two ids may be equal, the texts of those shards too, since a
    record that is itself unusable does not make a later one a duplicate.
    """
    hashes = IdHashes()
    for shard in shards:
        for record_id in _ids(shard):
            if record_id is not None:
                hashes.add(record_id)
    suspects = hashes.suspects()
    if not len(suspects):
        return shards
    duplicates = DuplicateFilter(suspects)
    return [_marked(shard, duplicates) for shard in shards]


def _ids(shard: Shard) -> list[str | None]:
    """The ids of a shard as strings; None for one that is null, of a wrong type or not UTF-8."""
    column = read_rows(shard, ["id"])["id"]
    if pa.types.is_integer(column.type):
        return [None if value is None else str(value) for value in column.to_pylist()]
    try:
        values = column.cast(pa.string()).cast(pa.binary()).to_pylist()
    except pa.ArrowException:
        return [None] * len(column)
    return [None if value is None else value.decode(errors="replace") for value in values]


def _marked(shard: Shard, duplicates: DuplicateFilter) -> Shard:
    ids = _ids(shard)
    if not any(record_id is not None and duplicates.is_suspect(record_id) for record_id in ids):
        return shard
    drop = tuple(
        line - shard.start - 1
        for line, item in parse_rows(read_rows(shard), shard.path, shard.start)
        if isinstance(item, Record) and duplicates.is_duplicate(item.id)
    )
    return replace(shard, drop=drop)
