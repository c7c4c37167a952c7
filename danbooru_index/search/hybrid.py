"""Ordering the rows of a generation by a query: dense, sparse, ColBERT, hybrid; one query, or many in one pass.

Called by `search`, by the self-check and by `evaluation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from danbooru_index.config import Filter, Mode, Weights
from danbooru_index.embeddings import Embeddings
from danbooru_index.index.reader import GenerationReader, Rows, Scores, max_sim_many

CANDIDATES = 200
QUERIES_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """A query's three outputs: `dense` [D], `sparse` by token id, `colbert` [tokens - 1, C]."""

    dense: np.ndarray[Any, Any]
    sparse: dict[int, float]
    colbert: np.ndarray[Any, Any]


def query_of(encoding: Embeddings, row: int) -> EncodedQuery:
    """One text of an encoding, as a query."""
    return EncodedQuery(encoding.dense[row], encoding.sparse_row(row), encoding.colbert_row(row))


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows, best first, with the score that ordered them and the score of each mode."""

    rows: Rows
    score: Scores
    dense: Scores
    sparse: Scores
    colbert: Scores


def rank(
    reader: GenerationReader,
    query: EncodedQuery,
    mode: Mode,
    limit: int,
    weights: Weights = Weights(),
    wanted: Filter = Filter(),
) -> Ranking:
    """Order rows by a mode; hybrid scores the union of the dense and the sparse candidates exactly in all three."""
    allowed = reader.allowed(wanted)
    sparse = _sparse_scores(reader, query, allowed)
    colbert_all = None
    if mode is Mode.COLBERT:
        colbert_all = np.where(allowed, reader.colbert_all(query.colbert), -np.inf).astype(np.float32)
        rows = top(colbert_all, limit)
        rows = rows[np.isfinite(colbert_all[rows])]
    elif mode is Mode.DENSE:
        rows = reader.dense_top(query.dense, limit, wanted)[0]
    elif mode is Mode.SPARSE:
        rows = top_positive(sparse, limit)
    else:
        count = _candidates(limit)
        rows = np.union1d(reader.dense_top(query.dense, count, wanted)[0], top_positive(sparse, count))
    scores = _scored(reader, query, rows, sparse, colbert_all)
    combined = _combine(scores, weights) if mode is Mode.HYBRID else scores[mode]
    order = np.lexsort((rows, -combined))[:limit]
    parts = [scores[part][order] for part in (Mode.DENSE, Mode.SPARSE, Mode.COLBERT)]
    return Ranking(rows[order], combined[order], *parts)


def _scored(
    reader: GenerationReader, query: EncodedQuery, rows: Rows, sparse: Scores, colbert_all: Scores | None = None
) -> dict[Mode, Scores]:
    """The scores of these rows in all three modes; `sparse`, `colbert_all`: of every row, where known."""
    return {
        Mode.DENSE: reader.dense_scores(query.dense, rows),
        Mode.SPARSE: np.maximum(sparse[rows], 0),
        Mode.COLBERT: reader.colbert_scores(query.colbert, rows) if colbert_all is None else colbert_all[rows],
    }


def _sparse_scores(reader: GenerationReader, query: EncodedQuery, allowed: np.ndarray[Any, Any]) -> Scores:
    """The sparse score of every row, -1 where it is not allowed."""
    return np.where(allowed, reader.sparse_scores(query.sparse), -1).astype(np.float32)


def _candidates(limit: int) -> int:
    """How many rows a hybrid search takes from the dense, and from the sparse scores."""
    return max(CANDIDATES, 4 * limit)


def _combine(scores: dict[Mode, Scores], weights: Weights) -> Scores:
    """FlagEmbedding's `colbert+sparse+dense`: the weighted mean of the three."""
    dense, sparse, colbert = weights.shares
    mean = dense * scores[Mode.DENSE] + sparse * scores[Mode.SPARSE] + colbert * scores[Mode.COLBERT]
    return np.asarray(mean, dtype=np.float32)


def top(scores: Scores, count: int) -> Rows:
    """The rows of the `count` highest scores, best first, ties in row order."""
    count = min(count, len(scores))
    if not count:
        return np.empty(0, np.int64)
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    rows = np.flatnonzero(scores >= threshold)
    return rows[np.lexsort((rows, -scores[rows]))][:count]


def top_positive(scores: Scores, count: int) -> Rows:
    """`top` without the rows that score nothing."""
    rows = top(scores, count)
    return rows[scores[rows] > 0]


