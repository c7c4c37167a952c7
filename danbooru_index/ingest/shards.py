"""Shards: slices of the input that are done or not done as a whole, identified by their content.

`cut` cuts a file into shards by its rows, `read_shard` reads one shard. Rows keep the input's order
all the way. Which files there are says `shard_files`, which shards `scan`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from danbooru_index.config import MAX_TEXT_BYTES
from danbooru_index.errors import InputError, first_line
from danbooru_index.ingest.nsfw import is_nsfw_by_words
from danbooru_index.ingest.parquet import KNOWN_FIELDS, InputFile, open_input, parse_rows
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
    """Rows `start` to `start + rows` of one Parquet file; `id` comes from the file's content and
    the range.

    `stamp` is the file's size and time of change. `drop` holds the rows, counted from the shard's
    first, whose id occurred earlier in the input. `nsfw_words`: nothing in the file says what is
    not safe for work, so that words of the tags do.
    """

    id: str
    path: str
    start: int
    rows: int
    digest: str
    stamp: tuple[int, int] = (0, 0)
    drop: tuple[int, ...] = ()
    nsfw_words: bool = False


def to_table(records: list[Record]) -> pa.Table:
    """Records -> an Arrow table of `RECORD_SCHEMA`."""
    columns = {name: [getattr(record, name) for record in records] for name in RECORD_SCHEMA.names}
    return pa.table(columns, schema=RECORD_SCHEMA)


def cut(
    opened: InputFile, file: pq.ParquetFile, digest: str, *, nsfw_words: bool = False
) -> list[Shard]:
    """The shards of one file, of which there is no other copy."""
    ranges = list(_ranges(file))
    shards = []
    for start, rows in ranges:
        part = f"-r{start}-{rows}" if len(ranges) > 1 else ""
        shards.append(
            Shard(
                f"{digest[:32]}{part}",
                opened.path,
                start,
                rows,
                digest,
                opened.stamp,
                nsfw_words=nsfw_words,
            )
        )
    return shards


def _ranges(file: pq.ParquetFile) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each shard: the file, else runs of row groups, else rows of one."""
    start = rows = size = 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        too_large = (
            rows + group.num_rows > LARGEST_SHARD_ROWS
            or size + group.total_byte_size > LARGEST_SHARD_BYTES
        )
        if rows and too_large:
            yield start, rows
            start, rows, size = start + rows, 0, 0
        rows, size = rows + group.num_rows, size + group.total_byte_size
        while rows > LARGEST_SHARD_ROWS:
            yield start, LARGEST_SHARD_ROWS
            start, rows, size = start + LARGEST_SHARD_ROWS, rows - LARGEST_SHARD_ROWS, 0
    if rows:
        yield start, rows


def rows_of(shard: Shard, file: pq.ParquetFile, columns: list[str] | None = None) -> pa.Table:
    """The rows of a shard, as they are in its file. Raises `InputError`."""
    try:
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
    """A shard's records (`RECORD_SCHEMA`) and rejects; raise `InputError` if the file changed."""
    try:
        with open_input(shard.path) as opened:
            if not is_same(shard, opened):
                raise InputError(
                    f"{shard.path}: changed since the build began; run the build again"
                )
            rows = rows_of(shard, opened.parquet())
    except OSError as error:
        raise InputError(
            f"{shard.path}: cannot be read on {os.uname().nodename} ({error.strerror})"
        ) from None
    except pa.ArrowException as error:
        raise InputError(f"{shard.path}: cannot be read ({first_line(error, 160)})") from None
    if not shard.drop and is_prepared(rows):
        return rows.select(RECORD_SCHEMA.names).cast(RECORD_SCHEMA), []
    return _parsed(shard, rows)


def is_same(shard: Shard, opened: InputFile) -> bool:
    """Whether an open file is the one that the shard was cut from."""
    if opened.stamp != shard.stamp:
        return False
    return shard.stamp[0] >= LARGEST_SHARD_BYTES or opened.digest() == shard.digest


def _parsed(shard: Shard, rows: pa.Table) -> tuple[pa.Table, list[Reject]]:
    """Rows that may hold anything, one by one."""
    records: list[Record] = []
    rejects: list[Reject] = []
    dropped = set(shard.drop)
    for line, item in parse_rows(rows, shard.path, shard.start):
        row = line - shard.start - 1
        if isinstance(item, Record) and row in dropped:
            item = Reject(Reason.DUPLICATE_ID, shard.path, line, item.id, item.text[:2000])
        if isinstance(item, Reject):
            rejects.append(item)
        elif shard.nsfw_words and is_nsfw_by_words(item.tag, item.category):
            records.append(replace(item, nsfw=True))
        else:
            records.append(item)
    return to_table(records), rejects


def is_prepared(rows: pa.Table) -> bool:
    """Whether `prepare` wrote these rows: its columns and types, every id and text usable."""
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
    visible = all(
        pc.all(pc.match_substring_regex(rows[name], VISIBLE)).as_py() is not False
        for name in ("id", "text")
    )
    too_long = pc.max(pc.binary_length(rows["text"])).as_py() or 0
    return visible and too_long <= MAX_TEXT_BYTES
