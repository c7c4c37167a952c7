"""Dense retrieval by cosine; Lance gives candidates, exactly or through its index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.filters import expression
from danbooru_index.search.retriever import Allowed, EncodedQuery, Rows, Scores


@dataclass(frozen=True, slots=True)
class DenseRetriever:
    """Rows by cosine."""

    reader: GenerationReader

    def candidates(self, query: EncodedQuery, k: int, allowed: Allowed) -> tuple[Rows, Scores]:
        """Exactly, or those the index finds; scores are exact."""
        rows = self.reader.nearest(query.dense, k, expression(allowed.wanted))
        scores = self.score(query, rows)
        order = np.lexsort((rows, -scores))  # Lance's order is that of half floats
        return rows[order], scores[order]

    def score(self, query: EncodedQuery, rows: Rows) -> Scores:
        if not len(rows):
            return np.empty(0, np.float32)
        scores: Scores = self.reader.dense_vectors(rows) @ query.dense.astype(np.float32)
        return scores
