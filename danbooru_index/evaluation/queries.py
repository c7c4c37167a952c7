"""A queries file: one query a line, with the tags that answer it.

{"query": "...", "relevant": ["tag", ...], "kind": "zh"}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from danbooru_index.errors import InputError
from danbooru_index.ingest.text_encoding import text_lines
from danbooru_index.records import is_blank


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a queries file."""

    text: str
    relevant: tuple[str, ...]
    kind: str


FORM = '{"query": "...", "relevant": ["tag", ...], "kind": "..."}'


def read_queries(path: str) -> list[Query]:
    """The queries of a file; raise `InputError` that names the line for one that cannot be used."""
    queries = []
    for number, line in text_lines(Path(path)):
        try:
            item = json.loads(line)
            text, relevant, kind = item["query"], item["relevant"], item.get("kind", "all queries")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{path}:{number}: needs {FORM}") from None
        strings = isinstance(relevant, list) and all(isinstance(tag, str) for tag in relevant)
        if not (isinstance(text, str) and strings and relevant and isinstance(kind, str)):
            raise InputError(
                f"{path}:{number}: query must be a text, relevant a list of at least one tag"
            )
        if kind == "all" or any(
            is_blank(word) or not _plain(word) for word in (text, kind, *relevant)
        ):
            raise InputError(
                f"{path}:{number}: query, kind and tags must be texts that can be seen, in valid"
                " Unicode; no kind is called all"
            )
        queries.append(Query(text, tuple(relevant), kind))
    if not queries:
        raise InputError(f"{path}: holds no query")
    return queries


def _plain(text: str) -> bool:
    """Whether C can take a text: no lone surrogate, no NUL."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
