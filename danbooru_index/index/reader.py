"""Reading one generation: exact scores of a query's three outputs against its rows. Part of the vault.

Rows are numbered as in the input, the same in the three tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, reduce
from operator import and_
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csc_matrix

from danbooru_index.config import Filter
from danbooru_index.embeddings import Array
from danbooru_index.errors import UsageError
from danbooru_index.index.catalog import Generation
from danbooru_index.index.lance_io import open_table
from danbooru_index.index.vector_index import probes

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

RECORD_COLUMNS = ["id", "tag", "category", "text", "source", "post_count", "aliases", "nsfw", "deprecated"]
QUERIES_AT_ONCE = 64
BLOCK_ROWS = 8192
SCAN_ROWS = 512  # of 512 tokens at full width: half a gigabyte


class GenerationReader:
    """The three tables of a generation, each at the version that was sealed, or at the `versions` given before the seal."""

    def __init__(self, generation: Generation, versions: Mapping[str, int] | None = None) -> None:
        self.manifest = generation.manifest
        versions = versions or generation.manifest.need_seal().versions
        self._dense = open_table(generation.path, "dense", versions["dense"])
        self._sparse = open_table(generation.path, "sparse", versions["sparse"])
        self._colbert = open_table(generation.path, "colbert", versions["colbert"])

    @cached_property
    def rows(self) -> int:
        return int(self._dense.count_rows())

    @cached_property
    def _probes(self) -> dict[str, Any]:
        return probes(self._dense)

    def counts(self) -> dict[str, int]:
        """The rows of each table."""
        return {"dense": self.rows, "sparse": self._sparse.count_rows(), "colbert": self._colbert.count_rows()}

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

    @cached_property
    def _known(self) -> pa.Table:
        """The columns that filters compare: read once, 25 bytes a row."""
        return self._dense.to_table(columns=["nsfw", "category", "post_count"])

    @cached_property
    def categories(self) -> frozenset[str]:
        """Every category of the generation."""
        return frozenset(pc.unique(self._known["category"]).to_pylist())

    def allowed(self, wanted: Filter) -> npt.NDArray[np.bool_]:
        """Which rows a filter lets through, [rows]. Raises `UsageError` for a category that no record has."""
        self._check(wanted)
        mask = np.ones(self.rows, dtype=bool)
        if not wanted.nsfw:
            mask &= ~np.asarray(self._known["nsfw"].to_numpy(), dtype=bool)
        if wanted.categories:
            mask &= pc.is_in(self._known["category"], pa.array(wanted.categories, pa.string())).to_numpy()
        if wanted.min_post_count is not None:
            enough = pc.greater_equal(self._known["post_count"], pa.scalar(wanted.min_post_count, pa.int64()))
            mask &= pc.fill_null(enough, False).to_numpy()
        return mask

    def _check(self, wanted: Filter) -> None:
        unknown = [name for name in wanted.categories if name not in self.categories]
        if unknown:
            known = ", ".join(sorted(self.categories)[:20])
            raise UsageError(f"--category {unknown[0]!r}: no record has it; categories here: {known}")

    def records(self, rows: Rows) -> list[dict[str, Any]]:
        """What is known of the tags in the given rows, in that order."""
        if not len(rows):
            return []
        return list(self._dense.take(rows, columns=RECORD_COLUMNS).to_pylist())

    def dense_top(self, vector: Array, k: int, wanted: Filter) -> tuple[Rows, Scores]:
        """The `k` rows of highest cosine that a filter lets through, best first: exactly, or those the index finds; scores
        are exact."""
        if not self.rows:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        found = self._dense.to_table(
            columns=["id", "_distance"],
            nearest={
                "column": "vector",
                "q": vector.astype(np.float16),
                "k": k,
                "metric": "cosine",
                **self._probes,
            },
            filter=_expression(wanted),
            prefilter=True,
            with_row_id=True,
        )
        rows = self._row_numbers(np.asarray(found["_rowid"].to_numpy(), dtype=np.uint64))
        return rows, (1 - found["_distance"].to_numpy()).astype(np.float32)

    def dense_scores(self, vector: Array, rows: Rows) -> Scores:
        """The cosine of each given row."""
        if not len(rows):
            return np.empty(0, np.float32)
        matrix = _matrix(self._dense.take(rows, columns=["vector"])["vector"])
        scores: Scores = matrix @ vector.astype(np.float32)
        return scores

    def sparse_scores(self, weights: dict[int, float]) -> Scores:
        """The sum of products of common tokens' weights, for every row, [rows]."""
        scores = np.zeros(self.rows, dtype=np.float32)
        index = self._inverted
        for token, weight in weights.items():
            if token < index.shape[1]:
                span = slice(index.indptr[token], index.indptr[token + 1])
                scores[index.indices[span]] += np.float32(weight) * index.data[span]
        return scores

    def colbert_scores(self, query: Array, rows: Rows) -> Scores:
        """MaxSim of each given row, averaged over the query's vectors as in FlagEmbedding; `query` [q, C]."""
        order = np.argsort(rows, kind="stable")
        scores = np.zeros(len(rows), dtype=np.float32)
        for start in range(0, len(rows), SCAN_ROWS):
            part = order[start : start + SCAN_ROWS]
            table = self._colbert.take(rows[part], columns=["vectors"])
            scores[part] = max_sim(query, table["vectors"].combine_chunks())
        return scores

    def colbert_all(self, query: Array) -> Scores:
        """MaxSim of every row, [rows]: reads the whole table."""
        return np.concatenate([np.empty(0, np.float32), *(max_sim(query, part) for part in self.colbert_blocks())])

    def tied_text(self, row: int, other: int) -> bool:
        """Whether two rows hold the same text."""
        texts = self._dense.take([row, other], columns=["text"])["text"].to_pylist()
        return bool(texts[0] == texts[1])

    def row_of(self, record_id: str) -> int | None:
        """The row of an id (scans the id column)."""
        ids = self._ids
        return ids.get(record_id)

    @cached_property
    def _ids(self) -> dict[str, int]:
        column = self._dense.to_table(columns=["id"])["id"].to_pylist()
        return {record_id: row for row, record_id in enumerate(column)}

    def dense_blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """The dense vectors in row order, [rows of a block, D]."""
        for batch in self._dense.to_batches(columns=["vector"], batch_size=BLOCK_ROWS):
            yield _matrix(pa.chunked_array([batch.column("vector")]))

    def colbert_blocks(self) -> Iterator[pa.Array]:
        """The ColBERT matrices in row order."""
        for batch in self._colbert.to_batches(columns=["vectors"], batch_size=SCAN_ROWS):
            yield batch.column("vectors")

    def tags(self) -> list[str]:
        """The tag of every row, in row order."""
        return list(self._dense.to_table(columns=["tag"])["tag"].to_pylist())

    def texts(self) -> list[str]:
        """The text of every row, in row order."""
        return list(self._dense.to_table(columns=["text"])["text"].to_pylist())

    def _row_numbers(self, row_ids: npt.NDArray[np.uint64]) -> Rows:
        """Lance row ids (fragment number, place in it) -> rows of the table."""
        fragments = (row_ids >> np.uint64(32)).astype(np.int64)
        return self._starts[fragments] + (row_ids & np.uint64(0xFFFFFFFF)).astype(np.int64)

    @cached_property
    def _starts(self) -> Rows:
        fragments = self._dense.get_fragments()
        starts = np.zeros(max((f.fragment_id for f in fragments), default=0) + 1, dtype=np.int64)
        at = 0
        for fragment in fragments:
            starts[fragment.fragment_id] = at
            at += fragment.metadata.num_rows
        return starts

    @cached_property
    def _inverted(self) -> csc_matrix:
        """The sparse weights by token, [rows, tokens]: 167 MB for 1.4M tags."""
        table = self._sparse.to_table(columns=["token_ids", "weights"])
        tokens, weights = table["token_ids"].combine_chunks(), table["weights"].combine_chunks()
        lengths = np.asarray(tokens.value_lengths())
        columns = tokens.flatten().to_numpy()
        indptr = np.concatenate(([0], np.cumsum(lengths)))
        from scipy.sparse import csr_matrix

        width = int(columns.max(initial=-1)) + 1
        matrix = csr_matrix((weights.flatten().to_numpy(), columns, indptr), shape=(len(lengths), width))
        return matrix.tocsc()


