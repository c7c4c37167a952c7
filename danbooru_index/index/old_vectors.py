"""What an earlier generation has, for a build that uses its vectors again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from danbooru_index.errors import StorageError
from danbooru_index.index.catalog import Generation
from danbooru_index.index.checks import damaged_files
from danbooru_index.index.completion import read_records
from danbooru_index.index.lance_io import panics_as_errors
from danbooru_index.index.origins import encoding_times
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.schema import TABLES
from danbooru_index.storage.base import Storage


@dataclass(frozen=True, slots=True)
class OldVectors:
    """What a generation of N rows has: `hashes` of its texts [N], ascending, and the `rows` that
    they are of [N]; `encoded_at` [N]: when each row was encoded, in seconds since the epoch, by
    row; `checksums` of the data files, by table and name.
    """

    id: str
    path: Storage
    versions: dict[str, int]
    hashes: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.int64]
    encoded_at: npt.NDArray[np.int64]
    checksums: dict[str, dict[str, str]]


def old_vectors(generation: Generation) -> OldVectors:
    """What a sealed generation has. Raises `StorageError` where its records or texts cannot be
    read.
    """
    manifest, seal = generation.manifest, generation.manifest.need_seal()
    if rotten := damaged_files(generation.path, seal.files):
        raise StorageError(f"{rotten[0]} (danbooru-index verify)")
    done = [shard for shard in manifest.shards if shard not in seal.failed_shards]
    found = read_records(
        generation.path, done, manifest.fingerprint_digest, sealed=True, compacted=seal.compacted
    )
    if len(found) < len(done):
        raise StorageError(f"generation {generation.id} is damaged (danbooru-index verify)")
    records = [found[shard] for shard in done]
    try:
        with panics_as_errors():
            texts = GenerationReader(generation).texts()
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        raise StorageError(f"generation {generation.id} cannot be read ({error})") from None
    hashes = text_hashes(texts)
    rows = np.argsort(hashes, kind="stable")
    encoded_at = np.concatenate([encoding_times(record) for record in records])
    if len(encoded_at) != len(texts):
        raise StorageError(f"generation {generation.id} is damaged (danbooru-index verify)")
    parts = {
        name: [seal.compacted[name]]
        if name in seal.compacted
        else [record.tables[name] for record in records]
        for name in TABLES
    }
    return OldVectors(
        generation.id,
        generation.path.absolute(),
        dict(seal.versions),
        hashes[rows],
        rows,
        encoded_at,
        {
            name: {file: checksum for part in of for file, checksum in part.checksums.items()}
            for name, of in parts.items()
        },
    )


def rotten_files(old: OldVectors) -> list[str]:
    """The data files, in words, that are not as they were written: reads all of them."""
    data = {
        f"{name}.lance/data/{file}": checksum
        for name, checksums in old.checksums.items()
        for file, checksum in checksums.items()
    }
    return damaged_files(old.path, data)


def text_hashes(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """xxh3-64 of each text, [N]."""
    hashed = (xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass")) for text in texts)
    return np.fromiter(hashed, np.uint64, len(texts))
