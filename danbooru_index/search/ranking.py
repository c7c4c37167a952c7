"""The rows that answer a query, in order, with the scores and the names that put them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from danbooru_index.choices import Mode
from danbooru_index.config import Filter
from danbooru_index.index.search_files import SearchFiles
from danbooru_index.search.description import find_names
from danbooru_index.search.filters import allowed
from danbooru_index.search.lexical import Match
from danbooru_index.search.retriever import Rows, Scores


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows, best first, with the score of the mode and of each part, and why each is there.

    `parts`: by dense, sparse, ColBERT; None where no model was asked.
    """

    rows: Rows
    score: Scores
    parts: dict[Mode, Scores] | None
    matches: list[Match | None]


def rank_names(files: SearchFiles, query: str, limit: int, wanted: Filter) -> Ranking:
    """Order rows by their names alone: no model is asked, no table read."""
    found = find_names(files, query, limit, allowed(files, wanted).mask)
    scores = np.array([match.similarity for match in found], np.float32)
    return Ranking(matched_rows(found), scores, None, list(found))


def matched_rows(matches: Sequence[Match]) -> Rows:
    """The rows of matches, in their order."""
    return np.array([match.row for match in matches], np.int64)
