"""ColBERT retrieval: MaxSim of a query's matrix with each row's.

Of a large generation only with those of rows that the dense and the sparse retriever find.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danbooru_index.embeddings import Matrices
from danbooru_index.index import vector_index
from danbooru_index.index.reader import SCAN_ROWS, GenerationReader
from danbooru_index.model.late_interaction import as_matrices, max_sim
from danbooru_index.search.dense import FEW_ALLOWED, DenseRetriever
from danbooru_index.search.retriever import Allowed, EncodedQuery, Rows, Scores, top
from danbooru_index.search.sparse import SparseRetriever

DENSE_CANDIDATES, SPARSE_CANDIDATES, PER_HIT = 2000, 500, 4


@dataclass(frozen=True, slots=True)
class ColbertRetriever:
    """Rows by MaxSim, averaged over the query's vectors as in FlagEmbedding."""

    reader: GenerationReader

    def candidates(self, query: EncodedQuery, k: int, allowed: Allowed) -> tuple[Rows, Scores]:
        """Exactly where the generation is not large or few rows are allowed; else among those that
        two other retrievers find. Scores are exact.
        """
        if self.reader.rows >= vector_index.INDEX_ROWS and allowed.count > FEW_ALLOWED:
            near = DenseRetriever(self.reader).candidates(
                query, max(DENSE_CANDIDATES, PER_HIT * k), allowed
            )
            sharing = SparseRetriever(self.reader).candidates(query, SPARSE_CANDIDATES, allowed)
            return self._best(query, np.union1d(near[0], sharing[0]), k)
        if allowed.count <= FEW_ALLOWED:
            return self._best(query, allowed.rows, k)
        blocks = [_scores(query, block) for block in self.reader.colbert_blocks()]
        scores = np.concatenate([np.empty(0, np.float32), *blocks])
        scores = np.where(allowed.mask, scores, -np.inf).astype(np.float32)  # [rows of the table]
        rows = top(scores, min(k, allowed.count))
        return rows, scores[rows]

    def _best(self, query: EncodedQuery, rows: Rows, k: int) -> tuple[Rows, Scores]:
        scores = self.score(query, rows)
        best = top(scores, k)
        return rows[best], scores[best]

    def score(self, query: EncodedQuery, rows: Rows) -> Scores:
        order = np.argsort(rows, kind="stable")  # read in row order
        scores = np.zeros(len(rows), dtype=np.float32)
        for start in range(0, len(rows), SCAN_ROWS):
            part = order[start : start + SCAN_ROWS]
            scores[part] = _scores(query, self.reader.colbert_matrices(rows[part]))
        return scores


def _scores(query: EncodedQuery, block: Matrices) -> Scores:
    scores: Scores = max_sim(as_matrices([query.colbert]), block)[0]
    return scores
