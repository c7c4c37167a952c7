"""The parts of a prompt or a description, each with the tags that answer it."""

from __future__ import annotations

from collections.abc import Mapping

from danbooru_index.choices import MatchReason
from danbooru_index.config import Filter
from danbooru_index.index.search_files import SearchFiles
from danbooru_index.search.description import QueryPart, parts_of, tags_of_part
from danbooru_index.search.filters import allowed
from danbooru_index.search.hit import PartAnswer
from danbooru_index.search.lexical import Match
from danbooru_index.search.ranking import Ranking

TAGS_A_PART = 3
MOST_MEANT = 16  # parts of a query that the model is asked for: each is a search


def query_parts(files: SearchFiles, query: str, wanted: Filter) -> list[QueryPart]:
    """The parts of a query that asks for more than one tag, else none."""
    return parts_of(files, query, allowed(files, wanted).mask)


def meant_by(meant: Mapping[str, Ranking]) -> list[Match]:
    """The best row of each part that no name covers."""
    return [
        Match(int(ranking.rows[0]), MatchReason.MEANING, 1.0, -1, sure=True, part=text)
        for text, ranking in meant.items()
        if len(ranking.rows)
    ]


def part_answer(
    files: SearchFiles, part: QueryPart, meant: Ranking | None, wanted: Filter
) -> PartAnswer:
    """A part with the tags that it names, or else those that it means, where a model was asked."""
    if part.covered:
        mask = allowed(files, wanted).mask
        rows = [match.row for match in tags_of_part(files, part.text, TAGS_A_PART, mask)]
    else:
        rows = [] if meant is None else meant.rows.tolist()
    tags = dict.fromkeys(record["tag"] for record in files.records(rows))
    return PartAnswer(part.text, part.covered, tuple(tags))
