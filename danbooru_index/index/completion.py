"""The completion record: one file, created only if absent, makes a shard done in all tables.

The tables are a function of these records.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from danbooru_index.errors import StorageError
from danbooru_index.index.schema import TABLES, table_path
from danbooru_index.index.shard_stats import ShardStats
from danbooru_index.machine import uncollected
from danbooru_index.storage.base import Storage
from danbooru_index.storage.read_ahead import read_ahead

RECORD_VERSION = 1
SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}")
DATA_FILE = re.compile(r"[A-Za-z0-9_-]+\.lance")


@dataclass(slots=True)
class TablePart:
    """A shard's part of one table. `digest`: of its rows; `checksums`: of its data files."""

    fragments: list[dict[str, Any]] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    digest: str = ""
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each data file, by name."""
        return {file["path"]: file["file_size_bytes"] for file in self._files}

    @property
    def _files(self) -> Iterator[dict[str, Any]]:
        return (file for fragment in self.fragments for file in fragment["files"])

    def validate(self) -> None:
        """Raise `ValueError` for a name that could leave the table's folder."""
        named = (file["path"] for file in self._files)
        if not all(map(DATA_FILE.fullmatch, (*named, *self.checksums))):
            raise ValueError("names a file that is no data file")


@dataclass(slots=True)
class CompletionRecord:
    """The proof that a shard is done: fragments, counts, rejects, digests, timings.

    `origins`: where vectors are those of an earlier generation, when each row was encoded: (seconds
    since the epoch, rows) of each run of rows that were encoded together; else empty.
    """

    shard: str
    fingerprint: str
    attempt: str
    rows: int
    read: int
    tables: dict[str, TablePart]
    rejects: list[dict[str, Any]] = field(default_factory=list)
    stats: ShardStats = field(default_factory=ShardStats)
    origins: list[list[int]] = field(default_factory=list)

    @property
    def encoded(self) -> int:
        """The rows that went through the model."""
        return self.rows - self.stats.reused

    @property
    def data_bytes(self) -> int:
        """The bytes of its data files in the three tables."""
        return sum(part.bytes for part in self.tables.values())

    def to_bytes(self) -> bytes:
        """JSON with a checksum over its body."""
        fields = {"version": RECORD_VERSION, **asdict(self), "measured": self.stats.to_json()}
        for name in ("stats", *(() if self.origins else ("origins",))):
            del fields[name]
        body = json.dumps(fields, ensure_ascii=False, sort_keys=True)
        checksum = hashlib.sha256(body.encode()).hexdigest()
        return json.dumps({"checksum": checksum, "body": body}, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Parse and check; raise `ValueError` for a record that is not whole."""
        # decoded here: `json.loads` of bytes looks for their encoding first
        envelope = json.loads(content.decode())
        if not isinstance(envelope, dict) or not isinstance(envelope.get("body"), str):
            raise ValueError("not a completion record")
        if hashlib.sha256(envelope["body"].encode()).hexdigest() != envelope.get("checksum"):
            raise ValueError("checksum differs")
        body = json.loads(envelope["body"])
        if body.pop("version") != RECORD_VERSION:
            raise ValueError("unknown version")
        body["stats"] = ShardStats.from_json(body.pop("measured", {}))
        body["tables"] = {name: TablePart(**part) for name, part in body["tables"].items()}
        record = cls(**body)
        record.validate()
        return record

    def validate(self) -> None:
        """Raise `ValueError` for a name that could leave the table's folder."""
        if not SHARD_NAME.fullmatch(self.shard) or set(self.tables) != set(TABLES):
            raise ValueError("not the record of a shard")
        if self.origins and sum(int(rows) for _, rows in self.origins) != self.rows:
            raise ValueError("says of other rows when they were encoded")
        for part in self.tables.values():
            part.validate()


UNREADABLE = CompletionRecord("", "", "", 0, 0, {})


def records_folder(generation: Storage) -> Storage:
    """Where the completion records of a generation are."""
    return generation / "shards"


def record_path(generation: Storage, shard: str) -> Storage:
    """Where the completion record of a shard is, or would be."""
    return _record_in(records_folder(generation), shard)


def _record_in(folder: Storage, shard: str) -> Storage:
    return folder / f"{shard}.json"


def complete(generation: Storage, record: CompletionRecord) -> bool:
    """Create the completion record; return whether the shard is done by this attempt. The first
    writer wins.

    A client that retried after a lost reply is told that its own record exists, so the one that is
    there is read. Where that cannot be done, `StorageError`: whose record it is is not known, so
    nobody's files may be deleted.
    """
    path = record_path(generation, record.shard)
    if path.create(record.to_bytes()):
        return True
    found, problem = read_record(generation, record.shard)
    if found is None:
        raise StorageError(problem)
    return found.attempt == record.attempt


def read_record(generation: Storage, shard: str) -> tuple[CompletionRecord | None, str]:
    """One completion record and no problem, or None and what is wrong with it."""
    path = record_path(generation, shard)
    try:
        return CompletionRecord.from_bytes(path.read()), ""
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        return (
            None,
            (
                f"{path}: the completion record cannot be read ({type(error).__name__}:"
                f" {str(error)[:80]})"
            ),
        )


def read_records(
    generation: Storage,
    shards: list[str],
    fingerprint: str,
    *,
    sealed: bool = False,
    compacted: Mapping[str, TablePart] | None = None,
) -> dict[str, CompletionRecord]:
    """The completion records that can be believed, by shard: whole, of this fingerprint, their
    files there in size.

    A bad one is renamed to `<id>.json.bad-<n>`, so that the shard is done again, unless the
    generation is `sealed`, where nothing is touched. Tables that were `compacted` have their own
    files instead. Only the owner may call this.
    """
    found: dict[str, CompletionRecord] = {}
    compacted = compacted or {}
    sizes = {name: (table_path(generation, name) / "data").sizes() for name in TABLES}
    if not _files_are_there(sizes, compacted):
        return found

    folder = records_folder(generation)  # made once, not once a record

    def read(shard: str) -> CompletionRecord | None:
        """None: there is none; one of no shard: it cannot be believed."""
        try:
            record = CompletionRecord.from_bytes(_record_in(folder, shard).read())
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
            return UNREADABLE
        parts = {name: part for name, part in record.tables.items() if name not in compacted}
        believed = record.fingerprint == fingerprint and record.shard == shard
        return record if believed and _files_are_there(sizes, parts) else UNREADABLE

    local = generation.local_path() is not None
    with uncollected():
        records = list(read_ahead(read, shards, local=local))
    for shard, record in zip(shards, records, strict=True):
        if record is UNREADABLE:
            if not sealed:
                _set_aside(record_path(generation, shard))
        elif record is not None:
            found[shard] = record
    return found


def _set_aside(path: Storage) -> None:
    number = 1
    while (path.parent / f"{path.name}.bad-{number}").exists():
        number += 1
    path.rename(f"{path.name}.bad-{number}")


def _files_are_there(sizes: dict[str, dict[str, int]], parts: Mapping[str, TablePart]) -> bool:
    return all(part.sizes.items() <= sizes[name].items() for name, part in parts.items())


def count_rejects(records: list[CompletionRecord]) -> Counter[str]:
    """Rejected records by reason."""
    return Counter(reject["reason"] for record in records for reject in record.rejects)
