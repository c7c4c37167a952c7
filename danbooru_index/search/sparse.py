"""Sparse retrieval: the sum of weight products over common tokens, as in FlagEmbedding."""

from __future__ import annotations

from dataclasses import dataclass

from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.retriever import Allowed, EncodedQuery, Rows, Scores


@dataclass(frozen=True, slots=True)
class SparseRetriever:
    """Rows by the weights of the tokens that they share with a query."""

    reader: GenerationReader

    def candidates(self, query: EncodedQuery, k: int, allowed: Allowed) -> tuple[Rows, Scores]:
        return self.reader.inverted.top(query.sparse, k, allowed.mask)

    def score(self, query: EncodedQuery, rows: Rows) -> Scores:
        return self.reader.inverted.score(query.sparse, rows)
