"""Many small fragments become few: a query then reads one file instead of thousands.

Called after the commit and its checks, before the index. The shards' own files, and their
completion records, stay as they are until the generation is sealed: whatever happens before, the
same commit makes the tables of them again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from danbooru_index.errors import StorageError, first_line
from danbooru_index.failpoints import reach
from danbooru_index.index.catalog import Generation
from danbooru_index.index.checks import damaged_files, row_problems, shard_problems
from danbooru_index.index.commit import commit_table, keep_only, sweep_orphans, sync_manifests
from danbooru_index.index.completion import CompletionRecord, TablePart
from danbooru_index.index.fragments import make_durable
from danbooru_index.index.lance_io import open_table, panics_as_errors, read_fragments
from danbooru_index.index.schema import TableSpec, table_path

# of ColBERT a query reads a few hundred rows: rewriting it costs more than it gains
COMPACTED = ("dense", "sparse")
FRAGMENTS = 128  # fewer cost a query next to nothing
SMALL_ROWS = 1024
TARGET_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class Compaction:
    """The version of every table, its compacted parts, and what was done or why not, in words."""

    versions: dict[str, int]
    parts: dict[str, TablePart]
    notes: list[str]


def compact(
    generation: Generation, versions: Mapping[str, int], records: list[CompletionRecord]
) -> Compaction:
    """Compact the tables that consist of very many small fragments.

    What Lance made is reread and compared with the digest of every shard; a table for which that
    fails is committed from `records` again, and stays as it was.
    """
    done = Compaction(dict(versions), {}, [])
    rows = sum(record.rows for record in records)
    for spec in generation.manifest.specs:
        count = sum(len(record.tables[spec.name].fragments) for record in records)
        if spec.name in COMPACTED and count >= FRAGMENTS and rows < count * SMALL_ROWS:
            done.notes.append(
                f"table {spec.name}{_compact(generation, spec, records, done, count)}"
            )
    return done


def _compact(
    generation: Generation,
    spec: TableSpec,
    records: list[CompletionRecord],
    done: Compaction,
    count: int,
) -> str:
    """Compact one table of `count` fragments, if there is room; return what came of it."""
    needed = sum(record.tables[spec.name].bytes for record in records)
    if needed > generation.path.free_bytes():
        return f" stays in {count:,} small fragments: {needed / 1e9:.1f} GB are not free"
    try:
        done.versions[spec.name], part = _compacted(
            generation, spec, done.versions[spec.name], records
        )
    except StorageError as error:
        sweep_orphans(generation.path, (spec,), records)  # it may be the disk that is full
        done.versions[spec.name] = commit_table(generation.path, spec, records)
        return f" stays in {count:,} small fragments, which makes queries slower: {error}"
    done.parts[spec.name] = part
    reach("build.compacted")
    return f": {count:,} small fragments compacted into {len(part.fragments):,}"


def _compacted(
    generation: Generation, spec: TableSpec, version: int, records: list[CompletionRecord]
) -> tuple[int, TablePart]:
    """Compact one table; return its version and what it consists of. Raises `StorageError`."""
    folder = table_path(generation.path, spec.name)
    dataset = open_table(generation.path, spec.name, version)
    try:
        with panics_as_errors():
            dataset.optimize.compact_files(target_rows_per_fragment=TARGET_ROWS)
            fragments = [fragment.metadata.to_json() for fragment in dataset.get_fragments()]
        part = TablePart(fragments, sum(record.rows for record in records))
        make_durable(folder, part)
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(f"{folder}: cannot be compacted ({first_line(error)})") from None
    reach("compact.unsynced")
    sync_manifests(folder)
    if problems := _content_problems(generation, spec, int(dataset.version), part, records):
        raise StorageError(problems[0])
    return int(dataset.version), part


def drop_replaced(generation: Generation) -> None:
    """Delete the shards' own files of the tables that were compacted, once the generation is
    sealed; what cannot be deleted stays.

    Not on an object store, where an owner that lost its lease may still be about to commit them.
    """
    if generation.path.ownership_lapses:
        return
    for name, part in generation.manifest.compacted.items():
        with contextlib.suppress(OSError):
            keep_only(table_path(generation.path, name), part.sizes)


def verify_compacted(
    generation: Generation,
    spec: TableSpec,
    version: int,
    part: TablePart,
    records: list[CompletionRecord],
) -> list[str]:
    """Reread a compacted table and compare it with each shard's digest; return the problems."""
    folder = table_path(generation.path, spec.name)
    if rotten := damaged_files(
        folder, {f"data/{name}": checksum for name, checksum in part.checksums.items()}
    ):
        return row_problems(generation.path, spec, version, records) + rotten
    return _content_problems(generation, spec, version, part, records)


def _content_problems(
    generation: Generation,
    spec: TableSpec,
    version: int,
    part: TablePart,
    records: list[CompletionRecord],
) -> list[str]:
    folder = table_path(generation.path, spec.name)
    problems = row_problems(generation.path, spec, version, records)
    try:
        for record, rows in zip(
            records, _cut(read_fragments(folder, part.fragments), records), strict=True
        ):
            problems += shard_problems(spec, record, rows, str(folder))
    except StorageError as error:
        problems.append(str(error))
    return problems


def _cut(
    batches: Iterator[pa.RecordBatch], records: list[CompletionRecord]
) -> Iterator[list[pa.RecordBatch]]:
    """The rows of each shard, one shard after the other, from batches that begin anywhere."""
    rest = next(batches, None)
    for record in records:
        rows: list[pa.RecordBatch] = []
        wanted = record.rows
        while wanted and rest is not None:
            rows.append(rest.slice(0, wanted))
            wanted -= rows[-1].num_rows
            rest = rest.slice(rows[-1].num_rows)
            if not rest.num_rows:
                rest = next(batches, None)
        yield rows
