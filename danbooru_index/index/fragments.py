"""One shard's fragments: written, made durable, read back and compared before they are named.

An actor writes the fragments of a shard; the completion record that names them is created after
that (`completion`).
"""

from __future__ import annotations

import uuid

import pyarrow as pa

from danbooru_index.embeddings import Embeddings
from danbooru_index.errors import StorageError
from danbooru_index.failpoints import reach
from danbooru_index.index.checks import file_checksum
from danbooru_index.index.completion import TablePart
from danbooru_index.index.lance_io import (
    fragment_files,
    lance_reason,
    panics_as_errors,
    read_fragments,
    write_fragments,
)
from danbooru_index.index.schema import (
    LANCE_STORAGE_VERSION,
    TableDigest,
    TableSpec,
    count_non_finite,
    table_path,
    to_rows,
)
from danbooru_index.storage.base import Storage


class ShardWriter:
    """Writes one shard's fragments: ColBERT slice by slice, the two small tables at the end."""

    def __init__(self, generation: Storage, shard: str, specs: tuple[TableSpec, ...]) -> None:
        self._generation = generation
        self._shard = shard
        self._specs = specs
        self._waiting: dict[str, list[pa.Table]] = {spec.name: [] for spec in specs}
        self._digests = {spec.name: TableDigest() for spec in specs}
        self._files: list[Storage] = []
        self.parts = {spec.name: TablePart() for spec in specs}
        self.attempt = uuid.uuid4().hex

    def write(self, records: pa.Table, embeddings: Embeddings) -> None:
        """Add the next rows; raise `StorageError` when they cannot be written."""
        for spec in self._specs:
            table = to_rows(spec, records, self._shard, embeddings)
            if bad := count_non_finite(table, spec.column):
                raise StorageError(
                    f"shard {self._shard}: {bad} non-finite values for table {spec.name}"
                )
            self._digests[spec.name].update(table)
            self._waiting[spec.name].append(table)
            if spec.name == "colbert":
                self._flush(spec)

    def finish(self) -> dict[str, TablePart]:
        """Write the rest, make all durable, reread and compare; return the parts of the tables."""
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
            path.delete()

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
                    storage_options=folder.lance_options(),
                )
        except (OSError, RuntimeError) as error:
            raise StorageError(f"{folder}: cannot be written ({lance_reason(error)})") from None
        if not isinstance(fragments, list):
            raise StorageError(f"{folder}: Lance returned no fragments")
        for fragment in fragments:
            self.parts[spec.name].fragments.append(fragment.to_json())
            self._files += [folder / "data" / file.path for file in fragment.files]
        reach("shard.flushed", self._shard)

    def _check(self, spec: TableSpec, part: TablePart) -> None:
        """Lance can hide the error of a file's last write: fsync, reread, compare digests."""
        digest = TableDigest()
        folder = table_path(self._generation, spec.name)
        make_durable(folder, part)
        for batch in read_fragments(folder, part.fragments):
            digest.update(batch)
        if digest.rows != part.rows or (part.rows and digest.hexdigest() != part.digest):
            raise StorageError(
                f"{folder}: what was written for shard {self._shard} cannot be read back"
            )
        if spec.name == "colbert":
            # nine tenths of the bytes; the other two are soon indexed and searched whole
            for path in fragment_files(folder, part.fragments):
                path.uncache()


def make_durable(folder: Storage, part: TablePart) -> None:
    """Fsync the files of a part and the folders that name them; note their sizes and checksums."""
    for path in fragment_files(folder, part.fragments):
        path.sync()
        part.bytes += path.size()
        part.checksums[path.name] = file_checksum(path)
    if part.fragments:
        for inner in (folder / "data", folder, folder.parent):
            inner.sync()
