"""Dense retrieval by cosine: candidates from all rows, or from those that codes or Lance find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danbooru_index.embeddings import Array, to_float32
from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.filters import expression
from danbooru_index.search.retriever import Allowed, EncodedQuery, Rows, Scores, top

FEW_ALLOWED = 4096  # so many allowed rows are all scored
SCANNED, SCANNED_PER_HIT = 2000, 10  # rows that are scored exactly after a scan of the codes
CACHED_ROWS = 512  # that stay in a core's cache


@dataclass(frozen=True, slots=True)
class DenseRetriever:
    """Rows by cosine."""

    reader: GenerationReader

    def candidates(self, query: EncodedQuery, k: int, allowed: Allowed) -> tuple[Rows, Scores]:
        """Exactly where the generation is not large or few rows are allowed; else those that its
        codes find. Scores are exact.
        """
        rows = self._near(query, k, allowed)
        scores = self.score(query, rows)
        best = top(scores, k)
        return rows[best], scores[best]

    def _near(self, query: EncodedQuery, k: int, allowed: Allowed) -> Rows:
        """Candidates, ascending."""
        vectors = self.reader.vectors
        if vectors.dense is not None and allowed.count <= FEW_ALLOWED:
            return allowed.rows
        if vectors.scan is not None:
            count = max(SCANNED, SCANNED_PER_HIT * k)
            bits = None if allowed.all else allowed.bits
            return np.sort(vectors.scan.nearest(query.dense, count, bits))
        if vectors.dense is not None:
            return _best(vectors.dense, query.dense, k, allowed)
        return np.sort(self.reader.nearest(query.dense, k, expression(allowed.wanted)))

    def score(self, query: EncodedQuery, rows: Rows) -> Scores:
        if not len(rows):
            return np.empty(0, np.float32)
        scores: Scores = self.reader.dense_vectors(rows) @ query.dense.astype(np.float32)
        return scores


def _best(vectors: Array, query: Array, k: int, allowed: Allowed) -> Rows:
    """The `k` best allowed rows of all, ascending."""
    asked, scores = query.astype(np.float32), np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), CACHED_ROWS):
        block = slice(start, start + CACHED_ROWS)
        np.dot(to_float32(vectors[block]), asked, out=scores[block])
    if not allowed.all:
        scores[~allowed.mask] = -np.inf
    return np.sort(top(scores, min(k, allowed.count)))
