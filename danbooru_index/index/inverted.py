"""The inverted index of the sparse weights: for each token the rows that have it. Exact.

    sparse_tokens    [tokens] the tokens that occur, ascending
    sparse_starts    [tokens + 1] where the postings of each begin
    sparse_rows      [entries] the rows that have it, ascending
    sparse_weights   [entries] float32, the weight of each
    sparse_bounds    [tokens] the largest weight of each
    sparse_common    the tokens that most rows have (brackets), ascending: their postings are empty,
    sparse_columns   [common, rows] and this holds the weight of each in every row

Candidates by MaxScore (Turtle and Flood, 1995): tokens are taken from the rarest on, until what the
others can add at most is less than the worst of the best `k`; the others are then looked up for
those few rows alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from danbooru_index.embeddings import Array

COMMON_FROM = 0.125  # share of rows from which a token gets a column
ROUNDING = 1.00001  # single precision adds up to another sum in another order
JUDGED_FROM = 4096  # postings: before a list as long as that it is asked whether it is needed

RowNumbers = npt.NDArray[np.int64]
RowScores = npt.NDArray[np.float32]


def inverted_arrays(batches: Iterable[pa.RecordBatch]) -> dict[str, Array]:
    """The index over `token_ids` and `weights` of the sparse table, in row order."""
    tokens, weights, lengths = flat_weights(batches)
    rows = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    order = np.argsort(tokens, kind="stable")  # by token, rows ascending within each
    tokens, rows, weights = tokens[order], rows[order], weights[order]
    known, firsts, counts = np.unique(tokens, return_index=True, return_counts=True)
    bounds = np.maximum.reduceat(weights, firsts) if len(known) else np.empty(0, np.float32)
    common = counts > COMMON_FROM * max(len(lengths), 1)
    columns = np.zeros((int(common.sum()), len(lengths)), np.float32)
    for column, place in zip(columns, np.flatnonzero(common).tolist(), strict=True):
        span = slice(firsts[place], firsts[place] + counts[place])
        column[rows[span]] = weights[span]
    kept = np.repeat(~common, counts)
    starts = np.concatenate(([0], np.cumsum(np.where(common, 0, counts))))
    return {
        "sparse_tokens": known.astype(np.int32),
        "sparse_starts": starts.astype(np.int64),
        "sparse_rows": rows[kept],
        "sparse_weights": weights[kept],
        "sparse_bounds": bounds,
        "sparse_common": known[common].astype(np.int32),
        "sparse_columns": columns,
    }


def flat_weights(batches: Iterable[pa.RecordBatch]) -> tuple[Array, Array, Array]:
    """All tokens [entries] and weights [entries], and how many each row has [rows]."""
    tokens = [np.empty(0, np.int32)]
    weights, lengths = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for batch in batches:
        column = batch.column("token_ids")
        lengths.append(np.asarray(column.value_lengths(), dtype=np.int64))
        tokens.append(column.flatten().to_numpy(zero_copy_only=False))
        weights.append(batch.column("weights").flatten().to_numpy(zero_copy_only=False))
    return np.concatenate(tokens), np.concatenate(weights), np.concatenate(lengths)


@dataclass(frozen=True, slots=True)
class Postings:
    """What one token of a query adds to the rows that have it, and at most; `column`: to all rows,
    where it is common.
    """

    token: int
    weight: np.float32
    bound: float
    rows: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    column: npt.NDArray[np.float32] | None = None

    @property
    def length(self) -> int:
        return len(self.rows) if self.column is None else len(self.column)

    def added(self, rows: RowNumbers) -> RowScores:
        """What it adds to each of these rows."""
        if self.column is not None:
            found: RowScores = self.weight * self.column[rows]
            return found
        if not len(self.rows):
            return np.zeros(len(rows), np.float32)
        places, there = places_in(self.rows, rows)
        return np.where(there, self.weight * self.weights[places], np.float32(0))


class InvertedIndex:
    """RowNumbers by the sum of weight products over the tokens that they share with a query."""

    def __init__(self, arrays: Mapping[str, Array], rows: int) -> None:
        self._count = rows
        self._tokens, self._starts = arrays["sparse_tokens"], arrays["sparse_starts"]
        self._rows, self._weights = arrays["sparse_rows"], arrays["sparse_weights"]
        self._bounds = arrays["sparse_bounds"]
        self._columns = dict(
            zip(arrays["sparse_common"].tolist(), arrays["sparse_columns"], strict=True)
        )

    def score(self, query: Mapping[int, float], rows: RowNumbers) -> RowScores:
        """The score of each given row."""
        scores = np.zeros(len(rows), np.float32)
        for postings in self._of(query):
            scores += postings.added(rows)
        return scores

    def by_token(self, query: Mapping[int, float], rows: RowNumbers) -> dict[int, RowScores]:
        """What each token of a query adds to the score of each given row."""
        return {postings.token: postings.added(rows) for postings in self._of(query)}

    def top(
        self, query: Mapping[int, float], k: int, mask: npt.NDArray[np.bool_]
    ) -> tuple[RowNumbers, RowScores]:
        """The `k` allowed rows of the highest scores above 0, best first, ties in row order."""
        lists = self._of(query)
        sums = np.zeros(self._count, np.float32)
        rows, needed = np.empty(0, np.int64), 0
        for postings in lists:
            rest = ROUNDING * sum(other.bound for other in lists[needed:])
            if postings.length >= JUDGED_FROM and kth_highest(sums[rows], k) > rest:
                break  # a row with none of the tokens so far cannot be among the best
            rows = _with(rows, postings, sums, mask)
            needed += 1
        if needed < len(lists):
            most = ROUNDING * sum(other.bound for other in lists[needed:])
            rows = rows[ROUNDING * sums[rows] + most >= kth_highest(sums[rows], k)]
        scores = self.score(query, rows)
        kept = scores > 0
        rows, scores = rows[kept], scores[kept]
        if len(rows) > k:
            among = scores >= kth_highest(scores, k)
            rows, scores = rows[among], scores[among]
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]

    def _of(self, query: Mapping[int, float]) -> list[Postings]:
        """The postings of a query's tokens, the shortest first."""
        found = []
        places = np.searchsorted(self._tokens, list(query))
        for (token, given), place in zip(query.items(), places.tolist(), strict=True):
            if place < len(self._tokens) and self._tokens[place] == token and given > 0:
                span = slice(int(self._starts[place]), int(self._starts[place + 1]))
                weight = np.float32(given)
                bound = float(weight) * float(self._bounds[place])
                found.append(
                    Postings(
                        token,
                        weight,
                        bound,
                        self._rows[span],
                        self._weights[span],
                        self._columns.get(token),
                    )
                )
        return sorted(found, key=lambda postings: postings.length)


def _with(
    rows: RowNumbers, postings: Postings, sums: RowScores, mask: npt.NDArray[np.bool_]
) -> RowNumbers:
    """Adds what a token gives to `sums`; the allowed rows that have a token so far, each once."""
    if postings.column is not None:
        sums += postings.weight * postings.column
        return np.flatnonzero((sums > 0) & mask)
    new = postings.rows[(sums[postings.rows] == 0) & mask[postings.rows]]
    sums[postings.rows] += postings.weight * postings.weights
    return np.concatenate([rows, new])


def places_in(ascending: Array, values: Array) -> tuple[Array, Array]:
    """Where each value stands among ascending ones, and whether it does; elsewhere any place."""
    places = np.searchsorted(ascending, values)
    places[places == len(ascending)] = 0  # behind the end: compared with another value below
    there = ascending[places] == values if len(ascending) else np.zeros(len(places), bool)
    return places, there


def kth_highest(scores: Array, k: int) -> float:
    """The k-th highest of scores; nothing where there are fewer."""
    if len(scores) < k:
        return 0.0
    return float(np.partition(scores, len(scores) - k)[len(scores) - k])
