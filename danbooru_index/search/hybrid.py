"""Ordering the rows of a generation by a query: by one retriever, or by all three together.

Hybrid takes candidates from the dense and the sparse retriever and scores each of them exactly by
all three.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danbooru_index.choices import Mode
from danbooru_index.config import Filter, Weights
from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.colbert import ColbertRetriever
from danbooru_index.search.dense import DenseRetriever
from danbooru_index.search.filters import allowed
from danbooru_index.search.retriever import EncodedQuery, Retriever, Rows, Scores
from danbooru_index.search.sparse import SparseRetriever

CANDIDATES = 200
SOURCES = (Mode.DENSE, Mode.SPARSE)  # of a hybrid search's candidates
PARTS = (Mode.DENSE, Mode.SPARSE, Mode.COLBERT)  # of its score


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows, best first, with the score that ordered them and the score of each mode."""

    rows: Rows
    score: Scores
    dense: Scores
    sparse: Scores
    colbert: Scores


def retrievers(reader: GenerationReader) -> dict[Mode, Retriever]:
    """The retriever of each part of a hybrid score."""
    return {
        Mode.DENSE: DenseRetriever(reader),
        Mode.SPARSE: SparseRetriever(reader),
        Mode.COLBERT: ColbertRetriever(reader),
    }


def rank(
    reader: GenerationReader,
    query: EncodedQuery,
    mode: Mode,
    limit: int,
    weights: Weights = Weights(),
    wanted: Filter = Filter(),
) -> Ranking:
    """Order rows by a mode; hybrid scores the union of candidates exactly in all three."""
    among, known = allowed(reader, wanted), retrievers(reader)
    if mode is Mode.HYBRID:
        count = candidates(limit)
        rows = union([known[source].candidates(query, count, among)[0] for source in SOURCES])
        scores = {part: known[part].score(query, rows) for part in PARTS}
        combined = combine(scores, weights)
    else:
        rows, combined = known[mode].candidates(query, limit, among)
        scores = {
            part: combined if part is mode else known[part].score(query, rows) for part in PARTS
        }
    order = np.lexsort((rows, -combined))[:limit]  # best first, ties in row order
    return Ranking(rows[order], combined[order], *(scores[part][order] for part in PARTS))


def candidates(limit: int) -> int:
    """How many rows a hybrid search takes from each of its sources."""
    return max(CANDIDATES, 4 * limit)


def union(found: list[Rows]) -> Rows:
    """Rows that any source found, ascending, each once."""
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))


def combine(scores: dict[Mode, Scores], weights: Weights) -> Scores:
    """FlagEmbedding's `colbert+sparse+dense`: the weighted mean of the three."""
    dense, sparse, colbert = weights.shares
    mean = (
        dense * scores[Mode.DENSE] + sparse * scores[Mode.SPARSE] + colbert * scores[Mode.COLBERT]
    )
    return np.asarray(mean, dtype=np.float32)
