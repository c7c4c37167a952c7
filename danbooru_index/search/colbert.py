"""ColBERT retrieval: MaxSim of a query's matrix with each row's, over the whole table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danbooru_index.embeddings import Matrices
from danbooru_index.index.reader import SCAN_ROWS, GenerationReader
from danbooru_index.model.late_interaction import as_matrices, max_sim
from danbooru_index.search.retriever import Allowed, EncodedQuery, Rows, Scores, top


@dataclass(frozen=True, slots=True)
class ColbertRetriever:
    """Rows by MaxSim, averaged over the query's vectors as in FlagEmbedding."""

    reader: GenerationReader

    def candidates(self, query: EncodedQuery, k: int, allowed: Allowed) -> tuple[Rows, Scores]:
        blocks = [_scores(query, block) for block in self.reader.colbert_blocks()]
        scores = np.concatenate([np.empty(0, np.float32), *blocks])
        scores = np.where(allowed.mask, scores, -np.inf).astype(np.float32)  # [rows of the table]
        rows = top(scores, k)
        rows = rows[np.isfinite(scores[rows])]  # fewer than k are allowed
        return rows, scores[rows]

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
