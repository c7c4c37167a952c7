"""Why a hit stands where it stands: which retriever found it, what was added to its score, which
tokens it shares with the query.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from danbooru_index.choices import Mode
from danbooru_index.config import Filter, Fusion
from danbooru_index.index.reader import GenerationReader
from danbooru_index.search.filters import allowed
from danbooru_index.search.hit import Explanation
from danbooru_index.search.hybrid import SOURCES, added, candidates, matched, retrievers
from danbooru_index.search.ranking import Ranking, matched_rows
from danbooru_index.search.retriever import EncodedQuery


def explain(
    reader: GenerationReader,
    query: EncodedQuery,
    ranking: Ranking,
    mode: Mode,
    limit: int,
    wanted: Filter,
    fusion: Fusion,
    piece: Callable[[int], str],
) -> list[Explanation]:
    """An explanation of each hit of a ranking; `piece`: a token as the tokenizer writes it."""
    among, known, rows = allowed(reader.files, wanted), retrievers(reader), ranking.rows
    count = candidates(limit)
    matches = matched(reader.files, query.text, count, among.mask, [fusion])
    found = {
        source.value: known[source].candidates(query, count, among)[0].tolist()
        for source in SOURCES
    } | {Mode.LEXICAL.value: matched_rows(matches).tolist()}
    order, shown = np.argsort(rows), set(rows.tolist())
    hits = [match for match in matches if match.row in shown]
    plus: dict[str, Any] = {}
    if mode is Mode.HYBRID:
        plus = added(reader.files, rows[order], hits, fusion)
    tokens = reader.inverted.by_token(query.sparse, rows)
    told = []
    for place, row in enumerate(rows.tolist()):
        at = int(np.flatnonzero(order == place)[0])  # its place in ascending order
        more = {name: float(values[at]) for name, values in plus.items() if values[at]}
        shared = {piece(token): float(values[place]) for token, values in tokens.items()}
        told.append(
            Explanation(
                {name: rows_.index(row) + 1 for name, rows_ in found.items() if row in rows_},
                more,
                float(ranking.score[place]) + sum(more.values()),
                dict(sorted(((t, w) for t, w in shared.items() if w), key=lambda one: -one[1])),
            )
        )
    return told
