"""Sparse retrieval: the sum of weight products over common tokens, as in FlagEmbedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.retriever import Allowed, EncodedQuery, Rows, Scores, top_positive


@dataclass(frozen=True, slots=True)
class SparseRetriever:
    """Rows by the weights of the tokens that they share with a query."""

    reader: GenerationReader

    def candidates(self, query: EncodedQuery, k: int, allowed: Allowed) -> tuple[Rows, Scores]:
        scores = np.zeros(self.reader.rows, dtype=np.float32)  # [rows of the table]
        for rows, products in self._postings(query):
            scores[rows] += products
        scores[~allowed.mask] = 0  # top_positive leaves out zeros
        rows = top_positive(scores, k)
        return rows, scores[rows]

    def score(self, query: EncodedQuery, rows: Rows) -> Scores:
        """Looked up in each token's list, never over all rows."""
        scores = np.zeros(len(rows), dtype=np.float32)
        for listed, products in self._postings(query):
            places = np.searchsorted(listed, rows)  # where each row would stand in the list
            places[places == len(listed)] = 0  # behind its end: compared with another row below
            if len(listed):
                scores += np.where(listed[places] == rows, products[places], np.float32(0))
        return scores

    def _postings(self, query: EncodedQuery) -> list[tuple[Rows, Scores]]:
        """For each token of the query: its rows, ascending, and what it adds to each."""
        index = self.reader.inverted  # CSC: a column a token
        found = []
        for token, weight in query.sparse.items():
            if token < index.shape[1]:
                span = slice(index.indptr[token], index.indptr[token + 1])
                found.append((index.indices[span], np.float32(weight) * index.data[span]))
        return found
