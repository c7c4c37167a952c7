"""The three LanceDB tables: fragments of a shard, its completion record, the commit of all of them, verification.

An actor writes the fragments of a shard and then creates one completion record, atomically and only if absent: that
file makes the shard done, for the three tables at once. The tables are a function of these records.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import uuid
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

os.environ.setdefault("LANCE_LOG", "error")  # Lance logs two warnings for every shard; read when it is imported
warnings.filterwarnings("ignore", message="lance is not fork-safe")

import lance
import pyarrow as pa
import xxhash
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata, write_fragments

from danbooru_index.embeddings import Encoding
from danbooru_index.errors import StorageError
from danbooru_index.failpoints import reach
from danbooru_index.index.schema import TABLES, TableDigest, TableSpec, count_non_finite, pack
from danbooru_index.storage.local import (
    create_exclusive,
    entries,
    file_sizes,
    remove_temporary,
    remove_tree,
    rename,
    sync,
    uncache,
)
from danbooru_index.storage.s3 import Location, ObjectPath, storage_options

LANCE_STORAGE_VERSION = "2.0"  # measured: ColBERT is written 2.5 times and scanned 1.6 times as fast as in 2.1 or 2.2
RECORD_VERSION = 1
COMMIT_TRIES = 20
SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}")
METADATA_FILE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.(manifest|txn|idx|lance|json)")
DATA_FILE = re.compile(r"[A-Za-z0-9_-]+\.lance")
DISK_SLACK = 1.1


@dataclass(slots=True)
class TablePart:
    """What a shard put into one table. `digest`: of the rows; `checksums`: of each data file's bytes, by name."""

    fragments: list[dict[str, Any]] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    digest: str = ""
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each data file, by name."""
        return {file["path"]: file["file_size_bytes"] for fragment in self.fragments for file in fragment["files"]}

    def validate(self) -> None:
        """Raise `ValueError` for a name that could leave the table's folder."""
        if any(not DATA_FILE.fullmatch(name) for name in (*self.sizes, *self.checksums)):
            raise ValueError("names a file that is no data file")


