"""Reading one generation: rows are numbered as in the input, alike in the three tables.

What a query makes of them is for `search`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from danbooru_index.embeddings import Array, Matrices, to_float32
from danbooru_index.errors import StorageError
from danbooru_index.index.catalog import Generation
from danbooru_index.index.inverted import InvertedIndex, inverted_arrays
from danbooru_index.index.lance_errors import lance_reason, panics_as_errors
from danbooru_index.index.search_files import (
    ANSWERED,
    SearchFiles,
    make_search_arrays,
    saved_search_files,
)
from danbooru_index.index.vector_files import VectorFiles
from danbooru_index.index.vector_index import probes

if TYPE_CHECKING:
    import pyarrow.compute as pc

BLOCK_ROWS = 8192
SCAN_ROWS = 512  # of 512 tokens at full width: half a gigabyte


class GenerationReader:
    """The three tables of a generation, each at the version that was sealed, or at the `versions`
    given before the seal. Each is opened when it is first read: a search of an index on a disk
    reads none.

    Its length is that of what is read of each table.
    """

    def __init__(self, generation: Generation, versions: Mapping[str, int] | None = None) -> None:
        self.manifest, self._generation = generation.manifest, generation
        self._versions = versions

    def _table(self, name: str) -> Any:
        from danbooru_index.index.lance_io import open_table

        versions = self._versions or self.manifest.need_seal().versions
        return open_table(self._generation.path, name, versions[name])

    @cached_property
    def _dense(self) -> Any:
        return self._table("dense")

    @cached_property
    def _sparse(self) -> Any:
        return self._table("sparse")

    @cached_property
    def _colbert(self) -> Any:
        return self._table("colbert")

    @cached_property
    def rows(self) -> int:
        mapped = self.vectors.dense
        return int(self._dense.count_rows()) if mapped is None else len(mapped)

    def counts(self) -> dict[str, int]:
        """The rows of each table."""
        return {
            "dense": self._dense.count_rows(),
            "sparse": self._sparse.count_rows(),
            "colbert": self._colbert.count_rows(),
        }

    def id_problems(self) -> list[str]:
        """What is wrong with the ids: an id twice, or the three tables not in the same order."""
        ids = self._dense.to_table(columns=["id"])["id"].combine_chunks()
        problems = []
        if len(ids.unique()) != len(ids):
            problems.append(f"{len(ids) - len(ids.unique())} ids occur twice")
        for name, table in (("sparse", self._sparse), ("colbert", self._colbert)):
            if not table.to_table(columns=["id"])["id"].combine_chunks().equals(ids):
                problems.append(f"table {name} does not hold the ids of table dense in their order")
        return problems

    # ---- records ----

    @cached_property
    def files(self) -> SearchFiles:
        """The arrays beside the tables; made now where the generation has none."""
        saved = saved_search_files(self._generation)
        return saved or SearchFiles(make_search_arrays(self.record_batches()))

    def record_batches(self) -> Iterator[pa.RecordBatch]:
        """What is answered of every record (`ANSWERED`), in row order."""
        yield from self._dense.to_batches(columns=list(ANSWERED), batch_size=BLOCK_ROWS)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Columns of every record, in row order. Raises `StorageError`."""
        try:
            with panics_as_errors():
                return self._dense.to_table(columns=list(names))
        except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
            raise StorageError(
                f"generation {self.manifest.id} cannot be read ({lance_reason(error)})"
            ) from None

    def tags(self) -> list[str]:
        """The tag of every row, in row order."""
        return list(self._dense.to_table(columns=["tag"])["tag"].to_pylist())

    def texts(self) -> list[str]:
        """The text of every row, in row order."""
        return list(self._dense.to_table(columns=["text"])["text"].to_pylist())

    def tied_text(self, row: int, other: int) -> bool:
        """Whether two rows hold the same text."""
        texts = self._dense.take([row, other], columns=["text"])["text"].to_pylist()
        return bool(texts[0] == texts[1])

    def row_of(self, record_id: str) -> int | None:
        """The row of an id (scans the id column, once)."""
        return self._rows_by_id.get(record_id)

    @cached_property
    def _rows_by_id(self) -> dict[str, int]:
        column = self._dense.to_table(columns=["id"])["id"].to_pylist()
        return {record_id: row for row, record_id in enumerate(column)}

    @cached_property
    def vectors(self) -> VectorFiles:
        """The vectors beside the tables, as far as the generation has them."""
        return VectorFiles(self._generation)

    # ---- dense ----

    def nearest(
        self, vector: Array, k: int, expression: pc.Expression | None
    ) -> npt.NDArray[np.int64]:
        """The `k` allowed rows of highest cosine, best first: exactly, or those the index finds."""
        if not self.rows:
            return np.empty(0, np.int64)
        asked = {"column": "vector", "q": vector.astype(np.float16), "k": k, "metric": "cosine"}
        found = self._dense.to_table(
            columns=["id", "_distance"],
            nearest=asked | self._probes,
            filter=expression,
            prefilter=True,
            with_row_id=True,
        )
        return self._row_numbers(np.asarray(found["_rowid"].to_numpy(), dtype=np.uint64))

    @cached_property
    def _probes(self) -> dict[str, Any]:
        return probes(self._dense)

    def dense_vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The dense vectors of the given rows, [rows, D]."""
        mapped = self.vectors.dense_vectors(rows)
        if mapped is not None:
            return mapped
        column = self._dense.take(rows, columns=["vector"])["vector"].combine_chunks()
        return to_float32(halves(column))

    def dense_blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """The dense vectors in row order, [rows of a block, D]."""
        yield from map(to_float32, self.dense_halves())

    def dense_halves(self) -> Iterator[Array]:
        """`dense_blocks` as they are stored, float16."""
        for batch in self._dense.to_batches(columns=["vector"], batch_size=BLOCK_ROWS):
            yield halves(batch.column("vector"))

    def _row_numbers(self, row_ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Lance row ids (fragment number, place in it) -> rows of the table."""
        fragments = (row_ids >> np.uint64(32)).astype(np.int64)  # the upper half
        return self._starts[fragments] + (row_ids & np.uint64(0xFFFFFFFF)).astype(np.int64)

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """The first row of each fragment, by the fragment's number."""
        fragments = self._dense.get_fragments()
        starts = np.zeros(max((f.fragment_id for f in fragments), default=0) + 1, dtype=np.int64)
        at = 0  # rows of the fragments before
        for fragment in fragments:
            starts[fragment.fragment_id] = at
            at += fragment.metadata.num_rows
        return starts

    # ---- sparse ----

    def sparse_batches(self) -> Iterator[pa.RecordBatch]:
        """The tokens and weights of every record, in row order."""
        columns = ["token_ids", "weights"]
        yield from self._sparse.to_batches(columns=columns, batch_size=BLOCK_ROWS)

    @cached_property
    def inverted(self) -> InvertedIndex:
        """The sparse weights by token; made now where the generation has no index of them."""
        saved = saved_search_files(self._generation)
        if saved is not None and saved.inverted is not None:
            return saved.inverted
        return InvertedIndex(inverted_arrays(self.sparse_batches()), self.rows)

    # ---- ColBERT ----

    def colbert_matrices(self, rows: npt.NDArray[np.int64]) -> Matrices:
        """The ColBERT matrices of the given rows."""
        mapped = self.vectors.colbert_matrices(rows)
        if mapped is not None:
            return mapped
        return matrices_of(
            self._colbert.take(rows, columns=["vectors"])["vectors"].combine_chunks()
        )

    def colbert_blocks(self) -> Iterator[Matrices]:
        """The ColBERT matrices in row order, some rows at a time: reads the whole table."""
        for batch in self._colbert.to_batches(columns=["vectors"], batch_size=SCAN_ROWS):
            yield matrices_of(batch.column("vectors"))


def halves(column: pa.FixedSizeListArray) -> Array:
    """A column of vectors as it is stored, [rows, D], float16."""
    matrix: Array = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return matrix


def matrices_of(column: pa.ListArray) -> Matrices:
    """A list array of fixed-size lists of C values as flat buffers."""
    lengths = np.asarray(column.value_lengths(), dtype=np.int64)
    flat = column.flatten()  # all vectors, [T] of C values
    if not len(flat):
        return Matrices(np.empty((0, flat.type.list_size), np.float16), lengths)
    return Matrices(flat.flatten().to_numpy().reshape(len(flat), -1), lengths)
