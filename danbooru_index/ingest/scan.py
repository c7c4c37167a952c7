"""One reading of the input before anything is built: shards, digests, ids that occur twice.

`scan` opens every file once. Only where two ids may be equal are those files opened again, for
their texts: a record that is itself unusable does not make a later one a duplicate. Samples are
drawn from the scan by `sampling`, in one more reading.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from danbooru_index.errors import InputError, RejectedRecordsError
from danbooru_index.ingest.duplicates import DuplicateFilter, IdHashes
from danbooru_index.ingest.nsfw import MarkSource
from danbooru_index.ingest.parquet import open_input, parse_rows
from danbooru_index.ingest.shard_files import checked_parquet, find_parquet, noted_marks, nsfw_marks
from danbooru_index.ingest.shards import Shard, cut, read_shard, rows_of
from danbooru_index.records import Record, describe_rejects
from danbooru_index.storage.read_ahead import read_ahead


@dataclass(frozen=True, slots=True)
class InputScan:
    """What the input is: `spec` as the user named it; its shards, in order, with duplicates;
    `nsfw_marks`: how it says what is not safe for work.
    """

    spec: str
    shards: tuple[Shard, ...]
    nsfw_marks: str = MarkSource.INPUT.value

    @property
    def digest(self) -> str:
        """SHA-256 over the shards' content, their order, their duplicates, and whether words mark
        what is not safe for work.
        """
        named = [
            (shard.id, shard.drop, *(("words",) if shard.nsfw_words else ()))
            for shard in self.shards
        ]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


def scan(spec: str, *, nsfw_words: bool = True) -> InputScan:
    """The shards of a folder, a glob or one Parquet file, in name order. `nsfw_words`: tags of a
    file without ratings are marked by their words.

    Raises `InputError` for a path that is not there, a folder without Parquet, a file that is not
    whole or has no `id` and `text`. Every file is hashed, so that a changed file is another shard.
    """
    shards: list[Shard] = []
    seen: Counter[str] = Counter()
    hashes = IdHashes()
    ends: list[int] = []  # how many ids were hashed by the end of each shard
    marks: dict[str, None] = {}  # in order of occurrence
    scan_file = partial(_scan_file, nsfw_words=nsfw_words)
    for found in read_ahead(scan_file, find_parquet(spec), local="://" not in spec):
        marks[found.mark] = None
        copy = f"-copy{seen[found.digest] + 1}" if seen[found.digest] else ""
        seen[found.digest] += 1
        for shard, ids in found.shards:
            hashes.extend(ids)
            shards.append(replace(shard, id=shard.id + copy) if copy else shard)
            ends.append(len(hashes))
    if not shards:
        raise InputError(f"{spec}: the Parquet files hold no row")
    parts = dict.fromkeys(part for mark in marks for part in mark.split("+"))
    return InputScan(spec, tuple(_mark_duplicates(shards, ends, hashes)), "+".join(parts))


@dataclass(frozen=True, slots=True)
class _ScannedFile:
    """One file: its digest, how it marks what is not safe for work, its shards and their ids."""

    digest: str
    mark: str
    shards: list[tuple[Shard, IdHashes]]


def _scan_file(path: Path | str, *, nsfw_words: bool) -> _ScannedFile:
    with open_input(path) as opened:
        file = checked_parquet(opened)
        digest = opened.digest()
        mark = nsfw_marks(file, by_words=nsfw_words)
        words = mark == MarkSource.WORDS.value and not noted_marks(file)
        shards = []
        for shard in cut(opened, file, digest, nsfw_words=words):
            ids = IdHashes()
            ids.update(_ids(rows_of(shard, file, ["id"])["id"]))
            shards.append((shard, ids))
    return _ScannedFile(digest, mark, shards)


def _ids(column: pa.ChunkedArray) -> Iterable[str]:
    """The ids of a shard as strings, without those that are null, of a wrong type or not UTF-8."""
    if pa.types.is_integer(column.type):
        return (str(value) for value in column.to_pylist() if value is not None)
    try:
        values = column.cast(pa.string()).cast(pa.binary()).to_pylist()
    except pa.ArrowException:
        return ()
    return (value.decode(errors="replace") for value in values if value is not None)


def _mark_duplicates(shards: list[Shard], ends: list[int], hashes: IdHashes) -> list[Shard]:
    """The same shards, each knowing which of its rows repeat the id of an earlier record."""
    suspects = hashes.suspects(keep_order=True)
    if not len(suspects):
        return shards
    places = np.flatnonzero(hashes.among(suspects))
    touched = set(np.searchsorted(np.array(ends), places, side="right").tolist())
    duplicates = DuplicateFilter(suspects)
    return [
        _marked(shard, duplicates) if number in touched else shard
        for number, shard in enumerate(shards)
    ]


def _marked(shard: Shard, duplicates: DuplicateFilter) -> Shard:
    with open_input(shard.path) as opened:
        rows = rows_of(shard, opened.parquet())
    drop = tuple(
        line - shard.start - 1
        for line, item in parse_rows(rows, shard.path, shard.start)
        if isinstance(item, Record) and duplicates.is_duplicate(item.id)
    )
    return replace(shard, drop=drop)


def refuse_rejects(found: InputScan) -> None:
    """Under `--strict`, before anything else is done: raise `RejectedRecordsError` for records that
    cannot be used.

    Reads all of the input once more: nothing less says of every record whether it can be used.
    """
    reasons: Counter[str] = Counter()
    first = ""
    for shard in found.shards:
        for reject in read_shard(shard)[1]:
            reasons[reject.reason.value] += 1
            first = (
                first
                or f"{reject.source}:{reject.line} {reject.reason.value} {reject.detail}".rstrip()
            )
    if reasons:
        raise RejectedRecordsError(
            f"{reasons.total():,} of {found.rows:,} records would be rejected"
            f" ({describe_rejects(reasons)}); the first: {first}; nothing was built because of"
            " --strict"
        )