def rank_many(
    reader: GenerationReader,
    queries: Sequence[EncodedQuery],
    mode: Mode,
    limit: int,
    weights: Weights = Weights(),
    wanted: Filter = Filter(),
) -> list[Rows]:
    """The rows that `rank` gives for each query, best first, reading each table once for all of them; dense candidates are
    exact here, also where `rank` has them from an index."""
    allowed = reader.allowed(wanted)
    if mode is Mode.DENSE:
        return [rows for rows, _ in dense_tops(reader, queries, limit, allowed)]
    if mode is Mode.COLBERT:
        return _colbert_tops(reader, queries, limit, allowed)
    if mode is Mode.SPARSE:
        return [top_positive(_sparse_scores(reader, query, allowed), limit) for query in queries]
    return rank_hybrids(reader, queries, limit, [weights], wanted)[0]


def rank_hybrids(
    reader: GenerationReader,
    queries: Sequence[EncodedQuery],
    limit: int,
    weightings: Sequence[Weights],
    wanted: Filter = Filter(),
) -> list[list[Rows]]:
    """The rows of a hybrid search for each weighting and query: candidates are read and scored once for all weightings."""
    allowed, count = reader.allowed(wanted), _candidates(limit)
    found: list[list[Rows]] = [[] for _ in weightings]
    for query, (nearest, _) in zip(queries, dense_tops(reader, queries, count, allowed), strict=True):
        sparse = _sparse_scores(reader, query, allowed)
        rows = np.union1d(nearest, top_positive(sparse, count))
        scores = _scored(reader, query, rows, sparse)
        for answers, weights in zip(found, weightings, strict=True):
            answers.append(rows[np.lexsort((rows, -_combine(scores, weights)))[:limit]])
    return found


class _Best:
    """The best `limit` rows of each query so far, as blocks of scores [queries, rows] come in row order."""

    def __init__(self, queries: int, limit: int, allowed: np.ndarray[Any, Any]) -> None:
        self._limit, self._allowed, self._at = limit, allowed, 0
        self._rows = np.empty((queries, 0), np.int64)
        self._scores = np.empty((queries, 0), np.float32)

    def add(self, scores: np.ndarray[Any, Any]) -> None:
        count = scores.shape[1]
        numbers = np.arange(self._at, self._at + count)
        self._at += count
        scores = np.where(self._allowed[numbers], scores, -np.inf)
        scores = np.concatenate([self._scores, scores], axis=1)
        rows = np.concatenate([self._rows, np.broadcast_to(numbers, (len(scores), count))], axis=1)
        if scores.shape[1] > self._limit:
            kept = np.argpartition(-scores, self._limit - 1, axis=1)[:, : self._limit]
            scores, rows = np.take_along_axis(scores, kept, 1), np.take_along_axis(rows, kept, 1)
        self._scores, self._rows = scores, rows

    def result(self) -> list[tuple[Rows, Scores]]:
        answers = []
        for rows, scores in zip(self._rows, self._scores, strict=True):
            order = np.lexsort((rows, -scores))
            order = order[np.isfinite(scores[order])]
            answers.append((rows[order], scores[order]))
        return answers


def dense_tops(
    reader: GenerationReader,
    queries: Sequence[EncodedQuery],
    limit: int,
    allowed: np.ndarray[Any, Any] | None = None,
) -> list[tuple[Rows, Scores]]:
    """The `limit` rows of highest cosine for each query, exactly, in one pass over the table."""
    if allowed is None:
        allowed = np.ones(reader.rows, dtype=bool)
    parts = _in_parts(queries, limit, allowed)
    asked = [np.stack([query.dense.astype(np.float32) for query in part]) for part, _ in parts]
    for matrix in reader.dense_blocks():
        for vectors, (_, best) in zip(asked, parts, strict=True):
            best.add(vectors @ matrix.T)
    return [found for _, best in parts for found in best.result()]


def _in_parts(
    queries: Sequence[EncodedQuery], limit: int, allowed: np.ndarray[Any, Any]
) -> list[tuple[Sequence[EncodedQuery], _Best]]:
    """The queries, so many at once that their scores with a block of rows take some 100 MB."""
    parts = [queries[at : at + QUERIES_AT_ONCE] for at in range(0, len(queries), QUERIES_AT_ONCE)]
    return [(part, _Best(len(part), limit, allowed)) for part in parts]


def _colbert_tops(
    reader: GenerationReader, queries: Sequence[EncodedQuery], limit: int, allowed: np.ndarray[Any, Any]
) -> list[Rows]:
    parts = _in_parts(queries, limit, allowed)
    for block in reader.colbert_blocks():
        for part, best in parts:
            best.add(max_sim_many([query.colbert for query in part], block))
    return [rows for _, best in parts for rows, _ in best.result()]
