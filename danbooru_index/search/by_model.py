"""A query answered by the model and by names together."""

from __future__ import annotations

from dataclasses import replace

from danbooru_index.choices import Mode
from danbooru_index.search.by_part import (
    MOST_MEANT,
    TAGS_A_PART,
    meant_by,
    part_answer,
    query_parts,
)
from danbooru_index.search.explain import explain
from danbooru_index.search.hit import Explanation, Hits, make_hits
from danbooru_index.search.hybrid import rank
from danbooru_index.search.open_generation import OpenGeneration
from danbooru_index.search.query import Asked
from danbooru_index.search.query_encoder import QueryEncoder
from danbooru_index.search.ranking import Ranking
from danbooru_index.search.retriever import EncodedQuery


def answer_by_model(
    opened: OpenGeneration, encoder: QueryEncoder, query: EncodedQuery, asked: Asked
) -> Hits:
    """The hits of a query that the model encoded; of a prompt or a description, each part is asked
    for, too.
    """
    files, reader, ways = opened.files, opened.tables, (asked.weights, asked.wanted, asked.fusion)
    parts = []
    if asked.mode is Mode.HYBRID and asked.fusion.names:
        parts = query_parts(files, query.text, asked.wanted)
    meant: dict[str, Ranking] = {}
    unnamed = replace(asked.fusion, names=False)  # no name that it may have is meant
    texts = [part.text for part in parts if not part.covered][:MOST_MEANT]
    for text, one in zip(texts, encoder(texts) if texts else (), strict=True):
        meant[text] = rank(reader, one, Mode.HYBRID, TAGS_A_PART, *ways[:2], unnamed)
    ranking = rank(reader, query, asked.mode, asked.limit, *ways, also=meant_by(meant))
    told: list[Explanation] = []
    if asked.explain:
        told = explain(
            reader, query, ranking, asked.mode, asked.limit, *ways[1:], piece=encoder.piece
        )
    hits = make_hits(files, query.text, ranking, told)
    hits.parts = tuple(
        part_answer(files, part, meant.get(part.text), asked.wanted) for part in parts
    )
    return hits
