"""The Retriever protocol: one way to find rows for a query, and to score any row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from danbooru_index.config import Filter
from danbooru_index.embeddings import Embeddings

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Allowed:
    """The rows that a filter lets through: `mask` [rows]."""

    mask: npt.NDArray[np.bool_]
    wanted: Filter

    @cached_property
    def count(self) -> int:
        return int(np.count_nonzero(self.mask))

    @cached_property
    def all(self) -> bool:
        return self.count == len(self.mask)

    @cached_property
    def rows(self) -> Rows:
        """Their numbers, ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def bits(self) -> npt.NDArray[np.uint8]:
        """The mask, eight rows a byte, from the lowest bit on."""
        return np.packbits(self.mask, bitorder="little")


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """A query's three outputs: `dense` [D], `sparse` by token id, `colbert` [tokens - 1, C]. And
    its text, for what compares names.
    """

    dense: np.ndarray[Any, Any]
    sparse: dict[int, float]
    colbert: np.ndarray[Any, Any]
    text: str = ""


def query_of(embeddings: Embeddings, row: int, text: str = "") -> EncodedQuery:
    """One text of embeddings, as a query."""
    return EncodedQuery(
        embeddings.dense[row], embeddings.sparse_row(row), embeddings.colbert_row(row), text
    )


class Retriever(Protocol):
    """Finds rows by one of a query's outputs; `candidates` and `score` agree on each row."""

    def candidates(self, query: EncodedQuery, k: int, allowed: Allowed) -> tuple[Rows, Scores]:
        """Up to `k` of the allowed rows, best first, ties in row order; none without a score."""

    def score(self, query: EncodedQuery, rows: Rows) -> Scores:
        """The score of each given row, [rows]."""


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