def _expression(wanted: Filter) -> pc.Expression | None:
    """A filter as Lance takes it: typed, on these three columns, never text."""
    terms = [] if wanted.nsfw else [pc.equal(pc.field("nsfw"), pc.scalar(False))]
    if wanted.categories:
        terms.append(pc.field("category").isin(list(wanted.categories)))
    if wanted.min_post_count is not None:
        terms.append(pc.field("post_count") >= pc.scalar(wanted.min_post_count))
    return reduce(and_, terms) if terms else None


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    array = column.combine_chunks()
    matrix: npt.NDArray[np.float32] = array.flatten().to_numpy().reshape(len(array), -1).astype(np.float32)
    return matrix


def max_sim(query: Array, matrices: pa.Array) -> Scores:
    """Mean over query vectors of the best product with a row's vectors; rows without vectors score 0.

    `query` [q, C] float; `matrices` a list array of fixed-size lists of C values -> [rows].
    """
    scores: Scores = max_sim_many([query], matrices)[0]
    return scores


def max_sim_many(queries: Sequence[Array], matrices: pa.Array) -> npt.NDArray[np.float32]:
    """`max_sim` of several queries at once, [queries, rows]."""
    lengths = np.asarray(matrices.value_lengths(), dtype=np.int64)
    flat = matrices.flatten()
    scores = np.zeros((len(queries), len(lengths)), dtype=np.float32)
    if not len(flat):
        return scores
    vectors = flat.flatten().to_numpy().reshape(len(flat), -1).astype(np.float32)
    filled = np.flatnonzero(lengths)
    starts = (np.cumsum(lengths) - lengths)[filled]
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        some = queries[first : first + QUERIES_AT_ONCE]
        sizes = np.array([len(query) for query in some])
        asking = np.flatnonzero(sizes)
        if not len(asking):
            continue
        products = np.concatenate(some).astype(np.float32) @ vectors.T
        best = np.maximum.reduceat(products, starts, axis=1)
        sums = np.add.reduceat(best, (np.cumsum(sizes) - sizes)[asking], axis=0)
        scores[np.ix_(first + asking, filled)] = sums / sizes[asking][:, None]
    return scores
