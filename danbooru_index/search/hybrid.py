"""Ordering the rows of a generation by a query: by one retriever, or by all together.

Hybrid takes candidates from the names, the dense and the sparse retriever, and scores each of them
exactly by all three outputs of the model. Tags that the query names come first; then the M3 score
counts, with what likeness of names and popularity add to it (`fuse`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from danbooru_index.choices import MatchReason, Mode
from danbooru_index.config import Filter, Fusion, Weights
from danbooru_index.index.reader import GenerationReader
from danbooru_index.index.search_files import SearchFiles
from danbooru_index.machine import cpu_count
from danbooru_index.search.colbert import ColbertRetriever
from danbooru_index.search.dense import DenseRetriever
from danbooru_index.search.description import find_names
from danbooru_index.search.filters import allowed
from danbooru_index.search.lexical import Match
from danbooru_index.search.ranking import Ranking, matched_rows, rank_names
from danbooru_index.search.retriever import EncodedQuery, Retriever, Rows, Scores
from danbooru_index.search.sparse import SparseRetriever

CANDIDATES = 200
SOURCES = (Mode.DENSE, Mode.SPARSE)  # of a hybrid search's candidates, beside names
PARTS = (Mode.DENSE, Mode.SPARSE, Mode.COLBERT)  # of its score
# More threads than cores only take the caches and the interpreter's lock from one another.
TURNS = threading.BoundedSemaphore(cpu_count())
M3_ALONE = Fusion(names=False, transliteration=0, spelling=0, prefix=0, popularity=0)


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
    fusion: Fusion = Fusion(),
    also: Sequence[Match] = (),
) -> Ranking:
    """Order rows by a mode; hybrid scores the union of candidates exactly in all three.

    `also`: what parts of the query mean, for a hybrid search: behind the rows that it names.
    Threads take turns, as many at once as there are cores, where no object store is waited for.
    """
    with _turn(reader, mode):
        if mode is Mode.LEXICAL:
            return rank_names(reader.files, query.text, limit, wanted)
        if mode is Mode.HYBRID:
            return _rank_by_all(reader, query, limit, weights, wanted, fusion, also)
        among, known = allowed(reader.files, wanted), retrievers(reader)
        rows, scores = known[mode].candidates(query, limit, among)
        parts = {p: scores if p is mode else known[p].score(query, rows) for p in PARTS}
        return Ranking(rows, scores, parts, [None] * len(rows))


def _turn(reader: GenerationReader, mode: Mode) -> contextlib.AbstractContextManager[object]:
    """A turn at the cores; an object store is waited for without a core, so by all at once."""
    mapped = mode is Mode.LEXICAL or reader.vectors.dense is not None
    return TURNS if mapped else contextlib.nullcontext()


def _rank_by_all(
    reader: GenerationReader,
    query: EncodedQuery,
    limit: int,
    weights: Weights,
    wanted: Filter,
    fusion: Fusion,
    also: Sequence[Match],
) -> Ranking:
    among, known = allowed(reader.files, wanted), retrievers(reader)
    count = candidates(limit)
    matches = with_parts(matched(reader.files, query.text, count, among.mask, [fusion]), also)
    found = [known[source].candidates(query, count, among)[0] for source in SOURCES]
    rows = union([*found, matched_rows(matches)])
    parts = {part: known[part].score(query, rows) for part in PARTS}
    score = combine(parts, weights)
    order = fuse(reader.files, rows, score, matches, fusion)[:limit]
    by_row = {match.row: match for match in matches}
    return Ranking(
        rows[order],
        score[order],
        {part: values[order] for part, values in parts.items()},
        [by_row.get(row) for row in rows[order].tolist()],
    )


def matched(
    files: SearchFiles,
    query: str,
    count: int,
    mask: np.ndarray[Any, np.dtype[np.bool_]],
    fusions: Sequence[Fusion],
) -> list[Match]:
    """The rows that a query names or nearly names; none where no fusion asks for them."""
    asked = any(f.names or f.transliteration or f.spelling or f.prefix for f in fusions)
    return find_names(files, query, count, mask) if query and asked else []


def with_parts(matches: Sequence[Match], also: Sequence[Match]) -> list[Match]:
    """Matches with those of parts behind the sure ones; of a row the surest."""
    sure = [match for match in matches if match.sure]
    named = {match.row for match in sure}
    more: dict[int, Match] = {}
    for match in also:
        if match.row not in named:
            more.setdefault(match.row, match)
    sure += more.values()
    return sure + [match for match in matches if not match.sure and match.row not in more]


def fuse(
    files: SearchFiles, rows: Rows, m3: Scores, matches: Sequence[Match], fusion: Fusion
) -> Rows:
    """The order of candidates, as places in `rows` (ascending), best first.

    Sure matches first, in their order. Then by the M3 score, what a likeness of names adds (its
    weight times similarity squared), and `popularity` times log10(posts + 1); ties in row order.
    """
    total = m3 + sum(added(files, rows, matches, fusion).values())
    return np.lexsort((rows, -total, places_of_names(rows, matches, fusion)))


def places_of_names(rows: Rows, matches: Sequence[Match], fusion: Fusion) -> Rows:
    """Where each row stands among those that the query names surely; behind all, where it does
    not.
    """
    first = np.full(len(rows), len(matches))
    for number, match in enumerate(matches):
        if match.sure and fusion.names:
            first[np.searchsorted(rows, match.row)] = number
    return first


def added(
    files: SearchFiles, rows: Rows, matches: Sequence[Match], fusion: Fusion
) -> dict[str, Scores]:
    """What each sort of likeness, and popularity, add to the score of rows (ascending)."""
    weight = {
        MatchReason.TRANSLITERATION: fusion.transliteration,
        MatchReason.SPELLING: fusion.spelling,
        MatchReason.PREFIX: fusion.prefix,
    }
    found = {reason.value: np.zeros(len(rows), np.float32) for reason in weight}
    for match in matches:
        if not match.sure:
            at = int(np.searchsorted(rows, match.row))
            found[match.reason.value][at] += weight[match.reason] * match.similarity**2
    return found | {"popularity": np.float32(fusion.popularity) * files.popularity[rows]}


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
