"""Many queries at once: the same rows as `rank`, every table read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from danbooru_index.choices import Mode
from danbooru_index.config import Filter, Fusion, Weights
from danbooru_index.index.reader import GenerationReader
from danbooru_index.model.late_interaction import as_matrices, max_sim
from danbooru_index.search.filters import allowed
from danbooru_index.search.hybrid import (
    PARTS,
    candidates,
    combine,
    fuse,
    matched,
    retrievers,
    union,
)
from danbooru_index.search.ranking import matched_rows, rank_names
from danbooru_index.search.retriever import Allowed, EncodedQuery, Rows, Scores

QUERIES_PER_PASS = 512


def rank_many(
    reader: GenerationReader,
    queries: Sequence[EncodedQuery],
    mode: Mode,
    limit: int,
    weights: Weights = Weights(),
    wanted: Filter = Filter(),
    fusion: Fusion = Fusion(),
) -> list[Rows]:
    """The rows that `rank` gives for each query, best first; dense candidates are exact here, also
    where `rank` has them from an index.
    """
    if mode is Mode.LEXICAL:
        return [rank_names(reader.files, query.text, limit, wanted).rows for query in queries]
    among = allowed(reader.files, wanted)
    if mode is Mode.DENSE:
        return [rows for rows, _ in dense_tops(reader, queries, limit, among)]
    if mode is Mode.COLBERT:
        return _colbert_tops(reader, queries, limit, among)
    if mode is Mode.SPARSE:
        sparse = retrievers(reader)[Mode.SPARSE]
        return [sparse.candidates(query, limit, among)[0] for query in queries]
    return rank_hybrids(reader, queries, limit, [(weights, fusion)], wanted)[0]


def rank_hybrids(
    reader: GenerationReader,
    queries: Sequence[EncodedQuery],
    limit: int,
    weightings: Sequence[tuple[Weights, Fusion]],
    wanted: Filter = Filter(),
) -> list[list[Rows]]:
    """The rows of a hybrid search for each weighting and query: candidates are read and scored once
    for all weightings.
    """
    files = reader.files
    among, count, known = allowed(files, wanted), candidates(limit), retrievers(reader)
    fusions = [fusion for _, fusion in weightings]
    found: list[list[Rows]] = [[] for _ in weightings]
    for query, (nearest, _) in zip(queries, dense_tops(reader, queries, count, among), strict=True):
        matches = matched(files, query.text, count, among.mask, fusions)
        sparse = known[Mode.SPARSE].candidates(query, count, among)[0]
        rows = union([nearest, sparse, matched_rows(matches)])
        scores = {part: known[part].score(query, rows) for part in PARTS}
        for answers, (weights, fusion) in zip(found, weightings, strict=True):
            order = fuse(files, rows, combine(scores, weights), matches, fusion)
            answers.append(rows[order[:limit]])
    return found


def dense_tops(
    reader: GenerationReader,
    queries: Sequence[EncodedQuery],
    limit: int,
    among: Allowed | None = None,
) -> list[tuple[Rows, Scores]]:
    """The `limit` rows of highest cosine for each query, exactly, in one pass over the table."""
    parts = _in_parts(
        queries, limit, np.ones(reader.rows, dtype=bool) if among is None else among.mask
    )
    asked = [np.stack([query.dense.astype(np.float32) for query in part]) for part, _ in parts]
    for matrix in reader.dense_blocks():
        for vectors, (_, best) in zip(asked, parts, strict=True):
            best.add(vectors @ matrix.T)  # [q, rows of the block]
    return [found for _, best in parts for found in best.result()]


def _colbert_tops(
    reader: GenerationReader, queries: Sequence[EncodedQuery], limit: int, among: Allowed
) -> list[Rows]:
    parts = _in_parts(queries, limit, among.mask)
    asked = [as_matrices([query.colbert for query in part]) for part, _ in parts]
    for block in reader.colbert_blocks():
        for matrices, (_, best) in zip(asked, parts, strict=True):
            best.add(max_sim(matrices, block))
    return [rows for _, best in parts for rows, _ in best.result()]


def _in_parts(
    queries: Sequence[EncodedQuery], limit: int, mask: np.ndarray[Any, Any]
) -> list[tuple[Sequence[EncodedQuery], _Best]]:
    """The queries, so many at once that their scores with a block of rows take some 100 MB."""
    parts = [queries[at : at + QUERIES_PER_PASS] for at in range(0, len(queries), QUERIES_PER_PASS)]
    return [(part, _Best(len(part), limit, mask)) for part in parts]


class _Best:
    """The best `limit` rows of each query so far; scores [queries, rows] come in row order."""

    def __init__(self, queries: int, limit: int, mask: np.ndarray[Any, Any]) -> None:
        self._limit, self._mask, self._at = limit, mask, 0
        self._rows = np.empty((queries, 0), np.int64)  # [queries, up to limit]
        self._scores = np.empty((queries, 0), np.float32)

    def add(self, scores: np.ndarray[Any, Any]) -> None:
        count = scores.shape[1]
        numbers = np.arange(self._at, self._at + count)  # rows of the table
        self._at += count
        scores = np.where(self._mask[numbers], scores, -np.inf)  # [queries, rows]
        scores = np.concatenate([self._scores, scores], axis=1)
        rows = np.concatenate([self._rows, np.broadcast_to(numbers, (len(scores), count))], axis=1)
        if scores.shape[1] > self._limit:
            kept = np.argpartition(-scores, self._limit - 1, axis=1)[:, : self._limit]
            scores, rows = np.take_along_axis(scores, kept, 1), np.take_along_axis(rows, kept, 1)
        self._scores, self._rows = scores, rows

    def result(self) -> list[tuple[Rows, Scores]]:
        answers = []
        for rows, scores in zip(self._rows, self._scores, strict=True):
            order = np.lexsort((rows, -scores))  # best first, ties in row order
            order = order[np.isfinite(scores[order])]
            answers.append((rows[order], scores[order]))
        return answers
