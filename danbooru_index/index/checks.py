"""Rereading: are tables and Lance's own files as they were written?"""

from __future__ import annotations

import re
from collections.abc import Iterable

import pyarrow as pa
import xxhash

from danbooru_index.errors import StorageError
from danbooru_index.index.completion import CompletionRecord
from danbooru_index.index.lance_io import lance_reason, open_table, panics_as_errors, read_fragments
from danbooru_index.index.schema import TableDigest, TableSpec, count_non_finite, table_path
from danbooru_index.storage.base import Storage, is_temporary

METADATA_FILE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.(manifest|txn|idx|lance|json)")


def file_checksum(path: Storage) -> str:
    """xxh3-128 of a file's bytes, in hex: any flipped bit changes it."""
    checksum = xxhash.xxh3_128()
    with path.open() as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def metadata_checksums(generation: Storage, specs: tuple[TableSpec, ...]) -> dict[str, str]:
    """The checksums of Lance's own files beside the data, by path in the generation."""
    found = {}
    for spec in specs:
        folder = table_path(generation, spec.name)
        for name in sorted(folder.sizes()):
            # METADATA_FILE: not what a killed commit left unfinished.
            if name.startswith("_") and METADATA_FILE.fullmatch(name.rpartition("/")[2]):
                found[f"{folder.name}/{name}"] = file_checksum(folder / name)
    return found


def folder_checksums(generation: Storage, folder: str) -> dict[str, str]:
    """The checksums of all finished files of a folder, by path in the generation."""
    return {
        f"{folder}/{path.name}": file_checksum(path)
        for path in (generation / folder).entries()
        if not is_temporary(path)
    }


def damaged_files(generation: Storage, checksums: dict[str, str]) -> list[str]:
    """The files, in words, that are no longer as they were when their checksums were taken."""
    return [
        f"{generation}/{name}: not as it was written"
        for name, checksum in checksums.items()
        if not _has_checksum(generation / name, checksum)
    ]


def verify_table(
    generation: Storage, spec: TableSpec, version: int, records: list[CompletionRecord]
) -> list[str]:
    """Reread one table and compare it with the completion records; return the problems found."""
    problems = row_problems(generation, spec, version, records)
    folder = table_path(generation, spec.name)
    for record in records:
        part = record.tables[spec.name]
        rotten = [
            name
            for name, checksum in part.checksums.items()
            if not _has_checksum(folder / "data" / name, checksum)
        ]
        problems += [
            f"{folder}/data/{name}: not as it was written (shard {record.shard})" for name in rotten
        ]
        if not rotten:
            names = ", ".join(part.sizes)
            batches = read_fragments(folder, part.fragments)
            problems += shard_problems(spec, record, batches, f"{folder}/data/{names}")
    return problems


def shard_problems(
    spec: TableSpec, record: CompletionRecord, batches: Iterable[pa.RecordBatch], where: str
) -> list[str]:
    """What is wrong with one shard's rows in one table, judged by its completion record."""
    problems = []
    part, digest = record.tables[spec.name], TableDigest()
    try:
        for batch in batches:
            batch.validate(full=True)
            digest.update(batch)
            if bad := count_non_finite(batch, spec.column):
                problems.append(f"{spec.name}: {bad} non-finite values in shard {record.shard}")
    except StorageError as error:
        return [*problems, str(error)]
    except (pa.ArrowException, ValueError, TypeError) as error:
        return [*problems, f"{where}: not valid Arrow data ({lance_reason(error)})"]
    if part.rows and digest.hexdigest() != part.digest:
        problems.append(f"{where}: the content of shard {record.shard} differs from its digest")
    return problems


def row_problems(
    generation: Storage, spec: TableSpec, version: int, records: list[CompletionRecord]
) -> list[str]:
    """Whether a table opens at this version, with the rows that the completion records say."""
    expected = sum(record.rows for record in records)
    try:
        with panics_as_errors():
            rows = open_table(generation, spec.name, version).count_rows()
    except (StorageError, OSError, RuntimeError) as error:
        return [str(error)]
    return (
        []
        if rows == expected
        else [f"{spec.name}: {rows} rows, the completion records say {expected}"]
    )


def _has_checksum(path: Storage, checksum: str) -> bool:
    try:
        return file_checksum(path) == checksum
    except OSError:
        return False