@dataclass(slots=True)
class CompletionRecord:
    """The proof that a shard is done: its fragments in the three tables, counts, rejects, digests and timings."""

    shard: str
    fingerprint: str
    attempt: str
    rows: int
    read: int
    tables: dict[str, TablePart]
    rejects: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """JSON with a checksum over its body."""
        body = json.dumps({"version": RECORD_VERSION, **asdict(self)}, ensure_ascii=False, sort_keys=True)
        checksum = hashlib.sha256(body.encode()).hexdigest()
        return json.dumps({"checksum": checksum, "body": body}, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Parse and check; raise `ValueError` for a record that is not whole."""
        envelope = json.loads(content)
        if not isinstance(envelope, dict) or not isinstance(envelope.get("body"), str):
            raise ValueError("not a completion record")
        if hashlib.sha256(envelope["body"].encode()).hexdigest() != envelope.get("checksum"):
            raise ValueError("checksum differs")
        body = json.loads(envelope["body"])
        if body.pop("version") != RECORD_VERSION:
            raise ValueError("unknown version")
        body["tables"] = {name: TablePart(**part) for name, part in body["tables"].items()}
        record = cls(**body)
        record.validate()
        return record

    def validate(self) -> None:
        """Raise `ValueError` for a name that could leave the table's folder."""
        if not SHARD_NAME.fullmatch(self.shard) or set(self.tables) != set(TABLES):
            raise ValueError("not the record of a shard")
        for part in self.tables.values():
            part.validate()


def record_path(generation: Location, shard: str) -> Location:
    """Where the completion record of a shard is, or would be."""
    return generation / "shards" / f"{shard}.json"


class ShardWriter:
    """Writes one shard's fragments: ColBERT slice by slice as it comes, the two small tables at the end."""

    def __init__(self, generation: Location, shard: str, specs: tuple[TableSpec, ...]) -> None:
        self._generation = generation
        self._shard = shard
        self._specs = specs
        self._waiting: dict[str, list[pa.Table]] = {spec.name: [] for spec in specs}
        self._digests = {spec.name: TableDigest() for spec in specs}
        self._files: list[Location] = []
        self.parts = {spec.name: TablePart() for spec in specs}
        self.attempt = uuid.uuid4().hex

    def write(self, records: pa.Table, encoding: Encoding) -> None:
        """Add the next rows; raise `StorageError` when they cannot be written."""
        for spec in self._specs:
            table = pack(spec, records, self._shard, encoding)
            if bad := count_non_finite(table, spec.column):
                raise StorageError(f"shard {self._shard}: {bad} non-finite values for table {spec.name}")
            self._digests[spec.name].update(table)
            self._waiting[spec.name].append(table)
            if spec.name == "colbert":
                self._flush(spec)

    def finish(self) -> dict[str, TablePart]:
        """Write what waits, make all of it durable, read it back and compare; return the parts of the tables."""
        for spec in self._specs:
            self._flush(spec)
            part, digest = self.parts[spec.name], self._digests[spec.name]
            part.rows, part.digest = digest.rows, digest.hexdigest()
            self._check(spec, part)
        reach("shard.durable", self._shard)
        return self.parts

    def discard(self) -> None:
        """Delete this attempt's own files, which no completion record names."""
        reach("discard.before", self._shard)
        for path in self._files:
            path.unlink(missing_ok=True)

    def _flush(self, spec: TableSpec) -> None:
        tables, self._waiting[spec.name] = self._waiting[spec.name], []
        if not sum(table.num_rows for table in tables):
            return
        folder = table_path(self._generation, spec.name)
        try:
            with panics_as_errors():
                fragments = write_fragments(
                    pa.concat_tables(tables),
                    str(folder),
                    schema=spec.schema,
                    mode="overwrite",
                    data_storage_version=LANCE_STORAGE_VERSION,
                    storage_options=storage_options(folder),
                )
        except (OSError, RuntimeError) as error:
            raise StorageError(f"{folder}: cannot be written ({_reason(error)})") from None
        if not isinstance(fragments, list):
            raise StorageError(f"{folder}: Lance returned no fragments")
        for fragment in fragments:
            self.parts[spec.name].fragments.append(fragment.to_json())
            self._files += [folder / "data" / file.path for file in fragment.files]
        reach("shard.flushed", self._shard)

    def _check(self, spec: TableSpec, part: TablePart) -> None:
        """Lance can swallow the error of a file's last write: fsync, read again, compare digests."""
        digest = TableDigest()
        folder = table_path(self._generation, spec.name)
        make_durable(folder, part)
        for batch in read_fragments(folder, part.fragments):
            digest.update(batch)
        if digest.rows != part.rows or (part.rows and digest.hexdigest() != part.digest):
            raise StorageError(f"{folder}: what was written for shard {self._shard} cannot be read back")
        if spec.name == "colbert":  # nine tenths of the bytes; the other two are soon indexed and searched whole
            for path in fragment_files(folder, part.fragments):
                uncache(path)


def make_durable(folder: Location, part: TablePart) -> None:
    """Fsync the files of a part and the folders that name them; note their sizes and checksums."""
    for path in fragment_files(folder, part.fragments):
        sync(path)
        part.bytes += path.stat().st_size
        part.checksums[path.name] = file_checksum(path)
    if part.fragments:
        for inner in (folder / "data", folder, folder.parent):
            sync(inner)


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """A panic inside Lance (on rotten bytes, on a failing disk) as `OSError`: by itself it is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise OSError(f"Lance panicked: {_reason(error)}") from None


def file_checksum(path: Location) -> str:
    """xxh3-128 of a file's bytes, in hex: any flipped bit shows, also one that no value depends on."""
    checksum = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def table_path(generation: Location, name: str) -> Location:
    """The folder of a table."""
    return generation / f"{name}.lance"


def fragment_files(folder: Location, fragments: list[dict[str, Any]]) -> list[Location]:
    """The data files that fragments name, in order."""
    return [folder / "data" / file["path"] for fragment in fragments for file in fragment["files"]]


def read_fragments(folder: Location, fragments: list[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    """The rows of uncommitted fragments, read from their files; raise `StorageError` for one that is not whole."""
    for path in fragment_files(folder, fragments):
        try:
            with panics_as_errors():
                reader = LanceFileReader(str(path), storage_options=storage_options(path))
                batches = reader.read_all(batch_size=1024).to_batches()
                while (batch := next(batches, None)) is not None:
                    yield batch
        except StorageError:
            raise
        except Exception as error:
            raise StorageError(f"{path}: cannot be read ({_reason(error)})") from None


def complete(generation: Location, record: CompletionRecord) -> bool:
    """Create the completion record; return whether the shard is done by this attempt. The first writer wins.

    A client that retried after a lost reply is told that its own record exists, so the one that is there is read.
    Where that cannot be done, `StorageError`: whose record it is is not known, so nobody's files may be deleted.
    """
    path = record_path(generation, record.shard)
    if create_exclusive(path, record.to_bytes()):
        return True
    found, problem = read_record(generation, record.shard)
    if found is None:
        raise StorageError(problem)
    return found.attempt == record.attempt


def read_record(generation: Location, shard: str) -> tuple[CompletionRecord | None, str]:
    """One completion record and no problem, or None and what is wrong with it."""
    path = record_path(generation, shard)
    try:
        return CompletionRecord.from_bytes(path.read_bytes()), ""
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        return None, f"{path}: the completion record cannot be read ({type(error).__name__}: {str(error)[:80]})"


def read_records(
    generation: Location,
    shards: list[str],
    fingerprint: str,
    *,
    sealed: bool = False,
    compacted: Mapping[str, TablePart] | None = None,
) -> dict[str, CompletionRecord]:
    """The completion records that can be believed, by shard: whole, of this fingerprint, their files there in size.

    A bad one is renamed to `<id>.json.bad-<n>`, so that the shard is done again, unless the generation is `sealed`,
    where nothing is touched. Tables that were `compacted` have their own files instead. Only the owner may call this.
    """
    found: dict[str, CompletionRecord] = {}
    compacted = compacted or {}
    sizes = {name: file_sizes(table_path(generation, name) / "data") for name in TABLES}
    if not _files_are_there(sizes, compacted):
        return found
    for shard in shards:
        path = record_path(generation, shard)
        try:
            record = CompletionRecord.from_bytes(path.read_bytes())
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
            if not sealed:
                _set_aside(path)
            continue
        if (
            record.fingerprint == fingerprint
            and record.shard == shard
            and _files_are_there(sizes, {name: part for name, part in record.tables.items() if name not in compacted})
        ):
            found[shard] = record
        elif not sealed:
            _set_aside(path)
    return found


def _set_aside(path: Location) -> None:
    number = 1
    while path.with_name(f"{path.name}.bad-{number}").exists():
        number += 1
    rename(path, f"{path.name}.bad-{number}")


def _files_are_there(sizes: dict[str, dict[str, int]], parts: Mapping[str, TablePart]) -> bool:
    return all(part.sizes.items() <= sizes[name].items() for name, part in parts.items())


def commit(generation: Location, specs: tuple[TableSpec, ...], records: list[CompletionRecord]) -> dict[str, int]:
    """Make each table exactly the fragments of `records`, in their order; return the version of each.

    An overwrite with a read version is a compare-and-swap, and repeating it changes nothing.
    """
    return {spec.name: commit_table(generation, spec, records) for spec in specs}


def commit_table(generation: Location, spec: TableSpec, records: list[CompletionRecord]) -> int:
    """`commit` of one table."""
    folder = table_path(generation, spec.name)
    fragments = [
        FragmentMetadata.from_json(json.dumps(fragment))
        for record in records
        for fragment in record.tables[spec.name].fragments
    ]
    problem: Exception | None = None
    for _ in range(COMMIT_TRIES):
        try:
            with panics_as_errors():
                dataset = lance.LanceDataset.commit(
                    str(folder),
                    lance.LanceOperation.Overwrite(spec.schema, fragments),
                    read_version=_latest_version(folder, spec),
                    max_retries=0,
                    storage_options=storage_options(folder),
                )
        except (OSError, ValueError) as error:
            problem = error
            continue
        reach("commit.unsynced")
        sync_manifests(folder)
        reach("commit.table")
        return int(dataset.version)
    raise StorageError(f"{folder}: the commit did not go through ({_reason(problem)})")


def _latest_version(folder: Location, spec: TableSpec) -> int:
    """The version of a table, 0 for none. What a power loss left of versions (cut short, or zeros, which Lance opens
    as a table without columns) is deleted: nobody reads a generation that is not sealed, and the commit makes its
    tables anew from the completion records."""
    if not any(path.name.endswith(".manifest") for path in entries(folder / "_versions")):
        return 0
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        dataset = lance.dataset(str(folder), storage_options=storage_options(folder))
        if dataset.schema.names == spec.schema.names:
            return int(dataset.version)
    for name in ("_versions", "_transactions"):
        remove_tree(folder / name)
    return 0


def sync_manifests(folder: Location) -> None:
    """Make the versions of a table durable; an object store has nothing to sync."""
    if isinstance(folder, ObjectPath):
        return
    for name in ("_versions", "_transactions"):
        inside = folder / name
        if inside.is_dir():
            for path in inside.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another committer's temporary file
                    sync(path)
            sync(inside)
    sync(folder)


def metadata_checksums(generation: Location, specs: tuple[TableSpec, ...]) -> dict[str, str]:
    """The checksum of each of Lance's own files beside the data, by their path in the generation's folder."""
    found = {}
    for spec in specs:
        folder = table_path(generation, spec.name)
        for inner in entries(folder):
            for path in inner.rglob("*") if inner.name.startswith("_") else ():
                if path.is_file() and METADATA_FILE.fullmatch(path.name):  # not what a killed commit left unfinished
                    found[str(path).removeprefix(f"{generation}/")] = file_checksum(path)
    return found


def damaged_files(generation: Location, checksums: dict[str, str]) -> list[str]:
    """The files, in words, that are no longer as they were when their checksums were taken."""
    return [
        f"{generation}/{name}: not as it was written"
        for name, checksum in checksums.items()
        if not _has_checksum(generation / name, checksum)
    ]


def sweep_orphans(
    generation: Location,
    specs: tuple[TableSpec, ...],
    records: list[CompletionRecord],
    compacted: Mapping[str, TablePart] | None = None,
) -> int:
    """Delete the data files of killed attempts: those that neither a record nor a compaction names, and only they; return
    how many. Also what counted those attempts, and what they wrote of a file that never got its name."""
    swept = 0
    for path in entries(generation):
        if path.name.startswith("attempts-"):
            remove_tree(path)
    remove_temporary(generation)
    remove_temporary(generation / "shards")
    compacted = compacted or {}
    for spec in specs:
        parts = [record.tables[spec.name] for record in records]
        named = {name for part in (*parts, compacted.get(spec.name, TablePart())) for name in part.sizes}
        swept += keep_only(table_path(generation, spec.name), named)
    return swept


def keep_only(folder: Location, named: Container[str]) -> int:
    """Delete the data files of a table that are not `named`; return how many."""
    swept = 0
    for path in (folder / "data").glob("*.lance") if folder.is_dir() else ():
        if path.name not in named:
            path.unlink(missing_ok=True)
            swept += 1
    return swept


def open_table(generation: Location, name: str, version: int) -> lance.LanceDataset:
    """One table at one version; raise `StorageError` when it cannot be opened."""
    try:
        path = table_path(generation, name)
        with panics_as_errors():
            return lance.dataset(str(path), version=version, storage_options=storage_options(path))
    except (OSError, ValueError, RuntimeError) as error:
        raise StorageError(f"{table_path(generation, name)}: cannot be opened ({_reason(error)})") from None


def verify_table(generation: Location, spec: TableSpec, version: int, records: list[CompletionRecord]) -> list[str]:
    """Reread one table and compare it with the completion records; return the problems found."""
    problems = row_problems(generation, spec, version, records)
    folder = table_path(generation, spec.name)
    for record in records:
        part = record.tables[spec.name]
        rotten = [
            name for name, checksum in part.checksums.items() if not _has_checksum(folder / "data" / name, checksum)
        ]
        problems += [f"{folder}/data/{name}: not as it was written (shard {record.shard})" for name in rotten]
        if not rotten:
            names = ", ".join(part.sizes)
            batches = read_fragments(folder, part.fragments)
            problems += shard_problems(spec, record, batches, f"{folder}/data/{names}")
    return problems


def shard_problems(
    spec: TableSpec, record: CompletionRecord, batches: Iterable[pa.RecordBatch], where: str
) -> list[str]:
    """What is wrong with the rows of one shard in one table, read from `where`, by its completion record."""
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
        return [*problems, f"{where}: not valid Arrow data ({_reason(error)})"]
    if part.rows and digest.hexdigest() != part.digest:
        problems.append(f"{where}: the content of shard {record.shard} differs from its digest")
    return problems


def row_problems(generation: Location, spec: TableSpec, version: int, records: list[CompletionRecord]) -> list[str]:
    """Whether a table can be opened at this version and has as many rows as the completion records say."""
    expected = sum(record.rows for record in records)
    try:
        with panics_as_errors():
            rows = open_table(generation, spec.name, version).count_rows()
    except (StorageError, OSError, RuntimeError) as error:
        return [str(error)]
    return [] if rows == expected else [f"{spec.name}: {rows} rows, the completion records say {expected}"]


def _has_checksum(path: Location, checksum: str) -> bool:
    try:
        return file_checksum(path) == checksum
    except OSError:
        return False


def _reason(error: BaseException | None) -> str:
    """The first words of an error of Lance's, without its source location."""
    text = str(error).splitlines()[0] if error and str(error) else type(error).__name__
    for word in ("No space left on device", "Read-only file system", "Permission denied", "File too large"):
        if word in str(error):
            return word
    return text.split(", /home/")[0][:300]


def index_bytes(records: int, dim: int, colbert_dim: int, tokens: float) -> int:
    """The bytes that the tables of so many records need, by estimate: half floats, `tokens` a text."""
    return int(records * (2 * dim + 2 * colbert_dim * tokens + 8 * tokens + 200) * DISK_SLACK)


def free_bytes(path: Location) -> float:
    """Free bytes on the disk that holds `path`; an object store has no end."""
    if isinstance(path, ObjectPath):
        return math.inf
    status = os.statvfs(path)
    return float(status.f_bavail * status.f_frsize)
