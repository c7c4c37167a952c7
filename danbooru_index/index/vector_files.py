"""The vectors of a generation on a disk, once more: plain arrays in row order, mapped into memory.

    dense.f16              [rows, D]
    colbert.f16            [vectors, C], those of one record after those of another, where C is at
                           most `COPIED_WIDTH`
    colbert_starts.npy     [rows + 1] where those of each record begin
    dense_scan.npy         codes of the dense vectors, of a large generation: see `dense_scan`

Lance decodes pages for each scattered row that is taken: four fifths of a hybrid query's time. An
index in an object store has none of them: nothing can be mapped there, and Lance reads what it
needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xxhash

from danbooru_index.embeddings import Array, Matrices, to_float32
from danbooru_index.errors import StorageError
from danbooru_index.failpoints import reach
from danbooru_index.index import vector_index
from danbooru_index.index.arrays import COPIED_WIDTH, FOLDER, SavedArrays, map_rows, save_array
from danbooru_index.index.catalog import Generation
from danbooru_index.index.dense_scan import DenseScan
from danbooru_index.storage.base import Storage

DENSE, COLBERT, STARTS, SCAN = "dense.f16", "colbert.f16", "colbert_starts", "dense_scan"


class VectorFiles:
    """What of these a generation has."""

    def __init__(self, generation: Generation) -> None:
        seal = generation.manifest.seal
        self._checksums = {} if seal is None else seal.search_files
        self._manifest, self._folder = generation.manifest, generation.path / FOLDER
        self._arrays = SavedArrays(self._folder)

    @cached_property
    def dense(self) -> Array | None:
        """The dense vectors, [rows, D], float16."""
        if not self._has(DENSE):
            return None
        rows = self._manifest.need_seal().records
        return map_rows(self._folder / DENSE, np.float16, rows, self._manifest.dim)

    @cached_property
    def scan(self) -> DenseScan | None:
        """Raises `StorageError` for codes that are not as they were written."""
        if not self._has(f"{SCAN}.npy"):
            return None
        path = self._folder / f"{SCAN}.npy"
        content = path.read()
        if xxhash.xxh3_128(content).hexdigest() != self._checksums[f"{FOLDER}/{SCAN}.npy"]:
            raise StorageError(
                f"{path}: not as it was written; danbooru-index verify says what else is wrong"
            )
        return DenseScan.from_array(self._arrays[SCAN])

    def dense_vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        """The dense vectors of the given rows, [rows, D]."""
        return None if self.dense is None else to_float32(self.dense[rows])

    def colbert_matrices(self, rows: npt.NDArray[np.int64]) -> Matrices | None:
        """The ColBERT matrices of the given rows."""
        if self._colbert is None:
            return None
        starts = self._arrays[STARTS]
        lengths = starts[rows + 1] - starts[rows]
        before = np.cumsum(lengths) - lengths  # vectors of the rows asked for before each
        places = np.repeat(starts[rows] - before, lengths) + np.arange(int(lengths.sum()))
        return Matrices(self._colbert[places], lengths)

    @cached_property
    def _colbert(self) -> Array | None:
        if not self._has(COLBERT):
            return None
        vectors = int(self._arrays[STARTS][-1])
        return map_rows(self._folder / COLBERT, np.float16, vectors, self._manifest.colbert_dim)

    def _has(self, name: str) -> bool:
        return f"{FOLDER}/{name}" in self._checksums and self._folder.local_path() is not None


def write_vector_files(
    generation: Storage,
    dense: Iterable[Array],
    dim: int,
    colbert: Iterable[Matrices],
    colbert_dim: int,
) -> None:
    """Make the files of a generation on a disk that is about to be sealed, from blocks of its
    dense table [rows, dim] and its ColBERT table [vectors, colbert_dim]; what was there is
    replaced.
    """
    folder = generation / FOLDER
    local = (folder / DENSE).local_path()
    if local is None:
        return
    rows = 0

    def halves() -> Iterator[memoryview]:
        nonlocal rows
        for block in dense:
            rows += len(block)
            yield _bytes(block)

    (folder / DENSE).replace_from(halves())
    reach("search.array")
    if colbert_dim <= COPIED_WIDTH:
        _write_colbert(folder, colbert)
    if rows >= vector_index.INDEX_ROWS:
        vectors = map_rows(folder / DENSE, np.float16, rows, dim)
        save_array(folder, SCAN, DenseScan.build(vectors).to_array())
        reach("search.array")


def _write_colbert(folder: Storage, colbert: Iterable[Matrices]) -> None:
    lengths = [np.zeros(1, np.int64)]

    def halves() -> Iterator[memoryview]:
        for block in colbert:
            lengths.append(block.lengths)
            yield _bytes(block.vectors)

    (folder / COLBERT).replace_from(halves())
    save_array(folder, STARTS, np.cumsum(np.concatenate(lengths)))
    reach("search.array")


def _bytes(block: Array) -> memoryview:
    return np.ascontiguousarray(block, np.float16).data.cast("B")
