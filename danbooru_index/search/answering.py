"""Queries answered by one generation: encoded, ranked, and told with all that is known."""

from __future__ import annotations

from danbooru_index.choices import Mode
from danbooru_index.index.lance_errors import panics_as_errors
from danbooru_index.index.search_files import SearchFiles
from danbooru_index.search.by_part import part_answer, query_parts
from danbooru_index.search.hit import Explanation, Hits, make_hits
from danbooru_index.search.open_generation import OpenGeneration, as_storage_errors
from danbooru_index.search.query import Asked
from danbooru_index.search.ranking import rank_names


def answers(opened: OpenGeneration, queries: list[str], asked: Asked) -> list[Hits]:
    """The hits of each query, all of one generation."""
    encoder = opened.model.encoder(asked.mode)
    with as_storage_errors():
        if encoder is None:
            return [_by_names(opened.files, query, asked) for query in queries]
        from danbooru_index.search.by_model import answer_by_model

        encoded = encoder(queries) if queries else []
        with panics_as_errors():
            return [answer_by_model(opened, encoder, query, asked) for query in encoded]


def _by_names(files: SearchFiles, query: str, asked: Asked) -> Hits:
    ranking = rank_names(files, query, asked.limit, asked.wanted)
    told = [
        Explanation({Mode.LEXICAL.value: place + 1}, {}, float(score), {})
        for place, score in enumerate(ranking.score if asked.explain else ())
    ]
    hits = make_hits(files, query, ranking, told)
    parts = query_parts(files, query, asked.wanted)
    hits.parts = tuple(part_answer(files, part, None, asked.wanted) for part in parts)
    return hits
